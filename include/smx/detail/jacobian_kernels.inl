// SPDX-License-Identifier: BSL-1.0
// jacobian_kernels.inl: J = s diag(p) - p p^T and its products, s = sum p, written once for a vector type V.
//
//   probs --mass_and_sum--> s, max, <p, v> --centred--> J v                      any row
//   probs --sums_without_winner--> s, <p, v> without a winner --near_product--> J v    s is 1 but for rounding
//
// A winner is an entry that outweighs all others together: 1 - p of it is the sum of those, and its tangent may be taken off
// all tangents, since J 1 = 0. Short rows are held in registers (held_product), those of up to 32 floats as doubles
// (doubled_row).
//
// Not a header: each isa_*.hpp includes this text after row_kernels.inl, under the same rules.

// ---- J and its products, from probs: J = s diag(p) - p p^T, s = sum p -----------------------------------------------

// What J is applied to: v - origin. J 1 = 0, so any origin gives the same product.
template <class V>
struct tangent_row {
    const typename V::scalar* v;
    typename V::vec origin;

    template <class Inside>
    SMX_INLINE constexpr typename V::vec at(std::size_t i, Inside inside) const
    {
        return V::load(v + i, inside, origin) - origin;
    }
    // 2^bias t where t is tiny, else 0; Clang would choose between products, of which one may overflow
    template <class Inside>
    SMX_INLINE constexpr typename V::vec scaled_at(std::size_t i, Inside inside) const
    {
        const typename V::vec t = at(i, inside);
        return V::alone(V::where_tiny(V::abs(t), t, V::zero())) * V::up();
    }
    SMX_INLINE constexpr typename V::vec unscaled(const typename V::vec& product) const { return product; }
};

// What a function of J needs to know of the row. dominated: one p outweighs all the others together.
template <class V>
struct row_mass {
    typename V::vec max;
    typename V::wide sum;
    bool dominated;
};

// p[i] t[i], where p[i] = 0 gives 0 whatever t[i]: 0 times infinity is never formed
template <class V, class Tangent>
struct weighted_terms {
    Tangent tangent;

    template <class Inside>
    SMX_INLINE constexpr typename V::vec at(std::size_t i, Inside inside, const typename V::vec& prob) const
    {
        return prob * V::where_nonzero(prob, tangent.at(i, inside));
    }
};

// s, the largest p, and the sum of the terms
template <class V, class Terms>
struct mass_and_sum {
    static constexpr std::size_t group = 4;
    const typename V::scalar* p;
    Terms terms;
    typename V::vec best;
    typename V::rough_sum mass, sum;

    SMX_INLINE constexpr mass_and_sum(const typename V::scalar* p_, const Terms& terms_)
        : p(p_), terms(terms_), best(V::zero()), mass(), sum()
    {
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec prob(std::size_t i, Inside inside) const
    {
        return V::load(p + i, inside, V::zero());
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec a = prob(i, inside);
        best = V::max(best, a);
        mass.add(a);
        sum.add(terms.at(i, inside, a));
    }
    SMX_INLINE constexpr void together(std::size_t i)
    {
        const typename V::vec a = prob(i, V::every());
        const typename V::vec b = prob(i + V::lanes, V::every());
        const typename V::vec c = prob(i + 2 * V::lanes, V::every());
        const typename V::vec d = prob(i + 3 * V::lanes, V::every());
        best = V::max(V::max(best, V::max(a, b)), V::max(c, d));
        mass.add(a, b, c, d);
        sum.add(terms.at(i, V::every(), a), terms.at(i + V::lanes, V::every(), b),
                terms.at(i + 2 * V::lanes, V::every(), c), terms.at(i + 3 * V::lanes, V::every(), d));
    }
    SMX_INLINE constexpr row_mass<V> total() const
    {
        const typename V::vec max = V::reduce_max(best);
        const typename V::wide s = mass.total();
        return {max, s, V::outweighs(max, s)};
    }
};

// J t of a row: sum_j p_j (t_i - t_j) = s t_i - dot
template <class V, class Tangent>
struct centred_tangent {
    Tangent tangent;
    row_mass<V> mass;
    typename V::wide dot; // <p, t>
};

template <class V, bool rare, class Tangent>
SMX_INLINE constexpr centred_tangent<V, Tangent> centre_row(const typename V::scalar* p, std::size_t n,
                                                            const Tangent& tangent)
{
    mass_and_sum<V, weighted_terms<V, Tangent>> pass(p, {tangent});
    walk<V, rare>(n, pass);
    return {tangent, pass.total(), pass.sum.total()};
}

// An entry that outweighs the others becomes the origin: its own component is then exact. Without such an entry there is
// none: an outlier at the largest p would drown the rest.
template <class V>
constexpr centred_tangent<V, tangent_row<V>> centre_at_largest(const typename V::scalar* p, const typename V::scalar* v,
                                                               std::size_t n, const typename V::vec& max)
{
    return centre_row<V, true>(p, n, tangent_row<V>{v, V::broadcast(v + index_of<V>(p, n, max))});
}

template <class V, bool rare>
SMX_INLINE constexpr centred_tangent<V, tangent_row<V>> centre(const typename V::scalar* p, const typename V::scalar* v,
                                                               std::size_t n)
{
    const centred_tangent<V, tangent_row<V>> row = centre_row<V, rare>(p, n, tangent_row<V>{v, V::zero()});
    return row.mass.dominated ? centre_at_largest<V>(p, v, n, row.mass.max) : row;
}

// The same times 2^bias, for rows where all products p_j t_j may be subnormal and so not exact to u. The tiny factor grows.
template <class V, class Tangent>
struct scaled_terms {
    Tangent tangent;

    template <class Inside>
    SMX_INLINE constexpr typename V::vec at(std::size_t i, Inside inside, const typename V::vec& prob) const
    {
        const typename V::vec t = V::where_nonzero(prob, tangent.at(i, inside));
        const typename V::vec scaled = V::where_nonzero(prob, tangent.scaled_at(i, inside));
        return V::where_tiny(V::abs(t), prob * scaled, prob * V::up() * t);
    }
};

template <class V, class Tangent>
constexpr typename V::wide scaled_dot(const typename V::scalar* p, std::size_t n, const Tangent& tangent)
{
    mass_and_sum<V, scaled_terms<V, Tangent>> pass(p, {tangent});
    walk<V, true>(n, pass);
    return pass.sum.total();
}

// max |t_i|, or max |p_i t_i|, over p_i > 0
template <class V, class Tangent, bool weighted>
struct largest_pass : each_step<V, largest_pass<V, Tangent, weighted>> {
    const typename V::scalar* p;
    Tangent tangent;
    typename V::vec best;

    SMX_INLINE constexpr largest_pass(const typename V::scalar* p_, const Tangent& tangent_)
        : p(p_), tangent(tangent_), best(V::zero())
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        const typename V::vec prob = V::load(p + i, inside, V::zero());
        const typename V::vec t = V::where_nonzero(prob, tangent.at(i, inside));
        best = V::max(best, V::abs(weighted ? prob * t : t));
    }
};

template <class V, bool weighted, class Tangent>
constexpr bool all_tiny(const typename V::scalar* p, std::size_t n, const Tangent& tangent)
{
    largest_pass<V, Tangent, weighted> pass(p, tangent);
    walk<V, true>(n, pass);
    return V::is_tiny(V::reduce_max(pass.best));
}

// out_i = p_i (s t_i - dot); 0 where p_i = 0
template <class V, class Tangent>
struct product_pass : each_step<V, product_pass<V, Tangent>> {
    const typename V::scalar* p;
    typename V::scalar* out;
    centred_tangent<V, Tangent> row;

    SMX_INLINE constexpr product_pass(const typename V::scalar* p_, typename V::scalar* out_,
                                      const centred_tangent<V, Tangent>& row_)
        : p(p_), out(out_), row(row_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        const typename V::vec prob = V::load(p + i, inside, V::zero());
        const typename V::vec t = V::where_nonzero(prob, row.tangent.at(i, inside));
        const typename V::vec centred = V::scaled_minus(row.mass.sum, t, row.dot);
        V::store(out + i, inside, V::where_nonzero(prob, row.tangent.unscaled(prob * centred)));
    }
};

template <class V, class Tangent>
struct scaled_product_pass : each_step<V, scaled_product_pass<V, Tangent>> {
    const typename V::scalar* p;
    typename V::scalar* out;
    centred_tangent<V, Tangent> row;
    typename V::wide dot; // times 2^bias

