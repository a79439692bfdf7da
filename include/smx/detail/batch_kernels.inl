// SPDX-License-Identifier: BSL-1.0
// batch_kernels.inl: many rows at once, written once for a vector type V.
//
//   rows of at most one step --transpose--> columns, one row a lane --as in one step--> --transpose--> rows
//   rows of p and v, eight of doubles at once --> sums of eight rows by one tree of shuffles --> J v
//   matrix --V::lanes columns at a time--> max --exp_and_sum--> exponentials, sums --scale--> probs
//
// A row in a lane has the bits that it has by itself: its operations are those of one step in row_kernels.inl, and its sums
// are taken in their tree.
//
// Not a header: included after jacobian_kernels.inl, with the same rules.

// ---- one row a lane -------------------------------------------------------------------------------------------------

// Rows become columns by log2(lanes / 2) perfect shuffles, in both halves of the lanes apart.
template <class V, std::size_t k = 0>
SMX_INLINE void zip_in_halves(const typename V::vec* from, typename V::vec* to)
{
    if constexpr (k < V::lanes / 4) {
        to[2 * k] = V::zip_low_in_halves(from[k], from[k + V::lanes / 4]);
        to[2 * k + 1] = V::zip_high_in_halves(from[k], from[k + V::lanes / 4]);
        zip_in_halves<V, k + 1>(from, to);
    }
}

template <class V, std::size_t done = 1>
SMX_INLINE void transpose_halves(const typename V::vec* x, typename V::vec* to)
{
    if constexpr (2 * done < V::lanes / 2) {
        typename V::vec zipped[V::lanes / 2];
        zip_in_halves<V>(x, zipped);
        transpose_halves<V, 2 * done>(zipped, to);
    } else
        zip_in_halves<V>(x, to);
}

// Half as many columns as there are lanes, of as many rows as there are lanes: from `at` on.
template <class V, std::size_t r = 0, class Rows>
SMX_INLINE void load_block(const Rows& rows, std::size_t at, typename V::vec (&x)[V::lanes / 2])
{
    if constexpr (r < V::lanes / 2) {
        x[r] = V::load_halves(rows.in(r) + at, rows.in(r + V::lanes / 2) + at);
        load_block<V, r + 1>(rows, at, x);
    }
}
template <class V, std::size_t r = 0, class Rows>
SMX_INLINE void store_block(const Rows& rows, std::size_t at, const typename V::vec (&x)[V::lanes / 2])
{
    if constexpr (r < V::lanes / 2) {
        V::store_halves(rows.out(r) + at, rows.out(r + V::lanes / 2) + at, x[r]);
        store_block<V, r + 1>(rows, at, x);
    }
}
template <class V, class Rows>
SMX_INLINE void load_columns(const Rows& rows, std::size_t at, typename V::vec* x)
{
    typename V::vec block[V::lanes / 2];
    load_block<V>(rows, at, block);
    transpose_halves<V>(block, x + at);
}
template <class V, class Rows>
SMX_INLINE void store_columns(const Rows& rows, std::size_t at, const typename V::vec* x)
{
    typename V::vec block[V::lanes / 2];
    transpose_halves<V>(x + at, block);
    store_block<V>(rows, at, block);
}

// V::lanes rows of a matrix, of one length.
template <class V>
struct matrix_rows {
    const typename V::scalar* in_;
    typename V::scalar* out_;
    std::size_t n, stride;
    static constexpr std::size_t count = V::lanes;

    SMX_INLINE matrix_rows(const typename V::scalar* in, typename V::scalar* out, std::size_t n_, std::size_t stride_)
        : in_(in), out_(out), n(n_), stride(stride_)
    {
    }
    SMX_INLINE const typename V::scalar* in(std::size_t r) const { return in_ + r * stride; }
    SMX_INLINE typename V::scalar* out(std::size_t r) const { return out_ + r * stride; }
};

// Rows of one length that start anywhere, one for each lane; those behind `count` are the first again.
template <class V>
struct equal_segments {
    const typename V::scalar* x;
    typename V::scalar* p;
    const std::size_t* starts;
    std::size_t n, count;

    SMX_INLINE const typename V::scalar* in(std::size_t r) const { return x + starts[r]; }
    SMX_INLINE typename V::scalar* out(std::size_t r) const { return p + starts[r]; }
};

