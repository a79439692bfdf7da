// SPDX-License-Identifier: BSL-1.0
// softmax.bench.cpp: every function of softmax.hpp and jacobian.hpp, beside the plain loop and memcpy of the same bytes.
//
//   cmake -S . -B build/bench -G Ninja -D SMX_BUILD_BENCH=ON && cmake --build build/bench --target softmax.bench
//   build/bench/bench/softmax.bench --benchmark_filter='softmax<float>'
//   build/bench/bench/softmax.bench ratios     the table of ratios to the plain loop, both sides in turn in one run
#include "plain_loop.hpp"

#include <smx/smx.hpp>

#include <algorithm>
#include <benchmark/benchmark.h>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

// n logits between -8 and 8, from a multiplicative congruential generator
template <class T>
std::vector<T> logits_of(std::size_t n, unsigned seed = 1)
{
    std::vector<T> logits(n);
    unsigned state = seed;
    for (T& x : logits) {
        state = state * 1664525u + 1013904223u;
        x = static_cast<T>(state >> 8) * T(0x1p-20) - 8;
    }
    return logits;
}

template <class T>
struct rows { // what a call reads and writes
    std::vector<T> logits, probs, u, v, out;

    explicit rows(std::size_t n, bool square = false)
        : logits(logits_of<T>(n)), probs(n), u(logits_of<T>(n, 2)), v(logits_of<T>(n, 3)), out(square ? n * n : n)
    {
        smx::softmax(logits, probs);
    }
};

struct call { // one function by its two implementations
    const char* name;
    bool square; // writes n * n
    template <class T>
    using body = void (*)(rows<T>&);
    body<float> ours_float, plain_float;
    body<double> ours_double, plain_double;
};

template <class T>
std::size_t size(const rows<T>& r)
{
    return r.logits.size();
}

const call calls[] = {
#define SMX_CALL(name, square, ours, loop)                                                                             \
    {name,                                                                                                             \
     square,                                                                                                           \
     [](rows<float>& r) { ours; },                                                                                     \
     [](rows<float>& r) { loop; },                                                                                     \
     [](rows<double>& r) { ours; },                                                                                    \
     [](rows<double>& r) { loop; }}
    SMX_CALL("softmax", false, smx::softmax(r.logits, r.out), plain::softmax(r.logits.data(), r.out.data(), size(r))),
    SMX_CALL("log_softmax", false, smx::log_softmax(r.logits, r.out),
             plain::log_softmax(r.logits.data(), r.out.data(), size(r))),
    SMX_CALL("logsumexp", false, r.out[0] = smx::logsumexp(r.logits),
             r.out[0] = plain::logsumexp(r.logits.data(), size(r))),
    SMX_CALL("softmax_vjp", false, smx::softmax_vjp(r.probs, r.u, r.out),
             plain::softmax_vjp(r.probs.data(), r.u.data(), r.out.data(), size(r))),
    SMX_CALL("log_softmax_jvp", false, smx::log_softmax_jvp(r.probs, r.v, r.out),
             plain::log_softmax_jvp(r.probs.data(), r.v.data(), r.out.data(), size(r))),
    SMX_CALL("log_softmax_vjp", false, smx::log_softmax_vjp(r.probs, r.u, r.out),
             plain::log_softmax_vjp(r.probs.data(), r.u.data(), r.out.data(), size(r))),
    SMX_CALL("softmax_hvp", false, smx::softmax_hvp(r.probs, r.u, r.v, r.out),
             plain::softmax_hvp(r.probs.data(), r.u.data(), r.v.data(), r.out.data(), size(r))),
    SMX_CALL("softmax_jacobian", true, smx::softmax_jacobian(r.probs, r.out),
             plain::softmax_jacobian(r.probs.data(), size(r), r.out.data())),
    SMX_CALL("log_softmax_jacobian", true, smx::log_softmax_jacobian(r.probs, r.out),
             plain::log_softmax_jacobian(r.probs.data(), size(r), r.out.data())),
#undef SMX_CALL
};

template <class T>
void measure(benchmark::State& state, void (*body)(rows<T>&), bool square)
{
    const auto n = static_cast<std::size_t>(state.range(0));
    rows<T> r(n, square);
    for (auto _ : state) {
        body(r);
        benchmark::DoNotOptimize(r.out.data());
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(r.out.size()));
}

template <class T>
void copy(rows<T>& r)
{
    std::memcpy(r.out.data(), r.logits.data(), r.logits.size() * sizeof(T));
}

template <class T>
void register_type(const std::string& type, call::body<T> call::* ours, call::body<T> call::* loop)
{
    const auto add = [](const std::string& name, call::body<T> body, bool square) {
        auto* b = benchmark::RegisterBenchmark(name.c_str(), measure<T>, body, square);
        for (const int n : {8, 10, 16, 64, 100, 256, 1000, 4096, 65536, 1 << 20, 1 << 24})
            if (!square || n <= 4096)
                b->Arg(n);
        b->MinTime(0.05);
    };
    for (const call& c : calls) {
        add(std::string(c.name) + "<" + type + ">", c.*ours, c.square);
        add(std::string(c.name) + "<" + type + ">, plain loop", c.*loop, c.square);
    }
    add("memcpy<" + type + ">", copy<T>, false);
}

// seconds of one call, of `repeats`
template <class T>
double seconds(call::body<T> body, rows<T>& r, std::size_t repeats)
{
    const auto start = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < repeats; ++i) {
        body(r);
        benchmark::ClobberMemory();
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
           static_cast<double>(repeats);
}

// The least of many rounds, the two sides in turn.
template <class T>
void print_ratios(const char* type, call::body<T> call::* ours, call::body<T> call::* loop)
{
    for (const call& c : calls) {
        if (c.square)
            continue;
        std::printf("%-16s %-7s", c.name, type);
        for (const std::size_t n : {8u, 10u, 16u, 64u, 100u, 256u, 1000u, 4096u, 65536u, 1u << 20, 1u << 24}) {
            rows<T> r(n);
            const std::size_t repeats = std::max<std::size_t>(1, 20000 / n);
            double best_ours = 1, best_loop = 1;
            for (int round = 0; round < (n > 1000000 ? 15 : 300); ++round) {
                best_ours = std::min(best_ours, seconds(c.*ours, r, repeats));
                best_loop = std::min(best_loop, seconds(c.*loop, r, repeats));
            }
            std::printf("  %.2f (%.3f)", best_ours / best_loop, best_ours / static_cast<double>(n) * 1e9);
        }
        std::printf("\n");
    }
}

} // namespace

int main(int argc, char** argv)
{
#if defined(__SSE__)
    if (_mm_getcsr() != 0x1f80) { // linked with -ffast-math?
        std::fprintf(stderr, "softmax.bench: MXCSR is %x: nothing that is timed here would count\n", _mm_getcsr());
        return 1;
    }
#endif
    if (argc == 2 && std::string(argv[1]) == "ratios") {
        std::printf("time / time of the plain loop (ns an element) at n = 8 10 16 64 100 256 1000 4096 64K 1M 16M\n");
        print_ratios<float>("float", &call::ours_float, &call::plain_float);
        print_ratios<double>("double", &call::ours_double, &call::plain_double);
        return 0;
    }
    register_type<float>("float", &call::ours_float, &call::plain_float);
    register_type<double>("double", &call::ours_double, &call::plain_double);
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
}
