// SPDX-License-Identifier: BSL-1.0
// exp_terms.inl: how a row computes e^((x - max) / t), written once for vectors of floats and of doubles.
//
// x c = k/16 + r with c = log2(e) / t, k an integer, |r| <= 1/32: exact but for 2^-30 (float), whatever max. With Y = max c,
//   e^((x - max) / t) = 2^(x c - Y) = 2^(k div 16) P_j 2^r,   j = k mod 16,   P_j = 2^(j/16 - Y),
// so that the subtraction of max goes into a table of the row and costs nothing an element. P_j is rounded, and delta_j is
// its relative rounding error: e = P_j + P_j (q(r) + delta_j), q(r) = 2^r - 1. The largest term is 1 exactly.
//
// Not a header: each vector leaf includes it after its primitives P: memory and masks, set1, fma (a b + c), fms (a b - c),
// sixteenths (x c rounded to k/16, k in its last bits), and powers, the table P_j, delta_j with its look-up.

template <class P, class T>
struct rows;
template <class P, class T>
struct far_rows;

template <class P>
struct rows<P, float> : P, wide_arithmetic<float> {
    using scalar = float;
    using typename P::some;
    using typename P::vec;
    using far = far_rows<P, float>;
    static constexpr bool is_rare = false;

    static SMX_INLINE real lane(const vec& x) { return {static_cast<double>(P::lane0(x))}; }
    static SMX_INLINE vec narrow(wide x) { return P::set1(static_cast<float>(x.value)); }
    static SMX_INLINE wide widen(const vec& x) { return lane(x); }
    static SMX_INLINE vec lift(wide x) { return narrow(power_that_lifts(x, 126)); }

    // x c is exact to 2^-30 for |x| < 2^16 t and t not near the ends of the type
    static SMX_INLINE bool is_far(const vec& max, const exp_scale<float>& scale)
    {
        if (!P::rounds_to_nearest() || (scale.unit != 1 && scale.unit != 0.5f))
            return true;
        const real distance = lane(max) * (as_double(scale.inverse_hi) * as_double(scale.unit));
        return !(distance < real{0x1p16} && real{-0x1p16} < distance);
    }

    struct shift {
        vec lowest; // below it e counts as e^-131: 2^33 such terms are less than the smallest subnormal
        vec scale_hi, scale_lo;
        typename P::powers powers;
        vec origin, unit, inverse; // log_prob: (x unit - origin) inverse
    };

    // the table for Y = y: 2^(j/16 - Y) = 2^((j - J)/16) 2^f 2^-N, N + J/16 the sixteenth nearest to Y
    static SMX_INLINE typename P::powers powers_of(real y)
    {
        const int sixteenths = static_cast<int>(y.value * 16 + (y.value < 0 ? -0.5 : 0.5));
        const real f = real{static_cast<double>(sixteenths) * 0.0625} - y;
        real q{0x1.3b2ab6fba4e77p-7};
        q = q * f + real{0x1.c6b08d704a0cp-5};
        q = q * f + real{0x1.ebfbdff82c58fp-3};
        q = q * f + real{0x1.62e42fefa39efp-1};
        const int j = -sixteenths & 15;
        return typename P::powers(sixteenth_powers.hi[j] * (1 + (q * f).value), (-sixteenths - j) / 16 + bias);
    }
    static SMX_INLINE shift shift_of(const vec& max, const exp_scale<float>& scale)
    {
        const real factor = (as_double(scale.hi) + as_double(scale.lo)) * as_double(scale.unit);
        const real reach = real{131} / (as_double(scale.inverse_hi) * as_double(scale.unit));
        const vec unit = P::set1(scale.unit);
        return {narrow(lane(max) - reach),
                P::set1(scale.hi * scale.unit),
                P::set1(scale.lo * scale.unit),
                powers_of(lane(max) * factor),
                max * unit,
                unit,
                P::set1(scale.inverse_hi)};
    }

    // q(r) = 2^r - 1, |r| <= 1/32, by tests/coefficients.sollya: absolute error 2^-28.7
    static SMX_INLINE vec power(const vec& x, const vec& k, const shift& s)
    {
        const vec r = P::fma(x, s.scale_lo, P::fms(x, s.scale_hi, k - P::magic()));
        vec q = P::fma(r, P::set1(0x1.c6ad9ap-5f), P::set1(0x1.ebff92p-3f));
        q = P::fma(r, q, P::set1(0x1.62e43p-1f));
        q = P::fma(r, q, s.powers.delta(k));
        const vec t = s.powers.power(k);
        return P::fma(t, q, t);
    }
    static SMX_INLINE vec exp_term(const vec& x, const shift& s)
    {
        const vec clamped = P::at_least(s.lowest, x);
        return power(clamped, P::sixteenths(clamped, s.scale_hi), s);
    }