// Rows of fewer columns than a block has: the first part of them and the last, which may overlap, see load_parts.
template <class V, std::size_t part, std::size_t r = 0, class Rows>
SMX_INLINE void load_parts(const Rows& rows, typename V::vec (&x)[V::lanes / 2])
{
    if constexpr (r < V::lanes / 2) {
        x[r] = V::join(V::template load_parts<part>(rows.in(r), rows.n),
                       V::template load_parts<part>(rows.in(r + V::lanes / 2), rows.n));
        load_parts<V, part, r + 1>(rows, x);
    }
}
template <class V, std::size_t part, std::size_t r = 0, class Rows>
SMX_INLINE void store_parts(const Rows& rows, const typename V::vec (&x)[V::lanes / 2])
{
    if constexpr (r < V::lanes / 2) {
        V::template store_parts<part>(rows.out(r), rows.n, V::lower_half(x[r]));
        V::template store_parts<part>(rows.out(r + V::lanes / 2), rows.n, V::upper_half(x[r]));
        store_parts<V, part, r + 1>(rows, x);
    }
}
template <class V, std::size_t part, class Rows>
SMX_INLINE void load_few_columns(const Rows& rows, typename V::vec* x)
{
    typename V::vec block[V::lanes / 2], columns[V::lanes / 2];
    load_parts<V, part>(rows, block);
    transpose_halves<V>(block, columns);
    for (std::size_t j = 0; j < part; ++j) {
        x[j] = columns[j];
        x[rows.n - part + j] = columns[part + j];
    }
}
template <class V, std::size_t part, class Rows>
SMX_INLINE void store_few_columns(const Rows& rows, const typename V::vec* x)
{
    typename V::vec block[V::lanes / 2], columns[V::lanes / 2];
    for (std::size_t j = 0; j < V::lanes / 2; ++j)
        columns[j] = x[j < part ? j : j < 2 * part ? rows.n - 2 * part + j : 0];
    transpose_halves<V>(columns, block);
    store_parts<V, part>(rows, block);
}

// Blocks of half as many columns as there are lanes, which may overlap, are fewer shuffles and touch nothing else.
template <class V, class Rows>
SMX_INLINE void rows_to_columns(const Rows& rows, typename V::vec* x)
{
    constexpr std::size_t block = V::lanes / 2;
    if (rows.n < block)
        return rows.n >= block / 2 ? load_few_columns<V, block / 2>(rows, x)
               : rows.n >= 2       ? load_few_columns<V, 2>(rows, x)
                                   : load_few_columns<V, 1>(rows, x);
    for (std::size_t at = 0; rows.n - at >= block; at += block)
        load_columns<V>(rows, at, x);
    if (rows.n % block != 0)
        load_columns<V>(rows, rows.n - block, x);
}
template <class V, class Rows>
SMX_INLINE void columns_to_rows(const Rows& rows, typename V::vec* x)
{
    constexpr std::size_t block = V::lanes / 2;
    if (rows.n < block)
        return rows.n >= block / 2 ? store_few_columns<V, block / 2>(rows, x)
               : rows.n >= 2       ? store_few_columns<V, 2>(rows, x)
                                   : store_few_columns<V, 1>(rows, x);
    for (std::size_t at = 0; rows.n - at >= block; at += block)
        store_columns<V>(rows, at, x);
    if (rows.n % block != 0)
        store_columns<V>(rows, rows.n - block, x);
}

