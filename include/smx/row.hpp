// SPDX-License-Identifier: BSL-1.0
// row.hpp: the vocabulary: what a scalar is, what a row of them is, and which rows can be used together.
#pragma once

#include <array>       // tuple_size, for static extents
#include <concepts>    // same_as, constructible_from
#include <cstddef>     // size_t
#include <span>        // span, and the concepts of ranges that it is built on
#include <type_traits> // remove_cvref_t

#include <smx/detail/target.hpp>

namespace smx {

namespace detail {

namespace adl { // only what argument-dependent lookup finds: a conversion to double would lose, say, a derivative
void exp() = delete;
void log() = delete;

template <class T>
concept has_exp_and_log = requires(const T& x) {
    T(exp(x));
    T(log(x));
};
} // namespace adl

template <class T>
concept arithmetic_operators = requires(const T& a, const T& b) {
    T(a + b);
    T(a - b);
    T(a * b);
    T(a / b);
    static_cast<bool>(a < b);
};

} // namespace detail

// scalar: float, double, long double; or any copyable non-integral type, constructible from int, with + - * / < and with
// exp and log found by argument-dependent lookup: an autodiff number, a multiprecision number, ... What takes square roots, of
// jacobian_view, needs sqrt too; log1p is taken where there is one.
template <class T>
concept scalar = (std::floating_point<T> && std::same_as<T, std::remove_cv_t<T>>) ||
                 (!std::integral<T> && std::copyable<T> && std::constructible_from<T, int> &&
                  detail::arithmetic_operators<T> && detail::adl::has_exp_and_log<T>);

namespace detail {

// Eigen 3.4's vectors are no std::ranges::contiguous_range; they tell their shape at compile time instead.
template <class R>
concept eigen_vector = requires(const R& row) {
    row.data();
    row.size();
    requires R::InnerStrideAtCompileTime == 1;
    requires bool(R::IsVectorAtCompileTime);
};

template <class R> // a view: an rvalue of it may be written through
concept eigen_view = eigen_vector<R> && !std::same_as<R, typename R::PlainObject>;

template <class R>
concept contiguous = (std::ranges::contiguous_range<R> && std::ranges::sized_range<R>) || eigen_vector<R>;

// data and size of a row; &row[0] and n. Constrained: clang forms scalar_of of a type before it asks whether it is a row.
template <class R>
    requires contiguous<std::remove_reference_t<R>>
SMX_INLINE constexpr auto* data_of(R&& row) noexcept
{
    if constexpr (eigen_vector<std::remove_cvref_t<R>>)
        return row.data();
    else
        return std::ranges::data(row);
}

template <class R>
SMX_INLINE constexpr std::size_t size_of(const R& row) noexcept
{
    if constexpr (eigen_vector<R>)
        return static_cast<std::size_t>(row.size());
    else
        return static_cast<std::size_t>(std::ranges::size(row));
}

// static_extent<R>: the number of elements where the type tells it, else dynamic_extent
template <class R>
inline constexpr std::size_t static_extent = std::dynamic_extent;
template <class T, std::size_t N>
inline constexpr std::size_t static_extent<T[N]> = N;
template <class T, std::size_t N>
inline constexpr std::size_t static_extent<std::array<T, N>> = N;
template <class T, std::size_t N>
inline constexpr std::size_t static_extent<std::span<T, N>> = N;
template <eigen_vector R>
inline constexpr std::size_t static_extent<R> =
    int(R::SizeAtCompileTime) < 0 ? std::dynamic_extent : std::size_t(int(R::SizeAtCompileTime));

template <class R>
inline constexpr std::size_t extent_of = static_extent<std::remove_cvref_t<R>>;

} // namespace detail

// readable_row: contiguous elements of a scalar type: std::span, std::vector, std::array, a C array, an Eigen vector.
template <class R>
concept readable_row =
    detail::contiguous<const std::remove_cvref_t<R>> &&
    scalar<std::remove_cvref_t<decltype(*detail::data_of(std::declval<const std::remove_cvref_t<R>&>()))>>;

// scalar_of<R>: the type of the elements, without const
template <class R>
using scalar_of = std::remove_cvref_t<decltype(*detail::data_of(std::declval<const std::remove_cvref_t<R>&>()))>;

// writable_row: a readable_row with assignable elements that outlives the call: an lvalue or a view, no temporary vector.
template <class R>
concept writable_row =
    readable_row<R> && detail::contiguous<std::remove_reference_t<R>> &&
    (std::is_lvalue_reference_v<R> || std::ranges::borrowed_range<R> || detail::eigen_view<std::remove_cvref_t<R>>) &&
    requires(std::remove_reference_t<R>& row) {
        { detail::data_of(row) } -> std::same_as<scalar_of<R>*>;
    };

// same_scalar: all rows hold the same scalar type.
template <class R, class... Others>
concept same_scalar = (std::same_as<scalar_of<R>, scalar_of<Others>> && ...);

// same_extent: no two sizes that are known at compile time differ.
template <class R, class... Others>
concept same_extent =
    ((detail::extent_of<R> == std::dynamic_extent || detail::extent_of<Others> == std::dynamic_extent ||
      detail::extent_of<R> == detail::extent_of<Others>) &&
     ...);

// label_type: the index of a class, or of an element: an integer of at most 64 bits, but not bool.
template <class T>
concept label_type =
    std::integral<T> && !std::same_as<std::remove_cv_t<T>, bool> && sizeof(T) <= sizeof(unsigned long long);

// square_extent: the matrix has n * n elements where both sizes are known at compile time.
template <class Matrix, class Row>
concept square_extent =
    detail::extent_of<Matrix> == std::dynamic_extent || detail::extent_of<Row> == std::dynamic_extent ||
    detail::extent_of<Matrix> == detail::extent_of<Row> * detail::extent_of<Row>;

// temperature   softmax(logits / temperature), without an overflow of the quotient; positive and finite. Derivatives with
//               respect to logits are then those of jacobian.hpp divided by temperature.
// mask          empty: all entries take part. Else one entry for each logit; false: probability 0, log-probability -inf,
//               and the logit is never evaluated.
template <scalar T>
struct softmax_options {
    T temperature = T(1);
    std::span<const bool> mask = {};
};

namespace detail {
template <class R>
struct options_type {
    using type = softmax_options<float>;
};
template <readable_row R>
struct options_type<R> {
    using type = softmax_options<scalar_of<R>>;
};
} // namespace detail

// options_of<R>: softmax_options of the scalars of R. Of what is no row it is some type, so that the concepts say why.
template <class R>
using options_of = typename detail::options_type<R>::type;

} // namespace smx
