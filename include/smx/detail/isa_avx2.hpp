// SPDX-License-Identifier: BSL-1.0
// isa_avx2.hpp: V of 16 floats or 8 doubles as two vectors of 256 bits: the lanes and trees of AVX-512, and so its bits.
// Compiled for AVX2 and FMA whatever the user's flags; called only where they are present.
#pragma once

#include <immintrin.h> // before the region

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <smx/detail/row_table.hpp>
#include <smx/detail/scalar.hpp>
#include <smx/detail/target.hpp>

SMX_TARGET_BEGIN("avx2,fma")
namespace smx::detail::avx2 {
namespace { // every unit has its own copy, compiled with its own flags

struct all {};

// the lower and the upper half
struct float16 {
    __m256 a, b;

    friend SMX_INLINE float16 operator+(const float16& x, const float16& y) { return {x.a + y.a, x.b + y.b}; }
    friend SMX_INLINE float16 operator-(const float16& x, const float16& y) { return {x.a - y.a, x.b - y.b}; }
    friend SMX_INLINE float16 operator*(const float16& x, const float16& y) { return {x.a * y.a, x.b * y.b}; }
    friend SMX_INLINE float16 operator/(const float16& x, const float16& y) { return {x.a / y.a, x.b / y.b}; }
};

struct double8 {
    __m256d a, b;

    friend SMX_INLINE double8 operator+(const double8& x, const double8& y) { return {x.a + y.a, x.b + y.b}; }
    friend SMX_INLINE double8 operator-(const double8& x, const double8& y) { return {x.a - y.a, x.b - y.b}; }
    friend SMX_INLINE double8 operator*(const double8& x, const double8& y) { return {x.a * y.a, x.b * y.b}; }
    friend SMX_INLINE double8 operator/(const double8& x, const double8& y) { return {x.a / y.a, x.b / y.b}; }
};

struct lanes_of_two { // a lane takes part where its integer is negative
    __m256i a, b;
};

// how many lanes were given, in all; Lane is an integer as wide as a lane
template <class Lane>
struct tally {
    __m256i a, b;

    SMX_INLINE tally() : a(_mm256_setzero_si256()), b(a) {}
    SMX_INLINE void add(const lanes_of_two& which)
    {
        a = less(a, which.a);
        b = less(b, which.b);
    }
    SMX_INLINE std::size_t total() const
    {
        constexpr std::size_t lanes = sizeof(__m256i) / sizeof(Lane);
        Lane lane[2 * lanes];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(lane), a);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(lane + lanes), b);
        std::size_t sum = 0;
        for (const Lane count : lane)
            sum += count;
        return sum;
    }

private:
    static SMX_INLINE __m256i less(__m256i counts, __m256i which)
    {
        return sizeof(Lane) == 4 ? _mm256_sub_epi32(counts, which) : _mm256_sub_epi64(counts, which);
    }
};

// max of the two; x where x is NaN, with any flags: no compiler sees that it is a maximum. In both orders of operands, of which
// -masm=intel has the other.
SMX_INLINE __m256 max_or_second(__m256 least, __m256 x)
{
    __asm__("vmaxps {%2, %1, %0|%0, %1, %2}" : "=x"(x) : "x"(least), "x"(x));
    return x;
}
SMX_INLINE __m256d max_or_second(__m256d least, __m256d x)
{
    __asm__("vmaxpd {%2, %1, %0|%0, %1, %2}" : "=x"(x) : "x"(least), "x"(x));
    return x;
}

// rounded once, with any flags: no compiler takes an estimate of the reciprocal instead
SMX_INLINE __m256 square_root(__m256 x)
{
    __asm__("vsqrtps %0, %0" : "+x"(x));
    return x;
}
SMX_INLINE __m256d square_root(__m256d x)
{
    __asm__("vsqrtpd %0, %0" : "+x"(x));
    return x;
}

// The first count <= 16 of 16 entries of a mask; the bytes behind them are not read.
SMX_INLINE __m128i mask_bytes(const bool* mask, std::size_t count)
{
    if (count == 16)
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask));
    unsigned char bytes[16] = {};
    std::memcpy(bytes, mask, count);
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}

// sixteenth_powers_of_doubles as powers has them: power, delta, power ...
struct pairs_of_powers {
    double entries[32];

    constexpr pairs_of_powers() : entries()
    {
        for (int j = 0; j < 16; ++j) {
            const auto power = __builtin_bit_cast(std::int64_t, sixteenth_powers_of_doubles.power[j]);
            entries[2 * j] = __builtin_bit_cast(double, power + sixteenth_powers_of_doubles.field[j]);
            entries[2 * j + 1] = sixteenth_powers_of_doubles.delta[j];
        }
    }
};
alignas(64) constexpr pairs_of_powers all_powers;

// 16 floats
struct floats {
    using scalar = float;
    using vec = float16;
    using some = lanes_of_two;
    using all = avx2::all;
    using wide_lanes = struct doubles;
    static constexpr const char* name = "avx2";
    static constexpr std::size_t lanes = 16, registers = 2;

