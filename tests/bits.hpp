// SPDX-License-Identifier: BSL-1.0
// bits.hpp: NaN, infinity and zero by their integer bits, read from and written to memory.
//
// The tests are also compiled with -ffast-math, under which `x != x` is false and a NaN that is passed by value is
// nobody's promise any more. So nothing here compares, passes or returns a floating-point value.
#pragma once
#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if LDBL_MANT_DIG != 53 && LDBL_MANT_DIG != 64 && LDBL_MANT_DIG != 113
#error "tests/bits.hpp knows no such long double"
#endif

namespace bits {

// One floating-point number, taken apart.
struct parts {
    bool negative;
    bool top_exponent; // NaN or infinity
    bool zero_exponent;
    bool zero_fraction;
};

template <class T>
parts parts_of(const T& at) noexcept
{
    if constexpr (std::is_same_v<T, float>) {
        std::uint32_t word = 0;
        std::memcpy(&word, &at, sizeof word);
        const std::uint32_t exponent = (word >> 23) & 0xffu;
        return {(word >> 31) != 0, exponent == 0xffu, exponent == 0, (word & 0x7fffffu) == 0};
    } else if constexpr (sizeof(T) == 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, &at, sizeof word);
        const std::uint64_t exponent = (word >> 52) & 0x7ffu;
        return {(word >> 63) != 0, exponent == 0x7ffu, exponent == 0, (word & 0xfffffffffffffu) == 0};
    } else if constexpr (LDBL_MANT_DIG == 64) { // x87: an explicit leading bit, then 15 bits of exponent
        std::uint64_t mantissa = 0;
        std::uint16_t top = 0;
        std::memcpy(&mantissa, &at, sizeof mantissa);
        std::memcpy(&top, reinterpret_cast<const unsigned char*>(&at) + sizeof mantissa, sizeof top);
        return {(top >> 15) != 0, (top & 0x7fffu) == 0x7fffu, (top & 0x7fffu) == 0, (mantissa << 1) == 0};
    } else { // IEEE quad, little endian
        std::uint64_t word[2] = {};
        std::memcpy(word, &at, sizeof word);
        const std::uint64_t exponent = (word[1] >> 48) & 0x7fffu;
        const bool zero_fraction = word[0] == 0 && (word[1] << 16) == 0;
        return {(word[1] >> 63) != 0, exponent == 0x7fffu, exponent == 0, zero_fraction};
    }
}

template <class T>
bool is_nan(const T& at) noexcept
{
    const parts p = parts_of(at);
    return p.top_exponent && !p.zero_fraction;
}

template <class T>
bool is_infinite(const T& at) noexcept
{
    const parts p = parts_of(at);
    return p.top_exponent && p.zero_fraction;
}

template <class T>
bool is_plus_infinity(const T& at) noexcept
{
    return is_infinite(at) && !parts_of(at).negative;
}
template <class T>
bool is_minus_infinity(const T& at) noexcept
{
    return is_infinite(at) && parts_of(at).negative;
}
template <class T>
bool is_finite(const T& at) noexcept
{
    return !parts_of(at).top_exponent;
}

template <class T>
bool is_zero(const T& at) noexcept
{
    const parts p = parts_of(at);
    return p.zero_exponent && p.zero_fraction;
}

// +0, not -0: a probability.
template <class T>
bool is_plus_zero(const T& at) noexcept
{
    return is_zero(at) && !parts_of(at).negative;
}

template <class T>
void put_infinity(T& at, bool negative) noexcept
{
    if constexpr (std::is_same_v<T, float>) {
        const std::uint32_t word = negative ? 0xff800000u : 0x7f800000u;
        std::memcpy(&at, &word, sizeof word);
    } else if constexpr (sizeof(T) == 8) {
        const std::uint64_t word = negative ? 0xfff0000000000000u : 0x7ff0000000000000u;
        std::memcpy(&at, &word, sizeof word);
    } else if constexpr (LDBL_MANT_DIG == 64) {
        const std::uint64_t mantissa = 0x8000000000000000u;
        const std::uint16_t top = negative ? 0xffffu : 0x7fffu;
        std::memcpy(&at, &mantissa, sizeof mantissa);
        std::memcpy(reinterpret_cast<unsigned char*>(&at) + sizeof mantissa, &top, sizeof top);
    } else {
        const std::uint64_t word[2] = {0, negative ? 0xffff000000000000u : 0x7fff000000000000u};
        std::memcpy(&at, word, sizeof word);
    }
}

