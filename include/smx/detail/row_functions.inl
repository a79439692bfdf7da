// SPDX-License-Identifier: BSL-1.0
// row_functions.inl: the names of the row functions of one leaf, for dispatch.hpp.
//
// Not a header: each isa_*.hpp includes this text after the kernels, in its own namespace and target region.

template <class V>
struct row_functions { // each is compiled when it is named: so no auto
    static constexpr decltype(&row_softmax<V>) softmax = row_softmax<V>;
    static constexpr decltype(&row_log_softmax<V>) log_softmax = row_log_softmax<V>;
    static constexpr decltype(&row_logsumexp<V>) logsumexp = row_logsumexp<V>;
    static constexpr decltype(&row_softmax_jacobian<V>) softmax_jacobian = row_softmax_jacobian<V>;
    static constexpr decltype(&row_log_softmax_jacobian<V>) log_softmax_jacobian = row_log_softmax_jacobian<V>;
    static constexpr decltype(&row_softmax_jvp<V>) softmax_jvp = row_softmax_jvp<V>;
    static constexpr decltype(&row_log_softmax_jvp<V>) log_softmax_jvp = row_log_softmax_jvp<V>;
    static constexpr decltype(&row_log_softmax_vjp<V>) log_softmax_vjp = row_log_softmax_vjp<V>;
    static constexpr decltype(&row_softmax_hvp<V>) softmax_hvp = row_softmax_hvp<V>;
    static constexpr decltype(&matrix_of_products<V, row_log_softmax_jvp<V>>) log_softmax_jvp_matrix =
        matrix_of_products<V, row_log_softmax_jvp<V>>;
    static constexpr decltype(&matrix_of_products<V, row_log_softmax_vjp<V>>) log_softmax_vjp_matrix =
        matrix_of_products<V, row_log_softmax_vjp<V>>;
    static constexpr decltype(&matrix_softmax<V>) softmax_matrix = matrix_softmax<V>;
    static constexpr decltype(&matrix_log_softmax<V>) log_softmax_matrix = matrix_log_softmax<V>;
    static constexpr decltype(&matrix_logsumexp<V>) logsumexp_matrix = matrix_logsumexp<V>;
    static constexpr decltype(&matrix_softmax_jvp<V>) softmax_jvp_matrix = matrix_softmax_jvp<V>;
    static constexpr decltype(&segments_softmax<V>) softmax_segments = segments_softmax<V>;
    static constexpr decltype(&columns_softmax<V>) softmax_columns = columns_softmax<V>;
    static constexpr decltype(&row_cross_entropy<V>) cross_entropy = row_cross_entropy<V>;
    static constexpr decltype(&row_cross_entropy_gradient<V>) cross_entropy_gradient = row_cross_entropy_gradient<V>;
    static constexpr decltype(&row_cross_entropy_target<V>) cross_entropy_target = row_cross_entropy_target<V>;
    static constexpr decltype(&row_cross_entropy_target_gradient<V>) cross_entropy_target_gradient =
        row_cross_entropy_target_gradient<V>;
    static constexpr decltype(&row_entropy<V>) entropy = row_entropy<V>;
    static constexpr decltype(&row_entropy_gradient<V>) entropy_gradient = row_entropy_gradient<V>;
    static constexpr decltype(&row_kl_divergence<typename V::precise>) kl_divergence =
        row_kl_divergence<typename V::precise>;
    static constexpr decltype(&totals_of<V>) totals = totals_of<V>;
    static constexpr decltype(&row_jacobian_entry<V>) jacobian_entry = row_jacobian_entry<V>;
    static constexpr decltype(&row_jacobian_diagonal<V>) jacobian_diagonal = row_jacobian_diagonal<V>;
    static constexpr decltype(&row_trace<V>) trace = row_trace<V>;
    static constexpr decltype(&row_frobenius_norm<V>) frobenius_norm = row_frobenius_norm<V>;
    static constexpr decltype(&row_solve_shifted<V>) solve_shifted = row_solve_shifted<V>;
    static constexpr decltype(&row_pseudo_inverse<V>) pseudo_inverse = row_pseudo_inverse<V>;
    static constexpr decltype(&row_factor_apply<V>) factor_apply = row_factor_apply<V>;
    static constexpr decltype(&row_factor_apply_transposed<V>) factor_apply_transposed = row_factor_apply_transposed<V>;
    static constexpr decltype(&row_congruence<V>) congruence = row_congruence<V>;
};

template <class V>
constexpr row_table<typename V::scalar> table = {
    V::name,
    row_softmax<V>,
    row_log_softmax<V>,
    row_logsumexp<V>,
    row_softmax_jacobian<V>,
    row_log_softmax_jacobian<V>,
    row_softmax_jvp<V>,
    row_log_softmax_jvp<V>,
    row_log_softmax_vjp<V>,
    row_softmax_hvp<V>,
};