    static SMX_INLINE all every() { return {}; }
    static SMX_INLINE some first(std::size_t count)
    {
        const __m256i n = _mm256_set1_epi32(static_cast<int>(count));
        return {_mm256_cmpgt_epi32(n, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
                _mm256_cmpgt_epi32(n, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
    }
    static SMX_INLINE some from(std::size_t lane)
    {
        const __m256i n = _mm256_set1_epi32(static_cast<int>(lane));
        return {_mm256_cmpgt_epi32(_mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8), n),
                _mm256_cmpgt_epi32(_mm256_setr_epi32(9, 10, 11, 12, 13, 14, 15, 16), n)};
    }
    static SMX_INLINE some lanes_of(std::uint16_t b) // bit i for lane i
    {
        const __m256i c = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), d = _mm256_slli_epi32(c, 8);
        const __m256i all_bits = _mm256_set1_epi32(b);
        return {_mm256_cmpeq_epi32(_mm256_and_si256(all_bits, c), c),
                _mm256_cmpeq_epi32(_mm256_and_si256(all_bits, d), d)};
    }
    static SMX_INLINE some where(__m128i bytes)
    {
        const __m256i zero = _mm256_setzero_si256();
        return {_mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(bytes), zero),
                _mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), zero)};
    }
    static SMX_INLINE some where(const bool* mask, all) { return where(mask_bytes(mask, 16)); }
    static SMX_INLINE some where(const bool* mask, const some& inside)
    {
        return where(mask_bytes(mask, count(inside)));
    }

    static SMX_INLINE vec set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static SMX_INLINE vec broadcast(const float* x) { return set1(*x); }
    static SMX_INLINE vec load(const float* x, all, const vec&) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
    static SMX_INLINE vec load(const float* x, const some& which, const vec& fill)
    {
        return select(which, {_mm256_maskload_ps(x, which.a), _mm256_maskload_ps(x + 8, which.b)}, fill);
    }
    static SMX_INLINE void store(float* x, all, const vec& v)
    {
        _mm256_storeu_ps(x, v.a);
        _mm256_storeu_ps(x + 8, v.b);
    }
    static SMX_INLINE void store(float* x, const some& which, const vec& v)
    {
        _mm256_maskstore_ps(x, which.a, v.a);
        _mm256_maskstore_ps(x + 8, which.b, v.b);
    }
    static SMX_INLINE void store_first(float* x, const vec& v) { *x = lane0(v); } // need not wait for a mask
    static SMX_INLINE void stream(float* x, const vec& v)
    {
        _mm256_stream_ps(x, v.a);
        _mm256_stream_ps(x + 8, v.b);
    }

    static SMX_INLINE __m256 lower_half(const vec& x) { return x.a; }
    static SMX_INLINE __m256 upper_half(const vec& x) { return x.b; }
    static SMX_INLINE vec join(__m256 a, __m256 b) { return {a, b}; }

    static SMX_INLINE vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static SMX_INLINE vec one() { return set1(1); }
    static SMX_INLINE vec bits(std::uint32_t b)
    {
        const __m256 half = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(b)));
        return {half, half};
    }
    static SMX_INLINE vec minus_infinity() { return bits(0xff800000); }
    static SMX_INLINE vec not_a_number() { return bits(0x7fc00000); }
    static SMX_INLINE std::uint32_t lane_bits(const vec& x)
    {
        return static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_castps_si128(_mm256_castps256_ps128(x.a))));
    }
    static SMX_INLINE float lane0(const vec& x) { return x.a[0]; }
    static SMX_INLINE bool is_finite(const vec& x) { return (lane_bits(x) & 0x7f800000) != 0x7f800000; }
    static SMX_INLINE bool is_nan(const float* x) { return (lane_bits(broadcast(x)) & 0x7fffffff) > 0x7f800000; }

    static SMX_INLINE some both(const some& p, const some& q)
    {
        return {_mm256_and_si256(p.a, q.a), _mm256_and_si256(p.b, q.b)};
    }
    static SMX_INLINE some either(const some& p, const some& q)
    {
        return {_mm256_or_si256(p.a, q.a), _mm256_or_si256(p.b, q.b)};
    }
    static SMX_INLINE vec select(all, const vec& a, const vec&) { return a; }
    static SMX_INLINE vec select(const some& which, const vec& a, const vec& b)
    {
        return {_mm256_blendv_ps(b.a, a.a, _mm256_castsi256_ps(which.a)),
                _mm256_blendv_ps(b.b, a.b, _mm256_castsi256_ps(which.b))};
    }
    static SMX_INLINE vec keep(all, const vec& a) { return a; }
    static SMX_INLINE vec keep(const some& which, const vec& a)
    {
        return {_mm256_and_ps(_mm256_castsi256_ps(which.a), a.a), _mm256_and_ps(_mm256_castsi256_ps(which.b), a.b)};
    }
    static SMX_INLINE vec where_nonzero(const vec& p, const vec& a) // on integers: no NaN is lost with any flags
    {
        return {nonzero(p.a, a.a), nonzero(p.b, a.b)};
    }
    static SMX_INLINE some equals(all, const vec& a, const vec& b)
    {
        return {compare<_CMP_EQ_OQ>(a.a, b.a), compare<_CMP_EQ_OQ>(a.b, b.b)};
    }
    static SMX_INLINE some equals(const some& which, const vec& a, const vec& b)
    {
        return both(which, equals(every(), a, b));
    }
    static SMX_INLINE some less_than(const vec& a, const vec& b)
    {
        return {compare<_CMP_LT_OQ>(a.a, b.a), compare<_CMP_LT_OQ>(a.b, b.b)};
    }
    static SMX_INLINE some absent(const float* x, all) // -inf, by its bits
    {
        const auto* const words = reinterpret_cast<const __m256i*>(x);
        const __m256i infinity = _mm256_set1_epi32(static_cast<int>(0xff800000));
        return {_mm256_cmpeq_epi32(_mm256_loadu_si256(words), infinity),
                _mm256_cmpeq_epi32(_mm256_loadu_si256(words + 1), infinity)};
    }
    static SMX_INLINE some absent(const float* x, const some& which)
    {
        float row[16] = {};
        std::memcpy(row, x, count(which) * sizeof(float)); // the first ones
        return both(which, absent(row, every()));
    }
    static SMX_INLINE bool broadcast_equals(const float* x, const vec& a)
    {
        return count(equals(every(), broadcast(x), a)) != 0;
    }
    static SMX_INLINE std::uint32_t bits_of(const some& which)
    {
        const int a = _mm256_movemask_ps(_mm256_castsi256_ps(which.a));
        const int b = _mm256_movemask_ps(_mm256_castsi256_ps(which.b));
        return static_cast<std::uint32_t>(a | (b << 8));
    }
    static SMX_INLINE std::size_t count(const some& which)
    {
        return static_cast<std::size_t>(__builtin_popcount(bits_of(which)));
    }
    static SMX_INLINE std::size_t lowest(const some& which) // the first lane of some
    {
        return static_cast<std::size_t>(__builtin_ctz(bits_of(which)));
    }

    // its lane everywhere; 0 if there is none; finite if there are several that are
    static SMX_INLINE vec only(const some& one, const vec& x)
    {
        const vec kept = keep(one, x);
        __m256 a = larger_bits(kept.a, kept.b);
        a = larger_bits(a, _mm256_permute2f128_ps(a, a, 1));
        a = larger_bits(a, _mm256_permute_ps(a, 0x4e));
        a = larger_bits(a, _mm256_permute_ps(a, 0xb1));
        return {a, a};
    }
    static SMX_INLINE __m256 larger_bits(__m256 a, __m256 b)
    {
        return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
    }

    using tally = avx2::tally<std::uint32_t>;
    static SMX_INLINE vec max(const vec& a, const vec& b) { return {_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }
    static SMX_INLINE vec min(const vec& a, const vec& b) { return {_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)}; }
    // the larger of a, which is no less than 0, and |x|; a NaN may be lost
    static SMX_INLINE vec magnitude(const vec& a, const vec& x) { return max(a, abs(x)); }
    // the lower of two, if that is negative; by their bits, of which the lowest number has the largest, or a negative NaN
    static SMX_INLINE vec lower(const vec& a, const vec& b) { return {lower(a.a, b.a), lower(a.b, b.b)}; }
    static SMX_INLINE __m256 lower(__m256 a, __m256 b) { return larger_bits(a, b); }
    static SMX_INLINE bool none_below(const vec& a, const vec& limit) // limit < 0
    {
        const __m256 lowest = lower(limit.a, lower(a.a, a.b));
        return _mm256_movemask_epi8(_mm256_cmpeq_epi32(_mm256_castps_si256(lowest), _mm256_castps_si256(limit.a))) ==
               -1;
    }
    static SMX_INLINE vec at_least(const vec& least, const vec& x)
    {
        return {max_or_second(least.a, x.a), max_or_second(least.b, x.b)};
    }
    static SMX_INLINE vec reduce_max(const vec& x)
    {
        __m256 a = _mm256_max_ps(x.a, x.b);
        a = _mm256_max_ps(a, _mm256_permute2f128_ps(a, a, 1));
        a = _mm256_max_ps(a, _mm256_permute_ps(a, 0x4e));
        a = _mm256_max_ps(a, _mm256_permute_ps(a, 0xb1));
        return {a, a};
    }
    static SMX_INLINE vec abs(const vec& a)
    {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_andnot_ps(sign, a.a), _mm256_andnot_ps(sign, a.b)};
    }
    // a0 b0 a1 b1 ... of the lower half of the lanes, and of the upper; in both halves of the lanes apart
    static SMX_INLINE vec zip_low_in_halves(const vec& x, const vec& y) { return {zip(x.a, y.a).a, zip(x.b, y.b).a}; }
    static SMX_INLINE vec zip_high_in_halves(const vec& x, const vec& y) { return {zip(x.a, y.a).b, zip(x.b, y.b).b}; }
    static SMX_INLINE vec zip(__m256 a, __m256 b)
    {
        const __m256 even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b);
        return {_mm256_permute2f128_ps(even, odd, 0x20), _mm256_permute2f128_ps(even, odd, 0x31)};
    }

    // 8 of the 16 lanes, in double
    using half = double8;
    static SMX_INLINE half widen(__m256 x)
    {
        return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
    }
    static SMX_INLINE half low(const vec& x) { return widen(x.a); }
    static SMX_INLINE half high(const vec& x) { return widen(x.b); }
    static SMX_INLINE half set_half(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
    static SMX_INLINE half fms(const half& a, const half& b, const half& c)
    {
        return {_mm256_fmsub_pd(a.a, b.a, c.a), _mm256_fmsub_pd(a.b, b.b, c.b)};
    }
    static SMX_INLINE __m256 narrowed(const half& x)
    {
        return _mm256_set_m128(_mm256_cvtpd_ps(x.b), _mm256_cvtpd_ps(x.a));
    }
    static SMX_INLINE vec narrowed(const half& a, const half& b) { return {narrowed(a), narrowed(b)}; }

    // the sum of 16 floats in double, always in this tree
    static SMX_INLINE real lane_sum(const half& eight)
    {
        const __m256d four = eight.a + eight.b;
        const __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
        return {two[0] + two[1]};
    }
    static SMX_INLINE real lane_sum(const vec& x) { return lane_sum(low(x) + high(x)); }
    static SMX_INLINE real lane_sum(const vec& x, const vec& y)
    {
        return lane_sum((low(x) + high(x)) + (low(y) + high(y)));
    }
    static SMX_INLINE vec root(const vec& a) { return {square_root(a.a), square_root(a.b)}; }

    // Of two vectors the sum is added; all in double.
    struct sum {
        double8 lower, upper;

        SMX_INLINE sum()
            : lower{_mm256_setzero_pd(), _mm256_setzero_pd()}, upper{_mm256_setzero_pd(), _mm256_setzero_pd()}
        {
        }
        SMX_INLINE void add(const vec& x)
        {
            lower = lower + low(x);
            upper = upper + high(x);
        }
        SMX_INLINE void add(const vec& a, const vec& b) { add(a + b); }
        SMX_INLINE void add_product(const vec& x, const vec& y)
        {
            lower = lower + low(x) * low(y);
            upper = upper + high(x) * high(y);
        }
        SMX_INLINE real total() const { return floats::lane_sum(lower + upper); }
        SMX_INLINE real rough_total() const { return total(); }
    };

    static SMX_INLINE vec in_register(vec x) // loaded once for several uses
    {
        __asm__("" : "+x"(x.a), "+x"(x.b));
        return x;
    }
    static SMX_INLINE vec fma(const vec& a, const vec& b, const vec& c)
    {
        return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)};
    }
    static SMX_INLINE vec fms(const vec& a, const vec& b, const vec& c)
    {
        return {_mm256_fmsub_ps(a.a, b.a, c.a), _mm256_fmsub_ps(a.b, b.b, c.b)};
    }
    static SMX_INLINE vec fnma(const vec& a, const vec& b, const vec& c)
    {
        return {_mm256_fnmadd_ps(a.a, b.a, c.a), _mm256_fnmadd_ps(a.b, b.b, c.b)};
    }
    static SMX_INLINE vec product_minus(const vec& a, double b, const vec& c) // in double, rounded once
    {
        const half factor = set_half(b);
        return narrowed(fms(low(a), factor, low(c)), fms(high(a), factor, high(c)));
    }
    static SMX_INLINE vec magic() { return set1(wide_arithmetic<float>::magic); } // its last bit is 1/16
    static SMX_INLINE vec sixteenths(const vec& x, const vec& c, const vec& m) { return fma(x, c, m); }
    static SMX_INLINE vec sixteenths_in_any_mode(const vec& x, const vec& c, const vec& m)
    {
        const vec y = x * c * set1(16);
        const vec k = {_mm256_round_ps(y.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                       _mm256_round_ps(y.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
        return fma(k, set1(0.0625f), m);
    }
    static SMX_INLINE vec rounded_sum(const vec& x, const vec& m) { return x + m; }
    static SMX_INLINE double rounded_sum(double x, double m) { return (real{x} + real{m}).value; }
    static SMX_INLINE bool rounds_to_nearest() { return current_mode_is_nearest(); }

    // 2^(k + more), k a whole number, which is in its last bits
    static SMX_INLINE vec whole_power(const vec& k, int more)
    {
        return {whole_power(k.a, more), whole_power(k.b, more)};
    }
    static SMX_INLINE __m256 whole_power(__m256 k, int more)
    {
        return _mm256_castsi256_ps(
            _mm256_add_epi32(_mm256_set1_epi32((127 + more) << 23), _mm256_slli_epi32(_mm256_castps_si256(k), 23)));
    }
    struct powers {
        struct entry {
            vec power, delta;
        };
        lanes_of_two bits; // times 2^bias, less j sixteenths in the field of the exponent
        vec deltas;

        SMX_INLINE powers() : powers([](vec&, vec&) {}) {}
        template <class Turn>
        explicit SMX_INLINE powers(Turn turn)
        {
            vec power = load(sixteenth_powers_of_floats.power, every(), zero());
            deltas = load(sixteenth_powers_of_floats.delta, every(), zero());
            turn(power, deltas);
            const auto* fields = reinterpret_cast<const __m256i*>(sixteenth_powers_of_floats.field);
            bits = {_mm256_add_epi32(_mm256_castps_si256(power.a), _mm256_loadu_si256(fields)),
                    _mm256_add_epi32(_mm256_castps_si256(power.b), _mm256_loadu_si256(fields + 1))};
        }
        SMX_INLINE entry at(const vec& k) const
        {
            return {{power(k.a), power(k.b)}, {look_up(deltas, k.a), look_up(deltas, k.b)}};
        }

    private:
        static SMX_INLINE __m256 look_up(const vec& table, __m256 k)
        {
            const __m256i index = _mm256_castps_si256(k);
            return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.a, index), _mm256_permutevar8x32_ps(table.b, index),
                                    _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
        }
        SMX_INLINE __m256 power(__m256 k) const
        {
            const __m256 base = look_up({_mm256_castsi256_ps(bits.a), _mm256_castsi256_ps(bits.b)}, k);
            return _mm256_castsi256_ps(
                _mm256_add_epi32(_mm256_castps_si256(base), _mm256_slli_epi32(_mm256_castps_si256(k), 19)));
        }
    };

private:
    template <int predicate>
    static SMX_INLINE __m256i compare(__m256 a, __m256 b)
    {
        return _mm256_castps_si256(_mm256_cmp_ps(a, b, predicate));
    }
    static SMX_INLINE __m256 nonzero(__m256 p, __m256 a)
    {
        const __m256i magnitude = _mm256_slli_epi32(_mm256_castps_si256(p), 1);
        return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256())), a);
    }
};