// The sums of the lanes over x[0] ... x[n - 1], part <= n <= 2 part, in the tree of V::held_total or held_sum of a row of n
// entries: of its first `part` entries and its last, where those are not the same.
template <class V, std::size_t part, std::size_t k = 0, std::size_t step = 1>
SMX_INLINE typename V::lane_wide lane_tree(const typename V::vec* x, std::size_t n, const typename V::vec& start)
{
    constexpr std::size_t width = part < V::tree_width ? part : V::tree_width;
    const std::size_t shared = 2 * part - n; // so many of the last are among the first
    const typename V::vec* const last = x + (n - part);
    if constexpr (step < width)
        return V::lane_plus(lane_tree<V, part, k, 2 * step>(x, n, start),
                            lane_tree<V, part, k + step, 2 * step>(x, n, start));
    else if constexpr (width == part)
        return V::lane_plus(V::lane_term(start, x[k]), V::lane_term(start, k < shared ? V::zero() : last[k]));
    else { // each step folded
        const typename V::lane_wide first = V::lane_plus(V::lane_term(start, x[k]), V::lane_term(start, x[k + width]));
        if (k + width < shared)
            return first;
        const typename V::lane_wide term = V::lane_term(start, last[k + width]);
        return V::lane_plus(first, k < shared ? term : V::lane_plus(V::lane_term(start, last[k]), term));
    }
}
template <class V>
SMX_INLINE typename V::lane_wide lane_sums(const typename V::vec* x, std::size_t n, const typename V::vec& start)
{
    constexpr std::size_t half = V::lanes / 2;
    if constexpr (V::most_in_lanes > 2 * V::lanes)
        if (n > 2 * V::lanes)
            return V::held_lanes(start, x, n);
    return V::lane_total(n > V::lanes   ? lane_tree<V, V::lanes>(x, n, start)
                         : n > half     ? lane_tree<V, half>(x, n, start)
                         : n > half / 2 ? lane_tree<V, half / 2>(x, n, start)
                         : n > 2        ? lane_tree<V, 2>(x, n, start)
                                        : lane_tree<V, 1>(x, n, start));
}

// mask: null, or one for all rows that lets something through
template <class V, class Rows>
void softmax_lanes(const Rows& rows, const exp_scale<typename V::scalar>& scale, const bool* mask)
{
    typename V::vec x[V::most_in_lanes];
    rows_to_columns<V>(rows, x);
    const std::size_t n = rows.n;
    typename V::extent extent(x[mask == nullptr ? 0 : first_unmasked(mask, n)]);
    for (std::size_t j = 0; j < n; ++j)
        if (mask == nullptr || mask[j])
            extent.add(x[j]);
    const bool all_small = extent.is_small(scale);
    if (!all_small && V::any_far(extent.max, scale)) {
        for (std::size_t r = 0; r < rows.count; ++r)
            row_softmax<V>(rows.in(r), rows.out(r), n, scale, mask);
        return;
    }
    const typename V::shift shift = V::loose_shift_of(all_small, extent.max, scale);
    for (std::size_t j = 0; j < n; ++j)
        x[j] = mask == nullptr || mask[j] ? V::exp_term(x[j], shift) : V::zero();
    const typename V::vec start = V::start_of_terms(extent.max, scale, all_small);
    const typename V::factor inverse = V::lane_reciprocal(lane_sums<V>(x, n, start));
    for (std::size_t j = 0; j < n; ++j)
        x[j] = mask == nullptr || mask[j] ? V::times(x[j], inverse) : V::zero();
    columns_to_rows<V>(rows, x);
}

// The logarithms of rows of small logits, whose exponentials do not wait for max: log1p(T) of each row by itself, all else in
// lanes. False: some logit is not small.
template <class V>
struct log_lanes {
    const matrix_rows<V>& rows;
    const exp_scale<typename V::scalar>& scale;
    typename V::vec x[V::most_in_lanes];
    typename V::scalar max[V::lanes];
    typename V::wide log1p_tail[V::lanes];

    SMX_INLINE log_lanes(const matrix_rows<V>& rows_, const exp_scale<typename V::scalar>& scale_)
        : rows(rows_), scale(scale_)
    {
    }
    SMX_INLINE bool has_found_tails()
    {
        rows_to_columns<V>(rows, x);
        const std::size_t n = rows.n;
        typename V::extent extent(x[0]);
        for (std::size_t j = 1; j < n; ++j)
            extent.add(x[j]);
        if (!extent.is_small(scale))
            return false;
        const typename V::shift shift = V::loose_shift_of(true, extent.max, scale);
        typename V::vec once[V::most_in_lanes], ties = V::zero();
        for (std::size_t j = 0; j < n; ++j) {
            const typename V::some largest = V::equals(V::every(), x[j], extent.max);
            ties = ties + V::select(largest, V::one(), V::zero());
            once[j] = V::without_largest(largest, V::exp_term(x[j], shift));
        }
        typename V::scalar count[V::lanes];
        typename V::wide below[V::lanes];
        V::store_lanes(below, lane_sums<V>(once, n, V::zero()));
        V::store(max, V::every(), extent.max);
        V::store(count, V::every(), ties);
        for (std::size_t r = 0; r < V::lanes; ++r) {
            const typename V::wide tail = below[r] * V::inverse_of_largest(true, V::broadcast(max + r), scale);
            log1p_tail[r] = V::log1p(V::with_ties(tail, static_cast<std::size_t>(count[r])));
        }
        return true;
    }
    SMX_INLINE void store_log_probs()
    {
        typename V::scalar rounded[V::lanes];
        for (std::size_t r = 0; r < V::lanes; ++r)
            V::store_first(rounded + r, V::narrow(log1p_tail[r]));
        const typename V::differences differences = V::differences_from(V::load(max, V::every(), V::zero()), scale);
        const typename V::vec tail = V::load(rounded, V::every(), V::zero());
        for (std::size_t j = 0; j < rows.n; ++j)
            x[j] = V::log_prob(x[j], differences, tail);
        columns_to_rows<V>(rows, x);
    }
    SMX_INLINE void store_logs(typename V::scalar* out) const
    {
        for (std::size_t r = 0; r < V::lanes; ++r)
            V::store_first(out + r, V::plus(V::broadcast(max + r), log1p_tail[r]));
    }
};

