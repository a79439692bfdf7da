// SPDX-License-Identifier: BSL-1.0
// constexpr.test.cpp: softmax, log_softmax and softmax_jacobian of arrays in constant expressions, against the oracle,
// against the same calls at run time, and at the special values.
#include <smx/jacobian.hpp>
#include <smx/softmax.hpp>

#include "catch.hpp"
#include "oracle.hpp"

#include <algorithm> // max
#include <array>     // array
#include <cmath>     // exp, fabs, log
#include <cstddef>   // size_t
#include <cstdint>   // int64_t, uint64_t
#include <limits>    // numeric_limits
#include <utility>   // index_sequence
#include <vector>    // vector

namespace {

template <class T>
using limits = std::numeric_limits<T>;

// ---- rows that are made by the compiler -----------------------------------------------------------------------------

template <class T>
consteval T uniform(std::uint64_t& state) // in [-1, 1), splitmix64
{
    std::uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return static_cast<T>(static_cast<std::int64_t>(z ^ (z >> 31)) / 1024) * T(0x1p-53);
}

constexpr std::size_t row_kinds = 12;

// Scales have few digits: then a difference of two long doubles is exact, as the bound of 4 ULP wants it. (Of float and
// double it need not be.) And a long double stays in the range of the oracle.
template <class T, std::size_t N>
consteval std::array<T, N> row(std::size_t kind)
{
    constexpr bool is_wide = limits<T>::max_exponent > 1024;
    const T range = is_wide                           ? T(11264)
                    : limits<T>::max_exponent == 1024 ? T(704)
                                                      : T(88); // e^-range: the smallest normals
    const T largest = is_wide ? limits<T>::max() / 4 : limits<T>::max();
    const T scales[row_kinds] = {1, 5, 20, 80, range, 2 * range, 1, 10, 20, 1, largest, 3};
    std::uint64_t state = kind * 100 + N;
    std::array<T, N> x{};
    for (std::size_t i = 0; i < N; ++i) {
        x[i] = uniform<T>(state) * scales[kind];
        if (kind == 6 || kind == 7) // far from 0
            x[i] = x[i] + T(kind == 6 ? 1000 : -100000);
        if (kind == 8 && i == N / 2) // one far above the others
            x[i] = 60;
        if (kind == 9 && i % 2 == 0) // ties
            x[i] = 1;
        if (kind == 11 && i % 3 == 1)
            x[i] = -limits<T>::infinity();
    }
    return x;
}

// ---- the results of the compiler ------------------------------------------------------------------------------------

template <class T, std::size_t N, std::size_t Kind>
constexpr std::array<T, N> logits_of = row<T, N>(Kind);
template <class T, std::size_t N, std::size_t Kind>
constexpr std::array<T, N> probs_of = smx::softmax(logits_of<T, N, Kind>);
template <class T, std::size_t N, std::size_t Kind>
constexpr std::array<T, N> log_probs_of = smx::log_softmax(logits_of<T, N, Kind>);
template <class T, std::size_t N, std::size_t Kind>
constexpr std::array<std::array<T, N>, N> jacobian_of = smx::softmax_jacobian(probs_of<T, N, Kind>);

template <class T, std::size_t N>
struct row_of_results {
    std::array<T, N> logits, probs, log_probs;
    std::array<std::array<T, N>, N> jacobian;
};

template <class T, std::size_t N, std::size_t... Kind>
std::vector<row_of_results<T, N>> results_of(std::index_sequence<Kind...>)
{
    return {{logits_of<T, N, Kind>, probs_of<T, N, Kind>, log_probs_of<T, N, Kind>, jacobian_of<T, N, Kind>}...};
}

template <class T, std::size_t N>
void check_against_the_oracle()
{
    std::size_t kind = 0;
    for (const auto& [logits, probs, log_probs, jacobian] : results_of<T, N>(std::make_index_sequence<row_kinds>())) {
        const oracle::shifted_row<T> exact(logits.data(), N, T(1), nullptr);
        const oracle::jacobian<T> exact_jacobian(probs.data(), N);
        for (std::size_t i = 0; i < N; ++i) {
            CAPTURE(N, kind, i, logits[i], probs[i], log_probs[i]);
            CHECK(metric::softmax<T>(probs[i], exact.softmax(i)) <= 4);
            if (exact.present(i))
                CHECK(metric::log_softmax<T>(log_probs[i], exact.log_softmax(i)) <= 4);
            else
                CHECK(bits::is_minus_infinity(log_probs[i]));
            for (std::size_t j = 0; j < N; ++j) {
                CAPTURE(j, jacobian[i][j]);
                if (i == j)
                    CHECK(metric::jacobian_diagonal<T>(jacobian[i][i], exact_jacobian.diagonal(i)) <= 4);
                else
                    CHECK(metric::jacobian_off_diagonal<T>(jacobian[i][j], exact_jacobian.off_diagonal(i, j)) <= 4);
            }
        }
        ++kind;
    }
}

// Distance in ULP of b.
template <class T>
double ulps_between(const T& a, const T& b)
{
    return bits::same(a, b) ? 0 : metric::in_ulp_at<T>(a, oracle::wide<T>(b), oracle::wide<T>(b));
}

template <class T, std::size_t N>
void check_against_run_time()
{
    std::size_t kind = 0;
    for (const auto& [logits, probs, log_probs, jacobian] : results_of<T, N>(std::make_index_sequence<row_kinds>())) {
        const auto probs_now = smx::softmax(logits), log_probs_now = smx::log_softmax(logits);
        const auto jacobian_now = smx::softmax_jacobian(probs);
        for (std::size_t i = 0; i < N; ++i) {
            CAPTURE(N, kind, i, logits[i]);
            CHECK(ulps_between(probs_now[i], probs[i]) <= 3 + 4);
            CHECK(ulps_between(log_probs_now[i], log_probs[i]) <= 3 + 4);
            for (std::size_t j = 0; j < N; ++j)
                CHECK(ulps_between(jacobian_now[i][j], jacobian[i][j]) <= 2 + 4);
        }
        ++kind;
    }
}

// ---- special values -------------------------------------------------------------------------------------------------

template <std::size_t N, class T>
consteval bool all_nan(const std::array<T, N>& x)
{
    for (const T& each : x)
        if (each == each)
            return false;
    return true;
}

template <class T>
consteval bool special_values_hold()
{
    constexpr T inf = limits<T>::infinity(), nan = limits<T>::quiet_NaN(), max = limits<T>::max();
    using one = std::array<T, 1>;
    using three = std::array<T, 3>;
    const bool no_element = smx::softmax(std::array<T, 0>{}).empty() && smx::log_softmax(std::array<T, 0>{}).empty() &&
                            smx::softmax_jacobian(std::array<T, 0>{}).empty();
    bool one_element = smx::softmax_jacobian(one{1})[0][0] == 0;
    for (const T x : {T(0), T(-7), max, -max, limits<T>::denorm_min()})
        one_element = one_element && smx::softmax(one{x})[0] == 1 && smx::log_softmax(one{x})[0] == 0;
    const bool some_absent = smx::softmax(three{-inf, 0, 0}) == three{0, T(0.5), T(0.5)} &&
                             smx::softmax(three{3, -inf, -inf}) == three{1, 0, 0} &&
                             smx::log_softmax(three{-inf, 5, -inf}) == three{-inf, 0, -inf} &&
                             smx::log_softmax(three{0, -inf, 0})[1] == -inf;
    bool undefined = all_nan(smx::softmax(three{-inf, -inf, -inf})) && all_nan(smx::log_softmax(one{-inf}));
    for (const T x : {nan, inf})
        undefined = undefined && all_nan(smx::softmax(three{x, 0, 0})) && all_nan(smx::softmax(three{0, x, -inf})) &&
                    all_nan(smx::log_softmax(three{0, 0, x})) && all_nan(smx::log_softmax(three{-inf, x, -inf}));
    const bool largest = smx::softmax(three{max, -max, 0}) == three{1, 0, 0} &&
                         smx::softmax(three{max, max, -inf}) == three{T(0.5), T(0.5), 0} &&
                         smx::log_softmax(three{max, -max, 0}) == three{0, -inf, -max};
    const auto saturated = smx::log_softmax(std::array<T, 2>{0, -80});
    const bool not_lost = saturated[0] < 0 && saturated[1] == -80;
    const auto jacobian = smx::softmax_jacobian(three{T(0.5), T(0.5), 0});
    const bool exact = jacobian[0] == three{T(0.25), T(-0.25), 0} && jacobian[1] == three{T(-0.25), T(0.25), 0} &&
                       jacobian[2] == three{0, 0, 0};
    return no_element && one_element && some_absent && undefined && largest && not_lost && exact;
}

static_assert(special_values_hold<float>());
static_assert(special_values_hold<double>());
static_assert(special_values_hold<long double>());

// ---- a user's scalar ------------------------------------------------------------------------------------------------

// As short as a number for constant expressions can be.
struct number {
    double value;