    SMX_INLINE constexpr scaled_product_pass(const typename V::scalar* p_, typename V::scalar* out_,
                                             const centred_tangent<V, Tangent>& row_, const typename V::wide& dot_)
        : p(p_), out(out_), row(row_), dot(dot_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        const typename V::vec prob = V::load(p + i, inside, V::zero());
        const typename V::vec t = V::where_nonzero(prob, row.tangent.at(i, inside));
        const typename V::vec scaled_t = V::where_nonzero(prob, row.tangent.scaled_at(i, inside));
        const typename V::vec scaled = prob * V::scaled_minus(row.mass.sum, scaled_t, dot) * V::down();
        const typename V::vec product = prob * V::scaled_minus(row.mass.sum, t, row.dot);
        V::store(out + i, inside,
                 V::where_nonzero(prob, row.tangent.unscaled(V::where_tiny(V::abs(t), scaled, product))));
    }
};

template <class V, bool rare, class Tangent>
SMX_INLINE constexpr void product(const typename V::scalar* p, typename V::scalar* out, std::size_t n,
                                  const centred_tangent<V, Tangent>& row)
{
    if (V::is_tiny(V::narrow(row.dot)) && all_tiny<V, true>(p, n, row.tangent)) {
        scaled_product_pass<V, Tangent> pass(p, out, row, scaled_dot<V>(p, n, row.tangent));
        return walk<V, true>(n, pass);
    }
    product_pass<V, Tangent> pass(p, out, row);
    walk<V, rare>(n, pass);
}

// Short rows do not wait for s to see which probability outweighs all others together: where s is 1 but for rounding, one that
// is above a half, by so much that no two are.
template <class V>
SMX_INLINE typename V::some winners(const typename V::vec& once)
{
    return V::less_than(V::set1(typename V::scalar(0.5 + 0x1p-11)), once);
}
// v - origin of a row of one step. Where a probability outweighs all others together, its tangent is the origin; else 0 is. No
// branch: half of all rows may have one.
template <class V>
SMX_INLINE typename V::vec tangent_in_step(const typename V::vec& once, const typename V::vec& v)
{
    return v - V::only(winners<V>(once), v);
}

// A short row of floats, or of doubles, as vectors D of doubles. The last one ends with the row; once: no entry twice.
template <class V, std::size_t... k>
struct doubled_row {
    using D = typename V::wide_lanes;
    using vec = typename D::vec;
    static constexpr std::size_t count = sizeof...(k);
    using row = held_steps<D, count, 1>;
    vec prob[count], once[count];
    std::size_t n;

    template <std::size_t i>
    SMX_INLINE vec load(const typename V::scalar* x) const
    {
        if constexpr (count == 1)
            return V::load_doubled(x, n);
        else
            return V::load_doubled(x + row::template start<i>(n), D::lanes);
    }
    template <std::size_t i>
    SMX_INLINE auto own() const
    {
        if constexpr (count == 1)
            return V::inside_doubled(n);
        else
            return row::template own<i>(n);
    }
    SMX_INLINE doubled_row(const typename V::scalar* p, std::size_t n_) : n(n_)
    {
        ((prob[k] = load<k>(p)), ...);
        ((once[k] = D::keep(own<k>(), prob[k])), ...);
    }
    template <std::size_t i = 0, std::size_t size = count>
    static SMX_INLINE vec sum_of(const vec (&x)[count])
    {
        if constexpr (size == 1)
            return x[i];
        else
            return sum_of<i, size / 2>(x) + sum_of<i + size / 2, size - size / 2>(x);
    }
    // what the probability must exceed that has all but 2^-22 of s
    static SMX_INLINE vec most_of(const vec& s) { return s * D::set1(1 - 0x1p-22); }
    SMX_INLINE bool is_saturated(const vec& most) const
    {
        vec largest = once[0];
        ((largest = k == 0 ? largest : D::max(largest, once[k])), ...);
        return D::count(D::less_than(most, largest)) != 0;
    }
    template <std::size_t i>
    SMX_INLINE void store(typename V::scalar* out, const vec& x) const
    {
        if constexpr (count == 1)
            V::store_doubled(out, n, x);
        else
            V::store_doubled(out + row::template start<i>(n), D::lanes, x);
    }
};

// t as a factor of p; careful: 0 where p = 0, so that 0 infinity is never formed
template <class V, bool careful>
SMX_INLINE typename V::vec factor_of(const typename V::vec& prob, const typename V::vec& t)
{
    return careful ? V::where_nonzero(prob, t) : t;
}

// J t, t = v - v_m: in double p t has no error, and s t_i - <p, t> none that counts, whatever outweighs the others, so long as
// entry m is not very rare; a constant tangent gives 0. m is the first entry or, where careful, a later one. False: there is no
// such m, or s makes it rare; where not careful, an infinite tangent too, which may meet p = 0.
template <class V, bool of_log, bool careful, std::size_t... k>
struct doubled_product : doubled_row<V, k...> {
    using base = doubled_row<V, k...>;
    using base::count, base::once, base::prob;
    using typename base::D;
    using typename base::vec;
    static constexpr auto rare = static_cast<typename V::scalar>(0x1p-20);
    const typename V::scalar* p;
    const typename V::scalar* v;
    vec t[count];

    SMX_INLINE doubled_product(const typename V::scalar* p_, const typename V::scalar* v_, std::size_t n_)
        : base(p_, n_), p(p_), v(v_)
    {
        ((t[k] = D::in_register(base::template load<k>(v))), ...);
    }
    SMX_INLINE bool takes_origin()
    {
        vec origin;
        if constexpr (careful) {
            const typename D::some which[] = {D::less_than(D::set1(static_cast<double>(rare)), prob[k])...};
            typename D::some some = which[0];
            origin = t[0];
            ((some = k == 0 ? some : D::either(some, which[k])), ...);
            ((origin = k == 0 ? origin : D::select(which[k], t[k], origin)), ...);
            if (D::count(some) == 0)
                return false;
            origin = D::first_of(some, origin);
        } else {
            if (!SMX_LIKELY(rare < p[0]))
                return false;
            origin = D::set1(static_cast<double>(v[0]));
        }
        ((t[k] = t[k] - origin), ...);
        return true;
    }
    template <std::size_t i>
    SMX_INLINE vec factor(const vec& prob_i) const
    {
        return factor_of<D, careful>(prob_i, t[i]);
    }
    template <std::size_t i = 0, std::size_t size = count>
    SMX_INLINE vec dot_terms() const
    {
        if constexpr (size == 1)
            return once[i] * factor<i>(once[i]);
        else if constexpr (size == 2)
            return D::fma(once[i + 1], factor<i + 1>(once[i + 1]), once[i] * factor<i>(once[i]));
        else
            return dot_terms<i, size / 2>() + dot_terms<i + size / 2, size - size / 2>();
    }
    // p_i (s t_i - <p, t>), by an addition that makes -0 0; for log_softmax s t_i - <p, t>, also where p_i = 0
    template <std::size_t i>
    SMX_INLINE vec result(const vec& s, const vec& dot, const vec& zero) const
    {
        if constexpr (of_log)
            return D::fms(s, t[i], dot);
        const vec product = D::fma(prob[i], D::fms(s, factor<i>(prob[i]), dot), zero);
        return careful ? D::where_nonzero(prob[i], product) : product;
    }
    SMX_INLINE bool store(typename V::scalar* out)
    {
        if (!takes_origin())
            return false;
        const typename D::two_sums sums = D::lane_sums(base::sum_of(once), dot_terms());
        const vec s = sums.first(), dot = sums.second();
        if (D::lane_bits(s) > __builtin_bit_cast(std::uint64_t, 16.0) || (!careful && !D::is_finite(dot)))
            return false;
        const vec zero = D::in_register(D::zero()); // nothing known, or Clang leaves the addition out
        (base::template store<k>(out, result<k>(s, dot, zero)), ...);
        return true;
    }
};

template <bool of_log, bool careful> // the four kinds as templates of one shape
struct doubled_kind {
    template <class V, std::size_t... k>
    using row = doubled_product<V, of_log, careful, k...>;
};

// u_i sum_{j != i} p_j - p_i sum_{j != i} u_j = u_i s - p_i sum u: what cancels has no error that counts, but where the entry
// is saturated: its sums leave it out.
template <class V, std::size_t... k>
struct doubled_log_vjp : doubled_row<V, k...> {
    using base = doubled_row<V, k...>;
    using base::count, base::once, base::prob;
    using typename base::D;
    using typename base::vec;
    vec u[count], u_once[count];

