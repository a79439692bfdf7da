// SPDX-License-Identifier: BSL-1.0
// scalars.test.cpp: scalars other than float and double: long double, a number that has only what the concept asks for,
// dual numbers, boost::multiprecision with and without expression templates.
#include <smx/jacobian.hpp>
#include <smx/softmax.hpp>

#include "catch.hpp"
#include "oracle.hpp"

#if __has_include(<boost/multiprecision/cpp_bin_float.hpp>)
#define TESTS_HAVE_BOOST 1
#include <boost/multiprecision/cpp_bin_float.hpp>
#else
#define TESTS_HAVE_BOOST 0
#endif

#include <algorithm>   // max, max_element
#include <array>       // array
#include <cmath>       // exp, fabs, isnan, log
#include <concepts>    // same_as
#include <cstddef>     // size_t
#include <cstdint>     // uint64_t
#include <limits>      // numeric_limits
#include <span>        // span
#include <stdexcept>   // invalid_argument
#include <string>      // string
#include <tuple>       // tuple
#include <type_traits> // is_arithmetic_v
#include <vector>      // vector

namespace {

// a / b, by 0 too: the way to infinity and NaN of a type that has no other
template <class T>
__attribute__((no_sanitize("float-divide-by-zero"))) T ratio(const T& a, const T& b)
{
    return a / b;
}

// A number that has what the concept asks for and nothing else: no default, no ==, no unary minus, no double in or out.
template <bool IsExplicit>
class least {
public:
    least() = delete;
    explicit(IsExplicit) least(int value) : value_(value) {}
    template <class Other>
        requires(std::is_arithmetic_v<Other> && !std::same_as<Other, int>)
    least(Other) = delete;

    friend least operator+(const least& a, const least& b) { return of(a.value_ + b.value_); }
    friend least operator-(const least& a, const least& b) { return of(a.value_ - b.value_); }
    friend least operator*(const least& a, const least& b) { return of(a.value_ * b.value_); }
    friend least operator/(const least& a, const least& b) { return of(ratio(a.value_, b.value_)); }
    friend bool operator<(const least& a, const least& b) { return a.value_ < b.value_; }
    friend least exp(const least& a) { return of(std::exp(a.value_)); }
    friend least log(const least& a)
    {
        logs_of_zero += a.value_ == 0;
        return of(std::log(a.value_));
    }

    static least of(double value)
    {
        least out(0);
        out.value_ = value;
        if (std::isnan(value))
            ++nans_computed;
        return out;
    }
    double value() const { return value_; }

    static inline int nans_computed = 0; // what went through an operation, not what was copied
    static inline int logs_of_zero = 0;

private:
    double value_;
};

// value + slope e, e^2 = 0: carries a directional derivative. Has neither log1p nor numeric_limits.
template <class T>
struct dual {
    T value, slope;

    dual(int constant) : value(constant), slope(0) {}
    dual(T value_, T slope_) : value(value_), slope(slope_) {}

