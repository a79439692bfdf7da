// SPDX-License-Identifier: BSL-1.0
// loss_kernels.inl: losses and their gradients from logits, written once for a vector type V.
//
//   logits --row_max--> max --exp_and_tail--> e, T = sum e - 1 --scale--> p;  p_y - 1 = -(T + 1 - e_y) / (T + 1)
//   logits, target --target_sums--> T, sum t, <t, max - x> --weigh--> p sum t - t
//   logits --entropy_sums--> T, <e, max - x> --centre--> p (max - x - <p, max - x>)
//   two rows of logits --kl_sums--> <p, d>, <p, |d|> --kl_terms--> sum p (e^-d' - 1 + d'),  d' = d - <p, d>
//
// Not a header: each isa_*.hpp includes this text after row_kernels.inl, whose rules hold here too. Sums are of one sign,
// and T is summed without one largest term, so nothing cancels when one class wins.

// The largest logit, of which the compiler knows nothing: under -ffinite-math-only it would know that it is finite.
template <class V>
SMX_INLINE constexpr typename V::vec largest_logit(const typename V::scalar* logits, std::size_t n,
                                                   const typename V::vec& first)
{
    return V::in_register(row_max<V>(logits, n, every_entry<V>{}, first));
}

// ---- cross-entropy with a label: (max - x_y) + log1p(T) -------------------------------------------------------------

// Only where no gradient is wanted: -log_softmax of one entry.
template <class V>
struct store_label_loss : store_by_tail<V, store_label_loss<V>> {
    const typename V::scalar* labelled;
    typename V::scalar* loss;

    SMX_INLINE store_label_loss(const typename V::scalar* labelled_, typename V::scalar* loss_)
        : store_by_tail<V, store_label_loss>(V::unit_scale()), labelled(labelled_), loss(loss_)
    {
    }
    template <class Row>
    SMX_INLINE void store(Row&, const typename V::vec& max, const typename V::differences& differences,
                          const typename V::wide& log1p_tail) const
    {
        V::store_first(loss, V::surprise(V::broadcast(labelled), max, differences, log1p_tail));
    }
};

template <class V>
constexpr void row_cross_entropy(const typename V::scalar* logits, std::size_t n, std::size_t label,
                                 typename V::scalar* loss)
{
    const typename V::vec first = V::broadcast(logits);
    if constexpr (V::lanes > 1)
        if (const store_label_loss<V> finish(logits + label, loss);
            finished_in_step<V>(logits, n, every_entry<V>{}, first, finish) ||
            finished_in_steps<V>(logits, n, every_entry<V>{}, first, finish))
            return;
    const exp_scale<typename V::scalar>& scale = V::unit_scale();
    typename V::extent extent = extent_of<V>(logits, n, every_entry<V>{}, first);
    const typename V::vec max = extent.max = V::in_register(extent.max); // as in largest_logit
    if (!V::is_finite(max))
        V::store_first(loss, V::not_a_number());
    else if (V::is_far(max, scale)) {
        const typename V::far_away::shift shift = V::far_away::shift_of(max, scale);
        const typename V::wide tail = tail_of_sum<typename V::far_away>(logits, n, every_entry<V>{}, shift, max, first);
        V::store_first(loss, V::surprise(V::broadcast(logits + label), max, shift, V::log1p(tail)));
    } else
        V::store_first(loss, V::surprise(V::broadcast(logits + label), max, V::differences_from(max, scale),
                                         log1p_of_tail<V>(logits, n, every_entry<V>{}, scale, extent, first)));
}

// p[i] = e^(x[i] - max); the sum of p without the largest terms, and their number. The last, partial step is kept in a
// register, as in exp_pass.
template <class V>
struct exp_and_tail : each_term<V, exp_and_tail<V>> {
    const typename V::scalar* x;
    typename V::scalar* p;
    typename V::shift shift;
    typename V::vec max, tail;
    typename V::tally ties;

