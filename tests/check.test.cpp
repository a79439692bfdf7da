// SPDX-License-Identifier: BSL-1.0
// check.test.cpp: every bad call of the contract table throws its message and writes nothing. What stands just inside
// the contract passes. Holds under -O3 -ffast-math too: NaN and infinity are made of bits, memory is compared as bytes.
#include <smx/jacobian.hpp>
#include <smx/softmax.hpp>

#include "bits.hpp"
#include "catch.hpp"
#include "message_of.hpp"

#include <algorithm> // copy, max
#include <cmath>     // fabs
#include <cstddef>   // size_t
#include <cstring>   // memcmp, memcpy, memset
#include <limits>    // numeric_limits
#include <span>      // span
#include <stdexcept> // invalid_argument
#include <string>    // string, to_string
#include <vector>    // vector

namespace {

// Is word in text, with no letter, digit or underscore on either side of it?
bool mentions(const std::string& text, const std::string& word)
{
    const std::string letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
    for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
        const auto end = at + word.size();
        const bool starts = at == 0 || letters.find(text[at - 1]) == std::string::npos;
        const bool ends = end == text.size() || letters.find(text[end]) == std::string::npos;
        if (starts && ends)
            return true;
    }
    return false;
}

bool begins_with(const std::string& text, const std::string& start)
{
    return text.compare(0, start.size(), start) == 0;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b)
{
    return a.size() == b.size() && bits::same(a.data(), b.data(), a.size());
}

// Do the rows agree but for a few roundings? Enough to see that the right memory was read and written.
template <class T>
bool nearly_equal(std::span<const T> a, std::span<const T> b)
{
    if (a.size() != b.size())
        return false;
    T largest = 0, difference = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        largest = std::max(largest, std::fabs(b[i]));
        difference = std::max(difference, std::fabs(a[i] - b[i]));
    }
    return difference <= 16 * std::numeric_limits<T>::epsilon() * largest;
}

template <class T>
using inputs_of = std::vector<std::span<const T>>;

// One public function that checks: its inputs as messages call them (the first one gives n), and its output.
template <class T>
struct checked_function {
    std::string name;
    std::vector<std::string> inputs;
    std::string output;
    bool square; // the output has n * n elements
    void (*call)(const inputs_of<T>& in, std::span<T> out);

    std::size_t output_size(std::size_t n) const { return square ? n * n : n; }
    std::string size_message(const std::string& argument, std::size_t size, std::size_t n) const
    {
        return name + ": " + argument + " has " + std::to_string(size) + " elements, " + inputs[0] + " has " +
               std::to_string(n);
    }
};

template <class T>
std::vector<checked_function<T>> checked_functions()
{
    using in_t = const inputs_of<T>&;
    using out_t = std::span<T>;
    return {
        {"smx::softmax", {"logits"}, "probs", false, [](in_t in, out_t out) { smx::softmax(in[0], out); }},
        {"smx::log_softmax", {"logits"}, "log_probs", false, [](in_t in, out_t out) { smx::log_softmax(in[0], out); }},
        {"smx::softmax_jacobian",
         {"probs"},
         "jacobian",
         true,
         [](in_t in, out_t out) { smx::softmax_jacobian(in[0], out); }},
        {"smx::log_softmax_jacobian",
         {"probs"},
         "jacobian",
         true,
         [](in_t in, out_t out) { smx::log_softmax_jacobian(in[0], out); }},
        {"smx::softmax_jvp",
         {"probs", "tangent"},
         "out",
         false,
         [](in_t in, out_t out) { smx::softmax_jvp(in[0], in[1], out); }},
        {"smx::softmax_vjp",
         {"probs", "cotangent"},
         "out",
         false,
         [](in_t in, out_t out) { smx::softmax_vjp(in[0], in[1], out); }},
        {"smx::log_softmax_jvp",
         {"probs", "tangent"},
         "out",
         false,
         [](in_t in, out_t out) { smx::log_softmax_jvp(in[0], in[1], out); }},
        {"smx::log_softmax_vjp",
         {"probs", "cotangent"},
         "out",
         false,
         [](in_t in, out_t out) { smx::log_softmax_vjp(in[0], in[1], out); }},
        {"smx::softmax_hvp",
         {"probs", "cotangent", "tangent"},
         "out",
         false,
         [](in_t in, out_t out) { smx::softmax_hvp(in[0], in[1], in[2], out); }},
    };
}