    friend dual operator+(const dual& a, const dual& b) { return {a.value + b.value, a.slope + b.slope}; }
    friend dual operator-(const dual& a, const dual& b) { return {a.value - b.value, a.slope - b.slope}; }
    friend dual operator*(const dual& a, const dual& b)
    {
        return {a.value * b.value, a.slope * b.value + a.value * b.slope};
    }
    friend dual operator/(const dual& a, const dual& b)
    {
        const T quotient = ratio(a.value, b.value);
        return {quotient, ratio(T(a.slope - quotient * b.slope), b.value)};
    }
    friend bool operator<(const dual& a, const dual& b) { return a.value < b.value; }
    friend dual exp(const dual& a)
    {
        using std::exp;
        return {exp(a.value), exp(a.value) * a.slope};
    }
    friend dual log(const dual& a)
    {
        using std::log;
        return {log(a.value), ratio(a.slope, a.value)};
    }
};

// ---- how the types are judged: in a type of twice their digits -----------------------------------------------------

template <class T>
struct exactly {
    using type = oracle::quad;
    static constexpr int digits = std::numeric_limits<double>::digits;
    static constexpr int limit = 16; // in units of the last digit; nothing is promised for these types
    static type of(const least<false>& x) { return type(x.value()); }
    static type of(const least<true>& x) { return type(x.value()); }
    static type of(const dual<double>& x) { return type(x.value); }
    static type exp(const type& x) { return oracle::exp_of(x); }
    static type log(const type& x) { return oracle::log1p_of(x - 1); }
};

template <>
struct exactly<long double> : exactly<double> {
    static constexpr int digits = std::numeric_limits<long double>::digits;
    static type of(long double x) { return type(x); }
};

#if TESTS_HAVE_BOOST
namespace multiprecision = boost::multiprecision;
using fifty_digits = multiprecision::cpp_bin_float_50;
using fifty_digits_as_expressions = multiprecision::number<multiprecision::cpp_bin_float<50>, multiprecision::et_on>;

template <class T>
    requires(std::same_as<T, fifty_digits> || std::same_as<T, fifty_digits_as_expressions>)
struct exactly<T> {
    using type = multiprecision::cpp_bin_float_100;
    static constexpr int digits = std::numeric_limits<T>::digits;
    static constexpr int limit = 64; // its exp alone is off by 30
    static type of(const T& x) { return type(x); }
    static type exp(const type& x) { return multiprecision::exp(x); }
    static type log(const type& x) { return multiprecision::log(x); }
};

using scalars =
    std::tuple<long double, least<false>, least<true>, dual<double>, fifty_digits, fifty_digits_as_expressions>;
#else
using scalars = std::tuple<long double, least<false>, least<true>, dual<double>>;
#endif

template <class T>
using exact_row = std::vector<typename exactly<T>::type>;

template <class T>
exact_row<T> exact(const std::vector<T>& row)
{
    exact_row<T> out;
    for (const T& x : row)
        out.push_back(exactly<T>::of(x));
    return out;
}

template <class E>
E magnitude(const E& x)
{
    return x < 0 ? E(-x) : x;
}

// |computed - exact| / scale, in units of 2^-digits: the size of one rounding error
template <class T, class E>
double error(const T& computed, const E& expected, const E& scale)
{
    E difference = magnitude(E(exactly<T>::of(computed) - expected));
    if (difference == 0)
        return 0;
    for (int i = 0; i < exactly<T>::digits; ++i)
        difference = difference * 2;
    return static_cast<double>(E(difference / scale));
}

template <class T>
double error(const std::vector<T>& computed, const exact_row<T>& expected, const exact_row<T>& scale)
{
    double worst = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const double each = error(computed[i], expected[i], scale[i]);
        worst = each <= worst ? worst : each; // a NaN stays
    }
    return worst;
}

template <class T>
double relative_error(const std::vector<T>& computed, const exact_row<T>& expected)
{
    exact_row<T> scale;
    for (const auto& x : expected)
        scale.push_back(magnitude(x));
    return error(computed, expected, scale);
}

// ---- rows -----------------------------------------------------------------------------------------------------------

// Multiples of 1/64 in [-limit, limit]: the same number in all types.
class random_numbers {
public:
    explicit random_numbers(std::uint64_t seed) : state_(seed) {}

    template <class T>
    std::vector<T> row(std::size_t n, int limit)
    {
        std::vector<T> out;
        for (std::size_t i = 0; i < n; ++i)
            out.push_back(T(T(below(128 * limit + 1) - 64 * limit) / T(64)));
        return out;
    }
    int below(int limit) // splitmix64
    {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return static_cast<int>((z ^ (z >> 31)) % static_cast<std::uint64_t>(limit));
    }

private:
    std::uint64_t state_;
};

template <class T>
std::vector<T> zeros(std::size_t n)
{
    return std::vector<T>(n, T(0));
}

const std::size_t row_lengths[] = {1, 2, 3, 4, 5, 8, 33};

} // namespace

// The textbook formulas, in a type of twice the digits.
TEMPLATE_LIST_TEST_CASE("scalars: softmax, log_softmax and logsumexp are those of the textbook", "[scalars]", scalars)
{
    using T = TestType;
    using in = exactly<T>;
    using E = typename in::type;
    random_numbers random(1);
    for (const std::size_t n : row_lengths) {
        for (int variant = 0; variant < 12; ++variant) {
            const bool saturated = variant % 3 == 1, tied = variant % 3 == 2, cooled = variant % 4 == 3;
            auto logits = random.row<T>(n, 4);
            const auto top = static_cast<std::size_t>(random.below(static_cast<int>(n)));
            logits[top] = saturated ? T(30) : tied ? T(4) : logits[top];
            if (tied)
                logits[static_cast<std::size_t>(random.below(static_cast<int>(n)))] = T(4);
            const T temperature = cooled ? T(T(3) / T(2)) : T(1);

            const auto x = exact(logits);
            const E max = *std::max_element(x.begin(), x.end());
            exact_row<T> probs, log_probs;
            E sum = 0;
            for (const E& each : x)
                sum += in::exp(E((each - max) / in::of(temperature)));
            for (const E& each : x) {
                log_probs.push_back((each - max) / in::of(temperature) - in::log(sum));
                probs.push_back(in::exp(log_probs.back()));
            }
            const E normaliser = max + in::log(sum), normaliser_scale = magnitude(normaliser) + 1;

            auto out = zeros<T>(n);
            CAPTURE(n, variant);
            smx::softmax(logits, out, {.temperature = temperature});
            CHECK(relative_error(out, probs) <= in::limit);
            smx::log_softmax(logits, out, {.temperature = temperature});
            CHECK(relative_error(out, log_probs) <= in::limit);
            if (cooled)
                continue;
            CHECK(error(smx::logsumexp(logits), normaliser, normaliser_scale) <= in::limit);
            if (n == 2)
                CHECK(error(smx::logaddexp(logits[0], logits[1]), normaliser, normaliser_scale) <= in::limit);
        }
    }
}