    SMX_INLINE doubled_log_vjp(const typename V::scalar* p, const typename V::scalar* u_, std::size_t n_) : base(p, n_)
    {
        ((u[k] = base::template load<k>(u_)), ...);
        ((u_once[k] = D::keep(base::template own<k>(), u[k])), ...);
    }
    SMX_INLINE bool store(typename V::scalar* out) const
    {
        const typename D::two_sums sums = D::lane_sums(base::sum_of(once), base::sum_of(u_once));
        const vec s = sums.first(), total = sums.second(), most = base::most_of(s);
        vec result[] = {D::fms(u[k], s, prob[k] * total)...};
        if (base::is_saturated(most)) {
            const typename D::some saturated[] = {D::less_than(most, prob[k])...};
            const vec few[] = {D::select(saturated[k], D::zero(), once[k])...};
            const vec few_u[] = {D::select(saturated[k], D::zero(), u_once[k])...};
            const typename D::two_sums rest = D::lane_sums(base::sum_of(few), base::sum_of(few_u));
            const vec rest_p = rest.first(), rest_u = rest.second();
            ((result[k] = D::select(saturated[k], D::fms(u[k], rest_p, prob[k] * rest_u), result[k])), ...);
        }
        (base::template store<k>(out, result[k]), ...);
        return true;
    }
};

template <class Row, class T, class... More>
SMX_INLINE std::size_t doubled_rows_of(const T* p, const T* v, T* out, std::size_t rows, std::size_t n,
                                       std::size_t stride, More... more)
{
    for (std::size_t r = 0; r < rows; ++r)
        if (!Row(p + r * stride, v + r * stride, n, more...).store(out + r * stride))
            return r;
    return rows;
}

// how many rows of at most V::most_doubled entries were stored before one that is another; more: what else a row takes
template <class V, template <class, std::size_t...> class Row, class... More>
SMX_INLINE std::size_t doubled_rows(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                    std::size_t rows, std::size_t n, std::size_t stride, More... more)
{
    constexpr std::size_t m = V::wide_lanes::lanes;
    if (n < m)
        return doubled_rows_of<Row<V, 0>>(p, v, out, rows, n, stride, more...);
    else if (n == m)
        return doubled_rows_of<Row<V, 0>>(p, v, out, rows, m, stride, more...);
    else if (n <= 2 * m)
        return doubled_rows_of<Row<V, 0, 1>>(p, v, out, rows, n, stride, more...);
    else if (n <= 3 * m)
        return doubled_rows_of<Row<V, 0, 1, 2>>(p, v, out, rows, n, stride, more...);
    else
        return doubled_rows_of<Row<V, 0, 1, 2, 3>>(p, v, out, rows, n, stride, more...);
}

// The same of any short row of floats, one entry after the other; m is that of the largest p.
template <class V, bool of_log>
SMX_APART void product_by_largest(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                  std::size_t n)
{
    std::size_t m = 0;
    for (std::size_t i = 1; i < n; ++i)
        if (p[m] < p[i])
            m = i;
    const real origin{static_cast<double>(v[m])};
    real s{0}, dot{0};
    for (std::size_t i = 0; i < n; ++i) {
        const real prob{static_cast<double>(p[i])};
        s = s + prob;
        if (!V::vanishes(p + i))
            dot = dot + prob * (real{static_cast<double>(v[i])} - origin);
    }
    for (std::size_t i = 0; i < n; ++i) {
        real centred = s * (real{static_cast<double>(v[i])} - origin) - dot;
        if constexpr (!of_log)
            centred = V::vanishes(p + i) ? real{0} : real{static_cast<double>(p[i])} * centred;
        out[i] = static_cast<typename V::scalar>(centred.value);
    }
}

template <class V, bool of_log>
SMX_APART void careful_short_product(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                     std::size_t n)
{
    if (doubled_rows<V, doubled_kind<of_log, true>::template row>(p, v, out, 1, n, n) == 0)
        product_by_largest<V, of_log>(p, v, out, n);
}

// J v of a short row with one p that is not 0, s = p_m, v_m finite: 0; for log_softmax s (v_i - v_m). False: the row is another.
template <class V, bool of_log>
SMX_APART bool product_of_one(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                              std::size_t n)
{
    std::size_t m = 0, count = 0;
    for (std::size_t i = 0; i < n; ++i)
        if (!(p[i] == 0)) {
            m = i;
            ++count;
        }
    if (count != 1)
        return false;
    const real s{static_cast<double>(p[m])}, origin{static_cast<double>(v[m])};
    for (std::size_t i = 0; i < n; ++i)
        out[i] = of_log ? static_cast<typename V::scalar>((s * (real{static_cast<double>(v[i])} - origin)).value) : 0;
    return true;
}

// Short rows that are not doubled are careful where a probability is 0 or subnormal; of doubles always where that costs no
// more than to look for it.
template <class V>
constexpr bool careful_at_once = !V::is_doubled && V::registers == 1;

template <class V>
SMX_INLINE bool has_rare(const typename V::vec& prob)
{
    return V::count(V::less_than(prob, V::set1(typename V::scalar(0x1p-126)))) != 0;
}

// p_i (s t_i - <p, t>); for log_softmax s t_i - <p, t>
template <class V, bool of_log, bool careful>
SMX_INLINE typename V::vec product_of(const typename V::vec& prob, const typename V::vec& t, real mass, real dot)
{
    if constexpr (of_log)
        return V::rough_minus(mass, t, dot);
    const typename V::vec product = prob * V::rough_minus(mass, factor_of<V, careful>(prob, t), dot);
    return careful ? V::where_nonzero(prob, product) : product;
}

// A row of one step in which s is 1 but for rounding and the products are not tiny; else false.
template <class V, bool of_log, bool careful>
SMX_INLINE bool product_in_step(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                std::size_t n)
{
    const typename V::some inside = V::inside_short(n);
    const typename V::vec prob = V::load_short(p, n), once = V::keep(inside, prob);
    if (!careful && has_rare<V>(prob))
        return false;
    const typename V::vec t = tangent_in_step<V>(once, V::load_short(v, n));
    const typename V::product_sums sums =
        V::product_sums_of(once, V::keep(inside, prob * factor_of<V, careful>(prob, t)));
    if (!is_one_but_for_rounding(sums.mass))
        return false;
    if (V::is_tiny_sum(sums.dot))
        return product_of_one<V, of_log>(p, v, out, n);
    V::store_short(out, n, product_of<V, of_log, careful>(prob, t, sums.mass, sums.dot));
    return true;
}

// The probabilities of a row of more than one step, in registers.
template <class V, std::size_t steps, std::size_t partial>
struct held_probs {
    using row = held_steps<V, steps, partial>;
    std::size_t n;
    const typename V::scalar* p;
    typename V::vec prob[steps];

    SMX_INLINE held_probs(std::size_t n_, const typename V::scalar* p_) : n(n_), p(p_) {}

    template <std::size_t k = 0>
    SMX_INLINE void load(const typename V::scalar* from, typename V::vec (&x)[steps]) const
    {
        x[k] = V::load(from + row::template start<k>(n), V::every(), V::zero());
        if constexpr (k + 1 < steps)
            load<k + 1>(from, x);
    }
    template <std::size_t k = 0>
    SMX_INLINE typename V::vec max() const
    {
        if constexpr (k + 1 < steps)
            return V::max(prob[k], max<k + 1>());
        else
            return prob[k];
    }
    template <std::size_t k = 0>
    SMX_INLINE typename V::vec min() const
    {
        if constexpr (k + 1 < steps)
            return V::min(prob[k], min<k + 1>());
        else
            return prob[k];
    }
    template <std::size_t k>
    SMX_INLINE typename V::vec own(const typename V::vec (&x)[steps]) const // no entry twice
    {
        return V::keep(row::template own<k>(n), x[k]);
    }
    // x at the entry that outweighs the others, in all lanes; 0 if there is none
    template <std::size_t k = 0>
    SMX_INLINE typename V::some find_winner(const typename V::scalar* x, typename V::vec& value) const
    {
        const typename V::some here = winners<V>(own<k>(prob));
        value = V::select(here, V::load(x + row::template start<k>(n), V::every(), V::zero()), value);
        if constexpr (k + 1 < steps)
            return V::either(here, find_winner<k + 1>(x, value));
        else
            return here;
    }
    SMX_INLINE typename V::vec at_winner(const typename V::scalar* x) const
    {
        typename V::vec value = V::zero();
        const typename V::some which = find_winner(x, value);
        return V::only(which, value);
    }
    SMX_INLINE bool has_winner() const { return V::count(winners<V>(max())) != 0; }
    // pairs or fours before they meet a sum
    template <std::size_t k = 0, std::size_t count = steps>
    SMX_INLINE typename V::vec terms(const typename V::vec (&x)[steps]) const
    {
        if constexpr (count == 1)
            return own<k>(x);
        else
            return terms<k, count / 2>(x) + terms<k + count / 2, count / 2>(x);
    }
};

