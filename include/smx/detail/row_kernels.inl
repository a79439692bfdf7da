// SPDX-License-Identifier: BSL-1.0
// row_kernels.inl: the data path, written once for a vector type V.
//
//   logits --row_max--> max --exp_and_sum--> exponentials, sum --normalise--> probs
//   logits --row_max--> max --tail_of_sum--> T = S / e^max - 1 --log_probs--> log_probs;  max + log1p(T) = logsumexp
//
// A row of up to eight vectors is held: loaded once, stored once (held_row; finished_in_steps).
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

// first i with x[i] = max
template <class V>
constexpr std::size_t index_of(const typename V::scalar* x, std::size_t n, const typename V::vec& max)
{
    std::size_t i = 0;
    while (n - i >= V::lanes && V::count(V::equals(V::every(), V::load(x + i, V::every(), max), max)) == 0)
        i += V::lanes;
    for (; i < n; ++i)
        if (V::broadcast_equals(x + i, max))
            return i;
    return 0; // a NaN in the row: it reaches every result whatever is chosen here
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
                                    const typename V::vec& first_, const Sum& sum_ = Sum())
        : each_exponential<V, whole_pass, Entries, Sum>(x_, entries_, shift_, first_, sum_)
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
        return V::or_minus_infinity(which, V::log_prob(entries.load(x, i, inside, first), shift, log1p_tail));
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
    template <std::size_t k, class Shift>
    SMX_INLINE void find_two(const Shift& shift)
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
    }
    template <std::size_t k = 0, class Shift>
    SMX_INLINE void find_exponentials(const Shift& shift)
    {
        find_two<k>(shift);
        if constexpr (k + 2 < steps)
            find_exponentials<k + 2>(shift);
    }
    template <std::size_t k = 0, std::size_t end = steps>
    SMX_INLINE std::size_t leave_out(const typename V::vec& max) // the largest terms of the sum; their number
    {
        const typename V::some largest = V::equals(which_once<k>(), x[k], max);
        once[k] = V::without_largest(largest, once[k]);
        if constexpr (k + 1 < end)
            return V::count(largest) + leave_out<k + 1, end>(max);
        else
            return V::count(largest);
    }
    template <std::size_t k = 0, class Shift> // both, in turn: fewer registers
    SMX_INLINE std::size_t find_tail(const Shift& shift, const typename V::vec& max)
    {
        find_two<k>(shift);
        if constexpr (k + 2 < steps) {
            const std::size_t largest = leave_out<k, k + 2>(max);
            return largest + find_tail<k + 2>(shift, max);
        } else
            return leave_out<k>(max);
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
        const bool all_small = V::is_small_magnitude(row.magnitude(), scale);
        typename V::vec max = V::zero();
        if (!all_small || !V::is_doubled) { // the sum of doubles starts at what no term exceeds
            max = V::reduce_max(row.extent().max);
            if (!all_small && V::is_far(max, scale))
                return false;
        }
        row.find_exponentials(V::loose_shift_of(all_small, max, scale));
        row.store_quotients(probs, V::inverse(row.total(V::start_of_terms(max, scale, all_small))));
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
        const std::size_t far_end = n < V::near_end ? 0 : (n - V::near_end) / block * block;
        for (std::size_t from = (n - 1) / block * block;; from -= block) {
            normalise(from, sum);
            if (from == far_end)
                break;
        }
        for (std::size_t from = 0; from < far_end; from += block)
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
    // The exponentials do not wait for max, nor does their sum. A row of up to eight steps that comes here is far from 0.
    if constexpr (V::is_doubled && !Entries::is_rare)
        if (n > 8 * V::lanes && n <= V::most_without_max && are_small<V>(logits, n, scale))
            return exp_and_normalise<V>(logits, probs, n, V::loose_shift_of(true, V::zero(), scale), entries, first,
                                        typename V::single_sum());
    const typename V::extent extent = extent_of<V>(logits, n, entries, first);
    if constexpr (V::lanes > 1)
        if (n <= V::most_small && !V::is_far(extent.max, scale)) {
            const bool all_small = extent.is_small(scale);
            // else floats are faster by a table of the row, doubles are not
            if (all_small || !V::is_doubled)
                return exp_and_normalise<V>(logits, probs, n, V::loose_shift_of(all_small, extent.max, scale), entries,
                                            first,
                                            typename V::small_sum(V::start_of_terms(extent.max, scale, all_small)));
        }
    if (!V::is_finite(extent.max)) // +inf, or nothing but -inf, or a NaN
        fill_row<V>(probs, n, entries, V::not_a_number(), V::zero());
    else if (V::is_far(extent.max, scale))
        exp_and_normalise<typename V::far_away>(logits, probs, n, V::far_away::shift_of(extent.max, scale), entries,
                                                first);
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
            const bool all_small = row.is_small(extent, scale);
            if (!all_small && V::is_far(max, scale))
                return false;
            row.find_exponentials(V::loose_shift_of(all_small, max, scale));
            const typename V::wide inverse = V::inverse_of_largest(all_small, max, scale);
            typename V::wide tail{};
            if constexpr (Row::is_long)
                tail = V::with_ties(row.tail_sum(true) * inverse, 0);
            if (!Row::is_long || !(typename V::wide{2} < tail)) { // a rounding of two that were added would count
                const std::size_t largest = row.leave_out(max);
                tail = V::with_ties(row.tail_sum(false) * inverse, largest);
            }
            static_cast<const Store&>(*this).store(row, max, V::differences_from(max, scale), V::log1p(tail));
        } else {
            if (V::is_far(max, scale))
                return false;
            const typename V::step_shift shift = V::step_shift_of(max, scale);
            const std::size_t largest = row.find_tail(shift, max);
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

// The same of a row of small logits, whose exponentials do not wait for max. False: T is less than what roundings of the sum
// leave of it to 24 digits.
template <class V, class Sum, class Entries>
SMX_INLINE bool has_found_tail(const typename V::scalar* logits, std::size_t n, Entries entries,
                               const exp_scale<typename V::scalar>& scale, const typename V::vec& max,
                               const typename V::vec& first, const Sum& start, typename V::wide least,
                               typename V::wide& tail)
{
    const typename V::shift shift = V::loose_shift_of(true, max, scale);
    whole_pass<V, Entries, Sum> pass(logits, entries, shift, first, start);
    walk<V>(n, pass);
    const typename V::wide sum = pass.sum.total(), inverse = V::inverse_of_largest(true, max, scale);
    tail = V::with_ties(sum * inverse, 0);
    if (typename V::wide{2} < tail)
        return true;
    // the rounding of the largest term counts: it is taken out, as each was added by itself
    tail = (sum - V::lane(V::exp_term(max, shift))) * inverse;
    return least < tail;
}

// log1p(T) of a row that is not far from 0
template <class V, class Entries>
SMX_INLINE constexpr typename V::wide log1p_of_tail(const typename V::scalar* logits, std::size_t n, Entries entries,
                                                    const exp_scale<typename V::scalar>& scale,
                                                    const typename V::extent& extent, const typename V::vec& first)
{
    if constexpr (V::is_doubled)
        if (n <= V::most_without_origin && extent.is_small(scale)) {
            using wide = typename V::wide;
            const double count = static_cast<double>(n);
            wide tail{};
            if (n <= V::most_in_double // their sum does not wait for max
                    ? has_found_tail<V>(logits, n, entries, scale, extent.max, first, typename V::single_sum(),
                                        wide{count * 0x1p-26}, tail)
                    : has_found_tail<V>(logits, n, entries, scale, extent.max, first,
                                        typename V::small_sum(V::start_of_terms(extent.max, scale, true)),
                                        wide{count * 0x1p-14}, tail))
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
        const typename V::far_away::shift shift = V::far_away::shift_of(max, scale);
        const typename V::wide tail = tail_of_sum<typename V::far_away>(logits, n, entries, shift, max, first);
        store_log_probs<typename V::far_away>(logits, log_probs, n, shift, entries, V::log1p(tail), first);
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
        V::store_first(out,
                       V::plus(max, V::log1p(tail_of_sum<typename V::far_away>(
                                        logits, n, every_entry<V>{}, V::far_away::shift_of(max, scale), max, first))));
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