TEMPLATE_LIST_TEST_CASE("scalars: the Jacobians and their products are those of the textbook", "[scalars]", scalars)
{
    using T = TestType;
    using in = exactly<T>;
    using E = typename in::type;
    random_numbers random(2);
    for (const std::size_t n : row_lengths) {
        for (int variant = 0; variant < 6; ++variant) {
            auto logits = random.row<T>(n, 4);
            if (variant % 2 == 1)
                logits[static_cast<std::size_t>(random.below(static_cast<int>(n)))] = T(30);
            auto probs = zeros<T>(n);
            smx::softmax(logits, probs);
            const auto cotangent = random.row<T>(n, 2), tangent = random.row<T>(n, 2);

            const auto p = exact(probs), u = exact(cotangent), v = exact(tangent);
            E s = 0, u_sum = 0, u_size = 0, u_mean = 0, v_mean = 0;
            for (std::size_t j = 0; j < n; ++j) {
                s += p[j];
                u_sum += u[j];
                u_size += magnitude(u[j]);
                u_mean += p[j] * u[j];
                v_mean += p[j] * v[j];
            }
            E h_mean = 0, largest_u = 0, largest_v = 0;
            exact_row<T> h;
            for (std::size_t j = 0; j < n; ++j) {
                const E u_centred = u[j] - u_mean / s, v_centred = v[j] - v_mean / s;
                largest_u = std::max(largest_u, magnitude(u_centred));
                largest_v = std::max(largest_v, magnitude(v_centred));
                h.push_back(u_centred * v_centred);
                h_mean += p[j] * h[j];
            }
            exact_row<T> jacobian, log_jacobian, jvp, vjp, log_jvp, log_vjp, hvp;
            exact_row<T> jvp_scale, vjp_scale, log_jvp_scale, log_vjp_scale, hvp_scale;
            for (std::size_t i = 0; i < n; ++i) {
                E tangent_scale = 0, cotangent_scale = 0;
                for (std::size_t j = 0; j < n; ++j) {
                    jacobian.push_back(i == j ? E(p[i] * (s - p[i])) : E(-(p[i] * p[j])));
                    log_jacobian.push_back(i == j ? E(s - p[i]) : E(-p[j]));
                    if (i != j) {
                        tangent_scale += p[j] * (magnitude(v[i]) + magnitude(v[j]));
                        cotangent_scale += p[j] * (magnitude(u[i]) + magnitude(u[j]));
                    }
                }
                jvp.push_back(p[i] * (s * v[i] - v_mean));
                vjp.push_back(p[i] * (s * u[i] - u_mean));
                log_jvp.push_back(s * v[i] - v_mean);
                log_vjp.push_back(u[i] * (s - p[i]) - p[i] * (u_sum - u[i]));
                hvp.push_back(p[i] * (s * h[i] - h_mean));
                jvp_scale.push_back(p[i] * tangent_scale);
                vjp_scale.push_back(p[i] * cotangent_scale);
                log_jvp_scale.push_back(tangent_scale);
                log_vjp_scale.push_back(magnitude(u[i]) * (s - p[i]) + p[i] * (u_size - magnitude(u[i])));
                hvp_scale.push_back(p[i] * largest_u * largest_v);
            }

            CAPTURE(n, variant);
            auto square = zeros<T>(n * n);
            smx::softmax_jacobian(probs, square);
            CHECK(relative_error(square, jacobian) <= in::limit);
            smx::log_softmax_jacobian(probs, square);
            CHECK(relative_error(square, log_jacobian) <= 64);
            auto out = zeros<T>(n);
            smx::softmax_jvp(probs, tangent, out);
            CHECK(error(out, jvp, jvp_scale) <= in::limit);
            smx::softmax_vjp(probs, cotangent, out);
            CHECK(error(out, vjp, vjp_scale) <= in::limit);
            smx::log_softmax_jvp(probs, tangent, out);
            CHECK(error(out, log_jvp, log_jvp_scale) <= in::limit);
            smx::log_softmax_vjp(probs, cotangent, out);
            CHECK(error(out, log_vjp, log_vjp_scale) <= in::limit);
            smx::softmax_hvp(probs, cotangent, tangent, out);
            CHECK(error(out, hvp, hvp_scale) <= in::limit);
        }
    }
}

