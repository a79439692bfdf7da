// SPDX-License-Identifier: BSL-1.0
// softmax.test.cpp: properties of softmax, log_softmax and logsumexp that need no reference value; and memory: in
// place, every length at every offset, nothing read or written beyond a row.
#include "bits.hpp"
#include "catch.hpp"
#include "leaves.hpp"
#include "oracle.hpp"
#include "rows.hpp"

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

using rows::mixed;
using rows::random_source;
using rows::row;

constexpr std::uint64_t seed_of_all = 0x50f7a111u; // printed with every failure

// Natural rows are within 3 ULP, so two results for the same exact value are within 6 of each other.
constexpr double bound = 3;

// Rows of every kind and of these lengths, three of each. The names of what failed, at most one for every kind.
constexpr std::size_t lengths[] = {1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 65, 127, 130, 257, 1000, 1025};

template <class T, class Use>
void for_each_row(Use use)
{
    for (const rows::kind<T>& kind : rows::logit_kinds<T>())
        for (const std::size_t n : lengths)
            for (std::uint64_t k = 0; k < 3 * rows::volume(); ++k) {
                const row<T> x = rows::make(kind, n, mixed(seed_of_all, k));
                for (const leaf<T>& by : leaves<T>()) {
                    INFO(rows::name_of<T>()
                         << ", " << by.name() << " leaf, rows '" << kind.name << "', n " << n << ", seed "
                         << mixed(seed_of_all, k) << ", logits " << rows::hex(std::span<const T>(x)));
                    use(by, x);
                }
            }
}

// A row function of logits: softmax or log_softmax.
template <class T>
struct row_function {
    const char* name;
    void (leaf<T>::*run)(std::span<const T>, std::span<T>, const T&, std::span<const bool>) const;
};

template <class T>
constexpr row_function<T> row_functions[] = {{"softmax", &leaf<T>::softmax}, {"log_softmax", &leaf<T>::log_softmax}};

template <class T>
row<T> result_of(const row_function<T>& f, const leaf<T>& by, const row<T>& x, const T& temperature = T(1),
                 std::span<const bool> mask = {})
{
    row<T> out(x.size());
    (by.*f.run)(x, out, temperature, mask);
    return out;
}

// What a row function gives to an entry that takes no part: probability 0, log-probability -inf.
template <class T>
bool is_absent(const row_function<T>& f, const T& result)
{
    return &f == &row_functions<T>[0] ? bits::is_plus_zero(result) : bits::is_minus_infinity(result);
}

template <class T>
row<T> softmax_of(const leaf<T>& by, const row<T>& x)
{
    return result_of(row_functions<T>[0], by, x);
}

// |a - b| in units of the last place of the larger; 0 for two equal infinities.
template <class T>
double ulp_between(const T& a, const T& b)
{
    if (bits::same(a, b))
        return 0;
    const auto wide_a = oracle::wide<T>(a), wide_b = oracle::wide<T>(b);
    return metric::in_ulp_at<T>(a, wide_b, oracle::larger(oracle::magnitude(wide_a), oracle::magnitude(wide_b)));
}

template <class T>
double largest_ulp_between(const row<T>& a, const row<T>& b)
{
    double worst = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
        worst = std::max(worst, ulp_between(a[i], b[i]));
    return worst;
}

template <class T>
std::vector<std::size_t> random_permutation(random_source& random, const row<T>& x)
{
    std::vector<std::size_t> order(x.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (std::size_t i = order.size(); i > 1; --i)
        std::swap(order[i - 1], order[random.below(i)]);
    return order;
}

template <class T>
row<T> permuted(const row<T>& x, const std::vector<std::size_t>& order)
{
    row<T> out(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
        out[i] = x[order[i]];
    return out;
}

} // namespace

// --- probabilities ----------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("softmax: the probabilities sum to 1 as closely as each of them is right", "[softmax][property]",
                   float, double)
{
    using T = TestType;
    for_each_row<T>([](const leaf<T>& by, const row<T>& x) {
        const row<T> probs = softmax_of(by, x);
        oracle::wide<T> error = -1, allowed = 0; // error: sum - 1
        for (const T& p : probs) {
            error += oracle::wide<T>(p);
            allowed += oracle::wide<T>(bound) * metric::ulp_of<T>(oracle::wide<T>(p));
        }
        REQUIRE(static_cast<double>(oracle::magnitude(error)) <= static_cast<double>(allowed));
    });
}

TEMPLATE_TEST_CASE("softmax: every probability is in [0, 1]", "[softmax][property]", float, double)
{
    using T = TestType;
    for_each_row<T>([](const leaf<T>& by, const row<T>& x) {
        for (const T& p : softmax_of(by, x)) {
            REQUIRE(p >= T(0));
            REQUIRE(p <= T(1));
            REQUIRE_FALSE(std::signbit(p));
        }
    });
}

TEMPLATE_TEST_CASE("log_softmax: every log-probability is at most 0", "[log_softmax][property]", float, double)
{
    using T = TestType;
    for_each_row<T>([](const leaf<T>& by, const row<T>& x) {
        for (const T& y : result_of(row_functions<T>[1], by, x))
            REQUIRE(y <= T(0));
    });
}