// The same of a row of more than one step in registers.
template <class V, std::size_t steps, std::size_t partial, bool of_log, bool careful>
struct held_product : held_probs<V, steps, partial> {
    using base = held_probs<V, steps, partial>;
    using base::n, base::p, base::prob;
    using typename base::row;
    const typename V::scalar* v;
    typename V::vec t[steps];

    SMX_INLINE held_product(std::size_t n_, const typename V::scalar* p_, const typename V::scalar* v_)
        : base(n_, p_), v(v_)
    {
    }
    template <std::size_t k = 0>
    SMX_INLINE void load_tangents(const typename V::vec& origin)
    {
        t[k] = V::load(v + row::template start<k>(n), V::every(), V::zero()) - origin;
        if constexpr (k + 1 < steps)
            load_tangents<k + 1>(origin);
    }
    // as terms
    template <std::size_t k = 0, std::size_t count = steps>
    SMX_INLINE typename V::vec dot_terms() const
    {
        if constexpr (count == 2) {
            const typename V::vec a = base::template own<k>(prob), b = base::template own<k + 1>(prob);
            return V::fma(b, factor_of<V, careful>(b, t[k + 1]), a * factor_of<V, careful>(a, t[k]));
        } else
            return dot_terms<k, count / 2>() + dot_terms<k + count / 2, count / 2>();
    }
    template <std::size_t k = 0>
    SMX_INLINE void store_products(typename V::scalar* out, real mass, real dot) const
    {
        V::store(out + row::template start<k>(n), V::every(), product_of<V, of_log, careful>(prob[k], t[k], mass, dot));
        if constexpr (k + 1 < steps)
            store_products<k + 1>(out, mass, dot);
    }
    SMX_INLINE typename V::vec origin() const // of two steps, without a branch
    {
        return steps == 2 || base::has_winner() ? base::at_winner(v) : V::zero();
    }
    // false: s is not 1 but for rounding, the products are tiny, or, where not careful, infinite or a probability is rare
    SMX_INLINE bool done(typename V::scalar* out)
    {
        base::load(p, prob);
        if (!careful && has_rare<V>(base::min()))
            return false;
        load_tangents(origin());
        const typename V::product_sums sums = V::product_sums_of(base::terms(prob), dot_terms());
        if (!is_one_but_for_rounding(sums.mass) || (!careful && !is_finite(sums.dot)))
            return false;
        if (V::is_tiny_sum(sums.dot))
            return product_of_one<V, of_log>(p, v, out, n);
        store_products(out, sums.mass, sums.dot);
        return true;
    }
};

template <class V, template <class, std::size_t, std::size_t> class Held> // of more than one step
SMX_INLINE bool done_in_registers(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                  std::size_t n)
{
    if constexpr (!V::is_doubled)
        if (n <= 2 * V::lanes)
            return Held<V, 2, 1>(n, p, v).done(out);
    return Held<V, 4, 2>(n, p, v).done(out);
}

template <bool of_log, bool careful>
struct held_kind {
    template <class V, std::size_t steps, std::size_t partial>
    using row = held_product<V, steps, partial, of_log, careful>;
};

template <class V, bool of_log, bool careful>
SMX_INLINE bool product_in_registers(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                     std::size_t n)
{
    if constexpr (!V::is_doubled)
        if (n <= V::lanes)
            return product_in_step<V, of_log, careful>(p, v, out, n);
    return done_in_registers<V, held_kind<of_log, careful>::template row>(p, v, out, n);
}

// s and <p, v>, or the sum of v where not weighted, of a row of more than one step, in which winners count as 0. careful: a
// product with p = 0 is 0, whatever v.
template <class V, bool weighted, bool careful>
struct sums_without_winner {
    using vec = typename V::vec;
    static constexpr auto half = static_cast<typename V::scalar>(0.5); // all above are counted, so two are noticed
    const typename V::scalar* p;
    const typename V::scalar* v;
    typename V::sum mass, dot;
    std::size_t winner, count; // the last of the winners, and how many there are

    SMX_INLINE sums_without_winner(const typename V::scalar* p_, const typename V::scalar* v_)
        : p(p_), v(v_), mass(), dot(), winner(0), count(0)
    {
    }
    SMX_INLINE vec load(std::size_t i) const { return V::in_register(V::load(p + i, V::every(), V::zero())); }
    SMX_INLINE vec tangent(std::size_t i, const vec& prob) const
    {
        return factor_of<V, careful>(prob, V::load(v + i, V::every(), V::zero()));
    }
    // one step of the other sum, or two
    SMX_INLINE vec other(std::size_t i, const vec& prob) const
    {
        return weighted ? prob * tangent(i, prob) : tangent(i, prob);
    }
    SMX_INLINE vec other(std::size_t i, const vec& first, const vec& second) const
    {
        if constexpr (weighted)
            return V::fma(second, tangent(i + V::lanes, second), other(i, first));
        else
            return other(i, first) + other(i + V::lanes, second);
    }
    // the same of a step with winners
    template <class Inside>
    SMX_INLINE void add_step(std::size_t i, Inside inside, vec& probs, vec& others)
    {
        const vec x = V::keep(inside, load(i));
        const typename V::some here = V::less_than(V::set1(half), x);
        if (V::count(here) != 0) {
            winner = i + V::lowest(here);
            count += V::count(here);
        }
        const vec prob = V::without_largest(here, x);
        probs = probs + prob;
        others =
            others + (weighted ? prob * tangent(i, prob) : V::without_largest(here, V::keep(inside, tangent(i, prob))));
    }
    // s counts twice as much as <p, v>: no more than fours of it are added to each other before they meet the sum
    SMX_INLINE vec add_four(std::size_t i) // their part of the other sum
    {
        constexpr std::size_t m = V::lanes;
        const vec a = load(i), b = load(i + m), c = load(i + 2 * m), d = load(i + 3 * m);
        if (SMX_LIKELY(V::count(V::less_than(V::set1(half), V::max(V::max(a, b), V::max(c, d)))) == 0)) {
            mass.add((a + b) + (c + d));
            return other(i, a, b) + other(i + 2 * m, c, d);
        }
        vec probs = V::zero(), others = probs;
        for (std::size_t k = 0; k < 4 * m; k += m)
            add_step(i + k, V::every(), probs, others);
        mass.add(probs);
        return others;
    }
    SMX_INLINE void add_row(std::size_t n)
    {
        constexpr std::size_t m = V::lanes, group = V::rough_group;
        std::size_t i = 0;
        for (; n - i >= group * m; i += group * m) {
            vec others = add_four(i);
            if constexpr (group == 8)
                others = others + add_four(i + 4 * m);
            dot.add(others);
        }
        if (i == n)
            return;
        vec probs = V::zero(), others = probs;
        if (group == 8 && n - i >= 4 * m) {
            others = add_four(i);
            i += 4 * m;
        }
        for (; n - i >= m; i += m)
            add_step(i, V::every(), probs, others);
        if (i < n)
            add_step(n - m, V::from(i - (n - m)), probs, others);
        mass.add(probs);
        dot.add(others);
    }
};

// out_i = p_i (s v_i - <p, v>); for log_softmax s v_i - <p, v>. halved: by s / 2 and <p, v> / 2, so that nothing overflows where
// p_i = 0.
template <class V, bool of_log, bool halved>
struct near_product {
    const typename V::scalar* p;
    const typename V::scalar* v;
    real mass, dot;
    typename V::vec zero; // of which nothing is known, or Clang leaves the addition out

    SMX_INLINE near_product(const typename V::scalar* p_, const typename V::scalar* v_, real mass_, real dot_)
        : p(p_), v(v_), mass(mass_), dot(dot_), zero(V::in_register(V::zero()))
    {
    }
    SMX_INLINE typename V::vec at(std::size_t i, typename V::all inside) const
    {
        const typename V::vec t = V::load(v + i, inside, V::zero());
        if constexpr (of_log)
            return V::rough_minus(mass, t, dot);
        const typename V::vec prob = V::in_register(V::load(p + i, inside, V::zero()));
        if constexpr (halved)
            return V::fma(prob + prob, V::rough_minus(mass, t, dot), zero);
        else
            return product_of<V, of_log, true>(prob, t, mass, dot);
    }
};