namespace {

template <class T>
bool is_nan(const T& x)
{
    const auto value = exactly<T>::of(x);
    return !(value < 0) && !(value > 0) && value != 0;
}

template <class T>
bool is_infinite(const T& x, int sign)
{
    return exactly<T>::of(x) * sign > 0 && is_nan(T(x - x));
}

template <class T>
bool is_zero(const T& x)
{
    return exactly<T>::of(x) == 0;
}

template <class T>
bool all_nan(const std::vector<T>& row)
{
    for (const T& x : row)
        if (!is_nan(x))
            return false;
    return true;
}

template <class T>
std::vector<T> taken(const std::vector<T>& row, const std::vector<std::size_t>& places)
{
    std::vector<T> out;
    for (const std::size_t i : places)
        out.push_back(row[i]);
    return out;
}

// Infinity and NaN of a type that may have no other way to them.
template <class T>
T minus_infinity()
{
    if constexpr (std::same_as<T, long double>)
        return -std::numeric_limits<T>::infinity();
    else if constexpr (std::same_as<T, dual<double>>)
        return {-std::numeric_limits<double>::infinity(), 0};
    else
        return T(log(T(0)));
}

template <class T>
T infinity()
{
    return T(T(0) - minus_infinity<T>());
}

template <class T>
T not_a_number()
{
    return T(infinity<T>() - infinity<T>());
}

} // namespace

TEMPLATE_LIST_TEST_CASE("scalars: special values follow the contract", "[scalars]", scalars)
{
    using T = TestType;
    const T special[] = {minus_infinity<T>(), infinity<T>(), not_a_number<T>()};
    for (std::size_t at = 0; at < 3; ++at) {
        CAPTURE(at);
        auto out = zeros<T>(3), absent = zeros<T>(3), expected = zeros<T>(2);

        std::vector<T> logits{T(1), T(0), T(2)}; // one entry -inf: as if absent
        logits[at] = special[0];
        const std::vector<std::size_t> others{at == 0 ? 1U : 0U, at == 2 ? 1U : 2U};
        smx::softmax(taken(logits, others), expected);
        smx::softmax(logits, out);
        CHECK(is_zero(out[at]));
        CHECK(relative_error(taken(out, others), exact(expected)) <= 2);
        smx::log_softmax(logits, out);
        CHECK(is_infinite(out[at], -1));
        smx::log_softmax(taken(logits, others), expected);
        CHECK(relative_error(taken(out, others), exact(expected)) <= 2);

        for (const T& poison : {special[1], special[2]}) {
            logits[at] = poison;
            smx::softmax(logits, out);
            CHECK(all_nan(out));
            smx::log_softmax(logits, out);
            CHECK(all_nan(out));
        }
        logits[at] = special[1];
        CHECK(is_infinite(smx::logsumexp(logits), 1));
        logits[at] = special[2];
        CHECK(is_nan(smx::logsumexp(logits)));
        logits[(at + 1) % 3] = special[1];
        CHECK(is_nan(smx::logsumexp(logits)));

        logits.assign(3, special[0]); // nothing but -inf
        smx::softmax(logits, out);
        CHECK(all_nan(out));
        smx::log_softmax(logits, out);
        CHECK(all_nan(out));
        CHECK(is_infinite(smx::logsumexp(logits), -1));
    }
    CHECK(is_infinite(smx::logsumexp(std::vector<T>()), -1));
    std::vector<T> none;
    smx::softmax(none, none);

    std::vector<T> one{T(-7)}, out{T(5)};
    smx::softmax(one, out);
    CHECK(is_zero(T(out[0] - T(1))));
    smx::log_softmax(one, out);
    CHECK(is_zero(out[0]));
    CHECK(is_zero(T(smx::logsumexp(one) + T(7))));
    smx::softmax_jacobian(std::vector<T>{T(1)}, out);
    CHECK(is_zero(out[0]));
}

TEMPLATE_LIST_TEST_CASE("scalars: a masked entry takes no part, whatever its logit", "[scalars]", scalars)
{
    using T = TestType;
    const bool mask[] = {false, true, false, true, false};
    for (const T& masked : {T(100), minus_infinity<T>(), infinity<T>(), not_a_number<T>()}) {
        const std::vector<T> logits{masked, T(1), masked, T(3), masked}, kept{T(1), T(3)};
        auto out = zeros<T>(5), expected = zeros<T>(2);
        smx::softmax(logits, out, {.mask = mask});
        smx::softmax(kept, expected);
        CHECK(relative_error(taken(out, {1, 3}), exact(expected)) <= 2);
        CHECK((is_zero(out[0]) && is_zero(out[2]) && is_zero(out[4])));

        smx::log_softmax(logits, out, {.mask = mask});
        smx::log_softmax(kept, expected);
        CHECK(relative_error(taken(out, {1, 3}), exact(expected)) <= 2);
        CHECK((is_infinite(out[0], -1) && is_infinite(out[2], -1) && is_infinite(out[4], -1)));

        const bool nothing[5] = {};
        smx::softmax(logits, out, {.mask = nothing});
        CHECK((is_zero(out[0]) && is_zero(out[1]) && is_zero(out[4])));
        smx::log_softmax(logits, out, {.mask = nothing});
        CHECK((is_infinite(out[0], -1) && is_infinite(out[1], -1) && is_infinite(out[4], -1)));
    }
}

