// SPDX-License-Identifier: BSL-1.0
// special_values.test.cpp: NaN, infinities, empty rows, masks and zero probabilities at every position; and what the
// library leaves alone: floating-point flags and modes, errno, the heap.
//
// Also compiled with -ffast-math: every special value is written and read as integer bits in memory.
#include "allocations.hpp"
#include "bits.hpp"
#include "catch.hpp"
#include "leaves.hpp"
#include "oracle.hpp"
#include "rows.hpp"

#include <algorithm>
#include <cerrno>
#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

using rows::mixed;
using rows::random_source;
using rows::row;

constexpr std::uint64_t seed_of_all = 0x5bec1a1; // printed with every failure

template <class T>
row<T> finite_row(std::size_t n)
{
    random_source random(mixed(seed_of_all, n));
    row<T> out(n);
    for (T& each : out)
        each = static_cast<T>(3 * random.normal());
    return out;
}

template <class T>
using predicate = bool (*)(const T&);

template <class T>
bool all(const row<T>& x, predicate<T> holds)
{
    return std::all_of(x.begin(), x.end(), [&](const T& each) { return holds(each); });
}

// Everything but the i-th.
template <class T>
bool all_but(const row<T>& x, std::size_t i, predicate<T> holds)
{
    for (std::size_t k = 0; k < x.size(); ++k)
        if (k != i && !holds(x[k]))
            return false;
    return true;
}

template <class T>
constexpr T one = T(1);
template <class T>
bool is_one(const T& x)
{
    return bits::same(x, one<T>);
}

// What the three functions of logits give, by one leaf.
template <class T>
struct results {
    row<T> probs, log_probs;
    T logsumexp{};
    bool unchanged = false; // the logits
};

template <class T>
results<T> results_of(const leaf<T>& by, const row<T>& x, std::span<const bool> mask = {},
                      const T& temperature = one<T>)
{
    results<T> out;
    out.probs = x; // whatever is in the output before
    out.log_probs = x;
    const row<T> before = x;
    by.softmax(x, out.probs, temperature, mask);
    by.log_softmax(x, out.log_probs, temperature, mask);
    if (mask.empty())
        by.logsumexp(x, out.logsumexp);
    out.unchanged = bits::same(x.data(), before.data(), x.size());
    return out;
}

// Every n from 1 to 70, every position in a row of finite logits.
template <class T, class Use>
void for_each_position(Use use)
{
    for (const leaf<T>& by : leaves<T>())
        for (std::size_t n = 1; n <= 70; ++n) {
            const row<T> x = finite_row<T>(n);
            for (std::size_t k = 0; k < n; ++k) {
                INFO(rows::name_of<T>() << ", " << by.name() << " leaf, n " << n << ", position " << k);
                use(by, x, k);
            }
        }
}

} // namespace

