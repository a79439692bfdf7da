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

// how many lanes were given, in all
struct tally {
    __m512i counts;

    SMX_INLINE tally() : counts(_mm512_setzero_si512()) {}
    SMX_INLINE void add(__mmask16 which)
    {
        counts = _mm512_mask_sub_epi32(counts, which, counts, _mm512_set1_epi32(-1));
    }
    SMX_INLINE std::size_t total() const
    {
        std::uint32_t lane[16];
        _mm512_storeu_si512(lane, counts);
        std::size_t sum = 0;
        for (const std::uint32_t count : lane)
            sum += count;
        return sum;
    }
};

// 16 floats
struct floats {
    using scalar = float;
    using vec = __m512;
    using some = __mmask16;
    using all = avx512::all;
    using wide_lanes = struct doubles;
    static constexpr const char* name = "avx512";
    static constexpr std::size_t lanes = 16, registers = 1;

    static SMX_INLINE all every() { return {}; }
    static SMX_INLINE some first(std::size_t count) { return static_cast<some>((1u << count) - 1); }
    static SMX_INLINE some from(std::size_t lane) { return static_cast<some>(0xffffull << lane); } // lane < 48
    static SMX_INLINE some lanes_of(std::uint16_t b) { return b; }
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
    static SMX_INLINE void store_first(float* x, vec v) { *x = lane0(v); } // what reads it need not wait for a mask
    static SMX_INLINE void stream(float* x, vec v) { _mm512_stream_ps(x, v); }

