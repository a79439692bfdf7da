// SPDX-License-Identifier: BSL-1.0
// isa_generic.hpp: V with one lane, for any scalar on any machine and in constant expressions: the reference.
#pragma once

#include <cmath>       // exp, log, log1p of long double; sqrt
#include <cstddef>     // size_t
#include <limits>      // numeric_limits
#include <type_traits> // is_same_v, is_constant_evaluated

#include <smx/detail/row_table.hpp>
#include <smx/detail/scalar.hpp>
#include <smx/detail/target.hpp>

SMX_PRECISE_BEGIN
namespace smx::detail::generic {
namespace { // every unit has its own copy, compiled with its own flags

// 2^(j/64) as hi + lo, by tests/coefficients.sollya
struct root_of_two {
    double hi, lo;
};
constexpr root_of_two roots_of_two[64] = {{0x1p+0, 0x0p+0},
                                          {0x1.02c9a3e778061p+0, -0x1.19083535b085dp-56},
                                          {0x1.059b0d3158574p+0, 0x1.d73e2a475b465p-55},
                                          {0x1.0874518759bc8p+0, 0x1.186be4bb284ffp-57},
                                          {0x1.0b5586cf9890fp+0, 0x1.8a62e4adc610bp-54},
                                          {0x1.0e3ec32d3d1a2p+0, 0x1.03a1727c57b53p-59},
                                          {0x1.11301d0125b51p+0, -0x1.6c51039449b3ap-54},
                                          {0x1.1429aaea92dep+0, -0x1.32fbf9af1369ep-54},
                                          {0x1.172b83c7d517bp+0, -0x1.19041b9d78a76p-55},
                                          {0x1.1a35beb6fcb75p+0, 0x1.e5b4c7b4968e4p-55},
                                          {0x1.1d4873168b9aap+0, 0x1.e016e00a2643cp-54},
                                          {0x1.2063b88628cd6p+0, 0x1.dc775814a8495p-55},
                                          {0x1.2387a6e756238p+0, 0x1.9b07eb6c70573p-54},
                                          {0x1.26b4565e27cddp+0, 0x1.2bd339940e9d9p-55},
                                          {0x1.29e9df51fdee1p+0, 0x1.612e8afad1255p-55},
                                          {0x1.2d285a6e4030bp+0, 0x1.0024754db41d5p-54},
                                          {0x1.306fe0a31b715p+0, 0x1.6f46ad23182e4p-55},
                                          {0x1.33c08b26416ffp+0, 0x1.32721843659a6p-54},
                                          {0x1.371a7373aa9cbp+0, -0x1.63aeabf42eae2p-54},
                                          {0x1.3a7db34e59ff7p+0, -0x1.5e436d661f5e3p-56},
                                          {0x1.3dea64c123422p+0, 0x1.ada0911f09ebcp-55},
                                          {0x1.4160a21f72e2ap+0, -0x1.ef3691c309278p-58},
                                          {0x1.44e086061892dp+0, 0x1.89b7a04ef80dp-59},
                                          {0x1.486a2b5c13cdp+0, 0x1.3c1a3b69062fp-56},
                                          {0x1.4bfdad5362a27p+0, 0x1.d4397afec42e2p-56},
                                          {0x1.4f9b2769d2ca7p+0, -0x1.4b309d25957e3p-54},
                                          {0x1.5342b569d4f82p+0, -0x1.07abe1db13cadp-55},
                                          {0x1.56f4736b527dap+0, 0x1.9bb2c011d93adp-54},
                                          {0x1.5ab07dd485429p+0, 0x1.6324c054647adp-54},
                                          {0x1.5e76f15ad2148p+0, 0x1.ba6f93080e65ep-54},
                                          {0x1.6247eb03a5585p+0, -0x1.383c17e40b497p-54},
                                          {0x1.6623882552225p+0, -0x1.bb60987591c34p-54},
                                          {0x1.6a09e667f3bcdp+0, -0x1.bdd3413b26456p-54},
                                          {0x1.6dfb23c651a2fp+0, -0x1.bbe3a683c88abp-57},
                                          {0x1.71f75e8ec5f74p+0, -0x1.16e4786887a99p-55},
                                          {0x1.75feb564267c9p+0, -0x1.0245957316dd3p-54},
                                          {0x1.7a11473eb0187p+0, -0x1.41577ee04992fp-55},
                                          {0x1.7e2f336cf4e62p+0, 0x1.05d02ba15797ep-56},
                                          {0x1.82589994cce13p+0, -0x1.d4c1dd41532d8p-54},
                                          {0x1.868d99b4492edp+0, -0x1.fc6f89bd4f6bap-54},
                                          {0x1.8ace5422aa0dbp+0, 0x1.6e9f156864b27p-54},
                                          {0x1.8f1ae99157736p+0, 0x1.5cc13a2e3976cp-55},
                                          {0x1.93737b0cdc5e5p+0, -0x1.75fc781b57ebcp-57},
                                          {0x1.97d829fde4e5p+0, -0x1.d185b7c1b85d1p-54},
                                          {0x1.9c49182a3f09p+0, 0x1.c7c46b071f2bep-56},
                                          {0x1.a0c667b5de565p+0, -0x1.359495d1cd533p-54},
                                          {0x1.a5503b23e255dp+0, -0x1.d2f6edb8d41e1p-54},
                                          {0x1.a9e6b5579fdbfp+0, 0x1.0fac90ef7fd31p-54},
                                          {0x1.ae89f995ad3adp+0, 0x1.7a1cd345dcc81p-54},
                                          {0x1.b33a2b84f15fbp+0, -0x1.2805e3084d708p-57},
                                          {0x1.b7f76f2fb5e47p+0, -0x1.5584f7e54ac3bp-56},
                                          {0x1.bcc1e904bc1d2p+0, 0x1.23dd07a2d9e84p-55},
                                          {0x1.c199bdd85529cp+0, 0x1.11065895048ddp-55},
                                          {0x1.c67f12e57d14bp+0, 0x1.2884dff483cadp-54},
                                          {0x1.cb720dcef9069p+0, 0x1.503cbd1e949dbp-56},
                                          {0x1.d072d4a07897cp+0, -0x1.cbc3743797a9cp-54},
                                          {0x1.d5818dcfba487p+0, 0x1.2ed02d75b3707p-55},
                                          {0x1.da9e603db3285p+0, 0x1.c2300696db532p-54},
                                          {0x1.dfc97337b9b5fp+0, -0x1.1a5cd4f184b5cp-54},
                                          {0x1.e502ee78b3ff6p+0, 0x1.39e8980a9cc8fp-55},
                                          {0x1.ea4afa2a490dap+0, -0x1.e9c23179c2893p-54},
                                          {0x1.efa1bee615a27p+0, 0x1.dc7f486a4b6bp-54},
                                          {0x1.f50765b6e454p+0, 0x1.9d3e12dd8a18bp-54},
                                          {0x1.fa7c1819e90d8p+0, 0x1.74853f3a5931ep-55}};

// 2^(steps / 64 + r), |r| <= 1/100, times 2^bias. 2^r = 1 + q(r), q of degree 6, relative error 2^-54; |q| < 0.007, so
// that the rounding of the last sum is nearly all of the error.
// Error  <= 0.52 ULP  [tests/accuracy.test.cpp: "exp"]
SMX_INLINE constexpr real power(int steps, real r, int bias)
{
    const root_of_two root = roots_of_two[steps & 63];
    real q{0x1.43060c6d0b19ap-13};
    q = q * r + real{0x1.5d87a3aa5497cp-10};
    q = q * r + real{0x1.3b2ab6fc0a9bfp-7};
    q = q * r + real{0x1.c6b08d7068563p-5};
    q = q * r + real{0x1.ebfbdff82c58ep-3};
    q = q * r + real{0x1.62e42fefa39efp-1};
    q = q * r;
    const real t{root.hi};
    return (t + (real{root.lo} + t * q)) * power_of_two((steps >> 6) + bias);
}

// The nearest integer to y <= 0, whatever the rounding mode.
SMX_INLINE constexpr int nearest(real y)
{
    int k = static_cast<int>(y.value - 0.5);
    if (!std::is_constant_evaluated())
        SMX_LAUNDER(k); // else Clang converts a whole vector, and what is in its other lanes may raise INVALID
    return k;
}

// sum of log x over positive x: the logarithm of their product 2^exponent mantissa, 1 <= mantissa < 2. Each factor adds one
// rounding to an absolute error, where each log x would add one to a relative error of its own.
struct log_of_product {
    real mantissa;
    std::int64_t exponent;