// A row of more than one step in which s is 1 but for rounding and the products are neither tiny nor infinite; else false. The
// last step ends with the row, whatever it has in common with the one before. The component of a winner m comes from the sums
// without it, sum_j p_j (v_m - v_j); false too where hardly a digit of that is left: a constant tangent gives 0.
template <class V, bool of_log, bool careful>
SMX_INLINE bool product_of_steps(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                 std::size_t n)
{
    sums_without_winner<V, true, careful> sums(p, v);
    sums.add_row(n);
    const typename V::product_sums total = V::totals_of(sums.mass, sums.dot);
    constexpr bool halved = !of_log && !careful;
    near_product<V, of_log, halved> product(p, v, total.mass, total.dot);
    const std::size_t m = sums.winner;
    real of_winner{0};
    bool is_alone = false; // no other p but 0
    if (sums.count != 0) {
        product.mass = sums.mass.rough_total();
        is_alone = product.mass == real{0};
        const real prob{static_cast<double>(p[m])}, tangent{static_cast<double>(v[m])}, moved = product.mass * tangent;
        of_winner = moved - product.dot;
        if (!is_alone && (is_below(of_winner, (moved * real{0x1p-18}).value) || V::is_tiny_sum(of_winner)))
            return false;
        if constexpr (!of_log)
            of_winner = prob * of_winner;
        product.mass = product.mass + prob;
        product.dot = product.dot + prob * tangent;
    }
    if (sums.count > 1 || !is_one_but_for_rounding(product.mass) || !is_finite(product.dot) || !V::can_group() ||
        (V::is_tiny_sum(product.dot) && !(is_alone && product.dot == real{0})))
        return false;
    if constexpr (halved) {
        product.mass = product.mass * real{0.5};
        product.dot = product.dot * real{0.5};
    }
    store_lines<V>(n, out, product);
    if (sums.count != 0)
        out[m] = static_cast<typename V::scalar>(of_winner.value);
    return true;
}

template <class V, bool of_log> // what is infinite or NaN where p = 0 has no effect on others
SMX_APART bool careful_product(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                               std::size_t n)
{
    if (n > V::most_held_of_products)
        return product_of_steps<V, of_log, true>(p, v, out, n);
    if constexpr (careful_at_once<V>)
        return false;
    else
        return product_in_registers<V, of_log, true>(p, v, out, n);
}

// out_i = s t_i - dot
template <class V>
struct log_jvp_pass : each_step<V, log_jvp_pass<V>> {
    typename V::scalar* out;
    centred_tangent<V, tangent_row<V>> row;

    SMX_INLINE constexpr log_jvp_pass(typename V::scalar* out_, const centred_tangent<V, tangent_row<V>>& row_)
        : out(out_), row(row_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        V::store(out + i, inside, V::scaled_minus(row.mass.sum, row.tangent.at(i, inside), row.dot));
    }
};

template <class V>
struct scaled_log_jvp_pass : each_step<V, scaled_log_jvp_pass<V>> {
    typename V::scalar* out;
    centred_tangent<V, tangent_row<V>> row;
    typename V::wide scaled_dot;

    SMX_INLINE constexpr scaled_log_jvp_pass(typename V::scalar* out_, const centred_tangent<V, tangent_row<V>>& row_,
                                             const typename V::wide& scaled_dot_)
        : out(out_), row(row_), scaled_dot(scaled_dot_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        const typename V::vec t = row.tangent.at(i, inside);
        const typename V::vec scaled = V::scaled_minus(row.mass.sum, row.tangent.scaled_at(i, inside), scaled_dot);
        V::store(out + i, inside,
                 V::where_tiny(V::abs(t), scaled * V::down(), V::scaled_minus(row.mass.sum, t, row.dot)));
    }
};

template <class V>
constexpr void scaled_log_jvp(const typename V::scalar* p, typename V::scalar* out, std::size_t n,
                              const centred_tangent<V, tangent_row<V>>& row)
{
    scaled_log_jvp_pass<V> pass(out, row, scaled_dot<V>(p, n, row.tangent));
    walk<V, true>(n, pass);
}

template <class V, bool of_log>
SMX_APART constexpr void any_product(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                     std::size_t n)
{
    constexpr bool rare = V::lanes > 1;
    if constexpr (rare)
        if ((n > V::most_held_of_products && product_of_steps<V, of_log, false>(p, v, out, n)) ||
            careful_product<V, of_log>(p, v, out, n))
            return;
    const centred_tangent<V, tangent_row<V>> row = centre<V, rare>(p, v, n);
    if constexpr (!of_log)
        product<V, rare>(p, out, n, row);
    else if (V::is_tiny(V::narrow(row.dot)) && all_tiny<V, true>(p, n, row.tangent))
        scaled_log_jvp<V>(p, out, n, row);
    else {
        log_jvp_pass<V> pass(out, row);
        walk<V, rare>(n, pass);
    }
}

template <class V, bool of_log>
SMX_INLINE void longer_product(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                               std::size_t n)
{
    if (n != 0 && (n > V::most_held_of_products || !product_in_registers<V, of_log, careful_at_once<V>>(p, v, out, n)))
        any_product<V, of_log>(p, v, out, n);
}

template <class V, bool of_log>
SMX_APART void longer_product_apart(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                    std::size_t n)
{
    longer_product<V, of_log>(p, v, out, n);
}

template <class V, bool of_log>
SMX_INLINE constexpr void row_product(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                      std::size_t n)
{
    if constexpr (V::is_doubled) {
        if (n - 1 >= V::most_doubled)
            longer_product_apart<V, of_log>(p, v, out, n);
        else if (doubled_rows<V, doubled_kind<of_log, false>::template row>(p, v, out, 1, n, n) == 0)
            careful_short_product<V, of_log>(p, v, out, n);
    } else if constexpr (V::lanes > 1)
        longer_product<V, of_log>(p, v, out, n);
    else
        any_product<V, of_log>(p, v, out, n);
}

template <class V>
constexpr void row_softmax_jvp(const typename V::scalar* probs, const typename V::scalar* tangent,
                               typename V::scalar* out, std::size_t n)
{
    row_product<V, false>(probs, tangent, out, n);
}

template <class V>
constexpr void row_log_softmax_jvp(const typename V::scalar* probs, const typename V::scalar* tangent,
                                   typename V::scalar* out, std::size_t n)
{
    row_product<V, true>(probs, tangent, out, n);
}

// sum of x, with no addition before that to the sum: an error of 2 ULP is all that the diagonal of J has
template <class V>
struct sum_pass : each_step<V, sum_pass<V>> {
    const typename V::scalar* x;
    typename V::sum sum;

    explicit SMX_INLINE constexpr sum_pass(const typename V::scalar* x_) : x(x_), sum() {}
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        sum.add(V::load(x + i, inside, V::zero()));
    }
};

template <class V>
constexpr typename V::wide sum_of(const typename V::scalar* x, std::size_t n)
{
    sum_pass<V> pass(x);
    walk<V, true>(n, pass);
    return pass.sum.total();
}

template <class V>
constexpr row_mass<V> mass_of(const typename V::scalar* p, std::size_t n)
{
    const typename V::wide sum = sum_of<V>(p, n);
    const typename V::vec max = row_max<V>(p, n, every_entry<V>{}, V::zero());
    return {max, sum, V::outweighs(max, sum)};
}

// sum_{j != i} x_j for every i. For the entry that outweighs the others they are summed without it; for every other entry
// s - p_i is at least s / 2 and loses nothing.
template <class V>
struct others {
    typename V::wide sum;     // of all
    typename V::wide without; // of all but the dominating entry
    typename V::vec max;      // the dominating probability
    bool dominated;

    constexpr others(const typename V::scalar* x_, std::size_t n_, const typename V::wide& sum_,
                     const typename V::scalar* p_, const row_mass<V>& mass_)
        : sum(sum_), without(sum_), max(mass_.max), dominated(mass_.dominated)
    {
        if (dominated) {
            const std::size_t m = index_of<V>(p_, n_, max);
            without = V::total(sum_of<V>(x_, m), sum_of<V>(x_ + m + 1, n_ - m - 1));
        }
    }

    // for the entries with probabilities p and values x
    SMX_INLINE constexpr typename V::vec of(const typename V::vec& p, const typename V::vec& x) const
    {
        const typename V::vec rest = V::minus(sum, x);
        return dominated ? V::select(V::equals(V::every(), p, max), V::narrow(without), rest) : rest;
    }
    // factor sum_{j != i} x_j for the entry with probability and value *p, rounded once
    SMX_INLINE constexpr typename V::vec times(const typename V::vec& factor, const typename V::scalar* p) const
    {
        return V::product(factor, dominated && V::broadcast_equals(p, max) ? without : V::total_without(sum, p));
    }
};

// u[i], whatever p[i]
template <class V>
struct cotangent_terms {
    const typename V::scalar* u;

    template <class Inside>
    SMX_INLINE constexpr typename V::vec at(std::size_t i, Inside inside, const typename V::vec&) const
    {
        return V::load(u + i, inside, V::zero());
    }
};

