// SPDX-License-Identifier: BSL-1.0
// jacobian.test.cpp: the Jacobian of softmax and its products, by what a Jacobian is: finite differences, the formula
// written out, symmetry, rank, linearity; and by what memory they may share.
#include "bits.hpp"
#include "catch.hpp"
#include "leaves.hpp"
#include "oracle.hpp"
#include "rows.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using rows::mixed;
using rows::random_source;
using rows::row;

constexpr std::uint64_t seed_of_all = 0x1ac0b1a; // printed with every failure
constexpr std::size_t small_lengths[] = {1, 2, 3, 4, 5, 8, 11, 17};
constexpr std::size_t lengths[] = {1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 65, 130, 257};

// Natural rows are within so many units of u times the size of their terms.
constexpr double jvp_bound = 8;

template <class T>
row<T> random_row(random_source& random, std::size_t n, double scale = 1)
{
    row<T> out(n);
    for (T& each : out)
        each = static_cast<T>(scale * random.normal());
    return out;
}

// --- finite differences -----------------------------------------------------------------------------------------

// The step and what a central difference with it can be off by: a check of the wiring, not of the last digits.
template <class T>
constexpr double step = std::is_same_v<T, float>    ? 0x1p-7
                        : std::is_same_v<T, double> ? 0x1p-17
                                                    : 0x1p-20;
template <class T>
constexpr double coarse = std::is_same_v<T, float>    ? 2e-4
                          : std::is_same_v<T, double> ? 1e-9
                                                      : 1e-11;

template <class T>
row<T> moved(row<T> x, const row<T>& direction, double by)
{
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] += static_cast<T>(by) * direction[i];
    return x;
}

// (f(x + h v) - f(x - h v)) / 2 h
template <class T, class F>
row<T> difference(F f, const row<T>& x, const row<T>& v)
{
    row<T> out = f(moved(x, v, step<T>));
    const row<T> behind = f(moved(x, v, -step<T>));
    for (std::size_t i = 0; i < out.size(); ++i)
        out[i] = (out[i] - behind[i]) / static_cast<T>(2 * step<T>);
    return out;
}

template <class T>
double largest_difference(std::span<const T> a, std::span<const T> b)
{
    double worst = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
        worst = std::max(worst, static_cast<double>(std::fabs(a[i] - b[i])));
    return worst;
}

template <class T>
double largest_difference(const row<T>& a, const row<T>& b)
{
    return largest_difference(std::span<const T>(a), std::span<const T>(b));
}

template <class T>
row<T> unit_vector(std::size_t n, std::size_t j)
{
    row<T> out(n);
    out[j] = T(1);
    return out;
}

template <class T>
row<T> column(const row<T>& J, std::size_t n, std::size_t j)
{
    row<T> out(n);
    for (std::size_t i = 0; i < n; ++i)
        out[i] = J[i * n + j];
    return out;
}

template <class T>
row<T> softmax_of(const leaf<T>& by, const row<T>& x, const T& temperature = T(1))
{
    row<T> out(x.size());
    by.softmax(x, out, temperature);
    return out;
}

template <class T>
row<T> log_softmax_of(const leaf<T>& by, const row<T>& x, const T& temperature = T(1))
{
    row<T> out(x.size());
    by.log_softmax(x, out, temperature);
    return out;
}

template <class T>
T dot(const row<T>& a, const row<T>& b)
{
    T out = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
        out += a[i] * b[i];
    return out;
}

// For every leaf, small random logits and two directions.
template <class T, class Use>
void for_each_point(Use use)
{
    random_source random(seed_of_all);
    for (const std::size_t n : small_lengths)
        for (int k = 0; k < 10; ++k) {
            const row<T> x = random_row<T>(random, n), u = random_row<T>(random, n), v = random_row<T>(random, n);
            for (const leaf<T>& by : leaves<T>()) {
                CAPTURE(rows::name_of<T>(), by.name(), n, k, seed_of_all);
                use(by, x, u, v);
            }
        }
}

} // namespace

TEMPLATE_TEST_CASE("softmax_jacobian: its columns are central differences of softmax", "[jacobian][differences]", float,
                   double, long double)
{
    using T = TestType;
    for_each_point<T>([](const leaf<T>& by, const row<T>& x, const row<T>&, const row<T>&) {
        const std::size_t n = x.size();
        row<T> J(n * n);
        by.softmax_jacobian(softmax_of(by, x), J);
        for (std::size_t j = 0; j < n; ++j) {
            const auto f = [&](const row<T>& at) { return softmax_of(by, at); };
            REQUIRE(largest_difference(column(J, n, j), difference(f, x, unit_vector<T>(n, j))) < coarse<T>);
        }
    });
}

TEMPLATE_TEST_CASE("log_softmax_jacobian: its columns are central differences of log_softmax",
                   "[jacobian][differences]", float, double, long double)
{
    using T = TestType;
    for_each_point<T>([](const leaf<T>& by, const row<T>& x, const row<T>&, const row<T>&) {
        const std::size_t n = x.size();
        row<T> J(n * n);
        by.log_softmax_jacobian(softmax_of(by, x), J);
        for (std::size_t j = 0; j < n; ++j) {
            const auto f = [&](const row<T>& at) { return log_softmax_of(by, at); };
            REQUIRE(largest_difference(column(J, n, j), difference(f, x, unit_vector<T>(n, j))) < 4 * coarse<T>);
        }
    });
}