TEST_CASE("scalars: a masked logit is never evaluated", "[scalars]")
{
    using number = least<true>;
    const bool mask[] = {false, true, false, true, false};
    const auto nan = not_a_number<number>();
    const std::vector<number> logits{nan, number(1), nan, number(3), nan};
    auto out = zeros<number>(5);
    const int before = number::nans_computed;
    smx::softmax(logits, out, {.mask = mask});
    smx::log_softmax(logits, out, {.mask = mask});
    CHECK(number::nans_computed == before);
}

TEST_CASE("scalars: no logarithm of 0 is taken of finite logits", "[scalars]") // only -inf is made of it
{
    using number = least<true>;
    const int before = number::logs_of_zero;
    for (int n = 1; n < 8; ++n) {
        std::vector<number> logits, out = zeros<number>(static_cast<std::size_t>(n));
        for (int i = 0; i < n; ++i)
            logits.push_back(number(i % 3));
        smx::softmax(logits, out);
        smx::log_softmax(logits, out);
        CHECK(smx::logsumexp(logits).value() >= 0);
    }
    CHECK(number::logs_of_zero == before);
}

TEMPLATE_LIST_TEST_CASE("scalars: a temperature that is not positive and finite is refused", "[scalars]", scalars)
{
    using T = TestType;
    const std::vector<T> logits{T(1), T(2)};
    for (const T& temperature : {T(0), T(-1), infinity<T>(), minus_infinity<T>(), not_a_number<T>()}) {
        auto out = zeros<T>(2);
        CHECK_THROWS_AS(smx::softmax(logits, out, {.temperature = temperature}), std::invalid_argument);
        CHECK_THROWS_AS(smx::log_softmax(logits, out, {.temperature = temperature}), std::invalid_argument);
        CHECK((is_zero(out[0]) && is_zero(out[1])));
    }
}

TEMPLATE_LIST_TEST_CASE("scalars: an array by value gives what a row gives", "[scalars]", scalars)
{
    using T = TestType;
    const std::array<T, 3> logits{T(1), T(4), T(2)};
    auto out = zeros<T>(3);
    smx::softmax(logits, out);
    const auto probs = smx::softmax(logits);
    CHECK(relative_error(std::vector<T>(probs.begin(), probs.end()), exact(out)) <= 2);
    smx::log_softmax(logits, out);
    const auto log_probs = smx::log_softmax(logits);
    CHECK(relative_error(std::vector<T>(log_probs.begin(), log_probs.end()), exact(out)) <= 2);
    auto square = zeros<T>(9);
    smx::softmax_jacobian(probs, square);
    const auto jacobian = smx::softmax_jacobian(probs);
    for (std::size_t i = 0; i < 3; ++i)
        CHECK(relative_error(std::vector<T>(jacobian[i].begin(), jacobian[i].end()),
                             exact(std::vector<T>(square.data() + 3 * i, square.data() + 3 * i + 3))) <= 2);
}

// 1 - p of the winner is e^-40 and less: lost by whoever subtracts.
TEMPLATE_LIST_TEST_CASE("scalars: a saturated row keeps its small numbers", "[scalars]", scalars)
{
    using T = TestType;
    using in = exactly<T>;
    using E = typename in::type;
    const std::vector<T> logits{T(-45), T(0), T(-40), T(-50)};
    const E rest = in::exp(E(-45)) + in::exp(E(-40)) + in::exp(E(-50));
    auto out = zeros<T>(4), probs = zeros<T>(4), square = zeros<T>(16);

    smx::log_softmax(logits, out);
    const E log_winner = -(rest - rest * rest / 2 + rest * rest * rest / 3); // -log1p(rest), rest^4 < 2^-228
    CHECK(error(out[1], log_winner, rest) <= 8);
    CHECK(error(smx::logsumexp(logits), E(-log_winner), rest) <= 8);

    smx::softmax(logits, probs);
    E others = 0;
    for (const std::size_t i : {0U, 2U, 3U})
        others += in::of(probs[i]);
    smx::softmax_jacobian(probs, square);
    CHECK(error(square[5], E(in::of(probs[1]) * others), others) <= 8);
    smx::log_softmax_jacobian(probs, square);
    CHECK(error(square[5], others, others) <= 8);
    const std::vector<T> tangent{T(3), T(1000), T(5), T(-2)};
    const E product = in::of(probs[0]) * 997 + in::of(probs[2]) * 995 + in::of(probs[3]) * 1002;
    smx::softmax_jvp(probs, tangent, out);
    CHECK(error(out[1], E(in::of(probs[1]) * product), product) <= 8);
    smx::log_softmax_jvp(probs, tangent, out);
    CHECK(error(out[1], product, product) <= 8);
}

