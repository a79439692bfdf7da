// SPDX-License-Identifier: BSL-1.0
// row_kernels.inl: the data path, written once for a vector type V.
//
//   logits --row_max--> max --exp_and_sum--> exponentials, sum --normalise--> probs
//   logits --row_max--> max --tail_of_sum--> T = S / e^max - 1 --log_probs--> log_probs;  max + log1p(T) = logsumexp
//   probs  --mass_and_sum--> s, max, <p, v> --centred--> J v
//
// A row of up to eight vectors is held: loaded once, stored once (held_row, held_product; finished_in_steps).
//
// Not a header: each isa_*.hpp includes this text in its own namespace and target region, after its types. In here there
// is no #include, no #if, no name of an instruction set, no lambda, no standard library.
//
// A pass is a class: (i, inside) does one step, the entries from i on that are inside the row; together(i) does `group` whole
// steps at once, and differs from single steps only where a sum is taken. Body and tail of a row run the same code.
//
// V supplies scalar, vec (lanes of them), wide (a sum or quotient of higher precision), and two types that say which
// lanes take part: all, and some. load(p, which, fill) and store(p, which, v) do not touch the other lanes.

template <class V, bool rare = V::is_rare, class Pass> // whole steps from i on; where they end
SMX_INLINE constexpr std::size_t walk_from(std::size_t i, std::size_t n, Pass& pass)
{
    if constexpr (!rare) // else a third of the code will do
        for (; n - i >= Pass::group * V::lanes; i += Pass::group * V::lanes)
            pass.together(i);
    for (; n - i >= V::lanes; i += V::lanes)
        pass(i, V::every());
    return i;
}

template <class V, bool rare = V::is_rare, class Pass>
SMX_INLINE constexpr void walk(std::size_t n, Pass& pass)
{
    const std::size_t i = walk_from<V, rare>(0, n, pass);
    if (i < n)
        pass(i, V::first(n - i));
}

template <class V, class Pass> // entries first ... last - 1, of a pass without a sum
SMX_INLINE constexpr void walk_range(std::size_t first, std::size_t last, Pass& pass)
{
    for (; last - first >= V::lanes; first += V::lanes)
        pass(first, V::every());
    if (first < last)
        pass(first, V::first(last - first));
}

template <class V, class Pass> // a pass whose two steps are just that
struct each_step {
    static constexpr std::size_t group = 2;

    SMX_INLINE constexpr void together(std::size_t i)
    {
        Pass& pass = static_cast<Pass&>(*this);
        pass(i, V::every());
        pass(i + V::lanes, V::every());
    }
};

template <class V, class Pass, class Sum = typename V::sum> // a pass that sums what term(i, inside) gives, pairs first
struct each_term {
    static constexpr std::size_t group = 2;
    Sum sum;

    SMX_INLINE constexpr each_term() : sum() {} // an implicit one would not belong to the target region
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        sum.add(static_cast<Pass&>(*this).term(i, inside));
    }
    SMX_INLINE constexpr void together(std::size_t i)
    {
        Pass& pass = static_cast<Pass&>(*this);
        const typename V::vec a = pass.term(i, V::every());
        const typename V::vec b = pass.term(i + V::lanes, V::every());
        sum.add(a, b);
    }
};

// A pass that gives out[i] by itself, from first on, last - first >= lanes: whole steps at the start of cache lines of out, or
// past the cache. at(i) may read what is stored: the first and the last step, which overlap others, are found ahead.
template <class V, bool streams, class Pass>
SMX_INLINE constexpr void store_lines_of(std::size_t first, std::size_t last, typename V::scalar* out, const Pass& pass)
{
    constexpr std::size_t m = V::lanes;
    const typename V::vec head = pass.at(first, V::every()), tail = pass.at(last - m, V::every());
    std::size_t i = first + V::entries_to_line(out + first);
    for (; i + 2 * m <= last; i += 2 * m) {
        if constexpr (streams) {
            V::stream(out + i, pass.at(i, V::every()));
            V::stream(out + i + m, pass.at(i + m, V::every()));
        } else {
            V::store(out + i, V::every(), pass.at(i, V::every()));
            V::store(out + i + m, V::every(), pass.at(i + m, V::every()));
        }
    }
    if (i + m <= last)
        V::store(out + i, V::every(), pass.at(i, V::every()));
    if constexpr (streams)
        V::end_of_stream();
    V::store(out + first, V::every(), head);
    V::store(out + last - m, V::every(), tail);
}

// The same of a row, n >= lanes. One that no near cache holds: its end first, where the pass before was last, block by block
// back, then what lies far away in the order of memory, in which it is fetched ahead.
template <class V, class Pass>
SMX_INLINE constexpr void store_lines(std::size_t n, typename V::scalar* out, const Pass& pass)
{
    constexpr std::size_t block = 4096;
    if (n > V::streamed_length)
        return store_lines_of<V, true>(0, n, out, pass);
    std::size_t last = n;
    if (n > V::near_length)
        for (; last > n - V::near_end; last -= block)
            store_lines_of<V, false>(last - block, last, out, pass);
    store_lines_of<V, false>(0, last, out, pass);
}

// Which entries of a row take part.
template <class V>
struct every_entry {
    using vec = typename V::vec;
    static constexpr bool is_rare = false;

    // those of the lanes that take part, where the row has all lanes from i on
    static SMX_INLINE typename V::some among(const typename V::some& lanes, std::size_t) { return lanes; }

    // a row of one step
    static SMX_INLINE vec load_short(const typename V::scalar* x, std::size_t n, const vec&)
    {
        return V::load_short(x, n);
    }
    static SMX_INLINE auto inside_short(std::size_t n) { return V::inside_short(n); }
    static SMX_INLINE void store_short(typename V::scalar* p, std::size_t n, const vec& v, const vec&)
    {
        V::store_short(p, n, v);
    }

    template <class Inside>
    SMX_INLINE constexpr Inside of(std::size_t, Inside inside) const
    {
        return inside;
    }
    // x[i] and what follows, first where it does not take part
    template <class Inside>
    SMX_INLINE constexpr vec load(const typename V::scalar* x, std::size_t i, Inside inside, const vec& first) const
    {
        return V::load(x + i, inside, first);
    }
};

template <class V>
struct unmasked_entries {
    using vec = typename V::vec;
    static constexpr bool is_rare = true;
    const bool* mask;

    SMX_INLINE typename V::some among(const typename V::some& lanes, std::size_t i) const
    {
        return V::both(lanes, V::where(mask + i, V::every()));
    }
    SMX_INLINE vec load_short(const typename V::scalar* x, std::size_t n, const vec& first) const
    {
        return V::select(V::where_short(mask, n), V::load_short(x, n), first);
    }
    SMX_INLINE typename V::some inside_short(std::size_t n) const
    {
        return V::both(V::where_short(mask, n), V::inside_short(n));
    }
    SMX_INLINE void store_short(typename V::scalar* p, std::size_t n, const vec& v, const vec& absent) const
    {
        V::store_short(p, n, V::select(V::where_short(mask, n), v, absent));
    }

    template <class Inside>
    SMX_INLINE constexpr typename V::some of(std::size_t i, Inside inside) const
    {
        return V::where(mask + i, inside);
    }
    template <class Inside> // all of a step: a load with a mask is not fetched ahead
    SMX_INLINE constexpr vec load(const typename V::scalar* x, std::size_t i, Inside inside, const vec& first) const
    {
        if constexpr (V::lanes == 1)
            return V::load(x + i, of(i, inside), first);
        else
            return V::select(of(i, inside), V::in_register(V::load(x + i, inside, first)), first);
    }
};

// ---- passes over logits ---------------------------------------------------------------------------------------------

// The largest entry. first is one that takes part. A NaN may be lost here: it comes back in the sum.
template <class V, class Entries>
struct max_pass {
    static constexpr std::size_t group = 4;
    const typename V::scalar* x;
    Entries entries;
    typename V::vec first, best, best1, best2, best3;

    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        best = V::max(best, V::load(x + i, entries.of(i, inside), first));
    }
    SMX_INLINE constexpr void together(std::size_t i)
    {
        (*this)(i, V::every());
        best1 = V::max(best1, V::load(x + i + V::lanes, entries.of(i + V::lanes, V::every()), first));
        best2 = V::max(best2, V::load(x + i + 2 * V::lanes, entries.of(i + 2 * V::lanes, V::every()), first));
        best3 = V::max(best3, V::load(x + i + 3 * V::lanes, entries.of(i + 3 * V::lanes, V::every()), first));
    }
};

template <class V, class Entries>
SMX_INLINE constexpr typename V::vec row_max(const typename V::scalar* x, std::size_t n, Entries entries,
                                             const typename V::vec& first)
{
    max_pass<V, Entries> pass{x, entries, first, first, first, first, first};
    walk<V>(n, pass);
    return V::reduce_max(V::max(V::max(pass.best, pass.best1), V::max(pass.best2, pass.best3)));
}

// The largest entry, and what V wants to know of the lowest.
template <class V, class Entries>
struct extent_pass {
    static constexpr std::size_t group = 4;
    const typename V::scalar* x;
    Entries entries;
    typename V::vec first;
    typename V::extent seen, more;

