// SPDX-License-Identifier: BSL-1.0
// scalar.hpp: the scalar arithmetic that all leaves share: a number, an unevaluated sum of two, log1p, and the
// temperature as a factor.
#pragma once

#include <cstddef>     // size_t
#include <cstdint>     // int64_t, uint64_t
#include <limits>      // numeric_limits
#include <type_traits> // is_constant_evaluated, is_same_v

#include <smx/detail/target.hpp>

SMX_PRECISE_BEGIN
namespace smx::detail {

// One value as a class: under -ffinite-math-only a bare float argument counts as finite, a member does not; and the
// conversion to T makes an expression template a value.
template <class T>
struct number {
    T value;

    friend SMX_INLINE constexpr number operator+(const number& a, const number& b) { return {T(a.value + b.value)}; }
    friend SMX_INLINE constexpr number operator-(const number& a, const number& b) { return {T(a.value - b.value)}; }
    friend SMX_INLINE constexpr number operator*(const number& a, const number& b) { return {T(a.value * b.value)}; }
    friend SMX_INLINE constexpr number operator/(const number& a, const number& b) { return {T(a.value / b.value)}; }
    friend SMX_INLINE constexpr bool operator<(const number& a, const number& b)
    {
        return static_cast<bool>(a.value < b.value);
    }
    friend SMX_INLINE constexpr bool operator==(const number& a, const number& b)
    {
        if constexpr (std::is_floating_point_v<T>)
            return a.value == b.value;
        else
            return !(a < b) && !(b < a);
    }
};

using real = number<double>;

// Infinity and NaN are made from integer bits: constants of such a value are folded away under -ffinite-math-only.
template <class T>
SMX_INLINE constexpr number<T> minus_infinity()
{
    if constexpr (std::is_same_v<T, double>)
        return __builtin_bit_cast(real, std::uint64_t{0xfff0000000000000});
    else if constexpr (std::is_floating_point_v<T>) {
        constexpr T infinity = std::numeric_limits<T>::infinity();
        return {-infinity};
    } else if constexpr (std::numeric_limits<T>::has_infinity)
        return {T(-std::numeric_limits<T>::infinity())};
    else
        return {T(log(T(0)))};
}

template <class T>
SMX_INLINE constexpr number<T> not_a_number()
{
    if constexpr (std::is_same_v<T, double>)
        return __builtin_bit_cast(real, std::uint64_t{0x7ff8000000000000});
    else if constexpr (std::is_floating_point_v<T>) {
        constexpr T nan = std::numeric_limits<T>::quiet_NaN();
        return {nan};
    } else if constexpr (std::numeric_limits<T>::has_quiet_NaN)
        return {T(std::numeric_limits<T>::quiet_NaN())};
    else
        return {T(T(0) / T(0))};
}

template <class T>
SMX_INLINE constexpr bool is_finite(const number<T>& x)
{
    if constexpr (std::is_same_v<T, double>)
        return (__builtin_bit_cast(std::uint64_t, x) & 0x7ff0000000000000) != 0x7ff0000000000000;
    else if constexpr (std::is_floating_point_v<T>) {
        constexpr T largest = std::numeric_limits<T>::max(); // a constant: no call that units share
        return -largest <= x.value && x.value <= largest;
    } else
        return x - x < number<T>{T(1)}; // inf - inf is NaN, and not less than anything
}

template <class T>
SMX_INLINE constexpr bool is_nan(const number<T>& x)
{
    return !(x < number<T>{T(1)}) && !(number<T>{T(0)} < x); // of a number, one holds
}

// x with its 27 last bits cleared: two such numbers have an exact product
SMX_INLINE constexpr real upper_half(real x)
{
    return __builtin_bit_cast(real, __builtin_bit_cast(std::uint64_t, x) & 0xfffffffff8000000u);
}

// Two checks of a row, by the bits: they wait for no vector, and take no place among those.
// 1 - 2^-11 <= x < 1 + 2^-11
SMX_INLINE constexpr bool is_one_but_for_rounding(real x)
{
    constexpr auto lowest = __builtin_bit_cast(std::uint64_t, 1 - 0x1p-11);
    constexpr auto end = __builtin_bit_cast(std::uint64_t, 1 + 0x1p-11);
    return __builtin_bit_cast(std::uint64_t, x) - lowest < end - lowest;
}
// |x| < limit
SMX_INLINE constexpr bool is_below(real x, double limit)
{
    return __builtin_bit_cast(std::uint64_t, x) << 1 < __builtin_bit_cast(std::uint64_t, limit) << 1;
}

// 2^exponent, -1022 <= exponent <= 1023
SMX_INLINE constexpr real power_of_two(int exponent)
{
    return __builtin_bit_cast(real, static_cast<std::uint64_t>(1023 + exponent) << 52);
}

// 2^k for which x 2^k is near 1, 0 <= k <= largest; x >= 0
SMX_INLINE constexpr real power_that_lifts(real x, int largest)
{
    const int k = 1023 - static_cast<int>(__builtin_bit_cast(std::uint64_t, x) >> 52 & 0x7ff);
    return power_of_two(k < 0 ? 0 : k < largest ? k : largest);
}

// hi + lo, |lo| <= ulp(hi) / 2: a number of 106 bits (Dekker 1971)
struct pair {
    real hi, lo;
};

// A quotient or product on its own. Clang would take it as a lane of a vector of which the other is a sum, compute both
// operations in both lanes, and raise the flags of 0 / 0 or of a product that nobody asked for.
SMX_INLINE constexpr real apart(real x)
{
    if (!std::is_constant_evaluated())
        SMX_LAUNDER(x.value);
    return x;
}

// 1 with 1/8 ulp more or less rounds to 1 in this mode only.
SMX_INLINE bool current_mode_is_nearest()
{
    const real one = apart(real{1}), little = apart(real{0x1p-55});
    return apart(one + little) == one && apart(one - little) == one;
}

SMX_INLINE constexpr pair fast_two_sum(real a, real b) // |a| >= |b|
{
    const real s = a + b;
    return {s, b - (s - a)};
}

SMX_INLINE constexpr pair two_sum(real a, real b) // Knuth 1969
{
    const real s = a + b;
    const real b_part = s - a;
    return {s, (a - (s - b_part)) + (b - b_part)};
}

SMX_INLINE constexpr pair two_product(real a, real b) // Dekker 1971; |a|, |b| < 2^996, and a b above 2^-968
{
    const real p = a * b;
    const real a1 = upper_half(a), b1 = upper_half(b);
    const real a2 = a - a1, b2 = b - b1;
    return {p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2};
}

SMX_INLINE constexpr pair operator+(pair a, real b)
{
    const pair s = two_sum(a.hi, b);
    return fast_two_sum(s.hi, s.lo + a.lo);
}

SMX_INLINE constexpr pair operator+(pair a, pair b)
{
    const pair s = two_sum(a.hi, b.hi);
    return fast_two_sum(s.hi, s.lo + (a.lo + b.lo));
}

SMX_INLINE constexpr pair operator-(pair a, pair b) { return a + pair{real{0} - b.hi, real{0} - b.lo}; }

SMX_INLINE constexpr pair operator*(pair a, pair b)
{
    const pair p = two_product(a.hi, b.hi);
    return fast_two_sum(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}

SMX_INLINE constexpr pair operator/(pair a, pair b)
{
    const real q = apart(a.hi / b.hi);
    const pair p = two_product(q, b.hi);
    return fast_two_sum(q, (((a.hi - p.hi) - p.lo) + a.lo - q * b.lo) / b.hi);
}

// 1 / (1 + j / 32) as 12 bits, and minus its logarithm, hi a multiple of 2^-42; by tests/coefficients.sollya
struct alignas(32) logarithm {
    double inverse, hi, lo;
};
inline constexpr logarithm logarithms_of_32nds[] = {{0x1p0, 0, 0},
                                                    {0x1.f08p-1, 0x1.f7a9b1678p-6, 0x1.42ad9271be7d7p-45},
                                                    {0x1.e1ep-1, 0x1.f0c30c1118p-5, -0x1.caef3588b7d8p-45},
                                                    {0x1.d42p-1, 0x1.6ef528c058p-4, -0x1.5d462d767cadep-44},
                                                    {0x1.c72p-1, 0x1.e2507702bp-4, -0x1.f897980522249p-45},
                                                    {0x1.bacp-1, 0x1.299d30c606p-3, 0x1.d4d0079dc08d9p-44},
                                                    {0x1.af2p-1, 0x1.601b076e7ap-3, 0x1.152d7d4dfc8e5p-44},
                                                    {0x1.a42p-1, 0x1.9509aa0044p-3, 0x1.f1e675b4d35c6p-44},
                                                    {0x1.99ap-1, 0x1.c8df7cb9a8p-3, 0x1.eee42f58e1e6ep-44},
                                                    {0x1.8fap-1, 0x1.fb7d86eee4p-3, -0x1.1c061cdb8097bp-45},
                                                    {0x1.862p-1, 0x1.1661caecbap-2, -0x1.171fff9fc4abbp-44},
                                                    {0x1.7dp-1, 0x1.2e9e2bce12p-2, 0x1.4300c128d1dc2p-45},
                                                    {0x1.746p-1, 0x1.4610bc29c6p-2, -0x1.e82c9f310c8e6p-46},
                                                    {0x1.6c2p-1, 0x1.5d01dc49ffp-2, 0x1.740ab8cfa5ed3p-45},
                                                    {0x1.642p-1, 0x1.73c1800dc1p-2, -0x1.9be481157128p-45},
                                                    {0x1.5cap-1, 0x1.898d38a893p-2, 0x1.1f666071e2f57p-44},
                                                    {0x1.556p-1, 0x1.9f123f4bf7p-2, -0x1.2edbfd41b7fc2p-45},
                                                    {0x1.4e6p-1, 0x1.b44977c149p-2, -0x1.cae5e0256c925p-47},
                                                    {0x1.47ap-1, 0x1.c92b7d6bb1p-2, -0x1.bc058001e24cfp-44},
                                                    {0x1.414p-1, 0x1.dd4aa04e1cp-2, 0x1.2d8512df01afdp-44},
                                                    {0x1.3b2p-1, 0x1.f100f6c2ebp-2, 0x1.cce779d37f3d8p-45},
                                                    {0x1.352p-1, 0x1.02582a5c9dp-1, 0x1.22c6c4e98e18cp-45},
                                                    {0x1.2f6p-1, 0x1.0bf52e73538p-1, 0x1.9b5899cd387d3p-46},
                                                    {0x1.29ep-1, 0x1.15533d3b8d8p-1, -0x1.33f1aba7961e6p-47},
                                                    {0x1.24ap-1, 0x1.1e6df676ff8p-1, 0x1.a58ba81b983aap-46},
                                                    {0x1.1f8p-1, 0x1.2779e1ec94p-1, -0x1.35b991994c90fp-45},
                                                    {0x1.1a8p-1, 0x1.30757344f1p-1, -0x1.ec82f533a1f99p-45},
                                                    {0x1.15cp-1, 0x1.39240dde5dp-1, -0x1.6d8482a914e99p-45},
                                                    {0x1.112p-1, 0x1.41bcff486p-1, 0x1.76fd6b90e2a84p-47},
                                                    {0x1.0cap-1, 0x1.4a3e8623428p-1, -0x1.6d82b36043dcep-44},
                                                    {0x1.084p-1, 0x1.52a6d269bc8p-1, -0x1.ffbbb2e12ec6dp-45},
                                                    {0x1.042p-1, 0x1.5ab505b3908p-1, -0x1.faa7614266a7p-44}};

// a b + c by one instruction where there is one
struct separate {
    static SMX_INLINE constexpr real multiply_add(real a, real b, real c) { return a * b + c; }
    static SMX_INLINE constexpr pair product(real a, real b) { return two_product(a, b); }
};
#if SMX_HAS_X86_LEAVES()
struct fused {
    static SMX_INLINE real multiply_add(real a, real b, real c) { return {__builtin_fma(a.value, b.value, c.value)}; }
    static SMX_INLINE pair product(real a, real b)
    {
        const real p = a * b;
        return {p, {__builtin_fma(a.value, b.value, -p.value)}};
    }
};
#endif

// log(1 + t), t >= 0: 1 + t = 2^k c (1 + r), c the nearest of 1 + j / 32, |r| <= 1/63. 1 / c has 12 bits: 2^-k / c - 1 has no
// error up to k = 41, and none that counts beyond.
struct log1p_parts {
    real scale, k, log_hi, log_lo; // 2^-k / c, log c

    explicit SMX_INLINE constexpr log1p_parts(real t)
    {
        constexpr real one{1};
        const auto nearest = __builtin_bit_cast(std::uint64_t, one + t) + (std::uint64_t{1} << 46);
        const std::uint64_t exponent = nearest >> 52; // k + 1023
        const logarithm& c = logarithms_of_32nds[nearest >> 47 & 31];
        const auto inverse = __builtin_bit_cast(std::uint64_t, c.inverse);
        scale = {__builtin_bit_cast(double, inverse - ((exponent - 1023) << 52))};
        k = {static_cast<double>(static_cast<int>(exponent) - 1023)};
        log_hi = {c.hi};
        log_lo = {c.lo};
    }
};

// With an error below 2^-35 of it: log(1 + r) = r + r^2 P(r); P by tests/coefficients.sollya. Near 0, c = 1 and r = t.
template <class Arithmetic>
SMX_INLINE constexpr real log1p(real t)
{
    constexpr real p[] = {
        {-0x1.ffffffe946312p-2}, {0x1.5555550768f2fp-2}, {-0x1.000b028ae104ap-2}, {0x1.99b5e9b5d7906p-3}};
    constexpr real one{1}, ln2{0x1.62e42fefa39efp-1};
    const log1p_parts c(t);
    const real log_c = Arithmetic::multiply_add(c.k, ln2, c.log_hi);
    const real r = Arithmetic::multiply_add(t, c.scale, c.scale - one), square = r * r;
    const real low = Arithmetic::multiply_add(p[1], r, p[0]), high = Arithmetic::multiply_add(p[3], r, p[2]);
    return Arithmetic::multiply_add(square, Arithmetic::multiply_add(square, high, low), log_c + r);
}

// With an error below 2^-58 of it: log(1 + r) = r - r^2 / 2 + r^3 P(r), relative error 2^-63; r = hi + lo without error but in
// lo, k log 2 + log c to 2^-42 too.
template <class Arithmetic>
SMX_INLINE constexpr pair log1p(pair t)
{
    constexpr real p[] = {{0x1.5555555555555p-2},  {-0x1.0000000000c51p-2}, {0x1.99999999a22abp-3},
                          {-0x1.555554966754fp-3}, {0x1.2492477390dafp-3},  {-0x1.00171f9772216p-3},
                          {0x1.c75a28e4da1f8p-4}};
    constexpr real one{1}, minus_half{-0.5};
    constexpr pair ln2{{0x1.62e42ffp-1}, {-0x1.718432a1b0e26p-35}}; // hi has 33 bits: k hi is exact
    const log1p_parts c(t.hi);
    const pair product = Arithmetic::product(t.hi, c.scale);
    const real r = product.hi + (c.scale - one), lo = Arithmetic::multiply_add(t.lo, c.scale, product.lo);
    const real square = r * r;
    const real p01 = Arithmetic::multiply_add(p[1], r, p[0]), p23 = Arithmetic::multiply_add(p[3], r, p[2]);
    const real p45 = Arithmetic::multiply_add(p[5], r, p[4]), p456 = Arithmetic::multiply_add(p[6], square, p45);
    const real series = Arithmetic::multiply_add(square, Arithmetic::multiply_add(square, p456, p23), p01);
    const real rest = Arithmetic::multiply_add(square * r, series, Arithmetic::multiply_add(square, minus_half, lo));
    const pair sum = fast_two_sum(Arithmetic::multiply_add(c.k, ln2.hi, c.log_hi), r);
    return fast_two_sum(sum.hi, sum.lo + (Arithmetic::multiply_add(c.k, ln2.lo, c.log_lo) + rest));
}

// exp_scale<T>: e^(x / temperature) = 2^(x unit (hi + lo)), x / temperature = x unit (inverse_hi + inverse_lo).
// unit is a power of two: 1 for a temperature of at most 1, 1/2 above, so that no difference of logits overflows; and
// whatever keeps hi in range for temperatures near the ends of the type.
template <class T>
struct exp_scale { // any scalar: x / temperature = x unit / divisor
    T unit, divisor;
};

template <class T>
    requires std::is_same_v<T, float> || std::is_same_v<T, double>
struct exp_scale<T> {
    T hi, lo;                 // log2(e) / (temperature unit)
    T inverse_hi, inverse_lo; // 1 / (temperature unit)
    T unit;
    // For logits near 0, |x| < reach, which are not multiplied by unit: log2(e) / temperature, 1 / temperature, and the
    // distance from max below which an entry does not count. No logit is near at a temperature near the ends of the type.
    T reach, near_hi, near_lo, depth;
    double near_factor; // near_hi + near_lo
};

inline constexpr pair log2_e{{0x1.71547652b82fep+0}, {0x1.777d0ffda0d24p-56}}; // 1 / ln 2

// e^-depth at temperature 1: 2^33 such terms are less than the smallest subnormal.
inline constexpr float depth_of_floats = 131;
inline constexpr double depth_of_doubles = 1050;

inline constexpr exp_scale<float> unit_scale_of_floats = {
    0x1.715476p+0f,  0x1.4ae0cp-26f,    1, 0, 1, 0x1p16f, 0x1.715476p+0f, 0x1.4ae0cp-26f,
    depth_of_floats, 0x1.71547652b83p+0};
inline constexpr exp_scale<double> unit_scale_of_doubles = {
    log2_e.hi.value,  log2_e.lo.value, 1, 0, 1, 0x1p40, log2_e.hi.value, log2_e.lo.value,
    depth_of_doubles, log2_e.hi.value};

inline constexpr exp_scale<float> half_scale_of_floats = { // temperature 2
    0x1.715476p+0f,      0x1.4ae0cp-26f,    1, 0, 0.5f, 0x1p17f, 0x1.715476p-1f, 0x1.4ae0cp-27f,
    2 * depth_of_floats, 0x1.71547652b83p-1};
inline constexpr exp_scale<double> half_scale_of_doubles = {
    log2_e.hi.value,      log2_e.lo.value,    1, 0, 0.5, 0x1p41, log2_e.hi.value / 2, log2_e.lo.value / 2,
    2 * depth_of_doubles, log2_e.hi.value / 2};

// What every leaf does with sums and quotients, once a row. Terms are e^((x - max) / temperature) 2^bias, so that none
// that counts is subnormal; the largest is 2^bias exactly.
template <class T>
struct wide_arithmetic;

template <>
struct wide_arithmetic<float> {
    using wide = real;
    static constexpr int bias = 64;
    static constexpr float magic = 0x1.8p+19f;
    static constexpr double small_part = 0.15;                     // of depth, times log2(e): 29
    static constexpr float two_to_bias = 0x1p64f, tiny = 0x1p-90f; // below tiny, products may be subnormal
    static constexpr float enormous = 0x1p+102f;                   // the largest number and this do not overflow
    static constexpr float largest_factor = 0x1p60f,
                           least_factor = 0x1p-50f; // products of two between keep their digits

    static SMX_INLINE constexpr bool is_tiny_sum(real x) { return is_below(x, static_cast<double>(tiny)); }
    static SMX_INLINE constexpr bool is_below_huge(real x) { return is_below(x, static_cast<double>(enormous)); }
    static SMX_INLINE constexpr real as_double(const float& x) { return {static_cast<double>(x)}; }
    static SMX_INLINE constexpr const exp_scale<float>& unit_scale() { return unit_scale_of_floats; }
    static SMX_INLINE constexpr const exp_scale<float>& half_scale() { return half_scale_of_floats; }

    // T = below / 2^bias + ties - 1
    static SMX_INLINE constexpr wide tail(wide below, std::size_t ties)
    {
        return with_ties(below * power_of_two(-bias), ties);
    }
    static SMX_INLINE constexpr wide with_ties(wide below, std::size_t ties) // T = below + ties - 1
    {
        return SMX_LIKELY(ties == 1) ? below : below + real{static_cast<double>(ties) - 1};
    }
    static SMX_INLINE constexpr wide log1p(wide t) { return detail::log1p<separate>(t); }
    static SMX_INLINE constexpr bool outweighs(real p, wide s) { return s - p < p; }
    static SMX_INLINE constexpr wide total(wide a, wide b) { return a + b; }
    static SMX_INLINE constexpr wide total_without(wide a, const float* b) { return a - as_double(*b); }
    static SMX_INLINE constexpr wide quotient(wide a, wide b) { return a / b; }
    static SMX_INLINE constexpr wide times_power(wide a, int k) { return a * power_of_two(k); }

    // The losses. T + 1, and that in units of the terms; T + 1 - e: the sum of all terms but e.
    static SMX_INLINE constexpr wide with_largest(wide tail) { return tail + real{1}; }
    static SMX_INLINE constexpr wide scaled_sum(wide sum) { return sum * power_of_two(bias); }
    static SMX_INLINE constexpr wide others(wide tail, real e, bool is_largest)
    {
        return is_largest ? tail : tail + (real{1} - e * power_of_two(-bias));
    }
    static SMX_INLINE constexpr wide restored(wide reduced_dot) { return reduced_dot + reduced_dot; }
    static SMX_INLINE constexpr wide plus_product(wide a, wide b, wide c) { return a + b * c; }
    static SMX_INLINE constexpr wide quarter_of_difference(wide a, wide b) { return (a - b) * real{0.25}; }
    static SMX_INLINE constexpr bool is_small(wide) { return false; } // no product of two floats is subnormal
    static constexpr int mean_lift = 40; // a mean of terms is kept times 2^mean_lift where it may be subnormal
    static SMX_INLINE constexpr wide lifted_mean(wide mean_of_terms)
    {
        return mean_of_terms * power_of_two(mean_lift - bias);
    }
    static SMX_INLINE constexpr wide wide_count(std::size_t k) { return {static_cast<double>(k)}; }
    static SMX_INLINE constexpr bool is_zero(wide a) { return a == real{0}; }
};

template <>
struct wide_arithmetic<double> {
    using wide = pair;
    static constexpr int bias = 512;
    static constexpr double magic = 0x1.8p+48;
    static constexpr double small_part = 0.2;
    static constexpr double two_to_bias = 0x1p512, tiny = 0x1p-900, enormous = 0x1p+969;
    static constexpr double largest_factor = 0x1p500, least_factor = 0x1p-400;

    static SMX_INLINE constexpr bool is_tiny_sum(real x) { return is_below(x, tiny); }
    static SMX_INLINE constexpr bool is_below_huge(real x) { return is_below(x, enormous); }
    static SMX_INLINE constexpr const exp_scale<double>& unit_scale() { return unit_scale_of_doubles; }
    static SMX_INLINE constexpr const exp_scale<double>& half_scale() { return half_scale_of_doubles; }

    static SMX_INLINE constexpr wide tail(wide below, std::size_t ties)
    {
        const real down = power_of_two(-bias);
        return pair{below.hi * down, below.lo * down} + real{static_cast<double>(ties) - 1};
    }
    static SMX_INLINE constexpr wide log1p(wide t) { return detail::log1p<separate>(t); }
    static SMX_INLINE constexpr real plus(real a, wide b)
    {
        const pair s = two_sum(a, b.hi);
        return is_finite(s.hi) ? s.hi + (s.lo + b.lo) : s.hi;
    }
    static SMX_INLINE constexpr bool outweighs(real p, wide s) { return s.hi - p < p; }
    static SMX_INLINE constexpr wide total(wide a, wide b) { return (a + b.lo) + b.hi; }
    static SMX_INLINE constexpr wide total_without(wide a, const double* b) { return a + real{-*b}; }
    static SMX_INLINE constexpr wide quotient(wide a, wide b) { return {apart(a.hi / b.hi), {0}}; }
    static SMX_INLINE constexpr wide times_power(wide a, int k)
    {
        return {a.hi * power_of_two(k), a.lo * power_of_two(k)};
    }

    static SMX_INLINE constexpr wide with_largest(wide tail) { return tail + real{1}; }
    static SMX_INLINE constexpr wide scaled_sum(wide sum)
    {
        return {sum.hi * power_of_two(bias), sum.lo * power_of_two(bias)};
    }
    static SMX_INLINE constexpr wide others(wide tail, real e, bool is_largest)
    {
        return is_largest ? tail : tail + (real{1} - e * power_of_two(-bias));
    }
    // t (max - x) is summed times this: TwoSum of a sum that overflows would raise INVALID
    static constexpr double reduction = 0x1p-300;
    static SMX_INLINE constexpr wide restored(wide reduced_dot)
    {
        return {reduced_dot.hi * real{1 / reduction}, reduced_dot.lo * real{1 / reduction}};
    }
    static SMX_INLINE constexpr wide plus_product(wide a, wide b, wide c) { return {a.hi + b.hi * c.hi, {0}}; }
    static SMX_INLINE constexpr wide quarter_of_difference(wide a, wide b)
    {
        const wide d = total(a, {real{0} - b.hi, real{0} - b.lo});
        return {apart(d.hi * real{0.25}), apart(d.lo * real{0.25})};
    }
    // sums of terms times large differences are taken times 2^-600; back from there
    static SMX_INLINE constexpr wide unreduced(wide x)
    {
        return {x.hi * power_of_two(600 - bias), x.lo * power_of_two(600 - bias)};
    }
    static constexpr int mean_lift = 100;
    static SMX_INLINE constexpr wide lifted_mean(wide mean_of_terms)
    {
        return {mean_of_terms.hi * power_of_two(mean_lift - bias), mean_of_terms.lo * power_of_two(mean_lift - bias)};
    }
    static SMX_INLINE constexpr bool is_small(wide x) // products of which it is the sum may be subnormal
    {
        return x.hi < real{0x1p-400} && real{-0x1p-400} < x.hi;
    }
    static SMX_INLINE constexpr wide wide_count(std::size_t k) { return {{static_cast<double>(k)}, {0}}; }
    static SMX_INLINE constexpr bool is_zero(wide a) { return a.hi == real{0}; }
};

// What a view of probabilities keeps of them: s = sum p, the sum without one largest entry, and where that is.
template <class T>
struct wide_of {
    using type = number<T>;
};
template <>
struct wide_of<float> {
    using type = real;
};
template <>
struct wide_of<double> {
    using type = pair;
};
template <class T>
struct row_totals {
    typename wide_of<T>::type sum, rest;
    std::size_t largest;
};

// 2^(j/16) = power (1 + delta), and what adding to the bits of power multiplies by 2^bias, less j sixteenths in the field of
// the exponent; by tests/coefficients.sollya
template <class T, class Bits>
struct sixteenth_power_table {
    T power[16], delta[16];
    Bits field[16];
};
inline constexpr sixteenth_power_table<float, std::int32_t> sixteenth_powers_of_floats = {
    {0x1p0f, 0x1.0b5586p0f, 0x1.172b84p0f, 0x1.2387a6p0f, 0x1.306fep0f, 0x1.3dea64p0f, 0x1.4bfdaep0f, 0x1.5ab07ep0f,
     0x1.6a09e6p0f, 0x1.7a1148p0f, 0x1.8ace54p0f, 0x1.9c4918p0f, 0x1.ae89fap0f, 0x1.c199bep0f, 0x1.d5818ep0f,
     0x1.ea4afap0f},
    {0, 0x1.8d96d4p-25f, -0x1.9c0c22p-27f, 0x1.964904p-25f, 0x1.125002p-25f, 0x1.370be4p-25f, -0x1.0a355p-25f,
     -0x1.00d8acp-27f, 0x1.26055cp-26f, -0x1.05cb44p-25f, 0x1.67a1cap-28f, 0x1.a3b5e4p-28f, -0x1.f9c304p-27f,
     -0x1.6961b4p-28f, -0x1.a5217cp-28f, 0x1.61428ep-28f},
    {(64 * 16 - 0) * (1 << 19), (64 * 16 - 1) * (1 << 19), (64 * 16 - 2) * (1 << 19), (64 * 16 - 3) * (1 << 19),
     (64 * 16 - 4) * (1 << 19), (64 * 16 - 5) * (1 << 19), (64 * 16 - 6) * (1 << 19), (64 * 16 - 7) * (1 << 19),
     (64 * 16 - 8) * (1 << 19), (64 * 16 - 9) * (1 << 19), (64 * 16 - 10) * (1 << 19), (64 * 16 - 11) * (1 << 19),
     (64 * 16 - 12) * (1 << 19), (64 * 16 - 13) * (1 << 19), (64 * 16 - 14) * (1 << 19), (64 * 16 - 15) * (1 << 19)}};
inline constexpr sixteenth_power_table<double, std::int64_t> sixteenth_powers_of_doubles = {
    {0x1p0, 0x1.0b5586cf9890fp0, 0x1.172b83c7d517bp0, 0x1.2387a6e756238p0, 0x1.306fe0a31b715p0, 0x1.3dea64c123422p0,
     0x1.4bfdad5362a27p0, 0x1.5ab07dd485429p0, 0x1.6a09e667f3bcdp0, 0x1.7a11473eb0187p0, 0x1.8ace5422aa0dbp0,
     0x1.9c49182a3f09p0, 0x1.ae89f995ad3adp0, 0x1.c199bdd85529cp0, 0x1.d5818dcfba487p0, 0x1.ea4afa2a490dap0},
    {0, 0x1.79aa65d837b6dp-54, -0x1.01b15eaa59348p-55, 0x1.68efde3a8a894p-54, 0x1.34d754db0abb6p-55,
     0x1.59f48a72a4c6dp-55, 0x1.690cebb7aafbp-56, 0x1.063e1e21c5409p-54, -0x1.3b3efbf5e2228p-54, -0x1.b32dcb94da51dp-56,
     0x1.db72fc1f0eab4p-55, 0x1.1affc2b91ce27p-56, 0x1.c1a7792cb3387p-55, 0x1.36eae30af0cb3p-56, 0x1.4a385a63d07a7p-56,
     -0x1.ff7128fd391fp-55},
    {(512 * 16 - 0) * (1ll << 48), (512 * 16 - 1) * (1ll << 48), (512 * 16 - 2) * (1ll << 48),
     (512 * 16 - 3) * (1ll << 48), (512 * 16 - 4) * (1ll << 48), (512 * 16 - 5) * (1ll << 48),
     (512 * 16 - 6) * (1ll << 48), (512 * 16 - 7) * (1ll << 48), (512 * 16 - 8) * (1ll << 48),
     (512 * 16 - 9) * (1ll << 48), (512 * 16 - 10) * (1ll << 48), (512 * 16 - 11) * (1ll << 48),
     (512 * 16 - 12) * (1ll << 48), (512 * 16 - 13) * (1ll << 48), (512 * 16 - 14) * (1ll << 48),
     (512 * 16 - 15) * (1ll << 48)}};

// A row of n <= 16 entries as two halves of 8, 4, 2 or 1 entries that may overlap: bit i for lane i, each entry once
inline constexpr std::uint16_t lanes_of_short_rows[] = {
    0, 0x1, 0x3, 0xb, 0xf, 0x8f, 0xcf, 0xef, 0xff, 0x80ff, 0xc0ff, 0xe0ff, 0xf0ff, 0xf8ff, 0xfcff, 0xfeff, 0xffff};

namespace { // every unit has its own copy, compiled with its own flags

// 0 < temperature <= largest finite
template <class T>
constexpr exp_scale<T> scale_of(const T& temperature)
{
    if constexpr (std::is_same_v<T, double>) {
        if (temperature == 1)
            return unit_scale_of_doubles;
        const double unit = temperature > 0x1p900    ? 0x1p-128
                            : temperature > 1        ? 0.5
                            : temperature < 0x1p-900 ? 0x1p128
                                                     : 1;
        const pair inverse = pair{{1}, {0}} / pair{{temperature * unit}, {0}};
        const pair factor = log2_e * inverse;
        const double hi = factor.hi.value, lo = factor.lo.value;
        const bool is_near = unit == 1 || unit == 0.5;
        const double t = apart({is_near ? temperature : 0}).value,
                     near_unit = apart({is_near ? unit : 0}).value; // no overflow
        return {hi,
                lo,
                inverse.hi.value,
                inverse.lo.value,
                unit,
                0x1p40 * t,
                hi * near_unit,
                lo * near_unit,
                depth_of_doubles * t,
                hi * near_unit};
    } else if constexpr (std::is_same_v<T, float>) {
        if (temperature == 1)
            return unit_scale_of_floats;
        const float unit = temperature > 0x1p96f    ? 0x1p-32f
                           : temperature > 1        ? 0.5f
                           : temperature < 0x1p-96f ? 0x1p32f
                                                    : 1;
        const double inverse = 1 / (static_cast<double>(temperature) * static_cast<double>(unit));
        const double factor = log2_e.hi.value * inverse;
        const float hi = static_cast<float>(factor), inverse_hi = static_cast<float>(inverse);
        const float lo = static_cast<float>(factor - static_cast<double>(hi));
        const bool is_near = unit == 1 || unit == 0.5f;
        const double t = apart({is_near ? static_cast<double>(temperature) : 0}).value;
        const double near_unit = apart({is_near ? static_cast<double>(unit) : 0}).value;
        return {hi,
                lo,
                inverse_hi,
                static_cast<float>(inverse - static_cast<double>(inverse_hi)),
                unit,
                static_cast<float>(0x1p16 * t),
                static_cast<float>(static_cast<double>(hi) * near_unit),
                static_cast<float>(static_cast<double>(lo) * near_unit),
                static_cast<float>(static_cast<double>(depth_of_floats) * t),
                (static_cast<double>(hi) + static_cast<double>(lo)) * near_unit};
    } else {
        const T unit = T(1) < temperature ? T(T(1) / T(2)) : T(1);
        return {unit, T(temperature * unit)};
    }
}

} // namespace
} // namespace smx::detail
SMX_PRECISE_END
