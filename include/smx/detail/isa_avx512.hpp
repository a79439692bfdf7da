// SPDX-License-Identifier: BSL-1.0
// isa_avx512.hpp: V of 16 floats or 8 doubles. Compiled for AVX-512 F, DQ, BW, VL whatever the user's flags; called only
// where they are present.
#pragma once

#include <immintrin.h> // before the region

#include <cstddef>
#include <cstdint>

#include <smx/detail/row_table.hpp>
#include <smx/detail/scalar.hpp>
#include <smx/detail/target.hpp>

SMX_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
namespace smx::detail::avx512 {
namespace { // every unit has its own copy, compiled with its own flags

struct all {};

// GCC 12 takes the undefined source of an unmasked intrinsic for an uninitialised variable: these are masked by ones.
constexpr __mmask8 ones = 0xff;
constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// 16 floats
struct floats {
    using scalar = float;
    using vec = __m512;
    using some = __mmask16;
    using all = avx512::all;
    static constexpr const char* name = "avx512";
    static constexpr std::size_t lanes = 16;

    static SMX_INLINE all every() { return {}; }
    static SMX_INLINE some first(std::size_t count) { return static_cast<some>((1u << count) - 1); }
    static SMX_INLINE some where(const bool* mask, all)
    {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask));
        return _mm_test_epi8_mask(bytes, bytes);
    }
    static SMX_INLINE some where(const bool* mask, some inside)
    {
        const __m128i bytes = _mm_maskz_loadu_epi8(inside, mask);
        return _mm_test_epi8_mask(bytes, bytes);
    }

    static SMX_INLINE vec broadcast(const float* x) { return _mm512_set1_ps(*x); }
    static SMX_INLINE vec load(const float* x, all, vec) { return _mm512_loadu_ps(x); }
    static SMX_INLINE vec load(const float* x, some which, vec fill) { return _mm512_mask_loadu_ps(fill, which, x); }
    static SMX_INLINE void store(float* x, all, vec v) { _mm512_storeu_ps(x, v); }
    static SMX_INLINE void store(float* x, some which, vec v) { _mm512_mask_storeu_ps(x, which, v); }