    static SMX_INLINE vec without_largest(const some& largest, const vec& e)
    {
        return P::select(largest, P::zero(), e);
    }
    static SMX_INLINE vec log_prob(const vec& x, const shift& s, wide log1p_tail)
    {
        return P::fms(P::fms(x, s.unit, s.origin), s.inverse, narrow(log1p_tail));
    }
    static SMX_INLINE vec plus(const vec& a, wide b) { return narrow(lane(a) + b); }

    struct factor {
        vec hi, lo;
    };
    static SMX_INLINE factor split(wide x)
    {
        const float hi = static_cast<float>(x.value);
        return {P::set1(hi), P::set1(static_cast<float>(x.value - static_cast<double>(hi)))};
    }
    static SMX_INLINE factor inverse(wide sum) { return split(real{1} / sum); }
    static SMX_INLINE vec times(const vec& e, const factor& f) { return P::fma(e, f.hi, e * f.lo); }

    static SMX_INLINE bool outweighs(const vec& p, wide s) { return wide_arithmetic<float>::outweighs(lane(p), s); }
    static SMX_INLINE vec product(const vec& a, wide b) { return narrow(lane(a) * b); }
    static SMX_INLINE vec minus(wide a, const vec& b)
    {
        const factor f = split(a);
        return (f.hi - b) + f.lo;
    }
    static SMX_INLINE vec less(const vec& a, wide b)
    {
        const factor f = split(b);
        return (a - f.hi) - f.lo;
    }
    static SMX_INLINE vec scaled_minus(wide s, const vec& x, wide b) // s x - b
    {
        const factor f = split(s), g = split(b);
        return P::fms(f.hi, x, g.hi) + P::fms(f.lo, x, g.lo);
    }

    // Products are tiny where they may be subnormal.
    static SMX_INLINE vec up() { return P::set1(0x1p+64f); }
    static SMX_INLINE vec down() { return P::set1(0x1p-64f); }
    static SMX_INLINE bool is_tiny(const vec& a) { return P::count(P::less_than(P::abs(a), P::set1(0x1p-90f))) != 0; }
    static SMX_INLINE vec where_tiny(const vec& a, const vec& tiny, const vec& otherwise)
    {
        return P::select(P::less_than(P::abs(a), P::set1(0x1p-90f)), tiny, otherwise);
    }
    static SMX_INLINE vec scaled_product(const vec& a, const vec& b)
    {
        const some smaller = P::less_than(P::abs(a), P::abs(b));
        return P::select(smaller, a, b) * up() * P::select(smaller, b, a);
    }
};

// Where rounding is not to nearest, all rows come here: k is then rounded by an instruction.
// A row far from 0 takes the difference first: exact for every x that counts. A row near 0 with an extreme temperature
// takes none. Both in units in which neither the difference nor c leaves the range of the type.
template <class P>
struct far_rows<P, float> : rows<P, float> {
    using base = rows<P, float>;
    static constexpr bool is_rare = true;
    using typename P::vec;

    struct shift : base::shift {
        vec before_unit, after_unit, start, subtrahend, start_difference;
    };
    static SMX_INLINE shift shift_of(const vec& max, const exp_scale<float>& scale)
    {
        const real one{1}, unit = base::as_double(scale.unit);
        const real factor = base::as_double(scale.hi) + base::as_double(scale.lo);
        const real before = unit < one ? unit : one, after = unit < one ? one : unit;
        const real lowest = real{-131} / base::as_double(scale.inverse_hi) / after; // a difference below counts as it
        const real origin = base::lane(max) * before;
        const real distance = origin < real{0} ? real{0} - origin : origin;
        const bool near = distance < real{-0x1p9} * lowest;
        // start: below every x that counts, so near that the difference does not overflow
        const real largest{static_cast<double>(0x1.fffffep+127f)};
        const real start = origin + lowest * real{2} - distance * real{0.5};
        shift s{{P::zero(), P::set1(scale.hi), P::set1(scale.lo),
                 base::powers_of(near ? origin * after * factor : real{0}), base::narrow(origin), P::zero(),
                 P::set1(scale.inverse_hi)},
                base::narrow(before),
                base::narrow(after),
                start < real{0} - largest ? P::minus_infinity() : base::narrow(start),
                near ? P::zero() : base::narrow(origin),
                base::narrow(near ? origin + lowest : lowest)};
        return s;
    }
    static SMX_INLINE vec exp_term(const vec& x, const shift& s)
    {
        const vec difference = P::at_least(s.start, x * s.before_unit) - s.subtrahend;
        const vec scaled = P::at_least(s.start_difference, difference) * s.after_unit;
        return base::power(scaled, P::sixteenths_in_any_mode(scaled, s.scale_hi), s);
    }
    static SMX_INLINE vec log_prob(const vec& x, const shift& s, real log1p_tail)
    {
        return P::fms((x * s.before_unit - s.origin) * s.after_unit, s.inverse, base::narrow(log1p_tail));
    }
};