    SMX_INLINE constexpr exp_and_tail(const typename V::scalar* x_, typename V::scalar* p_,
                                      const typename V::shift& shift_, const typename V::vec& max_)
        : each_term<V, exp_and_tail>(), x(x_), p(p_), shift(shift_), max(max_), tail(max_), ties()
    {
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec without_largest(Inside inside, const typename V::vec& logits,
                                                         const typename V::vec& e)
    {
        const typename V::some largest = V::equals(inside, logits, max);
        ties.add(largest);
        return V::keep(inside, V::without_largest(largest, e));
    }
    SMX_INLINE constexpr typename V::vec term(std::size_t i, typename V::all inside)
    {
        const typename V::vec logits = V::load(x + i, inside, max);
        const typename V::vec e = V::exp_term(logits, shift);
        V::store(p + i, inside, e);
        return without_largest(inside, logits, e);
    }
    SMX_INLINE constexpr typename V::vec term(std::size_t i, typename V::some inside)
    {
        const typename V::vec logits = V::load(x + i, inside, max);
        tail = V::exp_term(logits, shift);
        return without_largest(inside, logits, tail);
    }
};

// gradient = p - e_label, where p_y - 1 is the sum of the others over the sum of all; the loss
template <class V>
SMX_INLINE constexpr typename V::vec label_gradient(const typename V::scalar* logits, std::size_t n, std::size_t label,
                                                    typename V::scalar* gradient, const typename V::vec& max)
{
    const typename V::shift shift = V::shift_of(max, V::unit_scale());
    const typename V::vec logit = V::broadcast(logits + label), term = V::exp_term(logit, shift);
    const bool wins = V::broadcast_equals(logits + label, max); // gradient may be logits: they are gone after this

    exp_and_tail<V> exponentials(logits, gradient, shift, max);
    walk<V>(n, exponentials);
    const typename V::wide tail = V::tail(exponentials.sum.total(), exponentials.ties.total());
    const typename V::wide sum = V::with_largest(tail);
    scale_pass<V, every_entry<V>> normalise(gradient, every_entry<V>{}, V::inverse(V::scaled_sum(sum)),
                                            exponentials.tail);
    walk<V>(n, normalise);

    const typename V::wide others = V::others(tail, term, wins);
    V::store_first(gradient + label, V::zero() - V::narrow(V::quotient(others, sum)));
    return V::surprise(logit, max, shift, V::log1p(tail));
}

template <class V>
constexpr void row_cross_entropy_gradient(const typename V::scalar* logits, std::size_t n, std::size_t label,
                                          typename V::scalar* gradient, typename V::scalar* loss)
{
    const typename V::vec max = largest_logit<V>(logits, n, V::broadcast(logits));
    if (!V::is_finite(max)) {
        fill_row<V>(gradient, n, every_entry<V>{}, V::not_a_number(), V::zero());
        V::store_first(loss, V::not_a_number());
    } else if (V::is_far(max, V::unit_scale())) {
        V::store_first(loss, label_gradient<typename V::far_away>(logits, n, label, gradient, max));
    } else {
        V::store_first(loss, label_gradient<V>(logits, n, label, gradient, max));
    }
}

// ---- cross-entropy with a target: <t, max - x> + sum t log1p(T) -----------------------------------------------------

// T, sum t, sum t (max - x) times V's reduction, and the number of entries that the target wants and the logits exclude.
// Reduced, neither a difference nor their sum overflows. An absent logit has a finite distance here, so that 0 log 0 = 0.
template <class V>
struct target_sums : each_step<V, target_sums<V>> {
    const typename V::scalar* x;
    const typename V::scalar* t;
    typename V::shift shift;
    typename V::vec max;
    typename V::sum below, mass, reduced_dot;
    typename V::tally ties;
    std::size_t impossible;