TEMPLATE_TEST_CASE("softmax: it is the exponential of log_softmax within the bounds of both", "[softmax][log_softmax]",
                   float, double)
{
    using T = TestType;
    using W = oracle::wide<T>;
    for_each_row<T>([](const leaf<T>& by, const row<T>& x) {
        const row<T> probs = softmax_of(by, x);
        const row<T> log_probs = result_of(row_functions<T>[1], by, x);
        double worst = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
            const W y = bits::is_minus_infinity(log_probs[i]) ? W(-20000) : W(log_probs[i]);
            const W exact = oracle::exp_below(y);
            const W allowed = W(bound) * (metric::ulp_of<T>(exact) + exact * metric::ulp_of<T>(y));
            worst = std::max(worst, metric::as_double(metric::distance<T>(probs[i], exact) / allowed));
        }
        REQUIRE(worst <= 1.01);
    });
}

// --- metamorphic ------------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("softmax, log_softmax: adding a constant to every logit changes nothing within the bound",
                   "[softmax][log_softmax][property]", float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (const std::size_t n : lengths)
        for (std::size_t k = 0; k < 20 * rows::volume(); ++k) {
            // Multiples of 2^-8 below 2^6: shifts by integers below 2^10 are exact in float.
            row<T> x(n), shifted(n);
            const auto shift = static_cast<T>(static_cast<int>(random.below(2047)) - 1023);
            for (std::size_t i = 0; i < n; ++i) {
                x[i] = static_cast<T>(static_cast<double>(random.below(1u << 15)) * 0x1p-8 - 64);
                shifted[i] = x[i] + shift;
                REQUIRE(shifted[i] - shift == x[i]);
            }
            for (const leaf<T>& by : leaves<T>())
                for (const row_function<T>& f : row_functions<T>) {
                    CAPTURE(n, by.name(), f.name, shift, rows::hex(std::span<const T>(x)), seed_of_all);
                    REQUIRE(largest_ulp_between(result_of(f, by, x), result_of(f, by, shifted)) <= 2 * bound);
                }
        }
}

TEMPLATE_TEST_CASE("softmax, log_softmax: a permutation of the logits permutes the results within the bound",
                   "[softmax][log_softmax][property]", float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for_each_row<T>([&](const leaf<T>& by, const row<T>& x) {
        const std::vector<std::size_t> order = random_permutation(random, x);
        for (const row_function<T>& f : row_functions<T>) {
            CAPTURE(f.name);
            REQUIRE(largest_ulp_between(permuted(result_of(f, by, x), order), result_of(f, by, permuted(x, order))) <=
                    2 * bound);
        }
    });
}

TEMPLATE_TEST_CASE("softmax, log_softmax: a larger logit never has a smaller result",
                   "[softmax][log_softmax][property]", float, double)
{
    using T = TestType;
    for_each_row<T>([](const leaf<T>& by, const row<T>& x) {
        std::vector<std::size_t> order(x.size());
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return x[a] < x[b]; });
        for (const row_function<T>& f : row_functions<T>) {
            const row<T> y = result_of(f, by, x);
            for (std::size_t k = 1; k < x.size(); ++k)
                if (!(y[order[k - 1]] <= y[order[k]])) {
                    CAPTURE(f.name, rows::hex(x[order[k - 1]]), rows::hex(x[order[k]]));
                    CAPTURE(rows::hex(y[order[k - 1]]), rows::hex(y[order[k]]));
                    REQUIRE(y[order[k - 1]] <= y[order[k]]);
                }
            REQUIRE(y.size() == x.size());
        }
    });
}

TEMPLATE_TEST_CASE("softmax, log_softmax: neighbouring logits keep their order", "[softmax][log_softmax][property]",
                   float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (std::size_t k = 0; k < 2000 * rows::volume(); ++k) {
        row<T> x(64, rows::to<T>(-std::pow(10, random.between(-6, std::is_same_v<T, float> ? 1.95 : 2.86))));
        for (std::size_t i = 1; i < x.size(); ++i) {
            x[i] = x[i - 1];
            bits::step_by(x[i], 1);
        }
        x.push_back(T(0));
        for (const leaf<T>& by : leaves<T>())
            for (const row_function<T>& f : row_functions<T>) {
                const row<T> y = result_of(f, by, x);
                for (std::size_t i = 1; i < x.size(); ++i)
                    if (!(y[i - 1] <= y[i])) {
                        CAPTURE(by.name(), f.name, i, seed_of_all, rows::hex(x[i - 1]), rows::hex(x[i]));
                        CAPTURE(rows::hex(y[i - 1]), rows::hex(y[i]));
                        REQUIRE(y[i - 1] <= y[i]);
                    }
                REQUIRE(y.size() == x.size());
            }
    }
}

TEMPLATE_TEST_CASE("softmax, log_softmax: equal logits have bitwise equal results", "[softmax][log_softmax][property]",
                   float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for_each_row<T>([&](const leaf<T>& by, const row<T>& x) {
        row<T> twice = x;
        twice.insert(twice.end(), x.begin(), x.end());
        const std::vector<std::size_t> order = random_permutation(random, twice);
        for (const row_function<T>& f : row_functions<T>) {
            const row<T> y = result_of(f, by, permuted(twice, order));
            row<T> first(x.size());
            std::vector<bool> seen(x.size());
            for (std::size_t k = 0; k < y.size(); ++k) {
                const std::size_t i = order[k] % x.size();
                if (seen[i]) {
                    CAPTURE(f.name, i, rows::hex(first[i]), rows::hex(y[k]));
                    REQUIRE(bits::same(first[i], y[k]));
                }
                first[i] = y[k];
                seen[i] = true;
            }
        }
    });
}