// u rest - p rest_u; where the larger product is near the subnormal numbers once more, times 2^bias, which others might not stand
template <class V>
SMX_INLINE constexpr typename V::vec log_product(const typename V::vec& prob, const typename V::vec& cotangent,
                                                 const typename V::vec& rest, const typename V::vec& rest_u)
{
    const typename V::vec a = cotangent * rest, b = prob * rest_u, largest = V::max(V::abs(a), V::abs(b));
    if (SMX_LIKELY(!V::is_tiny(largest)))
        return a - b;
    const typename V::vec small_u = V::alone(V::where_tiny(largest, cotangent, V::zero()));
    const typename V::vec small_p = V::alone(V::where_tiny(largest, prob, V::zero()));
    const typename V::vec scaled = (small_u * (rest * V::up()) - small_p * V::up() * rest_u) * V::down();
    return V::where_tiny(largest, scaled, a - b);
}

// out_i = u_i sum_{j != i} p_j - p_i sum_{j != i} u_j
template <class V>
struct log_vjp_pass : each_step<V, log_vjp_pass<V>> {
    const typename V::scalar* p;
    const typename V::scalar* u;
    typename V::scalar* out;
    const others<V>& other_probs;
    const others<V>& other_cotangents;

    SMX_INLINE constexpr log_vjp_pass(const typename V::scalar* p_, const typename V::scalar* u_,
                                      typename V::scalar* out_, const others<V>& other_probs_,
                                      const others<V>& other_cotangents_)
        : p(p_), u(u_), out(out_), other_probs(other_probs_), other_cotangents(other_cotangents_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        const typename V::vec prob = V::load(p + i, inside, V::zero());
        const typename V::vec cotangent = V::load(u + i, inside, V::zero());
        const typename V::vec rest = other_probs.of(prob, prob), rest_u = other_cotangents.of(prob, cotangent);
        V::store(out + i, inside, log_product<V>(prob, cotangent, rest, rest_u));
    }
};

// The same of a short row in which s is 1 but for rounding: u_i s - p_i sum u; what cancels is no more than half of it, but for a
// winner, whose sums leave it out. False: s is not 1, products are near the subnormal numbers, or the sum of u near infinity.
template <class V>
SMX_INLINE bool log_vjp_in_step(const typename V::scalar* p, const typename V::scalar* u, typename V::scalar* out,
                                std::size_t n)
{
    const typename V::some inside = V::inside_short(n);
    const typename V::vec prob = V::load_short(p, n), once = V::keep(inside, prob);
    const typename V::vec cotangent = V::load_short(u, n);
    const typename V::some winner = winners<V>(once);
    const typename V::vec others = V::select(winner, V::zero(), once);
    const typename V::product_sums rest =
        V::product_sums_of(others, V::select(winner, V::zero(), V::keep(inside, cotangent)));
    const real mass = V::count(winner) != 0 ? V::sum_of_few(others) : rest.mass;
    const real s = mass + V::lane(V::only(winner, once)), total = rest.dot + V::lane(V::only(winner, cotangent));
    const typename V::vec of_winner = V::fms(cotangent, V::narrow(mass), prob * V::narrow(rest.dot));
    const typename V::vec product =
        V::select(winners<V>(prob), of_winner, V::fms(cotangent, V::narrow(s), prob * V::narrow(total)));
    if (V::count(winner) > 1 || !is_one_but_for_rounding(s) || !V::is_below_huge(total) || V::is_tiny(product))
        return false;
    V::store_short(out, n, product);
    return true;
}

template <class V, std::size_t steps, std::size_t partial>
struct held_log_vjp : held_probs<V, steps, partial> {
    using base = held_probs<V, steps, partial>;
    using base::n, base::p, base::prob;
    using typename base::row;
    const typename V::scalar* u;
    typename V::vec cotangent[steps], product[steps];

    SMX_INLINE held_log_vjp(std::size_t n_, const typename V::scalar* p_, const typename V::scalar* u_)
        : base(n_, p_), u(u_)
    {
    }
    SMX_INLINE void load()
    {
        base::load(p, prob);
        base::load(u, cotangent);
    }
    template <std::size_t k = 0>
    SMX_INLINE std::size_t leave_out_winners() // and their number
    {
        const typename V::some winner = winners<V>(prob[k]);
        const std::size_t count = V::count(winners<V>(base::template own<k>(prob)));
        prob[k] = V::select(winner, V::zero(), prob[k]);
        cotangent[k] = V::select(winner, V::zero(), cotangent[k]);
        if constexpr (k + 1 < steps)
            return count + leave_out_winners<k + 1>();
        else
            return count;
    }
    template <std::size_t k = 0>
    SMX_INLINE typename V::some find_products(const typename V::vec& s, const typename V::vec& total) // which are tiny
    {
        product[k] = V::fms(cotangent[k], s, prob[k] * total);
        const typename V::some tiny = V::tiny(product[k]);
        if constexpr (k + 1 < steps)
            return V::either(tiny, find_products<k + 1>(s, total));
        else
            return tiny;
    }
    template <std::size_t k = 0>
    SMX_INLINE void put_winner(const typename V::vec& of_winner)
    {
        product[k] = V::select(winners<V>(prob[k]), of_winner, product[k]);
        if constexpr (k + 1 < steps)
            put_winner<k + 1>(of_winner);
    }
    template <std::size_t k = 0>
    SMX_INLINE void store(typename V::scalar* out) const
    {
        V::store(out + row::template start<k>(n), V::every(), product[k]);
        if constexpr (k + 1 < steps)
            store<k + 1>(out);
    }
    SMX_INLINE bool done(typename V::scalar* out)
    {
        load();
        real p_winner{0}, u_winner{0};
        const bool has_winner = base::has_winner();
        if (has_winner) {
            p_winner = V::lane(base::at_winner(p));
            u_winner = V::lane(base::at_winner(u));
            if (leave_out_winners() > 1)
                return false;
        }
        const typename V::product_sums sums = V::product_sums_of(base::terms(prob), base::terms(cotangent));
        real rest = sums.mass;
        if constexpr (!V::is_doubled)
            if (has_winner)
                rest = V::sum_of_few(base::terms(prob));
        const real s = rest + p_winner, total = sums.dot + u_winner;
        if (has_winner)
            load();
        if (!is_one_but_for_rounding(s) || !V::is_below_huge(total) ||
            V::count(find_products(V::narrow(s), V::narrow(total))) != 0)
            return false;
        if (has_winner) {
            const real a = u_winner * rest, b = p_winner * sums.dot;
            if (V::is_tiny_sum(a) && V::is_tiny_sum(b))
                return false;
            put_winner(V::narrow(a - b));
        }
        store(out);
        return true;
    }
};

template <class V>
SMX_INLINE bool log_vjp_in_registers(const typename V::scalar* p, const typename V::scalar* u, typename V::scalar* out,
                                     std::size_t n)
{
    if constexpr (!V::is_doubled)
        if (n <= V::lanes)
            return log_vjp_in_step<V>(p, u, out, n);
    return done_in_registers<V, held_log_vjp>(p, u, out, n);
}

// The same of a longer row.
template <class V>
struct near_log_vjp {
    const typename V::scalar* p;
    const typename V::scalar* u;
    real probs, cotangents; // the sums of all

    SMX_INLINE typename V::vec at(std::size_t i, typename V::all inside) const
    {
        const typename V::vec prob = V::in_register(V::load(p + i, inside, V::zero()));
        const typename V::vec cotangent = V::in_register(V::load(u + i, inside, V::zero()));
        const typename V::vec s = V::narrow(probs), total = V::narrow(cotangents);
        const typename V::vec product = V::fms(cotangent, s, prob * total);
        if (SMX_LIKELY(!V::is_tiny(product)))
            return product;
        return V::where_tiny(product, log_product<V>(prob, cotangent, s - prob, total - cotangent), product);
    }
};

// As product_of_steps; the sum of u is far from infinite.
template <class V>
SMX_INLINE bool log_vjp_of_steps(const typename V::scalar* p, const typename V::scalar* u, typename V::scalar* out,
                                 std::size_t n)
{
    sums_without_winner<V, false, false> sums(p, u);
    sums.add_row(n);
    const typename V::product_sums total = V::totals_of(sums.mass, sums.dot);
    near_log_vjp<V> product{p, u, total.mass, total.dot};
    const std::size_t m = sums.winner;
    real of_winner{0};
    if (sums.count != 0) {
        product.probs = sums.mass.rough_total();
        const real prob{static_cast<double>(p[m])}, cotangent{static_cast<double>(u[m])};
        const real a = cotangent * product.probs, b = prob * product.cotangents;
        if (V::is_tiny_sum(a) && V::is_tiny_sum(b))
            return false;
        of_winner = a - b;
        product.probs = product.probs + prob;
        product.cotangents = product.cotangents + cotangent;
    }
    if (sums.count > 1 || !is_one_but_for_rounding(product.probs) || !V::is_below_huge(product.cotangents) ||
        !V::can_group())
        return false;
    store_lines<V>(n, out, product);
    if (sums.count != 0)
        out[m] = static_cast<typename V::scalar>(of_winner.value);
    return true;
}