    SMX_INLINE constexpr target_sums(const typename V::scalar* x_, const typename V::scalar* t_,
                                     const typename V::shift& shift_, const typename V::vec& max_)
        : x(x_), t(t_), shift(shift_), max(max_), below(), mass(), reduced_dot(), ties(), impossible(0)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec logits = V::load(x + i, inside, max);
        const typename V::vec target = V::load(t + i, inside, V::zero());
        const typename V::some largest = V::equals(inside, logits, max);
        const typename V::some absent = V::absent(x + i, inside);
        ties.add(largest);
        impossible += V::count(absent) - V::count(V::equals(absent, target, V::zero()));
        below.add(V::keep(inside, V::without_largest(largest, V::exp_term(logits, shift))));
        mass.add(target);
        reduced_dot.add_product(target, V::reduced_distance(logits, max));
    }
};

// the same sum times 2^bias, where products may be subnormal
template <class V>
struct scaled_target_dot : each_step<V, scaled_target_dot<V>> {
    const typename V::scalar* x;
    const typename V::scalar* t;
    typename V::vec max;
    typename V::sum reduced_dot;

    SMX_INLINE constexpr scaled_target_dot(const typename V::scalar* x_, const typename V::scalar* t_,
                                           const typename V::vec& max_)
        : x(x_), t(t_), max(max_), reduced_dot()
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec logits = V::load(x + i, inside, max);
        reduced_dot.add(V::scaled_product(V::load(t + i, inside, V::zero()), V::reduced_distance(logits, max)));
    }
};

// sum t (max - x), once more where it is small
template <class V>
constexpr typename V::wide small_target_dot(const typename V::scalar* logits, const typename V::scalar* target,
                                            std::size_t n, const typename V::vec& max)
{
    scaled_target_dot<V> pass(logits, target, max);
    walk<V, true>(n, pass);
    return V::tail(V::restored(pass.reduced_dot.total()), 1);
}

template <class V>
struct target_row {
    typename V::shift shift;
    typename V::wide tail, mass; // T, sum t
    typename V::vec loss;
};

template <class V>
SMX_INLINE constexpr target_row<V> target_loss(const typename V::scalar* logits, const typename V::scalar* target,
                                               std::size_t n, const typename V::vec& max)
{
    target_sums<V> sums(logits, target, V::shift_of(max, V::unit_scale()), max);
    walk<V>(n, sums);
    const typename V::wide tail = V::tail(sums.below.total(), sums.ties.total()), mass = sums.mass.total();
    typename V::wide dot = V::restored(sums.reduced_dot.total());
    if (V::is_small(dot))
        dot = small_target_dot<V>(logits, target, n, max);
    const bool infinite = sums.impossible != 0 || !V::is_finite(V::narrow(dot)); // else NaN is in tail or mass too
    const typename V::vec loss = V::narrow(V::plus_product(infinite ? mass : dot, mass, V::log1p(tail)));
    return {sums.shift, tail, mass, infinite ? loss - V::minus_infinity() : loss};
}

template <class V>
constexpr void row_cross_entropy_target(const typename V::scalar* logits, const typename V::scalar* target,
                                        std::size_t n, typename V::scalar* loss)
{
    if (n == 0)
        return V::store_first(loss, V::zero());
    const typename V::vec max = largest_logit<V>(logits, n, V::broadcast(logits));
    if (!V::is_finite(max))
        V::store_first(loss, V::not_a_number());
    else if (V::is_far(max, V::unit_scale()))
        V::store_first(loss, target_loss<typename V::far_away>(logits, target, n, max).loss);
    else
        V::store_first(loss, target_loss<V>(logits, target, n, max).loss);
}

// gradient_i = p_i sum t - t_i, from e once more: gradient may be logits, or target
template <class V>
struct target_gradient_pass : each_step<V, target_gradient_pass<V>> {
    const typename V::scalar* x;
    const typename V::scalar* t;
    typename V::scalar* gradient;
    typename V::shift shift;
    typename V::vec max;
    typename V::weight weight;

    SMX_INLINE constexpr target_gradient_pass(const typename V::scalar* x_, const typename V::scalar* t_,
                                              typename V::scalar* gradient_, const typename V::shift& shift_,
                                              const typename V::vec& max_, const typename V::weight& weight_)
        : x(x_), t(t_), gradient(gradient_), shift(shift_), max(max_), weight(weight_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        const typename V::vec e = V::exp_term(V::load(x + i, inside, max), shift);
        V::store(gradient + i, inside, V::weigh(e, weight, V::load(t + i, inside, V::zero())));
    }
};