TEMPLATE_TEST_CASE("softmax_jacobian: divided by the temperature it is the derivative by the logits",
                   "[jacobian][differences]", float, double, long double)
{
    using T = TestType;
    for_each_point<T>([](const leaf<T>& by, const row<T>& x, const row<T>&, const row<T>&) {
        const std::size_t n = x.size();
        const auto temperature = static_cast<T>(2.5);
        row<T> J(n * n);
        by.softmax_jacobian(softmax_of(by, x, temperature), J);
        for (T& each : J)
            each /= temperature;
        for (std::size_t j = 0; j < n; ++j) {
            const auto f = [&](const row<T>& at) { return softmax_of(by, at, temperature); };
            REQUIRE(largest_difference(column(J, n, j), difference(f, x, unit_vector<T>(n, j))) < coarse<T>);
        }
    });
}

TEMPLATE_TEST_CASE("softmax_jvp, log_softmax_jvp: they are central differences along the tangent", "[jvp][differences]",
                   float, double, long double)
{
    using T = TestType;
    for_each_point<T>([](const leaf<T>& by, const row<T>& x, const row<T>&, const row<T>& v) {
        const row<T> p = softmax_of(by, x);
        row<T> out(x.size());
        by.softmax_jvp(p, v, out);
        REQUIRE(largest_difference(out, difference([&](const row<T>& at) { return softmax_of(by, at); }, x, v)) <
                8 * coarse<T>);
        by.log_softmax_jvp(p, v, out);
        REQUIRE(largest_difference(out, difference([&](const row<T>& at) { return log_softmax_of(by, at); }, x, v)) <
                32 * coarse<T>);
    });
}

TEMPLATE_TEST_CASE("softmax_vjp, log_softmax_vjp: they are gradients of <u, f(x)>", "[vjp][differences]", float, double,
                   long double)
{
    using T = TestType;
    for_each_point<T>([](const leaf<T>& by, const row<T>& x, const row<T>& u, const row<T>&) {
        const std::size_t n = x.size();
        const row<T> p = softmax_of(by, x);
        row<T> of_softmax(n), of_log_softmax(n);
        by.softmax_vjp(p, u, of_softmax);
        by.log_softmax_vjp(p, u, of_log_softmax);
        for (std::size_t j = 0; j < n; ++j) {
            const row<T> e = unit_vector<T>(n, j);
            const auto value = [&](const row<T>& at) { return row<T>{dot(u, softmax_of(by, at))}; };
            const auto log_value = [&](const row<T>& at) { return row<T>{dot(u, log_softmax_of(by, at))}; };
            REQUIRE(std::fabs(difference(value, x, e)[0] - of_softmax[j]) < static_cast<T>(8 * coarse<T>));
            REQUIRE(std::fabs(difference(log_value, x, e)[0] - of_log_softmax[j]) < static_cast<T>(64 * coarse<T>));
        }
    });
}

TEMPLATE_TEST_CASE("softmax_hvp: it is a central difference of softmax_vjp along the tangent", "[hvp][differences]",
                   float, double, long double)
{
    using T = TestType;
    for_each_point<T>([](const leaf<T>& by, const row<T>& x, const row<T>& u, const row<T>& v) {
        row<T> out(x.size());
        by.softmax_hvp(softmax_of(by, x), u, v, out);
        const auto gradient = [&](const row<T>& at) {
            row<T> g(at.size());
            by.softmax_vjp(softmax_of(by, at), u, g);
            return g;
        };
        REQUIRE(largest_difference(out, difference(gradient, x, v)) < 32 * coarse<T>);
    });
}

TEMPLATE_TEST_CASE("softmax_hvp: the Hessian is symmetric", "[hvp][property]", float, double, long double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for_each_point<T>([&](const leaf<T>& by, const row<T>& x, const row<T>& u, const row<T>& v) {
        const row<T> w = random_row<T>(random, x.size());
        const row<T> p = softmax_of(by, x);
        row<T> Hv(x.size()), Hw(x.size()), swapped(x.size());
        by.softmax_hvp(p, u, v, Hv);
        by.softmax_hvp(p, u, w, Hw);
        by.softmax_hvp(p, v, u, swapped); // u and v play the same part
        const T unit = std::numeric_limits<T>::epsilon() * 100 * static_cast<T>(x.size());
        REQUIRE(std::fabs(dot(w, Hv) - dot(v, Hw)) < unit);
        REQUIRE(largest_difference(Hv, swapped) < static_cast<double>(unit));
    });
}

// --- the formula, written out -----------------------------------------------------------------------------------

namespace {

template <class T, class Use>
void for_each_probs(Use use)
{
    for (const rows::kind<T>& kind : rows::probability_kinds<T>())
        for (const std::size_t n : lengths)
            for (std::uint64_t k = 0; k < 3 * rows::volume(); ++k) {
                const row<T> p = rows::make(kind, n, mixed(seed_of_all, k));
                for (const leaf<T>& by : leaves<T>()) {
                    INFO(rows::name_of<T>()
                         << ", " << by.name() << " leaf, probabilities '" << kind.name << "', n " << n << ", seed "
                         << mixed(seed_of_all, k) << ", probs " << rows::hex(std::span<const T>(p)));
                    use(by, p);
                }
            }
}

// sum_{j != i} p_j f(j), term by term
template <class T, class F>
oracle::wide<T> sum_of_others(const row<T>& p, std::size_t i, F f)
{
    oracle::wide<T> out = 0;
    for (std::size_t j = 0; j < p.size(); ++j)
        if (j != i)
            out += oracle::wide<T>(p[j]) * f(j);
    return out;
}

// Rows of a large matrix to look at.
std::vector<std::size_t> some_of(std::size_t n)
{
    std::vector<std::size_t> out;
    for (std::size_t i = 0; i < n; i += n < 40 ? 1 : n / 7)
        out.push_back(i);
    return out;
}

} // namespace