template <class P>
struct rows<P, double> : P, wide_arithmetic<double> {
    using scalar = double;
    using typename P::some;
    using typename P::vec;
    using far = far_rows<P, double>;
    static constexpr bool is_rare = false;

    static SMX_INLINE real lane(const vec& x) { return {P::lane0(x)}; }
    static SMX_INLINE vec narrow(real x) { return P::set1(x.value); }
    static SMX_INLINE vec narrow(wide x) { return P::set1(x.hi.value); }
    static SMX_INLINE wide widen(const vec& x) { return {lane(x), {0}}; }
    static SMX_INLINE vec lift(wide x) { return narrow(power_that_lifts(x.hi, 1022)); }

    // x c is exact to 2^-60 for |x| < 2^40 t and t not near the ends of the type
    static SMX_INLINE bool is_far(const vec& max, const exp_scale<double>& scale)
    {
        if (!P::rounds_to_nearest() || (scale.unit != 1 && scale.unit != 0.5))
            return true;
        const real reach = real{0x1p40} / (real{scale.inverse_hi} * real{scale.unit});
        return !(lane(max) < reach && real{0} - reach < lane(max));
    }

    struct shift {
        vec lowest; // below it e counts as e^-1050: 2^33 such terms are less than the smallest subnormal
        vec scale_hi, scale_lo;
        typename P::powers powers;
        vec origin, unit, inverse; // log_prob: (x unit - origin) inverse
    };

    // q(r) = 2^r - 1, |r| <= 1/32, by tests/coefficients.sollya: absolute error 2^-56
    static constexpr double q6 = 0x1.430a7604c93ep-13, q5 = 0x1.5d897cfeadb47p-10, q4 = 0x1.3b2ab6fad1e0fp-7,
                            q3 = 0x1.c6b08d6f2d79cp-5, q2 = 0x1.ebfbdff82c597p-3, q1 = 0x1.62e42fefa39f3p-1;

    static SMX_INLINE pair times_factor(real x, const exp_scale<double>& scale) // x log2(e) / (t unit)
    {
        const real y = x * real{scale.hi};
        const real error{__builtin_fma(x.value, scale.hi, -y.value)};
        return {y, error + x * real{scale.lo}};
    }
    static SMX_INLINE typename P::powers powers_of(pair y)
    {
        const long long sixteenths = static_cast<long long>(y.hi.value * 16 + (y.hi.value < 0 ? -0.5 : 0.5));
        const real f = (real{static_cast<double>(sixteenths) * 0.0625} - y.hi) - y.lo;
        real q{q6};
        q = q * f + real{q5};
        q = q * f + real{q4};
        q = q * f + real{q3};
        q = q * f + real{q2};
        q = q * f + real{q1};
        const pair power = fast_two_sum(real{1}, q * f);
        const long long j = -sixteenths & 15;
        return typename P::powers(pair{{sixteenth_powers.hi[j]}, {sixteenth_powers.lo[j]}} * power,
                                  (-sixteenths - j) / 16 + bias);
    }
    static SMX_INLINE shift shift_of(const vec& max, const exp_scale<double>& scale)
    {
        const vec unit = P::set1(scale.unit);
        return {narrow(lane(max) - real{1050} / real{scale.inverse_hi * scale.unit}),
                P::set1(scale.hi * scale.unit),
                P::set1(scale.lo * scale.unit),
                powers_of(times_factor(lane(max) * real{scale.unit}, scale)),
                max * unit,
                unit,
                P::set1(scale.inverse_hi)};
    }

    static SMX_INLINE vec power(const vec& x, const vec& k, const shift& s)
    {
        const vec r = P::fma(x, s.scale_lo, P::fms(x, s.scale_hi, k - P::magic()));
        vec q = P::fma(r, P::set1(q6), P::set1(q5));
        q = P::fma(r, q, P::set1(q4));
        q = P::fma(r, q, P::set1(q3));
        q = P::fma(r, q, P::set1(q2));
        q = P::fma(r, q, P::set1(q1));
        q = P::fma(r, q, s.powers.delta(k));
        const vec t = s.powers.power(k);
        return P::fma(t, q, t);
    }
    static SMX_INLINE vec exp_term(const vec& x, const shift& s)
    {
        const vec clamped = P::at_least(s.lowest, x);
        return power(clamped, P::sixteenths(clamped, s.scale_hi), s);
    }