    static SMX_INLINE vec zero() { return _mm512_setzero_ps(); }
    static SMX_INLINE vec one() { return set1(1); }
    static SMX_INLINE vec set1(float x) { return _mm512_set1_ps(x); }
    static SMX_INLINE vec bits(std::uint32_t b) { return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(b))); }
    static SMX_INLINE vec minus_infinity() { return bits(0xff800000); }
    static SMX_INLINE vec not_a_number() { return bits(0x7fc00000); }
    static SMX_INLINE std::uint32_t lane_bits(vec x) // not by an intrinsic, which may take x for finite
    {
        return __builtin_bit_cast(std::uint32_t, static_cast<float>(in_register(x)[0]));
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
    static SMX_INLINE some absent(const float* x, all) // -inf, by its bits: a vector argument counts as finite
    {
        return _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(x), _mm512_set1_epi32(static_cast<int>(0xff800000)));
    }
    static SMX_INLINE some absent(const float* x, some which)
    {
        return _mm512_mask_cmpeq_epi32_mask(which, _mm512_maskz_loadu_epi32(which, x),
                                            _mm512_set1_epi32(static_cast<int>(0xff800000)));
    }
    static SMX_INLINE some both(some p, some q) { return static_cast<some>(p & q); }
    static SMX_INLINE some either(some p, some q) { return static_cast<some>(p | q); }
    static SMX_INLINE bool broadcast_equals(const float* x, vec a) { return equals(every(), broadcast(x), a) != 0; }
    static SMX_INLINE std::size_t count(some which)
    {
        return static_cast<std::size_t>(__builtin_popcount(static_cast<unsigned>(which)));
    }
    static SMX_INLINE std::size_t lowest(some which) // the first lane of some
    {
        return static_cast<std::size_t>(__builtin_ctz(static_cast<unsigned>(which)));
    }

    static SMX_INLINE vec only(some one, vec x) // its lane everywhere; 0 if there is none
    {
        return _mm512_maskz_broadcastss_ps(0xffff,
                                           _mm512_maskz_extractf32x4_ps(ones, _mm512_maskz_compress_ps(one, x), 0));
    }

    using tally = avx512::tally;
    static SMX_INLINE vec max(vec a, vec b) { return _mm512_maskz_max_ps(0xffff, a, b); }
    static SMX_INLINE vec min(vec a, vec b) { return _mm512_maskz_min_ps(0xffff, a, b); }
    // the larger of a, which is no less than 0, and |x|; a NaN may be lost
    static SMX_INLINE vec magnitude(vec a, vec x) { return _mm512_maskz_range_ps(0xffff, a, x, 0xb); }
    // the lower of two, if that is negative; by their bits, of which the lowest number has the largest, or a negative NaN
    static SMX_INLINE vec lower(vec a, vec b)
    {
        return _mm512_castsi512_ps(_mm512_maskz_max_epu32(0xffff, _mm512_castps_si512(a), _mm512_castps_si512(b)));
    }
    static SMX_INLINE bool none_below(vec a, vec limit) // limit < 0
    {
        return _mm512_cmpgt_epu32_mask(_mm512_castps_si512(a), _mm512_castps_si512(limit)) == 0;
    }
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
    // a0 b0 a1 b1 ... of the lower half of the lanes, and of the upper; in both halves of the lanes apart
    static SMX_INLINE vec zip_low_in_halves(vec a, vec b)
    {
        return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27),
                                      b);
    }
    static SMX_INLINE vec zip_high_in_halves(vec a, vec b)
    {
        return _mm512_permutex2var_ps(a, _mm512_setr_epi32(4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31),
                                      b);
    }
    static SMX_INLINE vec root(vec a) // no compiler takes an estimate of the reciprocal instead, with any flags
    {
        __asm__("vsqrtps %0, %0" : "+v"(a));
        return a;
    }
    static SMX_INLINE some less_than(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }

    // 8 of the 16 lanes, in double
    using half = __m512d;
    static SMX_INLINE __m512d low(vec x)
    {
        return _mm512_maskz_cvtps_pd(ones, _mm512_maskz_extractf32x8_ps(ones, x, 0));
    }
    static SMX_INLINE __m512d high(vec x)
    {
        return _mm512_maskz_cvtps_pd(ones, _mm512_maskz_extractf32x8_ps(ones, x, 1));
    }
    static SMX_INLINE half set_half(double x) { return _mm512_set1_pd(x); }
    static SMX_INLINE half fms(half a, half b, half c) { return _mm512_fmsub_pd(a, b, c); }
    static SMX_INLINE __m256 narrowed(half x) { return _mm512_maskz_cvtpd_ps(ones, x); }
    static SMX_INLINE vec narrowed(half a, half b) { return join(narrowed(a), narrowed(b)); }
    static SMX_INLINE __m256 lower_half(vec x) { return _mm512_maskz_extractf32x8_ps(ones, x, 0); }
    static SMX_INLINE __m256 upper_half(vec x) { return _mm512_maskz_extractf32x8_ps(ones, x, 1); }
    static SMX_INLINE vec join(__m256 a, __m256 b) { return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1); }

    // the sum of 16 floats in double, always in this tree
    static SMX_INLINE real lane_sum(half eight)
    {
        const __m256d four =
            _mm512_maskz_extractf64x4_pd(ones, eight, 0) + _mm512_maskz_extractf64x4_pd(ones, eight, 1);
        const __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
        return {_mm_cvtsd_f64(two) + _mm_cvtsd_f64(_mm_unpackhi_pd(two, two))};
    }
    static SMX_INLINE real lane_sum(vec x) { return lane_sum(low(x) + high(x)); }
    static SMX_INLINE real lane_sum(vec x, vec y) { return lane_sum((low(x) + high(x)) + (low(y) + high(y))); }

    // Of two vectors the sum is added; all in double.
    struct sum {
        __m512d lower, upper;

        SMX_INLINE sum() : lower(_mm512_setzero_pd()), upper(_mm512_setzero_pd()) {}
        SMX_INLINE void add(vec x)
        {
            lower = lower + low(x);
            upper = upper + high(x);
        }
        SMX_INLINE void add(vec a, vec b) { add(a + b); }
        SMX_INLINE void add_product(vec a, vec b)
        {
            lower = lower + low(a) * low(b);
            upper = upper + high(a) * high(b);
        }
        SMX_INLINE real total() const { return floats::lane_sum(lower + upper); }
        SMX_INLINE real rough_total() const { return total(); }
    };

    // loaded once for several uses
    static SMX_INLINE vec in_register(vec x)
    {
        __asm__("" : "+v"(x));
        return x;
    }
    static SMX_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
    static SMX_INLINE vec fms(vec a, vec b, vec c) { return _mm512_fmsub_ps(a, b, c); }
    static SMX_INLINE vec fnma(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }
    static SMX_INLINE vec product_minus(vec a, double b, vec c) // in double, rounded once
    {
        const half factor = set_half(b);
        return narrowed(fms(low(a), factor, low(c)), fms(high(a), factor, high(c)));
    }
    static SMX_INLINE vec magic() { return set1(wide_arithmetic<float>::magic); } // its last bit is 1/16
    static SMX_INLINE vec sixteenths(vec x, vec c, vec m) { return _mm512_fmadd_round_ps(x, c, m, nearest); }
    static SMX_INLINE vec sixteenths_in_any_mode(vec x, vec c, vec m) // as AVX2 can: ties are common far from 0
    {
        const vec k = _mm512_maskz_roundscale_round_ps(0xffff, x * c * set1(16), 0, _MM_FROUND_NO_EXC);
        return fma(k, set1(0.0625f), m);
    }
    static SMX_INLINE vec rounded_sum(vec x, vec m) { return _mm512_maskz_add_round_ps(0xffff, x, m, nearest); }
    static SMX_INLINE double rounded_sum(double x, double m)
    {
        return _mm_cvtsd_f64(_mm_add_round_sd(_mm_set_sd(x), _mm_set_sd(m), nearest));
    }
    static SMX_INLINE bool rounds_to_nearest() { return true; } // sixteenths does, in any mode

    static SMX_INLINE vec whole_power(vec k, int more) // 2^(k + more), k a whole number, which is in its last bits
    {
        return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_set1_epi32((127 + more) << 23),
                                                    _mm512_maskz_slli_epi32(0xffff, _mm512_castps_si512(k), 23)));
    }
    struct powers {
        struct entry {
            vec power, delta;
        };
        __m512i bits; // times 2^bias, less j sixteenths in the field of the exponent
        vec deltas;

        SMX_INLINE powers() : powers([](vec&, vec&) {}) {}
        template <class Turn>
        explicit SMX_INLINE powers(Turn turn)
        {
            vec power = _mm512_loadu_ps(sixteenth_powers_of_floats.power);
            deltas = _mm512_loadu_ps(sixteenth_powers_of_floats.delta);
            turn(power, deltas);
            bits = _mm512_add_epi32(_mm512_castps_si512(power), _mm512_loadu_si512(sixteenth_powers_of_floats.field));
        }
        SMX_INLINE entry at(vec k) const
        {
            const __m512i index = _mm512_castps_si512(k);
            const vec delta = _mm512_maskz_permutexvar_ps(0xffff, index, deltas);
            return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_maskz_permutexvar_epi32(0xffff, index, bits),
                                                         _mm512_maskz_slli_epi32(0xffff, index, 19))),
                    delta};
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
    static constexpr std::size_t lanes = 8, registers = 1;

    static SMX_INLINE all every() { return {}; }
    static SMX_INLINE some first(std::size_t count) { return static_cast<some>((1u << count) - 1); }
    static SMX_INLINE some from(std::size_t lane) { return static_cast<some>(0xffull << lane); } // lane < 56
    static SMX_INLINE some lanes_of(std::uint16_t b) { return static_cast<some>(b); }
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
    static SMX_INLINE vec load_floats(const float* x, all) { return _mm512_maskz_cvtps_pd(ones, _mm256_loadu_ps(x)); }
    static SMX_INLINE vec load_floats(const float* x, some which)
    {
        return _mm512_maskz_cvtps_pd(ones, _mm256_maskz_loadu_ps(which, x));
    }
    static SMX_INLINE void store(double* x, all, vec v) { _mm512_storeu_pd(x, v); }
    static SMX_INLINE void store(double* x, some which, vec v) { _mm512_mask_storeu_pd(x, which, v); }
    static SMX_INLINE void store_first(double* x, vec v) { *x = lane0(v); }
    static SMX_INLINE __m256d lower_half(vec x) { return _mm512_maskz_extractf64x4_pd(ones, x, 0); }
    static SMX_INLINE __m256d upper_half(vec x) { return _mm512_maskz_extractf64x4_pd(ones, x, 1); }
    static SMX_INLINE vec join(__m256d a, __m256d b)
    {
        return _mm512_maskz_insertf64x4(ones, _mm512_castpd256_pd512(a), b, 1);
    }
    static SMX_INLINE void stream(double* x, vec v) { _mm512_stream_pd(x, v); }

    static SMX_INLINE vec zero() { return _mm512_setzero_pd(); }
    static SMX_INLINE vec one() { return set1(1); }
    static SMX_INLINE vec set1(double x) { return _mm512_set1_pd(x); }
    static SMX_INLINE vec bits(std::uint64_t b)
    {
        return _mm512_castsi512_pd(_mm512_set1_epi64(static_cast<long long>(b)));
    }
    static SMX_INLINE vec minus_infinity() { return bits(0xfff0000000000000); }
    static SMX_INLINE vec not_a_number() { return bits(0x7ff8000000000000); }
    static SMX_INLINE std::uint64_t lane_bits(vec x) // not by an intrinsic, which may take x for finite
    {
        return __builtin_bit_cast(std::uint64_t, static_cast<double>(in_register(x)[0]));
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
    static SMX_INLINE some absent(const double* x, all) // -inf, by its bits: a vector argument counts as finite
    {
        return _mm512_cmpeq_epi64_mask(_mm512_loadu_si512(x),
                                       _mm512_set1_epi64(static_cast<long long>(0xfff0000000000000)));
    }
    static SMX_INLINE some absent(const double* x, some which)
    {
        return _mm512_mask_cmpeq_epi64_mask(which, _mm512_maskz_loadu_epi64(which, x),
                                            _mm512_set1_epi64(static_cast<long long>(0xfff0000000000000)));
    }
    static SMX_INLINE some absent(const float* x, all)
    {
        return _mm256_cmpeq_epi32_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)),
                                       _mm256_set1_epi32(static_cast<int>(0xff800000)));
    }
    static SMX_INLINE some absent(const float* x, some which)
    {
        return _mm256_mask_cmpeq_epi32_mask(which, _mm256_maskz_loadu_epi32(which, x),
                                            _mm256_set1_epi32(static_cast<int>(0xff800000)));
    }
    static SMX_INLINE some both(some p, some q) { return static_cast<some>(p & q); }
    static SMX_INLINE some either(some p, some q) { return static_cast<some>(p | q); }
    static SMX_INLINE bool broadcast_equals(const double* x, vec a) { return equals(every(), broadcast(x), a) != 0; }
    static SMX_INLINE std::size_t count(some which)
    {
        return static_cast<std::size_t>(__builtin_popcount(static_cast<unsigned>(which)));
    }
    static SMX_INLINE std::size_t lowest(some which) // the first lane of some
    {
        return static_cast<std::size_t>(__builtin_ctz(static_cast<unsigned>(which)));
    }

    static SMX_INLINE vec only(some which, vec x) { return first_of(which, x); } // 0 if there is none
    static SMX_INLINE vec first_of(some which, vec x)                            // the first lane of some
    {
        return _mm512_maskz_broadcastsd_pd(ones,
                                           _mm512_maskz_extractf64x2_pd(ones, _mm512_maskz_compress_pd(which, x), 0));
    }

    using tally = avx512::tally;
    static SMX_INLINE vec max(vec a, vec b) { return _mm512_maskz_max_pd(ones, a, b); }
    static SMX_INLINE vec min(vec a, vec b) { return _mm512_maskz_min_pd(ones, a, b); }
    static SMX_INLINE vec magnitude(vec a, vec x) { return _mm512_maskz_range_pd(ones, a, x, 0xb); }
    static SMX_INLINE vec lower(vec a, vec b)
    {
        return _mm512_castsi512_pd(_mm512_maskz_max_epu64(ones, _mm512_castpd_si512(a), _mm512_castpd_si512(b)));
    }
    static SMX_INLINE bool none_below(vec a, vec limit)
    {
        return _mm512_cmpgt_epu64_mask(_mm512_castpd_si512(a), _mm512_castpd_si512(limit)) == 0;
    }
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
    static SMX_INLINE vec zip_low_in_halves(vec a, vec b)
    {
        return _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 8, 1, 9, 4, 12, 5, 13), b);
    }
    static SMX_INLINE vec zip_high_in_halves(vec a, vec b)
    {
        return _mm512_permutex2var_pd(a, _mm512_setr_epi64(2, 10, 3, 11, 6, 14, 7, 15), b);
    }
    static SMX_INLINE vec root(vec a) // no compiler takes an estimate of the reciprocal instead, with any flags
    {
        __asm__("vsqrtpd %0, %0" : "+v"(a));
        return a;
    }
    static SMX_INLINE some less_than(vec a, vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }

    // of [a0 ... a7] and [b0 ... b7]: [a0 ... a3 b0 ... b3] and the rest; and so on down to single lanes
    static SMX_INLINE vec low_halves(vec a, vec b) { return _mm512_maskz_shuffle_f64x2(ones, a, b, 0x44); }
    static SMX_INLINE vec high_halves(vec a, vec b) { return _mm512_maskz_shuffle_f64x2(ones, a, b, 0xee); }
    static SMX_INLINE vec low_quarters(vec a, vec b) { return _mm512_maskz_shuffle_f64x2(ones, a, b, 0x88); }
    static SMX_INLINE vec high_quarters(vec a, vec b) { return _mm512_maskz_shuffle_f64x2(ones, a, b, 0xdd); }
    static SMX_INLINE vec even_lanes(vec a, vec b) { return _mm512_maskz_unpacklo_pd(ones, a, b); }
    static SMX_INLINE vec odd_lanes(vec a, vec b) { return _mm512_maskz_unpackhi_pd(ones, a, b); }

    // the sum of eight, always in this tree
    static SMX_INLINE double lane_sum(vec x)
    {
        const __m256d four = lower_half(x) + upper_half(x);
        const __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
        return two[0] + two[1];
    }
    // the sums of eight a and of eight b: of neighbours first
    struct two_sums {
        __m128d both;

        SMX_INLINE vec first() const { return _mm512_maskz_broadcastsd_pd(ones, both); }
        SMX_INLINE vec second() const { return _mm512_maskz_broadcastsd_pd(ones, _mm_unpackhi_pd(both, both)); }
    };
    static SMX_INLINE two_sums lane_sums(vec a, vec b)
    {
        const vec eight = even_lanes(a, b) + odd_lanes(a, b);
        const __m256d four = lower_half(eight) + upper_half(eight);
        return {_mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1)};
    }
    // the sum of eight hi + lo, in the same tree
    static SMX_INLINE pair lane_sum(vec hi, vec lo)
    {
        const __m256d a = _mm512_maskz_extractf64x4_pd(ones, hi, 0), b = _mm512_maskz_extractf64x4_pd(ones, hi, 1);
        const __m256d four = a + b, b_part = four - a;
        const __m256d four_lo = ((a - (four - b_part)) + (b - b_part)) +
                                (_mm512_maskz_extractf64x4_pd(ones, lo, 0) + _mm512_maskz_extractf64x4_pd(ones, lo, 1));
        return total_of_four(four, four_lo);
    }
    static SMX_INLINE pair total_of_four(__m256d hi, __m256d lo)
    {
        const __m128d a = _mm256_castpd256_pd128(hi), b = _mm256_extractf128_pd(hi, 1);
        const __m128d two = a + b, b_part = two - a;
        const __m128d two_lo =
            ((a - (two - b_part)) + (b - b_part)) + (_mm256_castpd256_pd128(lo) + _mm256_extractf128_pd(lo, 1));
        const pair s = two_sum({_mm_cvtsd_f64(two)}, {_mm_cvtsd_f64(_mm_unpackhi_pd(two, two))});
        const real rest{_mm_cvtsd_f64(two_lo) + _mm_cvtsd_f64(_mm_unpackhi_pd(two_lo, two_lo))};
        return fast_two_sum(s.hi, s.lo + rest);
    }

    // Of two vectors the sum is added; all without error.
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
        SMX_INLINE void add(vec a, vec b) { add(a + b); }
        SMX_INLINE void add_product(vec a, vec b) { add(a * b); }
        SMX_INLINE pair total() const { return doubles::lane_sum(hi, lo); }
        SMX_INLINE real rough_total() const { return {doubles::lane_sum(hi + lo)}; }
    };

    static SMX_INLINE vec in_register(vec x)
    {
        __asm__("" : "+v"(x));
        return x;
    }
    static SMX_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_pd(a, b, c); }
    static SMX_INLINE vec fms(vec a, vec b, vec c) { return _mm512_fmsub_pd(a, b, c); }
    static SMX_INLINE vec fnma(vec a, vec b, vec c) { return _mm512_fnmadd_pd(a, b, c); }
    static SMX_INLINE vec magic() { return set1(wide_arithmetic<double>::magic); }
    static SMX_INLINE vec sixteenths(vec x, vec c, vec m) { return _mm512_fmadd_round_pd(x, c, m, nearest); }
    static SMX_INLINE vec sixteenths_in_any_mode(vec x, vec c, vec m)
    {
        const vec k = _mm512_maskz_roundscale_round_pd(ones, x * c * set1(16), 0, _MM_FROUND_NO_EXC);
        return fma(k, set1(0.0625), m);
    }
    static SMX_INLINE vec rounded_sum(vec x, vec m) { return _mm512_maskz_add_round_pd(ones, x, m, nearest); }
    static SMX_INLINE bool rounds_to_nearest() { return true; } // sixteenths does, in any mode

    static SMX_INLINE vec whole_power(vec k, int more)
    {
        return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_set1_epi64((1023ll + more) << 52),
                                                    _mm512_maskz_slli_epi64(ones, _mm512_castpd_si512(k), 52)));
    }
    struct powers {
        struct entry {
            vec power, delta;
        };
        __m512i bits_low, bits_high; // times 2^bias, less j sixteenths in the field of the exponent
        vec deltas_low, deltas_high;

        SMX_INLINE powers() : powers([](vec&, vec&) {}) {}
        template <class Turn>
        explicit SMX_INLINE powers(Turn turn)
        {
            eight(0, turn, bits_low, deltas_low);
            eight(8, turn, bits_high, deltas_high);
        }
        SMX_INLINE entry at(vec k) const
        {
            const __m512i index = _mm512_castpd_si512(k);
            const vec delta = _mm512_permutex2var_pd(deltas_low, index, deltas_high);
            return {_mm512_castsi512_pd(_mm512_add_epi64(_mm512_permutex2var_epi64(bits_low, index, bits_high),
                                                         _mm512_maskz_slli_epi64(ones, index, 48))),
                    delta};
        }

    private:
        template <class Turn>
        static SMX_INLINE void eight(int j, Turn turn, __m512i& bits, vec& deltas)
        {
            vec power = _mm512_loadu_pd(sixteenth_powers_of_doubles.power + j);
            deltas = _mm512_loadu_pd(sixteenth_powers_of_doubles.delta + j);
            turn(power, deltas);
            bits =
                _mm512_add_epi64(_mm512_castpd_si512(power), _mm512_loadu_si512(sixteenth_powers_of_doubles.field + j));
        }
    };
};

#include <smx/detail/exp_terms.inl>

using f32 = rows<floats, float>;
using f64 = rows<doubles, double>;

#include <smx/detail/row_kernels.inl>

#include <smx/detail/jacobian_kernels.inl>

#include <smx/detail/batch_kernels.inl>
#include <smx/detail/loss_kernels.inl>
#include <smx/detail/operator_kernels.inl>

#include <smx/detail/row_functions.inl>

} // namespace
} // namespace smx::detail::avx512
SMX_TARGET_END
