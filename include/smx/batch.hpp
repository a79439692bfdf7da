// SPDX-License-Identifier: BSL-1.0
// batch.hpp: the functions of softmax.hpp and jacobian.hpp row by row, on a row-major matrix given as one contiguous range;
// softmax down the columns of a matrix, and of rows of different lengths.
//
// A float or double row has the bits that it has by itself, whatever its neighbours, the executor and its pieces.
//
// Each function has an overload whose first argument is an executor: any callable exec(count, body) that calls
// body(first, last), on any threads, for disjoint pieces that cover [0, count), and returns when all calls have. count counts
// units of work, each of about 32 KB or one row, whichever is more. An exception of the executor passes through.
#pragma once

#include <concepts>    // invocable, same_as
#include <cstddef>     // size_t
#include <type_traits> // remove_cvref_t

#include <smx/detail/check.hpp>
#include <smx/detail/dispatch.hpp>
#include <smx/detail/target.hpp>
#include <smx/row.hpp>

namespace smx {

// rows of row_length entries that start row_stride entries apart; what lies between them is neither read nor written. A
// matrix has rows * row_stride elements, or that less the last padding.
struct row_layout {
    std::size_t row_length, row_stride;

    constexpr row_layout(std::size_t length) : row_length(length), row_stride(length) {}
    constexpr row_layout(std::size_t length, std::size_t stride) : row_length(length), row_stride(stride) {}
};

namespace detail {
struct any_body { // no body is a pointer to a function
    void operator()(std::size_t, std::size_t) const {}
};
} // namespace detail

template <class E>
concept executor = std::invocable<E&, std::size_t, const detail::any_body&>;

// sequential: all on the caller's thread.
struct sequential_executor {
    template <class Body>
    SMX_INLINE void operator()(std::size_t count, Body&& body) const
    {
        body(std::size_t{0}, count);
    }
};
inline constexpr sequential_executor sequential{};

// offsets, labels: contiguous integers
template <class R>
concept integer_row =
    detail::contiguous<const std::remove_cvref_t<R>> &&
    label_type<std::remove_cvref_t<decltype(*detail::data_of(std::declval<const std::remove_cvref_t<R>&>()))>>;

namespace detail {

SMX_INLINE std::size_t at_least_one(std::size_t n) { return n == 0 ? 1 : n; }

// units of work of about 32 KB
SMX_INLINE std::size_t rows_of_a_unit(std::size_t row_bytes) { return at_least_one(32768 / at_least_one(row_bytes)); }

SMX_INLINE std::size_t units_of(std::size_t rows, std::size_t rows_of_unit)
{
    return rows / rows_of_unit + (rows % rows_of_unit != 0);
}

// the row behind the units before `last`
SMX_INLINE std::size_t end_of_unit(std::size_t last, std::size_t rows, std::size_t rows_of_unit)
{
    return last < units_of(rows, rows_of_unit) ? last * rows_of_unit : rows;
}

// the number of rows of a matrix of so many elements
SMX_INLINE std::size_t checked_rows(const char* function, const char* name, std::size_t size, const row_layout& layout)
{
    if (layout.row_length == 0 || layout.row_stride < layout.row_length)
        refuse_layout(function, layout.row_length, layout.row_stride);
    if (size == 0)
        return 0;
    const std::size_t rows = size / layout.row_stride, rest = size % layout.row_stride;
    if (rest != 0 && rest != layout.row_length)
        refuse_matrix(function, name, size, layout.row_length, layout.row_stride);
    return rows + (rest != 0);
}

namespace { // every unit has its own copy, compiled with its own flags

// Bodies that an executor calls. Rows of different lengths: 1024 at a time, so that those that wait for others are still near.
template <class T, class Offset>
struct segment_pieces {
    void (*segments_function)(const T*, T*, const std::size_t*, std::size_t, std::size_t, const exp_scale<T>&);
    const T* in;
    T* out;
    const Offset* offsets;
    std::size_t rows, size, rows_of_unit;
    const exp_scale<T>& scale;