TEMPLATE_TEST_CASE("softmax: a row repeated k times has probabilities of one k-th within the bound",
                   "[softmax][property]", float, double)
{
    using T = TestType;
    for_each_row<T>([](const leaf<T>& by, const row<T>& x) {
        row<T> four_times;
        for (std::size_t k = 0; k < 4; ++k)
            four_times.insert(four_times.end(), x.begin(), x.end());
        const row<T> once = softmax_of(by, x);
        row<T> repeated = softmax_of(by, four_times);
        repeated.resize(x.size());
        for (std::size_t i = 0; i < x.size(); ++i)
            if (once[i] >= 8 * std::numeric_limits<T>::min()) // a quarter of a subnormal is rounded
                REQUIRE(ulp_between(static_cast<T>(once[i] / 4), repeated[i]) <= 2 * bound);
    });
}

// A vector leaf may sum a longer row in another order.
TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: an appended -inf changes nothing, on the generic leaf no bit",
                   "[softmax][log_softmax][logsumexp][property]", float, double)
{
    using T = TestType;
    for_each_row<T>([](const leaf<T>& by, const row<T>& x) {
        for (const std::size_t added : {1u, 2u, 17u}) {
            row<T> longer(x.size() + added); // not resized: GCC 12 for aarch64 sees 2^64 - 8 bytes set
            std::copy(x.begin(), x.end(), longer.begin());
            for (std::size_t i = x.size(); i < longer.size(); ++i)
                bits::put_minus_infinity(longer[i]);
            CAPTURE(added);
            for (const row_function<T>& f : row_functions<T>) {
                CAPTURE(f.name);
                const row<T> expected = result_of(f, by, x);
                row<T> y = result_of(f, by, longer);
                bool absent = true;
                for (std::size_t i = x.size(); i < y.size(); ++i)
                    absent = absent && is_absent(f, y[i]);
                REQUIRE(absent);
                y.resize(x.size());
                REQUIRE(largest_ulp_between(expected, y) <= 2 * bound);
                if (by.is_generic())
                    REQUIRE(bits::same(expected.data(), y.data(), x.size()));
            }
            T short_sum{}, long_sum{};
            by.logsumexp(x, short_sum);
            by.logsumexp(longer, long_sum);
            const auto scale = oracle::larger(oracle::magnitude(oracle::wide<T>(short_sum)), oracle::wide<T>(8));
            REQUIRE(metric::in_ulp_at<T>(long_sum, oracle::wide<T>(short_sum), scale) <= 4);
            if (by.is_generic())
                REQUIRE(bits::same(short_sum, long_sum));
        }
    });
}

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: the same row twice has the same bits", "[softmax][property]",
                   float, double)
{
    using T = TestType;
    for_each_row<T>([](const leaf<T>& by, const row<T>& x) {
        for (const row_function<T>& f : row_functions<T>)
            REQUIRE(bits::same(result_of(f, by, x).data(), result_of(f, by, x).data(), x.size()));
        T first{}, second{};
        by.logsumexp(x, first);
        by.logsumexp(x, second);
        REQUIRE(bits::same(first, second));
    });
}

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: all vector leaves give the same bits", "[softmax][property]",
                   float, double)
{
    using T = TestType;
    const std::vector<leaf<T>> all = leaves_of_same_bits<T>();
    random_source random(seed_of_all);
    for_each_row<T>([&](const leaf<T>& by, const row<T>& x) {
        if (!by.is_public())
            return;
        const rows::flags mask = rows::any_mask(random, std::span<const T>(x));
        const T temperature = rows::to<T>(std::pow(10, random.between(-2, 2)));
        T expected_sum{}, sum{};
        by.logsumexp(x, expected_sum);
        for (const leaf<T>& other : all) {
            CAPTURE(other.name());
            for (const row_function<T>& f : row_functions<T>) {
                REQUIRE(bits::same(result_of(f, by, x).data(), result_of(f, other, x).data(), x.size()));
                REQUIRE(bits::same(result_of(f, by, x, temperature, mask.span()).data(),
                                   result_of(f, other, x, temperature, mask.span()).data(), x.size()));
            }
            other.logsumexp(x, sum);
            REQUIRE(bits::same(expected_sum, sum));
        }
    });
}