// J v of eight rows of doubles of a matrix, of at most one step each; every step of product_in_step for all of them before
// the next
template <class V>
struct eight_products {
    static constexpr bool careful = careful_at_once<V>;
    const typename V::scalar* p;
    const typename V::scalar* v;
    typename V::scalar* out;
    std::size_t n, stride;
    typename V::vec prob[8], t[8];

    template <std::size_t r = 0>
    SMX_INLINE void load_probs(const typename V::some& inside, typename V::vec (&sums)[8], typename V::vec& least)
    {
        prob[r] = V::load_short(p + r * stride, n);
        least = r == 0 ? prob[r] : V::min(least, prob[r]);
        sums[r] = V::keep(inside, prob[r]);
        if constexpr (r + 1 < 8)
            load_probs<r + 1>(inside, sums, least);
    }
    template <std::size_t r = 0>
    SMX_INLINE void load_tangents(const typename V::some& inside, typename V::vec (&sums)[8])
    {
        const typename V::vec once = V::keep(inside, prob[r]);
        t[r] = tangent_in_step<V>(once, V::load_short(v + r * stride, n));
        sums[r] = V::keep(inside, prob[r] * factor_of<V, careful>(prob[r], t[r]));
        if constexpr (r + 1 < 8)
            load_tangents<r + 1>(inside, sums);
    }
    template <std::size_t r = 0>
    SMX_INLINE void store_products(const double (&masses)[8], const double (&dots)[8]) const
    {
        V::store_short(out + r * stride, n,
                       product_of<V, false, careful>(prob[r], t[r], real{masses[r]}, real{dots[r]}));
        if constexpr (r + 1 < 8)
            store_products<r + 1>(masses, dots);
    }
    SMX_INLINE bool done() // false: a row is tiny, a probability rare, or a sum not 1 but for rounding
    {
        const typename V::some inside = V::inside_short(n);
        typename V::vec sums[8], least = V::zero();
        double masses[8], dots[8];
        load_probs(inside, sums, least);
        if (!careful && has_rare<V>(least))
            return false;
        V::masses_of(sums, masses);
        SMX_LAUNDER(masses);
        load_tangents(inside, sums);
        V::dots_of(sums, dots);
        SMX_LAUNDER(dots);
        if (V::is_tiny(V::load(dots, V::every(), V::zero())))
            return false;
        for (const double mass : masses)
            if (!is_one_but_for_rounding(real{mass}))
                return false;
        store_products(masses, dots);
        return true;
    }
};

// ---- matrices, and rows of different lengths ------------------------------------------------------------------------

template <class V> // a row that is next in a batch of `size` entries
SMX_INLINE void fetch_row(const typename V::scalar* x, std::size_t n, std::size_t size)
{
    if (V::fetches_next(n, size))
        for (std::size_t i = 0; i < n; i += 64 / sizeof(typename V::scalar))
            V::fetch(x + i);
}
template <class V>
SMX_INLINE void fetch_next(const typename V::scalar* in, std::size_t r, std::size_t rows, std::size_t n,
                           std::size_t stride)
{
    if (r + 1 < rows)
        fetch_row<V>(in + (r + 1) * stride, n, rows * stride);
}