// ---- derivatives through dual numbers -------------------------------------------------------------------------------

namespace {

using number = dual<double>;

std::vector<number> along(const std::vector<double>& value, const std::vector<double>& slope)
{
    std::vector<number> out;
    for (std::size_t i = 0; i < value.size(); ++i)
        out.push_back({value[i], slope[i]});
    return out;
}

std::vector<double> values(const std::vector<number>& row)
{
    std::vector<double> out;
    for (const number& x : row)
        out.push_back(x.value);
    return out;
}

// The largest |slope_i - expected_i| / scale_i in u, scale as the error bound of the product has it.
double slope_error(const std::vector<number>& computed, const std::vector<double>& expected,
                   const std::vector<double>& scale)
{
    double worst = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const double difference = std::fabs(computed[i].slope - expected[i]);
        const double each = difference == 0 ? 0 : difference / scale[i] * 0x1p53;
        worst = each <= worst ? worst : each;
    }
    return worst;
}

// sum_{j != i} p_j (|v_i| + |v_j|)
std::vector<double> scale_of(const std::vector<double>& p, const std::vector<double>& v)
{
    std::vector<double> out(p.size());
    for (std::size_t i = 0; i < p.size(); ++i)
        for (std::size_t j = 0; j < p.size(); ++j)
            if (j != i && p[j] > 0)
                out[i] += p[j] * (std::fabs(v[i]) + std::fabs(v[j]));
    return out;
}

std::vector<double> times(const std::vector<double>& a, const std::vector<double>& b)
{
    std::vector<double> out(a.size());
    for (std::size_t i = 0; i < a.size(); ++i)
        out[i] = a[i] * b[i];
    return out;
}

std::vector<double> over(std::vector<double> a, double divisor)
{
    for (double& x : a)
        x /= divisor;
    return a;
}

struct row_and_tangent {
    std::string name;
    std::vector<double> logits, tangent;
};

const std::vector<row_and_tangent> derivative_rows = {
    {"one entry", {3}, {5}},
    {"ordinary", {0.5, -1, 2, 0.25, 1.5}, {1, -2, 0.5, 3, -1}},
    {"the first is the largest", {2, -1, 0.5, 0.25}, {-3, 1, 0.5, 2}},
    {"the last is the largest", {-1, 0.5, 0.25, 2}, {1, 0.5, 2, -3}},
    {"two tie in the maximum", {1, 2, 2, 0}, {1, -4, 3, 0.5}},
    {"the first and the last tie", {2, -1, 0, 2}, {-4, 1, 0.5, 3}},
    {"all tie", {1, 1, 1, 1, 1, 1}, {1, 2, -3, 4, 0.5, 6}},
    {"saturated", {0, 40, 1, -2}, {1, -2, 3, 4}},
    {"saturated, beyond the last digit", {0, 80, 1, -2}, {1, -2, 3, 4}},
    {"large", {1e6, 1e6 - 1, 1e6 + 2}, {1, -2, 3}},
};

} // namespace

TEST_CASE("scalars: the derivative of softmax by dual numbers is softmax_jvp", "[scalars][dual]")
{
    for (const auto& [name, logits, tangent] : derivative_rows) {
        for (const double temperature : {1.0, 0.25, 3.0}) {
            auto probs = zeros<number>(logits.size());
            smx::softmax(along(logits, tangent), probs, {.temperature = {temperature, 0}});
            const auto p = values(probs);
            std::vector<double> product(p.size());
            smx::softmax_jvp(p, tangent, product);
            CAPTURE(name, temperature);
            CHECK(slope_error(probs, over(product, temperature), over(times(p, scale_of(p, tangent)), temperature)) <=
                  32);
        }
    }
}

