// SPDX-License-Identifier: BSL-1.0
// jacobian.hpp: probabilities -> the Jacobian J of softmax and its products, none of which forms J.
//
// The derivation, by the quotient rule with p_i = e_i / S, e_i = e^{x_i}, S = sum_k e_k:
//   i = j:   d p_i / d x_i = (e_i S - e_i e_i) / S^2 =  p_i (1 - p_i)
//   i != j:  d p_i / d x_j = (0 S - e_i e_j) / S^2   = -p_i p_j
// so J = diag(p) - p p^T. For probs as given, whose sum s is 1 only up to rounding, all functions take
//   J = s diag(p) - p p^T:   J_ij = -p_i p_j,   J_ii = p_i sum_{j != i} p_j,   (J v)_i = p_i sum_j p_j (v_i - v_j),
// without cancellation: symmetric, positive semidefinite, with rows that sum to zero, whatever the rounding. For
// log_softmax, J_ij = delta_ij - p_j. With a temperature, derivatives with respect to logits are these divided by it.
//
// u = 2^-24 (float), 2^-53 (double) in the error bounds; norms are maximum norms.
#pragma once

#include <array>   // array
#include <cstddef> // size_t
#include <utility> // index_sequence

#include <smx/detail/check.hpp>
#include <smx/detail/dispatch.hpp>
#include <smx/detail/target.hpp>
#include <smx/row.hpp>