// 8 doubles
struct doubles {
    using scalar = double;
    using vec = double8;
    using some = lanes_of_two;
    using all = avx2::all;
    static constexpr const char* name = "avx2";
    static constexpr std::size_t lanes = 8, registers = 2;

    static SMX_INLINE all every() { return {}; }
    static SMX_INLINE some first(std::size_t count)
    {
        const __m256i n = _mm256_set1_epi64x(static_cast<long long>(count));
        return {_mm256_cmpgt_epi64(n, _mm256_setr_epi64x(0, 1, 2, 3)),
                _mm256_cmpgt_epi64(n, _mm256_setr_epi64x(4, 5, 6, 7))};
    }
    static SMX_INLINE some from(std::size_t lane)
    {
        const __m256i n = _mm256_set1_epi64x(static_cast<long long>(lane));
        return {_mm256_cmpgt_epi64(_mm256_setr_epi64x(1, 2, 3, 4), n),
                _mm256_cmpgt_epi64(_mm256_setr_epi64x(5, 6, 7, 8), n)};
    }
    static SMX_INLINE some lanes_of(std::uint16_t b) // bit i for lane i
    {
        const __m256i c = _mm256_setr_epi64x(1, 2, 4, 8), d = _mm256_slli_epi64(c, 4);
        const __m256i all_bits = _mm256_set1_epi64x(b);
        return {_mm256_cmpeq_epi64(_mm256_and_si256(all_bits, c), c),
                _mm256_cmpeq_epi64(_mm256_and_si256(all_bits, d), d)};
    }
    static SMX_INLINE some where(__m128i bytes)
    {
        const __m256i zero = _mm256_setzero_si256();
        return {_mm256_cmpgt_epi64(_mm256_cvtepu8_epi64(bytes), zero),
                _mm256_cmpgt_epi64(_mm256_cvtepu8_epi64(_mm_srli_si128(bytes, 4)), zero)};
    }
    static SMX_INLINE some where(const bool* mask, all)
    {
        return where(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(mask)));
    }
    static SMX_INLINE some where(const bool* mask, const some& inside)
    {
        return where(mask_bytes(mask, count(inside)));
    }

    static SMX_INLINE vec set1(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
    static SMX_INLINE vec broadcast(const double* x) { return set1(*x); }
    static SMX_INLINE vec load(const double* x, all, const vec&)
    {
        return {_mm256_loadu_pd(x), _mm256_loadu_pd(x + 4)};
    }
    static SMX_INLINE vec load(const double* x, const some& which, const vec& fill)
    {
        return select(which, {_mm256_maskload_pd(x, which.a), _mm256_maskload_pd(x + 4, which.b)}, fill);
    }
    static SMX_INLINE vec load_floats(const float* x, all)
    {
        return {_mm256_cvtps_pd(_mm_loadu_ps(x)), _mm256_cvtps_pd(_mm_loadu_ps(x + 4))};
    }
    static SMX_INLINE vec load_floats(const float* x, const some& which)
    {
        float floats[8] = {};
        std::memcpy(floats, x, count(which) * sizeof(float)); // the first ones
        return load_floats(floats, every());
    }
    static SMX_INLINE void store(double* x, all, const vec& v)
    {
        _mm256_storeu_pd(x, v.a);
        _mm256_storeu_pd(x + 4, v.b);
    }
    static SMX_INLINE void store(double* x, const some& which, const vec& v)
    {
        _mm256_maskstore_pd(x, which.a, v.a);
        _mm256_maskstore_pd(x + 4, which.b, v.b);
    }
    static SMX_INLINE void store_first(double* x, const vec& v) { *x = lane0(v); }
    static SMX_INLINE void stream(double* x, const vec& v)
    {
        _mm256_stream_pd(x, v.a);
        _mm256_stream_pd(x + 4, v.b);
    }

    static SMX_INLINE __m256d lower_half(const vec& x) { return x.a; }
    static SMX_INLINE __m256d upper_half(const vec& x) { return x.b; }
    static SMX_INLINE vec join(__m256d a, __m256d b) { return {a, b}; }

    static SMX_INLINE vec zero() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
    static SMX_INLINE vec one() { return set1(1); }
    static SMX_INLINE vec bits(std::uint64_t b)
    {
        const __m256d half = _mm256_castsi256_pd(_mm256_set1_epi64x(static_cast<long long>(b)));
        return {half, half};
    }
    static SMX_INLINE vec minus_infinity() { return bits(0xfff0000000000000); }
    static SMX_INLINE vec not_a_number() { return bits(0x7ff8000000000000); }
    static SMX_INLINE std::uint64_t lane_bits(const vec& x)
    {
        return static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_castpd_si128(_mm256_castpd256_pd128(x.a))));
    }
    static SMX_INLINE double lane0(const vec& x) { return x.a[0]; }
    static SMX_INLINE bool is_finite(const vec& x) { return (lane_bits(x) & 0x7ff0000000000000) != 0x7ff0000000000000; }
    static SMX_INLINE bool is_nan(const double* x)
    {
        return (lane_bits(broadcast(x)) & 0x7fffffffffffffff) > 0x7ff0000000000000;
    }

    static SMX_INLINE some both(const some& p, const some& q)
    {
        return {_mm256_and_si256(p.a, q.a), _mm256_and_si256(p.b, q.b)};
    }
    static SMX_INLINE some either(const some& p, const some& q)
    {
        return {_mm256_or_si256(p.a, q.a), _mm256_or_si256(p.b, q.b)};
    }
    static SMX_INLINE vec select(all, const vec& a, const vec&) { return a; }
    static SMX_INLINE vec select(const some& which, const vec& a, const vec& b)
    {
        return {_mm256_blendv_pd(b.a, a.a, _mm256_castsi256_pd(which.a)),
                _mm256_blendv_pd(b.b, a.b, _mm256_castsi256_pd(which.b))};
    }
    static SMX_INLINE vec keep(all, const vec& a) { return a; }
    static SMX_INLINE vec keep(const some& which, const vec& a)
    {
        return {_mm256_and_pd(_mm256_castsi256_pd(which.a), a.a), _mm256_and_pd(_mm256_castsi256_pd(which.b), a.b)};
    }
    static SMX_INLINE vec where_nonzero(const vec& p, const vec& a) { return {nonzero(p.a, a.a), nonzero(p.b, a.b)}; }
    static SMX_INLINE some equals(all, const vec& a, const vec& b)
    {
        return {compare<_CMP_EQ_OQ>(a.a, b.a), compare<_CMP_EQ_OQ>(a.b, b.b)};
    }
    static SMX_INLINE some equals(const some& which, const vec& a, const vec& b)
    {
        return both(which, equals(every(), a, b));
    }
    static SMX_INLINE some less_than(const vec& a, const vec& b)
    {
        return {compare<_CMP_LT_OQ>(a.a, b.a), compare<_CMP_LT_OQ>(a.b, b.b)};
    }
    static SMX_INLINE some absent(const double* x, all) // -inf, by its bits
    {
        const auto* const words = reinterpret_cast<const __m256i*>(x);
        const __m256i infinity = _mm256_set1_epi64x(static_cast<long long>(0xfff0000000000000));
        return {_mm256_cmpeq_epi64(_mm256_loadu_si256(words), infinity),
                _mm256_cmpeq_epi64(_mm256_loadu_si256(words + 1), infinity)};
    }
    static SMX_INLINE some absent(const double* x, const some& which)
    {
        double row[8] = {};
        std::memcpy(row, x, count(which) * sizeof(double)); // the first ones
        return both(which, absent(row, every()));
    }
    static SMX_INLINE some absent(const float* x, all)
    {
        const __m256i word = _mm256_cmpeq_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)),
                                                _mm256_set1_epi32(static_cast<int>(0xff800000)));
        return {_mm256_cvtepi32_epi64(_mm256_castsi256_si128(word)),
                _mm256_cvtepi32_epi64(_mm256_extracti128_si256(word, 1))};
    }
    static SMX_INLINE some absent(const float* x, const some& which)
    {
        float row[8] = {};
        std::memcpy(row, x, count(which) * sizeof(float));
        return both(which, absent(row, every()));
    }
    static SMX_INLINE bool broadcast_equals(const double* x, const vec& a)
    {
        return count(equals(every(), broadcast(x), a)) != 0;
    }
    static SMX_INLINE std::uint32_t bits_of(const some& which)
    {
        const int a = _mm256_movemask_pd(_mm256_castsi256_pd(which.a));
        const int b = _mm256_movemask_pd(_mm256_castsi256_pd(which.b));
        return static_cast<std::uint32_t>(a | (b << 4));
    }
    static SMX_INLINE std::size_t count(const some& which)
    {
        return static_cast<std::size_t>(__builtin_popcount(bits_of(which)));
    }
    static SMX_INLINE std::size_t lowest(const some& which) // the first lane of some
    {
        return static_cast<std::size_t>(__builtin_ctz(bits_of(which)));
    }

    static SMX_INLINE vec only(const some& one, const vec& x) // the exponent of several comes from one of them
    {
        const vec kept = keep(one, x);
        __m256d a = larger_bits(kept.a, kept.b);
        a = larger_bits(a, _mm256_permute2f128_pd(a, a, 1));
        a = larger_bits(a, _mm256_permute_pd(a, 0x5));
        return {a, a};
    }
    static SMX_INLINE __m256d larger_bits(__m256d a, __m256d b)
    {
        return _mm256_castsi256_pd(_mm256_max_epu32(_mm256_castpd_si256(a), _mm256_castpd_si256(b)));
    }

    static SMX_INLINE vec first_of(const some& which, const vec& x) // the first lane of some
    {
        double row[8];
        store(row, every(), x);
        return broadcast(row + lowest(which));
    }

    using tally = avx2::tally<std::uint64_t>;
    static SMX_INLINE vec max(const vec& a, const vec& b) { return {_mm256_max_pd(a.a, b.a), _mm256_max_pd(a.b, b.b)}; }
    static SMX_INLINE vec min(const vec& a, const vec& b) { return {_mm256_min_pd(a.a, b.a), _mm256_min_pd(a.b, b.b)}; }
    static SMX_INLINE vec magnitude(const vec& a, const vec& x) { return max(a, abs(x)); }
    static SMX_INLINE vec lower(const vec& a, const vec& b) { return min(a, b); }
    static SMX_INLINE bool none_below(const vec& a, const vec& limit) { return count(less_than(a, limit)) == 0; }
    static SMX_INLINE vec at_least(const vec& least, const vec& x)
    {
        return {max_or_second(least.a, x.a), max_or_second(least.b, x.b)};
    }
    static SMX_INLINE vec reduce_max(const vec& x)
    {
        __m256d a = _mm256_max_pd(x.a, x.b);
        a = _mm256_max_pd(a, _mm256_permute2f128_pd(a, a, 1));
        a = _mm256_max_pd(a, _mm256_permute_pd(a, 5));
        return {a, a};
    }
    static SMX_INLINE vec abs(const vec& a)
    {
        const __m256d sign = _mm256_set1_pd(-0.0);
        return {_mm256_andnot_pd(sign, a.a), _mm256_andnot_pd(sign, a.b)};
    }
    static SMX_INLINE vec zip_low_in_halves(const vec& x, const vec& y) { return {zip(x.a, y.a).a, zip(x.b, y.b).a}; }
    static SMX_INLINE vec zip_high_in_halves(const vec& x, const vec& y) { return {zip(x.a, y.a).b, zip(x.b, y.b).b}; }
    static SMX_INLINE vec zip(__m256d a, __m256d b)
    {
        const __m256d even = _mm256_unpacklo_pd(a, b), odd = _mm256_unpackhi_pd(a, b);
        return {_mm256_permute2f128_pd(even, odd, 0x20), _mm256_permute2f128_pd(even, odd, 0x31)};
    }

    // of [a0 ... a7] and [b0 ... b7]: [a0 ... a3 b0 ... b3] and the rest; and so on down to single lanes
    static SMX_INLINE vec low_halves(const vec& x, const vec& y) { return {x.a, y.a}; }
    static SMX_INLINE vec high_halves(const vec& x, const vec& y) { return {x.b, y.b}; }
    static SMX_INLINE vec low_quarters(const vec& x, const vec& y)
    {
        return {_mm256_permute2f128_pd(x.a, x.b, 0x20), _mm256_permute2f128_pd(y.a, y.b, 0x20)};
    }
    static SMX_INLINE vec high_quarters(const vec& x, const vec& y)
    {
        return {_mm256_permute2f128_pd(x.a, x.b, 0x31), _mm256_permute2f128_pd(y.a, y.b, 0x31)};
    }
    static SMX_INLINE vec even_lanes(const vec& x, const vec& y)
    {
        return {_mm256_unpacklo_pd(x.a, y.a), _mm256_unpacklo_pd(x.b, y.b)};
    }
    static SMX_INLINE vec odd_lanes(const vec& x, const vec& y)
    {
        return {_mm256_unpackhi_pd(x.a, y.a), _mm256_unpackhi_pd(x.b, y.b)};
    }

    // the sum of eight, always in this tree
    static SMX_INLINE double lane_sum(const vec& x)
    {
        const __m256d four = x.a + x.b;
        const __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
        return two[0] + two[1];
    }
    // the sums of eight a and of eight b: of neighbours first
    struct two_sums {
        __m128d both;

        SMX_INLINE vec first() const
        {
            const __m256d x = _mm256_broadcastsd_pd(both);
            return {x, x};
        }
        SMX_INLINE vec second() const
        {
            const __m256d x = _mm256_broadcastsd_pd(_mm_unpackhi_pd(both, both));
            return {x, x};
        }
    };
    static SMX_INLINE two_sums lane_sums(const vec& a, const vec& b)
    {
        const vec eight = even_lanes(a, b) + odd_lanes(a, b);
        const __m256d four = eight.a + eight.b;
        return {_mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1)};
    }
    // the sum of eight hi + lo, in the same tree
    static SMX_INLINE pair lane_sum(const vec& hi, const vec& lo)
    {
        const __m256d four = hi.a + hi.b, b_part = four - hi.a;
        const __m256d four_lo = ((hi.a - (four - b_part)) + (hi.b - b_part)) + (lo.a + lo.b);
        const __m128d a = _mm256_castpd256_pd128(four), b = _mm256_extractf128_pd(four, 1);
        const __m128d two = a + b, part = two - a;
        const __m128d two_lo =
            ((a - (two - part)) + (b - part)) + (_mm256_castpd256_pd128(four_lo) + _mm256_extractf128_pd(four_lo, 1));
        const pair s = two_sum({two[0]}, {two[1]});
        return fast_two_sum(s.hi, s.lo + real{two_lo[0] + two_lo[1]});
    }
    static SMX_INLINE vec root(const vec& a) { return {square_root(a.a), square_root(a.b)}; }

    // Of two vectors the sum is added; all without error.
    struct sum {
        vec hi, lo;

        SMX_INLINE sum() : hi{_mm256_setzero_pd(), _mm256_setzero_pd()}, lo{_mm256_setzero_pd(), _mm256_setzero_pd()} {}
        SMX_INLINE void add(const vec& x)
        {
            const vec s = hi + x;
            const vec x_part = s - hi;
            lo = lo + ((hi - (s - x_part)) + (x - x_part));
            hi = s;
        }
        SMX_INLINE void add(const vec& a, const vec& b) { add(a + b); }
        SMX_INLINE void add_product(const vec& a, const vec& b) { add(a * b); }
        SMX_INLINE pair total() const { return doubles::lane_sum(hi, lo); }
        SMX_INLINE real rough_total() const { return {doubles::lane_sum(hi + lo)}; }
    };

    static SMX_INLINE vec in_register(vec x) // loaded once for several uses
    {
        __asm__("" : "+x"(x.a), "+x"(x.b));
        return x;
    }
    static SMX_INLINE vec fma(const vec& a, const vec& b, const vec& c)
    {
        return {_mm256_fmadd_pd(a.a, b.a, c.a), _mm256_fmadd_pd(a.b, b.b, c.b)};
    }
    static SMX_INLINE vec fms(const vec& a, const vec& b, const vec& c)
    {
        return {_mm256_fmsub_pd(a.a, b.a, c.a), _mm256_fmsub_pd(a.b, b.b, c.b)};
    }
    static SMX_INLINE vec fnma(const vec& a, const vec& b, const vec& c)
    {
        return {_mm256_fnmadd_pd(a.a, b.a, c.a), _mm256_fnmadd_pd(a.b, b.b, c.b)};
    }
    static SMX_INLINE vec magic() { return set1(wide_arithmetic<double>::magic); }
    static SMX_INLINE vec sixteenths(const vec& x, const vec& c, const vec& m) { return fma(x, c, m); }
    static SMX_INLINE vec sixteenths_in_any_mode(const vec& x, const vec& c, const vec& m)
    {
        const vec y = x * c * set1(16);
        const vec k = {_mm256_round_pd(y.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                       _mm256_round_pd(y.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
        return fma(k, set1(0.0625), m);
    }
    static SMX_INLINE vec rounded_sum(const vec& x, const vec& m) { return x + m; }
    static SMX_INLINE bool rounds_to_nearest() { return current_mode_is_nearest(); }

    static SMX_INLINE vec whole_power(const vec& k, int more)
    {
        return {whole_power(k.a, more), whole_power(k.b, more)};
    }
    static SMX_INLINE __m256d whole_power(__m256d k, int more)
    {
        return _mm256_castsi256_pd(
            _mm256_add_epi64(_mm256_set1_epi64x((1023ll + more) << 52), _mm256_slli_epi64(_mm256_castpd_si256(k), 52)));
    }
    // Read from memory: four loads of 16 bytes take less than the shuffles and blends of two tables in registers.
    struct powers {
        struct entry {
            vec power, delta;
        };
        SMX_INLINE powers() : has_own(false) {}
        template <class Turn>
        explicit SMX_INLINE powers(Turn turn) : has_own(true)
        {
            eight(0, turn);
            eight(8, turn);
        }

        SMX_INLINE entry at(const vec& k) const
        {
            // j in the last bits of each; pairs of 2 j leave for the addresses at once
            const __m256 words = _mm256_shuffle_ps(_mm256_castpd_ps(k.a), _mm256_castpd_ps(k.b), 0x88);
            const __m256i doubled = _mm256_slli_epi32(_mm256_castps_si256(words), 1);
            const __m256i at = _mm256_and_si256(doubled, _mm256_set1_epi32(30));
            const __m128i low = _mm256_castsi256_si128(at), high = _mm256_extracti128_si256(at, 1);
            const std::uint64_t a01 = first_of(low), b01 = second_of(low);
            const std::uint64_t a23 = first_of(high), b23 = second_of(high);
            return entry_of(four_at(k.a, a01, a23), four_at(k.b, b01, b23));
        }

    private:
        struct half_entry {
            __m256d power, delta;
        };
        bool has_own; // power times 2^bias, less j sixteenths in the field of the exponent; delta; power ...
        alignas(32) double own[32];

        template <class Turn>
        SMX_INLINE void eight(int j, Turn turn)
        {
            vec power = load(sixteenth_powers_of_doubles.power + j, every(), zero());
            vec delta = load(sixteenth_powers_of_doubles.delta + j, every(), zero());
            turn(power, delta);
            const auto* fields = reinterpret_cast<const __m256i*>(sixteenth_powers_of_doubles.field + j);
            four(own + 2 * j, power.a, _mm256_loadu_si256(fields), delta.a);
            four(own + 2 * j + 8, power.b, _mm256_loadu_si256(fields + 1), delta.b);
        }
        static SMX_INLINE void four(double* entries, __m256d power, __m256i field, __m256d delta)
        {
            const __m256d base = _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(power), field));
            const __m256d even = _mm256_unpacklo_pd(base, delta), odd = _mm256_unpackhi_pd(base, delta);
            _mm_store_pd(entries, _mm256_castpd256_pd128(even));
            _mm_store_pd(entries + 2, _mm256_castpd256_pd128(odd));
            _mm_store_pd(entries + 4, _mm256_extractf128_pd(even, 1));
            _mm_store_pd(entries + 6, _mm256_extractf128_pd(odd, 1));
        }
        static SMX_INLINE entry entry_of(const half_entry& a, const half_entry& b)
        {
            return {{a.power, b.power}, {a.delta, b.delta}};
        }
        static SMX_INLINE std::uint64_t first_of(__m128i x) { return static_cast<std::uint64_t>(_mm_cvtsi128_si64(x)); }
        static SMX_INLINE std::uint64_t second_of(__m128i x)
        {
            return static_cast<std::uint64_t>(_mm_extract_epi64(x, 1));
        }
        SMX_INLINE half_entry four_at(__m256d k, std::uint64_t j01, std::uint64_t j23) const
        {
            const double* const table = has_own ? own : all_powers.entries;
            const __m256d even = _mm256_set_m128d(_mm_load_pd(table + static_cast<std::uint32_t>(j23)),
                                                  _mm_load_pd(table + static_cast<std::uint32_t>(j01)));
            const __m256d odd = _mm256_set_m128d(_mm_load_pd(table + (j23 >> 32)), _mm_load_pd(table + (j01 >> 32)));
            const __m256i base = _mm256_castpd_si256(_mm256_unpacklo_pd(even, odd));
            return {_mm256_castsi256_pd(_mm256_add_epi64(base, _mm256_slli_epi64(_mm256_castpd_si256(k), 48))),
                    _mm256_unpackhi_pd(even, odd)};
        }
    };

private:
    template <int predicate>
    static SMX_INLINE __m256i compare(__m256d a, __m256d b)
    {
        return _mm256_castpd_si256(_mm256_cmp_pd(a, b, predicate));
    }
    static SMX_INLINE __m256d nonzero(__m256d p, __m256d a)
    {
        const __m256i magnitude = _mm256_slli_epi64(_mm256_castpd_si256(p), 1);
        return _mm256_andnot_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(magnitude, _mm256_setzero_si256())), a);
    }
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
} // namespace smx::detail::avx2
SMX_TARGET_END