    constexpr explicit number(int x) : value(x) {}
    static constexpr number of(double x)
    {
        number out(0);
        out.value = x;
        return out;
    }
    friend constexpr number operator+(number a, number b) { return of(a.value + b.value); }
    friend constexpr number operator-(number a, number b) { return of(a.value - b.value); }
    friend constexpr number operator*(number a, number b) { return of(a.value * b.value); }
    friend constexpr number operator/(number a, number b) { return of(a.value / b.value); }
    friend constexpr bool operator<(number a, number b) { return a.value < b.value; }
    friend constexpr number exp(number x) // by halving until the series is short
    {
        if (x.value < -1 || x.value > 1) {
            const number root = exp(of(x.value / 2));
            return root * root;
        }
        double term = 1, sum = 0;
        for (int i = 1; i < 25; ++i) {
            sum += term;
            term *= x.value / i;
        }
        return of(sum);
    }
    friend constexpr number log(number x) // x = 2^k m, log m = 2 atanh((m - 1) / (m + 1))
    {
        int k = 0;
        for (; x.value > 1.5; ++k)
            x.value /= 2;
        const double s = (x.value - 1) / (x.value + 1);
        double power = s, sum = 0;
        for (int i = 1; i < 60; i += 2) {
            sum += power / i;
            power *= s * s;
        }
        return of(k * 0.6931471805599453 + 2 * sum);
    }
};

constexpr std::array<number, 4> user_logits = {number::of(0.5), number(-2), number(1), number::of(0.25)};
constexpr auto user_probs = smx::softmax(user_logits);
constexpr auto user_log_probs = smx::log_softmax(user_logits);
constexpr auto user_jacobian = smx::softmax_jacobian(user_probs);

} // namespace