// long double has no figure of its own; it is judged in a wider type where there is one.
TEMPLATE_TEST_CASE("softmax_jacobian, log_softmax_jacobian: their entries are those of the formula",
                   "[jacobian][oracle]", float, double, long double)
{
    using T = TestType;
    using W = oracle::wide<T>;
    random_source random(seed_of_all);
    for (const std::size_t n : lengths)
        for (int k = 0; k < 5; ++k) {
            const row<T> p = softmax_of(leaf<T>(), random_row<T>(random, n, 5));
            for (const leaf<T>& by : leaves<T>()) {
                CAPTURE(by.name(), n, k, seed_of_all, rows::hex(std::span<const T>(p)));
                row<T> J(n * n), log_J(n * n);
                by.softmax_jacobian(p, J);
                by.log_softmax_jacobian(p, log_J);
                double diagonal = 0, rest = 0, logs = 0;
                for (const std::size_t i : some_of(n))
                    for (std::size_t j = 0; j < n; ++j) {
                        const W others = sum_of_others(p, i, [](std::size_t) { return W(1); });
                        const W entry = i == j ? W(p[i]) * others : -(W(p[i]) * W(p[j]));
                        const W log_entry = i == j ? others : -W(p[j]);
                        double& worst = i == j ? diagonal : rest;
                        worst = std::max(worst, metric::in_ulp_at<T>(J[i * n + j], entry, entry));
                        logs = std::max(logs, metric::in_ulp_at<T>(log_J[i * n + j], log_entry, log_entry));
                    }
                const double slack = std::is_same_v<T, long double> ? static_cast<double>(n) : 0;
                REQUIRE(diagonal <= 2 + slack);
                REQUIRE(rest <= 1);
                REQUIRE(logs <= 2 + slack);
            }
        }
}

TEMPLATE_TEST_CASE("softmax_jvp, log_softmax_jvp, log_softmax_vjp: they are their formulas", "[jvp][vjp][oracle]",
                   float, double, long double)
{
    using T = TestType;
    using W = oracle::wide<T>;
    using judged = oracle::judged<W>;
    random_source random(seed_of_all);
    const double allowed = std::is_same_v<T, long double> ? 100 : jvp_bound;
    for (const std::size_t n : lengths)
        for (int k = 0; k < 5; ++k) {
            const row<T> p = softmax_of(leaf<T>(), random_row<T>(random, n, 5)), v = random_row<T>(random, n, 10);
            const auto size = [](const T& x) { return oracle::magnitude(W(x)); };
            for (const leaf<T>& by : leaves<T>()) {
                row<T> jvp(n), log_jvp(n), log_vjp(n);
                by.softmax_jvp(p, v, jvp);
                by.log_softmax_jvp(p, v, log_jvp);
                by.log_softmax_vjp(p, v, log_vjp);
                double worst = 0, worst_log_jvp = 0, worst_log_vjp = 0;
                for (std::size_t i = 0; i < n; ++i) {
                    const W value = sum_of_others(p, i, [&](std::size_t j) { return W(v[i]) - W(v[j]); });
                    const W scale = sum_of_others(p, i, [&](std::size_t j) { return size(v[i]) + size(v[j]); });
                    W sum = 0, sizes = 0;
                    for (std::size_t j = 0; j < n; ++j) {
                        sum += j == i ? W(0) : W(v[j]);
                        sizes += j == i ? W(0) : size(v[j]);
                    }
                    const W others = sum_of_others(p, i, [](std::size_t) { return W(1); });
                    worst = std::max(worst, metric::in_u<T>(jvp[i], judged{W(p[i]) * value, W(p[i]) * scale}));
                    worst_log_jvp = std::max(worst_log_jvp, metric::in_u<T>(log_jvp[i], judged{value, scale}));
                    worst_log_vjp = std::max(
                        worst_log_vjp, metric::in_u<T>(log_vjp[i], judged{W(v[i]) * others - W(p[i]) * sum,
                                                                          size(v[i]) * others + W(p[i]) * sizes}));
                }
                CAPTURE(by.name(), n, k, seed_of_all);
                REQUIRE(worst <= allowed);
                REQUIRE(worst_log_jvp <= allowed);
                REQUIRE(worst_log_vjp <= allowed);
            }
        }
}

// --- what a Jacobian of softmax is ------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("softmax_jacobian: it is symmetric, bit for bit", "[jacobian][property]", float, double)
{
    using T = TestType;
    for_each_probs<T>([](const leaf<T>& by, const row<T>& p) {
        const std::size_t n = p.size();
        row<T> J(n * n);
        by.softmax_jacobian(p, J);
        bool symmetric = true;
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t j = 0; j < i; ++j)
                symmetric = symmetric && bits::same(J[i * n + j], J[j * n + i]);
        REQUIRE(symmetric);
    });
}

TEMPLATE_TEST_CASE("softmax_jacobian, log_softmax_jacobian: their rows sum to 0 within the rounding of the entries",
                   "[jacobian][property]", float, double)
{
    using T = TestType;
    using W = oracle::wide<T>;
    for_each_probs<T>([](const leaf<T>& by, const row<T>& p) {
        const std::size_t n = p.size();
        row<T> J(n * n);
        for (const bool logarithmic : {false, true}) {
            if (logarithmic)
                by.log_softmax_jacobian(p, J);
            else
                by.softmax_jacobian(p, J);
            for (const std::size_t i : some_of(n)) {
                W sum = 0, allowed = 0;
                for (std::size_t j = 0; j < n; ++j) {
                    sum += W(J[i * n + j]);
                    if (i == j || !logarithmic) // -p_j is exact
                        allowed += W(i == j ? 2 : 1) * metric::ulp_of<T>(W(J[i * n + j]));
                }
                CAPTURE(logarithmic, i);
                REQUIRE(static_cast<double>(oracle::magnitude(sum)) <= static_cast<double>(allowed));
            }
        }
    });
}

