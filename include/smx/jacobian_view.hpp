// SPDX-License-Identifier: BSL-1.0
// jacobian_view.hpp: the Jacobian of softmax as an object: J = s diag(p) - p p^T, s = sum p, which is never formed.
//
//   std::vector<double> probs = ...;
//   smx::jacobian_view J(probs);
//   J.solve_shifted(1e-3, b, x);        // (J + 0.001 I) x = b, in two passes over the row
//
// J is symmetric, positive semidefinite, and its rows sum to zero. One vector more than diag(p): so that solves, factors
// and eigenvalues have closed forms, and all of them are written here without cancellation: p within 1e-18 of one-hot,
// zeros and subnormals among the probabilities, and sums other than 1 are rows like any other.
//
// w = sqrt(p), D = diag(p), m an index of the largest p; u = 2^-24 (float), 2^-53 (double) in the error bounds. Norms are
// maximum norms. long double and other scalars: the same formulas in their arithmetic; no figure promised.
#pragma once

#include <concepts>    // same_as
#include <cstddef>     // size_t
#include <span>        // span
#include <type_traits> // is_constant_evaluated

#include <smx/detail/check.hpp>
#include <smx/detail/dispatch.hpp>
#include <smx/detail/target.hpp>
#include <smx/row.hpp>

namespace smx {

// viewable_row: a readable_row that outlives the expression it stands in: an lvalue or a view, no temporary vector.
template <class R>
concept viewable_row = readable_row<R> && (std::is_lvalue_reference_v<R> || std::ranges::borrowed_range<R> ||
                                           detail::eigen_view<std::remove_cvref_t<R>>);

namespace detail {

// its scalar, if R can be viewed: Clang looks at what a deduction guide gives before it looks at the constraint
template <class R>
struct viewed {};
template <viewable_row R>
struct viewed<R> {
    using scalar = scalar_of<R>;
};

// An output apart from the viewed probs. Addresses cannot be compared in a constant expression, but for equality.
template <class T>
SMX_INLINE constexpr void check_output(const char* function, const argument<T>& out, const argument<const T>& probs)
{
    check_same_size(function, out.name, out.size, probs.name, probs.size);
    if (!std::is_constant_evaluated())
        check_apart(function, out, probs);
    else if (out.size != 0 && out.data == probs.data)
        refuse_touch(function, out.name, out.size, probs.name, probs.size);
}

// the arguments of a member with an input and an output, checked
template <class T>
SMX_INLINE constexpr void check_product(const char* function, const argument<const T>& in, const argument<T>& out,
                                        const argument<const T>& probs)
{
    check_same_size(function, in.name, in.size, probs.name, probs.size);
    check_output(function, out, probs);
    if (!std::is_constant_evaluated())
        check_overlap(function, out, in);
}

} // namespace detail

// jacobian_view: a view of probs, which must outlive it and not change; made in one pass over them: s, m, s - p_m.
//
// Shapes   probs [n]; vectors [n]; J.size() is n. n = 0 and n = 1 are valid: J is then 0.
// Special  p_i = 0: row and column i of J are 0, and no finite or infinite entry i of a vector is looked at but by
//          solve_shifted, whose x_i is b_i / shift there. A NaN among probs reaches every number and eigenvalue, and every
//          entry of a vector where p_i > 0; of tails and pivots those before it.
// Throws   std::invalid_argument, before anything is written: sizes differ, an output overlaps probs, an output partly
//          overlaps an input (it may be the input, but for congruence), two outputs overlap, i or j not below n, shift
//          not in (0, inf)
template <scalar T>
class jacobian_view {
public:
    template <viewable_row Probs>
        requires std::same_as<scalar_of<Probs>, T>
    explicit SMX_INLINE constexpr jacobian_view(Probs&& probs)
        : jacobian_view(detail::data_of(probs), detail::size_of(probs))
    {
    }

    [[nodiscard]] SMX_INLINE constexpr std::size_t size() const noexcept { return n_; }

    // J_ij = -p_i p_j (i != j), p_i sum_{j != i} p_j (i = j): the bits of softmax_jacobian
    //
    // Error    off the diagonal <= 1 ULP, diagonal <= 2 ULP  [tests/jacobian_view.test.cpp: "entries"]
    // Cost     O(1)
    [[nodiscard]] SMX_INLINE constexpr T operator()(std::size_t i, std::size_t j) const
    {
        if (i >= n_)
            detail::refuse_index("jacobian_view::operator()", "i", i, "probs", n_);
        if (j >= n_)
            detail::refuse_index("jacobian_view::operator()", "j", j, "probs", n_);
        T result = T(0);
        if (std::is_constant_evaluated())
            detail::generic::row_jacobian_entry<one_lane>(p_, totals_, i, j, &result);
        else
            detail::fastest<T>([](auto rows) { return rows.jacobian_entry; })(p_, totals_, i, j, &result);
        return detail::laundered(result);
    }