TEMPLATE_TEST_CASE("constant expressions: every result is within 4 ULP of the exact value", "[constexpr]", float,
                   double, long double)
{
    check_against_the_oracle<TestType, 1>();
    check_against_the_oracle<TestType, 2>();
    check_against_the_oracle<TestType, 3>();
    check_against_the_oracle<TestType, 10>();
}

TEMPLATE_TEST_CASE("constant expressions: the compiler and the program agree within their bounds", "[constexpr]", float,
                   double)
{
    check_against_run_time<TestType, 1>();
    check_against_run_time<TestType, 2>();
    check_against_run_time<TestType, 3>();
    check_against_run_time<TestType, 10>();
}

TEST_CASE("constant expressions: a user's scalar follows the textbook", "[constexpr]")
{
    double sum = 0;
    for (const number x : user_logits)
        sum += std::exp(x.value);
    for (std::size_t i = 0; i < user_logits.size(); ++i) {
        const double p = std::exp(user_logits[i].value) / sum;
        CAPTURE(i);
        CHECK(std::fabs(user_probs[i].value - p) <= 16 * limits<double>::epsilon() * p);
        CHECK(std::fabs(user_log_probs[i].value - std::log(p)) <= 16 * limits<double>::epsilon());
        for (std::size_t j = 0; j < user_logits.size(); ++j) {
            const double q = std::exp(user_logits[j].value) / sum;
            CHECK(std::fabs(user_jacobian[i][j].value - (i == j ? p * (1 - p) : -p * q)) <=
                  16 * limits<double>::epsilon());
        }
    }
}