    SMX_INLINE constexpr extent_pass(const typename V::scalar* x_, Entries entries_, const typename V::vec& first_)
        : x(x_), entries(entries_), first(first_), seen(first_), more(first_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec logits(std::size_t i, Inside inside) const
    {
        return V::in_register(entries.load(x, i, inside, first));
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        seen.add(logits(i, inside));
    }
    SMX_INLINE constexpr void together(std::size_t i)
    {
        seen.add(logits(i, V::every()));
        more.add(logits(i + V::lanes, V::every()));
        seen.add(logits(i + 2 * V::lanes, V::every()));
        more.add(logits(i + 3 * V::lanes, V::every()));
    }
};

// max is that of the row, in all lanes
template <class V, class Entries>
SMX_INLINE constexpr typename V::extent extent_of(const typename V::scalar* x, std::size_t n, Entries entries,
                                                  const typename V::vec& first)
{
    constexpr std::size_t m = V::lanes;
    extent_pass<V, Entries> pass(x, entries, first);
    if (m == 1 || n < 2 * m)
        walk<V>(n, pass);
    else { // at the start of cache lines; some entries twice
        pass(0, V::every());
        pass(n - m, V::every());
        walk_from<V>(V::entries_to_line(x), n, pass);
    }
    pass.seen.add(pass.more);
    pass.seen.max = V::reduce_max(pass.seen.max);
    return pass.seen;
}

// All logits are so small that their exponentials need no origin, n >= 2 lanes.
template <class V>
SMX_INLINE bool are_small(const typename V::scalar* x, std::size_t n, const exp_scale<typename V::scalar>& scale)
{
    constexpr std::size_t m = V::lanes;
    typename V::vec a = V::abs(V::load(x, V::every(), V::zero())),
                    b = V::abs(V::load(x + n - m, V::every(), V::zero()));
    std::size_t i = m;
    for (; n - i >= 2 * m; i += 2 * m) {
        a = V::magnitude(a, V::load(x + i, V::every(), V::zero()));
        b = V::magnitude(b, V::load(x + i + m, V::every(), V::zero()));
    }
    if (n - i >= m)
        a = V::magnitude(a, V::load(x + i, V::every(), V::zero()));
    return V::is_small_magnitude(V::magnitude(a, b), scale);
}

template <class V>
SMX_INLINE constexpr typename V::shift shift_of(const typename V::extent& extent,
                                                const exp_scale<typename V::scalar>& scale)
{
    if constexpr (V::lanes > 1)
        return V::shift_of(extent, scale);
    else
        return V::shift_of(extent.max, scale);
}

// A pass that sums what term(i, inside, exponentials of logits(i, inside)) gives, pairs first. first is an entry that takes part.
template <class V, class Pass, class Entries, class Sum>
struct each_exponential {
    static constexpr std::size_t group = 2;
    const typename V::scalar* x;
    Entries entries;
    const typename V::shift& shift; // not a copy: its table is read by index, and would keep sum out of registers
    typename V::vec first;
    Sum sum;

    SMX_INLINE constexpr each_exponential(const typename V::scalar* x_, Entries entries_,
                                          const typename V::shift& shift_, const typename V::vec& first_,
                                          const Sum& sum_ = Sum())
        : x(x_), entries(entries_), shift(shift_), first(first_), sum(sum_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec logits(std::size_t i, Inside inside) const
    {
        return entries.load(x, i, inside, first);
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside)
    {
        sum.add(static_cast<Pass&>(*this).term(i, inside, V::exp_term(logits(i, inside), shift)));
    }
    SMX_INLINE constexpr void together(std::size_t i)
    {
        constexpr std::size_t m = V::lanes;
        Pass& pass = static_cast<Pass&>(*this);
        typename V::vec e[] = {logits(i, V::every()), logits(i + m, V::every())};
        if constexpr (m > 1)
            V::exp_terms(e, shift);
        else
            for (typename V::vec& y : e)
                y = V::exp_term(y, shift);
        const typename V::vec a = pass.term(i, V::every(), e[0]), b = pass.term(i + m, V::every(), e[1]);
        sum.add(a, b);
    }
};

// p[i] = e^(x[i] - max), 0 where i does not take part; the sum of p. The last, partial step is kept in a register: a
// masked store cannot be forwarded to the load of the next pass.
template <class V, class Entries, class Sum = typename V::term_sum>
struct exp_pass : each_exponential<V, exp_pass<V, Entries, Sum>, Entries, Sum> {
    typename V::scalar* p;
    typename V::vec tail;

    SMX_INLINE constexpr exp_pass(const typename V::scalar* x_, typename V::scalar* p_, Entries entries_,
                                  const typename V::shift& shift_, const typename V::vec& first_,
                                  const Sum& sum_ = Sum())
        : each_exponential<V, exp_pass, Entries, Sum>(x_, entries_, shift_, first_, sum_), p(p_), tail(first_)
    {
    }
    SMX_INLINE constexpr typename V::vec term(std::size_t i, typename V::all inside, const typename V::vec& e)
    {
        const typename V::vec kept = V::keep(this->entries.of(i, inside), e);
        V::store(p + i, inside, kept);
        return kept;
    }
    SMX_INLINE constexpr typename V::vec term(std::size_t i, typename V::some inside, const typename V::vec& e)
    {
        return tail = V::keep(this->entries.of(i, inside), e);
    }
};

// p[i] /= sum, 0 where i does not take part
template <class V, class Entries>
struct scale_pass : each_step<V, scale_pass<V, Entries>> {
    typename V::scalar* p;
    Entries entries;
    typename V::factor inverse;
    typename V::vec tail; // the last, partial step

    SMX_INLINE constexpr scale_pass(typename V::scalar* p_, Entries entries_, const typename V::factor& inverse_,
                                    const typename V::vec& tail_)
        : p(p_), entries(entries_), inverse(inverse_), tail(tail_)
    {
    }
    SMX_INLINE constexpr typename V::vec at(std::size_t i, typename V::all inside) const
    {
        const typename V::vec e = V::in_register(V::load(p + i, inside, V::zero()));
        return V::keep(entries.of(i, inside), V::times(e, inverse));
    }
    SMX_INLINE constexpr void operator()(std::size_t i, typename V::all inside) const
    {
        V::store(p + i, inside, at(i, inside));
    }
    SMX_INLINE constexpr void operator()(std::size_t i, typename V::some inside) const
    {
        V::store(p + i, inside, V::keep(entries.of(i, inside), V::times(tail, inverse)));
    }
};

// The sum of e^(x[i] - max) without the largest terms, and their number. Nothing here rounds to 1 + tiny. Each term by itself:
// all that is left may be two that are added.
template <class V, class Entries>
struct tail_pass : each_exponential<V, tail_pass<V, Entries>, Entries, typename V::single_sum> {
    typename V::vec max;
    typename V::tally ties;

    SMX_INLINE constexpr tail_pass(const typename V::scalar* x_, Entries entries_, const typename V::shift& shift_,
                                   const typename V::vec& max_, const typename V::vec& first_)
        : each_exponential<V, tail_pass, Entries, typename V::single_sum>(x_, entries_, shift_, first_), max(max_),
          ties()
    {
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec term(std::size_t i, Inside inside, const typename V::vec& e)
    {
        const auto which = this->entries.of(i, inside);
        const typename V::some largest = V::equals(which, this->logits(i, inside), max);
        ties.add(largest);
        return V::keep(which, V::without_largest(largest, e));
    }
};

// The sum of e^(x[i] - max), the largest terms too.
template <class V, class Entries, class Sum = typename V::term_sum>
struct whole_pass : each_exponential<V, whole_pass<V, Entries, Sum>, Entries, Sum> {
    SMX_INLINE constexpr whole_pass(const typename V::scalar* x_, Entries entries_, const typename V::shift& shift_,
                                    const typename V::vec& first_)
        : each_exponential<V, whole_pass, Entries, Sum>(x_, entries_, shift_, first_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec term(std::size_t i, Inside inside, const typename V::vec& e) const
    {
        return V::keep(this->entries.of(i, inside), e);
    }
};

// y[i] = (x[i] - max) - log1p(T), -inf where i does not take part: two terms of one sign, so nothing cancels
template <class V, class Entries, class Shift>
struct log_prob_pass : each_step<V, log_prob_pass<V, Entries, Shift>> {
    const typename V::scalar* x;
    typename V::scalar* y;
    Entries entries;
    Shift shift;
    typename V::wide log1p_tail;
    typename V::vec first;

    SMX_INLINE constexpr log_prob_pass(const typename V::scalar* x_, typename V::scalar* y_, Entries entries_,
                                       const Shift& shift_, const typename V::wide& log1p_tail_,
                                       const typename V::vec& first_)
        : x(x_), y(y_), entries(entries_), shift(shift_), log1p_tail(log1p_tail_), first(first_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr typename V::vec at(std::size_t i, Inside inside) const
    {
        const auto which = entries.of(i, inside);
        return V::select(which, V::log_prob(entries.load(x, i, inside, first), shift, log1p_tail), V::minus_infinity());
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        V::store(y + i, inside, at(i, inside));
    }
};

// p[i] = present where i takes part, else absent: the rows that have no probabilities
template <class V, class Entries>
struct fill_pass : each_step<V, fill_pass<V, Entries>> {
    typename V::scalar* p;
    Entries entries;
    typename V::vec present, absent;

    SMX_INLINE constexpr fill_pass(typename V::scalar* p_, Entries entries_, const typename V::vec& present_,
                                   const typename V::vec& absent_)
        : p(p_), entries(entries_), present(present_), absent(absent_)
    {
    }
    template <class Inside>
    SMX_INLINE constexpr void operator()(std::size_t i, Inside inside) const
    {
        V::store(p + i, inside, V::select(entries.of(i, inside), present, absent));
    }
};

template <class V, class Entries>
constexpr void fill_row(typename V::scalar* p, std::size_t n, Entries entries, const typename V::vec& present,
                        const typename V::vec& absent)
{
    fill_pass<V, Entries> pass(p, entries, present, absent);
    walk<V, true>(n, pass);
}

constexpr std::size_t first_unmasked(const bool* mask, std::size_t n)
{
    std::size_t i = 0;
    while (i < n && !mask[i])
        ++i;
    return i;
}

// ---- softmax, log_softmax, logsumexp --------------------------------------------------------------------------------

// A row of at most `steps` steps, more than one, for kernels that hold it in registers. A step that would pass the end of
// the row starts earlier, and has entries of the step before again: what follows the row may have just been written, and a
// load that covers it would wait. The last steps, `partial` of them, may have few entries of their own or none.
template <class V, std::size_t steps, std::size_t partial>
struct held_steps {
    template <std::size_t k>
    static SMX_INLINE std::size_t start(std::size_t n)
    {
        constexpr std::size_t at = k * V::lanes;
        if constexpr (k + partial < steps)
            return at;
        else if constexpr (partial == 1)
            return n - V::lanes;
        else
            return at < n - V::lanes ? at : n - V::lanes;
    }
    template <std::size_t k>
    static SMX_INLINE auto own(std::size_t n) // not the entries of a step before
    {
        if constexpr (k + partial < steps)
            return V::every();
        else
            return V::from(k * V::lanes - start<k>(n));
    }
};

// The logits and exponentials of a row in registers from the load to the store. Each function does step k and all after it.
template <class V, std::size_t steps, std::size_t partial, class Entries>
struct held_row {
    using row = held_steps<V, steps, partial>;
    static constexpr bool is_long = steps > 4;
    std::size_t n;
    Entries entries;
    typename V::vec x[steps];              // logits
    typename V::vec e[steps], once[steps]; // exponentials; those that the sum takes: no entry twice