    // diagonal: out_i = J_ii
    //
    // Error    <= 2 ULP  [tests/jacobian_view.test.cpp: "entries"]
    template <writable_row Out>
        requires std::same_as<scalar_of<Out>, T>
    SMX_INLINE constexpr void diagonal(Out&& out) const
    {
        const auto o = output_of("out", out);
        detail::check_output("jacobian_view::diagonal", o, probs());
        if (std::is_constant_evaluated())
            detail::generic::row_jacobian_diagonal<one_lane>(p_, n_, totals_, o.data);
        else
            detail::fastest<T>([](auto rows) { return rows.jacobian_diagonal; })(p_, n_, totals_, o.data);
    }

    // trace: sum_i J_ii = (s - p_m) (s + p_m) - sum_{j != m} p_j^2: the sum of the eigenvalues
    //
    // Error    <= 8 ULP, adversarial rows 16  [tests/jacobian_view.test.cpp: "trace"]
    [[nodiscard]] SMX_INLINE constexpr T trace() const
    {
        T result = T(0);
        if (std::is_constant_evaluated())
            detail::generic::row_trace<one_lane>(p_, n_, totals_, &result);
        else
            detail::fastest<T>([](auto rows) { return rows.trace; })(p_, n_, totals_, &result);
        return detail::laundered(result);
    }

    // frobenius_norm: (sum_ij J_ij^2)^1/2 = (s^2 sum p^2 - 2 s sum p^3 + (sum p^2)^2)^1/2, from sums without p_m
    //
    // Error    <= 8 ULP, adversarial rows 16  [tests/jacobian_view.test.cpp: "frobenius_norm"]
    [[nodiscard]] SMX_INLINE T frobenius_norm() const
    {
        T result = T(0);
        detail::fastest<T>([](auto rows) { return rows.frobenius_norm; })(p_, n_, totals_, &result);
        return detail::laundered(result);
    }

    // apply: J v; the kernel of softmax_jvp, the same bits
    //
    // Shapes   v [n], out [n]; out may be v
    // Error    <= 8 u p_i sum_{j != i} p_j (|v_i| + |v_j|), adversarial rows 12  [tests/accuracy.test.cpp: "softmax_jvp"]
    // Source   Gao & Pavel, On the properties of the softmax function (2017), arXiv 1704.00805, eq. (13)
    template <readable_row V, writable_row Out>
        requires same_scalar<std::span<const T>, V, Out> && same_extent<V, Out>
    SMX_INLINE constexpr void apply(const V& v, Out&& out) const
    {
        const auto in = input_of("v", v);
        const auto o = output_of("out", out);
        detail::check_product("jacobian_view::apply", in, o, probs());
        if (std::is_constant_evaluated())
            detail::generic::row_softmax_jvp<one_lane>(p_, in.data, o.data, n_);
        else
            detail::fastest<T>([](auto rows) { return rows.softmax_jvp; })(p_, in.data, o.data, n_);
    }

    // solve_shifted: (J + shift I) x = b: x_i = (b_i + p_i k) / d_i, d = s p + shift, k = s <p, b / d> / (shift sum(p / d))
    //
    // Shapes   b [n], x [n]; x may be b
    // Error    |b - (J + shift I) x| <= 8 u (|J + shift I| |x| + |b|), adversarial rows 16
    //          [tests/jacobian_view.test.cpp: "solve_shifted"]
    // Cost     two reads of probs and b, a write of x, two divisions an element
    // Source   Sherman & Morrison (1950), with 1 - sum p^2 / d = shift sum(p / d) / s
    template <readable_row B, writable_row X>
        requires same_scalar<std::span<const T>, B, X> && same_extent<B, X>
    SMX_INLINE constexpr void solve_shifted(const T& shift, const B& b, X&& x) const
    {
        const auto in = input_of("b", b);
        const auto o = output_of("x", x);
        detail::check_product("jacobian_view::solve_shifted", in, o, probs());
        detail::check_positive("jacobian_view::solve_shifted", "shift", &shift);
        if (std::is_constant_evaluated())
            detail::generic::row_solve_shifted<one_lane>(p_, in.data, o.data, n_, totals_, &shift);
        else
            detail::fastest<T>([](auto rows) { return rows.solve_shifted; })(p_, in.data, o.data, n_, totals_, &shift);
    }