namespace {

// All eigenvalues of a symmetric matrix, ascending, by Jacobi rotations.
std::vector<long double> eigenvalues(std::vector<long double> a, std::size_t n)
{
    for (int sweep = 0; sweep < 30; ++sweep)
        for (std::size_t p = 0; p < n; ++p)
            for (std::size_t q = p + 1; q < n; ++q) {
                if (std::fabs(a[p * n + q]) < 1e-40L)
                    continue;
                const long double theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q]);
                const long double t = std::copysign(1.0L, theta) / (std::fabs(theta) + std::sqrt(1 + theta * theta));
                const long double c = 1 / std::sqrt(1 + t * t), s = t * c;
                for (std::size_t k = 0; k < n; ++k) {
                    const long double kp = a[k * n + p], kq = a[k * n + q];
                    a[k * n + p] = c * kp - s * kq;
                    a[k * n + q] = s * kp + c * kq;
                }
                for (std::size_t k = 0; k < n; ++k) {
                    const long double pk = a[p * n + k], qk = a[q * n + k];
                    a[p * n + k] = c * pk - s * qk;
                    a[q * n + k] = s * pk + c * qk;
                }
            }
    std::vector<long double> out(n);
    for (std::size_t i = 0; i < n; ++i)
        out[i] = a[i * n + i];
    std::sort(out.begin(), out.end());
    return out;
}

} // namespace

TEMPLATE_TEST_CASE("softmax_jacobian: it is positive semidefinite, and of rank one less than the support",
                   "[jacobian][property]", float, double)
{
    using T = TestType;
    constexpr auto u = static_cast<long double>(std::numeric_limits<T>::epsilon()) / 2;
    for (const rows::kind<T>& kind : rows::probability_kinds<T>())
        for (const std::size_t n : small_lengths)
            for (std::uint64_t k = 0; k < 5 * rows::volume(); ++k) {
                const row<T> p = rows::make(kind, n, mixed(seed_of_all, k));
                for (const leaf<T>& by : leaves<T>()) {
                    CAPTURE(kind.name, n, k, by.name(), rows::hex(std::span<const T>(p)));
                    row<T> J(n * n);
                    by.softmax_jacobian(p, J);
                    const std::vector<long double> mu = eigenvalues({J.begin(), J.end()}, n);
                    const long double rounding = 4 * static_cast<long double>(n) * u * (mu.back() + u);
                    REQUIRE(mu.front() >= -rounding);

                    // Eigenvalues interlace with s p: all but one exceed the smallest positive p, less rounding.
                    long double sum = 0, smallest = 1;
                    std::size_t support = 0;
                    for (const T& each : p) {
                        sum += static_cast<long double>(each);
                        support += each > 0 ? 1u : 0u;
                        if (each > 0)
                            smallest = std::min(smallest, static_cast<long double>(each));
                    }
                    const auto rank = std::count_if(mu.begin(), mu.end(), [&](long double m) { return m > rounding; });
                    REQUIRE(rank <= static_cast<std::ptrdiff_t>(support) - 1);
                    if (sum * smallest > 2 * rounding)
                        REQUIRE(rank == static_cast<std::ptrdiff_t>(support) - 1);
                }
            }
}

// --- products ---------------------------------------------------------------------------------------------------

namespace {

// For every leaf: probabilities of every kind with a tangent of every kind.
template <class T, class Use>
void for_each_tangent(Use use)
{
    random_source random(seed_of_all);
    for_each_probs<T>([&](const leaf<T>& by, const row<T>& p) {
        for (const rows::tangent_kind<T>& kind : rows::tangent_kinds<T>(rows::reach::everywhere)) {
            const row<T> v = rows::make(kind, p, random.next());
            INFO("tangent '" << kind.name << "', " << rows::hex(std::span<const T>(v)));
            use(by, p, v);
        }
    });
}

} // namespace

TEMPLATE_TEST_CASE("softmax_jvp, softmax_vjp: they have the same bits", "[jvp][vjp][property]", float, double)
{
    using T = TestType;
    for_each_tangent<T>([](const leaf<T>& by, const row<T>& p, const row<T>& v) {
        row<T> jvp(p.size()), vjp(p.size());
        by.softmax_jvp(p, v, jvp);
        by.softmax_vjp(p, v, vjp);
        REQUIRE(bits::same(jvp.data(), vjp.data(), p.size()));
    });
}

TEMPLATE_TEST_CASE("softmax_jvp and the other products: all vector leaves give the same bits",
                   "[jvp][vjp][hvp][property]", float, double)
{
    using T = TestType;
    const std::vector<leaf<T>> all = leaves_of_same_bits<T>();
    random_source random(seed_of_all);
    for_each_tangent<T>([&](const leaf<T>& by, const row<T>& p, const row<T>& v) {
        const std::size_t n = p.size();
        if (!by.is_public() || all.size() < 2)
            return;
        const row<T> u = random_row<T>(random, n);
        row<T> expected(n), out(n);
        for (const leaf<T>& other : all) {
            CAPTURE(other.name());
            for (const auto f : {&leaf<T>::softmax_jvp, &leaf<T>::log_softmax_jvp, &leaf<T>::log_softmax_vjp}) {
                (by.*f)(p, v, expected);
                (other.*f)(p, v, out);
                REQUIRE(bits::same(expected.data(), out.data(), n));
            }
            by.softmax_hvp(p, u, v, expected);
            other.softmax_hvp(p, u, v, out);
            REQUIRE(bits::same(expected.data(), out.data(), n));
            if (n <= 65) {
                row<T> expected_J(n * n), J(n * n);
                by.softmax_jacobian(p, expected_J);
                other.softmax_jacobian(p, J);
                REQUIRE(bits::same(expected_J.data(), J.data(), n * n));
                by.log_softmax_jacobian(p, expected_J);
                other.log_softmax_jacobian(p, J);
                REQUIRE(bits::same(expected_J.data(), J.data(), n * n));
            }
        }
    });
}