// One public function that takes options.
template <class T>
struct function_with_options {
    std::string name, output;
    void (*call)(std::span<const T> logits, std::span<T> out, const smx::softmax_options<T>& options);
};

template <class T>
std::vector<function_with_options<T>> functions_with_options()
{
    using in_t = std::span<const T>;
    using out_t = std::span<T>;
    using options_t = const smx::softmax_options<T>&;
    return {
        {"smx::softmax", "probs", [](in_t in, out_t out, options_t options) { smx::softmax(in, out, options); }},
        {"smx::log_softmax", "log_probs",
         [](in_t in, out_t out, options_t options) { smx::log_softmax(in, out, options); }},
    };
}

// n values that can stand for any input: positive, all different, sum 1.
template <class T>
std::vector<T> some_row(std::size_t n)
{
    std::vector<T> row(n);
    for (std::size_t i = 0; i < n; ++i)
        row[i] = T(2 * (i + 1)) / T(n * (n + 1));
    return row;
}

// An output that nobody wrote to: these values, and some more behind its end.
template <class T>
std::vector<T> untouched(std::size_t n)
{
    std::vector<T> row(n + 16);
    for (std::size_t i = 0; i < row.size(); ++i)
        row[i] = T(-1000) - T(i) / T(8);
    return row;
}

// Temperatures that are refused: not positive, or not finite. Written in place, see bits.hpp.
constexpr std::size_t bad_temperatures = 6 + bits::nan_kinds;

template <class T>
void put_bad_temperature(T& temperature, std::size_t which)
{
    using limits = std::numeric_limits<T>;
    const T finite[] = {T(0), -T(0), T(-1), -limits::denorm_min()};
    if (which < 4)
        temperature = finite[which];
    else if (which < 6)
        bits::put_infinity(temperature, which == 5);
    else
        bits::put_nan(temperature, which - 6);
}

} // namespace

TEST_CASE("checks: the message reads as the contract writes it", "[check]")
{
    const std::vector<float> logits(4);
    std::vector<float> probs(3);
    CHECK(message_of([&] { smx::softmax(logits, probs); }) == "smx::softmax: probs has 3 elements, logits has 4");
}

TEMPLATE_TEST_CASE("checks: a row of another size is refused with its name and both sizes", "[check]", float, double,
                   long double)
{
    const std::size_t n = 4;
    for (const auto& f : checked_functions<TestType>()) {
        for (const std::size_t size : {std::size_t(3), std::size_t(5), std::size_t(0), std::size_t(1000)}) {
            const auto row = some_row<TestType>(n);
            const auto wrong = some_row<TestType>(size);
            const inputs_of<TestType> good(f.inputs.size(), row);
            CAPTURE(f.name, size);

            for (std::size_t k = 1; k < f.inputs.size(); ++k) {
                auto out = untouched<TestType>(n);
                auto inputs = good;
                inputs[k] = wrong;
                CHECK(message_of([&] { f.call(inputs, std::span(out).first(n)); }) ==
                      f.size_message(f.inputs[k], size, n));
                CHECK(same_bits(out, untouched<TestType>(n)));
            }
            if (!f.square) {
                auto out = untouched<TestType>(size);
                CHECK(message_of([&] { f.call(good, std::span(out).first(size)); }) ==
                      f.size_message(f.output, size, n));
                CHECK(same_bits(out, untouched<TestType>(size)));
            }
        }
    }
}