// A max just past the reach of rows near 0 (2^16, 2^40) takes no difference yet, and sixteenths fall on a coarse grid: ties
// are common. So they are with an extreme temperature.
TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: all vector leaves give the same bits where x / t is large",
                   "[softmax][property]", float, double)
{
    using T = TestType;
    const std::vector<leaf<T>> all = leaves_of_same_bits<T>();
    random_source random(seed_of_all);
    const double reach = std::is_same_v<T, float> ? 65536 : 0x1p40;
    for (int k = 0; k < 4000 * static_cast<int>(rows::volume()); ++k) {
        row<T> x(1 + random.below(100));
        const double top = reach * random.between(1, 1.03) * random.sign();
        const T temperature = rows::to<T>(k % 2 == 0 ? 1 : std::pow(2, random.between(-100, 100)));
        for (T& logit : x)
            logit = rows::to<T>((top - random.between(0, 90)) * static_cast<double>(temperature));
        T expected_sum{}, sum{};
        all[0].logsumexp(x, expected_sum);
        for (const leaf<T>& other : all) {
            CAPTURE(other.name(), temperature, rows::hex(std::span<const T>(x)));
            for (const row_function<T>& f : row_functions<T>)
                REQUIRE(bits::same(result_of(f, all[0], x, temperature).data(),
                                   result_of(f, other, x, temperature).data(), x.size()));
            other.logsumexp(x, sum);
            REQUIRE(bits::same(expected_sum, sum));
        }
    }
}

TEMPLATE_TEST_CASE("softmax: a temperature is a division of the logits, where that is exact", "[softmax][temperature]",
                   float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (const T temperature : {T(0.125), T(0.5), T(2), T(1024)})
        for (const std::size_t n : lengths) {
            row<T> x(n), divided(n);
            for (std::size_t i = 0; i < n; ++i) {
                divided[i] = rows::to<T>(10 * random.normal());
                x[i] = divided[i] * temperature;
            }
            for (const leaf<T>& by : leaves<T>())
                for (const row_function<T>& f : row_functions<T>) {
                    CAPTURE(temperature, n, by.name(), f.name, seed_of_all);
                    REQUIRE(largest_ulp_between(result_of(f, by, x, temperature), result_of(f, by, divided)) <=
                            2 * bound);
                }
        }
}

// --- logsumexp --------------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("logaddexp: it is logsumexp of the two, in either order", "[logsumexp][property]", float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (const rows::kind<T>& kind : rows::logit_kinds<T>())
        for (std::size_t k = 0; k < 200 * rows::volume(); ++k) {
            const row<T> x = rows::make(kind, 2, random.next());
            const T sum = smx::logaddexp(x[0], x[1]);
            const T swapped = smx::logaddexp(x[1], x[0]);
            const T of_row = smx::logsumexp(x);
            const T scale = std::max({std::fabs(std::max(x[0], x[1])), std::fabs(sum), T(1)});
            CAPTURE(kind.name, rows::hex(std::span<const T>(x)), rows::hex(sum), rows::hex(swapped), rows::hex(of_row));
            REQUIRE(metric::in_ulp_at<T>(sum, oracle::wide<T>(of_row), oracle::wide<T>(scale)) <= 4);
            REQUIRE(metric::in_ulp_at<T>(sum, oracle::wide<T>(swapped), oracle::wide<T>(scale)) <= 4);
        }
}

TEMPLATE_TEST_CASE("logsumexp: adding a constant to every logit adds it to the result", "[logsumexp][property]", float,
                   double)
{
    using T = TestType;
    using W = oracle::wide<T>;
    random_source random(seed_of_all);
    for (const std::size_t n : lengths)
        for (std::size_t k = 0; k < 20 * rows::volume(); ++k) {
            row<T> x(n), shifted(n);
            const auto shift = static_cast<T>(static_cast<int>(random.below(2047)) - 1023);
            for (std::size_t i = 0; i < n; ++i) {
                x[i] = static_cast<T>(static_cast<double>(random.below(1u << 15)) * 0x1p-8 - 64);
                shifted[i] = x[i] + shift;
            }
            for (const leaf<T>& by : leaves<T>()) {
                T before{}, after{};
                by.logsumexp(x, before);
                by.logsumexp(shifted, after);
                const W scale = oracle::larger(oracle::magnitude(W(after)), oracle::magnitude(W(before))) +
                                W(shift < 0 ? -shift : shift) + W(64);
                CAPTURE(n, by.name(), rows::hex(before), rows::hex(after), shift, seed_of_all);
                REQUIRE(metric::in_ulp_at<T>(after, W(before) + W(shift), scale) <= 4);
            }
        }
}

TEMPLATE_TEST_CASE("logsumexp: it lies between the maximum and the maximum plus log n", "[logsumexp][property]", float,
                   double)
{
    using T = TestType;
    for_each_row<T>([](const leaf<T>& by, const row<T>& x) {
        T result{};
        by.logsumexp(x, result);
        const T max = *std::max_element(x.begin(), x.end());
        REQUIRE(result >= max);
        const auto limit = oracle::wide<T>(max) + oracle::log1p_of(oracle::wide<T>(static_cast<double>(x.size() - 1)));
        const auto scale = oracle::larger(oracle::magnitude(oracle::wide<T>(max)), limit - oracle::wide<T>(max));
        REQUIRE(metric::as_double((oracle::wide<T>(result) - limit) / metric::ulp_of<T>(scale)) <= 2);
    });
}

