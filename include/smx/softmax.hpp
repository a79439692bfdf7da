// SPDX-License-Identifier: BSL-1.0
// softmax.hpp: logits -> probabilities, log-probabilities, the log-normaliser.
#pragma once

#include <array>       // array
#include <cstddef>     // size_t
#include <span>        // span
#include <type_traits> // is_constant_evaluated, type_identity_t

#include <smx/detail/check.hpp>
#include <smx/detail/dispatch.hpp>
#include <smx/detail/target.hpp>
#include <smx/row.hpp>

namespace smx {

namespace detail {

// the arguments of softmax and log_softmax, checked
template <class T, class Row>
SMX_INLINE void transform_row(const char* function, const argument<const T>& logits, const argument<T>& out,
                              const softmax_options<T>& options, Row row_function)
{
    check_same_size(function, out.name, out.size, logits.name, logits.size);
    check_overlap(function, out, logits);
    const argument<const bool> mask{"mask", options.mask.data(), options.mask.size()};
    if (mask.size != 0) {
        check_same_size(function, mask.name, mask.size, logits.name, logits.size);
        check_overlap(function, out, mask);
    }
    const bool* const mask_data = mask.size == 0 ? nullptr : mask.data;
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>)
        if (is_one(&options.temperature))
            return row_function(logits.data, out.data, logits.size, wide_arithmetic<T>::unit_scale(), mask_data);
    const exp_scale<T> scale = checked_scale(function, &options.temperature);
    row_function(logits.data, out.data, logits.size, scale, mask_data);
}

// In a constant expression arithmetic must not meet a NaN: such a row is filled before.
template <class T, std::size_t N>
constexpr bool filled_with_nan(std::array<T, N>& row)
{
    if constexpr (std::is_floating_point_v<T>)
        for (const T& x : row)
            if (x != x) {
                row.fill(x);
                return true;
            }
    return false;
}

} // namespace detail

// softmax: p_i = e^{x_i / t} / sum_k e^{x_k / t}, t the temperature
//
// Shapes   logits [n], probs [n]; may be the same memory
// Range    0 <= p_i <= 1
// Special  a NaN or +inf, or nothing but -inf: the whole row NaN. Some -inf: 0 there. n = 0: nothing is written. n = 1:
//          exactly 1. Nothing unmasked: 0. A masked entry is 0 in any row.
// Error    float, double <= 3 ULP, adversarial rows 4; subnormal results too  [tests/accuracy.test.cpp: "softmax"]
// Cost     two reads of n logits, two writes and a read of n probabilities; of up to 128 floats or 64 doubles one read and one
//          write; of more than 8192 entries one read of the logits, of more than 2^22 two reads and one write, past the cache
// Throws   std::invalid_argument: sizes differ, probs partly overlaps logits or the mask, temperature not in (0, inf)
// Source   Blanchard, Higham & Higham, Accurately computing the log-sum-exp and softmax functions (2021), eq. (1.4), with
//          the exact difference x_i - max in place of the rounded one
template <readable_row Logits, writable_row Probs>
    requires same_scalar<Logits, Probs> && same_extent<Logits, Probs>
SMX_INLINE void softmax(const Logits& logits, Probs&& probs, const options_of<Logits>& options = {})
{
    using T = scalar_of<Logits>;
    detail::transform_row<T>("softmax", {"logits", detail::data_of(logits), detail::size_of(logits)},
                             {"probs", detail::data_of(probs), detail::size_of(probs)}, options,
                             detail::fastest<T>([](auto rows) { return rows.softmax; }));
}

