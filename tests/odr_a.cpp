// SPDX-License-Identifier: BSL-1.0
// odr_a.cpp: the first translation unit of the link test, with main. It is compiled for the lesser CPU, odr_b.cpp for
// the greater one, and they are linked in both orders: whichever copy of a function the linker keeps, this unit must
// run on the lesser CPU, where odr_b.cpp is linked but not run.

// The same text as the other unit, so that both use the same functions of the library, under another name.
#define odr_b odr_a
#define odr_b_level odr_a_level
#include "odr_b.cpp"
#undef odr_b
#undef odr_b_level

extern const int odr_b_level;
int odr_b();

namespace {

bool cpu_has_level(int level)
{
#if defined(__x86_64__)
    switch (level) {
    case 4:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case 3:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    case 2:
        return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
    default:
        return true;
    }
#else
    return level == 1;
#endif
}

} // namespace

int main()
{
    const int failures_a = odr_a();
    const bool run_b = cpu_has_level(odr_b_level);
    const int failures_b = run_b ? odr_b() : 0;
    std::printf("odr_a: %d wrong; odr_b, for level %d: ", failures_a, odr_b_level);
    if (run_b)
        std::printf("%d wrong\n", failures_b);
    else
        std::printf("not run on this CPU\n");
    return failures_a + failures_b == 0 ? 0 : 1;
}