namespace smx {

namespace detail {

// the arguments of a dense Jacobian, checked
template <class T, class Matrix>
SMX_INLINE void dense_jacobian(const char* function, const argument<const T>& probs, const argument<T>& jacobian,
                               Matrix matrix_function)
{
    check_square(function, jacobian.name, jacobian.size, probs.name, probs.size);
    check_overlap(function, jacobian, probs);
    matrix_function(probs.data, probs.size, jacobian.data);
}

// N copies of a row: a matrix of scalars that need have no default value
template <class T, std::size_t N, std::size_t... I>
SMX_INLINE constexpr std::array<std::array<T, N>, N> repeat(const std::array<T, N>& row, std::index_sequence<I...>)
{
    return {((void)I, row)...};
}

// the arguments of a product with one vector, checked
template <class T, class Row>
SMX_INLINE void product_row(const char* function, const argument<const T>& probs, const argument<const T>& vector,
                            const argument<T>& out, Row row_function)
{
    check_same_size(function, vector.name, vector.size, probs.name, probs.size);
    check_same_size(function, out.name, out.size, probs.name, probs.size);
    check_overlap(function, out, probs);
    check_overlap(function, out, vector);
    row_function(probs.data, vector.data, out.data, probs.size);
}

} // namespace detail

// softmax_jacobian: jacobian[i * n + j] = d probs[i] / d logits[j] = -p_i p_j (i != j), p_i sum_{j != i} p_j (i = j)
//
// Shapes   probs [n], jacobian [n * n], row-major
// Special  p_i = 0: row and column i are 0. n = 1: exactly 0.
// Error    diagonal <= 2 ULP, off the diagonal <= 1 ULP  [tests/accuracy.test.cpp: "softmax_jacobian"]
// Cost     n^2 multiplications and stores
// Throws   std::invalid_argument: jacobian has not n * n elements, n * n overflows, jacobian partly overlaps probs
// Source   Gao & Pavel, On the properties of the softmax function (2017), arXiv 1704.00805, eq. (13)
template <readable_row Probs, writable_row Jacobian>
    requires same_scalar<Probs, Jacobian> && square_extent<Jacobian, Probs>
SMX_INLINE void softmax_jacobian(const Probs& probs, Jacobian&& jacobian)
{
    using T = scalar_of<Probs>;
    detail::dense_jacobian<T>("softmax_jacobian", {"probs", detail::data_of(probs), detail::size_of(probs)},
                              {"jacobian", detail::data_of(jacobian), detail::size_of(jacobian)},
                              detail::fastest<T>([](auto rows) { return rows.softmax_jacobian; }));
}

// log_softmax_jacobian: jacobian[i * n + j] = d log probs[i] / d logits[j] = -p_j (i != j), sum_{j != i} p_j (i = j)
//
// Shapes   probs [n], jacobian [n * n], row-major
// Error    <= 2 ULP  [tests/accuracy.test.cpp: "log_softmax_jacobian"]
// Cost     n^2 stores
// Throws   as softmax_jacobian
template <readable_row Probs, writable_row Jacobian>
    requires same_scalar<Probs, Jacobian> && square_extent<Jacobian, Probs>
SMX_INLINE void log_softmax_jacobian(const Probs& probs, Jacobian&& jacobian)
{
    using T = scalar_of<Probs>;
    detail::dense_jacobian<T>("log_softmax_jacobian", {"probs", detail::data_of(probs), detail::size_of(probs)},
                              {"jacobian", detail::data_of(jacobian), detail::size_of(jacobian)},
                              detail::fastest<T>([](auto rows) { return rows.log_softmax_jacobian; }));
}

// softmax_jvp: J v, the directional derivative of softmax: out_i = p_i sum_j p_j (v_i - v_j)
//
// Shapes   probs [n], tangent [n], out [n]; out may be either input
// Range    |v_i|, and |v_i| sum p, up to a quarter of the largest number of the type: beyond it a difference may overflow
// Special  p_i = 0: out_i = 0 whatever finite or infinite tangent. A NaN among the probs, or in a tangent where p_i > 0,
//          reaches every i with p_i > 0.
// Error    <= 8 u p_i sum_{j != i} p_j (|v_i| + |v_j|), adversarial rows 12  [tests/accuracy.test.cpp: "softmax_jvp"]
// Cost     two reads of probs and of tangent, a write of n; up to three reads of both more where the probabilities do not sum
//          to about 1, all products are tiny, or a constant tangent meets a probability that outweighs all others
// Throws   std::invalid_argument: sizes differ, out partly overlaps an input
// Source   Gao & Pavel (2017), eq. (13), applied to v
template <readable_row Probs, readable_row Tangent, writable_row Out>
    requires same_scalar<Probs, Tangent, Out> && same_extent<Probs, Tangent, Out> && same_extent<Tangent, Out>
SMX_INLINE void softmax_jvp(const Probs& probs, const Tangent& tangent, Out&& out)
{
    using T = scalar_of<Probs>;
    detail::product_row<T>("softmax_jvp", {"probs", detail::data_of(probs), detail::size_of(probs)},
                           {"tangent", detail::data_of(tangent), detail::size_of(tangent)},
                           {"out", detail::data_of(out), detail::size_of(out)},
                           detail::fastest<T>([](auto rows) { return rows.softmax_jvp; }));
}

// softmax_vjp: u^T J, the gradient of <u, softmax(x)> = J u: the same kernel as softmax_jvp, the same bits
template <readable_row Probs, readable_row Cotangent, writable_row Out>
    requires same_scalar<Probs, Cotangent, Out> && same_extent<Probs, Cotangent, Out> && same_extent<Cotangent, Out>
SMX_INLINE void softmax_vjp(const Probs& probs, const Cotangent& cotangent, Out&& out)
{
    using T = scalar_of<Probs>;
    detail::product_row<T>("softmax_vjp", {"probs", detail::data_of(probs), detail::size_of(probs)},
                           {"cotangent", detail::data_of(cotangent), detail::size_of(cotangent)},
                           {"out", detail::data_of(out), detail::size_of(out)},
                           detail::fastest<T>([](auto rows) { return rows.softmax_jvp; }));
}

// log_softmax_jvp: out_i = sum_j p_j (v_i - v_j) = s v_i - <p, v>
//
// Shapes   probs [n], tangent [n], out [n]; out may be either input
// Error    <= 8 u sum_{j != i} p_j (|v_i| + |v_j|), adversarial rows 12  [tests/accuracy.test.cpp: "log_softmax_jvp"]
// Throws   as softmax_jvp
template <readable_row Probs, readable_row Tangent, writable_row Out>
    requires same_scalar<Probs, Tangent, Out> && same_extent<Probs, Tangent, Out> && same_extent<Tangent, Out>
SMX_INLINE void log_softmax_jvp(const Probs& probs, const Tangent& tangent, Out&& out)
{
    using T = scalar_of<Probs>;
    detail::product_row<T>("log_softmax_jvp", {"probs", detail::data_of(probs), detail::size_of(probs)},
                           {"tangent", detail::data_of(tangent), detail::size_of(tangent)},
                           {"out", detail::data_of(out), detail::size_of(out)},
                           detail::fastest<T>([](auto rows) { return rows.log_softmax_jvp; }));
}

// log_softmax_vjp: the gradient of <u, log_softmax(x)>: out_i = u_i sum_{j != i} p_j - p_i sum_{j != i} u_j
//
// Shapes   probs [n], cotangent [n], out [n]; out may be either input
// Error    <= 8 u (|u_i| sum_{j != i} p_j + p_i sum_{j != i} |u_j|), adversarial rows 12
//          [tests/accuracy.test.cpp: "log_softmax_vjp"]
// Throws   as softmax_jvp
template <readable_row Probs, readable_row Cotangent, writable_row Out>
    requires same_scalar<Probs, Cotangent, Out> && same_extent<Probs, Cotangent, Out> && same_extent<Cotangent, Out>
SMX_INLINE void log_softmax_vjp(const Probs& probs, const Cotangent& cotangent, Out&& out)
{
    using T = scalar_of<Probs>;
    detail::product_row<T>("log_softmax_vjp", {"probs", detail::data_of(probs), detail::size_of(probs)},
                           {"cotangent", detail::data_of(cotangent), detail::size_of(cotangent)},
                           {"out", detail::data_of(out), detail::size_of(out)},
                           detail::fastest<T>([](auto rows) { return rows.log_softmax_vjp; }));
}

// softmax_hvp: the Hessian of <u, softmax(x)> times v: J (u~ o v~), x~ = x - <p, x> / s
//
// Shapes   probs [n], cotangent [n], tangent [n], out [n]; out may be any input
// Special  as softmax_jvp, for cotangent and tangent
// Error    <= 32 u p_i max|u~| max|v~| over p_i > 0, adversarial rows 64  [tests/accuracy.test.cpp: "softmax_hvp"]
// Throws   std::invalid_argument: sizes differ, out partly overlaps an input
// Source   log sum exp is the cumulant generating function; McCullagh, Tensor Methods in Statistics (1987), ch. 2
template <readable_row Probs, readable_row Cotangent, readable_row Tangent, writable_row Out>
    requires same_scalar<Probs, Cotangent, Tangent, Out> && same_extent<Probs, Cotangent, Tangent, Out> &&
             same_extent<Cotangent, Tangent, Out> && same_extent<Tangent, Out>
SMX_INLINE void softmax_hvp(const Probs& probs, const Cotangent& cotangent, const Tangent& tangent, Out&& out)
{
    using T = scalar_of<Probs>;
    const char* const function = "softmax_hvp";
    const detail::argument<const T> p{"probs", detail::data_of(probs), detail::size_of(probs)};
    const detail::argument<const T> u{"cotangent", detail::data_of(cotangent), detail::size_of(cotangent)};
    const detail::argument<const T> v{"tangent", detail::data_of(tangent), detail::size_of(tangent)};
    const detail::argument<T> o{"out", detail::data_of(out), detail::size_of(out)};
    detail::check_same_size(function, u.name, u.size, p.name, p.size);
    detail::check_same_size(function, v.name, v.size, p.name, p.size);
    detail::check_same_size(function, o.name, o.size, p.name, p.size);
    detail::check_overlap(function, o, p);
    detail::check_overlap(function, o, u);
    detail::check_overlap(function, o, v);
    detail::fastest<T>([](auto rows) { return rows.softmax_hvp; })(p.data, u.data, v.data, o.data, p.size);
}

// softmax_jacobian of an array, by value: jacobian[i][j]; in constant expressions too, which take no NaN.
template <scalar T, std::size_t N>
[[nodiscard]] SMX_INLINE constexpr std::array<std::array<T, N>, N> softmax_jacobian(const std::array<T, N>& probs)
{
    using V = detail::generic::lane<T>;
    std::array<std::array<T, N>, N> jacobian = detail::repeat(probs, std::make_index_sequence<N>());
    const T* const p = probs.data();
    const detail::generic::row_mass<V> mass = detail::generic::mass_of<V>(p, N);
    const detail::generic::others<V> other_probs(p, N, mass.sum, p, mass);
    for (std::size_t i = 0; i < N; ++i)
        detail::generic::jacobian_row<V>(p, N, i, V::broadcast(p + i), other_probs, jacobian[i].data());
    return jacobian;
}

} // namespace smx
