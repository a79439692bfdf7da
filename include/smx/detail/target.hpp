// SPDX-License-Identifier: BSL-1.0
// target.hpp: the only macros of the library, and what they hide from it: compilers.
#pragma once

#define SMX_VERSION "0.1.0"

// SMX_INLINE: what a user's translation unit instantiates is inlined there: compiled with other -m flags elsewhere, it
// must never be the copy that the linker keeps for all. SMX_COLD: the way to an error, kept out of the caller. SMX_APART: so
// many registers are saved for it that a caller on a short way should not pay for them.
#if defined(__GNUC__)
#define SMX_INLINE inline __attribute__((always_inline))
#define SMX_COLD inline __attribute__((cold, noinline))
#define SMX_APART inline __attribute__((noinline))
#define SMX_LIKELY(condition) __builtin_expect(condition, 1)
#elif defined(_MSC_VER)
#define SMX_INLINE __forceinline
#define SMX_COLD __declspec(noinline) inline
#define SMX_APART __declspec(noinline) inline
#define SMX_LIKELY(condition) (condition)
#else
#define SMX_INLINE inline
#define SMX_COLD inline
#define SMX_APART inline
#define SMX_LIKELY(condition) (condition)
#endif

// SMX_PRECISE_BEGIN ... SMX_PRECISE_END: a region, at global scope, in which a sum is the sum that is written and NaN is
// NaN, also in a program compiled with -ffast-math.
#if defined(__clang__)
#define SMX_PRECISE_BEGIN                                                                                              \
    _Pragma("float_control(push)") _Pragma("float_control(precise, on)") _Pragma("clang fp contract(off)")
#define SMX_PRECISE_END _Pragma("float_control(pop)")
#elif defined(__GNUC__)
#define SMX_PRECISE_BEGIN                                                                                              \
    _Pragma("GCC push_options")                                                                                        \
        _Pragma("GCC optimize(\"no-fast-math,no-unsafe-math-optimizations,no-finite-math-only,no-associative-math\")") \
            _Pragma("GCC optimize(\"no-reciprocal-math,signed-zeros,fp-contract=off\")")
#define SMX_PRECISE_END _Pragma("GCC pop_options")
#elif defined(_MSC_VER)
#define SMX_PRECISE_BEGIN __pragma(float_control(precise, on, push)) __pragma(fp_contract(off))
#define SMX_PRECISE_END __pragma(float_control(pop))
#else
#define SMX_PRECISE_BEGIN
#define SMX_PRECISE_END
#endif

// SMX_TARGET_BEGIN("avx2,fma") ... SMX_TARGET_END: a precise region that is compiled for more than the user's flags say.
// At global scope, after every #include.
#if defined(__x86_64__) && defined(__GNUC__)
#define SMX_HAS_X86_LEAVES() 1
#define SMX_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SMX_TARGET_BEGIN(isa)                                                                                          \
    SMX_PRECISE_BEGIN SMX_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define SMX_TARGET_END _Pragma("clang attribute pop") SMX_PRECISE_END
#else
// Without optimisation intrinsics are macros, and their conversions are warned of where they are used.
#define SMX_TARGET_BEGIN(isa)                                                                                          \
    SMX_PRECISE_BEGIN SMX_PRAGMA(GCC target(isa)) _Pragma("GCC diagnostic push")                                       \
        _Pragma("GCC diagnostic ignored \"-Wsign-conversion\"") _Pragma("GCC diagnostic ignored \"-Wconversion\"")     \
            _Pragma("GCC diagnostic ignored \"-Woverflow\"")
#define SMX_TARGET_END _Pragma("GCC diagnostic pop") SMX_PRECISE_END
#endif
#else
#define SMX_HAS_X86_LEAVES() 0
#endif

// SMX_LAUNDER(lvalue): the compiler forgets what it knows of the value; -ffinite-math-only would have it that a result
// is neither NaN nor infinite.
#if defined(__GNUC__)
#define SMX_LAUNDER(value) __asm__("" : "+m"(value))
#else
#define SMX_LAUNDER(value) static_cast<void>(value)
#endif

#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define SMX_HAS_EXCEPTIONS() 1
#else
#define SMX_HAS_EXCEPTIONS() 0
#endif