// mask: null, or of row r from mask + r mask_stride on; mask_stride is 0 where there is none, or one for all rows
template <class V>
void matrix_softmax(const typename V::scalar* in, typename V::scalar* out, std::size_t rows, std::size_t n,
                    std::size_t stride, const exp_scale<typename V::scalar>& scale, const bool* mask,
                    std::size_t mask_stride)
{
    std::size_t r = 0;
    if constexpr (V::lanes > 1)
        if (n <= V::most_in_lanes && mask_stride == 0 && (mask == nullptr || first_unmasked(mask, n) != n))
            for (; rows - r >= V::lanes; r += V::lanes)
                softmax_lanes<V>(matrix_rows<V>(in + r * stride, out + r * stride, n, stride), scale, mask);
    for (; r < rows; ++r) {
        fetch_next<V>(in, r, rows, n, stride);
        row_softmax<V>(in + r * stride, out + r * stride, n, scale, mask + r * mask_stride);
    }
}

template <class V>
void matrix_log_softmax(const typename V::scalar* in, typename V::scalar* out, std::size_t rows, std::size_t n,
                        std::size_t stride, const exp_scale<typename V::scalar>& scale, const bool* mask,
                        std::size_t mask_stride)
{
    std::size_t r = 0;
    if constexpr (V::is_doubled)
        if (n - 1 < V::most_in_lanes && mask == nullptr)
            for (; rows - r >= V::lanes; r += V::lanes) {
                const matrix_rows<V> block(in + r * stride, out + r * stride, n, stride);
                log_lanes<V> lanes(block, scale);
                if (lanes.has_found_tails())
                    lanes.store_log_probs();
                else
                    for (std::size_t k = 0; k < V::lanes; ++k)
                        row_log_softmax<V>(block.in(k), block.out(k), n, scale, nullptr);
            }
    for (; r < rows; ++r) {
        fetch_next<V>(in, r, rows, n, stride);
        row_log_softmax<V>(in + r * stride, out + r * stride, n, scale, mask + r * mask_stride);
    }
}

// count rows of x, which has `size` entries: row r is x[offsets[r]] ... x[offsets[r + 1] - 1]. Short ones wait until there is one
// of their length for each lane.
template <class V>
void segments_softmax(const typename V::scalar* x, typename V::scalar* p, const std::size_t* offsets, std::size_t count,
                      std::size_t size, const exp_scale<typename V::scalar>& scale)
{
    if constexpr (V::lanes > 1) {
        std::size_t waiting[V::most_in_lanes + 1][V::lanes]; // where the rows of each length start
        std::uint32_t counts[V::most_in_lanes + 1] = {};     // and how many
        // What waits is read and written out of order, here and there: fetched without a branch.
        const std::size_t mean = (offsets[count] - offsets[0]) / count;
        const bool fetches = mean <= V::most_in_lanes && V::fetches_short(mean, size);
        for (std::size_t r = 0; r < count; ++r) {
            if (fetches && r + 16 < count) {
                const std::size_t ahead = offsets[r + 16], middle = (ahead + offsets[r + 17]) / 2;
                V::fetch(x + ahead);
                V::fetch(x + middle);
                V::fetch(p + ahead);
                V::fetch(p + middle);
            }
            const std::size_t at = offsets[r], n = offsets[r + 1] - at;
            if (n > V::most_in_lanes) {
                if (r + 1 < count)
                    fetch_row<V>(x + at + n, offsets[r + 2] - offsets[r + 1], size);
                row_softmax<V>(x + at, p + at, n, scale, nullptr);
                continue;
            }
            const std::uint32_t k = counts[n];
            waiting[n][k] = at;
            counts[n] = k + 1;
            if (k + 1 == V::lanes) {
                counts[n] = 0;
                if (n != 0)
                    softmax_lanes<V>(equal_segments<V>{x, p, waiting[n], n, V::lanes}, scale, nullptr);
            }
        }
        for (std::size_t n = 1; n <= V::most_in_lanes; ++n)
            if (counts[n] > V::lanes * 5 / 8) { // the first again in the lanes that are left
                for (std::size_t k = counts[n]; k < V::lanes; ++k)
                    waiting[n][k] = waiting[n][0];
                softmax_lanes<V>(equal_segments<V>{x, p, waiting[n], n, counts[n]}, scale, nullptr);
            } else
                for (std::size_t k = 0; k < counts[n]; ++k)
                    row_softmax<V>(x + waiting[n][k], p + waiting[n][k], n, scale, nullptr);
    } else
        for (std::size_t r = 0; r < count; ++r)
            row_softmax<V>(x + offsets[r], p + offsets[r], offsets[r + 1] - offsets[r], scale, nullptr);
}

