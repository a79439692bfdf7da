// SPDX-License-Identifier: BSL-1.0
// operator_kernels.inl: solves, factors and the spectrum of J, written once for a vector type V.
//
//   probs --totals_of--> s, s - max, argmax      kept by a jacobian_view; all else is made of these and of probs
//
// with r = s - p_m the sum without one largest entry m, poles s p_i, and w = sqrt(p).
// Not a header: each isa_*.hpp includes this text after jacobian_kernels.inl, under the same rules.

// ---- entries and sums -----------------------------------------------------------------------------------------------

template <class V>
constexpr row_totals<typename V::scalar> totals_of(const typename V::scalar* p, std::size_t n)
{
    const typename V::wide sum = sum_of<V>(p, n);
    if (n == 0)
        return {sum, sum, 0};
    const typename V::vec max = row_max<V>(p, n, every_entry<V>{}, V::zero());
    const std::size_t m = index_of<V>(p, n, max);
    if (V::outweighs(max, sum))
        return {sum, V::total(sum_of<V>(p, m), sum_of<V>(p + m + 1, n - m - 1)), m};
    return {sum, V::total_without(sum, p + m), m};
}

// p_i sum_{j != i} p_j, with the bits of row_softmax_jacobian
template <class V>
SMX_INLINE constexpr typename V::vec diagonal_entry(const typename V::scalar* p,
                                                    const row_totals<typename V::scalar>& totals, std::size_t i)
{
    return V::product(V::broadcast(p + i), i == totals.largest ? totals.rest : V::total_without(totals.sum, p + i));
}

template <class V>
constexpr void row_jacobian_entry(const typename V::scalar* p, const row_totals<typename V::scalar>& totals,
                                  std::size_t i, std::size_t j, typename V::scalar* out)
{
    V::store_first(out,
                   i == j ? diagonal_entry<V>(p, totals, i) : V::zero() - V::broadcast(p + i) * V::broadcast(p + j));
}

template <class V>
constexpr void row_jacobian_diagonal(const typename V::scalar* p, std::size_t n,
                                     const row_totals<typename V::scalar>& totals, typename V::scalar* out)
{
    for (std::size_t i = 0; i < n; ++i)
        V::store_first(out + i, diagonal_entry<V>(p, totals, i));
}

// sum of q^2 and of q^2 p, q = p unit
template <class V>
struct power_sums_pass : each_step<V, power_sums_pass<V>> {
    const typename V::scalar* p;
    typename V::vec unit;
    typename V::sum squares, cubes;

    SMX_INLINE constexpr power_sums_pass(const typename V::scalar* p_, const typename V::vec& unit_)
        : p(p_), unit(unit_), squares(), cubes()
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec prob = V::load(p + i, inside, V::zero());
        const typename V::vec square = prob * unit * (prob * unit);
        squares.add(square);
        cubes.add(square * prob);
    }
};

// these sums over all entries but one
template <class V>
struct power_sums {
    typename V::wide squares, cubes;

    constexpr power_sums(const typename V::scalar* p, std::size_t n, std::size_t m, const typename V::vec& unit)
        : squares(typename V::sum().total()), cubes(squares)
    {
        power_sums_pass<V> before(p, unit), behind(p + m + 1, unit);
        walk<V, true>(m, before);
        walk<V, true>(n - m - 1, behind);
        squares = V::total(before.squares.total(), behind.squares.total());
        cubes = V::total(before.cubes.total(), behind.cubes.total());
    }
};

// sum_i p_i (s - p_i) = r (p_m + s) - sum_{j != m} p_j^2: the subtrahend is at most a third
template <class V>
constexpr void row_trace(const typename V::scalar* p, std::size_t n, const row_totals<typename V::scalar>& totals,
                         typename V::scalar* out)
{
    if (n == 0)
        return V::store_first(out, V::zero());
    const power_sums<V> others(p, n, totals.largest, V::one());
    const typename V::wide largest = V::widen(V::broadcast(p + totals.largest));
    V::store_first(out, V::narrow(totals.rest * (largest + totals.sum) - others.squares));
}