// --- masks ------------------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("softmax, log_softmax: masking an entry is removing it", "[softmax][log_softmax][mask]", float,
                   double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (std::size_t n = 1; n <= 70; ++n)
        for (std::size_t k = 0; k < n; ++k) {
            const T temperature = random.one_in(2) ? T(1) : static_cast<T>(random.between(0.1, 10));
            row<T> x(n);
            rows::flags mask(n);
            for (T& each : x)
                each = rows::to<T>(20 * random.normal());
            mask[k] = false;
            for (std::size_t i = 0; i < n; ++i) // often with others
                if (k % 2 == 1 && random.one_in(3))
                    mask[i] = false;
            row<T> kept;
            for (std::size_t i = 0; i < n; ++i)
                if (mask[i])
                    kept.push_back(x[i]);
            row<T> as_minus_infinity = x;
            for (std::size_t i = 0; i < n; ++i)
                if (!mask[i])
                    bits::put_minus_infinity(as_minus_infinity[i]);
            for (const leaf<T>& by : leaves<T>())
                for (const row_function<T>& f : row_functions<T>) {
                    CAPTURE(n, k, by.name(), f.name, rows::hex(temperature), seed_of_all);
                    const row<T> masked = result_of(f, by, x, temperature, mask.span());
                    const row<T> removed = result_of(f, by, kept, temperature);
                    row<T> taken;
                    for (std::size_t i = 0; i < n; ++i) {
                        if (mask[i])
                            taken.push_back(masked[i]);
                        else
                            REQUIRE(is_absent(f, masked[i]));
                    }
                    REQUIRE(largest_ulp_between(taken, removed) <= 2 * bound);
                    if (by.is_generic())
                        REQUIRE(bits::same(taken.data(), removed.data(), taken.size()));
                    // On every leaf: a masked entry and -inf are one thing, as long as anything is left.
                    if (!kept.empty())
                        REQUIRE(bits::same(masked.data(), result_of(f, by, as_minus_infinity, temperature).data(), n));
                }
        }
}

TEMPLATE_TEST_CASE("softmax, log_softmax: a mask that lets everything through changes no bit", "[softmax][mask]", float,
                   double)
{
    using T = TestType;
    for_each_row<T>([](const leaf<T>& by, const row<T>& x) {
        const rows::flags mask(x.size());
        for (const row_function<T>& f : row_functions<T>)
            REQUIRE(bits::same(result_of(f, by, x).data(), result_of(f, by, x, T(1), mask.span()).data(), x.size()));
    });
}

// --- long rows --------------------------------------------------------------------------------------------------

TEST_CASE("softmax, log_softmax, logsumexp: more than 2^24 equal floats are exactly 1/n within the bound",
          "[softmax][long]")
{
    constexpr std::size_t n = (1u << 24) + 12345;
    const long double exact = 1.0L / static_cast<long double>(n);
    for (const leaf<float>& by : leaves<float>()) {
        CAPTURE(by.name());
        row<float> x(n, 0.1f);
        float sum = 0;
        by.logsumexp(x, sum);
        const long double log_n = oracle::log1p_of(static_cast<long double>(n - 1));
        CHECK(metric::logsumexp<float>(sum, static_cast<long double>(0.1f) + log_n, log_n) <= 2);
        row<float> y(n);
        by.log_softmax(x, y);
        by.softmax(x, x);
        double worst = 0, worst_log = 0;
        for (std::size_t i = 0; i < n; i += i < 1000 || i + 2000 > n ? 1 : 97) {
            worst = std::max(worst, metric::softmax<float>(x[i], exact));
            worst_log = std::max(worst_log, metric::log_softmax<float>(y[i], -log_n));
        }
        CHECK(worst <= bound);
        CHECK(worst_log <= bound);
    }
}

// e^(x - max) and their sum, in long double; entries of -inf are 0.
struct long_row {
    long double max = -std::numeric_limits<long double>::infinity(), sum = 0;
};

