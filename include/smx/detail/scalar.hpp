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

// log(1 + t) for t >= 0 with an error below 2^-58 of it: 1 + t = 2^k (1 + m), s = m / (2 + m), |s| <= 0.1716,
// log(1 + m) = 2 s + s^3 P(s^2); P by tests/coefficients.sollya, relative error 2^-54.
SMX_INLINE constexpr pair log1p(pair t)
{
    constexpr double p[] = {0x1.5555555555555p-1, 0x1.9999999999dd9p-2, 0x1.24924924140e6p-2,
                            0x1.c71c729983269p-3, 0x1.745cba5b027d9p-3, 0x1.3b2af1555f2c9p-3,
                            0x1.0dc2a5ab7c789p-3, 0x1.307af3a5c57f2p-3, -0x1.151a8f8139dd4p-3};
    constexpr real one{1}, two{2};
    if (t.hi < real{0x1p-60}) // t - t^2 / 2
        return t;
    constexpr pair ln2{{0x1.62e42ffp-1}, {-0x1.718432a1b0e26p-35}}; // hi has 33 bits: k hi is exact

    const pair w = two_sum(one, t.hi); // 1 + t = w + t.lo
    // k: the power of two that brings w into [sqrt(1/2), sqrt(2))
    const std::int64_t bits = __builtin_bit_cast(std::int64_t, w.hi) - 0x3fe6a09e667f3bcd;
    const int k = static_cast<int>(bits >> 52);
    pair m = t;
    if (k != 0) {
        const real down = power_of_two(-k);
        m = fast_two_sum(w.hi * down - one, w.lo * down + t.lo * down);
    }
    const pair s = m / (m + two);
    const real z = s.hi * s.hi;
    real poly{p[8]};
    for (int i = 7; i >= 0; --i)
        poly = poly * z + real{p[i]};
    const real exponent{static_cast<double>(k)};
    const pair sum = two_sum(exponent * ln2.hi, two * s.hi);
    return fast_two_sum(sum.hi, sum.lo + (exponent * ln2.lo + (two * s.lo + s.hi * (z * poly))));
}

// 1 / (1 + j / 32), rounded, and minus its logarithm; by tests/coefficients.sollya
struct logarithm {
    double inverse, log;
};
inline constexpr logarithm logarithms_of_32nds[] = {{0x1p0, 0},
                                                    {0x1.f07c1f07c1f08p-1, 0x1.f829b0e7832f8p-6},
                                                    {0x1.e1e1e1e1e1e1ep-1, 0x1.f0a30c01162a8p-5},
                                                    {0x1.d41d41d41d41dp-1, 0x1.6f0d28ae56b4ep-4},
                                                    {0x1.c71c71c71c71cp-1, 0x1.e27076e2af2eap-4},
                                                    {0x1.bacf914c1badp-1, 0x1.29552f81ff521p-3},
                                                    {0x1.af286bca1af28p-1, 0x1.5ff3070a793d6p-3},
                                                    {0x1.a41a41a41a41ap-1, 0x1.9525a9cf456b6p-3},
                                                    {0x1.999999999999ap-1, 0x1.c8ff7c79a9a2p-3},
                                                    {0x1.8f9c18f9c18fap-1, 0x1.fb9186d5e3e29p-3},
                                                    {0x1.8618618618618p-1, 0x1.1675cababa60fp-2},
                                                    {0x1.7d05f417d05f4p-1, 0x1.2e8e2bae11d31p-2},
                                                    {0x1.745d1745d1746p-1, 0x1.4618bc21c5ec2p-2},
                                                    {0x1.6c16c16c16c17p-1, 0x1.5d1bdbf5809cap-2},
                                                    {0x1.642c8590b2164p-1, 0x1.739d7f6bbd007p-2},
                                                    {0x1.5c9882b931057p-1, 0x1.89a3386c1425bp-2},
                                                    {0x1.5555555555555p-1, 0x1.9f323ecbf984dp-2},
                                                    {0x1.4e5e0a72f0539p-1, 0x1.b44f77bcc8f64p-2},
                                                    {0x1.47ae147ae147bp-1, 0x1.c8ff7c79a9a21p-2},
                                                    {0x1.4141414141414p-1, 0x1.dd46a04c1c4a1p-2},
                                                    {0x1.3b13b13b13b14p-1, 0x1.f128f5faf06ecp-2},
                                                    {0x1.3521cfb2b78c1p-1, 0x1.02552a5a5d0ffp-1},
                                                    {0x1.2f684bda12f68p-1, 0x1.0be72e4252a83p-1},
                                                    {0x1.29e4129e4129ep-1, 0x1.154c3d2f4d5eap-1},
                                                    {0x1.2492492492492p-1, 0x1.1e85f5e7040d1p-1},
                                                    {0x1.1f7047dc11f7p-1, 0x1.2795e1289b11bp-1},
                                                    {0x1.1a7b9611a7b96p-1, 0x1.307d7334f10bep-1},
                                                    {0x1.15b1e5f75270dp-1, 0x1.393e0d3562a1ap-1},
                                                    {0x1.1111111111111p-1, 0x1.41d8fe84672afp-1},
                                                    {0x1.0c9714fbcda3bp-1, 0x1.4a4f85db03ebbp-1},
                                                    {0x1.0842108421084p-1, 0x1.52a2d265bc5abp-1},
                                                    {0x1.041041041041p-1, 0x1.5ad404c359f2dp-1}};

// a b + c by one instruction where there is one
struct separate {
    static SMX_INLINE constexpr real multiply_add(real a, real b, real c) { return a * b + c; }
};
struct fused {
    static SMX_INLINE real multiply_add(real a, real b, real c) { return {__builtin_fma(a.value, b.value, c.value)}; }
};