    static SMX_INLINE vec zero() { return _mm512_setzero_ps(); }
    static SMX_INLINE vec one() { return set1(1); }
    static SMX_INLINE vec set1(float x) { return _mm512_set1_ps(x); }
    static SMX_INLINE vec bits(std::uint32_t b) { return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(b))); }
    static SMX_INLINE vec minus_infinity() { return bits(0xff800000); }
    static SMX_INLINE vec not_a_number() { return bits(0x7fc00000); }
    static SMX_INLINE std::uint32_t lane_bits(vec x)
    {
        return static_cast<std::uint32_t>(
            _mm_cvtsi128_si32(_mm_castps_si128(_mm512_maskz_extractf32x4_ps(ones, x, 0))));
    }
    static SMX_INLINE float lane0(vec x) { return x[0]; }
    static SMX_INLINE bool is_finite(vec x) { return (lane_bits(x) & 0x7f800000) != 0x7f800000; }
    static SMX_INLINE bool is_nan(const float* x) { return (lane_bits(broadcast(x)) & 0x7fffffff) > 0x7f800000; }

    static SMX_INLINE vec select(all, vec a, vec) { return a; }
    static SMX_INLINE vec select(some which, vec a, vec b) { return _mm512_mask_mov_ps(b, which, a); }
    static SMX_INLINE vec keep(all, vec a) { return a; }
    static SMX_INLINE vec keep(some which, vec a) { return _mm512_maskz_mov_ps(which, a); }
    static SMX_INLINE vec where_nonzero(vec p, vec a)
    {
        return _mm512_maskz_mov_ps(_mm512_test_epi32_mask(_mm512_castps_si512(p), _mm512_set1_epi32(0x7fffffff)), a);
    }
    static SMX_INLINE some equals(all, vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
    static SMX_INLINE some equals(some which, vec a, vec b) { return _mm512_mask_cmp_ps_mask(which, a, b, _CMP_EQ_OQ); }
    static SMX_INLINE bool broadcast_equals(const float* x, vec a) { return equals(every(), broadcast(x), a) != 0; }
    static SMX_INLINE std::size_t count(some which)
    {
        return static_cast<std::size_t>(__builtin_popcount(static_cast<unsigned>(which)));
    }
    static SMX_INLINE vec max(vec a, vec b) { return _mm512_maskz_max_ps(0xffff, a, b); }
    // max of the two; x where x is NaN, with any flags
    static SMX_INLINE vec at_least(vec least, vec x)
    {
        return _mm512_maskz_max_round_ps(0xffff, least, x, _MM_FROUND_NO_EXC);
    }
    static SMX_INLINE vec reduce_max(vec a)
    {
        a = max(a, _mm512_maskz_shuffle_f32x4(0xffff, a, a, 0x4e));
        a = max(a, _mm512_maskz_shuffle_f32x4(0xffff, a, a, 0xb1));
        a = max(a, _mm512_maskz_permute_ps(0xffff, a, 0x4e));
        return max(a, _mm512_maskz_permute_ps(0xffff, a, 0xb1));
    }

    static SMX_INLINE vec abs(vec a) { return _mm512_abs_ps(a); }
    static SMX_INLINE vec root(vec a) // no compiler takes an estimate of the reciprocal instead, with any flags
    {
        __asm__("vsqrtps %0, %0" : "+v"(a));
        return a;
    }
    static SMX_INLINE some less_than(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }

    // Of four vectors, pairs are added; then all in double.
    struct sum {
        __m512d low, high;

        SMX_INLINE sum() : low(_mm512_setzero_pd()), high(_mm512_setzero_pd()) {}
        SMX_INLINE void add(vec x)
        {
            low = low + _mm512_maskz_cvtps_pd(ones, _mm512_maskz_extractf32x8_ps(ones, x, 0));
            high = high + _mm512_maskz_cvtps_pd(ones, _mm512_maskz_extractf32x8_ps(ones, x, 1));
        }
        SMX_INLINE void add(vec a, vec b, vec c, vec d)
        {
            add(a + b);
            add(c + d);
        }
        SMX_INLINE real total() const
        {
            const __m512d eight = low + high;
            const __m256d four =
                _mm512_maskz_extractf64x4_pd(ones, eight, 0) + _mm512_maskz_extractf64x4_pd(ones, eight, 1);
            const __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
            return {_mm_cvtsd_f64(two) + _mm_cvtsd_f64(_mm_unpackhi_pd(two, two))};
        }
    };

    static SMX_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
    static SMX_INLINE vec fms(vec a, vec b, vec c) { return _mm512_fmsub_ps(a, b, c); }
    static SMX_INLINE vec magic() { return set1(0x1.8p+19f); } // its last bit is 1/16
    static SMX_INLINE vec sixteenths(vec x, vec c) { return _mm512_fmadd_round_ps(x, c, magic(), nearest); }
    static SMX_INLINE vec sixteenths_in_any_mode(vec x, vec c) { return sixteenths(x, c); }
    static SMX_INLINE bool rounds_to_nearest() { return true; } // sixteenths does, in any mode

    // 2^(j/16) factor 2^exponent
    struct powers {
        __m512i bits; // less (j << 19)
        vec deltas;

        SMX_INLINE powers(double factor, int exponent)
        {
            const __m512d low = _mm512_loadu_pd(sixteenth_powers.hi) * _mm512_set1_pd(factor);
            const __m512d high = _mm512_loadu_pd(sixteenth_powers.hi + 8) * _mm512_set1_pd(factor);
            const __m256 low_ps = round(low), high_ps = round(high);
            const vec rounded = join(low_ps, high_ps);
            const vec errors = join(round(low - _mm512_maskz_cvtps_pd(ones, low_ps)),
                                    round(high - _mm512_maskz_cvtps_pd(ones, high_ps)));
            const __m512i j = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            bits = _mm512_add_epi32(
                _mm512_castps_si512(rounded),
                _mm512_sub_epi32(_mm512_set1_epi32(exponent * (1 << 23)), _mm512_maskz_slli_epi32(0xffff, j, 19)));
            deltas = errors / rounded;
        }
        SMX_INLINE vec power(vec k) const
        {
            const __m512i index = _mm512_castps_si512(k);
            return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_maskz_permutexvar_epi32(0xffff, index, bits),
                                                        _mm512_maskz_slli_epi32(0xffff, index, 19)));
        }
        SMX_INLINE vec delta(vec k) const
        {
            return _mm512_maskz_permutexvar_ps(0xffff, _mm512_castps_si512(k), deltas);
        }

    private:
        static SMX_INLINE __m256 round(__m512d x) { return _mm512_maskz_cvt_roundpd_ps(ones, x, nearest); }
        static SMX_INLINE vec join(__m256 low, __m256 high)
        {
            return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
        }
    };
};