template <class V>
void matrix_logsumexp(const typename V::scalar* in, typename V::scalar* out, std::size_t rows, std::size_t n,
                      std::size_t stride)
{
    std::size_t r = 0;
    if constexpr (V::is_doubled)
        if (n - 1 < V::most_in_lanes)
            for (; rows - r >= V::lanes; r += V::lanes) {
                const matrix_rows<V> block(in + r * stride, nullptr, n, stride);
                log_lanes<V> lanes(block, V::unit_scale());
                if (lanes.has_found_tails())
                    lanes.store_logs(out + r);
                else
                    for (std::size_t k = 0; k < V::lanes; ++k)
                        row_logsumexp<V>(block.in(k), n, out + r + k);
            }
    for (; r < rows; ++r) {
        fetch_next<V>(in, r, rows, n, stride);
        row_logsumexp<V>(in + r * stride, n, out + r);
    }
}

template <class V>
void matrix_softmax_jvp(const typename V::scalar* in, const typename V::scalar* with, typename V::scalar* out,
                        std::size_t rows, std::size_t n, std::size_t stride)
{
    std::size_t r = 0;
    if constexpr (V::is_doubled) {
        if (n - 1 < V::most_doubled)
            for (; r < rows; ++r) {
                r += doubled_rows<V, doubled_kind<false, false>::template row>(in + r * stride, with + r * stride,
                                                                               out + r * stride, rows - r, n, stride);
                if (r == rows)
                    return;
                careful_short_product<V, false>(in + r * stride, with + r * stride, out + r * stride, n);
            }
    } else if constexpr (V::lanes > 1)
        if (n <= V::lanes)
            for (; rows - r >= 8; r += 8) {
                eight_products<V> eight;
                eight.p = in + r * stride;
                eight.v = with + r * stride;
                eight.out = out + r * stride;
                eight.n = n;
                eight.stride = stride;
                if (!eight.done())
                    for (std::size_t k = r; k < r + 8; ++k)
                        row_softmax_jvp<V>(in + k * stride, with + k * stride, out + k * stride, n);
            }
    for (; r < rows; ++r)
        row_softmax_jvp<V>(in + r * stride, with + r * stride, out + r * stride, n);
}

// one row after the other
template <class V,
          void (*row_product)(const typename V::scalar*, const typename V::scalar*, typename V::scalar*, std::size_t)>
void matrix_of_products(const typename V::scalar* in, const typename V::scalar* with, typename V::scalar* out,
                        std::size_t rows, std::size_t n, std::size_t stride)
{
    for (std::size_t r = 0; r < rows; ++r)
        row_product(in + r * stride, with + r * stride, out + r * stride, n);
}

// ---- columns --------------------------------------------------------------------------------------------------------

// Columns of a matrix, walked in blocks of a few rows, which are read and written as they lie in memory. A lane holds one
// column, and all that belongs to it. Where all logits are small no max is needed: it would be a pass of its own. The bits are
// the same, since then both the terms and their sum differ by a power of two.
template <class V>
struct column_strip {
    static constexpr std::size_t vectors = 32; // at most

    const typename V::scalar* x;
    typename V::scalar* p;
    const std::size_t rows, stride;
    std::size_t width;  // columns
    const bool fetches; // a matrix that no near cache holds: the next block
    const std::size_t block;
    bool seen_small;
    typename V::vec max[vectors];
    typename V::lane_wide sum[vectors];
    typename V::factor inverse[vectors];

    SMX_INLINE column_strip(std::size_t rows_, std::size_t stride_)
        : x(nullptr), p(nullptr), rows(rows_), stride(stride_), width(0),
          fetches(stride_ > 1048576 / sizeof(typename V::scalar) / rows_), block(rows_of_block(stride_, fetches)),
          seen_small(false)
    {
    }
    // Rows that lie in the same few places of a cache push each other out. Whole registers wait for memory, halves compute.
    static SMX_INLINE std::size_t rows_of_block(std::size_t stride, bool fetches)
    {
        if (stride * sizeof(typename V::scalar) % 2048 == 0)
            return 2 * V::registers;
        return fetches && V::registers == 1 ? 8 : 16;
    }