TEMPLATE_TEST_CASE("checks: a Jacobian without n * n elements is refused with both sizes", "[check]", float, double,
                   long double)
{
    struct shape {
        std::size_t n, size;
    };
    for (const auto& f : checked_functions<TestType>()) {
        if (!f.square)
            continue;
        for (const shape& each : {shape{3, 8}, shape{3, 10}, shape{3, 3}, shape{3, 0}, shape{4, 15}, shape{4, 17},
                                  shape{1, 0}, shape{1, 2}, shape{0, 1}}) {
            const std::size_t n = each.n, size = each.size;
            const auto probs = some_row<TestType>(n);
            auto jacobian = untouched<TestType>(size);
            const auto message = message_of([&] { f.call({probs}, std::span(jacobian).first(size)); });
            CAPTURE(f.name, n, size, message);
            CHECK(begins_with(message, f.name + ": jacobian has " + std::to_string(size) + " elements, "));
            CHECK(mentions(message, std::to_string(n * n)));
            CHECK(same_bits(jacobian, untouched<TestType>(size)));
        }
    }
}

TEMPLATE_TEST_CASE("checks: a Jacobian whose n * n overflows is refused before memory is touched", "[check]", float,
                   double)
{
    struct shape {
        std::size_t n, product; // n * n as std::size_t computes it
    };
    for (const auto& f : checked_functions<TestType>()) {
        if (!f.square)
            continue;
        constexpr std::size_t root = std::size_t(1) << (std::numeric_limits<std::size_t>::digits / 2);
        for (const shape& each : {shape{root, 0}, shape{2 * root, 0}, shape{root + 1, 2 * root + 1}}) {
            for (const std::size_t size : {each.product, std::size_t(4)}) {
                const std::size_t n = each.n;
                auto memory = untouched<TestType>(0); // 16 elements that pass for n, and for size
                auto jacobian = untouched<TestType>(0);
                const std::span<const TestType> probs(memory.data(), n);
                const auto message = message_of([&] { f.call({probs}, std::span(jacobian.data(), size)); });
                CAPTURE(f.name, n, size, message);
                CHECK(begins_with(message, f.name + ": jacobian has " + std::to_string(size) + " elements, "));
                CHECK(mentions(message, std::to_string(n)));
                CHECK(same_bits(memory, untouched<TestType>(0)));
                CHECK(same_bits(jacobian, untouched<TestType>(0)));
            }
        }
    }
}

TEMPLATE_TEST_CASE("checks: an output that partly overlaps an input is refused", "[check]", float, double, long double)
{
    for (const auto& f : checked_functions<TestType>()) {
        for (const std::size_t n : {std::size_t(2), std::size_t(5), std::size_t(20)}) {
            const std::size_t out_size = f.output_size(n);
            const auto row = some_row<TestType>(n);
            for (std::size_t k = 0; k < f.inputs.size(); ++k) {
                // memory: n elements, the output, n elements. The input begins at each place where they overlap.
                for (std::size_t begin = 1; begin < n + out_size; ++begin) {
                    if (begin == n && out_size == n)
                        continue; // the output is the input: allowed
                    auto memory = untouched<TestType>(out_size + 2 * n);
                    const auto before = memory;
                    inputs_of<TestType> inputs(f.inputs.size(), row);
                    inputs[k] = std::span(memory).subspan(begin, n);
                    const auto message = message_of([&] { f.call(inputs, std::span(memory).subspan(n, out_size)); });
                    CAPTURE(f.name, n, k, begin, message);
                    REQUIRE(begins_with(message, f.name + ": "));
                    REQUIRE(mentions(message, f.output));
                    REQUIRE(mentions(message, f.inputs[k]));
                    REQUIRE(same_bits(memory, before));
                }
            }
        }
    }
}

TEMPLATE_TEST_CASE("checks: an output that touches an input is allowed", "[check]", float, double, long double)
{
    for (const auto& f : checked_functions<TestType>()) {
        for (const std::size_t n : {std::size_t(1), std::size_t(2), std::size_t(5), std::size_t(20)}) {
            const std::size_t out_size = f.output_size(n);
            const auto row = some_row<TestType>(n);
            std::vector<TestType> expected(out_size);
            f.call(inputs_of<TestType>(f.inputs.size(), row), expected);
            for (const std::size_t begin : {std::size_t(0), n + out_size}) {
                std::vector<TestType> memory(out_size + 2 * n);
                const auto input = std::span(memory).subspan(begin, n);
                std::copy(row.begin(), row.end(), input.begin());
                const auto out = std::span(memory).subspan(n, out_size);
                CAPTURE(f.name, n, begin);
                CHECK(message_of([&] { f.call(inputs_of<TestType>(f.inputs.size(), input), out); }) == "threw nothing");
                CHECK(nearly_equal<TestType>(out, expected));
                CHECK(same_bits(std::vector<TestType>(input.begin(), input.end()), row));
            }
        }
    }
}