// --- logits -----------------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: a NaN logit makes everything NaN", "[special]", float, double,
                   long double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, row<T> x, std::size_t k) {
        for (std::size_t kind = 0; kind < bits::nan_kinds; ++kind) {
            bits::put_nan(x[k], kind);
            const results<T> y = results_of(by, x);
            CAPTURE(kind);
            REQUIRE(all<T>(y.probs, bits::is_nan));
            REQUIRE(all<T>(y.log_probs, bits::is_nan));
            REQUIRE(bits::is_nan(y.logsumexp));
            REQUIRE(y.unchanged);
        }
        // also beside infinities, before or behind it
        const std::size_t beside = (k + 1) % x.size();
        if (beside == k)
            return;
        for (const bool negative : {false, true}) {
            bits::put_infinity(x[beside], negative);
            const results<T> y = results_of(by, x);
            CAPTURE(negative);
            REQUIRE(all<T>(y.probs, bits::is_nan));
            REQUIRE(all<T>(y.log_probs, bits::is_nan));
            REQUIRE(bits::is_nan(y.logsumexp));
        }
        for (T& each : x)
            bits::put_minus_infinity(each);
        bits::put_nan(x[k]);
        const results<T> y = results_of(by, x);
        REQUIRE(all<T>(y.probs, bits::is_nan));
        REQUIRE(all<T>(y.log_probs, bits::is_nan));
        REQUIRE(bits::is_nan(y.logsumexp));
    });
}

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: a +inf logit makes the row NaN and the sum +inf", "[special]",
                   float, double, long double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, row<T> x, std::size_t k) {
        const std::size_t beside = (k + 1) % x.size();
        for (const int others : {0, 1, 2}) { // finite, a second +inf, all -inf
            if (others == 2)
                for (T& each : x)
                    bits::put_minus_infinity(each);
            bits::put_plus_infinity(x[k]);
            if (others == 1)
                bits::put_plus_infinity(x[beside]);
            const results<T> y = results_of(by, x);
            CAPTURE(others);
            REQUIRE(all<T>(y.probs, bits::is_nan));
            REQUIRE(all<T>(y.log_probs, bits::is_nan));
            REQUIRE(bits::is_plus_infinity(y.logsumexp));
            REQUIRE(y.unchanged);
        }
    });
}

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: a -inf logit is as if absent", "[special]", float, double,
                   long double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, row<T> x, std::size_t k) {
        const std::size_t n = x.size();
        if (n == 1)
            return;
        row<T> removed = x;
        removed.erase(removed.begin() + static_cast<std::ptrdiff_t>(k));
        bits::put_minus_infinity(x[k]);
        const results<T> y = results_of(by, x), expected = results_of(by, removed);
        REQUIRE(bits::is_plus_zero(y.probs[k]));
        REQUIRE(bits::is_minus_infinity(y.log_probs[k]));
        REQUIRE(all_but<T>(y.probs, k, bits::is_finite));
        REQUIRE(all_but<T>(y.log_probs, k, bits::is_finite));
        double worst = 0;
        for (std::size_t i = 0; i < removed.size(); ++i) {
            const std::size_t at = i < k ? i : i + 1;
            const auto p = oracle::wide<T>(expected.probs[i]), log_p = oracle::wide<T>(expected.log_probs[i]);
            worst = std::max(worst, metric::in_ulp_at<T>(y.probs[at], p, p));
            worst = std::max(worst, metric::in_ulp_at<T>(y.log_probs[at], log_p, log_p));
        }
        const auto sum = oracle::wide<T>(expected.logsumexp);
        const double allowed =
            std::is_same_v<T, long double> ? static_cast<double>(n) : 6; // each within 3 of the exact
        REQUIRE(worst <= allowed);
        REQUIRE(metric::in_ulp_at<T>(y.logsumexp, sum, oracle::wide<T>(8) + oracle::magnitude(sum)) <= allowed);
        REQUIRE(y.unchanged);
    });
}

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: a single finite logit among -inf wins exactly", "[special]", float,
                   double, long double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, row<T> x, std::size_t k) {
        for (const T& value : {T(0), x[k], std::numeric_limits<T>::max(), std::numeric_limits<T>::lowest(),
                               std::numeric_limits<T>::min(), std::numeric_limits<T>::denorm_min()}) {
            for (T& each : x)
                bits::put_minus_infinity(each);
            x[k] = value;
            const results<T> y = results_of(by, x);
            CAPTURE(rows::hex(value));
            REQUIRE(is_one(y.probs[k]));
            REQUIRE(all_but<T>(y.probs, k, bits::is_plus_zero));
            REQUIRE(bits::is_zero(y.log_probs[k]));
            REQUIRE(all_but<T>(y.log_probs, k, bits::is_minus_infinity));
            REQUIRE(bits::same(y.logsumexp, value));
        }
    });
}

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: nothing but -inf makes the row NaN and the sum -inf", "[special]",
                   float, double, long double)
{
    using T = TestType;
    for (const leaf<T>& by : leaves<T>())
        for (std::size_t n = 1; n <= 300; ++n) {
            row<T> x(n);
            for (T& each : x)
                bits::put_minus_infinity(each);
            const results<T> y = results_of(by, x);
            CAPTURE(by.name(), n);
            REQUIRE(all<T>(y.probs, bits::is_nan));
            REQUIRE(all<T>(y.log_probs, bits::is_nan));
            REQUIRE(bits::is_minus_infinity(y.logsumexp));
        }
}

TEMPLATE_TEST_CASE("softmax and all the others: an empty row is valid, and nothing is written", "[special]", float,
                   double, long double)
{
    using T = TestType;
    for (const leaf<T>& by : leaves<T>()) {
        T cell = T(7), result = T(0);
        const std::span<T> nothing(&cell, 0);
        for (const std::span<T> none : {nothing, std::span<T>()}) {
            by.softmax(none, none);
            by.log_softmax(none, none);
            by.softmax_jacobian(none, none);
            by.log_softmax_jacobian(none, none);
            by.softmax_jvp(none, none, none);
            by.softmax_vjp(none, none, none);
            by.log_softmax_jvp(none, none, none);
            by.log_softmax_vjp(none, none, none);
            by.softmax_hvp(none, none, none, none);
            by.logsumexp(none, result);
            CAPTURE(by.name());
            REQUIRE(bits::is_minus_infinity(result));
            REQUIRE(cell == T(7));
        }
    }
}