    template <class Inside>
    SMX_INLINE void find_max(std::size_t v, std::size_t first, std::size_t last, Inside inside)
    {
        const typename V::scalar* row = x + first * stride + v * V::lanes;
        typename V::vec best = first == 0 ? V::load(row, inside, V::zero()) : max[v];
        for (std::size_t i = first; i < last; ++i, row += stride)
            best = V::max(best, V::load(row, inside, V::zero()));
        max[v] = best;
    }
    template <bool all_small, class Inside>
    SMX_INLINE void exp_and_sum(std::size_t v, std::size_t first, std::size_t last, Inside inside)
    {
        const exp_scale<typename V::scalar>& scale = V::unit_scale();
        const typename V::shift s = V::loose_shift_of(all_small, max[v], scale);
        const typename V::lane_wide terms = first == 0 ? V::lane_zero() : sum[v];
        const std::size_t at = first * stride + v * V::lanes;
        if constexpr (all_small) { // of others no exponential is taken: it might raise a flag
            typename V::extent seen(V::zero());
            for (std::size_t j = first; j < last; ++j)
                seen.add(V::in_register(V::load(x + j * stride + v * V::lanes, inside, V::zero())));
            seen_small = seen.is_small(scale);
            if (!seen_small)
                return;
        }
        sum[v] = exponentials(at, last - first, fetches && rows - last >= block, inside, s, terms);
    }
    // p = e^(x - max) down `count` rows of one vector of columns; terms, and their sum. Each by itself, as in a row in registers.
    template <class Inside>
    SMX_INLINE typename V::lane_wide exponentials(std::size_t at, std::size_t count, bool fetches_block, Inside inside,
                                                  const typename V::shift& shift, typename V::lane_wide terms)
    {
        const std::size_t ahead = block * stride;
        for (; count >= 2; count -= 2, at += 2 * stride) {
            typename V::vec e[] = {V::load(x + at, inside, V::zero()), V::load(x + at + stride, inside, V::zero())};
            if (fetches_block) {
                V::fetch(x + at + ahead);
                V::fetch(p + at + ahead);
                V::fetch(x + at + stride + ahead);
                V::fetch(p + at + stride + ahead);
            }
            V::exp_terms(e, shift);
            V::store(p + at, inside, e[0]);
            V::store(p + at + stride, inside, e[1]);
            terms = V::lane_add(V::lane_add(terms, e[0]), e[1]);
        }
        if (count != 0) {
            const typename V::vec e = V::exp_term(V::load(x + at, inside, V::zero()), shift);
            V::store(p + at, inside, e);
            terms = V::lane_add(terms, e);
        }
        return terms;
    }
    template <class Inside>
    SMX_INLINE void scale(std::size_t v, std::size_t first, std::size_t last, Inside inside)
    {
        const typename V::factor factor = inverse[v];
        typename V::scalar* row = p + first * stride + v * V::lanes;
        for (std::size_t i = first; i < last; ++i, row += stride)
            V::store(row, inside, V::times(V::in_register(V::load(row, inside, V::zero())), factor));
    }

    template <int pass, class Inside>
    SMX_INLINE void step(std::size_t v, std::size_t first, std::size_t last, Inside inside)
    {
        if constexpr (pass == 0)
            find_max(v, first, last, inside);
        else if constexpr (pass == 1)
            exp_and_sum<false>(v, first, last, inside);
        else if constexpr (pass == 2)
            exp_and_sum<true>(v, first, last, inside);
        else
            scale(v, first, last, inside);
    }
    template <int pass>
    SMX_INLINE void walk_rows()
    {
        for (std::size_t first = 0; first < rows && seen_small; first += block) {
            const std::size_t last = rows - first < block ? rows : first + block;
            std::size_t v = 0;
            for (; (v + 1) * V::lanes <= width && seen_small; ++v)
                step<pass>(v, first, last, V::every());
            if (v * V::lanes < width && seen_small)
                step<pass>(v, first, last, V::first(width - v * V::lanes));
        }
    }
    // false: a max is far from 0
    SMX_INLINE bool is_done(const typename V::scalar* first, typename V::scalar* out, std::size_t columns)
    {
        x = first;
        p = out;
        width = columns;
        const std::size_t used = (width + V::lanes - 1) / V::lanes;
        seen_small = x != p; // else nothing may be stored before all is known to be small
        walk_rows<2>();
        if (!seen_small) {
            seen_small = true;
            walk_rows<0>();
            for (std::size_t v = 0; v < used; ++v)
                if (V::any_far(max[v], V::unit_scale()))
                    return false;
            walk_rows<1>();
        }
        for (std::size_t v = 0; v < used; ++v)
            inverse[v] = V::lane_reciprocal(V::lane_total(sum[v]));
        walk_rows<3>();
        return true;
    }
};