    SMX_INLINE held_row(std::size_t n_, Entries entries_) : n(n_), entries(entries_) {}

    template <std::size_t k>
    SMX_INLINE auto which() const
    {
        return entries.of(row::template start<k>(n), V::every());
    }
    template <std::size_t k>
    SMX_INLINE auto which_once() const
    {
        if constexpr (steps == 1)
            return entries.inside_short(n);
        else if constexpr (k + partial < steps)
            return which<k>();
        else
            return entries.among(row::template own<k>(n), row::template start<k>(n));
    }
    template <std::size_t k = 0>
    SMX_INLINE void load(const typename V::scalar* logits, const typename V::vec& first)
    {
        if constexpr (steps == 1)
            x[k] = entries.load_short(logits, n, first);
        else
            x[k] = entries.load(logits, row::template start<k>(n), V::every(), first);
        if constexpr (k + 1 < steps)
            load<k + 1>(logits, first);
    }
    template <std::size_t k = 0>
    SMX_INLINE typename V::extent extent() const
    {
        if constexpr (k + 1 < steps) {
            typename V::extent rest = extent<k + 1>();
            rest.add(x[k]);
            return rest;
        } else
            return typename V::extent(x[k]);
    }
    template <std::size_t k = 0>
    SMX_INLINE typename V::vec magnitude() const
    {
        if constexpr (k + 1 < steps)
            return V::magnitude(magnitude<k + 1>(), x[k]);
        else
            return V::abs(x[k]);
    }
    SMX_INLINE bool is_small(const typename V::extent& extent, const exp_scale<typename V::scalar>& scale) const
    {
        if constexpr (steps == 1)
            return V::is_small_magnitude(magnitude(), scale);
        else
            return extent.is_small(scale);
    }
    template <std::size_t k = 0>
    SMX_INLINE void find_exponentials(const typename V::shift& shift)
    {
        if constexpr (k + 1 < steps) {
            typename V::vec pair[] = {x[k], x[k + 1]};
            V::exp_terms(pair, shift);
            e[k] = pair[0];
            e[k + 1] = pair[1];
            once[k + 1] = V::keep(which_once<k + 1>(), e[k + 1]);
        } else
            e[k] = V::exp_term(x[k], shift);
        once[k] = V::keep(which_once<k>(), e[k]);
        if constexpr (k + 2 < steps)
            find_exponentials<k + 2>(shift);
    }
    template <std::size_t k>
    SMX_INLINE std::size_t keep_tail(const typename V::vec& max, const typename V::vec& term)
    {
        const typename V::some largest = V::equals(which_once<k>(), x[k], max);
        once[k] = V::keep(which_once<k>(), V::without_largest(largest, term));
        return V::count(largest);
    }
    template <std::size_t k = 0, class Shift>
    SMX_INLINE std::size_t find_tail(const typename V::vec& max, const Shift& shift) // number of largest
    {
        std::size_t largest = 0;
        if constexpr (k + 1 < steps) {
            typename V::vec pair[] = {x[k], x[k + 1]};
            V::exp_terms(pair, shift);
            largest = keep_tail<k>(max, pair[0]) + keep_tail<k + 1>(max, pair[1]);
        } else
            largest = keep_tail<k>(max, V::exp_term(x[k], shift));
        if constexpr (k + 2 < steps)
            return largest + find_tail<k + 2>(max, shift);
        else
            return largest;
    }
    template <std::size_t k = 0, class Sum>
    SMX_INLINE void add_terms(Sum& sum) const
    {
        sum.add(once[k]);
        if constexpr (k + 1 < steps)
            add_terms<k + 1>(sum);
    }
    template <std::size_t k = 0, class Sum>
    SMX_INLINE void add_pairs(Sum& sum) const
    {
        if constexpr (k + 1 < steps)
            sum.add(once[k], once[k + 1]);
        else
            sum.add(once[k]);
        if constexpr (k + 2 < steps)
            add_pairs<k + 2>(sum);
    }
    // No term is above start. Each by itself: the largest is not 1, and has an error of its own.
    SMX_INLINE typename V::wide total(const typename V::vec& start) const
    {
        if constexpr (steps == 1)
            return V::held_total(start, once[0], n);
        else if constexpr (steps == 2)
            return V::held_total(start, once[0], once[1]);
        else {
            typename V::held_sum sum(start);
            add_terms(sum);
            return sum.total();
        }
    }
    SMX_INLINE typename V::wide tail_sum(bool in_pairs) const // all terms may be tiny
    {
        if constexpr (steps == 1)
            return V::step_total(once[0], n);
        else if constexpr (steps == 2)
            return V::step_total(once[0], once[1]);
        else {
            typename V::sum sum;
            if (in_pairs)
                add_pairs(sum);
            else
                add_terms(sum);
            return sum.total();
        }
    }
    template <std::size_t k>
    SMX_INLINE void store(typename V::scalar* out, const typename V::vec& y, const typename V::vec& absent) const
    {
        if constexpr (steps == 1)
            entries.store_short(out, n, y, absent);
        else
            V::store(out + row::template start<k>(n), V::every(), V::select(which<k>(), y, absent));
    }
    template <std::size_t k = 0>
    SMX_INLINE void store_quotients(typename V::scalar* probs, const typename V::factor& inverse) const
    {
        store<k>(probs, V::times(e[k], inverse), V::zero());
        if constexpr (k + 1 < steps)
            store_quotients<k + 1>(probs, inverse);
    }
    template <std::size_t k = 0>
    SMX_INLINE void store_log_probs(typename V::scalar* log_probs, const typename V::differences& differences,
                                    const typename V::wide& log1p_tail) const
    {
        store<k>(log_probs, V::log_prob(x[k], differences, log1p_tail), V::minus_infinity());
        if constexpr (k + 1 < steps)
            store_log_probs<k + 1>(log_probs, differences, log1p_tail);
    }
};

// Finish(row) does what is left of an ordinary row; false: it is not one, or too long.
template <class V, std::size_t steps, std::size_t partial, class Entries, class Finish>
SMX_INLINE bool finished(const typename V::scalar* logits, std::size_t n, Entries entries, const typename V::vec& first,
                         const Finish& finish)
{
    held_row<V, steps, partial, Entries> row(n, entries);
    row.load(logits, first);
    return finish(row);
}

template <class V, class Entries, class Finish>
SMX_INLINE bool finished_in_step(const typename V::scalar* logits, std::size_t n, Entries entries,
                                 const typename V::vec& first, const Finish& finish)
{
    return n <= V::lanes && finished<V, 1, 1>(logits, n, entries, first, finish);
}

template <class V, class Entries, class Finish> // more than one
SMX_INLINE bool finished_in_steps(const typename V::scalar* logits, std::size_t n, Entries entries,
                                  const typename V::vec& first, const Finish& finish)
{
    constexpr std::size_t m = V::lanes;
    if (n <= m)
        return false;
    if constexpr (Entries::is_rare) // the same bits from less code
        return n <= 2 * m   ? finished<V, 2, 1>(logits, n, entries, first, finish)
               : n <= 4 * m ? finished<V, 4, 2>(logits, n, entries, first, finish)
                            : n <= 8 * m && finished<V, 8, 4>(logits, n, entries, first, finish);
    else
        return n <= 2 * m   ? finished<V, 2, 1>(logits, n, entries, first, finish)
               : n <= 3 * m ? finished<V, 3, 1>(logits, n, entries, first, finish)
               : n <= 4 * m ? finished<V, 4, 1>(logits, n, entries, first, finish)
               : n <= 6 * m ? finished<V, 6, 2>(logits, n, entries, first, finish)
               : n <= 7 * m ? finished<V, 7, 1>(logits, n, entries, first, finish)
                            : n <= 8 * m && finished<V, 8, 1>(logits, n, entries, first, finish);
}

template <class V>
struct store_softmax {
    typename V::scalar* probs;
    const exp_scale<typename V::scalar>& scale;

