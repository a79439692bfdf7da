// SPDX-License-Identifier: BSL-1.0
// check.hpp: the checks of arguments and their messages. A check costs a compare; the rest is out of line.
#pragma once

#include <cstddef>     // size_t
#include <cstdint>     // uintptr_t
#include <cstdio>      // snprintf
#include <cstdlib>     // abort
#include <limits>      // numeric_limits
#include <stdexcept>   // invalid_argument
#include <type_traits> // conditional_t, is_constant_evaluated, is_same_v, remove_const_t

#include <smx/detail/scalar.hpp>
#include <smx/detail/target.hpp>
#include <smx/row.hpp>

namespace smx::detail {
namespace { // every unit has its own copy, compiled with its own flags

[[noreturn]] SMX_COLD void refuse(const char* message)
{
#if SMX_HAS_EXCEPTIONS()
    throw std::invalid_argument(message);
#else
    std::fprintf(stderr, "%s\n", message);
    std::abort();
#endif
}

[[noreturn]] SMX_COLD void refuse_size(const char* function, const char* name, std::size_t size, const char* other,
                                       std::size_t other_size)
{
    char message[256];
    std::snprintf(message, sizeof message, "smx::%s: %s has %zu elements, %s has %zu", function, name, size, other,
                  other_size);
    refuse(message);
}

[[noreturn]] SMX_COLD void refuse_layout(const char* function, std::size_t row_length, std::size_t row_stride)
{
    char message[256];
    if (row_length == 0)
        std::snprintf(message, sizeof message, "smx::%s: row_length is 0", function);
    else
        std::snprintf(message, sizeof message, "smx::%s: row_stride is %zu, row_length is %zu", function, row_stride,
                      row_length);
    refuse(message);
}

[[noreturn]] SMX_COLD void refuse_matrix(const char* function, const char* name, std::size_t size,
                                         std::size_t row_length, std::size_t row_stride)
{
    char message[256];
    if (row_stride == row_length)
        std::snprintf(message, sizeof message, "smx::%s: %s has %zu elements, row_length is %zu", function, name, size,
                      row_length);
    else
        std::snprintf(message, sizeof message, "smx::%s: %s has %zu elements, row_length is %zu, row_stride is %zu",
                      function, name, size, row_length, row_stride);
    refuse(message);
}

[[noreturn]] SMX_COLD void refuse_columns(const char* function, const char* name, std::size_t size, std::size_t columns)
{
    char message[256];
    std::snprintf(message, sizeof message, "smx::%s: %s has %zu elements, column_count is %zu", function, name, size,
                  columns);
    refuse(message);
}

[[noreturn]] SMX_COLD void refuse_rows_mask(const char* function, std::size_t size, std::size_t row_length,
                                            std::size_t elements)
{
    char message[256];
    std::snprintf(message, sizeof message, "smx::%s: mask has %zu elements, row_length is %zu, logits has %zu",
                  function, size, row_length, elements);
    refuse(message);
}

[[noreturn]] SMX_COLD void refuse_row_count(const char* function, const char* name, std::size_t size, std::size_t rows)
{
    char message[256];
    std::snprintf(message, sizeof message, "smx::%s: %s has %zu elements, there are %zu rows", function, name, size,
                  rows);
    refuse(message);
}

// value[index] is not what it must be; numbers that a long long does not hold are shown as its last
[[noreturn]] SMX_COLD void refuse_offset(const char* function, std::size_t index, long long value, const char* must_be,
                                         long long than)
{
    char message[256];
    std::snprintf(message, sizeof message, "smx::%s: offsets[%zu] is %lld, %s %lld", function, index, value, must_be,
                  than);
    refuse(message);
}

[[noreturn]] SMX_COLD void refuse_square(const char* function, const char* name, std::size_t size, const char* other,
                                         std::size_t n)
{
    char message[256];
    if (n != 0 && n > std::numeric_limits<std::size_t>::max() / n)
        std::snprintf(message, sizeof message, "smx::%s: %s has %zu elements, %s has %zu: n * n overflows", function,
                      name, size, other, n);
    else
        std::snprintf(message, sizeof message, "smx::%s: %s has %zu elements, %s has %zu: n * n is %zu", function, name,
                      size, other, n, n * n);
    refuse(message);
}

[[noreturn]] SMX_COLD void refuse_touch(const char* function, const char* name, std::size_t size, const char* other,
                                        std::size_t other_size)
{
    char message[256];
    std::snprintf(message, sizeof message, "smx::%s: %s (%zu elements) must not overlap %s (%zu elements)", function,
                  name, size, other, other_size);
    refuse(message);
}

[[noreturn]] SMX_COLD void refuse_index(const char* function, const char* name, std::size_t index, const char* other,
                                        std::size_t size)
{
    char message[256];
    std::snprintf(message, sizeof message, "smx::%s: %s is %zu, %s has %zu elements", function, name, index, other,
                  size);
    refuse(message);
}

[[noreturn]] SMX_COLD void refuse_label_of_row(const char* function, std::size_t row, long long label,
                                               std::size_t row_length)
{
    char message[256];
    std::snprintf(message, sizeof message, "smx::%s: labels[%zu] is %lld, row_length is %zu", function, row, label,
                  row_length);
    refuse(message);
}

[[noreturn]] SMX_COLD void refuse_overlap(const char* function, const char* name, std::size_t size, const char* other,
                                          std::size_t other_size)
{
    char message[256];
    std::snprintf(message, sizeof message, "smx::%s: %s (%zu elements) partly overlaps %s (%zu elements)", function,
                  name, size, other, other_size);
    refuse(message);
}

[[noreturn]] SMX_COLD void refuse_label(const char* function, bool negative, unsigned long long magnitude,
                                        std::size_t n)
{
    char message[256];
    std::snprintf(message, sizeof message, "smx::%s: label is %s%llu, logits has %zu elements", function,
                  negative ? "-" : "", magnitude, n);
    refuse(message);
}

template <class T>
[[noreturn]] SMX_COLD void refuse_value(const char* function, const char* name, const T& value)
{
    char message[256];
    if constexpr (std::is_floating_point_v<T>)
        std::snprintf(message, sizeof message, "smx::%s: %s is %Lg, must be positive and finite", function, name,
                      static_cast<long double>(value));
    else
        std::snprintf(message, sizeof message, "smx::%s: %s must be positive and finite", function, name);
    refuse(message);
}

} // namespace
} // namespace smx::detail