template <class T>
long_row sum_of_long_row(const row<T>& x)
{
    long_row out;
    for (const T& logit : x)
        out.max = std::max(out.max, static_cast<long double>(logit));
    for (const T& logit : x)
        out.sum += std::exp(static_cast<long double>(logit) - out.max);
    return out;
}

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: a row read in blocks is within the bounds wherever its "
                   "largest entry is",
                   "[softmax][log_softmax][long]", float, double)
{
    using T = TestType;
    const std::size_t n =
        GENERATE(std::size_t{5 * 4096 + 77}, std::size_t{(1u << 18) + 4096 + 77}, std::size_t{(1u << 22) + 4096 + 77});
    CAPTURE(n);
    const T infinity = std::numeric_limits<T>::infinity(), far = std::is_same_v<T, float> ? T(-1e6f) : T(-1e13);
    random_source random(seed_of_all);
    row<T> normal(n);
    for (T& logit : normal)
        logit = rows::to<T>(5 * random.normal());
    for (int kind = 0; kind < 9; ++kind) {
        row<T> x = normal;
        const auto fill = [&](std::size_t from, std::size_t count, T logit) {
            std::fill_n(x.begin() + static_cast<std::ptrdiff_t>(from), count, logit);
        };
        if (kind == 1) // the sum of what came before is next to nothing, twice
            x[n - 1] = x[n / 2] = T(60);
        else if (kind == 2) { // blocks of which nothing counts; the last is no whole one
            fill(4096, 4096, T(-400));
            fill(n - 77, 77, std::is_same_v<T, float> ? T(-222) : T(-355)); // e^0 would there be a signalling NaN
        } else if (kind == 3)
            fill(3 * 4096 + 5, 3000, -infinity);
        else if (kind == 4) // blocks of which no exponential counts
            fill(8192, 4096, -infinity);
        else if (kind == 5)
            fill(12288, 4096, far);
        else if (kind == 6) // blocks far below the largest entry: probabilities down to the subnormal numbers and 0
            for (std::size_t i = 0; i < 5 * 4096; ++i)
                x[i] -= static_cast<T>(i / 4096) * (std::is_same_v<T, float> ? T(25) : T(180));
        else if (kind == 7) // read as all other rows are
            fill(0, 4096, -infinity);
        else if (kind == 8)
            x[n / 2] = -far;
        const long_row exact = sum_of_long_row(x);
        const long double log_sum = std::log(exact.sum);
        row<T> first;
        for (const leaf<T>& by : leaves<T>()) {
            CAPTURE(by.name(), kind);
            row<T> p(n + 3), y(n);
            const std::span<T> probs = std::span<T>(p).subspan(3); // not at the start of a cache line
            std::feclearexcept(FE_ALL_EXCEPT);
            by.softmax(x, probs);
            by.log_softmax(x, y);
            REQUIRE(std::fetestexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW) == 0);
            double worst = 0, worst_log = 0;
            for (std::size_t i = 0; i < n; i += i < 20000 || i + 9000 > n || i / 64 == n / 128 ? 1u : 97u) {
                const long double d = static_cast<long double>(x[i]) - exact.max;
                const auto prob = static_cast<oracle::wide<T>>(std::exp(d) / exact.sum);
                worst = std::max(worst, metric::softmax<T>(probs[i], prob));
                if (x[i] == -infinity)
                    REQUIRE(y[i] == -infinity);
                else
                    worst_log =
                        std::max(worst_log, metric::log_softmax<T>(y[i], static_cast<oracle::wide<T>>(d - log_sum)));
            }
            CHECK(worst <= bound);
            CHECK(worst_log <= bound);
            T sum = 0;
            by.logsumexp(x, sum);
            const long double result = exact.max + log_sum;
            CHECK(metric::logsumexp<T>(
                      sum, static_cast<oracle::wide<T>>(result),
                      static_cast<oracle::wide<T>>(std::max({std::abs(exact.max), log_sum, std::abs(result)}))) <= 2);
            if (by.name() == std::string("avx2"))
                first = p;
            if (by.name() == std::string("avx512"))
                REQUIRE(std::memcmp(first.data() + 3, probs.data(), n * sizeof(T)) == 0);
            row<T> in_place = x;
            by.softmax(in_place, in_place);
            REQUIRE(std::memcmp(in_place.data(), probs.data(), n * sizeof(T)) == 0);
            if (kind == 0) {
                bits::put_nan(x[n / 3]);
                by.softmax(x, probs);
                for (std::size_t i = 0; i < n; i += 997)
                    REQUIRE(bits::is_nan(probs[i]));
                x[n / 3] = normal[n / 3];
            }
        }
    }
}

// One entry holds nearly all of the sum, and its exponential is rounded the other way than that of entry 1.
template <class T>
struct one_heavy_entry {
    T first, second, least;
    unsigned seed;
};
template <class T>
std::vector<one_heavy_entry<T>> heavy_entries()
{
    if constexpr (std::is_same_v<T, float>)
        return {{0x1.640232p-1f, -0x1.e7eb6cp+3f, 12, 271}, {0x1.79d544p-11f, -0x1.791068p+4f, 12, 89}};
    else
        return {{0x1.6c68e99d16102p-1, -0x1.d1b2a5cbb627ap+5, 31, 883},
                {0x1.2a96f6b49f7c9p-6, -0x1.25ce799ea86bap+5, 31, 6}};
}

TEMPLATE_TEST_CASE("softmax: a row read in blocks in which one entry holds nearly all of the sum", "[softmax][long]",
                   float, double)
{
    using T = TestType;
    for (const one_heavy_entry<T>& each : heavy_entries<T>()) {
        std::mt19937 random(each.seed);
        row<T> x(8200), p(x.size());
        for (T& logit : x)
            logit = static_cast<T>(static_cast<double>(-each.least) -
                                   static_cast<double>(each.least) * (static_cast<double>(random()) * 0x1p-32));
        x[0] = each.first;
        x[1] = each.second;
        const long_row exact = sum_of_long_row(x);
        const long double prob = std::exp(static_cast<long double>(x[1]) - exact.max) / exact.sum;
        for (const leaf<T>& by : leaves<T>()) {
            CAPTURE(by.name(), each.seed);
            by.softmax(x, p);
            CHECK(metric::softmax<T>(p[1], static_cast<oracle::wide<T>>(prob)) <= bound);
        }
    }
}

