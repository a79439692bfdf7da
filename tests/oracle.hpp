// SPDX-License-Identifier: BSL-1.0
// oracle.hpp: the exact values and the error metrics of the accuracy table. Shares no line with the library.
//
// float is judged in long double, double in IEEE quad (libquadmath, or long double where that is a quad). Inputs are
// taken as they are; every formula is one without cancellation: sums of one sign, sums that leave one term out, log1p.
// Everything between `push` and `pop` keeps its meaning under -ffast-math; NaN and infinity are found by their bits.
// A row must be ordinary: entries finite or -inf, at least one of those that take part finite.
#pragma once
#include "bits.hpp"

#include <cfloat>
#include <cstddef>
#include <limits>
#include <math.h> // ::expl: std::exp is an inline function, compiled with the flags of the program
#include <type_traits>
#include <vector>

#if defined(__clang__)
#pragma float_control(precise, on, push)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("no-fast-math")
#endif

namespace oracle {

#if LDBL_MANT_DIG == 113
using quad = long double;
#else
__extension__ typedef __float128 quad;
extern "C" { // libquadmath; clang has no quadmath.h
quad expq(quad);
quad log1pq(quad);
quad frexpq(quad, int*);
quad ldexpq(quad, int);
}
inline quad exp_of(quad x) { return expq(x); }
inline quad log1p_of(quad x) { return log1pq(x); }
inline quad split(quad x, int* exponent) { return frexpq(x, exponent); }
inline quad power_of_two(quad one, int exponent) { return ldexpq(one, exponent); }
#endif
inline long double exp_of(long double x) { return ::expl(x); }
inline long double log1p_of(long double x) { return ::log1pl(x); }
inline long double split(long double x, int* exponent) { return ::frexpl(x, exponent); }
inline long double power_of_two(long double one, int exponent) { return ::ldexpl(one, exponent); }

// The type in which T is judged.
template <class T>
using wide = std::conditional_t<std::is_same_v<T, float>, long double, quad>;

template <class W>
W magnitude(W x)
{
    return x < W(0) ? -x : x;
}
template <class W>
W larger(W a, W b)
{
    return a < b ? b : a;
}

// e^x for x <= 0; nothing below the range of W.
template <class W>
W exp_below(W x)
{
    return x < W(-11300) ? W(0) : exp_of(x);
}

// --- values of one row of logits --------------------------------------------------------------------------------

// d_i = (x_i - max) / temperature and R, the sum of e^d_j over all but one maximum, are all that a row is made of:
// softmax = e^d_i / (1 + R), log_softmax = d_i - log1p(R), logsumexp = max + log1p(R).
template <class T>
class shifted_row {
public:
    using W = wide<T>;

    shifted_row(const T* logits, std::size_t n, const T& temperature, const bool* mask)
        : logits_(logits, logits + n), present_(n), distance_(n), power_(n), temperature_(temperature)
    {
        for (std::size_t i = 0; i < n; ++i)
            present_[i] = (mask == nullptr || mask[i]) && bits::is_finite(logits[i]);
        rebuild();
    }

    // Replaces one finite logit by another: one exponential if the maximum stays where it is.
    void set(std::size_t i, const T& logit)
    {
        logits_[i] = logit;
        if (i == top_ || logits_[top_] < logit) {
            rebuild();
        } else {
            shift(i);
            sum();
        }
    }

    bool present(std::size_t i) const { return present_[i]; }
    W softmax(std::size_t i) const { return present_[i] ? power_[i] / (W(1) + rest_) : W(0); }
    W log_softmax(std::size_t i) const { return distance_[i] - log_sum_; } // only where present
    W logsumexp() const { return W(logits_[top_]) + log_sum_; }
    W logsumexp_scale() const { return larger(larger(magnitude(W(logits_[top_])), log_sum_), magnitude(logsumexp())); }

private:
    void rebuild()
    {
        top_ = logits_.size();
        for (std::size_t i = 0; i < logits_.size(); ++i)
            if (present_[i] && (top_ == logits_.size() || logits_[top_] < logits_[i]))
                top_ = i;
        for (std::size_t i = 0; i < logits_.size(); ++i)
            if (present_[i])
                shift(i);
        sum();
    }