SMX_PRECISE_BEGIN
namespace smx::detail {
namespace {

// By its bits: with -ffinite-math-only NaN may equal 1.
template <class T>
SMX_INLINE bool is_one(const T* temperature)
{
    using bits = std::conditional_t<std::is_same_v<T, float>, std::uint32_t, std::uint64_t>;
    return __builtin_bit_cast(bits, *temperature) == __builtin_bit_cast(bits, T(1));
}

// Out of line, so that NaN is NaN in it whatever the caller's flags.
template <class T>
constexpr void check_positive(const char* function, const char* name, const T* value)
{
    const number<T> t{*value};
    if (!(number<T>{T(0)} < t) || !is_finite(t))
        refuse_value(function, name, *value);
}

// the temperature as a factor, checked
template <class T>
exp_scale<T> checked_scale(const char* function, const T* temperature)
{
    check_positive(function, "temperature", temperature);
    return scale_of(*temperature);
}

} // namespace
} // namespace smx::detail
SMX_PRECISE_END

namespace smx::detail {

// a result that may be NaN, also under -ffinite-math-only
template <class T>
SMX_INLINE constexpr T& laundered(T& result)
{
    if constexpr (std::is_floating_point_v<T>)
        if (!std::is_constant_evaluated())
            SMX_LAUNDER(result);
    return result;
}

template <class T>
struct argument { // a row with the name that its function gives it
    const char* name;
    T* data;
    std::size_t size;
};

SMX_INLINE constexpr void check_same_size(const char* function, const char* name, std::size_t size, const char* other,
                                          std::size_t other_size)
{
    if (size != other_size)
        refuse_size(function, name, size, other, other_size);
}

// 0 <= label < n
template <class Label>
SMX_INLINE std::size_t checked_label(const char* function, Label label, std::size_t n)
{
    const bool negative = label < Label(0);
    const auto value = static_cast<unsigned long long>(label);
    if (negative || value >= n)
        refuse_label(function, negative, negative ? 0 - value : value, n);
    return static_cast<std::size_t>(value);
}

SMX_INLINE void check_square(const char* function, const char* name, std::size_t size, const char* other, std::size_t n)
{
    const bool overflows = n != 0 && n > std::numeric_limits<std::size_t>::max() / n;
    if (overflows || size != n * n)
        refuse_square(function, name, size, other, n);
}

// Two arguments with nothing in common.
template <class Out, class In>
SMX_INLINE void check_apart(const char* function, const argument<Out>& out, const argument<In>& in)
{
    const auto out_first = reinterpret_cast<std::uintptr_t>(out.data),
               in_first = reinterpret_cast<std::uintptr_t>(in.data);
    if (out_first < in_first + in.size * sizeof(In) && in_first < out_first + out.size * sizeof(Out))
        refuse_touch(function, out.name, out.size, in.name, in.size);
}

// An output may be an input, or have nothing in common with it.
template <class Out, class In>
SMX_INLINE void check_overlap(const char* function, const argument<Out>& out, const argument<In>& in)
{
    const auto out_first = reinterpret_cast<std::uintptr_t>(out.data),
               in_first = reinterpret_cast<std::uintptr_t>(in.data);
    const std::uintptr_t out_last = out_first + out.size * sizeof(Out), in_last = in_first + in.size * sizeof(In);
    if (SMX_LIKELY(in_last <= out_first) || out_last <= in_first)
        return;
    const bool same = out_first == in_first && out_last == in_last &&
                      std::is_same_v<std::remove_const_t<Out>, std::remove_const_t<In>>;
    if (!same)
        refuse_overlap(function, out.name, out.size, in.name, in.size);
}

template <class Integer>
SMX_INLINE long long shown(Integer value)
{
    constexpr auto most = static_cast<unsigned long long>(std::numeric_limits<long long>::max());
    if (value > Integer(0) && static_cast<unsigned long long>(value) > most)
        return std::numeric_limits<long long>::max();
    return static_cast<long long>(value);
}

// 0 <= labels[r] < row_length
template <class Label>
SMX_INLINE void check_labels(const char* function, const Label* labels, std::size_t rows, std::size_t row_length)
{
    for (std::size_t r = 0; r < rows; ++r)
        if (labels[r] < Label(0) || static_cast<unsigned long long>(labels[r]) >= row_length)
            refuse_label_of_row(function, r, shown(labels[r]), row_length);
}

// offsets ascend from 0 to size
template <class Offset>
SMX_INLINE void check_offsets(const char* function, const Offset* offsets, std::size_t count, std::size_t size)
{
    if (count == 0)
        refuse_size(function, "offsets", count, "logits", size);
    if (offsets[0] != Offset(0))
        refuse_offset(function, 0, shown(offsets[0]), "must be", 0);
    for (std::size_t i = 1; i < count; ++i)
        if (offsets[i] < offsets[i - 1])
            refuse_offset(function, i, shown(offsets[i]), "the one before is", shown(offsets[i - 1]));
    if (static_cast<unsigned long long>(offsets[count - 1]) != size)
        refuse_offset(function, count - 1, shown(offsets[count - 1]), "the size of logits is", shown(size));
}

} // namespace smx::detail
