// SPDX-License-Identifier: BSL-1.0
// batch.bench.cpp: the functions of batch.hpp beside the plain loop over the rows.
//
//   cmake -S . -B build/bench -G Ninja -D SMX_BUILD_BENCH=ON && cmake --build build/bench --target batch.bench
//   build/bench/bench/batch.bench --benchmark_filter='softmax_rows<float>'
//   build/bench/bench/batch.bench ratios     the table of ratios, both sides in turn in one run
#include "plain_loop.hpp"

#include <smx/smx.hpp>
#include <smx/threads.hpp>

#include <algorithm>
#include <benchmark/benchmark.h>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

struct shape {
    std::size_t rows, row_length;
};
constexpr shape shapes[] = {{100000, 8}, {100000, 10}, {65536, 16}, {50000, 33},
                            {10000, 64}, {4096, 1000}, {128, 32000}};

template <class T>
struct batch { // what a call reads and writes
    std::size_t rows, n;
    std::vector<T> logits, probs, u, out;
    std::unique_ptr<bool[]> mask;
    std::vector<std::size_t> offsets; // of segments with a mean length of n

    explicit batch(shape s)
        : rows(s.rows), n(s.row_length), logits(s.rows * s.row_length), probs(logits.size()), u(logits.size()),
          out(logits.size()), mask(new bool[s.row_length]), offsets(s.rows + 1)
    {
        unsigned state = 1;
        const auto next = [&state] { return (state = state * 1664525u + 1013904223u) >> 8; };
        for (std::size_t i = 0; i < logits.size(); ++i) {
            logits[i] = static_cast<T>(next()) * T(0x1p-20) - 8;
            u[i] = static_cast<T>(next()) * T(0x1p-20) - 8;
        }
        for (std::size_t j = 0; j < n; ++j)
            mask[j] = j % 8 != 3;
        for (std::size_t r = 0; r + 1 < rows; r += 2) { // pairs of 2 n entries, cut at random
            offsets[r + 1] = offsets[r] + 1 + next() % (2 * n - 1);
            offsets[r + 2] = offsets[r] + 2 * n;
        }
        offsets.back() = logits.size();
        smx::softmax_rows(logits, probs, n);
    }
};

template <class T>
using body = void (*)(batch<T>&);

template <class T>
void plain_rows(batch<T>& b)
{
    for (std::size_t r = 0; r < b.rows; ++r)
        plain::softmax(b.logits.data() + r * b.n, b.out.data() + r * b.n, b.n);
}
template <class T>
void plain_vjp_rows(batch<T>& b)
{
    for (std::size_t r = 0; r < b.rows; ++r)
        plain::softmax_vjp(b.probs.data() + r * b.n, b.u.data() + r * b.n, b.out.data() + r * b.n, b.n);
}
template <class T>
void rows(batch<T>& b)
{
    smx::softmax_rows(b.logits, b.out, b.n);
}
template <class T>
void rows_with_temperature(batch<T>& b)
{
    smx::softmax_rows(b.logits, b.out, b.n, {.temperature = T(0.7)});
}
template <class T>
void rows_with_mask(batch<T>& b)
{
    smx::softmax_rows(b.logits, b.out, b.n, {.mask = {b.mask.get(), b.n}});
}
template <class T>
void rows_on_two_threads(batch<T>& b)
{
    smx::softmax_rows(smx::threads{2}, b.logits, b.out, b.n);
}
template <class T>
void vjp_rows(batch<T>& b)
{
    smx::softmax_vjp_rows(b.probs, b.u, b.out, b.n);
}
template <class T>
void columns(batch<T>& b) // the transposed shape
{
    smx::softmax_columns(b.logits, b.out, b.rows);
}
template <class T>
void segments(batch<T>& b)
{
    smx::softmax_segments(b.logits, b.offsets, b.out);
}

template <class T>
double seconds(body<T> run, batch<T>& b)
{
    const auto start = std::chrono::steady_clock::now();
    run(b);
    benchmark::ClobberMemory();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// time of a / time of b: the least of many rounds, the two sides in turn; and ns an element of a
template <class T>
void print_ratio(const char* name, const char* type, shape s, body<T> a, body<T> other)
{
    batch<T> data(s);
    double best_a = 1, best_other = 1;
    for (int round = 0; round < 60; ++round) {
        best_a = std::min(best_a, seconds(a, data));
        best_other = std::min(best_other, seconds(other, data));
    }
    std::printf("%-46s %-6s %6zux%-6zu %.2f (%.3f)\n", name, type, s.rows, s.row_length, best_a / best_other,
                best_a / static_cast<double>(data.out.size()) * 1e9);
}

template <class T>
void print_ratios(const char* type)
{
    for (const shape s : shapes)
        print_ratio<T>("softmax_rows / plain loop", type, s, rows<T>, plain_rows<T>);
    print_ratio<T>("softmax_vjp_rows / plain loop", type, {100000, 10}, vjp_rows<T>, plain_vjp_rows<T>);
    print_ratio<T>("softmax_columns / softmax_rows", type, {1000, 1000}, columns<T>, rows<T>);
    print_ratio<T>("softmax_columns / softmax_rows", type, {4096, 100}, columns<T>, rows<T>);
    print_ratio<T>("softmax_columns / softmax_rows", type, {128, 10000}, columns<T>, rows<T>);
    print_ratio<T>("softmax_segments / softmax_rows", type, {100000, 10}, segments<T>, rows<T>);
    print_ratio<T>("softmax_segments / softmax_rows", type, {10000, 100}, segments<T>, rows<T>);
    print_ratio<T>("one thread / threads{2}", type, {4096, 1000}, rows<T>, rows_on_two_threads<T>);
    for (const shape s : {shape{100000, 10}, shape{4096, 1000}}) {
        print_ratio<T>("masked / unmasked", type, s, rows_with_mask<T>, rows<T>);
        print_ratio<T>("temperature 0.7 / 1", type, s, rows_with_temperature<T>, rows<T>);
    }
}

template <class T>
void measure(benchmark::State& state, body<T> run, shape s)
{
    batch<T> b(s);
    for (auto _ : state) {
        run(b);
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(b.out.size()));
}

template <class T>
void register_type(const std::string& type)
{
    const auto add = [&type](const std::string& name, body<T> run) {
        for (const shape s : shapes)
            benchmark::RegisterBenchmark(
                (name + "<" + type + ">/" + std::to_string(s.rows) + "x" + std::to_string(s.row_length)).c_str(),
                measure<T>, run, s)
                ->MinTime(0.05);
    };
    add("softmax_rows", rows<T>);
    add("softmax_rows, plain loop", plain_rows<T>);
    add("softmax_vjp_rows", vjp_rows<T>);
    add("softmax_vjp_rows, plain loop", plain_vjp_rows<T>);
    add("softmax_columns", columns<T>);
    add("softmax_segments", segments<T>);
}

} // namespace

int main(int argc, char** argv)
{
#if defined(__SSE__)
    if (_mm_getcsr() != 0x1f80) { // linked with -ffast-math?
        std::fprintf(stderr, "batch.bench: MXCSR is %x: nothing that is timed here would count\n", _mm_getcsr());
        return 1;
    }
#endif
    if (argc == 2 && std::string(argv[1]) == "ratios") {
        std::printf("ratio of times (ns an element of the first)\n");
        print_ratios<float>("float");
        print_ratios<double>("double");
        return 0;
    }
    register_type<float>("float");
    register_type<double>("double");
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
}