template <class V>
SMX_INLINE constexpr typename V::vec target_gradient(const typename V::scalar* logits, const typename V::scalar* target,
                                                     std::size_t n, typename V::scalar* gradient,
                                                     const typename V::vec& max)
{
    const target_row<V> row = target_loss<V>(logits, target, n, max);
    const typename V::wide sum = V::scaled_sum(V::with_largest(row.tail));
    target_gradient_pass<V> pass(logits, target, gradient, row.shift, max, V::weight_of(row.mass, sum));
    walk<V>(n, pass);
    return row.loss;
}

template <class V>
constexpr void row_cross_entropy_target_gradient(const typename V::scalar* logits, const typename V::scalar* target,
                                                 std::size_t n, typename V::scalar* gradient, typename V::scalar* loss)
{
    if (n == 0)
        return V::store_first(loss, V::zero());
    const typename V::vec max = largest_logit<V>(logits, n, V::broadcast(logits));
    if (!V::is_finite(max)) {
        fill_row<V>(gradient, n, every_entry<V>{}, V::not_a_number(), V::zero());
        V::store_first(loss, V::not_a_number());
    } else if (V::is_far(max, V::unit_scale())) {
        V::store_first(loss, target_gradient<typename V::far_away>(logits, target, n, gradient, max));
    } else {
        V::store_first(loss, target_gradient<V>(logits, target, n, gradient, max));
    }
}

// ---- entropy: log1p(T) + <p, max - x> -------------------------------------------------------------------------------

template <class V>
struct entropy_sums : each_step<V, entropy_sums<V>> {
    const typename V::scalar* x;
    typename V::shift shift;
    typename V::vec max;
    typename V::sum below, dot; // e without the largest, e (max - x)
    typename V::tally ties;

    SMX_INLINE constexpr entropy_sums(const typename V::scalar* x_, const typename V::shift& shift_,
                                      const typename V::vec& max_)
        : x(x_), shift(shift_), max(max_), below(), dot(), ties()
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec logits = V::load(x + i, inside, max);
        const typename V::some largest = V::equals(inside, logits, max);
        const typename V::vec e = V::exp_term(logits, shift);
        ties.add(largest);
        below.add(V::keep(inside, V::without_largest(largest, e)));
        dot.add(V::keep(inside, e * V::distance(logits, shift)));
    }
};

template <class V>
struct entropy_row {
    typename V::shift shift;
    typename V::wide sum, lifted_mean; // sum e, <p, max - x>
    typename V::vec entropy;
};

template <class V>
SMX_INLINE constexpr entropy_row<V> entropy_of(const typename V::scalar* logits, std::size_t n,
                                               const typename V::vec& max)
{
    entropy_sums<V> sums(logits, V::shift_of(max, V::unit_scale()), max);
    walk<V>(n, sums);
    const typename V::wide tail = V::tail(sums.below.total(), sums.ties.total()), sum = V::with_largest(tail);
    const typename V::wide mean = V::quotient(sums.dot.total(), sum); // in the units of the terms
    return {sums.shift, sum, V::lifted_mean(mean), V::narrow(V::total(V::log1p(tail), V::tail(mean, 1)))};
}

template <class V>
constexpr void row_entropy(const typename V::scalar* logits, std::size_t n, typename V::scalar* entropy)
{
    if (n == 0)
        return V::store_first(entropy, V::zero());
    const typename V::vec max = largest_logit<V>(logits, n, V::broadcast(logits));
    if (!V::is_finite(max))
        V::store_first(entropy, V::not_a_number());
    else if (V::is_far(max, V::unit_scale()))
        V::store_first(entropy, entropy_of<typename V::far_away>(logits, n, max).entropy);
    else
        V::store_first(entropy, entropy_of<V>(logits, n, max).entropy);
}