    constexpr log_of_product() : mantissa{1}, exponent(0) {}
    constexpr void add(real x)
    {
        if (x < real{0x1p-1000}) {
            x = x * power_of_two(512);
            exponent -= 512;
        }
        multiply(x);
    }
    constexpr pair total() const
    {
        constexpr pair ln2{{0x1.62e42ffp-1}, {-0x1.718432a1b0e26p-35}}; // hi has 33 bits
        const real k{static_cast<double>(exponent)};
        const pair log_mantissa = log1p<separate>(pair{mantissa - real{1}, {0}});
        return (pair{k * ln2.hi, {0}} + log_mantissa) + k * ln2.lo;
    }

private:
    // NaN and infinity do not count as such: who has them knows
    constexpr void multiply(real x)
    {
        const std::uint64_t bits = __builtin_bit_cast(std::uint64_t, x);
        exponent += static_cast<std::int64_t>(bits >> 52) - 1023;
        const std::uint64_t significand = (bits & 0xfffffffffffff) | 0x3ff0000000000000;
        mantissa = mantissa * __builtin_bit_cast(real, significand);
        if (!(mantissa < real{2})) {
            mantissa = mantissa * real{0.5};
            ++exponent;
        }
    }
};

// What does not depend on how numbers are computed: memory and masks. C is the type of computation.
template <class T, class C>
struct one_lane {
    using scalar = T;
    using vec = number<C>;
    using some = bool;
    struct all {};
    static constexpr const char* name = "generic";
    static constexpr std::size_t lanes = 1;
    static constexpr bool is_rare = false, is_doubled = false;
    static constexpr std::size_t cached_length = std::numeric_limits<std::size_t>::max(), near_length = cached_length,
                                 near_end = 0, streamed_length = cached_length;