TEMPLATE_TEST_CASE("softmax and all the others: a row of one is exact", "[special]", float, double, long double)
{
    using T = TestType;
    using limits = std::numeric_limits<T>;
    for (const leaf<T>& by : leaves<T>())
        for (const T& value :
             {T(0), T(-0.0), T(1), T(-3), limits::max(), limits::lowest(), limits::min(), limits::denorm_min(),
              -limits::denorm_min(), static_cast<T>(1e30), static_cast<T>(-88.7)})
            for (const T& temperature :
                 {T(1), limits::denorm_min(), limits::min(), static_cast<T>(0.3), limits::max()}) {
                const row<T> x(1, value);
                const results<T> y = results_of(by, x, {}, temperature);
                row<T> J(1, T(7)), log_J(1, T(7)), jvp(1, T(7)), log_jvp(1, T(7)), log_vjp(1, T(7)), hvp(1, T(7));
                by.softmax_jacobian(y.probs, J);
                by.log_softmax_jacobian(y.probs, log_J);
                by.softmax_jvp(y.probs, x, jvp);
                by.log_softmax_jvp(y.probs, x, log_jvp);
                by.log_softmax_vjp(y.probs, x, log_vjp);
                by.softmax_hvp(y.probs, x, x, hvp);
                CAPTURE(by.name(), rows::hex(value), rows::hex(temperature));
                REQUIRE(is_one(y.probs[0]));
                REQUIRE(bits::is_zero(y.log_probs[0]));
                REQUIRE((bits::same(y.logsumexp, value) || (bits::is_zero(value) && bits::is_zero(y.logsumexp))));
                for (const row<T>* product : {&J, &log_J, &jvp, &log_jvp, &log_vjp, &hvp})
                    REQUIRE(bits::is_zero((*product)[0]));
            }
}

namespace {

template <class T>
[[gnu::noinline]] void add_logs(const T& a, const T& b, T& out)
{
    out = smx::logaddexp(a, b);
}

} // namespace

TEMPLATE_TEST_CASE("logaddexp: NaN wins over +inf, which wins over all else, and -inf adds nothing", "[special]", float,
                   double, long double)
{
    using T = TestType;
    T nan{}, plus{}, minus{}, out{};
    bits::put_nan(nan);
    bits::put_plus_infinity(plus);
    bits::put_minus_infinity(minus);
    const auto both_ways = [&](const T& a, const T& b, predicate<T> holds) {
        add_logs(a, b, out);
        REQUIRE(holds(out));
        add_logs(b, a, out);
        REQUIRE(holds(out));
    };
    const T values[] = {T(0), T(-3), static_cast<T>(1e30), std::numeric_limits<T>::lowest(),
                        std::numeric_limits<T>::denorm_min()};
    both_ways(nan, nan, bits::is_nan);
    both_ways(nan, plus, bits::is_nan);
    both_ways(nan, minus, bits::is_nan);
    both_ways(plus, plus, bits::is_plus_infinity);
    both_ways(plus, minus, bits::is_plus_infinity);
    both_ways(minus, minus, bits::is_minus_infinity);
    for (const T& value : values) {
        both_ways(nan, value, bits::is_nan);
        both_ways(plus, value, bits::is_plus_infinity);
        add_logs(minus, value, out);
        REQUIRE(bits::same(out, value));
        add_logs(value, minus, out);
        REQUIRE(bits::same(out, value));
    }
}

// --- masks ------------------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("softmax, log_softmax: with nothing unmasked the row is 0, its logarithm -inf, whatever the logits",
                   "[special][mask]", float, double, long double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, row<T> x, std::size_t k) {
        const rows::flags nothing(x.size(), false);
        for (const int what : {0, 1, 2, 3}) {
            if (what == 1)
                bits::put_nan(x[k], k % bits::nan_kinds);
            if (what == 2)
                bits::put_plus_infinity(x[k]);
            if (what == 3)
                for (T& each : x)
                    bits::put_minus_infinity(each);
            const results<T> y = results_of(by, x, nothing.span());
            CAPTURE(what);
            REQUIRE(all<T>(y.probs, bits::is_plus_zero));
            REQUIRE(all<T>(y.log_probs, bits::is_minus_infinity));
        }
    });
}