// gradient_i = -p_i (log p_i + H) = p_i ((max - x_i) - <p, max - x>)
template <class V>
struct entropy_gradient_pass : each_step<V, entropy_gradient_pass<V>> {
    const typename V::scalar* x;
    typename V::scalar* gradient;
    typename V::shift shift;
    typename V::vec max;
    typename V::wide lifted_mean;
    typename V::factor inverse;

    SMX_INLINE constexpr entropy_gradient_pass(const typename V::scalar* x_, typename V::scalar* gradient_,
                                               const entropy_row<V>& row, const typename V::vec& max_)
        : x(x_), gradient(gradient_), shift(row.shift), max(max_), lifted_mean(row.lifted_mean),
          inverse(V::inverse(V::scaled_sum(row.sum)))
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        const typename V::vec logits = V::load(x + i, inside, max);
        const typename V::vec centred = V::less(V::lifted(V::distance(logits, shift)), lifted_mean);
        V::store(gradient + i, inside, V::lowered(V::times(V::exp_term(logits, shift) * centred, inverse)));
    }
};

template <class V>
SMX_INLINE constexpr typename V::vec entropy_and_gradient(const typename V::scalar* logits, std::size_t n,
                                                          typename V::scalar* gradient, const typename V::vec& max)
{
    const entropy_row<V> row = entropy_of<V>(logits, n, max);
    entropy_gradient_pass<V> pass(logits, gradient, row, max);
    walk<V>(n, pass);
    return row.entropy;
}

template <class V>
constexpr void row_entropy_gradient(const typename V::scalar* logits, std::size_t n, typename V::scalar* gradient,
                                    typename V::scalar* entropy)
{
    if (n == 0)
        return V::store_first(entropy, V::zero());
    const typename V::vec max = largest_logit<V>(logits, n, V::broadcast(logits));
    if (!V::is_finite(max)) {
        fill_row<V>(gradient, n, every_entry<V>{}, V::not_a_number(), V::zero());
        V::store_first(entropy, V::not_a_number());
    } else if (V::is_far(max, V::unit_scale())) {
        V::store_first(entropy, entropy_and_gradient<typename V::far_away>(logits, n, gradient, max));
    } else {
        V::store_first(entropy, entropy_and_gradient<V>(logits, n, gradient, max));
    }
}

// ---- Kullback-Leibler divergence ------------------------------------------------------------------------------------
//
// With d_i = (x_i - x_m) - (y_i - y_m), m the argmax of p, and d' = d - <p, d>, whose mean is 0,
//   KL = <p, d> + log sum_i p_i e^-d_i = log1p(sum_i p_i (e^-d'_i - 1 + d'_i)):
// terms that are not negative, and all 0 if d is constant. For rows far apart, where e^-d' may overflow,
//   KL = <p, d> + log sum e^(y - y_m) - log sum e^(x - x_m).
// d is taken in quarters, so that it does not overflow; p as the square of e^((x - max) / 2), since p d counts where p is
// below the range of the type and d large.

template <class V>
struct logit_pair {
    const typename V::scalar* x;
    const typename V::scalar* y;
    typename V::vec max_x, max_y, y_m;
    typename V::shift half_shift, shift;

    SMX_INLINE constexpr logit_pair(const typename V::scalar* x_, const typename V::scalar* y_,
                                    const typename V::vec& max_x_, const typename V::vec& max_y_,
                                    const typename V::vec& y_m_)
        : x(x_), y(y_), max_x(max_x_), max_y(max_y_), y_m(y_m_), half_shift(V::shift_of(max_x_, V::half_scale())),
          shift(V::shift_of(max_y_, V::unit_scale()))
    {
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec quarter_difference(std::size_t i, Inside inside) const // far from 0 if p = 0
    {
        return V::select(V::absent(x + i, inside), V::one(),
                         V::quarter_difference(V::load(x + i, inside, max_x), max_x, V::load(y + i, inside, y_m), y_m));
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec root(std::size_t i, Inside inside) const // its square is e^(x - max) 2^bias
    {
        return V::keep(inside, V::at_half_bias(V::exp_term(V::load(x + i, inside, max_x), half_shift)));
    }
};

// The number of entries with p > 0 and q = 0.
template <class V>
struct impossible_pass : each_step<V, impossible_pass<V>> {
    const typename V::scalar* x;
    const typename V::scalar* y;
    std::size_t impossible;

    SMX_INLINE constexpr impossible_pass(const typename V::scalar* x_, const typename V::scalar* y_)
        : x(x_), y(y_), impossible(0)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::some absent = V::absent(y + i, inside);
        impossible += V::count(absent) - V::count(V::both(absent, V::absent(x + i, inside)));
    }
};

template <class V>
struct largest_difference : each_step<V, largest_difference<V>> {
    const logit_pair<V>& rows;
    typename V::vec best;