// sum_ij J_ij^2 = p_m^2 r^2 + (s^2 + Q + 2 p_m^2) Q - 2 s T, Q and T the sums of p_j^2 and p_j^3 over j != m; with r, Q and T
// in units of about r, so that no square that counts is subnormal
template <class V>
constexpr void row_frobenius_norm(const typename V::scalar* p, std::size_t n,
                                  const row_totals<typename V::scalar>& totals, typename V::scalar* out)
{
    if (n == 0)
        return V::store_first(out, V::zero());
    const typename V::vec unit = V::lift(totals.rest), inverse = V::one() / unit;
    const power_sums<V> others(p, n, totals.largest, unit);
    const typename V::wide s = totals.sum, largest = V::widen(V::broadcast(p + totals.largest));
    const typename V::wide winner = largest * (totals.rest * V::widen(unit)), below = V::widen(inverse);
    const typename V::wide factor = s * s + others.squares * below * below + (largest * largest + largest * largest);
    const typename V::wide sum = winner * winner + factor * others.squares - s * (others.cubes + others.cubes);
    V::store_first(out, V::root(V::narrow(sum)) * inverse);
}

// ---- solves ---------------------------------------------------------------------------------------------------------

// d_i = s p_i + shift; b times unit, so that no product that counts is subnormal
template <class V>
struct shifted_row {
    const typename V::scalar* p;
    const typename V::scalar* b;
    typename V::wide s, minus_shift;
    typename V::vec unit, inverse_unit;

    template <class Inside>
    SMX_INLINE constexpr typename V::vec prob(std::size_t i, Inside inside) const
    {
        return V::load(p + i, inside, V::zero());
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec right_side(std::size_t i, Inside inside) const
    {
        return V::load(b + i, inside, V::zero()) * unit;
    }
    SMX_INLINE constexpr typename V::vec diagonal(const typename V::vec& prob) const
    {
        return V::scaled_minus(s, prob, minus_shift);
    }
};

// the sums of p_i / d_i and of p_i b_i / d_i
template <class V>
struct shifted_sums_pass : each_step<V, shifted_sums_pass<V>> {
    shifted_row<V> row;
    typename V::sum mass, dot;

    explicit SMX_INLINE constexpr shifted_sums_pass(const shifted_row<V>& row_) : row(row_), mass(), dot() {}
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec prob = row.prob(i, inside), share = prob / row.diagonal(prob);
        mass.add(share);
        dot.add(V::where_nonzero(prob, share * row.right_side(i, inside)));
    }
};

// x_i = (b_i + k p_i) / d_i
template <class V>
struct shifted_quotient_pass : each_step<V, shifted_quotient_pass<V>> {
    shifted_row<V> row;
    typename V::scalar* x;
    typename V::vec k;

    SMX_INLINE constexpr shifted_quotient_pass(const shifted_row<V>& row_, typename V::scalar* x_,
                                               const typename V::vec& k_)
        : row(row_), x(x_), k(k_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        const typename V::vec prob = row.prob(i, inside);
        const typename V::vec numerator = row.right_side(i, inside) + V::where_nonzero(prob, k * prob);
        V::store(x + i, inside, numerator / row.diagonal(prob) * row.inverse_unit);
    }
};

// max |b_i|
template <class V>
struct magnitude_pass : each_step<V, magnitude_pass<V>> {
    const typename V::scalar* b;
    typename V::vec best;

    explicit SMX_INLINE constexpr magnitude_pass(const typename V::scalar* b_) : b(b_), best(V::zero()) {}
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        best = V::max(best, V::abs(V::load(b + i, inside, V::zero())));
    }
};