    static SMX_INLINE constexpr all every() { return {}; }
    static SMX_INLINE constexpr some first(std::size_t count) { return count != 0; }
    static SMX_INLINE constexpr some where(const bool* mask, all) { return *mask; }
    static SMX_INLINE constexpr some where(const bool* mask, some inside) { return inside && *mask; }

    static SMX_INLINE constexpr vec broadcast(const T* x) { return {C(*x)}; }
    static SMX_INLINE constexpr vec load(const T* x, all, const vec&) { return {C(*x)}; }
    static SMX_INLINE constexpr vec load(const T* x, some which, const vec& fill) { return which ? vec{C(*x)} : fill; }
    static SMX_INLINE constexpr void store(T* x, all, const vec& v) { *x = T(v.value); }
    static SMX_INLINE constexpr void store(T* x, some which, const vec& v)
    {
        if (which)
            *x = T(v.value);
    }

    static SMX_INLINE constexpr void store_first(T* x, const vec& v) { store(x, every(), v); }
    static SMX_INLINE constexpr void stream(T* x, const vec& v) { store(x, every(), v); }
    static SMX_INLINE constexpr void end_of_stream() {}
    static SMX_INLINE constexpr bool fetches_next(std::size_t, std::size_t) { return false; }
    static SMX_INLINE constexpr void fetch(const T*) {}
    static SMX_INLINE constexpr std::size_t entries_to_line(const T*) { return 0; }

    static SMX_INLINE constexpr vec zero() { return {C(0)}; }
    static SMX_INLINE constexpr vec one() { return {C(1)}; }
    static SMX_INLINE constexpr vec minus_infinity() { return detail::minus_infinity<C>(); }
    static SMX_INLINE constexpr vec not_a_number() { return detail::not_a_number<C>(); }
    static SMX_INLINE constexpr bool is_finite(const vec& x) { return detail::is_finite(x); }
    static SMX_INLINE constexpr bool is_nan(const T* x) { return detail::is_nan(vec{C(*x)}); }
    static SMX_INLINE constexpr bool is_far(const vec&, const exp_scale<T>&) { return false; }

    static SMX_INLINE constexpr vec select(all, const vec& a, const vec&) { return a; }
    static SMX_INLINE constexpr vec select(some which, const vec& a, const vec& b) { return which ? a : b; }
    static SMX_INLINE constexpr vec or_minus_infinity(all, const vec& a) { return a; }
    static SMX_INLINE constexpr vec or_minus_infinity(some which, const vec& a) // of some types the logarithm of 0
    {
        return which ? a : minus_infinity();
    }
    static SMX_INLINE constexpr vec keep(all, const vec& a) { return a; }
    static SMX_INLINE constexpr vec keep(some which, const vec& a) { return which ? a : zero(); }
    static SMX_INLINE constexpr vec where_nonzero(const vec& p, const vec& a) { return p == zero() ? zero() : a; }
    static SMX_INLINE constexpr some equals(all, const vec& a, const vec& b) { return a == b; }
    static SMX_INLINE constexpr some equals(some which, const vec& a, const vec& b) { return which && a == b; }
    static SMX_INLINE constexpr bool broadcast_equals(const T* x, const vec& a) { return vec{C(*x)} == a; }
    static SMX_INLINE constexpr std::size_t count(some which) { return which ? 1 : 0; }
    struct extent {
        vec max;

        explicit SMX_INLINE constexpr extent(const vec& first) : max(first) {}
        SMX_INLINE constexpr void add(const vec& x) { max = one_lane::max(max, x); }
        SMX_INLINE constexpr void add(const extent& other) { add(other.max); }
    };
    struct tally {
        std::size_t count;
        SMX_INLINE constexpr tally() : count(0) {}
        SMX_INLINE constexpr void add(some which) { count += which ? 1 : 0; }
        SMX_INLINE constexpr std::size_t total() const { return count; }
    };
    static SMX_INLINE constexpr vec max(const vec& a, const vec& b) { return a < b ? b : a; }
    static SMX_INLINE constexpr vec reduce_max(const vec& a) { return a; }
    static SMX_INLINE constexpr const vec& in_register(const vec& a) { return a; }
    static SMX_INLINE constexpr vec abs(const vec& a) { return a < zero() ? zero() - a : a; }
    static SMX_INLINE vec root(const vec& a)
    {
        if constexpr (std::is_floating_point_v<C>)
            return {std::sqrt(a.value)};
        else
            return {C(sqrt(a.value))};
    }