// log_softmax: log p_i = (x_i - max) / t - log1p(T), T = sum_k e^{(x_k - max) / t} - 1 summed without its largest term
//
// Shapes   logits [n], log_probs [n]; may be the same memory
// Range    log p_i <= 0; below -max of the type: -inf
// Special  a NaN or +inf, or nothing but -inf: the whole row NaN. Some -inf: -inf there. n = 1: exactly 0. Nothing
//          unmasked: -inf. A masked entry is -inf in any row.
// Error    float, double <= 3 ULP, adversarial rows 4; near 0 too  [tests/accuracy.test.cpp: "log_softmax"]
// Cost     three reads and a write of n; of up to 128 floats or 64 doubles one, of more than 2^18 entries two reads
// Throws   as softmax
// Source   Blanchard, Higham & Higham (2021), eq. (1.5) and (4.1)
template <readable_row Logits, writable_row LogProbs>
    requires same_scalar<Logits, LogProbs> && same_extent<Logits, LogProbs>
SMX_INLINE void log_softmax(const Logits& logits, LogProbs&& log_probs, const options_of<Logits>& options = {})
{
    using T = scalar_of<Logits>;
    detail::transform_row<T>("log_softmax", {"logits", detail::data_of(logits), detail::size_of(logits)},
                             {"log_probs", detail::data_of(log_probs), detail::size_of(log_probs)}, options,
                             detail::fastest<T>([](auto rows) { return rows.log_softmax; }));
}

// logsumexp: log sum_k e^{x_k} = max + log1p(T)
//
// Shapes   logits [n]
// Special  n = 0: -inf. NaN if any NaN, else +inf if any +inf, else -inf if nothing but -inf. n = 1: exactly x.
// Error    float, double <= 2 ulp of max(|max|, log sum e^{x - max}, |result|)  [tests/accuracy.test.cpp: "logsumexp"]
// Cost     two reads of n; of up to 128 floats or 64 doubles, and of more than 2^18 entries, one
// Source   Blanchard, Higham & Higham (2021), eq. (4.1)
template <readable_row Logits>
[[nodiscard]] SMX_INLINE scalar_of<Logits> logsumexp(const Logits& logits)
{
    using T = scalar_of<Logits>;
    T result = T(0);
    detail::fastest<T>([](auto rows) { return rows.logsumexp; })(detail::data_of(logits), detail::size_of(logits),
                                                                 &result);
    return detail::laundered(result);
}

// logaddexp: log(e^a + e^b) = logsumexp of the two
template <scalar T>
[[nodiscard]] SMX_INLINE T logaddexp(const T& a, const T& b)
{
    const T logits[2] = {a, b};
    return logsumexp(logits);
}

// softmax and log_softmax of an array, by value; in constant expressions too.
// Error    in constant expressions <= 4 ULP  [tests/constexpr.test.cpp]
template <scalar T, std::size_t N>
[[nodiscard]] SMX_INLINE constexpr std::array<T, N> softmax(const std::array<T, N>& logits)
{
    std::array<T, N> probs = logits;
    if (!std::is_constant_evaluated())
        detail::fastest<T>([](auto rows) { return rows.softmax; })(logits.data(), probs.data(), N,
                                                                   detail::scale_of(T(1)), nullptr);
    else if (!detail::filled_with_nan(probs))
        detail::generic::row_softmax<detail::generic::lane<T>>(logits.data(), probs.data(), N, detail::scale_of(T(1)),
                                                               nullptr);
    return probs;
}

template <scalar T, std::size_t N>
[[nodiscard]] SMX_INLINE constexpr std::array<T, N> log_softmax(const std::array<T, N>& logits)
{
    std::array<T, N> log_probs = logits;
    if (!std::is_constant_evaluated())
        detail::fastest<T>([](auto rows) { return rows.log_softmax; })(logits.data(), log_probs.data(), N,
                                                                       detail::scale_of(T(1)), nullptr);
    else if (!detail::filled_with_nan(log_probs))
        detail::generic::row_log_softmax<detail::generic::lane<T>>(logits.data(), log_probs.data(), N,
                                                                   detail::scale_of(T(1)), nullptr);
    return log_probs;
}

} // namespace smx