    void shift(std::size_t i)
    {
        distance_[i] = (W(logits_[i]) - W(logits_[top_])) / W(temperature_);
        power_[i] = exp_below(distance_[i]);
    }

    void sum()
    {
        rest_ = W(0);
        for (std::size_t i = 0; i < power_.size(); ++i)
            if (i != top_)
                rest_ += power_[i];
        log_sum_ = log1p_of(rest_);
    }

    std::vector<T> logits_;
    std::vector<bool> present_;
    std::vector<W> distance_, power_;
    T temperature_;
    std::size_t top_ = 0; // one maximum
    W rest_ = 0, log_sum_ = 0;
};

// --- the Jacobian and its products ------------------------------------------------------------------------------

// An exact value and the sum of magnitudes that its error is measured against.
template <class W>
struct judged {
    W value, scale;
};

// out_i = sum of the others, without a subtraction: what stands before i plus what stands behind it.
template <class W>
std::vector<W> sums_of_others(const std::vector<W>& terms)
{
    std::vector<W> out(terms.size());
    W before = 0;
    for (std::size_t i = 0; i < terms.size(); ++i) {
        out[i] = before;
        before += terms[i];
    }
    W behind = 0;
    for (std::size_t i = terms.size(); i-- > 0;) {
        out[i] += behind;
        behind += terms[i];
    }
    return out;
}

// Probabilities as given: their sum is 1 only up to rounding. Where p_i = 0 the tangent takes no part, whatever it is.
template <class T>
class jacobian {
public:
    using W = wide<T>;

    jacobian(const T* probs, std::size_t n) : probs_(n)
    {
        for (std::size_t i = 0; i < n; ++i)
            probs_[i] = W(probs[i]);
        others_ = sums_of_others(probs_);
    }

    W diagonal(std::size_t i) const { return probs_[i] * others_[i]; }
    W off_diagonal(std::size_t i, std::size_t j) const { return -(probs_[i] * probs_[j]); }
    W log_diagonal(std::size_t i) const { return others_[i]; }
    W log_off_diagonal(std::size_t j) const { return -probs_[j]; }

    // p_i sum_j p_j (v_i - v_j), against p_i sum_{j != i} p_j (|v_i| + |v_j|)
    std::vector<judged<W>> jvp(const T* tangent) const
    {
        const std::vector<W> v = on_support(tangent);
        std::vector<judged<W>> out = log_jvp_of(v);
        for (std::size_t i = 0; i < out.size(); ++i)
            out[i] = {probs_[i] * out[i].value, probs_[i] * out[i].scale};
        return out;
    }

    // sum_j p_j (v_i - v_j), against sum_{j != i} p_j (|v_i| + |v_j|)
    std::vector<judged<W>> log_jvp(const T* tangent) const { return log_jvp_of(widened(tangent)); }

    // u_i sum_{j != i} p_j - p_i sum_{j != i} u_j, against the same with magnitudes
    std::vector<judged<W>> log_vjp(const T* cotangent) const
    {
        const std::vector<W> u = widened(cotangent);
        const std::vector<W> sums = sums_of_others(u);
        const std::vector<W> sizes = sums_of_others(magnitudes(u));
        std::vector<judged<W>> out(u.size());
        for (std::size_t i = 0; i < u.size(); ++i)
            out[i] = {u[i] * others_[i] - probs_[i] * sums[i], magnitude(u[i]) * others_[i] + probs_[i] * sizes[i]};
        return out;
    }