    // Products are tiny where they may be subnormal: here never, C being wider than T or of unknown range.
    static SMX_INLINE constexpr vec up() { return one(); }
    static SMX_INLINE constexpr vec down() { return one(); }
    static SMX_INLINE constexpr bool is_tiny(const vec&) { return false; }
    static SMX_INLINE constexpr vec where_tiny(const vec&, const vec&, const vec& otherwise) { return otherwise; }
    static SMX_INLINE constexpr const vec& alone(const vec& a) { return a; }
    static SMX_INLINE constexpr vec scaled_product(const vec& a, const vec& b) { return a * b; }

    // What the losses need.
    static SMX_INLINE constexpr bool less_than(const vec& a, const vec& b) { return a < b; }
    static SMX_INLINE constexpr some both(some p, some q) { return p && q; }
    static SMX_INLINE constexpr some absent(const T* x, all) { return is_absent(vec{C(*x)}); }
    static SMX_INLINE constexpr some absent(const T* x, some which) { return which && is_absent(vec{C(*x)}); }
    static SMX_INLINE constexpr bool is_absent(const vec& x) { return x < zero() && !detail::is_finite(x); } // -inf
    static SMX_INLINE constexpr vec reduced_distance(const vec& x, const vec& max) // (max - x) / 2
    {
        const vec half{C(C(1) / C(2))};
        return is_absent(x) ? zero() : max * half - x * half;
    }
    static SMX_INLINE constexpr vec quarter() { return {C(C(1) / C(4))}; }
    static SMX_INLINE constexpr bool is_large(const vec&) { return false; }
    static SMX_INLINE constexpr vec reduced_unit() { return one(); }
    // ((x - x_m) - (y - y_m)) / 4
    static SMX_INLINE constexpr vec quarter_difference(const vec& x, const vec& x_m, const vec& y, const vec& y_m)
    {
        return (x * quarter() - x_m * quarter()) - (y * quarter() - y_m * quarter());
    }
    // e^-d - 1 + d, |d| <= 1: d^2/2 (1 - d/3 (1 - d/4 (1 - ...))), to 60 digits if need be
    static SMX_INLINE constexpr vec exp_remainder(const vec& d)
    {
        vec series = one();
        for (int k = std::is_same_v<C, double> ? 20 : 48; k > 2; --k)
            series = one() - d * series / vec{C(k)};
        return d * d / vec{C(2)} * series;
    }
};

// Any scalar: its own arithmetic. wide is the scalar itself: that is as good as its type lets it be.
template <class T>
struct lane : one_lane<T, T> {
    using vec = number<T>;
    using wide = vec;
    using factor = vec;
    using far_away = lane;
    using precise = lane;
    using weight = vec;

    struct sum {
        vec value;
        SMX_INLINE constexpr sum() : value{T(0)} {}
        SMX_INLINE constexpr void add(const vec& x) { value = value + x; }
        SMX_INLINE constexpr void add(const vec& a, const vec& b) { value = value + (a + b); }
        SMX_INLINE constexpr void add(const vec& a, const vec& b, const vec& c, const vec& d)
        {
            value = value + ((a + b) + (c + d));
        }
        SMX_INLINE constexpr void add_product(const vec& a, const vec& b) { add(a * b); }
        SMX_INLINE constexpr wide total() const { return value; }
    };
    using term_sum = sum;
    using rough_sum = sum;
    using single_sum = sum;

    struct shift {
        vec max;
        exp_scale<T> scale;
        SMX_INLINE constexpr vec of(const vec& x) const // (x - max) / temperature
        {
            if constexpr (std::is_floating_point_v<T>) { // no overflow in a constant expression
                constexpr vec half{T(0.5)}, least{-(std::numeric_limits<T>::max() / 2)};
                if (x * half * vec{scale.unit} - max * half * vec{scale.unit} < least)
                    return detail::minus_infinity<T>();
            }
            return (x * vec{scale.unit} - max * vec{scale.unit}) / vec{scale.divisor};
        }
    };
    static SMX_INLINE constexpr exp_scale<T> unit_scale() { return {T(1), T(1)}; }
    static SMX_INLINE constexpr shift shift_of(const vec& max, const exp_scale<T>& scale) { return {max, scale}; }
    static SMX_INLINE constexpr shift differences_from(const vec& max, const exp_scale<T>& scale)
    {
        return shift_of(max, scale);
    }
    static SMX_INLINE constexpr bool is_absent(const vec& x, const shift& s) // -inf
    {
        return x < s.max && !detail::is_finite(x);
    }
    static SMX_INLINE constexpr vec exp_term(const vec& x, const shift& s)
    {
        return is_absent(x, s) ? vec{T(0)} : vec{exp_of(s.of(x).value)};
    }