    explicit SMX_INLINE constexpr largest_difference(const logit_pair<V>& rows_) : rows(rows_), best(V::zero()) {}
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        best = V::max(best, V::abs(V::keep(inside, rows.quarter_difference(i, inside))));
    }
};

// The sum of e without the largest terms, <e, d> / 4 and <e, |d|> / 4; these two times unit, which is small where d is so
// large that they might overflow.
template <class V>
struct kl_sums : each_step<V, kl_sums<V>> {
    const logit_pair<V>& rows;
    typename V::vec unit;
    typename V::sum below, dot, size;
    typename V::tally ties;

    SMX_INLINE constexpr kl_sums(const logit_pair<V>& rows_, const typename V::vec& unit_)
        : rows(rows_), unit(unit_), below(), dot(), size(), ties()
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::some largest = V::equals(inside, V::load(rows.x + i, inside, rows.max_x), rows.max_x);
        const typename V::vec root = rows.root(i, inside);
        const typename V::vec product = root * (root * (rows.quarter_difference(i, inside) * unit));
        ties.add(largest);
        below.add(V::without_largest(largest, root * root));
        dot.add(product);
        size.add(V::abs(product));
    }
};

// sum e (e^-d' - 1 + d') by a series where |d'| <= 1; elsewhere sum e (1 - d') / 4, and below the sum of q.
template <class V>
struct kl_terms : each_step<V, kl_terms<V>> {
    const logit_pair<V>& rows;
    typename V::wide mean; // <p, d> / 4
    typename V::sum series, rest;

    SMX_INLINE constexpr kl_terms(const logit_pair<V>& rows_, const typename V::wide& mean_)
        : rows(rows_), mean(mean_), series(), rest()
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec d = V::less(rows.quarter_difference(i, inside), mean);
        const typename V::vec root = rows.root(i, inside);
        const typename V::vec remainder = root * (root * (V::quarter() - d));
        const typename V::some is_near = V::less_than(V::abs(d), V::quarter());
        const typename V::vec short_part = V::keep(is_near, d), twice = short_part + short_part;
        series.add(root * root * V::exp_remainder(twice + twice));
        rest.add(V::select(is_near, V::zero(), remainder));
    }
};

template <class V>
struct far_mass : each_step<V, far_mass<V>> {
    const logit_pair<V>& rows;
    typename V::wide mean;
    typename V::sum sum;

    SMX_INLINE constexpr far_mass(const logit_pair<V>& rows_, const typename V::wide& mean_)
        : rows(rows_), mean(mean_), sum()
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec d = V::less(rows.quarter_difference(i, inside), mean);
        const typename V::vec q = V::exp_term(V::load(rows.y + i, inside, rows.max_y), rows.shift);
        sum.add(V::keep(inside, V::select(V::less_than(V::abs(d), V::quarter()), V::zero(), q)));
    }
};