    // pseudo_inverse: x = J^+ b = C D^-1 C b / s on the k entries of p > 0, C = I - 11^T / k; 0 elsewhere, and if k < 2
    //
    // Shapes   b [n], x [n]; x may be b
    // Error    <= 32 u max|b| / min p over p > 0, adversarial rows 64, while min p is above 1e-30 (float), 1e-290 (double)
    //          [tests/jacobian_view.test.cpp: "pseudo_inverse"]
    // Source   Tanabe & Sagae, An exact Cholesky decomposition and the generalized inverse of the variance-covariance matrix
    //          of the multinomial distribution (1992), J. R. Stat. Soc. B 54
    template <readable_row B, writable_row X>
        requires same_scalar<std::span<const T>, B, X> && same_extent<B, X>
    SMX_INLINE void pseudo_inverse(const B& b, X&& x) const
    {
        const auto in = input_of("b", b);
        const auto o = output_of("x", x);
        detail::check_product("jacobian_view::pseudo_inverse", in, o, probs());
        detail::fastest<T>([](auto rows) { return rows.pseudo_inverse; })(p_, in.data, o.data, n_, totals_);
    }

    // factor_apply: B z, B = sqrt(s) D^1/2 (I - w w^T / s), B B^T = J: z normal gives a sample of N(0, J)
    //
    // Shapes   z [n], out [n]; out may be z
    // Error    <= 16 u w_i (|z_i| + |z|), adversarial rows 32  [tests/jacobian_view.test.cpp: "factor_apply"]; for n > 1000
    //          |z| is the Euclidean norm: an entry of B z may be sqrt(n) times the maximum norm, and is rounded. For
    //          max|z| above 1e-30 (float), 1e-290 (double).
    // Source   I - w w^T / s is a projection, so that B B^T = s D^1/2 (I - w w^T / s) D^1/2 = s D - p p^T
    template <readable_row Z, writable_row Out>
        requires same_scalar<std::span<const T>, Z, Out> && same_extent<Z, Out>
    SMX_INLINE void factor_apply(const Z& z, Out&& out) const
    {
        const auto in = input_of("z", z);
        const auto o = output_of("out", out);
        detail::check_product("jacobian_view::factor_apply", in, o, probs());
        detail::fastest<T>([](auto rows) { return rows.factor_apply; })(p_, in.data, o.data, n_, totals_);
    }

    // factor_apply_transposed: B^T v = w o (s v - <p, v>) / sqrt(s)
    //
    // Shapes   v [n], out [n]; out may be v
    // Error    <= 16 u w_m (|v_i| + |v|), adversarial rows 32  [tests/jacobian_view.test.cpp: "factor_apply"];
    //          for max|v| as factor_apply
    template <readable_row V, writable_row Out>
        requires same_scalar<std::span<const T>, V, Out> && same_extent<V, Out>
    SMX_INLINE void factor_apply_transposed(const V& v, Out&& out) const
    {
        const auto in = input_of("v", v);
        const auto o = output_of("out", out);
        detail::check_product("jacobian_view::factor_apply_transposed", in, o, probs());
        detail::fastest<T>([](auto rows) { return rows.factor_apply_transposed; })(p_, in.data, o.data, n_);
    }

    // ldl: J = L diag(pivots) L^T: tails_j = sum_{k > j} p_k, pivots_i = s p_i tails_i / tails_{i-1}, tails_{-1} = s;
    //      L_ii = 1, L_ij = -p_i / tails_j for i > j, 0 where tails_j = 0
    //
    // Shapes   tails [n], pivots [n]
    // Special  trailing zeros among probs: tails and pivots are 0 there
    // Error    L diag(pivots) L^T against J: <= 16 u sum_k |L_ik| pivots_k |L_jk|, adversarial rows 32
    //          [tests/jacobian_view.test.cpp: "ldl"]
    // Cost     one loop from the end, two divisions an element
    // Source   Tanabe & Sagae (1992), theorem 1, with suffix sums in place of 1 - cumulative sums
    template <writable_row Tails, writable_row Pivots>
        requires same_scalar<std::span<const T>, Tails, Pivots> && same_extent<Tails, Pivots>
    SMX_INLINE void ldl(Tails&& tails, Pivots&& pivots) const
    {
        const char* const function = "jacobian_view::ldl";
        const auto t = output_of("tails", tails);
        const auto d = output_of("pivots", pivots);
        detail::check_output(function, t, probs());
        detail::check_output(function, d, probs());
        detail::check_apart(function, d, t);
        detail::generic::row_ldl<one_lane>(p_, n_, totals_, t.data, d.data);
    }