// A largest entry near 0 and few different others, whose sum T has a log1p just below a power of 2: an error of T counts in full.
template <class T>
struct few_terms {
    std::size_t n;
    T max;
    std::size_t count;
    T term;
    std::size_t second_count;
    T second;
};
template <class T>
std::vector<few_terms<T>> rows_of_few_terms()
{
    if constexpr (std::is_same_v<T, float>)
        return {{60, -0x1.f26a46p-13f, 2, -0x1.363f72p+2f, 40, -0x1.dc3b08p+3f},
                {63, -0x1.0e5642p-11f, 14, -0x1.2f4608p+2f, 31, -0x1.095864p+3f},
                {120, -0x1.1539d2p-5f, 16, -0x1.06ac9cp+2f, 22, -0x1.2a9ab2p+3f},
                {182, -0x1.e5f062p-12f, 16, -0x1.8f3fc6p+2f, 32, -0x1.9a0176p+3f},
                {654, 0x1.da5b5p-11f, 604, -0x1.cdca3cp+3f, 1, -0x1.626258p+1f}};
    else
        return {{19, -0x1.66d92f61b9958p-8, 12, -0x1.f732d5a715296p+2, 1, -0x1.09985c96b91d6p+1},
                {36, 0, 2, -0x1.b92f0e61c966cp+1, 12, -0x1.536a1a71d8cf5p+3},
                {65, -0x1.e1565ecd8715bp-6, 60, -0x1.31a87577e1332p+3, 1, -0x1.0aa092d646db2p+1},
                {464, -0x1.599e5be3df24dp-7, 1, -0x1.62c741bb88dd4p+1, 407, -0x1.d1b0ef3d1a6c5p+3}};
}

TEMPLATE_TEST_CASE("logsumexp: few different terms are within 2 ULP", "[logsumexp]", float, double)
{
    using T = TestType;
    for (const few_terms<T>& each : rows_of_few_terms<T>()) {
        row<T> x(each.n, std::is_same_v<T, float> ? T(-200) : T(-2000));
        x[0] = each.max;
        std::fill_n(x.begin() + 1, each.count, each.term);
        std::fill_n(x.begin() + 1 + static_cast<std::ptrdiff_t>(each.count), each.second_count, each.second);
        long double tail = 0; // 1 + tail would lose digits of it
        for (std::size_t i = 1; i < x.size(); ++i)
            tail += std::exp(static_cast<long double>(x[i]) - static_cast<long double>(x[0]));
        const long double max = static_cast<long double>(x[0]), log_sum = std::log1p(tail), result = max + log_sum;
        for (const leaf<T>& by : leaves<T>()) {
            CAPTURE(by.name(), each.n);
            T sum = 0;
            by.logsumexp(x, sum);
            CHECK(metric::logsumexp<T>(
                      sum, static_cast<oracle::wide<T>>(result),
                      static_cast<oracle::wide<T>>(std::max({std::abs(max), log_sum, std::abs(result)}))) <= 2);
        }
    }
}

// --- memory -----------------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("softmax, log_softmax: in place and out of place have the same bits",
                   "[softmax][log_softmax][memory]", float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for_each_row<T>([&](const leaf<T>& by, const row<T>& x) {
        const rows::flags mask = rows::any_mask(random, std::span<const T>(x));
        for (const row_function<T>& f : row_functions<T>)
            for (const bool masked : {false, true}) {
                CAPTURE(f.name, masked);
                const std::span<const bool> which = masked ? mask.span() : std::span<const bool>();
                row<T> y = x;
                (by.*f.run)(y, y, T(0.75), which);
                REQUIRE(bits::same(y.data(), result_of(f, by, x, T(0.75), which).data(), x.size()));
            }
    });
}

namespace {

// A row somewhere inside memory that is checked afterwards: nothing around it may change.
template <class T>
class guarded_row {
public:
    static constexpr std::size_t margin = 32;

    guarded_row(std::size_t n, std::size_t offset) : n_(n), offset_(offset), all_(n + offset + 2 * margin)
    {
        std::memset(all_.data(), pattern, all_.size() * sizeof(T));
    }

    std::span<T> span() { return {all_.data() + margin + offset_, n_}; }

    bool intact() const
    {
        const auto* bytes = reinterpret_cast<const unsigned char*>(all_.data());
        const std::size_t begin = (margin + offset_) * sizeof(T), end = begin + n_ * sizeof(T);
        for (std::size_t i = 0; i < all_.size() * sizeof(T); ++i)
            if ((i < begin || i >= end) && bytes[i] != pattern)
                return false;
        return true;
    }

private:
    static constexpr unsigned char pattern = 0xa5;
    std::size_t n_, offset_;
    std::vector<T> all_;
};

} // namespace

TEMPLATE_TEST_CASE(
    "softmax, log_softmax: every length at every offset has the same bits and leaves its neighbours alone",
    "[softmax][log_softmax][memory]", float, double)
{
    using T = TestType;
    for (const leaf<T>& by : leaves<T>())
        for (const row_function<T>& f : row_functions<T>)
            for (std::size_t n = 0; n <= 300; ++n) {
                random_source random(mixed(seed_of_all, n));
                row<T> x(n);
                for (T& each : x)
                    each = rows::to<T>(10 * random.normal());
                const row<T> expected = result_of(f, by, x);
                for (std::size_t offset = 0; offset < 16; ++offset) {
                    guarded_row<T> in(n, offset), out(n, 15 - offset), both(n, offset);
                    std::copy(x.begin(), x.end(), in.span().begin());
                    std::copy(x.begin(), x.end(), both.span().begin());
                    (by.*f.run)(in.span(), out.span(), T(1), {});
                    (by.*f.run)(both.span(), both.span(), T(1), {});
                    CAPTURE(by.name(), f.name, n, offset, seed_of_all);
                    REQUIRE(bits::same(out.span().data(), expected.data(), n));
                    REQUIRE(bits::same(both.span().data(), expected.data(), n));
                    REQUIRE(bits::same(in.span().data(), x.data(), n));
                    REQUIRE(in.intact());
                    REQUIRE(out.intact());
                    REQUIRE(both.intact());
                }
            }
}