    template <class Row>
    SMX_INLINE bool operator()(Row& row) const
    {
        const bool small = V::is_small_magnitude(row.magnitude(), scale);
        typename V::vec max = V::zero();
        if (!small || !V::is_doubled) { // the sum of doubles starts at what no term exceeds
            max = V::reduce_max(row.extent().max);
            if (!small && V::is_far(max, scale))
                return false;
        }
        row.find_exponentials(V::loose_shift_of(small, max, scale));
        row.store_quotients(probs, V::inverse(row.total(V::start_of_terms(max, scale, small))));
        return true;
    }
};

template <class V, class Entries> // in whole steps, and the partial one from its register
SMX_INLINE constexpr void scale_row(std::size_t n, scale_pass<V, Entries>& pass)
{
    if (V::lanes == 1 || V::is_rare || n < V::lanes)
        return walk<V>(n, pass);
    const std::size_t whole = n - n % V::lanes;
    store_lines<V>(whole, pass.p, pass);
    if (whole < n)
        pass(whole, V::first(n - whole));
}

template <class V, class Sum = typename V::term_sum, class Entries>
SMX_INLINE constexpr void exp_and_normalise(const typename V::scalar* logits, typename V::scalar* probs, std::size_t n,
                                            const typename V::shift& shift, Entries entries,
                                            const typename V::vec& first, const Sum& sum = Sum())
{
    exp_pass<V, Entries, Sum> exponentials(logits, probs, entries, shift, first, sum);
    walk<V>(n, exponentials);
    scale_pass<V, Entries> normalise(probs, entries, V::inverse(exponentials.sum.total()), exponentials.tail);
    scale_row(n, normalise);
}

// A row that no near cache holds, read once for its sum: in blocks, each less a whole number N in the exponents, that of the
// largest entry so far. What is read next is fetched, since it would not come in time.
template <class V, std::size_t block = 4096>
struct blocks_sum {
    const typename V::scalar* logits;
    std::size_t n;
    const exp_scale<typename V::scalar>& scale;
    typename V::extent seen; // of the blocks so far
    typename V::vec whole;   // N
    typename V::shift shift;
    typename V::term_sum terms; // since N rose
    typename V::wide before;    // the sum of those before
    bool in_pairs;              // no term of this block is more than 1/16 of the sum before it

    SMX_INLINE blocks_sum(const typename V::scalar* logits_, std::size_t n_,
                          const exp_scale<typename V::scalar>& scale_)
        : logits(logits_), n(n_), scale(scale_), seen(V::zero()), whole(V::zero()),
          shift(V::loose_shift_of(false, V::zero(), scale_)), terms(), before(), in_pairs(false)
    {
    }
    SMX_INLINE void fetch(std::size_t i) const
    {
        if (i < n)
            V::fetch(logits + i);
    }
    SMX_INLINE std::size_t count_from(std::size_t from) const { return n - from < block ? n - from : block; }
    // 2^-1000 of a sum is nothing, 2^-1200 of a probability
    static SMX_INLINE int exponent_of(typename V::scalar whole_number, int most = 1000)
    {
        return whole_number < static_cast<typename V::scalar>(most) ? static_cast<int>(whole_number) : most;
    }
    SMX_INLINE typename V::wide sum() const { return V::total(before, terms.total()); }

    SMX_INLINE void rise_to(const typename V::vec& next_max, bool is_first)
    {
        const typename V::vec next = V::whole_of(next_max, scale);
        if (!is_first)
            before = V::times_power(sum(), -exponent_of(V::lane0(next) - V::lane0(whole)));
        terms = typename V::term_sum();
        seen.max = next_max;
        whole = next;
        shift = V::loose_shift_of(false, next_max, scale);
    }
    SMX_INLINE bool has_entered(std::size_t from) // false: its max is far from 0
    {
        const typename V::extent extent =
            extent_of<V>(logits + from, count_from(from), every_entry<V>{}, V::broadcast(logits + from));
        if (from == 0 || !(V::lane0(extent.max) <= V::lane0(seen.max))) {
            if (V::is_far(extent.max, scale))
                return false;
            rise_to(extent.max, from == 0);
        }
        seen.add(extent);
        shift.clamp_if_needed(extent);
        const typename V::vec lower = V::whole_of(V::at_least(shift.lowest, extent.max), scale);
        const int below = exponent_of(V::lane0(whole) - V::lane0(lower), 64);
        in_pairs = V::is_large_tail(V::times_power(sum(), below - 5));
        return true;
    }
    template <class Pass>
    SMX_INLINE void add_block(std::size_t from, Pass& pass)
    {
        const std::size_t end = from + count_from(from);
        std::size_t i = from;
        pass.sum = terms; // by its constructor GCC 12 copies AVX2's in halves, and then waits for the whole
        if (in_pairs)
            for (; end - i >= 2 * V::lanes; i += 2 * V::lanes) {
                fetch(i + block);
                fetch(i + block + V::lanes);
                pass.together(i);
            }
        for (; end - i >= V::lanes; i += V::lanes) {
            fetch(i + block);
            pass(i, V::every());
        }
        if (i < end)
            pass(i, V::first(end - i));
        terms = pass.sum;
    }
    SMX_INLINE bool is_known() // false: a max is far from 0
    {
        for (std::size_t from = 0; from < n; from += block) {
            if (!has_entered(from))
                return false;
            whole_pass<V, every_entry<V>> pass(logits, every_entry<V>{}, shift, seen.max);
            add_block(from, pass);
        }
        return true;
    }
    // of log sum_j e^((x_j - max) / t); no entry may be nearly alone, since the largest term is not 1 exactly
    SMX_INLINE bool has_log() const { return V::is_large_tail(V::times_power(sum(), -2)); }
    SMX_INLINE typename V::wide log() const
    {
        return V::less_fraction(V::log1p(V::tail(sum(), 0)), V::fraction_of(seen.max, whole, scale));
    }
};

// p[i] /= sum, where p is 2^power times too large, so that one factor would lose digits
template <class V>
struct scale_down_pass : each_step<V, scale_down_pass<V>> {
    typename V::scalar* p;
    typename V::factor inverse;
    typename V::vec upper, lower; // their product is 2^-power

    SMX_INLINE scale_down_pass(typename V::scalar* p_, const typename V::factor& inverse_, int power)
        : p(p_), inverse(inverse_), upper(V::narrow(power_of_two(-(power / 2)))),
          lower(V::narrow(power_of_two(power / 2 - power)))
    {
    }
    template <class Inside>
    SMX_INLINE void operator()(std::size_t i, Inside inside) const
    {
        const typename V::vec prob = V::in_register(V::times(V::load(p + i, inside, V::zero()), inverse) * upper);
        V::store(p + i, inside, prob * lower);
    }
};

// The exponentials of each block are stored less the N of their time, and come from the near end in the second pass. The logits
// of a block, its exponentials, and what is read next are 24 KB of floats.
template <class V, std::size_t block = 2048>
struct stored_softmax : blocks_sum<V, block> {
    using base = blocks_sum<V, block>;
    using base::n, base::scale;
    typename V::scalar* probs;
    typename V::scalar wholes[V::streamed_length / block]; // N of each block

    SMX_INLINE stored_softmax(const typename V::scalar* logits_, typename V::scalar* probs_, std::size_t n_,
                              const exp_scale<typename V::scalar>& scale_)
        : base(logits_, n_, scale_), probs(probs_)
    {
    }
    SMX_INLINE bool is_far(std::size_t count) const
    {
        return V::is_far(extent_of<V>(this->logits, count, every_entry<V>{}, this->seen.max).max, scale);
    }
    SMX_INLINE bool has_stored(std::size_t from)
    {
        if (!base::has_entered(from))
            return false;
        exp_pass<V, every_entry<V>> pass(this->logits, probs, every_entry<V>{}, this->shift, this->seen.max);
        base::add_block(from, pass);
        wholes[from / block] = V::lane0(this->whole);
        const std::size_t part = base::count_from(from) % V::lanes;
        if (part != 0)
            V::store(probs + n - part, V::first(part), pass.tail);
        return true;
    }
    SMX_INLINE void normalise(std::size_t from, const typename V::wide& sum) const
    {
        typename V::scalar* const p = probs + from;
        const std::size_t count = base::count_from(from), part = count % V::lanes;
        const int below = base::exponent_of(V::lane0(this->whole) - wholes[from / block], 1200);
        if (below > V::bias / 2) {
            scale_down_pass<V> pass(p, V::inverse(V::times_power(sum, -V::bias)), V::bias + below);
            return walk<V, true>(count, pass);
        }
        const typename V::vec tail = V::load(p + count - part, V::first(part), V::zero());
        scale_pass<V, every_entry<V>> pass(p, every_entry<V>{}, V::inverse(V::times_power(sum, below)), tail);
        scale_row(count, pass);
    }
    SMX_INLINE bool is_done()
    {
        if (this->logits == probs && (is_far(base::count_from(0)) || is_far(n))) // then nothing may be stored
            return false;
        for (std::size_t from = 0; from < n; from += block)
            if (!has_stored(from))
                return false;
        const typename V::wide sum = base::sum();
        const std::size_t far = n < V::near_end ? 0 : (n - V::near_end) / block * block;
        for (std::size_t from = (n - 1) / block * block;; from -= block) {
            normalise(from, sum);
            if (from == far)
                break;
        }
        for (std::size_t from = 0; from < far; from += block)
            normalise(from, sum);
        return true;
    }
};

// The exponentials are computed once more, and stored past the cache.
template <class V>
struct streamed_softmax : blocks_sum<V> {
    static constexpr std::size_t ahead = 1024;
    using base = blocks_sum<V>;
    typename V::scalar* probs;