    // J (u~ o v~) with x~ = x - <p, x> / s, against p_i max|u~| max|v~|, both over the support
    std::vector<judged<W>> hvp(const T* cotangent, const T* tangent) const
    {
        const std::vector<W> u = centred(on_support(cotangent));
        const std::vector<W> v = centred(on_support(tangent));
        std::vector<W> product(u.size());
        W largest_u = 0, largest_v = 0;
        for (std::size_t i = 0; i < u.size(); ++i) {
            product[i] = u[i] * v[i];
            largest_u = larger(largest_u, magnitude(u[i]));
            largest_v = larger(largest_v, magnitude(v[i]));
        }
        std::vector<judged<W>> out = log_jvp_of(product);
        for (std::size_t i = 0; i < out.size(); ++i)
            out[i] = {probs_[i] * out[i].value, probs_[i] * largest_u * largest_v};
        return out;
    }

private:
    std::vector<W> widened(const T* x) const
    {
        std::vector<W> out(probs_.size());
        for (std::size_t i = 0; i < out.size(); ++i)
            out[i] = W(x[i]);
        return out;
    }

    std::vector<W> on_support(const T* x) const
    {
        std::vector<W> out(probs_.size());
        for (std::size_t i = 0; i < out.size(); ++i)
            if (probs_[i] > W(0))
                out[i] = W(x[i]);
        return out;
    }

    static std::vector<W> magnitudes(std::vector<W> x)
    {
        for (W& each : x)
            each = magnitude(each);
        return x;
    }

    std::vector<W> weighted(std::vector<W> x) const
    {
        for (std::size_t i = 0; i < x.size(); ++i)
            x[i] *= probs_[i];
        return x;
    }

    // sum_{j != i} p_j (v_i - v_j) = v_i sum_{j != i} p_j - sum_{j != i} p_j v_j: its rounding is a share of the scale.
    std::vector<judged<W>> log_jvp_of(const std::vector<W>& v) const
    {
        const std::vector<W> dots = sums_of_others(weighted(v));
        const std::vector<W> sizes = sums_of_others(weighted(magnitudes(v)));
        std::vector<judged<W>> out(v.size());
        for (std::size_t i = 0; i < v.size(); ++i)
            out[i] = {v[i] * others_[i] - dots[i], magnitude(v[i]) * others_[i] + sizes[i]};
        return out;
    }

    // x~ on the support, 0 elsewhere. First the differences from the winner's x, so that an offset leaves exactly.
    std::vector<W> centred(std::vector<W> x) const
    {
        std::size_t winner = 0;
        W total = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
            total += probs_[i];
            if (probs_[winner] < probs_[i])
                winner = i;
        }
        const W reference = x.empty() ? W(0) : x[winner];
        for (std::size_t i = 0; i < x.size(); ++i)
            x[i] = probs_[i] > W(0) ? x[i] - reference : W(0);
        const std::vector<judged<W>> sums = log_jvp_of(x);
        for (std::size_t i = 0; i < x.size(); ++i)
            x[i] = probs_[i] > W(0) ? sums[i].value / total : W(0);
        return x;
    }

    std::vector<W> probs_, others_;
};

} // namespace oracle