    static SMX_INLINE constexpr vec without_largest(bool tie, const vec& e)
    {
        return tie ? e - vec{T(1)} : e; // 0 but for the derivative of a tie, or for a NaN
    }
    static SMX_INLINE constexpr wide tail(const wide& below, std::size_t ties)
    {
        return ties < 2 ? below : below + vec{T(static_cast<int>(ties - 1))};
    }
    static SMX_INLINE constexpr wide log1p(const wide& t) { return {log1p_of(t.value)}; }
    static SMX_INLINE constexpr vec log_prob(const vec& x, const shift& s, const wide& log1p_tail)
    {
        return is_absent(x, s) ? detail::minus_infinity<T>() - log1p_tail : s.of(x) - log1p_tail;
    }
    static SMX_INLINE constexpr vec plus(const vec& a, const wide& b) { return a + b; }

    static SMX_INLINE constexpr factor inverse(const wide& sum) { return sum; }
    static SMX_INLINE constexpr vec times(const vec& e, const factor& sum) { return e / sum; }

    static SMX_INLINE constexpr bool outweighs(const vec& p, const wide& s) { return s - p < p; }
    static SMX_INLINE constexpr wide total(const wide& a, const wide& b) { return a + b; }
    static SMX_INLINE constexpr wide total_without(const wide& a, const T* b) { return a - vec{*b}; }
    static SMX_INLINE constexpr vec product(const vec& a, const wide& b) { return a * b; }
    static SMX_INLINE constexpr vec minus(const wide& a, const vec& b) { return a - b; }
    static SMX_INLINE constexpr vec less(const vec& a, const wide& b) { return a - b; }
    static SMX_INLINE constexpr vec narrow(const wide& a) { return a; }
    static SMX_INLINE constexpr wide quotient(const wide& a, const wide& b) { return a / b; }
    static SMX_INLINE constexpr vec scaled_minus(const wide& s, const vec& x, const wide& b) { return s * x - b; }
    static SMX_INLINE constexpr wide widen(const vec& x) { return x; }
    static SMX_INLINE constexpr wide wide_count(std::size_t k) { return {T(static_cast<int>(k))}; }
    static SMX_INLINE constexpr bool is_zero(const wide& a) { return a == vec{T(0)}; }
    static SMX_INLINE constexpr vec lift(const wide&) { return {T(1)}; }

    struct log_sum {
        vec value;
        constexpr log_sum() : value{T(0)} {}
        constexpr void add(const vec& x)
        {
            if constexpr (std::is_floating_point_v<T>)
                value = value + vec{std::log(x.value)};
            else
                value = value + vec{T(log(x.value))};
        }
        constexpr wide total() const { return value; }
    };
    static constexpr vec small_step() { return {T(0)}; } // steps go on until they do not shrink

    static SMX_INLINE constexpr vec surprise(const vec& x, const vec&, const shift& s, const wide& log1p_tail) // -log p
    {
        return vec{T(0)} - log_prob(x, s, log1p_tail);
    }
    static SMX_INLINE constexpr exp_scale<T> half_scale() { return {T(T(1) / T(2)), T(1)}; }
    static SMX_INLINE constexpr vec distance(const vec& x, const shift& s) // max - x, 0 where that is not finite
    {
        if (is_absent(x, s))
            return vec{T(0)};
        const vec d = s.of(x);
        return detail::is_finite(d) ? vec{T(0)} - d : vec{T(0)};
    }
    static SMX_INLINE constexpr wide with_largest(const wide& tail) { return tail + vec{T(1)}; }
    static SMX_INLINE constexpr wide scaled_sum(const wide& sum) { return sum; }
    static SMX_INLINE constexpr wide others(const wide& tail, const vec& e, bool) { return tail + (vec{T(1)} - e); }
    static SMX_INLINE constexpr wide restored(const wide& reduced_dot) { return reduced_dot + reduced_dot; }
    static SMX_INLINE constexpr wide plus_product(const wide& a, const wide& b, const wide& c) { return a + b * c; }
    static SMX_INLINE constexpr bool is_small(const wide&) { return false; }
    static SMX_INLINE constexpr wide lifted_mean(const wide& mean) { return mean; }
    static SMX_INLINE constexpr vec lifted(const vec& a) { return a; }
    static SMX_INLINE constexpr vec lowered(const vec& a) { return a; }
    static SMX_INLINE constexpr weight weight_of(const wide& mass, const wide& sum) { return mass / sum; }
    static SMX_INLINE constexpr vec weigh(const vec& e, const weight& w, const vec& t) { return e * w - t; }
    static SMX_INLINE constexpr vec at_half_bias(const vec& e) { return e; }
    static SMX_INLINE constexpr wide unreduced(const wide& a) { return a; }
    static SMX_INLINE constexpr wide difference(const vec& a, const vec& b) { return a - b; }
    static SMX_INLINE constexpr wide quarter_of_difference(const wide& a, const wide& b) { return (a - b) / vec{T(4)}; }

private:
    static SMX_INLINE constexpr T exp_of(const T& x)
    {
        if constexpr (std::is_floating_point_v<T>)
            return std::is_constant_evaluated() ? exp_series(x) : std::exp(x);
        else
            return T(exp(x));
    }
    static SMX_INLINE constexpr T log1p_of(const T& t)
    {
        if constexpr (std::is_floating_point_v<T>)
            return std::is_constant_evaluated() ? log1p_series(t) : std::log1p(t);
        else if constexpr (requires { T(log1p(t)); })
            return T(log1p(t));
        else { // Kahan: the rounding of 1 + t cancels in the quotient
            const number<T> x{t}, one{T(1)}, w = one + x;
            return w == one ? t : (x * (number<T>{T(log(w.value))} / (w - one))).value;
        }
    }

