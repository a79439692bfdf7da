// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -fopenmp -Iinclude examples/openmp.cpp -o openmp && ./openmp
//
// Threads that you have already do the rows of a batch: three lines make OpenMP an executor. Without -fopenmp the same
// program runs on one thread.
#include <smx/smx.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

// body(first, last) does some of `count` units of work, of about 32 KB each; who calls it for which, and when, is free.
const auto openmp = [](std::size_t count, auto&& body) {
#pragma omp parallel for schedule(static)
    for (std::size_t i = 0; i < count; ++i)
        body(i, i + 1);
};

template <class Call>
double milliseconds(Call call)
{
    const auto start = std::chrono::steady_clock::now();
    call();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

int main()
{
#ifdef _OPENMP
    std::printf("OpenMP, %d threads\n", omp_get_max_threads());
#else
    std::printf("compiled without -fopenmp: one thread\n");
#endif
    const std::size_t rows = 50000, row_length = 100;
    std::vector<float> logits(rows * row_length), one_by_one(logits.size()), probs(logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i)
        logits[i] = static_cast<float>(i * 2654435761u % 1024) / 64; // 0 ... 16

    double alone = 1e9, together = 1e9; // the best of some runs: the first finds neither its memory nor its threads
    for (int run = 0; run < 20; ++run) {
        alone = std::min(alone, milliseconds([&] { smx::softmax_rows(logits, one_by_one, row_length); }));
        together = std::min(together, milliseconds([&] { smx::softmax_rows(openmp, logits, probs, row_length); }));
    }
    std::printf("%zu x %zu: one thread %.2f ms, openmp %.2f ms\n", rows, row_length, alone, together);
    const bool same = std::memcmp(probs.data(), one_by_one.data(), probs.size() * sizeof(float)) == 0;
    std::printf("%s\n", same ? "the same bits" : "DIFFERENT bits");
    return same ? 0 : 1;
}