    SMX_INLINE void operator()(std::size_t first, std::size_t last) const
    {
        constexpr std::size_t most = 1024;
        const std::size_t end = end_of_unit(last, rows, rows_of_unit);
        for (std::size_t r = first * rows_of_unit; r < end; r += most) {
            const std::size_t count = end - r < most ? end - r : most;
            if constexpr (std::same_as<Offset, std::size_t>)
                segments_function(in, out, offsets + r, count, size, scale);
            else {
                std::size_t chunk[most + 1];
                for (std::size_t k = 0; k <= count; ++k)
                    chunk[k] = static_cast<std::size_t>(offsets[r + k]);
                segments_function(in, out, chunk, count, size, scale);
            }
        }
    }
};

template <class T>
struct column_pieces {
    using function = void (*)(const T*, T*, std::size_t, std::size_t, std::size_t, std::size_t,
                              void (*)(const T*, T*, std::size_t, std::size_t, std::size_t, std::size_t));
    function columns_function;
    const T* in;
    T* out;
    std::size_t rows, columns, columns_of_unit;

    SMX_INLINE void operator()(std::size_t first, std::size_t last) const
    {
        const std::size_t end = end_of_unit(last, columns, columns_of_unit);
        columns_function(in, out, rows, columns, first * columns_of_unit, end,
                         generic::each_column_softmax<generic::lane<T>>);
    }
};

template <class T, class Label>
struct loss_pieces {
    void (*row_function)(const T*, std::size_t, std::size_t, T*, T*);
    const T* in;
    const Label* labels;
    T *gradient, *losses;
    std::size_t rows, row_length, stride, rows_of_unit;

    SMX_INLINE void operator()(std::size_t first, std::size_t last) const
    {
        const std::size_t end = end_of_unit(last, rows, rows_of_unit);
        for (std::size_t r = first * rows_of_unit; r < end; ++r)
            row_function(in + r * stride, row_length, static_cast<std::size_t>(labels[r]), gradient + r * stride,
                         losses + r);
    }
};

// softmax or log_softmax of a matrix; mask_stride: 0 where there is no mask, or one for all rows
template <class T>
struct matrix_pieces {
    using function = void (*)(const T*, T*, std::size_t, std::size_t, std::size_t, const exp_scale<T>&, const bool*,
                              std::size_t);
    function matrix_function;
    const T* in;
    T* out;
    std::size_t rows, row_length, stride, rows_of_unit;
    const exp_scale<T>& scale;
    const bool* mask;
    std::size_t mask_stride;

    SMX_INLINE void operator()(std::size_t first, std::size_t last) const
    {
        const std::size_t end = end_of_unit(last, rows, rows_of_unit);
        const std::size_t begin = first * rows_of_unit, offset = begin * stride;
        if (begin < end)
            matrix_function(in + offset, out + offset, end - begin, row_length, stride, scale,
                            mask + begin * mask_stride, mask_stride);
    }
};

template <class T>
struct product_pieces {
    void (*matrix_function)(const T*, const T*, T*, std::size_t, std::size_t, std::size_t);
    const T *in, *with;
    T* out;
    std::size_t rows, row_length, stride, rows_of_unit;

    SMX_INLINE void operator()(std::size_t first, std::size_t last) const
    {
        const std::size_t end = end_of_unit(last, rows, rows_of_unit);
        const std::size_t begin = first * rows_of_unit, offset = begin * stride;
        if (begin < end)
            matrix_function(in + offset, with + offset, out + offset, end - begin, row_length, stride);
    }
};

template <class T>
struct logsumexp_pieces {
    void (*matrix_function)(const T*, T*, std::size_t, std::size_t, std::size_t);
    const T* in;
    T* out;
    std::size_t rows, row_length, stride, rows_of_unit;