// 8 doubles
struct doubles {
    using scalar = double;
    using vec = __m512d;
    using some = __mmask8;
    using all = avx512::all;
    static constexpr const char* name = "avx512";
    static constexpr std::size_t lanes = 8;

    static SMX_INLINE all every() { return {}; }
    static SMX_INLINE some first(std::size_t count) { return static_cast<some>((1u << count) - 1); }
    static SMX_INLINE some where(const bool* mask, all)
    {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(mask));
        return static_cast<some>(_mm_test_epi8_mask(bytes, bytes));
    }
    static SMX_INLINE some where(const bool* mask, some inside)
    {
        const __m128i bytes = _mm_maskz_loadu_epi8(inside, mask);
        return static_cast<some>(_mm_test_epi8_mask(bytes, bytes));
    }

    static SMX_INLINE vec broadcast(const double* x) { return _mm512_set1_pd(*x); }
    static SMX_INLINE vec load(const double* x, all, vec) { return _mm512_loadu_pd(x); }
    static SMX_INLINE vec load(const double* x, some which, vec fill) { return _mm512_mask_loadu_pd(fill, which, x); }
    static SMX_INLINE void store(double* x, all, vec v) { _mm512_storeu_pd(x, v); }
    static SMX_INLINE void store(double* x, some which, vec v) { _mm512_mask_storeu_pd(x, which, v); }

    static SMX_INLINE vec zero() { return _mm512_setzero_pd(); }
    static SMX_INLINE vec one() { return set1(1); }
    static SMX_INLINE vec set1(double x) { return _mm512_set1_pd(x); }
    static SMX_INLINE vec bits(std::uint64_t b)
    {
        return _mm512_castsi512_pd(_mm512_set1_epi64(static_cast<long long>(b)));
    }
    static SMX_INLINE vec minus_infinity() { return bits(0xfff0000000000000); }
    static SMX_INLINE vec not_a_number() { return bits(0x7ff8000000000000); }
    static SMX_INLINE std::uint64_t lane_bits(vec x)
    {
        return static_cast<std::uint64_t>(
            _mm_cvtsi128_si64(_mm_castpd_si128(_mm512_maskz_extractf64x2_pd(ones, x, 0))));
    }
    static SMX_INLINE double lane0(vec x) { return x[0]; }
    static SMX_INLINE bool is_finite(vec x) { return (lane_bits(x) & 0x7ff0000000000000) != 0x7ff0000000000000; }
    static SMX_INLINE bool is_nan(const double* x)
    {
        return (lane_bits(broadcast(x)) & 0x7fffffffffffffff) > 0x7ff0000000000000;
    }

    static SMX_INLINE vec select(all, vec a, vec) { return a; }
    static SMX_INLINE vec select(some which, vec a, vec b) { return _mm512_mask_mov_pd(b, which, a); }
    static SMX_INLINE vec keep(all, vec a) { return a; }
    static SMX_INLINE vec keep(some which, vec a) { return _mm512_maskz_mov_pd(which, a); }
    static SMX_INLINE vec where_nonzero(vec p, vec a)
    {
        return _mm512_maskz_mov_pd(
            _mm512_test_epi64_mask(_mm512_castpd_si512(p), _mm512_set1_epi64(0x7fffffffffffffff)), a);
    }
    static SMX_INLINE some equals(all, vec a, vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
    static SMX_INLINE some equals(some which, vec a, vec b) { return _mm512_mask_cmp_pd_mask(which, a, b, _CMP_EQ_OQ); }
    static SMX_INLINE bool broadcast_equals(const double* x, vec a) { return equals(every(), broadcast(x), a) != 0; }
    static SMX_INLINE std::size_t count(some which)
    {
        return static_cast<std::size_t>(__builtin_popcount(static_cast<unsigned>(which)));
    }
    static SMX_INLINE vec max(vec a, vec b) { return _mm512_maskz_max_pd(ones, a, b); }
    static SMX_INLINE vec at_least(vec least, vec x)
    {
        return _mm512_maskz_max_round_pd(ones, least, x, _MM_FROUND_NO_EXC);
    }
    static SMX_INLINE vec reduce_max(vec a)
    {
        a = max(a, _mm512_maskz_shuffle_f64x2(ones, a, a, 0x4e));
        a = max(a, _mm512_maskz_shuffle_f64x2(ones, a, a, 0xb1));
        return max(a, _mm512_maskz_permute_pd(ones, a, 0x55));
    }

    static SMX_INLINE vec abs(vec a) { return _mm512_abs_pd(a); }
    static SMX_INLINE vec root(vec a) // no compiler takes an estimate of the reciprocal instead, with any flags
    {
        __asm__("vsqrtpd %0, %0" : "+v"(a));
        return a;
    }
    static SMX_INLINE some less_than(vec a, vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }

    // Of four vectors, pairs are added; then all without error.
    struct sum {
        __m512d hi, lo;

        SMX_INLINE sum() : hi(_mm512_setzero_pd()), lo(_mm512_setzero_pd()) {}
        SMX_INLINE void add(vec x)
        {
            const vec s = hi + x;
            const vec x_part = s - hi;
            lo = lo + ((hi - (s - x_part)) + (x - x_part));
            hi = s;
        }
        SMX_INLINE void add(vec a, vec b, vec c, vec d)
        {
            add(a + b);
            add(c + d);
        }
        SMX_INLINE pair total() const
        {
            double h[8], l[8];
            _mm512_storeu_pd(h, hi);
            _mm512_storeu_pd(l, lo);
            return total_of_eight(h, l);
        }
    };

    static SMX_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_pd(a, b, c); }
    static SMX_INLINE vec fms(vec a, vec b, vec c) { return _mm512_fmsub_pd(a, b, c); }
    static SMX_INLINE vec magic() { return set1(0x1.8p+48); }
    static SMX_INLINE vec sixteenths(vec x, vec c) { return _mm512_fmadd_round_pd(x, c, magic(), nearest); }
    static SMX_INLINE vec sixteenths_in_any_mode(vec x, vec c) { return sixteenths(x, c); }
    static SMX_INLINE bool rounds_to_nearest() { return true; } // sixteenths does, in any mode

    struct powers {
        __m512i bits_low, bits_high; // less (j << 48)
        vec deltas_low, deltas_high;

        SMX_INLINE powers(const pair& factor, long long exponent)
        {
            const __m512i j = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
            const __m512i low =
                _mm512_sub_epi64(_mm512_set1_epi64(exponent * (1ll << 52)), _mm512_maskz_slli_epi64(ones, j, 48));
            const __m512i high = _mm512_sub_epi64(low, _mm512_set1_epi64(8ll << 48));
            eight(sixteenth_powers.hi, sixteenth_powers.lo, factor, low, bits_low, deltas_low);
            eight(sixteenth_powers.hi + 8, sixteenth_powers.lo + 8, factor, high, bits_high, deltas_high);
        }
        SMX_INLINE vec power(vec k) const
        {
            const __m512i index = _mm512_castpd_si512(k);
            return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_permutex2var_epi64(bits_low, index, bits_high),
                                                        _mm512_maskz_slli_epi64(ones, index, 48)));
        }
        SMX_INLINE vec delta(vec k) const
        {
            return _mm512_permutex2var_pd(deltas_low, _mm512_castpd_si512(k), deltas_high);
        }

    private:
        // hi + lo = (root_hi + root_lo) factor, delta = lo / hi
        static SMX_INLINE void eight(const double* root_hi, const double* root_lo, const pair& factor, __m512i offset,
                                     __m512i& bits, vec& deltas)
        {
            const vec a = _mm512_loadu_pd(root_hi), b = _mm512_loadu_pd(root_lo);
            const vec factor_hi = set1(factor.hi.value), factor_lo = set1(factor.lo.value);
            const vec product = a * factor_hi;
            const vec rest = fms(a, factor_hi, product) + fma(a, factor_lo, b * factor_hi);
            const vec hi = product + rest;
            bits = _mm512_add_epi64(_mm512_castpd_si512(hi), offset);
            deltas = (rest - (hi - product)) / hi;
        }
    };
};

#include <smx/detail/exp_terms.inl>

using f32 = rows<floats, float>;
using f64 = rows<doubles, double>;

#include <smx/detail/row_kernels.inl>

#include <smx/detail/operator_kernels.inl>

#include <smx/detail/row_functions.inl>

} // namespace
} // namespace smx::detail::avx512
SMX_TARGET_END