// log1p(sum p (e^-d' - 1 + d')), where divergence is about what comes out. e^-d' p = q e^KL: q has no quotient with p.
template <class V>
SMX_INLINE constexpr typename V::vec near_divergence(const logit_pair<V>& rows, std::size_t n,
                                                     const typename V::wide& mean, const typename V::wide& sum_x,
                                                     const typename V::wide& sum_y, const typename V::vec& divergence)
{
    kl_terms<V> terms(rows, mean);
    walk<V, true>(n, terms);
    far_mass<V> masses(rows, mean);
    walk<V, true>(n, masses);
    const typename V::vec growth = V::one() + (divergence + V::exp_remainder(V::zero() - divergence));
    const typename V::vec rest = V::narrow(V::quotient(terms.rest.total(), sum_x)), twice_rest = rest + rest;
    const typename V::vec remote =
        growth * V::narrow(V::quotient(masses.sum.total(), sum_y)) - (twice_rest + twice_rest);
    const typename V::vec all = V::narrow(V::quotient(terms.series.total(), sum_x)) + remote;
    return V::narrow(V::log1p(V::tail(V::widen(V::abs(all)), 1)));
}

template <class V>
SMX_INLINE constexpr typename V::vec divergence_of(const logit_pair<V>& rows, std::size_t n)
{
    largest_difference<V> largest(rows);
    walk<V, true>(n, largest);
    const bool large = V::is_large(V::reduce_max(largest.best));

    kl_sums<V> sums(rows, large ? V::reduced_unit() : V::one());
    walk<V, true>(n, sums);
    const typename V::wide tail_x = V::tail(sums.below.total(), sums.ties.total()), sum_x = V::with_largest(tail_x);
    const typename V::wide tail_y = tail_of_sum<V>(rows.y, n, every_entry<V>{}, rows.shift, rows.max_y, rows.max_y);
    const typename V::wide sum_y = V::with_largest(tail_y);
    const typename V::wide dot = V::quotient(sums.dot.total(), sum_x), size = V::quotient(sums.size.total(), sum_x);
    const typename V::wide mean = large ? V::unreduced(dot) : V::tail(dot, 1);
    const typename V::wide spread = large ? V::unreduced(size) : V::tail(size, 1);

    // a quarter of <p, d> + (max_y - y_m) + log1p(T_y) - log1p(T_x)
    const typename V::wide logs = V::quarter_of_difference(V::log1p(tail_y), V::log1p(tail_x));
    const typename V::wide offset = V::difference(rows.max_y * V::quarter(), rows.y_m * V::quarter());
    const typename V::vec quarter = V::narrow(V::total(V::total(offset, mean), logs)), half = quarter + quarter;
    if (V::count(V::less_than(quarter + V::narrow(spread), V::quarter())) != 0) // KL + <p, |d|> < 1
        return near_divergence<V>(rows, n, mean, sum_x, sum_y, half + half);
    return V::abs(half + half);
}

template <class V>
constexpr void row_kl_divergence(const typename V::scalar* logits_p, const typename V::scalar* logits_q, std::size_t n,
                                 typename V::scalar* divergence)
{
    if (n == 0)
        return V::store_first(divergence, V::zero());
    const typename V::vec max_p = largest_logit<V>(logits_p, n, V::broadcast(logits_p));
    const typename V::vec max_q = largest_logit<V>(logits_q, n, V::broadcast(logits_q));
    if (!V::is_finite(max_p) || !V::is_finite(max_q))
        return V::store_first(divergence, V::not_a_number());

    impossible_pass<V> exclusion(logits_p, logits_q);
    walk<V, true>(n, exclusion);
    if (exclusion.impossible != 0 && (has_nan<V>(logits_p, n) || has_nan<V>(logits_q, n)))
        return V::store_first(divergence, V::not_a_number());
    if (exclusion.impossible != 0)
        return V::store_first(divergence, V::zero() - V::minus_infinity());

    using far_away = typename V::far_away;
    const typename V::vec y_m = V::broadcast(logits_q + index_of<V>(logits_p, n, max_p));
    if (V::is_far(max_p, V::half_scale()) || V::is_far(max_q, V::unit_scale()))
        V::store_first(divergence, divergence_of<far_away>({logits_p, logits_q, max_p, max_q, y_m}, n));
    else
        V::store_first(divergence, divergence_of<V>({logits_p, logits_q, max_p, max_q, y_m}, n));
}