    SMX_INLINE streamed_softmax(const typename V::scalar* logits_, typename V::scalar* probs_, std::size_t n_,
                                const exp_scale<typename V::scalar>& scale_)
        : base(logits_, n_, scale_), probs(probs_)
    {
    }
    SMX_INLINE typename V::vec logits_at(std::size_t i, const typename V::some& inside) const
    {
        return V::load(this->logits + i, inside, this->seen.max);
    }
    SMX_INLINE void store_some(std::size_t i, std::size_t count, const typename V::shift& last,
                               const typename V::factor& inverse) const
    {
        const typename V::some inside = V::first(count);
        V::store(probs + i, inside, V::times(V::exp_term(logits_at(i, inside), last), inverse));
    }
    SMX_INLINE void store() const
    {
        constexpr std::size_t m = V::lanes;
        const std::size_t end = this->n;
        typename V::shift last = this->shift;
        last.clamp_if_needed(this->seen);
        const typename V::factor inverse = V::inverse(base::sum());
        std::size_t i = V::entries_to_line(probs);
        if (i != 0)
            store_some(0, i, last, inverse);
        for (; end - i >= 2 * m; i += 2 * m) {
            this->fetch(i + ahead);
            this->fetch(i + ahead + m);
            typename V::vec e[] = {V::load(this->logits + i, V::every(), V::zero()),
                                   V::load(this->logits + i + m, V::every(), V::zero())};
            V::exp_terms(e, last);
            V::stream(probs + i, V::times(e[0], inverse));
            V::stream(probs + i + m, V::times(e[1], inverse));
        }
        for (; i < end; i += m < end - i ? m : end - i)
            store_some(i, m < end - i ? m : end - i, last, inverse);
        V::end_of_stream();
    }
    SMX_INLINE bool is_done()
    {
        if (!base::is_known())
            return false;
        store();
        return true;
    }
};

template <class V, class Entries>
SMX_INLINE constexpr void softmax_of(const typename V::scalar* logits, typename V::scalar* probs, std::size_t n,
                                     const exp_scale<typename V::scalar>& scale, Entries entries,
                                     const typename V::vec& first)
{
    if constexpr (V::lanes > 1)
        if (finished_in_steps<V>(logits, n, entries, first, store_softmax<V>{probs, scale}))
            return;
    if constexpr (V::lanes > 1 && !Entries::is_rare)
        if (n > V::streamed_length ? streamed_softmax<V>(logits, probs, n, scale).is_done()
                                   : n > V::blocked_length && stored_softmax<V>(logits, probs, n, scale).is_done())
            return;
    if constexpr (V::is_doubled && !Entries::is_rare) // the exponentials do not wait for max, nor does their sum
        if (n > 8 * V::lanes && n <= V::most_small && are_small<V>(logits, n, scale)) // a shorter one is far from 0
            return exp_and_normalise<V>(logits, probs, n, V::loose_shift_of(true, V::zero(), scale), entries, first,
                                        typename V::small_sum(V::zero()));
    const typename V::extent extent = extent_of<V>(logits, n, entries, first);
    if constexpr (V::lanes > 1)
        if (n <= V::most_small && !V::is_far(extent.max, scale)) {
            const bool small = extent.is_small(scale); // else floats are faster by a table of the row, doubles are not
            if (small || !V::is_doubled)
                return exp_and_normalise<V>(logits, probs, n, V::loose_shift_of(small, extent.max, scale), entries,
                                            first, typename V::small_sum(V::start_of_terms(extent.max, scale, small)));
        }
    if (!V::is_finite(extent.max)) // +inf, or nothing but -inf, or a NaN
        fill_row<V>(probs, n, entries, V::not_a_number(), V::zero());
    else if (V::is_far(extent.max, scale))
        exp_and_normalise<typename V::far>(logits, probs, n, V::far::shift_of(extent.max, scale), entries, first);
    else
        exp_and_normalise<V>(logits, probs, n, shift_of<V>(extent, scale), entries, first);
}

template <class V>
constexpr void softmax_masked(const typename V::scalar* logits, typename V::scalar* probs, std::size_t n,
                              const exp_scale<typename V::scalar>& scale, const bool* mask)
{
    const unmasked_entries<V> entries{mask};
    const std::size_t first = first_unmasked(mask, n);
    if (first == n)
        return fill_row<V>(probs, n, entries, V::zero(), V::zero());
    const typename V::vec one = V::broadcast(logits + first);
    if constexpr (V::lanes > 1)
        if (finished_in_step<V>(logits, n, entries, one, store_softmax<V>{probs, scale}))
            return;
    softmax_of<V>(logits, probs, n, scale, entries, one);
}

template <class V>
SMX_APART constexpr void softmax_unmasked(const typename V::scalar* logits, typename V::scalar* probs, std::size_t n,
                                          const exp_scale<typename V::scalar>& scale)
{
    softmax_of<V>(logits, probs, n, scale, every_entry<V>{}, V::broadcast(logits));
}

template <class V>
constexpr void row_softmax(const typename V::scalar* logits, typename V::scalar* probs, std::size_t n,
                           const exp_scale<typename V::scalar>& scale, const bool* mask)
{
    if (n == 0)
        return;
    if (mask != nullptr)
        return softmax_masked<V>(logits, probs, n, scale, mask);
    if constexpr (V::lanes > 1)
        if (finished_in_step<V>(logits, n, every_entry<V>{}, V::zero(), store_softmax<V>{probs, scale}))
            return;
    softmax_unmasked<V>(logits, probs, n, scale);
}

// Store(row, max, shift, log1p(T)) does the rest.
template <class V, class Store>
struct store_by_tail {
    const exp_scale<typename V::scalar>& scale;

    explicit SMX_INLINE store_by_tail(const exp_scale<typename V::scalar>& scale_) : scale(scale_) {}
    template <class Row>
    SMX_INLINE bool operator()(Row& row) const
    {
        const typename V::extent extent = row.extent();
        const typename V::vec max = V::reduce_max(extent.max);
        if constexpr (V::is_doubled) { // the exponentials do not wait for max, if they can do without
            const bool small = row.is_small(extent, scale);
            if (!small && V::is_far(max, scale))
                return false;
            const std::size_t largest = row.find_tail(max, V::loose_shift_of(small, max, scale));
            const typename V::wide inverse = V::inverse_of_largest(small, max, scale);
            typename V::wide tail = V::with_ties(row.tail_sum(Row::is_long) * inverse, largest);
            if (Row::is_long && !(typename V::wide{1} < tail)) // a rounding of two that were added would count
                tail = V::with_ties(row.tail_sum(false) * inverse, largest);
            static_cast<const Store&>(*this).store(row, max, V::differences_from(max, scale), V::log1p(tail));
        } else {
            if (V::is_far(max, scale))
                return false;
            const typename V::step_shift shift = V::step_shift_of(max, scale);
            const std::size_t largest = row.find_tail(max, shift);
            static_cast<const Store&>(*this).store(row, max, shift, V::log1p(V::tail(row.tail_sum(false), largest)));
        }
        return true;
    }
};

template <class V>
struct store_log_softmax : store_by_tail<V, store_log_softmax<V>> {
    typename V::scalar* log_probs;

    SMX_INLINE store_log_softmax(typename V::scalar* log_probs_, const exp_scale<typename V::scalar>& scale_)
        : store_by_tail<V, store_log_softmax>(scale_), log_probs(log_probs_)
    {
    }
    template <class Row>
    SMX_INLINE void store(Row& row, const typename V::vec&, const typename V::differences& differences,
                          const typename V::wide& log1p_tail) const
    {
        row.store_log_probs(log_probs, differences, log1p_tail);
    }
};

template <class V>
struct store_logsumexp : store_by_tail<V, store_logsumexp<V>> {
    typename V::scalar* out;