    SMX_INLINE void operator()(std::size_t first, std::size_t last) const
    {
        const std::size_t begin = first * rows_of_unit, end = end_of_unit(last, rows, rows_of_unit);
        if (begin < end)
            matrix_function(in + begin * stride, out + begin, end - begin, row_length, stride);
    }
};

} // namespace

// the arguments of softmax_rows and log_softmax_rows, checked
template <class T, class Executor>
SMX_INLINE void transform_rows(const char* function, Executor&& exec, const argument<const T>& logits,
                               const argument<T>& out, const row_layout& layout, const softmax_options<T>& options,
                               typename matrix_pieces<T>::function matrix_function)
{
    check_same_size(function, out.name, out.size, logits.name, logits.size);
    const std::size_t rows = checked_rows(function, logits.name, logits.size, layout);
    check_overlap(function, out, logits);
    const argument<const bool> mask{"mask", options.mask.data(), options.mask.size()};
    if (mask.size != 0) {
        if (mask.size != layout.row_length && mask.size != logits.size)
            refuse_rows_mask(function, mask.size, layout.row_length, logits.size);
        check_overlap(function, out, mask);
    }
    const exp_scale<T> scale = checked_scale(function, &options.temperature);
    if (rows == 0)
        return;
    const std::size_t unit = rows_of_a_unit(layout.row_length * sizeof(T));
    const bool* const mask_data = mask.size == 0 ? nullptr : mask.data;
    const std::size_t mask_stride = mask.size == logits.size && mask.size != layout.row_length ? layout.row_stride : 0;
    const matrix_pieces<T> pieces{matrix_function,   logits.data, out.data, rows,      layout.row_length,
                                  layout.row_stride, unit,        scale,    mask_data, mask_stride};
    exec(units_of(rows, unit), pieces);
}

// the arguments of a product with one vector for each row, checked
template <class T, class Executor, class Function>
SMX_INLINE void product_rows(const char* function, Executor&& exec, const argument<const T>& probs,
                             const argument<const T>& vectors, const argument<T>& out, const row_layout& layout,
                             Function matrix_function)
{
    check_same_size(function, vectors.name, vectors.size, probs.name, probs.size);
    check_same_size(function, out.name, out.size, probs.name, probs.size);
    const std::size_t rows = checked_rows(function, probs.name, probs.size, layout);
    check_overlap(function, out, probs);
    check_overlap(function, out, vectors);
    if (rows == 0)
        return;
    const std::size_t unit = rows_of_a_unit(layout.row_length * sizeof(T));
    const product_pieces<T> pieces{matrix_function,   probs.data,        vectors.data, out.data, rows,
                                   layout.row_length, layout.row_stride, unit};
    exec(units_of(rows, unit), pieces);
}

} // namespace detail

// softmax_rows: softmax of every row
//
// Shapes   logits, probs: as row_layout says, of one size; may be the same memory. mask: row_length entries for all rows, or
//          one entry for each of logits
// Special, Error  as softmax: every row has the bits of softmax by itself
// Cost     rows of at most 28 floats or 22 doubles, without a mask or with one for all rows: 16 or 8 at once, one in each
//          vector lane
// Throws   std::invalid_argument: sizes differ; row_length is 0, or more than row_stride; the size is no whole number of
//          rows; probs partly overlaps logits or the mask; the mask has another size; temperature not in (0, inf)
template <executor Executor, readable_row Logits, writable_row Probs>
    requires same_scalar<Logits, Probs> && same_extent<Logits, Probs>
SMX_INLINE void softmax_rows(Executor&& exec, const Logits& logits, Probs&& probs, row_layout rows,
                             const options_of<Logits>& options = {})
{
    using T = scalar_of<Logits>;
    detail::transform_rows<T>("softmax_rows", exec, {"logits", detail::data_of(logits), detail::size_of(logits)},
                              {"probs", detail::data_of(probs), detail::size_of(probs)}, rows, options,
                              detail::fastest<T>([](auto rows_of) { return rows_of.softmax_matrix; }));
}

template <readable_row Logits, writable_row Probs>
    requires same_scalar<Logits, Probs> && same_extent<Logits, Probs>
SMX_INLINE void softmax_rows(const Logits& logits, Probs&& probs, row_layout rows,
                             const options_of<Logits>& options = {})
{
    softmax_rows(sequential, logits, probs, rows, options);
}

// log_softmax_rows: log_softmax of every row; all else as softmax_rows
//
// Cost     rows of at most 28 floats without a mask: 16 at once where all their logits are small
template <executor Executor, readable_row Logits, writable_row LogProbs>
    requires same_scalar<Logits, LogProbs> && same_extent<Logits, LogProbs>
SMX_INLINE void log_softmax_rows(Executor&& exec, const Logits& logits, LogProbs&& log_probs, row_layout rows,
                                 const options_of<Logits>& options = {})
{
    using T = scalar_of<Logits>;
    detail::transform_rows<T>("log_softmax_rows", exec, {"logits", detail::data_of(logits), detail::size_of(logits)},
                              {"log_probs", detail::data_of(log_probs), detail::size_of(log_probs)}, rows, options,
                              detail::fastest<T>([](auto rows_of) { return rows_of.log_softmax_matrix; }));
}

template <readable_row Logits, writable_row LogProbs>
    requires same_scalar<Logits, LogProbs> && same_extent<Logits, LogProbs>
SMX_INLINE void log_softmax_rows(const Logits& logits, LogProbs&& log_probs, row_layout rows,
                                 const options_of<Logits>& options = {})
{
    log_softmax_rows(sequential, logits, log_probs, rows, options);
}

// logsumexp_rows: out[r] = logsumexp of row r
//
// Shapes   logits: as row_layout says; out [rows]
// Cost     as log_softmax_rows
// Throws   std::invalid_argument: row_length is 0, or more than row_stride; the size is no whole number of rows; out has
//          another number of elements than there are rows, or partly overlaps logits
template <executor Executor, readable_row Logits, writable_row Out>
    requires same_scalar<Logits, Out>
SMX_INLINE void logsumexp_rows(Executor&& exec, const Logits& logits, Out&& out, row_layout rows)
{
    using T = scalar_of<Logits>;
    const char* const function = "logsumexp_rows";
    const detail::argument<const T> x{"logits", detail::data_of(logits), detail::size_of(logits)};
    const detail::argument<T> o{"out", detail::data_of(out), detail::size_of(out)};
    const std::size_t count = detail::checked_rows(function, x.name, x.size, rows);
    if (o.size != count)
        detail::refuse_row_count(function, o.name, o.size, count);
    detail::check_overlap(function, o, x);
    if (count == 0)
        return;
    const std::size_t unit = detail::rows_of_a_unit(rows.row_length * sizeof(T));
    const detail::logsumexp_pieces<T> pieces{detail::fastest<T>([](auto rows_of) { return rows_of.logsumexp_matrix; }),
                                             x.data,
                                             o.data,
                                             count,
                                             rows.row_length,
                                             rows.row_stride,
                                             unit};
    exec(detail::units_of(count, unit), pieces);
}

template <readable_row Logits, writable_row Out>
    requires same_scalar<Logits, Out>
SMX_INLINE void logsumexp_rows(const Logits& logits, Out&& out, row_layout rows)
{
    logsumexp_rows(sequential, logits, out, rows);
}

// softmax_jvp_rows: J v of every row, with its own J; all shapes as in softmax_rows; out may be either input
//
// Special, Error  as softmax_jvp: every row has the bits of softmax_jvp by itself
// Cost     rows of at most 16 floats or 8 doubles: eight at once
// Throws   std::invalid_argument: as softmax_rows
template <executor Executor, readable_row Probs, readable_row Tangents, writable_row Out>
    requires same_scalar<Probs, Tangents, Out> && same_extent<Probs, Tangents, Out> && same_extent<Tangents, Out>
SMX_INLINE void softmax_jvp_rows(Executor&& exec, const Probs& probs, const Tangents& tangents, Out&& out,
                                 row_layout rows)
{
    using T = scalar_of<Probs>;
    detail::product_rows<T>("softmax_jvp_rows", exec, {"probs", detail::data_of(probs), detail::size_of(probs)},
                            {"tangents", detail::data_of(tangents), detail::size_of(tangents)},
                            {"out", detail::data_of(out), detail::size_of(out)}, rows,
                            detail::fastest<T>([](auto rows_of) { return rows_of.softmax_jvp_matrix; }));
}

template <readable_row Probs, readable_row Tangents, writable_row Out>
    requires same_scalar<Probs, Tangents, Out> && same_extent<Probs, Tangents, Out> && same_extent<Tangents, Out>
SMX_INLINE void softmax_jvp_rows(const Probs& probs, const Tangents& tangents, Out&& out, row_layout rows)
{
    softmax_jvp_rows(sequential, probs, tangents, out, rows);
}

// softmax_vjp_rows: u^T J of every row: J is symmetric, the same kernel and the same bits as softmax_jvp_rows
template <executor Executor, readable_row Probs, readable_row Cotangents, writable_row Out>
    requires same_scalar<Probs, Cotangents, Out> && same_extent<Probs, Cotangents, Out> && same_extent<Cotangents, Out>
SMX_INLINE void softmax_vjp_rows(Executor&& exec, const Probs& probs, const Cotangents& cotangents, Out&& out,
                                 row_layout rows)
{
    using T = scalar_of<Probs>;
    detail::product_rows<T>("softmax_vjp_rows", exec, {"probs", detail::data_of(probs), detail::size_of(probs)},
                            {"cotangents", detail::data_of(cotangents), detail::size_of(cotangents)},
                            {"out", detail::data_of(out), detail::size_of(out)}, rows,
                            detail::fastest<T>([](auto rows_of) { return rows_of.softmax_jvp_matrix; }));
}

template <readable_row Probs, readable_row Cotangents, writable_row Out>
    requires same_scalar<Probs, Cotangents, Out> && same_extent<Probs, Cotangents, Out> && same_extent<Cotangents, Out>
SMX_INLINE void softmax_vjp_rows(const Probs& probs, const Cotangents& cotangents, Out&& out, row_layout rows)
{
    softmax_vjp_rows(sequential, probs, cotangents, out, rows);
}

// log_softmax_jvp_rows: log_softmax_jvp of every row; all else as softmax_jvp_rows
template <executor Executor, readable_row Probs, readable_row Tangents, writable_row Out>
    requires same_scalar<Probs, Tangents, Out> && same_extent<Probs, Tangents, Out> && same_extent<Tangents, Out>
SMX_INLINE void log_softmax_jvp_rows(Executor&& exec, const Probs& probs, const Tangents& tangents, Out&& out,
                                     row_layout rows)
{
    using T = scalar_of<Probs>;
    detail::product_rows<T>("log_softmax_jvp_rows", exec, {"probs", detail::data_of(probs), detail::size_of(probs)},
                            {"tangents", detail::data_of(tangents), detail::size_of(tangents)},
                            {"out", detail::data_of(out), detail::size_of(out)}, rows,
                            detail::fastest<T>([](auto rows_of) { return rows_of.log_softmax_jvp_matrix; }));
}

template <readable_row Probs, readable_row Tangents, writable_row Out>
    requires same_scalar<Probs, Tangents, Out> && same_extent<Probs, Tangents, Out> && same_extent<Tangents, Out>
SMX_INLINE void log_softmax_jvp_rows(const Probs& probs, const Tangents& tangents, Out&& out, row_layout rows)
{
    log_softmax_jvp_rows(sequential, probs, tangents, out, rows);
}

// log_softmax_vjp_rows: log_softmax_vjp of every row; all else as softmax_jvp_rows
template <executor Executor, readable_row Probs, readable_row Cotangents, writable_row Out>
    requires same_scalar<Probs, Cotangents, Out> && same_extent<Probs, Cotangents, Out> && same_extent<Cotangents, Out>
SMX_INLINE void log_softmax_vjp_rows(Executor&& exec, const Probs& probs, const Cotangents& cotangents, Out&& out,
                                     row_layout rows)
{
    using T = scalar_of<Probs>;
    detail::product_rows<T>("log_softmax_vjp_rows", exec, {"probs", detail::data_of(probs), detail::size_of(probs)},
                            {"cotangents", detail::data_of(cotangents), detail::size_of(cotangents)},
                            {"out", detail::data_of(out), detail::size_of(out)}, rows,
                            detail::fastest<T>([](auto rows_of) { return rows_of.log_softmax_vjp_matrix; }));
}

template <readable_row Probs, readable_row Cotangents, writable_row Out>
    requires same_scalar<Probs, Cotangents, Out> && same_extent<Probs, Cotangents, Out> && same_extent<Cotangents, Out>
SMX_INLINE void log_softmax_vjp_rows(const Probs& probs, const Cotangents& cotangents, Out&& out, row_layout rows)
{
    log_softmax_vjp_rows(sequential, probs, cotangents, out, rows);
}

// cross_entropy_gradient_rows: losses[r] = cross_entropy(row r, labels[r]), and its gradient softmax - e_label
//
// Shapes   logits, gradient: as row_layout says, of one size; may be the same memory. labels, losses [rows]; labels of any
//          integer type
// Special, Error  as cross_entropy_gradient with a label
// Throws   std::invalid_argument: sizes differ; row_length is 0, or more than row_stride; the size is no whole number of
//          rows; labels or losses has another number of elements than there are rows; a label not in [0, row_length);
//          gradient partly overlaps logits; losses overlaps gradient, or partly logits; an output overlaps labels
template <executor Executor, readable_row Logits, integer_row Labels, writable_row Gradient, writable_row Losses>
    requires same_scalar<Logits, Gradient, Losses> && same_extent<Logits, Gradient> && same_extent<Labels, Losses>
SMX_INLINE void cross_entropy_gradient_rows(Executor&& exec, const Logits& logits, const Labels& labels,
                                            Gradient&& gradient, Losses&& losses, row_layout rows)
{
    using T = scalar_of<Logits>;
    const char* const function = "cross_entropy_gradient_rows";
    const auto* const first_label = detail::data_of(labels);
    using label = std::remove_cvref_t<decltype(*first_label)>;
    const detail::argument<const T> x{"logits", detail::data_of(logits), detail::size_of(logits)};
    const detail::argument<const label> y{"labels", first_label, detail::size_of(labels)};
    const detail::argument<T> g{"gradient", detail::data_of(gradient), detail::size_of(gradient)};
    const detail::argument<T> l{"losses", detail::data_of(losses), detail::size_of(losses)};
    detail::check_same_size(function, g.name, g.size, x.name, x.size);
    const std::size_t count = detail::checked_rows(function, x.name, x.size, rows);
    if (y.size != count)
        detail::refuse_row_count(function, y.name, y.size, count);
    if (l.size != count)
        detail::refuse_row_count(function, l.name, l.size, count);
    detail::check_overlap(function, g, x);
    detail::check_overlap(function, l, x);
    detail::check_apart(function, l, detail::argument<const T>{g.name, g.data, g.size});
    detail::check_apart(function, g, y);
    detail::check_apart(function, l, y);
    detail::check_labels(function, first_label, count, rows.row_length);
    if (count == 0)
        return;
    const std::size_t unit = detail::rows_of_a_unit(rows.row_length * sizeof(T));
    exec(detail::units_of(count, unit),
         detail::loss_pieces<T, label>{detail::fastest<T>([](auto rows_of) { return rows_of.cross_entropy_gradient; }),
                                       x.data, first_label, g.data, l.data, count, rows.row_length, rows.row_stride,
                                       unit});
}

template <readable_row Logits, integer_row Labels, writable_row Gradient, writable_row Losses>
    requires same_scalar<Logits, Gradient, Losses> && same_extent<Logits, Gradient> && same_extent<Labels, Losses>
SMX_INLINE void cross_entropy_gradient_rows(const Logits& logits, const Labels& labels, Gradient&& gradient,
                                            Losses&& losses, row_layout rows)
{
    cross_entropy_gradient_rows(sequential, logits, labels, gradient, losses, rows);
}

// softmax_columns: softmax down each column of a row-major matrix: the axis that is not last
//
// Shapes   logits, probs [rows * column_count]; may be the same memory
// Special, Error  as softmax, for each column; the bits are not those of softmax_rows of the transposed matrix
// Cost     vectorised across columns: no strided walk; where all logits are small, and probs is not logits, one pass less
// Throws   std::invalid_argument: sizes differ; column_count is 0 or does not divide the size; probs partly overlaps logits
template <executor Executor, readable_row Logits, writable_row Probs>
    requires same_scalar<Logits, Probs> && same_extent<Logits, Probs>
SMX_INLINE void softmax_columns(Executor&& exec, const Logits& logits, Probs&& probs, std::size_t column_count)
{
    using T = scalar_of<Logits>;
    const char* const function = "softmax_columns";
    const detail::argument<const T> x{"logits", detail::data_of(logits), detail::size_of(logits)};
    const detail::argument<T> p{"probs", detail::data_of(probs), detail::size_of(probs)};
    detail::check_same_size(function, p.name, p.size, x.name, x.size);
    if (column_count == 0 || x.size % column_count != 0)
        detail::refuse_columns(function, x.name, x.size, column_count);
    detail::check_overlap(function, p, x);
    if (x.size == 0)
        return;
    const std::size_t rows = x.size / column_count, strip = 64;
    const std::size_t unit = strip * detail::rows_of_a_unit(rows * strip * sizeof(T));
    const detail::column_pieces<T> pieces{detail::fastest<T>([](auto rows_of) { return rows_of.softmax_columns; }),
                                          x.data,
                                          p.data,
                                          rows,
                                          column_count,
                                          unit};
    exec(detail::units_of(column_count, unit), pieces);
}

template <readable_row Logits, writable_row Probs>
    requires same_scalar<Logits, Probs> && same_extent<Logits, Probs>
SMX_INLINE void softmax_columns(const Logits& logits, Probs&& probs, std::size_t column_count)
{
    softmax_columns(sequential, logits, probs, column_count);
}

// softmax_segments: softmax of rows of different lengths: row r is logits[offsets[r]] ... logits[offsets[r + 1] - 1]
//
// Shapes   logits, probs [n]; may be the same memory. offsets [rows + 1]: of any integer type, ascending from 0 to n; an
//          empty row is allowed
// Special, Error  as softmax: every row has the bits of softmax by itself
// Cost     short rows of one length together, as in softmax_rows: 1024 rows are looked at at a time
// Throws   std::invalid_argument: sizes differ; offsets has no element, does not start at 0, does not ascend or does not end
//          at n; probs partly overlaps logits, or overlaps offsets
template <executor Executor, readable_row Logits, integer_row Offsets, writable_row Probs>
    requires same_scalar<Logits, Probs> && same_extent<Logits, Probs>
SMX_INLINE void softmax_segments(Executor&& exec, const Logits& logits, const Offsets& offsets, Probs&& probs)
{
    using T = scalar_of<Logits>;
    const char* const function = "softmax_segments";
    const detail::argument<const T> x{"logits", detail::data_of(logits), detail::size_of(logits)};
    const detail::argument<T> p{"probs", detail::data_of(probs), detail::size_of(probs)};
    const auto* const starts = detail::data_of(offsets);
    using offset = std::remove_cvref_t<decltype(*starts)>;
    const std::size_t count = detail::size_of(offsets);
    detail::check_same_size(function, p.name, p.size, x.name, x.size);
    detail::check_overlap(function, p, x);
    detail::check_overlap(function, p, detail::argument<const offset>{"offsets", starts, count});
    detail::check_offsets(function, starts, count, x.size);
    const std::size_t rows = count - 1;
    if (rows == 0)
        return;
    const std::size_t unit = detail::rows_of_a_unit(x.size / rows * sizeof(T));
    const detail::exp_scale<T> scale = detail::scale_of(T(1));
    const detail::segment_pieces<T, offset> pieces{
        detail::fastest<T>([](auto rows_of) { return rows_of.softmax_segments; }),
        x.data,
        p.data,
        starts,
        rows,
        x.size,
        unit,
        scale};
    exec(detail::units_of(rows, unit), pieces);
}

template <readable_row Logits, integer_row Offsets, writable_row Probs>
    requires same_scalar<Logits, Probs> && same_extent<Logits, Probs>
SMX_INLINE void softmax_segments(const Logits& logits, const Offsets& offsets, Probs&& probs)
{
    softmax_segments(sequential, logits, offsets, probs);
}

} // namespace smx