template <class V>
constexpr bool is_tiny_row(const typename V::scalar* b, std::size_t n)
{
    magnitude_pass<V> pass(b);
    walk<V, true>(n, pass);
    return V::is_tiny(V::reduce_max(pass.best));
}

template <class V, bool rare>
SMX_INLINE constexpr shifted_sums_pass<V> shifted_sums(const shifted_row<V>& row, std::size_t n)
{
    shifted_sums_pass<V> sums(row);
    walk<V, rare>(n, sums);
    return sums;
}

template <class V>
constexpr shifted_sums_pass<V> scaled_shifted_sums(shifted_row<V> row, std::size_t n)
{
    row.unit = V::up();
    row.inverse_unit = V::down();
    return shifted_sums<V, true>(row, n);
}

// (J + shift I) x = b: d_i x_i = b_i + p_i k with k = <p, x> = s <p, b / d> / (shift sum(p / d)): the denominator of Sherman
// and Morrison, 1 - sum p^2 / d, without its cancellation
template <class V>
constexpr void row_solve_shifted(const typename V::scalar* p, const typename V::scalar* b, typename V::scalar* x,
                                 std::size_t n, const row_totals<typename V::scalar>& totals,
                                 const typename V::scalar* shift)
{
    const typename V::wide minus_shift = V::widen(V::zero() - V::broadcast(shift));
    shifted_sums_pass<V> sums =
        shifted_sums<V, false>(shifted_row<V>{p, b, totals.sum, minus_shift, V::one(), V::one()}, n);
    if (V::is_tiny(V::narrow(sums.dot.total())) && is_tiny_row<V>(b, n))
        sums = scaled_shifted_sums<V>(sums.row, n);
    const typename V::wide mass = sums.mass.total();
    const typename V::wide divisor = V::is_zero(mass) ? V::wide_count(1) : mass;
    const typename V::vec mean = V::product(V::narrow(V::quotient(sums.dot.total(), divisor)), totals.sum);
    shifted_quotient_pass<V> quotients(sums.row, x, mean / V::broadcast(shift));
    walk<V>(n, quotients);
}

// the sum of b over p > 0, and the number of p = 0
template <class V>
struct support_pass : each_step<V, support_pass<V>> {
    const typename V::scalar* p;
    const typename V::scalar* b;
    typename V::sum sum;
    std::size_t zeros;

    SMX_INLINE constexpr support_pass(const typename V::scalar* p_, const typename V::scalar* b_)
        : p(p_), b(b_), sum(), zeros(0)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec prob = V::load(p + i, inside, V::zero());
        sum.add(V::where_nonzero(prob, V::load(b + i, inside, V::zero())));
        zeros += V::count(V::equals(inside, prob, V::zero()));
    }
};

// x_i = (b_i - mean) / (s p_i), 0 where p_i = 0; their sum
template <class V>
struct support_quotient_pass : each_step<V, support_quotient_pass<V>> {
    const typename V::scalar* p;
    const typename V::scalar* b;
    typename V::scalar* x;
    typename V::wide mean;
    typename V::vec s;
    typename V::sum sum;

    SMX_INLINE constexpr support_quotient_pass(const typename V::scalar* p_, const typename V::scalar* b_,
                                               typename V::scalar* x_, const typename V::wide& mean_,
                                               const typename V::vec& s_)
        : p(p_), b(b_), x(x_), mean(mean_), s(s_), sum()
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec prob = V::load(p + i, inside, V::zero());
        const typename V::vec divisor = V::select(V::equals(V::every(), prob, V::zero()), V::one(), s * prob);
        const typename V::vec centred = V::less(V::load(b + i, inside, V::zero()), mean);
        const typename V::vec quotient = V::where_nonzero(prob, centred / divisor);
        V::store(x + i, inside, quotient);
        sum.add(quotient);
    }
};

// x_i -= mean, 0 where p_i = 0
template <class V>
struct support_centre_pass : each_step<V, support_centre_pass<V>> {
    const typename V::scalar* p;
    typename V::scalar* x;
    typename V::wide mean;