TEMPLATE_TEST_CASE("softmax, log_softmax: a masked entry is as if absent, whatever it is", "[special][mask]", float,
                   double, long double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, row<T> x, std::size_t k) {
        if (x.size() == 1)
            return;
        rows::flags mask(x.size());
        mask[k] = false;
        row<T> with_zero = x;
        with_zero[k] = T(0);
        const results<T> expected = results_of(by, with_zero, mask.span());
        REQUIRE(bits::is_plus_zero(expected.probs[k]));
        REQUIRE(bits::is_minus_infinity(expected.log_probs[k]));
        REQUIRE(all_but<T>(expected.probs, k, bits::is_finite));
        REQUIRE(all_but<T>(expected.log_probs, k, bits::is_finite));
        for (std::size_t what = 0; what < bits::nan_kinds + 4; ++what) {
            if (what < bits::nan_kinds)
                bits::put_nan(x[k], what);
            else if (what == bits::nan_kinds)
                bits::put_plus_infinity(x[k]);
            else if (what == bits::nan_kinds + 1)
                bits::put_minus_infinity(x[k]);
            else
                x[k] = what == bits::nan_kinds + 2 ? std::numeric_limits<T>::max() : std::numeric_limits<T>::lowest();
            const results<T> y = results_of(by, x, mask.span());
            CAPTURE(what);
            REQUIRE(bits::same(y.probs.data(), expected.probs.data(), x.size()));
            REQUIRE(bits::same(y.log_probs.data(), expected.log_probs.data(), x.size()));
        }
    });
}

TEMPLATE_TEST_CASE("softmax, log_softmax: a masked entry stays 0 in a row that is NaN", "[special][mask]", float,
                   double, long double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, const row<T>& finite, std::size_t k) {
        const std::size_t n = finite.size();
        random_source random(mixed(seed_of_all, n * 100 + k));
        for (const int what : {0, 1, 2}) { // the unmasked k-th is NaN, +inf, or -inf among others of its kind
            rows::flags mask(n);
            row<T> x = finite;
            for (std::size_t i = 0; i < n; ++i) {
                mask[i] = i == k || random.one_in(2);
                if (what == 2 && mask[i])
                    bits::put_minus_infinity(x[i]);
                if (!mask[i] && random.one_in(3))
                    bits::put_nan(x[i]);
            }
            if (what == 0)
                bits::put_nan(x[k], k % bits::nan_kinds);
            if (what == 1)
                bits::put_plus_infinity(x[k]);
            const results<T> y = results_of(by, x, mask.span());
            bool right = true;
            for (std::size_t i = 0; i < n; ++i)
                right = right && (mask[i] ? bits::is_nan(y.probs[i]) && bits::is_nan(y.log_probs[i])
                                          : bits::is_plus_zero(y.probs[i]) && bits::is_minus_infinity(y.log_probs[i]));
            CAPTURE(what);
            REQUIRE(right);
        }
    });
}

// --- probabilities and tangents ---------------------------------------------------------------------------------

namespace {

// Probabilities of n entries, about a third of them 0, that of `positive` not.
template <class T>
row<T> probs_with_zeros(std::size_t n, std::size_t positive)
{
    random_source random(mixed(seed_of_all, 1000 * n + positive));
    row<T> p(n);
    T sum = T(0);
    for (std::size_t i = 0; i < n; ++i) {
        p[i] = i != positive && random.one_in(3) ? T(0) : static_cast<T>(random.between(0.01, 1));
        sum += p[i];
    }
    for (T& each : p)
        each /= sum;
    return p;
}

// The products that know nothing of a tangent where p_i = 0, by name.
template <class T>
struct product_of_support {
    const char* name;
    void (*run)(const leaf<T>&, const row<T>& p, const row<T>& v, row<T>& out);
};

template <class T>
std::vector<product_of_support<T>> products_of_support()
{
    return {
        {"softmax_jvp",
         [](const leaf<T>& by, const row<T>& p, const row<T>& v, row<T>& out) { by.softmax_jvp(p, v, out); }},
        {"softmax_vjp",
         [](const leaf<T>& by, const row<T>& p, const row<T>& v, row<T>& out) { by.softmax_vjp(p, v, out); }},
        {"softmax_hvp, tangent", [](const leaf<T>& by, const row<T>& p, const row<T>& v,
                                    row<T>& out) { by.softmax_hvp(p, finite_row<T>(p.size()), v, out); }},
        {"softmax_hvp, cotangent", [](const leaf<T>& by, const row<T>& p, const row<T>& v,
                                      row<T>& out) { by.softmax_hvp(p, v, finite_row<T>(p.size()), out); }},
        {"softmax_hvp, both",
         [](const leaf<T>& by, const row<T>& p, const row<T>& v, row<T>& out) { by.softmax_hvp(p, v, v, out); }},
    };
}

template <class T>
bool zero_where_absent(const row<T>& p, const row<T>& out)
{
    for (std::size_t i = 0; i < p.size(); ++i)
        if (bits::is_zero(p[i]) && !bits::is_zero(out[i]))
            return false;
    return true;
}

// NaN where p_i > 0, or is itself NaN.
template <class T>
bool nan_where_present(const row<T>& p, const row<T>& out)
{
    for (std::size_t i = 0; i < p.size(); ++i)
        if (!bits::is_zero(p[i]) && !bits::is_nan(out[i]))
            return false;
    return true;
}

} // namespace