// The error metrics, one for each line of the accuracy table. A NaN has the error `lost`.
namespace metric {

using oracle::wide;

inline constexpr double lost = 1e30;

template <class T>
wide<T> subnormal_step()
{
    using limits = std::numeric_limits<T>;
    return oracle::power_of_two(wide<T>(1), limits::min_exponent - limits::digits);
}

// The distance between neighbours of T at x: never below the subnormal step, nor above that at the largest finite T.
template <class T>
wide<T> ulp_of(wide<T> x)
{
    using limits = std::numeric_limits<T>;
    if (x == wide<T>(0))
        return subnormal_step<T>();
    int exponent = 0;
    (void)oracle::split(x, &exponent);
    exponent = exponent < limits::min_exponent ? limits::min_exponent : exponent;
    exponent = exponent > limits::max_exponent ? limits::max_exponent : exponent;
    return oracle::power_of_two(wide<T>(1), exponent - limits::digits);
}

// An infinity stands for the first power of two that T does not have, and so does every exact value beyond it.
template <class T>
wide<T> within_range(wide<T> x)
{
    const wide<T> edge = oracle::power_of_two(wide<T>(1), std::numeric_limits<T>::max_exponent);
    return x > edge ? edge : x < -edge ? -edge : x;
}

template <class T>
wide<T> distance(const T& computed, wide<T> exact)
{
    const wide<T> edge = oracle::power_of_two(wide<T>(1), std::numeric_limits<T>::max_exponent);
    const wide<T> value = bits::is_plus_infinity(computed)    ? edge
                          : bits::is_minus_infinity(computed) ? -edge
                                                              : wide<T>(computed);
    return oracle::magnitude(value - within_range<T>(exact));
}

template <class W>
double as_double(W error)
{
    return error < W(lost) ? static_cast<double>(error) : lost;
}

// |computed - exact| / ulp(at)
template <class T>
double in_ulp_at(const T& computed, wide<T> exact, wide<T> at)
{
    return bits::is_nan(computed) ? lost : as_double(distance<T>(computed, exact) / ulp_of<T>(at));
}

// |computed - exact| / (u scale), after half a subnormal step, which no result can do without
template <class T>
double in_u(const T& computed, const oracle::judged<wide<T>>& exact, double subnormal_steps = 0.5)
{
    if (bits::is_nan(computed))
        return lost;
    const wide<T> error = distance<T>(computed, exact.value) - wide<T>(subnormal_steps) * subnormal_step<T>();
    if (!(error > wide<T>(0)))
        return 0;
    const wide<T> unit = oracle::power_of_two(exact.scale, -std::numeric_limits<T>::digits);
    return unit > wide<T>(0) ? as_double(error / unit) : lost;
}

template <class T>
double softmax(const T& computed, wide<T> exact)
{
    return in_ulp_at<T>(computed, exact, exact);
}
template <class T>
double log_softmax(const T& computed, wide<T> exact)
{
    return in_ulp_at<T>(computed, exact, exact);
}

// ulp of max(|max|, ln S, |result|), which the caller gives as `scale`
template <class T>
double logsumexp(const T& computed, wide<T> exact, wide<T> scale)
{
    return in_ulp_at<T>(computed, exact, scale);
}

template <class T>
double logaddexp(const T& computed, wide<T> exact, wide<T> scale)
{
    return in_ulp_at<T>(computed, exact, scale);
}

template <class T>
double jacobian_diagonal(const T& computed, wide<T> exact)
{
    return in_ulp_at<T>(computed, exact, exact);
}

template <class T>
double jacobian_off_diagonal(const T& computed, wide<T> exact)
{
    return in_ulp_at<T>(computed, exact, exact);
}

template <class T>
double log_softmax_jacobian(const T& computed, wide<T> exact)
{
    return in_ulp_at<T>(computed, exact, exact);
}

// u p_i sum_{j != i} p_j (|v_i| + |v_j|)
template <class T>
double jvp(const T& computed, const oracle::judged<wide<T>>& exact)
{
    return in_u<T>(computed, exact);
}

// u sum_{j != i} p_j (|v_i| + |v_j|)
template <class T>
double log_softmax_jvp(const T& computed, const oracle::judged<wide<T>>& exact)
{
    return in_u<T>(computed, exact);
}

// u (|u_i| sum_{j != i} p_j + p_i sum_{j != i} |u_j|)
template <class T>
double log_softmax_vjp(const T& computed, const oracle::judged<wide<T>>& exact)
{
    return in_u<T>(computed, exact);
}

// u p_i max|u~| max|v~|
template <class T>
double hvp(const T& computed, const oracle::judged<wide<T>>& exact)
{
    return in_u<T>(computed, exact);
}

} // namespace metric

#if defined(__clang__)
#pragma float_control(pop)
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