    SMX_INLINE constexpr support_centre_pass(const typename V::scalar* p_, typename V::scalar* x_,
                                             const typename V::wide& mean_)
        : p(p_), x(x_), mean(mean_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        const typename V::vec prob = V::load(p + i, inside, V::zero());
        V::store(x + i, inside, V::where_nonzero(prob, V::less(V::load(x + i, inside, V::zero()), mean)));
    }
};

// J^+ b = C D^-1 C b / s, C = I - 11^T / k, on the k entries of p > 0
template <class V>
constexpr void row_pseudo_inverse(const typename V::scalar* p, const typename V::scalar* b, typename V::scalar* x,
                                  std::size_t n, const row_totals<typename V::scalar>& totals)
{
    support_pass<V> support(p, b);
    walk<V, true>(n, support);
    if (n - support.zeros < 2)
        return fill_row<V>(x, n, every_entry<V>{}, V::zero(), V::zero());
    const typename V::wide k = V::wide_count(n - support.zeros);
    support_quotient_pass<V> quotients(p, b, x, V::quotient(support.sum.total(), k), V::narrow(totals.sum));
    walk<V, true>(n, quotients);
    support_centre_pass<V> centred(p, x, V::quotient(quotients.sum.total(), k));
    walk<V, true>(n, centred);
}

// ---- factors --------------------------------------------------------------------------------------------------------

// sum of w_i z_i
template <class V>
struct root_dot_pass : each_step<V, root_dot_pass<V>> {
    const typename V::scalar* p;
    const typename V::scalar* z;
    typename V::sum sum;

    SMX_INLINE constexpr root_dot_pass(const typename V::scalar* p_, const typename V::scalar* z_) : p(p_), z(z_), sum()
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec prob = V::load(p + i, inside, V::zero());
        sum.add(V::where_nonzero(prob, V::root(prob) * V::load(z + i, inside, V::zero())));
    }
};

template <class V>
constexpr typename V::wide root_dot(const typename V::scalar* p, const typename V::scalar* z, std::size_t n)
{
    root_dot_pass<V> pass(p, z);
    walk<V, true>(n, pass);
    return pass.sum.total();
}

// out_i = w_i (s z_i - w_i dot) / sqrt(s)
template <class V>
struct factor_pass : each_step<V, factor_pass<V>> {
    const typename V::scalar* p;
    const typename V::scalar* z;
    typename V::scalar* out;
    typename V::vec s, dot, root_s;

    SMX_INLINE constexpr factor_pass(const typename V::scalar* p_, const typename V::scalar* z_,
                                     typename V::scalar* out_, const typename V::vec& s_, const typename V::vec& dot_,
                                     const typename V::vec& root_s_)
        : p(p_), z(z_), out(out_), s(s_), dot(dot_), root_s(root_s_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        const typename V::vec prob = V::load(p + i, inside, V::zero()), w = V::root(prob);
        const typename V::vec centred = s * V::load(z + i, inside, V::zero()) - w * dot;
        V::store(out + i, inside, V::where_nonzero(prob, w * centred / root_s));
    }
};

// B z, B = sqrt(s) D^1/2 (I - w w^T / s). The entry m is w_m (r z_m - w_m sum_{j != m} w_j z_j) / sqrt(s), exact where p_m
// outweighs the others.
template <class V>
constexpr void row_factor_apply(const typename V::scalar* p, const typename V::scalar* z, typename V::scalar* out,
                                std::size_t n, const row_totals<typename V::scalar>& totals)
{
    const typename V::vec s = V::narrow(totals.sum), root_s = V::root(s);
    if (n == 0 || V::is_zero(totals.sum))
        return fill_row<V>(out, n, every_entry<V>{}, V::zero(), V::zero());
    const std::size_t m = totals.largest;
    const typename V::vec w = V::root(V::broadcast(p + m)), z_m = V::broadcast(z + m);
    const typename V::wide rest = V::total(root_dot<V>(p, z, m), root_dot<V>(p + m + 1, z + m + 1, n - m - 1));
    const typename V::vec dot = V::narrow(V::total(rest, V::widen(w * z_m)));
    factor_pass<V> pass(p, z, out, s, dot, root_s);
    walk<V, true>(n, pass);
    V::store_first(out + m, w * (V::narrow(totals.rest) * z_m - w * V::narrow(rest)) / root_s);
}