#if __has_include(<sys/mman.h>)

namespace {

// A page between two pages that nobody may touch.
class guarded_page {
public:
    guarded_page() : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE)))
    {
        void* all = mmap(nullptr, 3 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(all != MAP_FAILED);
        base_ = static_cast<unsigned char*>(all);
        REQUIRE(mprotect(base_ + page_, page_, PROT_READ | PROT_WRITE) == 0);
    }
    guarded_page(const guarded_page&) = delete;
    guarded_page& operator=(const guarded_page&) = delete;
    ~guarded_page() { munmap(base_, 3 * page_); }

    // n elements that end, or begin, where the page does
    template <class E>
    std::span<E> row(std::size_t n, bool at_end)
    {
        unsigned char* first = base_ + page_ + (at_end ? page_ - n * sizeof(E) : 0);
        return {reinterpret_cast<E*>(first), n};
    }

private:
    std::size_t page_;
    unsigned char* base_ = nullptr;
};

} // namespace

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: nothing is read or written beyond a row", "[softmax][memory]",
                   float, double)
{
    using T = TestType;
    guarded_page in_page, out_page, mask_page;
    for (const leaf<T>& by : leaves<T>())
        for (std::size_t n = 1; n <= 130; ++n)
            for (const bool at_end : {false, true}) {
                const std::span<T> in = in_page.row<T>(n, at_end), out = out_page.row<T>(n, at_end);
                const std::span<bool> mask = mask_page.row<bool>(n, at_end);
                random_source random(mixed(seed_of_all, n));
                for (std::size_t i = 0; i < n; ++i) {
                    in[i] = rows::to<T>(10 * random.normal());
                    mask[i] = !random.one_in(3);
                }
                const row<T> x(in.begin(), in.end());
                CAPTURE(by.name(), n, at_end, seed_of_all);
                for (const row_function<T>& f : row_functions<T>) {
                    (by.*f.run)(in, out, T(1), {});
                    REQUIRE(bits::same(out.data(), result_of(f, by, x).data(), n));
                    (by.*f.run)(in, out, T(2), mask);
                    REQUIRE(bits::same(out.data(), result_of(f, by, x, T(2), mask).data(), n));
                    (by.*f.run)(in, in, T(1), {});
                    std::copy(x.begin(), x.end(), in.begin());
                }
                T inside{}, outside{};
                by.logsumexp(in, inside);
                by.logsumexp(x, outside);
                REQUIRE(bits::same(inside, outside));
            }
}

TEMPLATE_TEST_CASE("softmax_jvp and all the others: nothing is read or written beyond a row", "[jacobian][memory]",
                   float, double)
{
    using T = TestType;
    guarded_page probs_page, tangent_page, cotangent_page, out_page;
    for (const leaf<T>& by : leaves<T>())
        for (std::size_t n = 1; n <= 130; ++n)
            for (const bool at_end : {false, true}) {
                const std::span<T> probs = probs_page.row<T>(n, at_end), out = out_page.row<T>(n, at_end);
                const std::span<T> v = tangent_page.row<T>(n, at_end), u = cotangent_page.row<T>(n, at_end);
                random_source random(mixed(seed_of_all, n));
                for (std::size_t i = 0; i < n; ++i) {
                    probs[i] = rows::to<T>(10 * random.normal());
                    v[i] = rows::to<T>(random.normal());
                    u[i] = rows::to<T>(random.normal());
                }
                by.softmax(probs, probs);
                const row<T> p(probs.begin(), probs.end()), tangent(v.begin(), v.end()), cotangent(u.begin(), u.end());
                row<T> expected(n);
                CAPTURE(by.name(), n, at_end, seed_of_all);
                by.softmax_jvp(probs, v, out);
                by.softmax_jvp(p, tangent, expected);
                REQUIRE(bits::same(out.data(), expected.data(), n));
                by.softmax_vjp(probs, u, out);
                by.softmax_vjp(p, cotangent, expected);
                REQUIRE(bits::same(out.data(), expected.data(), n));
                by.log_softmax_jvp(probs, v, out);
                by.log_softmax_jvp(p, tangent, expected);
                REQUIRE(bits::same(out.data(), expected.data(), n));
                by.log_softmax_vjp(probs, u, out);
                by.log_softmax_vjp(p, cotangent, expected);
                REQUIRE(bits::same(out.data(), expected.data(), n));
                by.softmax_hvp(probs, u, v, out);
                by.softmax_hvp(p, cotangent, tangent, expected);
                REQUIRE(bits::same(out.data(), expected.data(), n));
                if (n * n * sizeof(T) <= 4096) {
                    const std::span<T> J = out_page.row<T>(n * n, at_end);
                    row<T> expected_J(n * n);
                    by.softmax_jacobian(probs, J);
                    by.softmax_jacobian(p, expected_J);
                    REQUIRE(bits::same(J.data(), expected_J.data(), n * n));
                    by.log_softmax_jacobian(probs, J);
                    by.log_softmax_jacobian(p, expected_J);
                    REQUIRE(bits::same(J.data(), expected_J.data(), n * n));
                }
            }
}

#endif