    // Constant expressions, x <= 0: e^x = 2^k e^r by the Taylor series of e^r.
    static constexpr T exp_series(const T& x)
    {
        constexpr T ln2_hi = T(0x1.62e42ffp-1), ln2_lo = T(-0x1.718432a1b0e2633fe0684a85f865e6p-35L);
        if (!(x > T(-20000)))
            return x < 0 ? T(0) : x;
        const int k = static_cast<int>(x * T(1.4426950408889634L) - T(0.5));
        const T r = (x - T(k) * ln2_hi) - T(k) * ln2_lo;
        T term = 1, tail = 0;
        for (int i = 1; i < 40; ++i) {
            term *= r / T(i);
            tail += term;
        }
        T e = 1 + tail;
        for (int i = 0; i > k; --i)
            e /= 2;
        return e;
    }

    // Constant expressions, t >= 0: log(1 + t) = k ln 2 + 2 atanh(m / (2 + m)), 1 + t = 2^k (1 + m).
    static constexpr T log1p_series(const T& t)
    {
        if (t != t)
            return t;
        T m = t;
        int k = 0;
        for (; m > T(0.41421356L); ++k)
            m = (m - 1) / 2; // 1 + m' = (1 + m) / 2
        const T s = m / (2 + m), z = s * s;
        T term = 2 * s * z, tail = 0;
        for (int i = 3; i < 80; i += 2) {
            tail += term / T(i);
            term *= z;
        }
        return T(k) * T(0x1.62e42fefa39ef35793c7673007e6p-1L) + (2 * s + tail);
    }
};

// float: every operation in double.
template <>
struct lane<float> : one_lane<float, double>, wide_arithmetic<float> {
    using factor = real;
    using far_away = lane;
    using precise = lane;
    using weight = real;

    struct sum {
        real value;
        SMX_INLINE constexpr sum() : value{0} {}
        SMX_INLINE constexpr void add(real x) { value = value + x; }
        SMX_INLINE constexpr void add(real a, real b) { value = value + (a + b); }
        SMX_INLINE constexpr void add(real a, real b, real c, real d) { value = value + ((a + b) + (c + d)); }
        SMX_INLINE constexpr void add_product(real a, real b) { add(a * b); }
        SMX_INLINE constexpr wide total() const { return value; }
    };
    using term_sum = sum;
    using rough_sum = sum;
    using single_sum = sum;

    // Below lowest terms are 0: 2^33 of them are less than the smallest subnormal.
    struct shift {
        real max, lowest, scale, inverse; // scale = 64 log2(e) / temperature, inverse = 1 / temperature
    };

    static SMX_INLINE constexpr shift shift_of(real max, const exp_scale<float>& scale)
    {
        const real factor = (as_double(scale.hi) + as_double(scale.lo)) * as_double(scale.unit);
        const real inverse = (as_double(scale.inverse_hi) + as_double(scale.inverse_lo)) * as_double(scale.unit);
        return {max, max - real{150} / inverse, factor * real{64}, inverse};
    }
    static SMX_INLINE constexpr shift differences_from(real max, const exp_scale<float>& scale)
    {
        return shift_of(max, scale);
    }
    static SMX_INLINE constexpr real exp_term(real x, const shift& s)
    {
        if (!(x.value >= s.lowest.value))
            return detail::is_nan(x) ? x : zero();
        const real y = (x - s.max) * s.scale;
        const int steps = nearest(y);
        return power(steps, (y - real{static_cast<double>(steps)}) * real{1.0 / 64}, bias);
    }

    static SMX_INLINE constexpr real without_largest(bool tie, real e) { return tie ? e - power_of_two(bias) : e; }
    static SMX_INLINE constexpr real log_prob(real x, const shift& s, real log1p_tail)
    {
        return (x - s.max) * s.inverse - log1p_tail;
    }
    static SMX_INLINE constexpr real plus(real a, real b) { return a + b; }

    static SMX_INLINE constexpr factor inverse(real sum) { return real{1} / sum; }
    static SMX_INLINE constexpr real times(real e, real inverse) { return e * inverse; }

    static SMX_INLINE constexpr real product(real a, real b) { return a * b; }
    static SMX_INLINE constexpr real minus(real a, real b) { return a - b; }
    static SMX_INLINE constexpr real less(real a, real b) { return a - b; }
    static SMX_INLINE constexpr real narrow(real a) { return a; }
    static SMX_INLINE constexpr real scaled_minus(real s, real x, real b) { return s * x - b; }