// out_i = w_i (s v_i - dot) / sqrt(s)
template <class V>
struct transposed_factor_pass : each_step<V, transposed_factor_pass<V>> {
    const typename V::scalar* p;
    typename V::scalar* out;
    centred_tangent<V, tangent_row<V>> row;
    typename V::vec root_s;

    SMX_INLINE constexpr transposed_factor_pass(const typename V::scalar* p_, typename V::scalar* out_,
                                                const centred_tangent<V, tangent_row<V>>& row_,
                                                const typename V::vec& root_s_)
        : p(p_), out(out_), row(row_), root_s(root_s_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        const typename V::vec prob = V::load(p + i, inside, V::zero());
        const typename V::vec centred = V::scaled_minus(row.mass.sum, row.tangent.at(i, inside), row.dot);
        V::store(out + i, inside, V::where_nonzero(prob, V::root(prob) * centred / root_s));
    }
};

// B^T v = w o (s v - <p, v>) / sqrt(s)
template <class V>
constexpr void row_factor_apply_transposed(const typename V::scalar* p, const typename V::scalar* v,
                                           typename V::scalar* out, std::size_t n)
{
    const centred_tangent<V, tangent_row<V>> row = centre<V, false>(p, v, n);
    if (V::is_zero(row.mass.sum))
        return fill_row<V>(out, n, every_entry<V>{}, V::zero(), V::zero());
    transposed_factor_pass<V> pass(p, out, row, V::root(V::narrow(row.mass.sum)));
    walk<V, true>(n, pass);
}

// J = L diag(pivots) L^T: tails_j = sum_{k > j} p_k, pivots_i = s p_i tails_i / tails_{i-1}, tails_{-1} = s; 0 where there is
// nothing left. A loop from the end: V has one lane.
template <class V>
constexpr void row_ldl(const typename V::scalar* p, std::size_t n, const row_totals<typename V::scalar>& totals,
                       typename V::scalar* tails, typename V::scalar* pivots)
{
    const typename V::vec s = V::narrow(totals.sum);
    typename V::wide tail = typename V::sum().total();
    for (std::size_t i = n; i-- > 0;) {
        const typename V::vec prob = V::broadcast(p + i), behind = V::narrow(tail);
        V::store_first(tails + i, behind);
        tail = tail + prob;
        const typename V::vec from = V::is_zero(tail) ? V::one() : V::narrow(tail);
        // the larger of p_i and tails_i is at least half of their sum: only the last product may be subnormal
        const typename V::vec larger = V::max(prob, behind), smaller = prob < behind ? prob : behind;
        V::store_first(pivots + i, s * (larger / from) * smaller);
    }
}

// ---- J Sigma J ------------------------------------------------------------------------------------------------------

// row_j *= factor p_j, the larger of the two first: only the last product may be subnormal
template <class V>
struct weigh_pass : each_step<V, weigh_pass<V>> {
    const typename V::scalar* p;
    typename V::scalar* row;
    typename V::vec factor;

    SMX_INLINE constexpr weigh_pass(const typename V::scalar* p_, typename V::scalar* row_,
                                    const typename V::vec& factor_)
        : p(p_), row(row_), factor(factor_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t j, Inside inside) const
    {
        const typename V::vec prob = V::load(p + j, inside, V::zero()), larger = V::max(prob, factor);
        const typename V::vec smaller = V::select(V::equals(V::every(), larger, prob), factor, prob);
        const typename V::vec weighed = V::load(row + j, inside, V::zero()) * larger * smaller;
        V::store(row + j, inside, V::where_nonzero(prob, V::where_nonzero(factor, weighed)));
    }
};