TEMPLATE_TEST_CASE("softmax_jvp: it is the Jacobian times the tangent", "[jvp][property]", float, double)
{
    using T = TestType;
    using W = oracle::wide<T>;
    for_each_tangent<T>([](const leaf<T>& by, const row<T>& p, const row<T>& v) {
        const std::size_t n = p.size();
        if (n > 65)
            return;
        row<T> J(n * n), jvp(n);
        by.softmax_jacobian(p, J);
        by.softmax_jvp(p, v, jvp);
        const auto exact = oracle::jacobian<T>(p.data(), n).jvp(v.data());
        double worst = 0;
        for (std::size_t i = 0; i < n; ++i) {
            W product = 0, subnormal = metric::subnormal_step<T>();
            for (std::size_t j = 0; j < n; ++j) {
                product += W(J[i * n + j]) * W(v[j]);
                subnormal += W(2) * metric::subnormal_step<T>() * oracle::magnitude(W(v[j]));
            }
            // An entry is within 2 ULP, which is at most 4 u of it.
            const W u = oracle::power_of_two(W(1), -std::numeric_limits<T>::digits);
            const W allowed = W(jvp_bound + 4) * u * exact[i].scale + subnormal;
            worst = std::max(worst, metric::as_double(oracle::magnitude(W(jvp[i]) - product) / allowed));
        }
        REQUIRE(worst <= 1);
    });
}

TEMPLATE_TEST_CASE(
    "softmax_jvp, log_softmax_jvp, log_softmax_vjp: several probabilities above a half, or the others sum to 1",
    "[jvp][vjp]", float, double)
{
    using T = TestType; // multiples of 1/16 below 2^24: the results have no error
    for (const std::array<T, 3>& few :
         {std::array<T, 3>{T(0.75), T(0.75), T(0.25)}, {T(4), T(0.25), T(0.75)}, {T(2), T(0.5), T(0.5)}})
        for (const std::size_t n : {3u, 4u, 8u, 9u, 16u, 17u, 32u, 33u, 64u, 65u, 128u, 129u, 300u})
            for (const std::size_t at : {std::size_t{0}, (n - 3) / 2, n - 3}) {
                row<T> p(n), x(n), jvp(n), log_jvp(n), log_vjp(n);
                std::copy(few.begin(), few.end(), p.begin() + static_cast<std::ptrdiff_t>(at));
                T dot = 0, sum = 0;
                const T mass = few[0] + few[1] + few[2];
                for (std::size_t i = 0; i < n; ++i) {
                    x[i] = static_cast<T>(i + 1);
                    dot += p[i] * x[i];
                    sum += x[i];
                }
                for (const leaf<T>& by : leaves<T>()) {
                    CAPTURE(by.name(), n, at, few[0]);
                    by.softmax_jvp(p, x, jvp);
                    by.log_softmax_jvp(p, x, log_jvp);
                    by.log_softmax_vjp(p, x, log_vjp);
                    for (std::size_t i = 0; i < n; ++i) {
                        CAPTURE(i);
                        REQUIRE(jvp[i] == p[i] * (mass * x[i] - dot));
                        REQUIRE(log_jvp[i] == mass * x[i] - dot);
                        REQUIRE(log_vjp[i] == x[i] * (mass - p[i]) - p[i] * (sum - x[i]));
                    }
                }
            }
}

TEMPLATE_TEST_CASE("softmax_jvp, log_softmax_jvp: products that are tiny though a tangent is large", "[jvp][vjp]",
                   float, double)
{
    using T = TestType;
    using W = oracle::wide<T>;
    constexpr bool is_float = std::is_same_v<T, float>;
    const T least = is_float ? T(0x1p-140f) : T(0x1p-1060), small = is_float ? T(0x1p-100f) : T(0x1p-1000);
    const W u = oracle::power_of_two(W(1), -std::numeric_limits<T>::digits);
    for (const std::size_t n : {3u, 8u, 9u, 17u, 33u, 64u, 65u, 129u, 300u})
        for (const T top : {T(1), T(0.375)})
            for (const T large : {T(0x1p10f), T(0x1p40f), is_float ? T(0x1p46f) : T(0x1p150)}) {
                row<T> p(n, least), v(n), jvp(n), log_jvp(n);
                for (std::size_t i = 0; i < n; ++i)
                    v[i] = (i % 2 == 0 ? large : -large) * (T(1) + T(i) / T(64));
                p[n / 2] = top;
                v[n / 2] = small;
                if (top < T(0.5)) { // no entry outweighs the others
                    p[0] = p[n - 1] = top;
                    v[0] = small / T(3);
                    v[n - 1] = -small;
                }
                const auto exact = oracle::jacobian<T>(p.data(), n).jvp(v.data());
                const auto exact_log = oracle::jacobian<T>(p.data(), n).log_jvp(v.data());
                for (const leaf<T>& by : leaves<T>()) {
                    CAPTURE(by.name(), n, top, large);
                    by.softmax_jvp(p, v, jvp);
                    by.log_softmax_jvp(p, v, log_jvp);
                    double worst = 0;
                    for (std::size_t i = 0; i < n; ++i) {
                        const W half_step = metric::subnormal_step<T>() / W(2);
                        worst = std::max({worst,
                                          metric::as_double(oracle::magnitude(W(jvp[i]) - exact[i].value) /
                                                            (W(jvp_bound) * u * exact[i].scale + half_step)),
                                          metric::as_double(oracle::magnitude(W(log_jvp[i]) - exact_log[i].value) /
                                                            (W(jvp_bound) * u * exact_log[i].scale + half_step))});
                    }
                    REQUIRE(worst <= 1);
                }
            }
}