    explicit SMX_INLINE store_logsumexp(typename V::scalar* out_)
        : store_by_tail<V, store_logsumexp>(V::unit_scale()), out(out_)
    {
    }
    template <class Row>
    SMX_INLINE void store(Row&, const typename V::vec& max, const typename V::differences&,
                          const typename V::wide& log1p_tail) const
    {
        V::store_first(out, V::plus(max, log1p_tail));
    }
};

// T, the sum of all e^(x[i] - max) but one largest
template <class V, class Entries>
SMX_INLINE constexpr typename V::wide tail_of_sum(const typename V::scalar* logits, std::size_t n, Entries entries,
                                                  const typename V::shift& shift, const typename V::vec& max,
                                                  const typename V::vec& first)
{
    tail_pass<V, Entries> pass(logits, entries, shift, max, first);
    if constexpr (V::lanes == 1 || V::is_rare) {
        walk<V>(n, pass);
        return V::tail(pass.sum.total(), pass.ties.total());
    } else {
        constexpr std::size_t m = V::lanes;
        std::size_t i = 0;
        for (std::size_t next = 2 * m; n - i >= 2 * m; i += 2 * m) {
            if (i == next) { // after 2, 4, 8, ... steps
                if (V::is_large_tail(pass.sum.total()))
                    break;
                next += next;
            }
            pass.together(i);
        }
        // T > 1: T = sum - 1 loses no digit that counts, though 1 may be added to a term before
        whole_pass<V, Entries> rest(logits, entries, shift, first);
        for (; n - i >= 2 * m; i += 2 * m)
            rest.together(i);
        i = walk_from<V, true>(i, n, pass);
        if (i < n)
            pass(i, V::first(n - i));
        return V::tail(V::total(pass.sum.total(), rest.sum.total()), pass.ties.total());
    }
}

// The same of a row of small logits, whose exponentials do not wait for max. False: one of them outweighs the others, nearly.
template <class V, class Entries>
SMX_INLINE bool has_found_tail(const typename V::scalar* logits, std::size_t n, Entries entries,
                               const exp_scale<typename V::scalar>& scale, const typename V::extent& extent,
                               const typename V::vec& first, typename V::wide& tail)
{
    if (n > V::most_without_origin || !extent.is_small(scale))
        return false;
    const typename V::shift shift = V::loose_shift_of(true, extent.max, scale);
    whole_pass<V, Entries, typename V::sum> pass(logits, entries, shift, first);
    walk<V>(n, pass);
    const typename V::wide sum = pass.sum.total() * V::inverse_of_largest(true, extent.max, scale);
    tail = V::with_ties(sum, 0);
    return typename V::wide{2} < sum;
}

// log1p(T) of a row that is not far from 0
template <class V, class Entries>
SMX_INLINE constexpr typename V::wide log1p_of_tail(const typename V::scalar* logits, std::size_t n, Entries entries,
                                                    const exp_scale<typename V::scalar>& scale,
                                                    const typename V::extent& extent, const typename V::vec& first)
{
    if constexpr (V::is_doubled) {
        typename V::wide tail{};
        if (has_found_tail<V>(logits, n, entries, scale, extent, first, tail))
            return V::log1p(tail);
    }
    return V::log1p(tail_of_sum<V>(logits, n, entries, shift_of<V>(extent, scale), extent.max, first));
}

template <class V, class Entries, class Shift>
SMX_INLINE constexpr void store_log_probs(const typename V::scalar* logits, typename V::scalar* log_probs,
                                          std::size_t n, const Shift& shift, Entries entries,
                                          const typename V::wide& log1p_tail, const typename V::vec& first)
{
    log_prob_pass<V, Entries, Shift> pass(logits, log_probs, entries, shift, log1p_tail, first);
    if (V::lanes == 1 || V::is_rare || n < V::lanes)
        walk<V>(n, pass);
    else
        store_lines<V>(n, log_probs, pass);
}

template <class V, class Entries>
SMX_INLINE constexpr void log_softmax_of(const typename V::scalar* logits, typename V::scalar* log_probs, std::size_t n,
                                         const exp_scale<typename V::scalar>& scale, Entries entries,
                                         const typename V::vec& first)
{
    if constexpr (V::lanes > 1)
        if (finished_in_steps<V>(logits, n, entries, first, store_log_softmax<V>(log_probs, scale)))
            return;
    if constexpr (V::lanes > 1 && !Entries::is_rare)
        if (n > V::near_length) {
            blocks_sum<V> blocks(logits, n, scale);
            if (blocks.is_known() && blocks.has_log())
                return store_log_probs<V>(logits, log_probs, n, V::differences_from(blocks.seen.max, scale), entries,
                                          blocks.log(), first);
        }
    const typename V::extent extent = extent_of<V>(logits, n, entries, first);
    const typename V::vec max = extent.max;
    if (!V::is_finite(max))
        fill_row<V>(log_probs, n, entries, V::not_a_number(), V::minus_infinity());
    else if (V::is_far(max, scale)) {
        const typename V::far::shift shift = V::far::shift_of(max, scale);
        const typename V::wide tail = tail_of_sum<typename V::far>(logits, n, entries, shift, max, first);
        store_log_probs<typename V::far>(logits, log_probs, n, shift, entries, V::log1p(tail), first);
    } else
        store_log_probs<V>(logits, log_probs, n, V::differences_from(max, scale), entries,
                           log1p_of_tail<V>(logits, n, entries, scale, extent, first), first);
}

template <class V>
constexpr void log_softmax_masked(const typename V::scalar* logits, typename V::scalar* log_probs, std::size_t n,
                                  const exp_scale<typename V::scalar>& scale, const bool* mask)
{
    const unmasked_entries<V> entries{mask};
    const std::size_t first = first_unmasked(mask, n);
    if (first == n)
        return fill_row<V>(log_probs, n, entries, V::minus_infinity(), V::minus_infinity());
    const typename V::vec one = V::broadcast(logits + first);
    if constexpr (V::lanes > 1)
        if (finished_in_step<V>(logits, n, entries, one, store_log_softmax<V>(log_probs, scale)))
            return;
    log_softmax_of<V>(logits, log_probs, n, scale, entries, one);
}

template <class V>
SMX_APART constexpr void log_softmax_unmasked(const typename V::scalar* logits, typename V::scalar* log_probs,
                                              std::size_t n, const exp_scale<typename V::scalar>& scale)
{
    log_softmax_of<V>(logits, log_probs, n, scale, every_entry<V>{}, V::broadcast(logits));
}

template <class V>
constexpr void row_log_softmax(const typename V::scalar* logits, typename V::scalar* log_probs, std::size_t n,
                               const exp_scale<typename V::scalar>& scale, const bool* mask)
{
    if (n == 0)
        return;
    if (mask != nullptr)
        return log_softmax_masked<V>(logits, log_probs, n, scale, mask);
    if constexpr (V::lanes > 1)
        if (finished_in_step<V>(logits, n, every_entry<V>{}, V::zero(), store_log_softmax<V>(log_probs, scale)))
            return;
    log_softmax_unmasked<V>(logits, log_probs, n, scale);
}

// A vector that may be NaN is no result of a function that is called: under -ffinite-math-only it would count as finite.
template <class V>
constexpr bool has_nan(const typename V::scalar* x, std::size_t n)
{
    for (std::size_t i = 0; i < n; ++i)
        if (V::is_nan(x + i))
            return true;
    return false;
}

template <class V>
SMX_APART constexpr void logsumexp_of(const typename V::scalar* logits, std::size_t n, typename V::scalar* out)
{
    const typename V::vec first = V::broadcast(logits);
    if constexpr (V::lanes > 1)
        if (finished_in_steps<V>(logits, n, every_entry<V>{}, first, store_logsumexp<V>(out)))
            return;
    if constexpr (V::lanes > 1)
        if (n > V::near_length) {
            blocks_sum<V> blocks(logits, n, V::unit_scale());
            if (blocks.is_known() && blocks.has_log())
                return V::store_first(out, V::plus(blocks.seen.max, blocks.log()));
        }
    const exp_scale<typename V::scalar>& scale = V::unit_scale();
    const typename V::extent extent = extent_of<V>(logits, n, every_entry<V>{}, first);
    const typename V::vec max = extent.max;
    if (!V::is_finite(max))
        V::store_first(out, has_nan<V>(logits, n) ? V::not_a_number() : max);
    else if (V::is_far(max, scale))
        V::store_first(out, V::plus(max, V::log1p(tail_of_sum<typename V::far>(
                                             logits, n, every_entry<V>{}, V::far::shift_of(max, scale), max, first))));
    else
        V::store_first(out, V::plus(max, log1p_of_tail<V>(logits, n, every_entry<V>{}, scale, extent, first)));
}

template <class V>
constexpr void row_logsumexp(const typename V::scalar* logits, std::size_t n, typename V::scalar* out)
{
    if (n == 0)
        return V::store_first(out, V::minus_infinity());
    if constexpr (V::lanes > 1)
        if (finished_in_step<V>(logits, n, every_entry<V>{}, V::zero(), store_logsumexp<V>(out)))
            return;
    logsumexp_of<V>(logits, n, out);
}

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

// first i with p[i] = max
template <class V>
constexpr std::size_t index_of(const typename V::scalar* p, std::size_t n, const typename V::vec& max)
{
    std::size_t i = 0;
    while (n - i >= V::lanes && V::count(V::equals(V::every(), V::load(p + i, V::every(), max), max)) == 0)
        i += V::lanes;
    for (; i < n; ++i)
        if (V::broadcast_equals(p + i, max))
            return i;
    return 0; // a NaN in the row: it reaches every result whatever is chosen here
}

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

// J t: p t has no error, and s t_i - <p, t> is as good as its terms, but where one entry is saturated. Its tangent is then
// the origin; and that of a constant tangent is the constant, so that J 1 = 0.
template <class V, std::size_t... k>
struct doubled_tangent : doubled_row<V, k...> {
    using base = doubled_row<V, k...>;
    using base::count, base::once, base::prob;
    using typename base::D;
    using typename base::vec;
    vec t[count], origin; // t: 0 where p = 0

    SMX_INLINE doubled_tangent(const typename V::scalar* p, const typename V::scalar* v, std::size_t n_)
        : base(p, n_), origin(D::zero())
    {
        ((t[k] = D::where_nonzero(prob[k], D::in_register(base::template load<k>(v)))), ...);
        if (V::has_bits_of(v, v + n_ - 1))
            centre_constant(D::set1(static_cast<double>(*v)));
    }
    template <std::size_t i = 0, std::size_t size = count>
    SMX_INLINE vec products() const
    {
        if constexpr (size == 1)
            return once[i] * t[i];
        else if constexpr (size == 2)
            return D::fma(once[i + 1], t[i + 1], once[i] * t[i]);
        else
            return products<i, size / 2>() + products<i + size / 2, size - size / 2>();
    }
    SMX_INLINE void centre_constant(const vec& constant)
    {
        const vec rest[] = {D::where_nonzero(prob[k], t[k] - constant)...};
        if (((D::count(D::equals(D::every(), rest[k], D::zero())) == D::lanes) && ...)) {
            ((t[k] = D::zero()), ...);
            origin = constant;
        }
    }
    SMX_INLINE void move_origin(const vec& most) // to the tangent of the entry above it
    {
        vec saturated = D::zero();
        ((saturated = saturated + D::only(D::less_than(most, once[k]), t[k])), ...);
        ((t[k] = D::where_nonzero(prob[k], t[k] - saturated)), ...);
        origin = origin + saturated;
    }
    SMX_INLINE typename D::two_sums sums()
    {
        const typename D::two_sums first = D::lane_sums(base::sum_of(once), products());
        const vec most = base::most_of(first.first());
        if (!base::is_saturated(most))
            return first;
        move_origin(most);
        return D::lane_sums(base::sum_of(once), products());
    }
};

// p_i (s t_i - <p, t>)
template <class V, std::size_t... k>
struct doubled_softmax_jvp : doubled_tangent<V, k...> {
    using base = doubled_tangent<V, k...>;
    using base::prob, base::t;
    using typename base::D;

    SMX_INLINE doubled_softmax_jvp(const typename V::scalar* p, const typename V::scalar* v, std::size_t n_)
        : base(p, v, n_)
    {
    }
    SMX_INLINE bool store(typename V::scalar* out)
    {
        const typename D::two_sums sums = base::sums();
        const typename D::vec s = sums.first(), dot = sums.second();
        (base::template store<k>(out, D::where_nonzero(prob[k], prob[k] * D::fms(s, t[k], dot))), ...);
        return true;
    }
};

// s t_i - <p, t>, also where p_i = 0
template <class V, std::size_t... k>
struct doubled_log_jvp : doubled_tangent<V, k...> {
    using base = doubled_tangent<V, k...>;
    using typename base::D;
    typename D::vec tangent[base::count];