TEMPLATE_TEST_CASE("softmax_jvp, softmax_vjp, softmax_hvp: a NaN probability reaches every positive one and no zero",
                   "[special][jacobian]", float, double, long double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, const row<T>& v, std::size_t k) {
        row<T> p = probs_with_zeros<T>(v.size(), k), out(v.size());
        bits::put_nan(p[k], k % bits::nan_kinds);
        for (const product_of_support<T>& f : products_of_support<T>()) {
            f.run(by, p, v, out);
            CAPTURE(f.name);
            REQUIRE(nan_where_present(p, out));
            REQUIRE(zero_where_absent(p, out));
        }
    });
}

TEMPLATE_TEST_CASE("softmax_jvp, softmax_vjp, softmax_hvp: a NaN tangent of a positive probability reaches every other",
                   "[special][jacobian]", float, double, long double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, row<T> v, std::size_t k) {
        const row<T> p = probs_with_zeros<T>(v.size(), k);
        row<T> out(v.size());
        bits::put_nan(v[k], k % bits::nan_kinds);
        for (const product_of_support<T>& f : products_of_support<T>()) {
            f.run(by, p, v, out);
            CAPTURE(f.name);
            REQUIRE(nan_where_present(p, out));
            REQUIRE(zero_where_absent(p, out));
        }
    });
}

TEMPLATE_TEST_CASE(
    "softmax_jvp, softmax_vjp, softmax_hvp: the tangent of a zero probability has no effect, infinite or not",
    "[special][jacobian]", float, double, long double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, const row<T>& v, std::size_t k) {
        const row<T> p = probs_with_zeros<T>(v.size(), k);
        row<T> expected(v.size()), out(v.size());
        for (const product_of_support<T>& f : products_of_support<T>()) {
            CAPTURE(f.name);
            if (std::string_view(f.name) == "softmax_hvp, both") // its other vector changes too
                continue;
            f.run(by, p, v, expected);
            REQUIRE(zero_where_absent(p, expected));
            REQUIRE(all<T>(expected, bits::is_finite));
            for (const int what : {0, 1, 2, 3}) {
                row<T> w = v;
                for (std::size_t i = 0; i < v.size(); ++i)
                    if (bits::is_zero(p[i])) {
                        if (what < 2)
                            bits::put_infinity(w[i], what == 1);
                        else
                            w[i] = what == 2 ? std::numeric_limits<T>::max() : std::numeric_limits<T>::lowest();
                    }
                f.run(by, p, w, out);
                CAPTURE(what);
                REQUIRE(bits::same(out.data(), expected.data(), v.size()));
            }
        }
    });
}

TEMPLATE_TEST_CASE(
    "softmax_jvp, softmax_vjp, softmax_hvp: a winner of exactly 1, or none at all, gives 0 beside infinities",
    "[special][jacobian]", float, double, long double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, row<T> v, std::size_t k) {
        row<T> p(v.size()), out(v.size());
        p[k] = T(1);
        for (std::size_t i = 0; i < v.size(); ++i)
            if (i != k)
                bits::put_infinity(v[i], i % 2 == 0);
        for (const product_of_support<T>& f : products_of_support<T>()) {
            CAPTURE(f.name);
            f.run(by, p, v, out);
            REQUIRE(all<T>(out, bits::is_zero));
        }
        p[k] = T(0);
        bits::put_infinity(v[k], false);
        for (const product_of_support<T>& f : products_of_support<T>()) {
            CAPTURE(f.name);
            f.run(by, p, v, out);
            REQUIRE(all<T>(out, bits::is_zero));
        }
    });
}

TEMPLATE_TEST_CASE("softmax_jacobian: the row and the column of a zero probability are 0", "[special][jacobian]", float,
                   double, long double)
{
    using T = TestType;
    for (const leaf<T>& by : leaves<T>())
        for (std::size_t n = 1; n <= 33; ++n)
            for (std::size_t k = 0; k < n; ++k) {
                row<T> p = probs_with_zeros<T>(n, (k + 1) % n), J(n * n), log_J(n * n);
                p[k] = T(0);
                by.softmax_jacobian(p, J);
                by.log_softmax_jacobian(p, log_J);
                bool right = true;
                for (std::size_t i = 0; i < n; ++i)
                    right = right && bits::is_zero(J[i * n + k]) && bits::is_zero(J[k * n + i]) &&
                            (i == k || bits::is_zero(log_J[i * n + k]));
                CAPTURE(by.name(), n, k);
                REQUIRE(right);
            }
}

// --- what is left alone -----------------------------------------------------------------------------------------