// log(1 + t) for t >= 0 with an error below 2^-35 of it: 1 + t = 2^k c (1 + r), c the nearest of 1 + j / 32, |r| <= 1/64,
// log(1 + r) = r + r^2 P(r); P by tests/coefficients.sollya. Near 0, c = 1 and r = t.
template <class Arithmetic>
SMX_INLINE constexpr real log1p(real t)
{
    constexpr real p[] = {
        {-0x1.ffffffeaa9695p-2}, {0x1.5555550c2afd6p-2}, {-0x1.000aab22d9b34p-2}, {0x1.99b508ecc47ffp-3}};
    constexpr real one{1}, ln2{0x1.62e42fefa39efp-1};
    const real w = one + t;
    const auto nearest = __builtin_bit_cast(std::uint64_t, w) + (std::uint64_t{1} << 46);
    const std::uint64_t j = nearest >> 47 & 31, exponent = nearest >> 52; // k + 1023
    const double inverse = logarithms_of_32nds[j].inverse;
    const real scale{
        __builtin_bit_cast(double, __builtin_bit_cast(std::uint64_t, inverse) - ((exponent - 1023) << 52))};
    const real log_c = Arithmetic::multiply_add(real{static_cast<double>(static_cast<int>(exponent) - 1023)}, ln2,
                                                real{logarithms_of_32nds[j].log});
    const real r = Arithmetic::multiply_add(t, scale, scale - one), square = r * r;
    const real low = Arithmetic::multiply_add(p[1], r, p[0]), high = Arithmetic::multiply_add(p[3], r, p[2]);
    return Arithmetic::multiply_add(square, Arithmetic::multiply_add(square, high, low), log_c + r);
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
};

inline constexpr pair log2_e{{0x1.71547652b82fep+0}, {0x1.777d0ffda0d24p-56}}; // 1 / ln 2

// e^-depth at temperature 1: 2^33 such terms are less than the smallest subnormal.
inline constexpr float depth_of_floats = 131;
inline constexpr double depth_of_doubles = 1050;

inline constexpr exp_scale<float> unit_scale_of_floats = {
    0x1.715476p+0f, 0x1.4ae0cp-26f, 1, 0, 1, 0x1p16f, 0x1.715476p+0f, 0x1.4ae0cp-26f, depth_of_floats};
inline constexpr exp_scale<double> unit_scale_of_doubles = {
    log2_e.hi.value, log2_e.lo.value, 1, 0, 1, 0x1p40, log2_e.hi.value, log2_e.lo.value, depth_of_doubles};

inline constexpr exp_scale<float> half_scale_of_floats = { // temperature 2
    0x1.715476p+0f, 0x1.4ae0cp-26f, 1, 0, 0.5f, 0x1p17f, 0x1.715476p-1f, 0x1.4ae0cp-27f, 2 * depth_of_floats};
inline constexpr exp_scale<double> half_scale_of_doubles = {
    log2_e.hi.value,     log2_e.lo.value,     1, 0, 0.5, 0x1p41, log2_e.hi.value / 2,
    log2_e.lo.value / 2, 2 * depth_of_doubles};

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

    static SMX_INLINE constexpr real as_double(const float& x) { return {static_cast<double>(x)}; }
    static SMX_INLINE constexpr const exp_scale<float>& unit_scale() { return unit_scale_of_floats; }
    static SMX_INLINE constexpr const exp_scale<float>& half_scale() { return half_scale_of_floats; }

    // T = below / 2^bias + ties - 1
    static SMX_INLINE constexpr wide tail(wide below, std::size_t ties)
    {
        return below * power_of_two(-bias) + real{static_cast<double>(ties) - 1};
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
    static constexpr double two_to_bias = 0x1p512, tiny = 0x1p-900;

    static SMX_INLINE constexpr const exp_scale<double>& unit_scale() { return unit_scale_of_doubles; }
    static SMX_INLINE constexpr const exp_scale<double>& half_scale() { return half_scale_of_doubles; }

    static SMX_INLINE constexpr wide tail(wide below, std::size_t ties)
    {
        const real down = power_of_two(-bias);
        return pair{below.hi * down, below.lo * down} + real{static_cast<double>(ties) - 1};
    }
    static SMX_INLINE constexpr wide log1p(wide t) { return detail::log1p(t); }
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
        const bool near = unit == 1 || unit == 0.5;
        const double t = apart({near ? temperature : 0}).value,
                     near_unit = apart({near ? unit : 0}).value; // no overflow
        return {hi,
                lo,
                inverse.hi.value,
                inverse.lo.value,
                unit,
                0x1p40 * t,
                hi * near_unit,
                lo * near_unit,
                depth_of_doubles * t};
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
        const bool near = unit == 1 || unit == 0.5f;
        const double t = apart({near ? static_cast<double>(temperature) : 0}).value;
        const double near_unit = apart({near ? static_cast<double>(unit) : 0}).value;
        return {hi,
                lo,
                inverse_hi,
                static_cast<float>(inverse - static_cast<double>(inverse_hi)),
                unit,
                static_cast<float>(0x1p16 * t),
                static_cast<float>(static_cast<double>(hi) * near_unit),
                static_cast<float>(static_cast<double>(lo) * near_unit),
                static_cast<float>(static_cast<double>(depth_of_floats) * t)};
    } else {
        const T unit = T(1) < temperature ? T(T(1) / T(2)) : T(1);
        return {unit, T(temperature * unit)};
    }
}

} // namespace
} // namespace smx::detail
SMX_PRECISE_END
