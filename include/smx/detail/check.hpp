// SPDX-License-Identifier: BSL-1.0
// check.hpp: the checks of arguments and their messages. A check costs a compare; the rest is out of line.
#pragma once

#include <cstddef>   // size_t
#include <cstdint>   // uintptr_t
#include <cstdio>    // snprintf
#include <cstdlib>   // abort
#include <limits>    // numeric_limits
#include <stdexcept> // invalid_argument

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

[[noreturn]] SMX_COLD void refuse_square(const char* function, std::size_t size, std::size_t n)
{
    char message[256];
    if (n != 0 && n > std::numeric_limits<std::size_t>::max() / n)
        std::snprintf(message, sizeof message, "smx::%s: jacobian has %zu elements, probs has %zu: n * n overflows",
                      function, size, n);
    else
        std::snprintf(message, sizeof message, "smx::%s: jacobian has %zu elements, probs has %zu: n * n is %zu",
                      function, size, n, n * n);
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

[[noreturn]] SMX_COLD void refuse_overlap(const char* function, const char* name, std::size_t size, const char* other,
                                          std::size_t other_size)
{
    char message[256];
    std::snprintf(message, sizeof message, "smx::%s: %s (%zu elements) partly overlaps %s (%zu elements)", function,
                  name, size, other, other_size);
    refuse(message);
}

template <class T>
[[noreturn]] SMX_COLD void refuse_temperature(const char* function, const T& temperature)
{
    char message[256];
    if constexpr (std::is_floating_point_v<T>)
        std::snprintf(message, sizeof message, "smx::%s: temperature is %Lg, must be positive and finite", function,
                      static_cast<long double>(temperature));
    else
        std::snprintf(message, sizeof message, "smx::%s: temperature must be positive and finite", function);
    refuse(message);
}

template <class T>
[[noreturn]] SMX_COLD void refuse_shift(const char* function, const T& shift)
{
    char message[256];
    if constexpr (std::is_floating_point_v<T>)
        std::snprintf(message, sizeof message, "smx::%s: shift is %Lg, must be positive and finite", function,
                      static_cast<long double>(shift));
    else
        std::snprintf(message, sizeof message, "smx::%s: shift must be positive and finite", function);
    refuse(message);
}

} // namespace
} // namespace smx::detail

SMX_PRECISE_BEGIN
namespace smx::detail {
namespace {

// The temperature as a factor, checked. Out of line, so that NaN is NaN in it whatever the caller's flags.
template <class T>
exp_scale<T> checked_scale(const char* function, const T* temperature)
{
    const number<T> t{*temperature};
    if (!(number<T>{T(0)} < t) || !is_finite(t))
        refuse_temperature(function, *temperature);
    return scale_of(*temperature);
}

template <class T>
constexpr void check_shift(const char* function, const T* shift)
{
    const number<T> t{*shift};
    if (!(number<T>{T(0)} < t) || !is_finite(t))
        refuse_shift(function, *shift);
}

} // namespace
} // namespace smx::detail
SMX_PRECISE_END

namespace smx::detail {

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

SMX_INLINE void check_square(const char* function, std::size_t size, std::size_t n)
{
    const bool overflows = n != 0 && n > std::numeric_limits<std::size_t>::max() / n;
    if (overflows || size != n * n)
        refuse_square(function, size, n);
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
    const bool same = out_first == in_first && out_last == in_last && sizeof(Out) == sizeof(In);
    if (out_first < in_last && in_first < out_last && !same)
        refuse_overlap(function, out.name, out.size, in.name, in.size);
}

} // namespace smx::detail
