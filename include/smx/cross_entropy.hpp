// SPDX-License-Identifier: BSL-1.0
// cross_entropy.hpp: losses and their gradients straight from logits, exact when one class wins. p = softmax(logits).
//
// Special  a NaN or +inf among the logits, or nothing but -inf: the loss and all of the gradient are NaN, unless a function
//          says otherwise.
// u = 2^-24 (float), 2^-53 (double) in the error bounds.
#pragma once

#include <cstddef>     // size_t
#include <type_traits> // is_floating_point_v

#include <smx/detail/check.hpp>
#include <smx/detail/dispatch.hpp>
#include <smx/detail/target.hpp>
#include <smx/row.hpp>

namespace smx {

// cross_entropy: -log p_y = (max - x_y) + log1p(T), T = sum_k e^{x_k - max} summed without its largest term; y the label
//
// Shapes   logits [n], 0 <= label < n
// Range    not negative
// Special  the label's logit is -inf, another's is not: +inf
// Error    float, double <= 4 ULP, adversarial rows 6  [tests/cross_entropy.test.cpp: "cross_entropy, label"]
// Cost     two reads of n
// Throws   std::invalid_argument: label not in [0, n)
// Source   Blanchard, Higham & Higham, Accurately computing the log-sum-exp and softmax functions (2021), eq. (4.1)
template <readable_row Logits, label_type Label>
[[nodiscard]] SMX_INLINE scalar_of<Logits> cross_entropy(const Logits& logits, Label label)
{
    using T = scalar_of<Logits>;
    const std::size_t n = detail::size_of(logits);
    const std::size_t y = detail::checked_label("cross_entropy", label, n);
    T loss = T(0);
    detail::fastest<T>([](auto rows) { return rows.cross_entropy; })(detail::data_of(logits), n, y, &loss);
    return detail::laundered(loss);
}

// cross_entropy: -sum_i t_i log p_i = sum_i t_i (max - x_i) + log1p(T) sum_i t_i
//
// Shapes   logits [n], target [n]; t_i >= 0 and finite, which is not checked; their sum need not be 1
// Special  0 log 0 = 0: a logit of -inf has no effect where t_i = 0, and makes the loss +inf where t_i > 0. A NaN in
//          target: NaN. n = 0: 0.
// Error    float, double <= 4 ULP, adversarial rows 6  [tests/cross_entropy.test.cpp: "cross_entropy, target"], as long
//          as n sum t < 2^38 (float), 2^400 (double): probabilities below e^-131, e^-1050 count as these
// Cost     two reads of n logits, a read of target
// Throws   std::invalid_argument: sizes differ
template <readable_row Logits, readable_row Target>
    requires same_scalar<Logits, Target> && same_extent<Logits, Target>
[[nodiscard]] SMX_INLINE scalar_of<Logits> cross_entropy(const Logits& logits, const Target& target)
{
    using T = scalar_of<Logits>;
    const std::size_t n = detail::size_of(logits);
    detail::check_same_size("cross_entropy", "target", detail::size_of(target), "logits", n);
    T loss = T(0);
    detail::fastest<T>([](auto rows) { return rows.cross_entropy_target; })(detail::data_of(logits),
                                                                            detail::data_of(target), n, &loss);
    return detail::laundered(loss);
}

// cross_entropy_gradient: gradient_i = p_i, less 1 at the label: there -(sum of the others) / (sum of all), not p_y - 1.
// Returns the loss.
//
// Shapes   logits [n], 0 <= label < n, gradient [n]; gradient may be logits
// Range    0 <= gradient_i <= 1; at the label -1 <= gradient_y <= 0
// Special  the label's logit is -inf, another's is not: -1 there, the loss +inf
// Error    loss as cross_entropy; gradient <= 4 ULP, adversarial rows 6, subnormal results too
//          [tests/cross_entropy.test.cpp: "cross_entropy_gradient, label"]
// Cost     that of softmax and O(1)
// Throws   std::invalid_argument: label not in [0, n), sizes differ, gradient partly overlaps logits
template <readable_row Logits, label_type Label, writable_row Gradient>
    requires same_scalar<Logits, Gradient> && same_extent<Logits, Gradient>
SMX_INLINE scalar_of<Logits> cross_entropy_gradient(const Logits& logits, Label label, Gradient&& gradient)
{
    using T = scalar_of<Logits>;
    const char* const function = "cross_entropy_gradient";
    const detail::argument<const T> x{"logits", detail::data_of(logits), detail::size_of(logits)};
    const detail::argument<T> g{"gradient", detail::data_of(gradient), detail::size_of(gradient)};
    const std::size_t y = detail::checked_label(function, label, x.size);
    detail::check_same_size(function, g.name, g.size, x.name, x.size);
    detail::check_overlap(function, g, x);
    T loss = T(0);
    detail::fastest<T>([](auto rows) { return rows.cross_entropy_gradient; })(x.data, x.size, y, g.data, &loss);
    return detail::laundered(loss);
}

// cross_entropy_gradient: gradient_i = p_i sum_k t_k - t_i. Returns the loss.
//
// Shapes   logits [n], target [n], gradient [n]; gradient may be logits or target; t_i >= 0 and finite, not checked
// Special  as cross_entropy; the gradient is finite where the loss is +inf. A NaN in target: the whole gradient is NaN.
// Error    loss as cross_entropy; gradient <= 4 u (p_i sum t + t_i), adversarial rows 6, for the same sums of t
//          [tests/cross_entropy.test.cpp: "cross_entropy_gradient, target"]
// Cost     three reads of n logits, two of target, a write of n
// Throws   std::invalid_argument: sizes differ, gradient partly overlaps an input
template <readable_row Logits, readable_row Target, writable_row Gradient>
    requires same_scalar<Logits, Target, Gradient> && same_extent<Logits, Target, Gradient> &&
             same_extent<Target, Gradient>
SMX_INLINE scalar_of<Logits> cross_entropy_gradient(const Logits& logits, const Target& target, Gradient&& gradient)
{
    using T = scalar_of<Logits>;
    const char* const function = "cross_entropy_gradient";
    const detail::argument<const T> x{"logits", detail::data_of(logits), detail::size_of(logits)};
    const detail::argument<const T> t{"target", detail::data_of(target), detail::size_of(target)};
    const detail::argument<T> g{"gradient", detail::data_of(gradient), detail::size_of(gradient)};
    detail::check_same_size(function, t.name, t.size, x.name, x.size);
    detail::check_same_size(function, g.name, g.size, x.name, x.size);
    detail::check_overlap(function, g, x);
    detail::check_overlap(function, g, t);
    T loss = T(0);
    detail::fastest<T>([](auto rows) { return rows.cross_entropy_target_gradient; })(x.data, t.data, x.size, g.data,
                                                                                     &loss);
    return detail::laundered(loss);
}

// entropy: H = -sum_i p_i log p_i = log1p(T) + sum_i p_i (max - x_i)
//
// Shapes   logits [n]
// Range    0 <= H <= log n
// Special  -inf is as if absent; one finite logit: exactly 0. n = 0: 0.
// Error    float, double <= 8 ULP, adversarial rows 16; near 0 too  [tests/cross_entropy.test.cpp: "entropy"]
// Cost     two reads of n
template <readable_row Logits>
[[nodiscard]] SMX_INLINE scalar_of<Logits> entropy(const Logits& logits)
{
    using T = scalar_of<Logits>;
    T value = T(0);
    detail::fastest<T>([](auto rows) { return rows.entropy; })(detail::data_of(logits), detail::size_of(logits),
                                                               &value);
    return detail::laundered(value);
}

// entropy_gradient: gradient_i = dH / dx_i = -p_i (log p_i + H) = p_i ((max - x_i) - sum_j p_j (max - x_j)): -J x
//
// Returns the entropy.
//
// Shapes   logits [n], gradient [n]; gradient may be logits
// Special  -inf: 0 there
// Error    entropy as entropy; gradient <= 16 u p_i sum_{j != i} p_j (|x_i - max| + |x_j - max|), adversarial rows 24
//          [tests/cross_entropy.test.cpp: "entropy_gradient"]
// Cost     three reads and a write of n
// Throws   std::invalid_argument: sizes differ, gradient partly overlaps logits
template <readable_row Logits, writable_row Gradient>
    requires same_scalar<Logits, Gradient> && same_extent<Logits, Gradient>
SMX_INLINE scalar_of<Logits> entropy_gradient(const Logits& logits, Gradient&& gradient)
{
    using T = scalar_of<Logits>;
    const char* const function = "entropy_gradient";
    const detail::argument<const T> x{"logits", detail::data_of(logits), detail::size_of(logits)};
    const detail::argument<T> g{"gradient", detail::data_of(gradient), detail::size_of(gradient)};
    detail::check_same_size(function, g.name, g.size, x.name, x.size);
    detail::check_overlap(function, g, x);
    T value = T(0);
    detail::fastest<T>([](auto rows) { return rows.entropy_gradient; })(x.data, x.size, g.data, &value);
    return detail::laundered(value);
}

// kl_divergence: KL(P || Q) = sum_i p_i (log p_i - log q_i), P = softmax(logits_p), Q = softmax(logits_q)
//
// Shapes   logits_p [n], logits_q [n]
// Range    not negative; exactly 0 for logits that differ by a constant
// Special  p_i = 0: only q_i's share of the mass counts. A logit of -inf in q that is finite in p: +inf. n = 0: 0.
// Error    <= 16 u (KL + sum_i p_i |d_i|), d the difference of the logits less that at the argmax of p; adversarial rows
//          32  [tests/cross_entropy.test.cpp: "kl_divergence"]. Where that sum is below 1, about that many u of KL itself.
// Cost     five reads of both rows, six where they are close; float is computed in double
// Throws   std::invalid_argument: sizes differ
template <readable_row LogitsP, readable_row LogitsQ>
    requires same_scalar<LogitsP, LogitsQ> && same_extent<LogitsP, LogitsQ>
[[nodiscard]] SMX_INLINE scalar_of<LogitsP> kl_divergence(const LogitsP& logits_p, const LogitsQ& logits_q)
{
    using T = scalar_of<LogitsP>;
    const std::size_t n = detail::size_of(logits_p);
    detail::check_same_size("kl_divergence", "logits_q", detail::size_of(logits_q), "logits_p", n);
    T divergence = T(0);
    detail::fastest<T>([](auto rows) { return rows.kl_divergence; })(detail::data_of(logits_p),
                                                                     detail::data_of(logits_q), n, &divergence);
    return detail::laundered(divergence);
}

} // namespace smx