template <class T>
void put_plus_infinity(T& at) noexcept
{
    put_infinity(at, false);
}
template <class T>
void put_minus_infinity(T& at) noexcept
{
    put_infinity(at, true);
}

// NaNs of every make: quiet and signalling, of either sign, with the smallest and the largest payload.
inline constexpr std::size_t nan_kinds = 4;

template <class T>
void put_nan(T& at, std::size_t kind = 0) noexcept
{
    const bool negative = kind == 1;
    const bool signalling = kind == 2;
    const bool full = kind == 3;
    if constexpr (std::is_same_v<T, float>) {
        const std::uint32_t payload = signalling ? 1u : full ? 0x7fffffu : 0x400000u;
        const std::uint32_t word = (negative ? 0xff800000u : 0x7f800000u) | payload;
        std::memcpy(&at, &word, sizeof word);
    } else if constexpr (sizeof(T) == 8) {
        const std::uint64_t payload = signalling ? 1u : full ? 0xfffffffffffffu : 0x8000000000000u;
        const std::uint64_t word = (negative ? 0xfff0000000000000u : 0x7ff0000000000000u) | payload;
        std::memcpy(&at, &word, sizeof word);
    } else if constexpr (LDBL_MANT_DIG == 64) {
        const std::uint64_t payload = signalling ? 1u : full ? 0x7fffffffffffffffu : 0x4000000000000000u;
        const std::uint64_t mantissa = 0x8000000000000000u | payload;
        const std::uint16_t top = negative ? 0xffffu : 0x7fffu;
        std::memcpy(&at, &mantissa, sizeof mantissa);
        std::memcpy(reinterpret_cast<unsigned char*>(&at) + sizeof mantissa, &top, sizeof top);
    } else {
        const std::uint64_t payload = signalling ? 0 : full ? 0xffffffffffffu : 0x800000000000u;
        const std::uint64_t word[2] = {1, (negative ? 0xffff000000000000u : 0x7fff000000000000u) | payload};
        std::memcpy(&at, word, sizeof word);
    }
}

// The bytes that carry the value: an x87 long double has six more.
template <class T>
inline constexpr std::size_t width = sizeof(T) > 8 && LDBL_MANT_DIG == 64 ? 10 : sizeof(T);

template <class T>
bool same(const T& a, const T& b) noexcept
{
    return std::memcmp(&a, &b, width<T>) == 0;
}

template <class T>
bool same(const T* a, const T* b, std::size_t n) noexcept
{
    for (std::size_t i = 0; i < n; ++i)
        if (!same(a[i], b[i]))
            return false;
    return true;
}

// The next number `steps` away on the number line, for a finite one that stays finite.
template <class T>
void step_by(T& at, std::int64_t steps) noexcept
{
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);
    using word_type = std::conditional_t<std::is_same_v<T, float>, std::uint32_t, std::uint64_t>;
    constexpr std::uint64_t sign = std::uint64_t{1} << (8 * sizeof(T) - 1);
    constexpr std::int64_t largest = std::is_same_v<T, float> ? 0x7f7fffff : 0x7fefffffffffffff;
    word_type word = 0;
    std::memcpy(&word, &at, sizeof word);
    const auto magnitude = static_cast<std::int64_t>(word & (sign - 1));
    std::int64_t place = (word & sign) != 0 ? -magnitude : magnitude; // a number line of integers
    place = steps > 0 && place > largest - steps ? largest : place + steps;
    place = place < -largest ? -largest : place;
    word = static_cast<word_type>(place < 0 ? static_cast<std::uint64_t>(-place) | sign
                                            : static_cast<std::uint64_t>(place));
    std::memcpy(&at, &word, sizeof word);
}

// A finite number with random bits: every exponent, subnormals too.
template <class T>
void put_finite(T& at, std::uint64_t random) noexcept
{
    using word_type = std::conditional_t<std::is_same_v<T, float>, std::uint32_t, std::uint64_t>;
    auto word = static_cast<word_type>(random >> (64 - 8 * sizeof(T)));
    std::memcpy(&at, &word, sizeof word);
    if (!is_finite(at)) {
        word = static_cast<word_type>(word ^ (std::uint64_t{1} << (std::is_same_v<T, float> ? 30 : 62)));
        std::memcpy(&at, &word, sizeof word);
    }
}

} // namespace bits