template <class V>
constexpr void transpose(typename V::scalar* matrix, std::size_t n)
{
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < i; ++j) {
            const typename V::scalar a = matrix[i * n + j];
            matrix[i * n + j] = matrix[j * n + i];
            matrix[j * n + i] = a;
        }
}

// out_ij = p_i p_j (s^2 Sigma_ij - s a_i - s a_j + <p, a>), a = Sigma p, by two centrings: E = s Sigma - a 1^T, and the same of
// E^T. The upper triangle is copied to the lower one.
template <class V>
constexpr void row_congruence(const typename V::scalar* p, std::size_t n, const typename V::scalar* sigma,
                              typename V::scalar* out)
{
    for (std::size_t i = 0; i < n; ++i)
        row_log_softmax_jvp<V>(p, sigma + i * n, out + i * n, n);
    transpose<V>(out, n);
    for (std::size_t i = 0; i < n; ++i) {
        row_log_softmax_jvp<V>(p, out + i * n, out + i * n, n);
        weigh_pass<V> pass(p, out + i * n, V::broadcast(p + i));
        walk<V, true>(n, pass);
    }
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < i; ++j)
            out[i * n + j] = out[j * n + i];
}

// ---- the spectrum; V has one lane -----------------------------------------------------------------------------------

// log k + (k - 2) log s + sum log p over the k entries of p > 0; 0 if k < 2
template <class V>
constexpr void row_log_pseudo_determinant(const typename V::scalar* p, std::size_t n,
                                          const row_totals<typename V::scalar>& totals, typename V::scalar* out)
{
    const typename V::vec s = V::narrow(totals.sum);
    if (!V::is_finite(s))
        return V::store_first(out, V::not_a_number());
    std::size_t k = 0;
    typename V::log_sum logs, log_s;
    for (std::size_t i = 0; i < n; ++i) {
        const typename V::vec prob = V::broadcast(p + i);
        if (prob == V::zero())
            continue;
        logs.add(prob);
        ++k;
    }
    if (k < 2)
        return V::store_first(out, V::zero());
    logs.add(V::narrow(V::wide_count(k)));
    log_s.add(s);
    V::store_first(out, V::narrow(logs.total() + V::wide_count(k - 2) * log_s.total()));
}

// f(mu) = sum_i p_i / (s p_i - mu) between two neighbouring poles, from which mu is alpha and beta away; and the weights
// that the two poles need alone for the slopes of f: sum p_i (alpha / (s p_i - mu))^2 over the poles up to the lower one,
// sum p_i (beta / (s p_i - mu))^2 over those from the upper one on.
template <class V>
struct secular_value {
    typename V::vec f, lower_weight, upper_weight;
};

// p is in units of 1 / unit, s in units of 1 / lift, in which it is near 1; what is s p in those of both.
template <class V>
struct secular_row {
    const typename V::scalar* p;
    std::size_t n;
    typename V::wide sum;
    typename V::vec s, lift, unit, lower, upper;

    constexpr typename V::vec prob(std::size_t i) const { return V::broadcast(p + i) * unit; }

    constexpr secular_value<V> at(const typename V::vec& origin, const typename V::vec& tau,
                                  const typename V::vec& alpha, const typename V::vec& beta) const
    {
        typename V::sum f;
        typename V::vec below = V::zero(), above = V::zero();
        for (std::size_t i = 0; i < n; ++i) {
            const typename V::vec weight = prob(i);
            if (weight == V::zero())
                continue;
            const typename V::vec inverse = V::one() / (s * (weight - origin) - tau);
            f.add(weight * inverse);
            if (lower < weight)
                above = above + weight * (beta * inverse * (beta * inverse));
            else
                below = below + weight * (alpha * inverse * (alpha * inverse));
        }
        return {V::narrow(f.total()), below, above};
    }
};