namespace {

// The control bits of the floating-point environment: rounding, exception masks, flushing of subnormals.
unsigned control_word()
{
#if defined(__SSE__)
    return _mm_getcsr() & ~0x3fu; // without the sticky flags
#else
    return static_cast<unsigned>(std::fegetround());
#endif
}

// Rows of finite logits of every kind, some masked with NaN behind the mask, at every temperature.
template <class T>
struct finite_case {
    std::string words;
    row<T> x;
    T temperature;
    rows::flags mask;
};

template <class T>
std::vector<finite_case<T>> finite_cases()
{
    std::vector<finite_case<T>> out;
    random_source random(seed_of_all);
    std::vector<T> temperatures = rows::temperatures<T>();
    temperatures.insert(temperatures.end(), temperatures.size(), T(1));
    for (const T& temperature : temperatures)
        for (const rows::kind<T>& kind : rows::logit_kinds<T>())
            for (const std::size_t n : {1u, 2u, 5u, 16u, 33u, 130u}) {
                row<T> x = rows::make(kind, n, random.next());
                for (T& each : x)
                    if (!bits::is_finite(each))
                        each = std::numeric_limits<T>::lowest();
                rows::flags mask(0);
                if (random.one_in(2)) {
                    mask = rows::any_mask(random, std::span<const T>(x));
                    for (std::size_t i = 0; i < n; ++i)
                        if (!mask[i])
                            bits::put_nan(x[i], i % bits::nan_kinds);
                }
                const std::string words =
                    rows::joined(kind.name, ", n ", std::to_string(n), ", temperature ", rows::hex(temperature),
                                 mask.span().empty() ? ", " : ", masked, ", rows::hex(std::span<const T>(x)));
                out.push_back({words, x, temperature, std::move(mask)});
            }
    return out;
}

constexpr int errors = FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW;

} // namespace

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: finite logits raise no floating-point error",
                   "[special][environment]", float, double)
{
    using T = TestType;
    for (const finite_case<T>& each : finite_cases<T>())
        for (const leaf<T>& by : leaves<T>()) {
            row<T> out(each.x.size());
            T result{};
            CAPTURE(by.name(), each.words);

            std::feclearexcept(FE_ALL_EXCEPT);
            by.softmax(each.x, out, each.temperature, each.mask.span());
            const int by_softmax = std::fetestexcept(errors);
            REQUIRE(by_softmax == 0);

            std::feclearexcept(FE_ALL_EXCEPT);
            by.log_softmax(each.x, out, each.temperature, each.mask.span());
            const int by_log_softmax = std::fetestexcept(errors);
            bool below_range = false; // then an overflow is allowed
            for (std::size_t i = 0; i < out.size(); ++i)
                if (each.mask.span().empty() || each.mask[i])
                    below_range = below_range || bits::is_infinite(out[i]);
            REQUIRE((by_log_softmax & ~(below_range ? FE_OVERFLOW : 0)) == 0);

            if (each.mask.span().empty()) {
                std::feclearexcept(FE_ALL_EXCEPT);
                by.logsumexp(each.x, result);
                const int by_logsumexp = std::fetestexcept(errors);
                REQUIRE(by_logsumexp == 0);
            }
        }
    std::feclearexcept(FE_ALL_EXCEPT);
}

TEMPLATE_TEST_CASE("products of probabilities that underflow to 0: no floating-point error", "[special][environment]",
                   float, double)
{
    using T = TestType;
    for (const std::size_t n : {2u, 7u, 8u, 9u, 17u, 40u, 100u, 300u})
        for (const T depth : {T(20), T(90), T(200), T(740), T(1000)}) {
            row<T> logits(n), t(n), u(n);
            for (std::size_t i = 0; i < n; ++i) {
                logits[i] = i == n / 3 ? T(0) : -depth - T(i % 5);
                t[i] = T(i % 7) - T(2);
                u[i] = T(1) + T(i % 3);
            }
            for (const leaf<T>& by : leaves<T>()) {
                CAPTURE(by.name(), n, depth);
                row<T> p(n), out(n);
                by.softmax(logits, p);
                std::feclearexcept(FE_ALL_EXCEPT);
                by.softmax_jvp(p, t, out);
                by.softmax_vjp(p, t, out);
                by.log_softmax_jvp(p, t, out);
                by.log_softmax_vjp(p, t, out);
                REQUIRE(std::fetestexcept(errors) == 0);
                by.softmax_hvp(p, u, t, out);
                REQUIRE(std::fetestexcept(errors) == 0);
            }
        }
    std::feclearexcept(FE_ALL_EXCEPT);
}