TEST_CASE("scalars: the derivative of log_softmax by dual numbers is log_softmax_jvp", "[scalars][dual]")
{
    for (const auto& [name, logits, tangent] : derivative_rows) {
        for (const double temperature : {1.0, 0.25, 3.0}) {
            auto probs = zeros<number>(logits.size()), log_probs = probs;
            smx::softmax(along(logits, tangent), probs, {.temperature = {temperature, 0}});
            smx::log_softmax(along(logits, tangent), log_probs, {.temperature = {temperature, 0}});
            const auto p = values(probs);
            std::vector<double> product(p.size());
            smx::log_softmax_jvp(p, tangent, product);
            CAPTURE(name, temperature);
            CHECK(slope_error(log_probs, over(product, temperature), over(scale_of(p, tangent), temperature)) <= 32);
        }
    }
}

TEST_CASE("scalars: the derivative of logsumexp by dual numbers is the mean tangent", "[scalars][dual]")
{
    for (const auto& [name, logits, tangent] : derivative_rows) {
        std::vector<double> p(logits.size());
        smx::softmax(logits, p);
        double mean = 0, size = 0;
        for (std::size_t i = 0; i < p.size(); ++i) {
            mean += p[i] * tangent[i];
            size += p[i] * std::fabs(tangent[i]);
        }
        CAPTURE(name);
        CHECK(std::fabs(smx::logsumexp(along(logits, tangent)).slope - mean) <= 32 * 0x1p-53 * size);
        if (logits.size() > 1) {
            const std::vector<double> pair{logits[0], logits[1]};
            std::vector<double> q(2);
            smx::softmax(pair, q);
            const double slope = smx::logaddexp(number{pair[0], tangent[0]}, number{pair[1], tangent[1]}).slope;
            const double first = q[0] * tangent[0], second = q[1] * tangent[1];
            CHECK(std::fabs(slope - (first + second)) <= 32 * 0x1p-53 * (std::fabs(first) + std::fabs(second)));
        }
    }
}

// d p / d t = J (-x / t^2); an offset of x changes nothing
TEST_CASE("scalars: the derivative with respect to the temperature flows through dual numbers", "[scalars][dual]")
{
    for (const auto& [name, logits, tangent] : derivative_rows) {
        for (const double temperature : {1.0, 0.25, 3.0}) {
            const std::vector<double> still(logits.size());
            auto probs = zeros<number>(logits.size());
            smx::softmax(along(logits, still), probs, {.temperature = {temperature, 1}});
            const auto p = values(probs);
            double max = logits[0];
            for (const double x : logits)
                max = std::max(max, x);
            std::vector<double> slope, product(p.size());
            for (const double x : logits)
                slope.push_back((max - x) / (temperature * temperature));
            smx::softmax_jvp(p, slope, product);
            CAPTURE(name, temperature);
            CHECK(slope_error(probs, product, times(p, scale_of(p, slope))) <= 64);
        }
    }
}

TEST_CASE("scalars: a masked logit has no derivative, and none of it reaches the others", "[scalars][dual]")
{
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const bool mask[] = {true, false, true, true, false};
    const std::vector<double> logits{1, nan, 2, 2, 1e300}, tangent{1, nan, -2, 0.5, 1e300};
    const std::vector<double> kept{1, 2, 2}, kept_tangent{1, -2, 0.5};

    auto probs = zeros<number>(5), log_probs = probs;
    smx::softmax(along(logits, tangent), probs, {.mask = mask});
    smx::log_softmax(along(logits, tangent), log_probs, {.mask = mask});
    CHECK((probs[1].value == 0 && probs[1].slope == 0 && probs[4].value == 0 && probs[4].slope == 0));

    std::vector<double> p(3), product(3), log_product(3);
    smx::softmax(kept, p);
    smx::softmax_jvp(p, kept_tangent, product);
    smx::log_softmax_jvp(p, kept_tangent, log_product);
    CHECK(slope_error(taken(probs, {0, 2, 3}), product, times(p, scale_of(p, kept_tangent))) <= 32);
    CHECK(slope_error(taken(log_probs, {0, 2, 3}), log_product, scale_of(p, kept_tangent)) <= 32);
}

TEST_CASE("scalars: a logit of -inf has no derivative, and none of it reaches the others", "[scalars][dual]")
{
    const double absent = -std::numeric_limits<double>::infinity();
    const std::vector<double> tangent{7, 1, -2, 0.5}, kept{1, 2, 2}, kept_tangent{1, -2, 0.5};
    const auto logits = along({absent, 1, 2, 2}, tangent);
    for (const double temperature : {1.0, 0.5, 3.0}) {
        auto probs = zeros<number>(4), log_probs = probs;
        smx::softmax(logits, probs, {.temperature = {temperature, 0}});
        smx::log_softmax(logits, log_probs, {.temperature = {temperature, 0}});
        CAPTURE(temperature);
        CHECK((probs[0].value == 0 && probs[0].slope == 0));

        auto kept_probs = zeros<number>(3), kept_log_probs = kept_probs;
        smx::softmax(along(kept, kept_tangent), kept_probs, {.temperature = {temperature, 0}});
        smx::log_softmax(along(kept, kept_tangent), kept_log_probs, {.temperature = {temperature, 0}});
        const auto p = values(kept_probs);
        std::vector<double> slopes, log_slopes;
        for (std::size_t i = 0; i < 3; ++i) {
            slopes.push_back(kept_probs[i].slope);
            log_slopes.push_back(kept_log_probs[i].slope);
        }
        CHECK(slope_error({probs.begin() + 1, probs.end()}, slopes, times(p, scale_of(p, kept_tangent))) <= 8);
        CHECK(slope_error({log_probs.begin() + 1, log_probs.end()}, log_slopes, scale_of(p, kept_tangent)) <= 8);
    }
    CHECK(std::fabs(smx::logsumexp(logits).slope - smx::logsumexp(along(kept, kept_tangent)).slope) <= 8 * 0x1p-53);
}