// The distance t of the root of c - q / t + r / (gap - t), q and r the weights of the nearer and the farther pole:
// c y^2 - (c + (q + r) / gap) y + q / gap = 0, y = t / gap. Of the two roots, the one of which nothing cancels.
template <class V>
constexpr typename V::vec distance_of_root(const typename V::vec& c, const typename V::vec& q, const typename V::vec& r,
                                           const typename V::vec& gap)
{
    using vec = typename V::vec;
    const vec two = V::one() + V::one(), b = c + (q + r) / gap;
    const vec root = V::root(V::abs(b * b - two * two * c * (q / gap)));
    const bool forward = V::zero() < b; // one division: a compiler may compute both of two
    return (forward ? two * q : (b - root) * gap) / (forward ? b + root : two * c);
}

// The root between two neighbouring poles: origin, the nearer of the two, and tau, relative to which nothing cancels. Each
// step takes the poles below as one, and those above.
template <class V>
struct secular_root {
    typename V::vec origin, tau;
};

template <class V>
constexpr secular_root<V> root_between(const secular_row<V>& row)
{
    using vec = typename V::vec;
    const vec zero = V::zero(), half = V::one() / (V::one() + V::one()), gap = row.s * (row.upper - row.lower);
    vec near_gap = gap * half, far_gap = near_gap, shortest = zero, longest = near_gap,
        change = near_gap; // distances to the poles
    const vec eighth = half * half * half, rough = eighth * eighth * eighth * eighth;
    secular_value<V> value = row.at(row.lower, near_gap, near_gap, far_gap);
    const bool from_upper = value.f < zero;
    const vec origin = from_upper ? row.upper : row.lower;
    for (int steps = 1; steps < 60; ++steps) {
        const vec q = from_upper ? value.upper_weight : value.lower_weight;
        const vec r = from_upper ? value.lower_weight : value.upper_weight;
        const vec f = from_upper ? zero - value.f : value.f; // grows with the distance
        (f < zero ? shortest : longest) = near_gap;
        const vec next = distance_of_root<V>(f + q / near_gap - r / far_gap, q, r, gap), before = change;
        change = V::abs(next - near_gap);
        // A small step leaves an error of about its square; a small one that does not shrink is rounding.
        const bool is_small =
            !(V::small_step() * near_gap < change) || (before < change + change && change < rough * near_gap);
        if (shortest < next && next < longest)
            near_gap = next;
        else if (!is_small)
            near_gap = (shortest + longest) * half;
        if (is_small)
            break;
        far_gap = gap - near_gap;
        value = from_upper ? row.at(origin, zero - near_gap, far_gap, near_gap)
                           : row.at(origin, near_gap, near_gap, far_gap);
    }
    return {origin, from_upper ? zero - near_gap : near_gap};
}

// One step of Newton on f in the wider arithmetic.
template <class V>
constexpr secular_root<V> refined(const secular_row<V>& row, const secular_root<V>& root)
{
    const typename V::wide origin = V::widen(root.origin), tau = V::widen(root.tau);
    typename V::wide f = typename V::sum().total();
    typename V::vec slope = V::zero();
    for (std::size_t i = 0; i < row.n; ++i) {
        const typename V::vec weight = row.prob(i);
        if (weight == V::zero())
            continue;
        const typename V::wide distance = row.sum * (V::widen(weight) - origin) - tau;
        const typename V::wide term = V::widen(weight) / distance;
        f = f + term;
        slope = slope + V::narrow(term) / V::narrow(distance);
    }
    return {root.origin, root.tau - V::narrow(f) / slope};
}