// The cotangent -1/p_y of a rare y makes max |u~| huge, and the bound with it; the others keep more digits than that.
TEMPLATE_TEST_CASE("softmax_hvp: a rare entry with a large cotangent does not drown the others", "[hvp]", float, double)
{
    using T = TestType;
    using W = oracle::wide<T>;
    random_source random(seed_of_all);
    const W u_of_type = oracle::power_of_two(W(1), -std::numeric_limits<T>::digits);
    for (const std::size_t n : {3u, 8u, 9u, 16u, 17u, 32u, 33u, 64u, 65u, 129u, 300u})
        for (const std::size_t rare : {std::size_t{0}, n - 1}) {
            row<T> x = random_row<T>(random, n, 1), u = random_row<T>(random, n, 1), v = random_row<T>(random, n, 1);
            x[rare] = T(-14);
            const row<T> p = softmax_of(leaf<T>(), x);
            u[rare] = -1 / p[rare];
            const auto centred = [&](const row<T>& tangent) {
                W mass = 0, dot = 0;
                for (std::size_t i = 0; i < n; ++i) {
                    mass += W(p[i]);
                    dot += W(p[i]) * W(tangent[i]);
                }
                std::vector<W> out;
                for (std::size_t i = 0; i < n; ++i)
                    out.push_back(oracle::magnitude(W(tangent[i]) - dot / mass));
                return out;
            };
            const std::vector<W> size_u = centred(u), size_v = centred(v);
            W mean_u = 0, mean_v = 0, mean = 0;
            for (std::size_t i = 0; i < n; ++i) {
                mean_u += W(p[i]) * size_u[i];
                mean_v += W(p[i]) * size_v[i];
                mean += W(p[i]) * size_u[i] * size_v[i];
            }
            const auto exact = oracle::jacobian<T>(p.data(), n).hvp(u.data(), v.data());
            for (const leaf<T>& by : leaves<T>()) {
                row<T> out(n);
                by.softmax_hvp(p, u, v, out);
                double worst = 0;
                for (std::size_t i = 0; i < n; ++i) {
                    const W size = mean + (size_u[i] + mean_u) * (size_v[i] + mean_v);
                    worst = std::max(worst, metric::as_double(oracle::magnitude(W(out[i]) - exact[i].value) /
                                                              (u_of_type * W(p[i]) * size)));
                }
                CAPTURE(by.name(), n, rare);
                REQUIRE(worst <= 64);
            }
        }
}

TEMPLATE_TEST_CASE("log_softmax_vjp: cotangents near the subnormal numbers are rounded once", "[vjp]", float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    const T step = std::numeric_limits<T>::denorm_min();
    for (const std::size_t n : {2u, 7u, 8u, 9u, 16u, 17u, 33u, 50u, 64u, 65u, 100u, 129u, 300u})
        for (const double spread : {1.0, 1.0, 12.0, 12.0}) { // with an entry that outweighs the others, too
            row<T> p = softmax_of(leaf<T>(), random_row<T>(random, n, spread)), u(n), out(n);
            for (T& each : p) // s u_i is no multiple of the step
                each *= T(1 + 0x1.4p-12);
            for (T& each : u)
                each = static_cast<T>(static_cast<int>(random.below(200001)) - 100000) * step;
            const auto exact = oracle::jacobian<T>(p.data(), n).log_vjp(u.data());
            for (const leaf<T>& by : leaves<T>()) {
                by.log_softmax_vjp(p, u, out);
                double worst = 0;
                for (std::size_t i = 0; i < n; ++i)
                    worst = std::max(worst, metric::in_u<T>(out[i], exact[i]));
                CAPTURE(by.name(), n, spread);
                REQUIRE(worst <= jvp_bound);
            }
        }
}

// Whatever the sum: an entry with a large tangent that is rare beside the others, or that outweighs them.
TEMPLATE_TEST_CASE("softmax_jvp, log_softmax_jvp, log_softmax_vjp: probabilities whose sum is far from 1", "[jvp][vjp]",
                   float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (const std::size_t n : {2u, 3u, 5u, 8u, 9u, 16u, 17u, 24u, 25u, 32u, 33u, 64u, 65u, 129u})
        for (int exponent = -36; exponent <= 36; exponent += 3)
            for (const std::size_t apart : {std::size_t{0}, n - 1}) {
                row<T> p(n), v = random_row<T>(random, n, 1), jvp(n), log_jvp(n), log_vjp(n);
                for (T& each : p)
                    each = std::ldexp(T(0.5) + rows::to<T>(random.between(0, 0.5)), exponent);
                p[apart] = rows::to<T>(random.between(0.5, 1));
                v[apart] = T(1e6);
                const oracle::jacobian<T> J(p.data(), n);
                const auto exact = J.jvp(v.data()), exact_log = J.log_jvp(v.data()), exact_vjp = J.log_vjp(v.data());
                for (const leaf<T>& by : leaves<T>()) {
                    by.softmax_jvp(p, v, jvp);
                    by.log_softmax_jvp(p, v, log_jvp);
                    by.log_softmax_vjp(p, v, log_vjp);
                    double worst = 0;
                    for (std::size_t i = 0; i < n; ++i)
                        worst = std::max({worst, metric::jvp<T>(jvp[i], exact[i]),
                                          metric::in_u<T>(log_jvp[i], exact_log[i]),
                                          metric::in_u<T>(log_vjp[i], exact_vjp[i])});
                    CAPTURE(by.name(), n, exponent, apart);
                    REQUIRE(worst <= jvp_bound + 4);
                }
            }
}