TEMPLATE_TEST_CASE("products with one large entry: no floating-point error", "[special][environment]", float, double)
{
    using T = TestType;
    const T large = std::is_same_v<T, float> ? T(1e25f) : T(1e200);
    for (const std::size_t n : {1u, 2u, 3u, 8u, 9u, 17u, 33u, 40u, 100u, 129u, 300u})
        for (const T top : {T(0), T(0.75), T(1)}) { // with an entry that outweighs the others, or without
            row<T> p(n, (T(1) - top) / static_cast<T>(n)), t(n, T(1)), out(n);
            p[n / 2] += top;
            for (const std::size_t at : {std::size_t{0}, n / 2, n - 1}) {
                t.assign(n, T(1));
                t[at] = large;
                for (const leaf<T>& by : leaves<T>()) {
                    CAPTURE(by.name(), n, top, at);
                    std::feclearexcept(FE_ALL_EXCEPT);
                    by.softmax_jvp(p, t, out);
                    by.log_softmax_jvp(p, t, out);
                    by.log_softmax_vjp(p, t, out);
                    if (top == T(1)) // else the product of two large entries overflows
                        by.softmax_hvp(p, t, t, out);
                    REQUIRE(std::fetestexcept(errors) == 0);
                }
            }
        }
    std::feclearexcept(FE_ALL_EXCEPT);
}

TEMPLATE_TEST_CASE("products with several probabilities above a half: no floating-point error",
                   "[special][environment]", float, double)
{
    using T = TestType;
    for (std::size_t n = 2; n <= 130; ++n)
        for (const std::size_t other : {std::size_t{1}, n / 2, n - 1}) {
            row<T> p(n, T(0.01)), t(n), out(n);
            p[0] = T(1.5);
            p[other] = T(0.9);
            for (std::size_t i = 0; i < n; ++i)
                t[i] = T(i % 5) - T(2);
            for (const leaf<T>& by : leaves<T>()) {
                CAPTURE(by.name(), n, other);
                std::feclearexcept(FE_ALL_EXCEPT);
                by.softmax_jvp(p, t, out);
                by.log_softmax_jvp(p, t, out);
                by.log_softmax_vjp(p, t, out);
                by.softmax_hvp(p, t, t, out);
                REQUIRE(std::fetestexcept(errors) == 0);
            }
        }
    std::feclearexcept(FE_ALL_EXCEPT);
}

TEMPLATE_TEST_CASE("softmax and all the others: errno, the rounding mode, MXCSR and the heap are left alone",
                   "[special][environment]", float, double)
{
    using T = TestType;
#if defined(__SSE__)
    REQUIRE(control_word() == 0x1f80); // or something was linked with -ffast-math
#endif
    for (const finite_case<T>& each : finite_cases<T>())
        for (const leaf<T>& by : leaves<T>()) {
            const std::size_t n = each.x.size();
            row<T> out(n), p(n), J(n * n);
            by.softmax(each.x, p, each.temperature, each.mask.span());
            T result{};
            const unsigned control = control_word();
            const int rounding = std::fegetround();
            const std::size_t before = allocations;
            errno = 4242;
            by.softmax(each.x, out, each.temperature, each.mask.span());
            by.log_softmax(each.x, out, each.temperature, each.mask.span());
            by.logsumexp(each.x, result);
            by.softmax_jacobian(p, J);
            by.log_softmax_jacobian(p, J);
            by.softmax_jvp(p, p, out);
            by.softmax_vjp(p, p, out);
            by.log_softmax_jvp(p, p, out);
            by.log_softmax_vjp(p, p, out);
            by.softmax_hvp(p, p, p, out);
            const int error = errno;
            const std::size_t after = allocations;
            CAPTURE(by.name(), each.words);
            REQUIRE(error == 4242);
            REQUIRE(after == before);
            REQUIRE(control_word() == control);
            REQUIRE(std::fegetround() == rounding);
        }
    REQUIRE(allocations > 0); // the counter counts
}

TEMPLATE_TEST_CASE("softmax and all the others: special logits leave errno and MXCSR alone too",
                   "[special][environment]", float, double)
{
    using T = TestType;
    for_each_position<T>([](const leaf<T>& by, row<T> x, std::size_t k) {
        row<T> out(x.size());
        T result{};
        for (const int what : {0, 1, 2}) {
            if (what == 0)
                bits::put_nan(x[k]);
            else
                bits::put_infinity(x[k], what == 1);
            const unsigned control = control_word();
            errno = 4242;
            by.softmax(x, out);
            by.log_softmax(x, out);
            by.logsumexp(x, result);
            by.softmax_jvp(out, x, out);
            const int error = errno;
            CAPTURE(what);
            REQUIRE(error == 4242);
            REQUIRE(control_word() == control);
        }
    });
    std::feclearexcept(FE_ALL_EXCEPT);
}