// the row with neighbouring poles 0 < lower < upper, in units in which no square of 1 / lower overflows
template <class V>
constexpr secular_row<V> between(const typename V::scalar* p, std::size_t n, const typename V::wide& sum,
                                 const typename V::vec& lower, const typename V::vec& upper)
{
    const typename V::vec lift = V::lift(sum), unit = V::is_tiny(lower * lift) ? lift * V::up() : lift;
    const typename V::wide lifted = sum * V::widen(lift);
    return {p, n, lifted, V::narrow(lifted), lift, unit, lower * unit, upper * unit};
}

// s origin + tau, not outside of the interval
template <class V>
constexpr typename V::vec value_of(const secular_row<V>& row, const secular_root<V>& root)
{
    const typename V::vec mu = V::product(root.origin, row.sum) + root.tau;
    const typename V::vec low = V::product(row.lower, row.sum), high = V::product(row.upper, row.sum);
    return (mu < low ? low : high < mu ? high : mu) * (V::one() / row.lift) * (V::one() / row.unit);
}

template <class V>
constexpr void row_largest_eigenvalue(const typename V::scalar* p, std::size_t n,
                                      const row_totals<typename V::scalar>& totals, typename V::scalar* out)
{
    typename V::vec first = V::zero(), second = V::zero();
    for (std::size_t i = 0; i < n; ++i) {
        const typename V::vec prob = V::broadcast(p + i);
        if (i == totals.largest)
            first = prob;
        else
            second = V::max(second, prob);
    }
    typename V::vec largest = V::product(second, totals.sum); // 0, or a tie
    if (!V::is_finite(V::narrow(totals.sum)))
        largest = V::not_a_number();
    else if (V::zero() < second && second < first) {
        const secular_row<V> row = between<V>(p, n, totals.sum, second, first);
        largest = value_of<V>(row, refined<V>(row, root_between<V>(row)));
    }
    V::store_first(out, largest);
}

// the heap below node, whose children are heaps
template <class V>
constexpr void sift_down(typename V::scalar* x, std::size_t n, std::size_t node)
{
    for (std::size_t child = 2 * node + 1; child < n; child = 2 * node + 1) {
        if (child + 1 < n && V::broadcast(x + child) < V::broadcast(x + child + 1))
            ++child;
        if (!(V::broadcast(x + node) < V::broadcast(x + child)))
            return;
        const typename V::scalar a = x[node];
        x[node] = x[child];
        x[child] = a;
        node = child;
    }
}

template <class V>
constexpr void heap_sort(typename V::scalar* x, std::size_t n)
{
    for (std::size_t node = n / 2; node-- > 0;)
        sift_down<V>(x, n, node);
    for (std::size_t last = n; last-- > 1;) {
        const typename V::scalar a = x[0];
        x[0] = x[last];
        x[last] = a;
        sift_down<V>(x, last, 0);
    }
}

// out: the sorted p first. From the largest down, root j needs p[j - 1] and p[j], and takes the place of the latter.
template <class V>
constexpr void row_eigenvalues(const typename V::scalar* p, std::size_t n, const row_totals<typename V::scalar>& totals,
                               typename V::scalar* out)
{
    if (!V::is_finite(V::narrow(totals.sum)))
        return fill_row<V>(out, n, every_entry<V>{}, V::not_a_number(), V::not_a_number());
    for (std::size_t i = 0; i < n; ++i)
        out[i] = p[i];
    heap_sort<V>(out, n);
    for (std::size_t j = n; j-- > 0;) {
        const typename V::vec lower = j == 0 ? V::zero() : V::broadcast(out + j - 1), upper = V::broadcast(out + j);
        typename V::vec mu = V::zero();
        if (lower < upper && V::zero() < lower) {
            const secular_row<V> row = between<V>(p, n, totals.sum, lower, upper);
            mu = value_of<V>(row, root_between<V>(row));
        } else if (V::zero() < lower)
            mu = V::product(upper, totals.sum);
        V::store_first(out + j, mu);
    }
}