    static SMX_INLINE constexpr real surprise(real x, real, const shift& s, wide log1p_tail) // -log p
    {
        return real{0} - log_prob(x, s, log1p_tail);
    }
    static SMX_INLINE constexpr real lifted(real a) { return a * power_of_two(mean_lift); }
    static SMX_INLINE constexpr real lowered(real a) { return a * power_of_two(-mean_lift); }
    static SMX_INLINE constexpr real distance(real x, const shift& s) // 0 where the term is
    {
        return x.value >= s.lowest.value || detail::is_nan(x) ? s.max - x : zero();
    }
    static SMX_INLINE constexpr weight weight_of(real mass, real sum) { return mass / sum; }
    static SMX_INLINE constexpr real weigh(real e, weight w, real t) { return e * w - t; }
    static SMX_INLINE constexpr real at_half_bias(real e) { return e * power_of_two(-bias / 2); }
    static SMX_INLINE constexpr wide unreduced(real a) { return a; }
    static SMX_INLINE constexpr wide difference(real a, real b) { return a - b; }
    static SMX_INLINE constexpr real widen(real a) { return a; }
    static SMX_INLINE constexpr real lift(real) { return one(); }

    struct log_sum : log_of_product {
        constexpr real total() const { return log_of_product::total().hi; }
    };
    static constexpr real small_step() { return {0x1p-30}; }
};

// double: sums and quotients as pairs.
template <>
struct lane<double> : one_lane<double, double>, wide_arithmetic<double> {
    using factor = pair;
    using far_away = lane;
    using precise = lane;

    static SMX_INLINE constexpr real up() { return power_of_two(bias); }
    static SMX_INLINE constexpr real down() { return power_of_two(-bias); }
    static SMX_INLINE constexpr bool is_tiny(real a) { return abs(a) < real{0x1p-900}; }
    static SMX_INLINE constexpr real alone(real a) { return apart(a); }
    static SMX_INLINE constexpr real where_tiny(real a, real tiny, real otherwise)
    {
        return is_tiny(a) ? tiny : otherwise;
    }
    static SMX_INLINE constexpr real scaled_product(real a, real b)
    {
        const bool smaller = abs(a) < abs(b); // the factor is chosen before it grows: the other might overflow
        return (smaller ? a : b) * up() * (smaller ? b : a);
    }

    struct sum {
        pair value;
        SMX_INLINE constexpr sum() : value{{0}, {0}} {}
        SMX_INLINE constexpr void add(real x)
        {
            const pair s = two_sum(value.hi, x);
            value = {s.hi, value.lo + s.lo};
        }
        SMX_INLINE constexpr void add(real a, real b)
        {
            add(a);
            add(b);
        }
        SMX_INLINE constexpr void add(real a, real b, real c, real d)
        {
            add(a, b);
            add(c, d);
        }
        SMX_INLINE constexpr void add_product(real a, real b) { add(a * b); }
        SMX_INLINE constexpr wide total() const { return fast_two_sum(value.hi, value.lo); }
    };
    using term_sum = sum;
    using rough_sum = sum;
    using single_sum = sum;

    // Below lowest terms are 0: 2^33 of them are less than the smallest subnormal. The difference is taken of
    // x before_unit, and multiplied by after_unit.
    struct shift {
        real max, lowest;
        real scale_upper, scale_lower; // log2(e) / temperature: 26 bits, and the next 53
        pair inverse;                  // 1 / temperature
        real before_unit, after_unit;

        SMX_INLINE constexpr pair of(real x) const // x - max
        {
            const pair d = two_sum(x * before_unit, real{0} - max);
            return {d.hi * after_unit, d.lo * after_unit};
        }
    };

    static SMX_INLINE constexpr shift shift_of(real max, const exp_scale<double>& scale)
    {
        const real one{1}, unit{scale.unit};
        const real before = unit < one ? unit : one, after = unit < one ? one : unit;
        const real upper = upper_half(real{scale.hi});
        return {max * before,
                max * before - real{800} / real{scale.inverse_hi} / after,
                upper,
                (real{scale.hi} - upper) + real{scale.lo},
                {{scale.inverse_hi}, {scale.inverse_lo}},
                before,
                after};
    }
    static SMX_INLINE constexpr shift differences_from(real max, const exp_scale<double>& scale)
    {
        return shift_of(max, scale);
    }
    static SMX_INLINE constexpr real exp_term(real x, const shift& s)
    {
        if (!(x.value * s.before_unit.value >= s.lowest.value))
            return detail::is_nan(x) ? x : zero();
        const pair d = s.of(x);
        const real a = upper_half(d.hi), b = d.hi - a;
        const real y = a * s.scale_upper; // exact
        const real rest = b * (s.scale_upper + s.scale_lower) + (a * s.scale_lower + d.lo * s.scale_upper);
        const int steps = nearest((y + rest) * real{64});
        return power(steps, (y - real{static_cast<double>(steps) * (1.0 / 64)}) + rest, bias);
    }