    // congruence: out = J Sigma J^T, out_ij = p_i p_j (s^2 Sigma_ij - s a_i - s a_j + <p, a>), a = Sigma p: the covariance of
    //             softmax(x) to first order where that of x is Sigma
    //
    // Shapes   sigma [n * n], symmetric, row-major; out [n * n], symmetric
    // Error    <= 64 u p_i p_j max|Sigma|, adversarial rows 128  [tests/jacobian_view.test.cpp: "congruence"]
    // Cost     O(n^2)
    // Throws   also if out overlaps sigma at all, or n * n overflows
    // Source   Train, Discrete Choice Methods with Simulation (2009), ch. 3.6: d P / d V twice; the delta method
    template <readable_row S, writable_row Out>
        requires same_scalar<std::span<const T>, S, Out> && same_extent<S, Out>
    SMX_INLINE void congruence(const S& sigma, Out&& out) const
    {
        const char* const function = "jacobian_view::congruence";
        const auto in = input_of("sigma", sigma);
        const auto o = output_of("out", out);
        detail::check_square(function, in.name, in.size, "probs", n_);
        detail::check_square(function, o.name, o.size, "probs", n_);
        detail::check_apart(function, o, probs());
        detail::check_apart(function, o, in);
        detail::fastest<T>([](auto rows) { return rows.congruence; })(p_, n_, in.data, o.data);
    }

    // log_pseudo_determinant: the log of the product of the non-zero eigenvalues: log k + (k - 2) log s + sum log p over the
    //                         k entries of p > 0; 0, the empty product, if k < 2
    //
    // Error    <= 8 u (sum |log p| + log n), adversarial rows 16
    //          [tests/jacobian_view.test.cpp: "log_pseudo_determinant"]
    // Source   Watson, Spectral decomposition of the covariance matrix of a multinomial (1996), J. R. Stat. Soc. B 58
    [[nodiscard]] SMX_INLINE T log_pseudo_determinant() const
    {
        T result = T(0);
        detail::generic::row_log_pseudo_determinant<one_lane>(p_, n_, totals_, &result);
        return detail::laundered(result);
    }

    // largest_eigenvalue: the root of sum_i p_i / (s p_i - mu) = 0 between the two largest s p
    //
    // Error    <= 4 ULP, adversarial rows 8  [tests/jacobian_view.test.cpp: "largest_eigenvalue"]
    // Cost     O(n) a step, some 5 steps, at most 60
    // Source   as eigenvalues
    [[nodiscard]] SMX_INLINE T largest_eigenvalue() const
    {
        T result = T(0);
        detail::generic::row_largest_eigenvalue<one_lane>(p_, n_, totals_, &result);
        return detail::laundered(result);
    }

    // eigenvalues: ascending: 0, then the roots of sum_i p_i / (s p_i - mu) = 0, one in each closed interval between
    //              neighbouring s p; a tie gives s p itself
    //
    // Shapes   out [n]
    // Error    <= 8 u times the largest, adversarial rows 16  [tests/jacobian_view.test.cpp: "eigenvalues"]
    // Cost     O(n^2): some 5 steps a root, at most 60, each n divisions; works inside out
    // Source   Golub, Some modified matrix eigenvalue problems (1973), SIAM Rev. 15, eq. (5.3); the step: Li, Solving secular
    //          equations stably and efficiently (1993), LAPACK working note 89, the middle way
    template <writable_row Out>
        requires std::same_as<scalar_of<Out>, T>
    SMX_INLINE void eigenvalues(Out&& out) const
    {
        const auto o = output_of("out", out);
        detail::check_output("jacobian_view::eigenvalues", o, probs());
        detail::generic::row_eigenvalues<one_lane>(p_, n_, totals_, o.data);
    }

private:
    using one_lane = detail::generic::lane<T>;

    SMX_INLINE constexpr jacobian_view(const T* probs, std::size_t n) : p_(probs), n_(n), totals_(totals_of(probs, n))
    {
    }

    static SMX_INLINE constexpr detail::row_totals<T> totals_of(const T* probs, std::size_t n)
    {
        if (std::is_constant_evaluated())
            return detail::generic::totals_of<one_lane>(probs, n);
        return detail::fastest<T>([](auto rows) { return rows.totals; })(probs, n);
    }

    SMX_INLINE constexpr detail::argument<const T> probs() const { return {"probs", p_, n_}; }

    template <class Row>
    static SMX_INLINE constexpr detail::argument<const T> input_of(const char* name, const Row& row)
    {
        return {name, detail::data_of(row), detail::size_of(row)};
    }
    template <class Row>
    static SMX_INLINE constexpr detail::argument<T> output_of(const char* name, Row& row)
    {
        return {name, detail::data_of(row), detail::size_of(row)};
    }

    const T* p_;
    std::size_t n_;
    detail::row_totals<T> totals_;
};

template <viewable_row Probs>
jacobian_view(Probs&& probs) -> jacobian_view<typename detail::viewed<Probs>::scalar>;

} // namespace smx