TEMPLATE_TEST_CASE("softmax_jvp, log_softmax_jvp, log_softmax_vjp: they are linear", "[jvp][vjp][property]", float,
                   double)
{
    using T = TestType;
    using W = oracle::wide<T>;
    using exact_product = std::vector<oracle::judged<W>>;
    random_source random(seed_of_all);
    for_each_probs<T>([&](const leaf<T>& by, const row<T>& p) {
        const std::size_t n = p.size();
        row<T> v(n), w(n), sum(n); // small integers: 2 v - 3 w is exact
        for (std::size_t i = 0; i < n; ++i) {
            v[i] = static_cast<T>(static_cast<int>(random.below(2001)) - 1000);
            w[i] = static_cast<T>(static_cast<int>(random.below(2001)) - 1000);
            sum[i] = 2 * v[i] - 3 * w[i];
        }
        const oracle::jacobian<T> J(p.data(), n);
        const auto check = [&](const char* name, auto run, exact_product of_v, exact_product of_w,
                               exact_product of_sum) {
            row<T> a(n), b(n), c(n);
            run(v, a);
            run(w, b);
            run(sum, c);
            double worst = 0;
            for (std::size_t i = 0; i < n; ++i) {
                const W error = oracle::magnitude(W(c[i]) - (W(2) * W(a[i]) - W(3) * W(b[i])));
                const W scale = of_sum[i].scale + W(2) * of_v[i].scale + W(3) * of_w[i].scale;
                const W u = oracle::power_of_two(W(1), -std::numeric_limits<T>::digits);
                worst = std::max(
                    worst, metric::as_double(error / (W(jvp_bound) * u * scale + W(6) * metric::subnormal_step<T>())));
            }
            CAPTURE(name);
            REQUIRE(worst <= 1);
        };
        check(
            "softmax_jvp", [&](const row<T>& x, row<T>& out) { by.softmax_jvp(p, x, out); }, J.jvp(v.data()),
            J.jvp(w.data()), J.jvp(sum.data()));
        check(
            "log_softmax_jvp", [&](const row<T>& x, row<T>& out) { by.log_softmax_jvp(p, x, out); },
            J.log_jvp(v.data()), J.log_jvp(w.data()), J.log_jvp(sum.data()));
        check(
            "log_softmax_vjp", [&](const row<T>& x, row<T>& out) { by.log_softmax_vjp(p, x, out); },
            J.log_vjp(v.data()), J.log_vjp(w.data()), J.log_vjp(sum.data()));
    });
}

TEMPLATE_TEST_CASE("softmax_jvp: a constant tangent gives 0, exactly so where one probability outweighs the others",
                   "[jvp][property]", float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for_each_probs<T>([&](const leaf<T>& by, const row<T>& p) {
        const std::size_t n = p.size();
        const row<T> v(n, rows::to<T>(random.sign() * std::pow(10, random.between(-6, 12))));
        const auto exact = oracle::jacobian<T>(p.data(), n).jvp(v.data());
        double sum = 0;
        for (const T& each : p)
            sum += static_cast<double>(each);
        const bool dominated = static_cast<double>(p[rows::argmax(std::span<const T>(p))]) > 0.501 * sum;
        row<T> jvp(n), hvp(n);
        by.softmax_jvp(p, v, jvp);
        by.softmax_hvp(p, v, v, hvp);
        CAPTURE(rows::hex(v[0]));
        for (std::size_t i = 0; i < n; ++i) {
            REQUIRE(metric::jvp<T>(jvp[i], {oracle::wide<T>(0), exact[i].scale}) <= jvp_bound);
            if (dominated)
                REQUIRE(bits::is_zero(jvp[i]));
            REQUIRE(bits::is_zero(hvp[i])); // from differences, so always exactly
        }
        row<T> elsewhere = v, again(n); // where p = 0 the tangent has no part in it
        for (std::size_t i = 0; i < n; ++i)
            if (p[i] == 0)
                elsewhere[i] = T(3) * v[i];
        by.softmax_jvp(p, elsewhere, again);
        REQUIRE(bits::same(again.data(), jvp.data(), n));
    });
}

TEMPLATE_TEST_CASE("softmax_jvp: a constant tangent where a probability is 0 or just above a half", "[jvp][property]",
                   float, double)
{
    using T = TestType;
    for (std::size_t n = 3; n <= 300; n += n < 70 ? 1 : 23)
        for (const T top : {T(0.96), T(0.5001)}) {
            if (top < T(0.6) && n <= 64) // a row in registers takes it for none that outweighs the others
                continue;
            row<T> p(n, (1 - top) / static_cast<T>(n - 2)), v(n, T(0.41)), out(n);
            p[n / 2] = top;
            for (const std::size_t zero : {std::size_t{0}, n - 1})
                for (const T elsewhere : {T(0), T(1e30)}) {
                    row<T> q = p, t = v;
                    q[zero] = 0;
                    t[zero] = elsewhere;
                    for (const leaf<T>& by : leaves<T>()) {
                        CAPTURE(by.name(), n, top, zero, elsewhere);
                        by.softmax_jvp(q, t, out);
                        for (std::size_t i = 0; i < n; ++i)
                            REQUIRE(bits::is_zero(out[i]));
                    }
                }
        }
}