template <class V>
using any_columns = void (*)(const typename V::scalar*, typename V::scalar*, std::size_t, std::size_t, std::size_t,
                             std::size_t);

// columns first ... last - 1 of a matrix of `stride` columns, in strips of nearly one width; `anyhow` does those with a max far
// from 0, and only those: a column's bits do not depend on its neighbours, nor on how many of them are in a strip
template <class V>
void strips_softmax(const typename V::scalar* x, typename V::scalar* p, std::size_t rows, std::size_t stride,
                    std::size_t first, std::size_t last, any_columns<V> anyhow)
{
    using strip_of = column_strip<V>;
    strip_of strip(rows, stride);
    const std::size_t vectors = (last - first + V::lanes - 1) / V::lanes,
                      strips = (vectors + strip_of::vectors - 1) / strip_of::vectors,
                      most = strips == 0 ? 0 : (vectors + strips - 1) / strips * V::lanes;
    for (std::size_t c = first; c < last; c += most) {
        const std::size_t width = last - c < most ? last - c : most;
        if (strip.is_done(x + c, p + c, width))
            continue;
        typename V::scalar max[strip_of::vectors * V::lanes];
        for (std::size_t v = 0; v * V::lanes < width; ++v)
            V::store(max + v * V::lanes, V::every(), strip.max[v]);
        std::size_t first_near = 0; // columns first_near ... j - 1 are not far
        for (std::size_t j = 0; j <= width; ++j)
            if (j == width || V::any_far(V::broadcast(max + j), V::unit_scale())) {
                if (first_near < j)
                    strip.is_done(x + c + first_near, p + c + first_near, j - first_near);
                if (j < width)
                    anyhow(x, p, rows, stride, c + j, c + j + 1);
                first_near = j + 1;
            }
    }
}

// One column, one lane, any entries.
template <class V>
void one_column_softmax(const typename V::scalar* x, typename V::scalar* p, std::size_t rows, std::size_t stride)
{
    typename V::vec max = V::broadcast(x);
    for (std::size_t i = 1; i < rows; ++i)
        max = V::max(max, V::broadcast(x + i * stride));
    if (!V::is_finite(max)) {
        for (std::size_t i = 0; i < rows; ++i)
            V::store_first(p + i * stride, V::not_a_number());
        return;
    }
    const typename V::shift shift = V::shift_of(max, V::unit_scale());
    typename V::term_sum sum;
    for (std::size_t i = 0; i < rows; ++i) {
        const typename V::vec e = V::exp_term(V::broadcast(x + i * stride), shift);
        V::store_first(p + i * stride, e);
        sum.add(e);
    }
    const typename V::factor inverse = V::inverse(sum.total());
    for (std::size_t i = 0; i < rows; ++i)
        V::store_first(p + i * stride, V::times(V::broadcast(p + i * stride), inverse));
}

template <class V>
void each_column_softmax(const typename V::scalar* x, typename V::scalar* p, std::size_t rows, std::size_t stride,
                         std::size_t first, std::size_t last)
{
    if (rows != 0)
        for (std::size_t c = first; c < last; ++c)
            one_column_softmax<V>(x + c, p + c, rows, stride);
}

template <class V>
void columns_softmax(const typename V::scalar* x, typename V::scalar* p, std::size_t rows, std::size_t stride,
                     std::size_t first, std::size_t last, any_columns<V> anyhow)
{
    if constexpr (V::lanes > 1) {
        if (rows != 0)
            strips_softmax<V>(x, p, rows, stride, first, last, anyhow);
    } else
        each_column_softmax<V>(x, p, rows, stride, first, last);
}