    SMX_INLINE doubled_log_jvp(const typename V::scalar* p, const typename V::scalar* v, std::size_t n_)
        : base(p, v, n_)
    {
        ((tangent[k] = base::template load<k>(v)), ...);
    }
    SMX_INLINE bool store(typename V::scalar* out)
    {
        const typename D::two_sums sums = base::sums();
        const typename D::vec s = sums.first(), dot = sums.second();
        (base::template store<k>(out, D::fms(s, tangent[k] - base::origin, dot)), ...);
        return true;
    }
};

// u_i sum_{j != i} p_j - p_i sum_{j != i} u_j: the sums less one term are as good as that term, but where the entry is
// saturated: its sums leave it out.
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
        vec rest[] = {(s - prob[k])...}, rest_u[] = {(total - u[k])...};
        if (base::is_saturated(most)) {
            const typename D::some saturated[] = {D::less_than(most, prob[k])...};
            const vec few[] = {D::select(saturated[k], D::zero(), once[k])...};
            const vec few_u[] = {D::select(saturated[k], D::zero(), u_once[k])...};
            const typename D::two_sums without = D::lane_sums(base::sum_of(few), base::sum_of(few_u));
            ((rest[k] = D::select(saturated[k], without.first(), rest[k])), ...);
            ((rest_u[k] = D::select(saturated[k], without.second(), rest_u[k])), ...);
        }
        (base::template store<k>(out, D::fms(u[k], rest[k], prob[k] * rest_u[k])), ...);
        return true;
    }
};

template <class Row, class T, class... More>
SMX_INLINE bool doubled_rows_of(const T* p, const T* v, T* out, std::size_t rows, std::size_t n, std::size_t stride,
                                More... more)
{
    for (std::size_t r = 0; r < rows; ++r)
        if (!Row(p + r * stride, v + r * stride, n, more...).store(out + r * stride))
            return false;
    return true;
}

// rows of at most V::most_doubled entries; more: what else a row takes. False: a row was not stored
template <class V, template <class, std::size_t...> class Row, class... More>
SMX_INLINE bool doubled_rows(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                             std::size_t rows, std::size_t n, std::size_t stride, More... more)
{
    constexpr std::size_t m = V::wide_lanes::lanes;
    if (n <= m)
        return doubled_rows_of<Row<V, 0>>(p, v, out, rows, n, stride, more...);
    else if (n <= 2 * m)
        return doubled_rows_of<Row<V, 0, 1>>(p, v, out, rows, n, stride, more...);
    else if (n <= 3 * m)
        return doubled_rows_of<Row<V, 0, 1, 2>>(p, v, out, rows, n, stride, more...);
    else
        return doubled_rows_of<Row<V, 0, 1, 2, 3>>(p, v, out, rows, n, stride, more...);
}

// p_i (s t_i - <p, t>), 0 where p_i = 0; for log_softmax s t_i - <p, t>. A row of one step in which s is 1 but for rounding
// and the products are not tiny; else false.
template <class V, bool of_log>
SMX_INLINE bool product_in_step(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                std::size_t n)
{
    const typename V::some inside = V::inside_short(n);
    const typename V::vec prob = V::load_short(p, n), once = V::keep(inside, prob);
    const typename V::vec t = tangent_in_step<V>(once, V::load_short(v, n));
    const typename V::product_sums sums = V::product_sums_of(once, V::keep(inside, prob * V::where_nonzero(prob, t)));
    if (!is_one_but_for_rounding(sums.mass) || is_below(sums.dot, V::numbers::tiny))
        return false;
    if constexpr (of_log)
        V::store_short(out, n, V::rough_minus(sums.mass, t, sums.dot));
    else
        V::store_short(out, n,
                       V::where_nonzero(prob, prob * V::rough_minus(sums.mass, V::where_nonzero(prob, t), sums.dot)));
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
template <class V, std::size_t steps, std::size_t partial, bool of_log>
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
        if constexpr (!of_log)
            t[k] = V::where_nonzero(prob[k], t[k]);
        if constexpr (k + 1 < steps)
            load_tangents<k + 1>(origin);
    }
    template <std::size_t k>
    SMX_INLINE typename V::vec weighted() const // 0 infinity is never formed
    {
        if constexpr (of_log)
            return V::where_nonzero(prob[k], t[k]);
        else
            return t[k];
    }
    // as terms
    template <std::size_t k = 0, std::size_t count = steps>
    SMX_INLINE typename V::vec dot_terms() const
    {
        if constexpr (count == 2)
            return V::fma(base::template own<k + 1>(prob), weighted<k + 1>(),
                          base::template own<k>(prob) * weighted<k>());
        else
            return dot_terms<k, count / 2>() + dot_terms<k + count / 2, count / 2>();
    }
    template <std::size_t k = 0>
    SMX_INLINE void store_products(typename V::scalar* out, real mass, real dot) const
    {
        const typename V::vec centred = V::rough_minus(mass, t[k], dot);
        V::store(out + row::template start<k>(n), V::every(),
                 of_log ? centred : V::where_nonzero(prob[k], prob[k] * centred));
        if constexpr (k + 1 < steps)
            store_products<k + 1>(out, mass, dot);
    }
    SMX_INLINE typename V::vec origin() const // of two steps, without a branch
    {
        return steps == 2 || base::has_winner() ? base::at_winner(v) : V::zero();
    }
    SMX_INLINE bool done(typename V::scalar* out) // false: s is not 1 but for rounding, or the products are tiny
    {
        base::load(p, prob);
        load_tangents(origin());
        const typename V::product_sums sums = V::product_sums_of(base::terms(prob), dot_terms());
        if (!is_one_but_for_rounding(sums.mass) || is_below(sums.dot, V::numbers::tiny))
            return false;
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

template <class V, std::size_t steps, std::size_t partial>
using held_softmax_jvp = held_product<V, steps, partial, false>;
template <class V, std::size_t steps, std::size_t partial>
using held_log_jvp = held_product<V, steps, partial, true>;

template <class V, bool of_log, template <class, std::size_t, std::size_t> class Held>
SMX_INLINE bool product_in_registers(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                     std::size_t n)
{
    if constexpr (!V::is_doubled)
        if (n <= V::lanes)
            return product_in_step<V, of_log>(p, v, out, n);
    return done_in_registers<V, Held>(p, v, out, n);
}

// s and <p, v>, or the sum of v where not weighted, of a row of more than one step, in which winners count as 0. careful: a
// product with p = 0 is 0, whatever v.
template <class V, bool weighted, bool careful>
struct sums_without_winner {
    using vec = typename V::vec;
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
        const vec x = V::load(v + i, V::every(), V::zero());
        return careful ? V::where_nonzero(prob, x) : x;
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
        const typename V::some here = winners<V>(x);
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
        if (SMX_LIKELY(V::count(winners<V>(V::max(V::max(a, b), V::max(c, d)))) == 0)) {
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

// out_i = p_i (s v_i - <p, v>), 0 where p_i = 0; for log_softmax s v_i - <p, v>
template <class V, bool of_log>
struct near_product {
    const typename V::scalar* p;
    const typename V::scalar* v;
    real mass, dot;

    SMX_INLINE typename V::vec at(std::size_t i, typename V::all inside) const
    {
        const typename V::vec t = V::load(v + i, inside, V::zero());
        if constexpr (of_log)
            return V::rough_minus(mass, t, dot);
        const typename V::vec prob = V::in_register(V::load(p + i, inside, V::zero()));
        return V::where_nonzero(prob, prob * V::rough_minus(mass, V::where_nonzero(prob, t), dot));
    }
};

// A row of more than one step in which s is 1 but for rounding and the products are neither tiny nor infinite; else false. The
// last step ends with the row, whatever it has in common with the one before. The component of a winner m comes from the sums
// without it, sum_j p_j (v_m - v_j); false too where hardly a digit of that is left: a constant tangent gives 0.
template <class V, bool of_log, bool careful = false>
SMX_INLINE bool product_of_steps(const typename V::scalar* p, const typename V::scalar* v, typename V::scalar* out,
                                 std::size_t n)
{
    sums_without_winner<V, true, careful> sums(p, v);
    sums.add_row(n);
    const typename V::product_sums total = V::totals_of(sums.mass, sums.dot);
    near_product<V, of_log> product{p, v, total.mass, total.dot};
    const std::size_t m = sums.winner;
    real of_winner{0};
    if (sums.count != 0) {
        product.mass = sums.mass.rough_total();
        const real prob{static_cast<double>(p[m])}, tangent{static_cast<double>(v[m])}, moved = product.mass * tangent;
        of_winner = moved - product.dot;
        if (is_below(of_winner, (moved * real{0x1p-18}).value) || is_below(of_winner, V::numbers::tiny))
            return false;
        if constexpr (!of_log)
            of_winner = prob * of_winner;
        product.mass = product.mass + prob;
        product.dot = product.dot + prob * tangent;
    }
    if (sums.count > 1 || !is_one_but_for_rounding(product.mass) || is_below(product.dot, V::numbers::tiny) ||
        !is_finite(product.dot) || !V::can_group())
        return false;
    store_lines<V>(n, out, product);
    if (sums.count != 0)
        out[m] = static_cast<typename V::scalar>(of_winner.value);
    return true;
}

template <class V, bool of_log> // what is infinite or NaN where p = 0 has no effect on others
SMX_APART bool careful_product_of_steps(const typename V::scalar* p, const typename V::scalar* v,
                                        typename V::scalar* out, std::size_t n)
{
    return product_of_steps<V, of_log, true>(p, v, out, n);
}

template <class V>
SMX_APART void any_softmax_jvp(const typename V::scalar* probs, const typename V::scalar* tangent,
                               typename V::scalar* out, std::size_t n)
{
    if (n > V::most_held_of_products && (product_of_steps<V, false>(probs, tangent, out, n) ||
                                         careful_product_of_steps<V, false>(probs, tangent, out, n)))
        return;
    product<V, true>(probs, out, n, centre<V, true>(probs, tangent, n));
}

template <class V>
constexpr void row_softmax_jvp(const typename V::scalar* probs, const typename V::scalar* tangent,
                               typename V::scalar* out, std::size_t n)
{
    if constexpr (V::lanes > 1) {
        if (n == 0)
            return;
        if constexpr (V::is_doubled)
            if (n <= V::most_doubled && doubled_rows<V, doubled_softmax_jvp>(probs, tangent, out, 1, n, n))
                return;
        if (n > V::most_held_of_products || !product_in_registers<V, false, held_softmax_jvp>(probs, tangent, out, n))
            any_softmax_jvp<V>(probs, tangent, out, n);
    } else
        product<V, false>(probs, out, n, centre<V, false>(probs, tangent, n));
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

template <class V>
constexpr void row_log_softmax_jvp(const typename V::scalar* probs, const typename V::scalar* tangent,
                                   typename V::scalar* out, std::size_t n)
{
    if constexpr (V::is_doubled)
        if (n - 1 < V::most_doubled && doubled_rows<V, doubled_log_jvp>(probs, tangent, out, 1, n, n))
            return;
    if constexpr (V::lanes > 1)
        if (n != 0 &&
            (n <= V::most_held_of_products ? product_in_registers<V, true, held_log_jvp>(probs, tangent, out, n)
                                           : product_of_steps<V, true>(probs, tangent, out, n) ||
                                                 careful_product_of_steps<V, true>(probs, tangent, out, n)))
            return;
    const centred_tangent<V, tangent_row<V>> row = centre<V, false>(probs, tangent, n);
    if (V::is_tiny(V::narrow(row.dot)) && all_tiny<V, true>(probs, n, row.tangent))
        return scaled_log_jvp<V>(probs, out, n, row);
    log_jvp_pass<V> pass(out, row);
    walk<V>(n, pass);
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

// u rest - p rest_u where the larger product is near the subnormal numbers: times 2^bias, which others might not stand
template <class V>
SMX_INLINE constexpr typename V::vec scaled_log_product(const typename V::vec& prob, const typename V::vec& cotangent,
                                                        const typename V::vec& rest, const typename V::vec& rest_u,
                                                        const typename V::vec& largest)
{
    const typename V::vec small_u = V::alone(V::where_tiny(largest, cotangent, V::zero()));
    const typename V::vec small_p = V::alone(V::where_tiny(largest, prob, V::zero()));
    return (small_u * (rest * V::up()) - small_p * V::up() * rest_u) * V::down();
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
        const typename V::vec a = cotangent * rest, b = prob * rest_u, largest = V::max(V::abs(a), V::abs(b));
        if (SMX_LIKELY(!V::is_tiny(largest)))
            return V::store(out + i, inside, a - b);
        V::store(out + i, inside,
                 V::where_tiny(largest, scaled_log_product<V>(prob, cotangent, rest, rest_u, largest), a - b));
    }
};

// The same of a short row in which s is 1 but for rounding. Its winner, if it has one, is left out of the sums: with p and u of
// it, or 0, the sums less entry i are those of the rest less (p_i - p) and (u_i - u), where the winner's own are exact. False:
// s is not 1, products are near the subnormal numbers, or differences might overflow.
template <class V>
struct rest_sums {
    real probs, cotangents;
    typename V::vec prob, cotangent; // of the winner

    SMX_INLINE bool is_ordinary() const
    {
        return is_one_but_for_rounding(probs + V::lane(prob)) && !V::may_overflow(cotangent);
    }
    // and which lanes are tiny
    SMX_INLINE typename V::some products(const typename V::vec& p, const typename V::vec& u, typename V::vec& out) const
    {
        const typename V::vec a = u * (V::narrow(probs) - (p - prob));
        const typename V::vec b = p * (V::narrow(cotangents) - (u - cotangent));
        out = a - b;
        return V::tiny(V::max(V::abs(a), V::abs(b)));
    }
};

template <class V>
SMX_INLINE bool log_vjp_in_step(const typename V::scalar* p, const typename V::scalar* u, typename V::scalar* out,
                                std::size_t n)
{
    const typename V::some inside = V::inside_short(n);
    const typename V::vec prob = V::load_short(p, n), once = V::keep(inside, prob);
    const typename V::vec cotangent = V::load_short(u, n);
    const typename V::some winner = winners<V>(once);
    const typename V::vec others = V::select(winner, V::zero(), once);
    const typename V::product_sums sums =
        V::product_sums_of(others, V::select(winner, V::zero(), V::keep(inside, cotangent)));
    const rest_sums<V> rest{V::count(winner) != 0 ? V::sum_of_few(others) : sums.mass, sums.dot, V::only(winner, once),
                            V::only(winner, cotangent)};
    typename V::vec product;
    if (V::count(winner) > 1 || !rest.is_ordinary() || V::count(rest.products(prob, cotangent, product)) != 0)
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
    SMX_INLINE typename V::some find_products(const rest_sums<V>& rest) // which lanes are tiny
    {
        const typename V::some tiny = rest.products(prob[k], cotangent[k], product[k]);
        if constexpr (k + 1 < steps)
            return V::either(tiny, find_products<k + 1>(rest));
        else
            return tiny;
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
        rest_sums<V> rest{{}, {}, V::zero(), V::zero()};
        const bool has_winner = base::has_winner();
        if (has_winner) {
            rest.prob = base::at_winner(p);
            rest.cotangent = base::at_winner(u);
            if (leave_out_winners() > 1)
                return false;
        }
        const typename V::product_sums sums = V::product_sums_of(base::terms(prob), base::terms(cotangent));
        rest.probs = sums.mass;
        rest.cotangents = sums.dot;
        if constexpr (!V::is_doubled)
            if (has_winner)
                rest.probs = V::sum_of_few(base::terms(prob));
        if (has_winner)
            load();
        if (!rest.is_ordinary() || V::count(find_products(rest)) != 0)
            return false;
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

// The same of a longer row. Products near the subnormal numbers are found again as log_vjp_pass does.
template <class V>
struct near_log_vjp {
    const typename V::scalar* p;
    const typename V::scalar* u;
    real probs, cotangents; // the sums of all

    SMX_INLINE typename V::vec at(std::size_t i, typename V::all inside) const
    {
        const typename V::vec prob = V::in_register(V::load(p + i, inside, V::zero()));
        const typename V::vec cotangent = V::in_register(V::load(u + i, inside, V::zero()));
        const typename V::vec rest = V::narrow(probs) - prob, rest_u = V::narrow(cotangents) - cotangent;
        const typename V::vec a = cotangent * rest, b = prob * rest_u, largest = V::max(V::abs(a), V::abs(b));
        if (SMX_LIKELY(!V::is_tiny(largest)))
            return a - b;
        return V::where_tiny(largest, scaled_log_product<V>(prob, cotangent, rest, rest_u, largest), a - b);
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
        if (is_below(a, V::numbers::tiny) && is_below(b, V::numbers::tiny))
            return false;
        of_winner = a - b;
        product.probs = product.probs + prob;
        product.cotangents = product.cotangents + cotangent;
    }
    if (sums.count > 1 || !is_one_but_for_rounding(product.probs) || !is_below(product.cotangents, V::numbers::huge) ||
        !V::can_group())
        return false;
    store_lines<V>(n, out, product);
    if (sums.count != 0)
        out[m] = static_cast<typename V::scalar>(of_winner.value);
    return true;
}

template <class V>
constexpr void row_log_softmax_vjp(const typename V::scalar* probs, const typename V::scalar* cotangent,
                                   typename V::scalar* out, std::size_t n)
{
    if constexpr (V::is_doubled)
        if (n - 1 < V::most_doubled && doubled_rows<V, doubled_log_vjp>(probs, cotangent, out, 1, n, n))
            return;
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

// No product of two overflows, and not all are subnormal.
template <class V>
SMX_INLINE bool are_factors(const typename V::vec& largest)
{
    return V::count(V::less_than(V::set1(V::numbers::largest_factor), largest)) == 0 &&
           V::count(V::less_than(V::set1(V::numbers::least_factor), largest)) != 0;
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
    scalar limit = V::is_doubled ? scalar(0x1p-20) : scalar(0x1p-6);
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
            if (n <= V::most_doubled ? doubled_rows<V, doubled_hvp>(probs, tangent, out, 1, n, n, cotangent, origin)
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

// row i of J: -p_i p_j off the diagonal, p_i sum_{j != i} p_j on it; for log_softmax: -p_j, sum_{j != i} p_j
template <class V>
SMX_INLINE constexpr void jacobian_row(const typename V::scalar* probs, std::size_t n, std::size_t i,
                                       const typename V::vec& factor, const others<V>& other_probs,
                                       typename V::scalar* row)
{
    const typename V::vec diagonal = other_probs.times(factor, probs + i);
    negated_row_pass<V> pass(probs, row, factor);
    if (n > V::cached_length / n) {
        const streamed_row_pass<V> streamed(pass, i);
        const std::size_t head = V::entries_to_line(row);
        if (head != 0)
            streamed(0, V::first(head));
        walk_range<V>(head, n, streamed);
        V::end_of_stream();
    } else
        walk<V>(n, pass);
    V::store_first(row + i, diagonal);
}

template <class V>
constexpr void row_softmax_jacobian(const typename V::scalar* probs, std::size_t n, typename V::scalar* jacobian)
{
    const row_mass<V> mass = mass_of<V>(probs, n);
    const others<V> other_probs(probs, n, mass.sum, probs, mass);
    for (std::size_t i = 0; i < n; ++i)
        jacobian_row<V>(probs, n, i, V::broadcast(probs + i), other_probs, jacobian + i * n);
}

template <class V>
constexpr void row_log_softmax_jacobian(const typename V::scalar* probs, std::size_t n, typename V::scalar* jacobian)
{
    const row_mass<V> mass = mass_of<V>(probs, n);
    const others<V> other_probs(probs, n, mass.sum, probs, mass);
    for (std::size_t i = 0; i < n; ++i)
        jacobian_row<V>(probs, n, i, V::one(), other_probs, jacobian + i * n);
}