TEMPLATE_TEST_CASE("checks: an output that is an input is allowed", "[check]", float, double, long double)
{
    for (const auto& f : checked_functions<TestType>()) {
        for (const std::size_t n : {std::size_t(1), std::size_t(2), std::size_t(5), std::size_t(40)}) {
            if (f.output_size(n) != n)
                continue;
            const auto row = some_row<TestType>(n);
            std::vector<std::vector<TestType>> others; // for each input its own, so that taking one for another shows
            for (std::size_t k = 0; k < f.inputs.size(); ++k) {
                others.push_back(row);
                for (auto& x : others[k])
                    x = x * TestType(k + 1) + TestType(k) * x * x;
            }
            for (unsigned aliased = 1; aliased < (1U << f.inputs.size()); ++aliased) { // bit k: input k is the output
                auto out = row;
                inputs_of<TestType> inputs, separate;
                for (std::size_t k = 0; k < f.inputs.size(); ++k) {
                    const bool is_output = (aliased >> k & 1U) != 0;
                    inputs.push_back(is_output ? out : others[k]);
                    separate.push_back(is_output ? row : others[k]);
                }
                std::vector<TestType> expected(n);
                f.call(separate, expected);
                CAPTURE(f.name, n, aliased);
                CHECK(message_of([&] { f.call(inputs, out); }) == "threw nothing");
                CHECK(nearly_equal<TestType>(out, expected));
            }
        }
    }
}

TEMPLATE_TEST_CASE("checks: rows of no element are allowed anywhere", "[check]", float, double, long double)
{
    for (const auto& f : checked_functions<TestType>()) {
        CAPTURE(f.name);
        const inputs_of<TestType> nowhere(f.inputs.size());
        CHECK(message_of([&] { f.call(nowhere, {}); }) == "threw nothing");

        auto memory = untouched<TestType>(4);
        for (const std::size_t at : {std::size_t(0), std::size_t(2), std::size_t(20)}) {
            const auto empty = std::span(memory).subspan(at, 0);
            const inputs_of<TestType> somewhere(f.inputs.size(), empty);
            CHECK(message_of([&] { f.call(somewhere, empty); }) == "threw nothing");
            CHECK(message_of([&] { f.call(somewhere, {}); }) == "threw nothing");
            CHECK(message_of([&] { f.call(nowhere, empty); }) == "threw nothing");
        }
        CHECK(same_bits(memory, untouched<TestType>(4)));
    }
}

TEMPLATE_TEST_CASE("checks: a temperature that is not positive and finite is refused", "[check]", float, double,
                   long double)
{
    for (const auto& f : functions_with_options<TestType>()) {
        for (std::size_t which = 0; which < bad_temperatures; ++which) {
            for (const std::size_t n : {std::size_t(0), std::size_t(1), std::size_t(4), std::size_t(70)}) {
                smx::softmax_options<TestType> options;
                put_bad_temperature(options.temperature, which);
                const auto logits = some_row<TestType>(n);
                auto memory = untouched<TestType>(n);
                const auto out = std::span(memory).first(n);
                const auto message = message_of([&] { f.call(logits, out, options); });
                CAPTURE(f.name, which, n, message);
                CHECK(begins_with(message, f.name + ": "));
                CHECK(mentions(message, "temperature"));
                CHECK(message_of([&] { f.call(out, out, options); }) == message);
                CHECK(same_bits(memory, untouched<TestType>(n)));
            }
        }
    }
}

