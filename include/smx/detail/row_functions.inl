// SPDX-License-Identifier: BSL-1.0
// row_functions.inl: the names of the row functions of one leaf, for dispatch.hpp.
//
// Not a header: each isa_*.hpp includes this text after the kernels, in its own namespace and target region.

template <class V>
struct row_functions { // each is compiled when it is named
    static constexpr auto softmax = row_softmax<V>;
    static constexpr auto log_softmax = row_log_softmax<V>;
    static constexpr auto logsumexp = row_logsumexp<V>;
    static constexpr auto softmax_jacobian = row_softmax_jacobian<V>;
    static constexpr auto log_softmax_jacobian = row_log_softmax_jacobian<V>;
    static constexpr auto softmax_jvp = row_softmax_jvp<V>;
    static constexpr auto log_softmax_jvp = row_log_softmax_jvp<V>;
    static constexpr auto log_softmax_vjp = row_log_softmax_vjp<V>;
    static constexpr auto softmax_hvp = row_softmax_hvp<V>;
    static constexpr auto softmax_slices = slices_softmax<V>;
    static constexpr auto log_softmax_slices = slices_log_softmax<V>;
    static constexpr auto logsumexp_slices = slices_logsumexp<V>;
    static constexpr auto softmax_jvp_slices = slices_softmax_jvp<V>;
    static constexpr auto log_softmax_jvp_slices = slices_log_softmax_jvp<V>;
    static constexpr auto log_softmax_vjp_slices = slices_log_softmax_vjp<V>;
    static constexpr auto softmax_columns = columns_softmax<V>;
    static constexpr auto cross_entropy = row_cross_entropy<V>;
    static constexpr auto cross_entropy_gradient = row_cross_entropy_gradient<V>;
    static constexpr auto cross_entropy_target = row_cross_entropy_target<V>;
    static constexpr auto cross_entropy_target_gradient = row_cross_entropy_target_gradient<V>;
    static constexpr auto entropy = row_entropy<V>;
    static constexpr auto entropy_gradient = row_entropy_gradient<V>;
    static constexpr auto kl_divergence = row_kl_divergence<typename V::precise>;
    static constexpr auto totals = totals_of<V>;
    static constexpr auto jacobian_entry = row_jacobian_entry<V>;
    static constexpr auto jacobian_diagonal = row_jacobian_diagonal<V>;
    static constexpr auto trace = row_trace<V>;
    static constexpr auto frobenius_norm = row_frobenius_norm<V>;
    static constexpr auto solve_shifted = row_solve_shifted<V>;
    static constexpr auto pseudo_inverse = row_pseudo_inverse<V>;
    static constexpr auto factor_apply = row_factor_apply<V>;
    static constexpr auto factor_apply_transposed = row_factor_apply_transposed<V>;
    static constexpr auto congruence = row_congruence<V>;
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