TEST_CASE("scalars: the derivative of softmax_vjp by dual numbers is softmax_hvp", "[scalars][dual]")
{
    for (const auto& [name, logits, tangent] : derivative_rows) {
        std::vector<double> cotangent;
        for (std::size_t i = 0; i < logits.size(); ++i)
            cotangent.push_back(static_cast<double>(i * i) - 2);
        auto probs = zeros<number>(logits.size()), gradient = probs;
        smx::softmax(along(logits, tangent), probs);
        smx::softmax_vjp(probs, along(cotangent, std::vector<double>(logits.size())), gradient);

        const auto p = values(probs);
        std::vector<double> product(p.size()), scale(p.size());
        smx::softmax_hvp(p, cotangent, tangent, product);
        double u_range = 0, v_range = 0; // at least the largest |u~| and |v~|
        for (std::size_t i = 0; i < p.size(); ++i) {
            u_range = std::max(u_range, 2 * std::fabs(cotangent[i]));
            v_range = std::max(v_range, 2 * std::fabs(tangent[i]));
        }
        for (std::size_t i = 0; i < p.size(); ++i)
            scale[i] = p[i] * u_range * v_range;
        CAPTURE(name);
        CHECK(slope_error(gradient, product, scale) <= 32);
    }
}

// The second derivative of softmax along u and v is J (u~ o v~) too.
TEST_CASE("scalars: the second derivative of softmax by nested dual numbers is softmax_hvp", "[scalars][dual]")
{
    for (const auto& [name, logits, tangent] : derivative_rows) {
        std::vector<double> other;
        std::vector<dual<number>> nested;
        for (std::size_t i = 0; i < logits.size(); ++i) {
            other.push_back(static_cast<double>(i * i) - 2);
            nested.push_back({number{logits[i], tangent[i]}, number{other[i], 0}});
        }
        auto probs = zeros<dual<number>>(logits.size());
        smx::softmax(nested, probs);

        std::vector<double> p;
        for (const auto& each : probs)
            p.push_back(each.value.value);
        std::vector<double> product(p.size());
        smx::softmax_hvp(p, other, tangent, product);
        double u_range = 0, v_range = 0;
        for (std::size_t i = 0; i < p.size(); ++i) {
            u_range = std::max(u_range, 2 * std::fabs(other[i]));
            v_range = std::max(v_range, 2 * std::fabs(tangent[i]));
        }
        for (std::size_t i = 0; i < p.size(); ++i) {
            CAPTURE(name, i, product[i], probs[i].slope.slope);
            CHECK(std::fabs(probs[i].slope.slope - product[i]) <= 32 * 0x1p-53 * p[i] * u_range * v_range);
        }
    }
}

TEST_CASE("scalars: the derivative of the Jacobian by dual numbers follows the product rule", "[scalars][dual]")
{
    const std::vector<double> p{0.5, 0.125, 0.25, 0.125}, slope{0.25, -0.5, 1, -0.75};
    const auto probs = along(p, slope);
    auto jacobian = zeros<number>(16), log_jacobian = jacobian;
    smx::softmax_jacobian(probs, jacobian);
    smx::log_softmax_jacobian(probs, log_jacobian);
    for (std::size_t i = 0; i < 4; ++i) {
        double others = 0, others_slope = 0;
        for (std::size_t j = 0; j < 4; ++j) {
            others += j == i ? 0 : p[j];
            others_slope += j == i ? 0 : slope[j];
        }
        for (std::size_t j = 0; j < 4; ++j) { // all of it is exact
            CHECK(jacobian[i * 4 + j].slope ==
                  (i == j ? slope[i] * others + p[i] * others_slope : -(slope[i] * p[j] + p[i] * slope[j])));
            CHECK(log_jacobian[i * 4 + j].slope == (i == j ? others_slope : -slope[j]));
        }
    }
}