TEMPLATE_TEST_CASE("checks: a positive finite temperature of any size is allowed", "[check]", float, double,
                   long double)
{
    for (const auto& f : functions_with_options<TestType>()) {
        using limits = std::numeric_limits<TestType>;
        for (const TestType temperature : {limits::denorm_min(), limits::min(), TestType(1), limits::max()}) {
            smx::softmax_options<TestType> options;
            options.temperature = temperature;
            const std::vector<TestType> logits(4); // all equal: 1/4 at any temperature
            std::vector<TestType> out(4), expected(4);
            f.call(logits, expected, {});
            CAPTURE(f.name, temperature);
            CHECK(message_of([&] { f.call(logits, out, options); }) == "threw nothing");
            CHECK(nearly_equal<TestType>(out, expected));
        }
    }
}

TEMPLATE_TEST_CASE("checks: a mask of another size is refused with both sizes", "[check]", float, double, long double)
{
    const bool mask[] = {true, false, true, true, true, false};
    for (const auto& f : functions_with_options<TestType>()) {
        for (const std::size_t n : {std::size_t(0), std::size_t(2), std::size_t(4)}) {
            for (const std::size_t size : {std::size_t(2), std::size_t(3), std::size_t(4), std::size_t(6)}) {
                smx::softmax_options<TestType> options;
                options.mask = std::span(mask).first(size);
                const auto logits = some_row<TestType>(n);
                auto out = untouched<TestType>(n);
                const auto message = message_of([&] { f.call(logits, std::span(out).first(n), options); });
                CAPTURE(f.name, n, size);
                if (size == n) {
                    CHECK(message == "threw nothing");
                    CHECK_FALSE(same_bits(out, untouched<TestType>(n)));
                } else {
                    CHECK(message ==
                          f.name + ": mask has " + std::to_string(size) + " elements, logits has " + std::to_string(n));
                    CHECK(same_bits(out, untouched<TestType>(n)));
                }
            }
        }
    }
}

TEMPLATE_TEST_CASE("checks: a mask that overlaps the output is refused, one that touches it is allowed", "[check]",
                   float, double, long double)
{
    const std::size_t n = 6, bytes = n * sizeof(TestType);
    for (const auto& f : functions_with_options<TestType>()) {
        const auto logits = some_row<TestType>(n);
        std::vector<TestType> expected(n);
        f.call(logits, expected, {});
        for (std::size_t begin = 0; begin <= 16 + bytes; ++begin) { // of the mask, in bytes
            // 16 bytes, the output, 16 bytes. Each byte is 1: a true bool, and a part of some number.
            alignas(TestType) unsigned char memory[16 + n * sizeof(TestType) + 16];
            std::memset(memory, 1, sizeof memory);
            unsigned char before[sizeof memory];
            std::memcpy(before, memory, sizeof memory);
            const std::span<TestType> out(reinterpret_cast<TestType*>(memory + 16), n);
            smx::softmax_options<TestType> options;
            options.mask = std::span<const bool>(reinterpret_cast<const bool*>(memory + begin), n);

            const auto message = message_of([&] { f.call(logits, out, options); });
            CAPTURE(f.name, begin, message);
            if (begin + n <= 16 || begin >= 16 + bytes) {
                REQUIRE(message == "threw nothing");
                REQUIRE(nearly_equal<TestType>(out, expected));
            } else {
                REQUIRE(begins_with(message, f.name + ": "));
                REQUIRE(mentions(message, f.output));
                REQUIRE(mentions(message, "mask"));
                REQUIRE(std::memcmp(memory, before, sizeof memory) == 0);
            }
        }
    }
}

TEMPLATE_TEST_CASE("checks: a mask of no element is no mask, wherever it points", "[check]", float, double)
{
    const std::size_t n = 4;
    for (const auto& f : functions_with_options<TestType>()) {
        const auto logits = some_row<TestType>(n);
        std::vector<TestType> out(n), expected(n);
        f.call(logits, expected, {});
        smx::softmax_options<TestType> options;
        options.mask = std::span<const bool>(reinterpret_cast<const bool*>(out.data() + 1), std::size_t(0));
        CAPTURE(f.name);
        CHECK(message_of([&] { f.call(logits, out, options); }) == "threw nothing");
        CHECK(nearly_equal<TestType>(out, expected));
    }
}