    static SMX_INLINE vec without_largest(const some& largest, const vec& e)
    {
        return P::select(largest, P::zero(), e);
    }
    static SMX_INLINE vec log_prob(const vec& x, const shift& s, wide log1p_tail)
    {
        return P::fms(P::fms(x, s.unit, s.origin), s.inverse, narrow(log1p_tail));
    }
    static SMX_INLINE vec plus(const vec& a, wide b) { return narrow(wide_arithmetic<double>::plus(lane(a), b)); }

    struct factor {
        vec hi, lo;
    };
    static SMX_INLINE factor split(wide x) { return {P::set1(x.hi.value), P::set1(x.lo.value)}; }
    static SMX_INLINE factor inverse(wide sum)
    {
        const real hi = real{1} / sum.hi;
        const real error{__builtin_fma(-hi.value, sum.hi.value, 1.0)};
        return split({hi, hi * (error - hi * sum.lo)});
    }
    static SMX_INLINE vec times(const vec& e, const factor& f) { return P::fma(e, f.hi, e * f.lo); }

    static SMX_INLINE bool outweighs(const vec& p, wide s) { return wide_arithmetic<double>::outweighs(lane(p), s); }
    static SMX_INLINE vec product(const vec& a, wide b)
    {
        const real x = lane(a);
        return P::set1(__builtin_fma(x.value, b.hi.value, (x * b.lo).value));
    }
    static SMX_INLINE vec minus(wide a, const vec& b)
    {
        const factor f = split(a);
        return (f.hi - b) + f.lo;
    }
    static SMX_INLINE vec less(const vec& a, wide b)
    {
        const factor f = split(b);
        return (a - f.hi) - f.lo;
    }
    static SMX_INLINE vec scaled_minus(wide s, const vec& x, wide b) // s x - b
    {
        const factor f = split(s), g = split(b);
        return P::fms(f.hi, x, g.hi) + P::fms(f.lo, x, g.lo);
    }

    // Products are tiny where they may be subnormal.
    static SMX_INLINE vec up() { return P::set1(0x1p+512); }
    static SMX_INLINE vec down() { return P::set1(0x1p-512); }
    static SMX_INLINE bool is_tiny(const vec& a) { return P::count(P::less_than(P::abs(a), P::set1(0x1p-900))) != 0; }
    static SMX_INLINE vec where_tiny(const vec& a, const vec& tiny, const vec& otherwise)
    {
        return P::select(P::less_than(P::abs(a), P::set1(0x1p-900)), tiny, otherwise);
    }
    static SMX_INLINE vec scaled_product(const vec& a, const vec& b)
    {
        const some smaller = P::less_than(P::abs(a), P::abs(b));
        return P::select(smaller, a, b) * up() * P::select(smaller, b, a);
    }
};

template <class P>
struct far_rows<P, double> : rows<P, double> {
    using base = rows<P, double>;
    static constexpr bool is_rare = true;
    using typename P::vec;

    struct shift : base::shift {
        vec before_unit, after_unit, start, subtrahend, start_difference;
    };
    static SMX_INLINE shift shift_of(const vec& max, const exp_scale<double>& scale)
    {
        const real one{1}, unit = real{scale.unit};
        const real before = unit < one ? unit : one, after = unit < one ? one : unit;
        const real lowest = real{-1050} / real{scale.inverse_hi} / after; // a difference below counts as it
        const real origin = base::lane(max) * before;
        const real distance = origin < real{0} ? real{0} - origin : origin;
        const bool near = distance < real{-0x1p30} * lowest;
        // start: below every x that counts, so near that the difference does not overflow
        const real largest{0x1.fffffffffffffp+1023};
        const real below = lowest * real{2} - distance * real{0.5};
        const bool overflows = origin * real{0.5} + below * real{0.5} < real{0} - largest * real{0.5};
        shift s{{P::zero(), P::set1(scale.hi), P::set1(scale.lo),
                 base::powers_of(near ? base::times_factor(origin * after, scale) : pair{{0}, {0}}),
                 base::narrow(origin), P::zero(), P::set1(scale.inverse_hi)},
                base::narrow(before),
                base::narrow(after),
                overflows ? P::minus_infinity() : base::narrow(origin + below),
                near ? P::zero() : base::narrow(origin),
                base::narrow(near ? origin + lowest : lowest)};
        return s;
    }
    static SMX_INLINE vec exp_term(const vec& x, const shift& s)
    {
        const vec difference = P::at_least(s.start, x * s.before_unit) - s.subtrahend;
        const vec scaled = P::at_least(s.start_difference, difference) * s.after_unit;
        return base::power(scaled, P::sixteenths_in_any_mode(scaled, s.scale_hi), s);
    }
    static SMX_INLINE vec log_prob(const vec& x, const shift& s, pair log1p_tail)
    {
        return P::fms((x * s.before_unit - s.origin) * s.after_unit, s.inverse, base::narrow(log1p_tail));
    }
};