template <class V>
SMX_APART constexpr void any_log_vjp(const typename V::scalar* probs, const typename V::scalar* cotangent,
                                     typename V::scalar* out, std::size_t n)
{
    if constexpr (V::lanes > 1)
        if (n != 0 && (n <= V::most_held_of_products ? log_vjp_in_registers<V>(probs, cotangent, out, n)
                                                     : log_vjp_of_steps<V>(probs, cotangent, out, n)))
            return;
    mass_and_sum<V, cotangent_terms<V>> sums(probs, {cotangent});
    walk<V>(n, sums);
    const row_mass<V> mass = sums.total();
    const others<V> other_probs(probs, n, mass.sum, probs, mass);
    const others<V> other_cotangents(cotangent, n, sums.sum.total(), probs, mass);
    log_vjp_pass<V> pass(probs, cotangent, out, other_probs, other_cotangents);
    walk<V>(n, pass);
}

template <class V>
constexpr void row_log_softmax_vjp(const typename V::scalar* probs, const typename V::scalar* cotangent,
                                   typename V::scalar* out, std::size_t n)
{
    if constexpr (V::is_doubled)
        if (n - 1 < V::most_doubled) {
            doubled_rows<V, doubled_log_vjp>(probs, cotangent, out, 1, n, n);
            return;
        }
    any_log_vjp<V>(probs, cotangent, out, n);
}

// x~ = x - <p, x> / s, from differences with the entry of the largest p; scaled where all that count may be subnormal. Where
// p = 0 a difference counts as 0: products of two might overflow.
template <class V>
struct centring {
    const typename V::scalar* p;
    tangent_row<V> tangent;
    typename V::vec unit, inverse_unit; // 2^bias where scaled, else 1
    typename V::wide mean;              // <p, x - origin> / s

    template <class Inside>
    SMX_INLINE constexpr typename V::vec of(std::size_t i, Inside inside) const
    {
        const typename V::vec t = V::where_nonzero(V::load(p + i, inside, V::zero()), tangent.at(i, inside));
        return V::less(t * unit, mean);
    }
};

template <class V>
constexpr centring<V> centring_of(const typename V::scalar* x, const typename V::scalar* p, std::size_t n,
                                  std::size_t m)
{
    const tangent_row<V> tangent{x, V::broadcast(x + m)};
    const centred_tangent<V, tangent_row<V>> row = centre_row<V, false>(p, n, tangent);
    const typename V::wide mass = V::is_zero(row.mass.sum) ? V::wide_count(1) : row.mass.sum; // no probability, no mean
    if (!V::is_tiny(V::narrow(row.dot)) || !all_tiny<V, false>(p, n, tangent))
        return {p, tangent, V::one(), V::one(), V::quotient(row.dot, mass)};
    return {p, tangent, V::up(), V::down(), V::quotient(scaled_dot<V>(p, n, tangent), mass)};
}

// u~ o v~
template <class V>
struct curvature_row {
    centring<V> u, v;

    template <class Inside>
    SMX_INLINE constexpr typename V::vec at(std::size_t i, Inside inside) const
    {
        return u.of(i, inside) * v.of(i, inside);
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec scaled_at(std::size_t i, Inside inside) const // the smaller factor grows
    {
        const typename V::vec a = u.of(i, inside), b = v.of(i, inside);
        return V::scaled_product(V::alone(V::where_tiny(V::abs(a * b), a, V::zero())), b);
    }
    SMX_INLINE constexpr typename V::vec unscaled(const typename V::vec& product) const
    {
        return product * u.inverse_unit * v.inverse_unit;
    }
};

// No product of two overflows, and not all are subnormal, or all are 0.
template <class V>
SMX_INLINE bool are_factors(const typename V::vec& largest)
{
    return V::count(V::less_than(V::set1(V::numbers::largest_factor), largest)) == 0 &&
           (V::count(V::less_than(V::set1(V::numbers::least_factor), largest)) != 0 ||
            V::count(V::less_than(V::zero(), largest)) == 0);
}

// The same of a short row, in double. The tangents of entry `origin` are taken out first: those of a constant row are then 0.
template <class V, std::size_t... k>
struct doubled_hvp : doubled_row<V, k...> {
    using base = doubled_row<V, k...>;
    using base::count, base::once, base::prob;
    using typename base::D;
    using typename base::vec;
    vec u[count], v[count];

    template <std::size_t i>
    SMX_INLINE vec difference(const typename V::scalar* x, std::size_t origin) const
    {
        const vec at_origin = D::set1(static_cast<double>(x[origin]));
        return D::where_nonzero(prob[i], D::in_register(base::template load<i>(x))) - at_origin;
    }
    SMX_INLINE doubled_hvp(const typename V::scalar* p, const typename V::scalar* v_, std::size_t n_,
                           const typename V::scalar* u_, std::size_t origin)
        : base(p, n_), u{difference<k>(u_, origin)...}, v{difference<k>(v_, origin)...}
    {
    }
    SMX_INLINE vec weighted_sum(const vec (&x)[count]) const
    {
        const vec terms[] = {once[k] * x[k]...};
        return base::sum_of(terms);
    }
    static SMX_INLINE bool is_ordinary(const vec (&x)[count])
    {
        vec largest = D::zero();
        ((largest = D::max(largest, D::abs(x[k]))), ...);
        return are_factors<V>(largest);
    }
    SMX_INLINE bool is_ordinary(double mass, real mean_u, real mean_v) const // no NaN either
    {
        return is_one_but_for_rounding(real{mass}) && is_finite(mean_u) && is_finite(mean_v) && is_ordinary(u) &&
               is_ordinary(v);
    }
    SMX_INLINE bool store(typename V::scalar* out) const // false, of doubles: the row is not ordinary
    {
        const typename D::two_sums sums = D::lane_sums(base::sum_of(once), weighted_sum(u));
        const double mass = sums.both[0];
        const real mean_u = apart(real{sums.both[1]} / real{mass});
        const real mean_v = apart(real{D::lane_sum(weighted_sum(v))} / real{mass});
        if constexpr (!V::is_doubled)
            if (!is_ordinary(mass, mean_u, mean_v))
                return false;
        const vec curvature[] = {(u[k] - D::set1(mean_u.value)) * (v[k] - D::set1(mean_v.value))...};
        const vec s = D::set1(mass), dot = D::set1(D::lane_sum(weighted_sum(curvature)));
        (base::template store<k>(out, D::where_nonzero(prob[k], prob[k] * D::fms(s, curvature[k], dot))), ...);
        return true;
    }
};

// An entry that is not rare, p > 1 / 2n: differences with its tangents lose no more than sums do. Of short floats, which have
// 29 digits more in double, any but a very rare one. n if there is none.
template <class V>
SMX_INLINE std::size_t common_entry(const typename V::scalar* p, std::size_t n)
{
    using scalar = typename V::scalar;
    scalar limit = V::is_doubled ? scalar(0x1p-24) : scalar(0x1p-6);
    std::size_t i = 0;
    if (n > V::most_doubled) {
        limit = scalar(0.5) / static_cast<scalar>(n);
        while (n - i >= V::lanes && V::count(V::less_than(V::set1(limit), V::load(p + i, V::every(), V::zero()))) == 0)
            i += V::lanes;
    }
    while (i < n && !(limit < p[i]))
        ++i;
    return i;
}

// The same of a longer row: s, <p, u'> and <p, v'> for the differences u', v' with entry `origin`, and the largest of those.
template <class V>
struct curvature_sums {
    using vec = typename V::vec;
    const typename V::scalar* p;
    const typename V::scalar* u;
    const typename V::scalar* v;
    vec u_origin, v_origin, largest_u, largest_v;
    typename V::sum mass, dot_u, dot_v;