    static SMX_INLINE constexpr real without_largest(bool tie, real e) { return tie ? e - power_of_two(bias) : e; }
    static SMX_INLINE constexpr real log_prob(real x, const shift& s, pair log1p_tail)
    {
        const real half = x * s.before_unit * real{0.5} - s.max * real{0.5};
        if (half < real{-0x1p1000}) // the rest does not count
            return detail::is_nan(log1p_tail.hi) ? log1p_tail.hi : far_log_prob(half, s);
        const pair d = s.of(x);
        const real y = d.hi * s.inverse.hi;
        if (!(abs(y) < real{0x1p1000}))
            return y - log1p_tail.hi;
        const pair sum = two_sum(y, real{0} - log1p_tail.hi);
        return sum.hi + (sum.lo + (d.hi * s.inverse.lo + d.lo * s.inverse.hi - log1p_tail.lo));
    }
    // half times 2 / temperature; -inf where that is below -max, without the flag where it can be helped
    static constexpr real far_log_prob(real half, const shift& s)
    {
        const real one{1}, largest{-0x1p1023};
        // half / temperature < -2^1023 as a product that has the range: what overflows may be computed ahead of its branch
        if (one < s.after_unit || half < largest || half * real{0x1p-1000} * s.inverse.hi < real{0x1p-1000} * largest)
            return minus_infinity();
        const real quotient = half * s.inverse.hi;
        return quotient + quotient;
    }

    static SMX_INLINE constexpr factor inverse(pair sum) { return pair{{1}, {0}} / sum; }
    static SMX_INLINE constexpr real times(real e, pair inverse) { return e * inverse.hi + e * inverse.lo; }

    static SMX_INLINE constexpr real product(real a, pair b) { return a * b.hi + a * b.lo; }
    static SMX_INLINE constexpr real minus(pair a, real b)
    {
        const pair d = two_sum(a.hi, real{0} - b);
        return d.hi + (d.lo + a.lo);
    }
    static SMX_INLINE constexpr real less(real a, pair b) { return real{0} - minus(b, a); }
    static SMX_INLINE constexpr real narrow(pair a) { return a.hi; }
    static SMX_INLINE constexpr pair widen(real a) { return {a, {0}}; }
    static SMX_INLINE constexpr real lift(pair a) { return power_that_lifts(a.hi, 1022); }

    using log_sum = log_of_product;
    static constexpr real small_step() { return {0x1p-36}; }
    static SMX_INLINE constexpr real scaled_minus(pair s, real x, pair b)
    {
        return (s.hi * x - b.hi) + (s.lo * x - b.lo);
    }

    static SMX_INLINE constexpr real surprise(real x, real, const shift& s, wide log1p_tail) // -log p
    {
        return real{0} - log_prob(x, s, log1p_tail);
    }
    static SMX_INLINE constexpr real lifted(real a) { return a * power_of_two(mean_lift); }
    static SMX_INLINE constexpr real lowered(real a) { return a * power_of_two(-mean_lift); }
    static SMX_INLINE constexpr real distance(real x, const shift& s) // 0 where the term is
    {
        return s.max - (x.value >= s.lowest.value || detail::is_nan(x) ? x : s.max);
    }
    static SMX_INLINE constexpr real reduced_distance(real x, real max) // (max - x) reduction
    {
        return is_absent(x) ? zero() : max * real{reduction} - x * real{reduction};
    }
    struct weight { // e weight - t; both times 2^900 where they may be subnormal
        pair ratio;
        real unit, inverse_unit;
    };
    static SMX_INLINE constexpr weight weight_of(pair mass, pair sum)
    {
        const int exponent = is_small(mass) ? 900 : 0;
        const real unit = power_of_two(exponent);
        return {pair{mass.hi * unit, mass.lo * unit} / sum, unit, power_of_two(-exponent)};
    }
    static SMX_INLINE constexpr real weigh(real e, const weight& w, real t)
    {
        return ((e * w.ratio.hi - t * w.unit) + e * w.ratio.lo) * w.inverse_unit;
    }
    static SMX_INLINE constexpr real at_half_bias(real e) { return e * power_of_two(-bias / 2); }
    static SMX_INLINE constexpr bool is_large(real quarter_difference) { return real{0x1p450} < quarter_difference; }
    static SMX_INLINE constexpr real reduced_unit() { return power_of_two(-600); }
    static SMX_INLINE constexpr wide difference(real a, real b) { return two_sum(a, real{0} - b); }
    static SMX_INLINE constexpr real quarter_difference(real x, real x_m, real y, real y_m)
    {
        const pair dx = two_sum(x * quarter(), real{0} - x_m * quarter());
        const pair dy = two_sum(y * quarter(), real{0} - y_m * quarter());
        return (dx.hi - dy.hi) + (dx.lo - dy.lo);
    }
};

#include <smx/detail/row_kernels.inl>

#include <smx/detail/jacobian_kernels.inl>

#include <smx/detail/batch_kernels.inl>
#include <smx/detail/loss_kernels.inl>
#include <smx/detail/operator_kernels.inl>

#include <smx/detail/row_functions.inl>

} // namespace
} // namespace smx::detail::generic
SMX_PRECISE_END