// --- other rounding modes ---------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: rounding up, down and to zero stay within 8 ULP",
                   "[special][environment][accuracy]", float, double)
{
    using T = TestType;
    double worst = 0;
    std::string where;
    for (const rows::kind<T>& kind : rows::logit_kinds<T>())
        for (const std::size_t n : {1u, 2u, 3u, 5u, 16u, 17u, 33u, 130u, 300u})
            for (std::uint64_t k = 0; k < 5 * rows::volume(); ++k) {
                const row<T> x = rows::make(kind, n, mixed(seed_of_all, k));
                const oracle::shifted_row<T> exact(x.data(), n, one<T>, nullptr);
                for (const leaf<T>& by : leaves<T>())
                    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
                        row<T> probs(n), log_probs(n);
                        T sum{};
                        REQUIRE(std::fesetround(mode) == 0);
                        by.softmax(x, probs);
                        by.log_softmax(x, log_probs);
                        by.logsumexp(x, sum);
                        const int mode_after = std::fegetround();
                        std::fesetround(FE_TONEAREST);
                        double error = metric::logsumexp<T>(sum, exact.logsumexp(), exact.logsumexp_scale());
                        for (std::size_t i = 0; i < n; ++i) {
                            error = std::max(error, metric::softmax<T>(probs[i], exact.softmax(i)));
                            if (exact.present(i))
                                error = std::max(error, metric::log_softmax<T>(log_probs[i], exact.log_softmax(i)));
                        }
                        REQUIRE(mode_after == mode);
                        if (error > worst) {
                            worst = error;
                            where =
                                rows::joined(by.name(), " leaf, rows '", kind.name, "', mode ", std::to_string(mode),
                                             ", seed ", std::to_string(mixed(seed_of_all, k)), ", n ",
                                             std::to_string(n), ", logits ", rows::hex(std::span<const T>(x)));
                        }
                    }
            }
    CAPTURE(where);
    CHECK(worst <= 8);
}

TEMPLATE_TEST_CASE("softmax_jvp and the other products: rounding up, down and to zero at most doubles the bounds",
                   "[special][environment][accuracy]", float, double)
{
    using T = TestType;
    constexpr double step = 1; // the last rounding of a subnormal result may cost a whole step
    double worst = 0;
    std::string where;
    random_source random(seed_of_all);
    for (const rows::kind<T>& kind : rows::probability_kinds<T>())
        for (const rows::tangent_kind<T>& tangent : rows::tangent_kinds<T>(rows::reach::products))
            for (const std::size_t n : {1u, 2u, 3u, 5u, 16u, 17u, 33u, 130u}) {
                const row<T> p = rows::make(kind, n, random.next()), v = rows::make(tangent, p, random.next());
                const bool infinite = !all<T>(v, bits::is_finite);
                const oracle::jacobian<T> exact(p.data(), n);
                const auto exact_jvp = exact.jvp(v.data()), exact_hvp = exact.hvp(v.data(), v.data());
                const auto exact_log_jvp = infinite ? exact_jvp : exact.log_jvp(v.data());
                const auto exact_log_vjp = infinite ? exact_jvp : exact.log_vjp(v.data());
                for (const leaf<T>& by : leaves<T>())
                    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
                        row<T> jvp(n), log_jvp(n), log_vjp(n), hvp(n);
                        std::fesetround(mode);
                        by.softmax_jvp(p, v, jvp);
                        by.log_softmax_jvp(p, v, log_jvp);
                        by.log_softmax_vjp(p, v, log_vjp);
                        by.softmax_hvp(p, v, v, hvp);
                        std::fesetround(FE_TONEAREST);
                        double error = 0;
                        for (std::size_t i = 0; i < n; ++i) {
                            error = std::max(error, metric::in_u<T>(jvp[i], exact_jvp[i], step));
                            error = std::max(error, metric::in_u<T>(hvp[i], exact_hvp[i], step) / 4);
                            if (infinite)
                                continue;
                            error = std::max(error, metric::in_u<T>(log_jvp[i], exact_log_jvp[i], step));
                            error = std::max(error, metric::in_u<T>(log_vjp[i], exact_log_vjp[i], step));
                        }
                        if (error > worst) {
                            worst = error;
                            where =
                                rows::joined(by.name(), " leaf, probs '", kind.name, "', tangent '", tangent.name,
                                             "', mode ", std::to_string(mode), ", n ", std::to_string(n), ", ",
                                             rows::hex(std::span<const T>(p)), ", ", rows::hex(std::span<const T>(v)));
                        }
                    }
            }
    CAPTURE(where, seed_of_all);
    CHECK(worst <= 16);
}