TEMPLATE_TEST_CASE("softmax_vjp: the cotangent -1/p_y at y gives p - e_y", "[vjp][property]", float, double)
{
    using T = TestType;
    using W = oracle::wide<T>;
    for_each_probs<T>([](const leaf<T>& by, const row<T>& p) {
        const std::size_t n = p.size();
        for (const std::size_t y : {rows::argmax(std::span<const T>(p)), n / 2}) {
            if (p[y] < static_cast<T>(1e-30))
                continue;
            row<T> u(n), out(n);
            u[y] = -1 / p[y];
            by.softmax_vjp(p, u, out);
            const W others = sum_of_others(p, y, [](std::size_t) { return W(1); });
            double worst = 0;
            for (std::size_t i = 0; i < n; ++i) {
                const W exact = i == y ? -others : W(p[i]); // 1 - p_y is the sum of the others
                worst = std::max(worst, metric::jvp<T>(out[i], {exact, oracle::magnitude(exact)}));
            }
            CAPTURE(y);
            REQUIRE(worst <= jvp_bound + 1); // 1: the rounding of 1/p_y
        }
    });
}

// --- memory -----------------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("softmax_jvp and the other products: the output may be any input", "[jvp][vjp][hvp][memory]", float,
                   double, long double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (std::size_t n = 0; n <= 70; ++n) {
        const row<T> p = softmax_of(leaf<T>(), random_row<T>(random, n, 3));
        const row<T> u = random_row<T>(random, n), v = random_row<T>(random, n);
        for (const leaf<T>& by : leaves<T>()) {
            CAPTURE(by.name(), n, seed_of_all);
            using two = void (leaf<T>::*)(std::span<const T>, std::span<const T>, std::span<T>) const;
            for (const two f :
                 {&leaf<T>::softmax_jvp, &leaf<T>::softmax_vjp, &leaf<T>::log_softmax_jvp, &leaf<T>::log_softmax_vjp}) {
                row<T> expected(n), squared(n), over_probs = p, over_tangent = v, over_both = p;
                (by.*f)(p, v, expected);
                (by.*f)(p, p, squared);
                (by.*f)(over_probs, v, over_probs);
                (by.*f)(p, over_tangent, over_tangent);
                (by.*f)(over_both, over_both, over_both);
                REQUIRE(bits::same(over_probs.data(), expected.data(), n));
                REQUIRE(bits::same(over_tangent.data(), expected.data(), n));
                REQUIRE(bits::same(over_both.data(), squared.data(), n));
            }
            row<T> expected(n), same_vector(n), all_same(n);
            by.softmax_hvp(p, u, v, expected);
            by.softmax_hvp(p, v, v, same_vector);
            by.softmax_hvp(p, p, p, all_same);
            row<T> over_probs = p, over_cotangent = u, over_tangent = v, over_vectors = v, over_all = p;
            by.softmax_hvp(over_probs, u, v, over_probs);
            by.softmax_hvp(p, over_cotangent, v, over_cotangent);
            by.softmax_hvp(p, u, over_tangent, over_tangent);
            by.softmax_hvp(p, over_vectors, over_vectors, over_vectors);
            by.softmax_hvp(over_all, over_all, over_all, over_all);
            REQUIRE(bits::same(over_probs.data(), expected.data(), n));
            REQUIRE(bits::same(over_cotangent.data(), expected.data(), n));
            REQUIRE(bits::same(over_tangent.data(), expected.data(), n));
            REQUIRE(bits::same(over_vectors.data(), same_vector.data(), n));
            REQUIRE(bits::same(over_all.data(), all_same.data(), n));
        }
    }
}

TEMPLATE_TEST_CASE("softmax_jvp and the other products: the bits do not depend on the alignment",
                   "[jvp][vjp][hvp][memory]", float, double)
{
    using T = TestType;
    for (const leaf<T>& by : leaves<T>())
        for (std::size_t n = 0; n <= 130; ++n) {
            random_source random(mixed(seed_of_all, n));
            const row<T> p = softmax_of(leaf<T>(), random_row<T>(random, n, 3));
            const row<T> u = random_row<T>(random, n), v = random_row<T>(random, n);
            row<T> jvp(n), log_jvp(n), log_vjp(n), hvp(n);
            by.softmax_jvp(p, v, jvp);
            by.log_softmax_jvp(p, v, log_jvp);
            by.log_softmax_vjp(p, v, log_vjp);
            by.softmax_hvp(p, u, v, hvp);
            for (std::size_t offset = 0; offset < 16; offset += 3) {
                constexpr std::size_t margin = 16;
                constexpr T canary = T(-77);
                row<T> probs(n + offset), tangent(n + 15), cotangent(n + 7), out(n + 16 + 2 * margin, canary);
                const std::span<T> p_here(probs.data() + offset, n), v_here(tangent.data() + 15 - offset, n);
                const std::span<T> u_here(cotangent.data() + offset % 8, n), out_here(out.data() + margin + offset, n);
                std::copy(p.begin(), p.end(), p_here.begin());
                std::copy(v.begin(), v.end(), v_here.begin());
                std::copy(u.begin(), u.end(), u_here.begin());
                CAPTURE(by.name(), n, offset, seed_of_all);
                by.softmax_jvp(p_here, v_here, out_here);
                REQUIRE(bits::same(out_here.data(), jvp.data(), n));
                by.log_softmax_jvp(p_here, v_here, out_here);
                REQUIRE(bits::same(out_here.data(), log_jvp.data(), n));
                by.log_softmax_vjp(p_here, v_here, out_here);
                REQUIRE(bits::same(out_here.data(), log_vjp.data(), n));
                by.softmax_hvp(p_here, u_here, v_here, out_here);
                REQUIRE(bits::same(out_here.data(), hvp.data(), n));
                bool intact = true;
                for (std::size_t i = 0; i < out.size(); ++i)
                    if (i < margin + offset || i >= margin + offset + n)
                        intact = intact && out[i] == canary;
                REQUIRE(intact);
                REQUIRE(bits::same(p_here.data(), p.data(), n));
                REQUIRE(bits::same(v_here.data(), v.data(), n));
            }
        }
}