    SMX_INLINE curvature_sums(const typename V::scalar* p_, const typename V::scalar* u_, const typename V::scalar* v_,
                              std::size_t origin)
        : p(p_), u(u_), v(v_), u_origin(V::broadcast(u + origin)), v_origin(V::broadcast(v + origin)),
          largest_u(V::zero()), largest_v(V::zero()), mass(), dot_u(), dot_v()
    {
    }
    template <class Inside>
    SMX_INLINE void add_step(std::size_t i, Inside inside, vec& probs, vec& of_u, vec& of_v)
    {
        const vec prob = V::keep(inside, V::in_register(V::load(p + i, V::every(), V::zero())));
        const vec du = V::where_nonzero(prob, V::load(u + i, V::every(), V::zero()) - u_origin);
        const vec dv = V::where_nonzero(prob, V::load(v + i, V::every(), V::zero()) - v_origin);
        largest_u = V::magnitude(largest_u, du);
        largest_v = V::magnitude(largest_v, dv);
        probs = probs + prob;
        of_u = V::fma(prob, du, of_u);
        of_v = V::fma(prob, dv, of_v);
    }
    SMX_INLINE void add_row(std::size_t n)
    {
        constexpr std::size_t m = V::lanes;
        for (std::size_t i = 0; i < n;) {
            vec probs = V::zero(), of_u = probs, of_v = probs;
            if (n - i >= 4 * m) {
                add_step(i, V::every(), probs, of_u, of_v);
                add_step(i + m, V::every(), probs, of_u, of_v);
                add_step(i + 2 * m, V::every(), probs, of_u, of_v);
                add_step(i + 3 * m, V::every(), probs, of_u, of_v);
                i += 4 * m;
            } else {
                for (; n - i >= m; i += m)
                    add_step(i, V::every(), probs, of_u, of_v);
                if (i < n)
                    add_step(n - m, V::from(i - (n - m)), probs, of_u, of_v);
                i = n;
            }
            mass.add(probs);
            dot_u.add(of_u);
            dot_v.add(of_v);
        }
    }
};

// p_i (s c_i - <p, c>), 0 where p_i = 0, c = (u' - mean) o (v' - mean)
template <class V>
struct near_curvature {
    using vec = typename V::vec;
    const typename V::scalar* p;
    const typename V::scalar* u;
    const typename V::scalar* v;
    vec u_origin, v_origin;
    real mean_u, mean_v, mass, dot;

    SMX_INLINE vec curvature(std::size_t i, const vec& prob) const
    {
        const vec du = V::where_nonzero(prob, V::load(u + i, V::every(), V::zero()) - u_origin);
        const vec dv = V::where_nonzero(prob, V::load(v + i, V::every(), V::zero()) - v_origin);
        return (du - V::narrow(mean_u)) * (dv - V::narrow(mean_v));
    }
    SMX_INLINE vec term(std::size_t i) const
    {
        const vec prob = V::in_register(V::load(p + i, V::every(), V::zero()));
        return prob * curvature(i, prob);
    }
    SMX_INLINE real dot_of(std::size_t n) const
    {
        constexpr std::size_t m = V::lanes;
        typename V::sum sum;
        std::size_t i = 0;
        for (; n - i >= 4 * m; i += 4 * m)
            sum.add((term(i) + term(i + m)) + (term(i + 2 * m) + term(i + 3 * m)));
        for (; n - i >= m; i += m)
            sum.add(term(i));
        if (i < n)
            sum.add(V::keep(V::from(i - (n - m)), term(n - m)));
        return sum.rough_total();
    }
    SMX_INLINE vec at(std::size_t i, typename V::all inside) const
    {
        const vec prob = V::in_register(V::load(p + i, inside, V::zero()));
        return V::where_nonzero(prob, prob * V::rough_minus(mass, curvature(i, prob), dot));
    }
};

// false: s is not 1 but for rounding, or differences are far from it
template <class V>
SMX_INLINE bool hvp_of_steps(const typename V::scalar* p, const typename V::scalar* u, const typename V::scalar* v,
                             typename V::scalar* out, std::size_t n, std::size_t origin)
{
    curvature_sums<V> sums(p, u, v, origin);
    sums.add_row(n);
    const real mass = sums.mass.rough_total();
    const real mean_u = sums.dot_u.rough_total() / mass, mean_v = sums.dot_v.rough_total() / mass;
    if (!is_one_but_for_rounding(mass) || !is_finite(mean_u) || !is_finite(mean_v) || !are_factors<V>(sums.largest_u) ||
        !are_factors<V>(sums.largest_v))
        return false;
    near_curvature<V> product{p, u, v, sums.u_origin, sums.v_origin, mean_u, mean_v, mass, {}};
    product.dot = product.dot_of(n);
    store_lines<V>(n, out, product);
    return true;
}

// J (u~ o v~)
template <class V>
constexpr void row_softmax_hvp(const typename V::scalar* probs, const typename V::scalar* cotangent,
                               const typename V::scalar* tangent, typename V::scalar* out, std::size_t n)
{
    if (n == 0)
        return;
    if constexpr (V::lanes > 1)
        if (const std::size_t origin = common_entry<V>(probs, n); origin < n)
            if (n <= V::most_doubled
                    ? doubled_rows<V, doubled_hvp>(probs, tangent, out, 1, n, n, cotangent, origin) == 1
                    : hvp_of_steps<V>(probs, cotangent, tangent, out, n, origin))
                return;
    const std::size_t m = index_of<V>(probs, n, row_max<V>(probs, n, every_entry<V>{}, V::zero()));
    const curvature_row<V> curvature{centring_of<V>(cotangent, probs, n, m), centring_of<V>(tangent, probs, n, m)};
    product<V, false>(probs, out, n, centre_row<V, false>(probs, n, curvature));
}

// ---- dense Jacobians ------------------------------------------------------------------------------------------------

// row[j] = 0 - factor p[j]; and 0 - 0 is +0
template <class V>
struct negated_row_pass : each_step<V, negated_row_pass<V>> {
    const typename V::scalar* p;
    typename V::scalar* row;
    typename V::vec factor;

    SMX_INLINE constexpr negated_row_pass(const typename V::scalar* p_, typename V::scalar* row_,
                                          const typename V::vec& factor_)
        : p(p_), row(row_), factor(factor_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec at(std::size_t j, Inside inside) const
    {
        return V::zero() - factor * V::load(p + j, inside, V::zero());
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t j, Inside inside) const
    {
        V::store(row + j, inside, at(j, inside));
    }
};

// The same past the cache, but for the line of the diagonal. Whole steps are at the start of a cache line.
template <class V>
struct streamed_row_pass : negated_row_pass<V> {
    std::size_t i;

    SMX_INLINE constexpr streamed_row_pass(const negated_row_pass<V>& pass_, std::size_t i_)
        : negated_row_pass<V>(pass_), i(i_)
    {
    }
    SMX_INLINE constexpr void operator()(std::size_t j, typename V::all inside) const
    {
        if (i - j < V::lanes)
            V::store(this->row + j, inside, this->at(j, inside));
        else
            V::stream(this->row + j, this->at(j, inside));
    }
    SMX_INLINE constexpr void operator()(std::size_t j, typename V::some inside) const
    {
        V::store(this->row + j, inside, this->at(j, inside));
    }
};

// n * n does not overflow: the matrix has so many entries
template <class V>
SMX_INLINE constexpr bool is_far_matrix(std::size_t n)
{
    return n * n > V::cached_length;
}

// row i of J: -p_i p_j off the diagonal, p_i sum_{j != i} p_j on it; for log_softmax: -p_j, sum_{j != i} p_j
template <class V>
SMX_INLINE constexpr void jacobian_row(const typename V::scalar* probs, std::size_t n, std::size_t i,
                                       const typename V::vec& factor, const others<V>& other_probs,
                                       typename V::scalar* row)
{
    const typename V::vec diagonal = other_probs.times(factor, probs + i);
    negated_row_pass<V> pass(probs, row, factor);
    if (is_far_matrix<V>(n)) {
        const streamed_row_pass<V> streamed(pass, i);
        const std::size_t head = V::entries_to_line(row);
        if (head != 0)
            streamed(0, V::first(head));
        walk_range<V>(head, n, streamed);
    } else
        walk<V>(n, pass);
    V::store_first(row + i, diagonal);
}

template <class V, bool of_log>
SMX_INLINE constexpr void jacobian_rows(const typename V::scalar* probs, std::size_t n, typename V::scalar* jacobian)
{
    const row_mass<V> mass = mass_of<V>(probs, n);
    const others<V> other_probs(probs, n, mass.sum, probs, mass);
    for (std::size_t i = 0; i < n; ++i)
        jacobian_row<V>(probs, n, i, of_log ? V::one() : V::broadcast(probs + i), other_probs, jacobian + i * n);
    if (is_far_matrix<V>(n)) // not row by row: each would wait for its stores
        V::end_of_stream();
}

template <class V>
constexpr void row_softmax_jacobian(const typename V::scalar* probs, std::size_t n, typename V::scalar* jacobian)
{
    jacobian_rows<V, false>(probs, n, jacobian);
}

template <class V>
constexpr void row_log_softmax_jacobian(const typename V::scalar* probs, std::size_t n, typename V::scalar* jacobian)
{
    jacobian_rows<V, true>(probs, n, jacobian);
}
