// SPDX-License-Identifier: BSL-1.0
// jacobian_view.test.cpp: the Jacobian as an operator, against dense linear algebra in long double and quad; and what it
// is for: Penrose's conditions, B B^T = J, L D L^T = J, interlacing. Every level of the machine and the public class.
//
// SMX_TABLE=1 in the environment prints the largest errors. Also compiled with -ffast-math.
#include <smx/smx.hpp>

#include "bits.hpp"
#include "catch.hpp"
#include "dense.hpp"
#include "error_table.hpp"
#include "message_of.hpp"
#include "oracle.hpp"
#include "rows.hpp"

#include <algorithm>
#include <array>
#include <cfenv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using oracle::product;
using oracle::transposed;
using oracle::wide;
using rows::mixed;
using rows::random_source;
using rows::row;

constexpr std::uint64_t seed_of_all = 0x0be7a705; // printed with every failure

// --- one face for every level and for the class -------------------------------------------------------------------

template <class T>
class level {
public:
    using in = std::span<const T>;
    using out = std::span<T>;
    using one_lane = smx::detail::generic::lane<T>;

    explicit level(std::size_t index) : index_(index) {} // of at_every_level; then the class

    static std::size_t count()
    {
        return smx::detail::at_every_level<T>([](auto rows) { return rows.totals; }).count;
    }
    bool is_public() const { return index_ == count(); }
    const char* name() const
    {
        return is_public()
                   ? "public"
                   : smx::detail::at_every_level<T>([](auto rows) { return rows.totals; }).functions[index_].name;
    }

    [[gnu::noinline]] void entry(in p, std::size_t i, std::size_t j, T& result) const
    {
        if (is_public())
            result = smx::jacobian_view(p)(i, j);
        else
            at([](auto rows) { return rows.jacobian_entry; })(p.data(), totals(p), i, j, &result);
    }
    [[gnu::noinline]] void diagonal(in p, out x) const
    {
        if (is_public())
            smx::jacobian_view(p).diagonal(x);
        else
            at([](auto rows) { return rows.jacobian_diagonal; })(p.data(), p.size(), totals(p), x.data());
    }
    [[gnu::noinline]] void trace(in p, T& result) const
    {
        if (is_public())
            result = smx::jacobian_view(p).trace();
        else
            at([](auto rows) { return rows.trace; })(p.data(), p.size(), totals(p), &result);
    }
    [[gnu::noinline]] void frobenius_norm(in p, T& result) const
    {
        if (is_public())
            result = smx::jacobian_view(p).frobenius_norm();
        else
            at([](auto rows) { return rows.frobenius_norm; })(p.data(), p.size(), totals(p), &result);
    }
    [[gnu::noinline]] void apply(in p, in v, out x) const
    {
        if (is_public())
            smx::jacobian_view(p).apply(v, x);
        else
            at([](auto rows) { return rows.softmax_jvp; })(p.data(), v.data(), x.data(), p.size());
    }
    [[gnu::noinline]] void solve_shifted(in p, const T& shift, in b, out x) const
    {
        if (is_public())
            smx::jacobian_view(p).solve_shifted(shift, b, x);
        else
            at([](auto rows) { return rows.solve_shifted; })(p.data(), b.data(), x.data(), p.size(), totals(p), &shift);
    }
    [[gnu::noinline]] void pseudo_inverse(in p, in b, out x) const
    {
        if (is_public())
            smx::jacobian_view(p).pseudo_inverse(b, x);
        else
            at([](auto rows) { return rows.pseudo_inverse; })(p.data(), b.data(), x.data(), p.size(), totals(p));
    }
    [[gnu::noinline]] void factor_apply(in p, in z, out x) const
    {
        if (is_public())
            smx::jacobian_view(p).factor_apply(z, x);
        else
            at([](auto rows) { return rows.factor_apply; })(p.data(), z.data(), x.data(), p.size(), totals(p));
    }
    [[gnu::noinline]] void factor_apply_transposed(in p, in v, out x) const
    {
        if (is_public())
            smx::jacobian_view(p).factor_apply_transposed(v, x);
        else
            at([](auto rows) { return rows.factor_apply_transposed; })(p.data(), v.data(), x.data(), p.size());
    }
    [[gnu::noinline]] void congruence(in p, in sigma, out x) const
    {
        if (is_public())
            smx::jacobian_view(p).congruence(sigma, x);
        else
            at([](auto rows) { return rows.congruence; })(p.data(), p.size(), sigma.data(), x.data());
    }
    // From here on one lane at every level, on the sums of this level.
    [[gnu::noinline]] void ldl(in p, out tails, out pivots) const
    {
        if (is_public())
            smx::jacobian_view(p).ldl(tails, pivots);
        else
            smx::detail::generic::row_ldl<one_lane>(p.data(), p.size(), totals(p), tails.data(), pivots.data());
    }
    [[gnu::noinline]] void log_pseudo_determinant(in p, T& result) const
    {
        if (is_public())
            result = smx::jacobian_view(p).log_pseudo_determinant();
        else
            smx::detail::generic::row_log_pseudo_determinant<one_lane>(p.data(), p.size(), totals(p), &result);
    }
    [[gnu::noinline]] void largest_eigenvalue(in p, T& result) const
    {
        if (is_public())
            result = smx::jacobian_view(p).largest_eigenvalue();
        else
            smx::detail::generic::row_largest_eigenvalue<one_lane>(p.data(), p.size(), totals(p), &result);
    }
    [[gnu::noinline]] void eigenvalues(in p, out x) const
    {
        if (is_public())
            smx::jacobian_view(p).eigenvalues(x);
        else
            smx::detail::generic::row_eigenvalues<one_lane>(p.data(), p.size(), totals(p), x.data());
    }

private:
    template <class Pick>
    auto at(Pick pick) const
    {
        return smx::detail::at_every_level<T>(pick).functions[index_].function;
    }
    auto totals(in p) const
    {
        return at([](auto rows) { return rows.totals; })(p.data(), p.size());
    }

    std::size_t index_;
};

template <class T>
std::vector<level<T>> levels()
{
    std::vector<level<T>> all;
    for (std::size_t k = 0; k <= level<T>::count(); ++k)
        all.push_back(level<T>(k));
    return all;
}

// --- bounds and the table of errors -------------------------------------------------------------------------------

constexpr bound diagonal_bound = {"diagonal", 2, 2};
constexpr bound off_diagonal_bound = {"off the diagonal", 1, 1};
constexpr bound trace_bound = {"trace", 8, 16};
constexpr bound frobenius_bound = {"frobenius_norm", 8, 16};
constexpr bound solve_bound = {"solve_shifted", 8, 16};
constexpr bound pseudo_inverse_bound = {"pseudo_inverse", 32, 64};
constexpr bound factor_bound = {"factor_apply", 16, 32};
constexpr bound factor_transposed_bound = {"factor_apply_transposed", 16, 32};
constexpr bound ldl_bound = {"ldl", 16, 32};
constexpr bound congruence_bound = {"congruence", 64, 128};
constexpr bound log_determinant_bound = {"log_pseudo_determinant", 8, 16};
constexpr bound largest_bound = {"largest_eigenvalue", 4, 8};
constexpr bound eigenvalues_bound = {"eigenvalues", 8, 16};

// --- rows ---------------------------------------------------------------------------------------------------------

template <class T>
struct probability_row {
    const char* kind;
    bool adversarial;
    std::size_t k;
    row<T> p;
};

namespace hostile {

// Two at 1/2, the rest as small as 1e-300 (double), 1e-38 (float).
template <class T>
void two_halves(random_source& random, std::span<T> p)
{
    for (T& each : p)
        each = rows::to<T>(std::is_same_v<T, float> ? 1e-38 : 1e-300);
    if (p.size() < 2)
        return;
    const std::size_t first = random.below(p.size());
    p[first] = T(0.5);
    p[(first + 1 + random.below(p.size() - 1)) % p.size()] = T(0.5);
}

// One at 1, the others subnormal and few of them different, and a sum of 15/16.
template <class T>
void subnormal_ties(random_source& random, std::span<T> p)
{
    for (T& each : p)
        each = static_cast<T>(random.below(4)) * rows::smallest<T>;
    if (!p.empty())
        p[random.below(p.size())] = T(0.9375);
}

// From 1/2 down by a factor, to the last number that is not 0.
template <class T>
void geometric(random_source& random, std::span<T> p)
{
    const double factor = random.between(0.001, 0.5);
    double size = 0.5;
    for (T& each : p) {
        each = rows::to<T>(size);
        size *= factor;
    }
}

// Neighbours on the number line: poles as close as they can be.
template <class T>
void neighbours(random_source& random, std::span<T> p)
{
    for (T& each : p) {
        each = static_cast<T>(1.0 / static_cast<double>(p.size()));
        bits::step_by(each, static_cast<std::int64_t>(random.below(7)) - 3);
    }
}

// Few different values.
template <class T>
void ties(random_source& random, std::span<T> p)
{
    for (T& each : p)
        each = static_cast<T>(static_cast<double>(1 + random.below(3)) / (2 * static_cast<double>(p.size())));
}

// Most of them 0.
template <class T>
void sparse(random_source& random, std::span<T> p)
{
    for (T& each : p)
        each = random.one_in(4) ? static_cast<T>(random.uniform() * 4 / static_cast<double>(p.size())) : T(0);
    if (!p.empty())
        p[random.below(p.size())] = static_cast<T>(0.25);
}

// A winner near 1/2, the other half in equal parts: sums of many equal terms.
template <class T>
void half_and_equal(random_source& random, std::span<T> p)
{
    for (T& each : p)
        each = static_cast<T>(random.between(0.4, 0.6) / static_cast<double>(p.size()));
    for (T& each : p)
        each = p[0];
    if (!p.empty())
        p[random.below(p.size())] = static_cast<T>(random.between(0.4, 0.6));
}

// Trailing zeros.
template <class T>
void ends_in_zeros(random_source& random, std::span<T> p)
{
    const std::size_t kept = 1 + random.below(p.size());
    for (std::size_t i = 0; i < p.size(); ++i)
        p[i] = i < kept ? static_cast<T>(1.0 / static_cast<double>(kept)) : T(0);
}

// Any exponent, beside 1/2.
template <class T>
void every_size(random_source& random, std::span<T> p)
{
    for (T& each : p)
        each = rows::to<T>(std::pow(10, random.between(std::is_same_v<T, float> ? -45 : -323, -2)));
    p[random.below(p.size())] = static_cast<T>(0.5);
}

} // namespace hostile

template <class T>
const std::vector<rows::kind<T>>& hostile_kinds()
{
    static const std::vector<rows::kind<T>> all = {
        {"two halves, the rest nothing", hostile::two_halves<T>},
        {"subnormal ties", hostile::subnormal_ties<T>},
        {"geometric", hostile::geometric<T>},
        {"neighbours", hostile::neighbours<T>},
        {"ties", hostile::ties<T>},
        {"sparse", hostile::sparse<T>},
        {"half and equal parts", hostile::half_and_equal<T>},
        {"trailing zeros", hostile::ends_in_zeros<T>},
        {"every size", hostile::every_size<T>},
    };
    return all;
}

// Rows of every kind for n = 1..40, and longer ones.
template <class T, class Use>
void for_each_row(std::size_t most, Use use)
{
    std::vector<std::size_t> lengths;
    for (std::size_t n = 1; n <= 40; ++n)
        lengths.push_back(n);
    for (const std::size_t n : {63u, 64u, 65u, 130u, 257u, 1000u, 4099u})
        lengths.push_back(n);
    for (const std::size_t n : lengths)
        for (std::size_t k = 0; n <= most && k < (n <= 40 ? 2 : 1) * rows::volume(); ++k) {
            for (const rows::kind<T>& kind : rows::probability_kinds<T>())
                use(probability_row<T>{kind.name, false, k, rows::make(kind, n, mixed(seed_of_all, k))});
            for (const rows::kind<T>& kind : hostile_kinds<T>())
                use(probability_row<T>{kind.name, true, k, rows::make(kind, n, mixed(seed_of_all, k))});
        }
}

template <class T>
void judge(const bound& limits, const probability_row<T>& x, const level<T>& by, double error, std::size_t i = 0)
{
    all_errors.note(limits, rows::name_of<T>(), by.name(), x.adversarial ? rows_are::adversarial : rows_are::natural,
                    error);
    const double allowed = x.adversarial ? limits.adversarial : limits.natural;
    if (!(error <= allowed)) {
        CAPTURE(limits.output, rows::name_of<T>(), by.name(), x.kind, x.p.size(), x.k, i, error, seed_of_all);
        INFO(rows::hex(std::span<const T>(x.p)));
        REQUIRE(error <= allowed);
    }
}

template <class T>
row<T> normal_row(random_source& random, std::size_t n)
{
    row<T> out(n);
    for (T& each : out)
        each = rows::to<T>(random.normal());
    return out;
}

template <class T>
std::vector<wide<T>> widened(const row<T>& x)
{
    return std::vector<wide<T>>(x.begin(), x.end());
}

template <class W>
W largest(const std::vector<W>& x)
{
    W out = 0;
    for (const W& each : x)
        out = oracle::larger(out, oracle::magnitude(each));
    return out;
}

template <class W>
W euclidean_norm(const std::vector<W>& x)
{
    W out = 0;
    for (const W& each : x)
        out += each * each;
    return oracle::root_of(out);
}

// vectors to multiply with: normal, all equal, one-hot, alternating
template <class T>
std::vector<row<T>> vectors(std::uint64_t seed, std::size_t n)
{
    random_source random(mixed(seed, n));
    std::vector<row<T>> out = {normal_row<T>(random, n), row<T>(n, static_cast<T>(1.0 / 3)), row<T>(n, T(0)),
                               row<T>(n)};
    out[2][random.below(n)] = T(1);
    for (std::size_t i = 0; i < n; ++i)
        out[3][i] = i % 2 == 0 ? T(3) : T(-3);
    return out;
}

template <class T>
wide<T> unit_of(const wide<T>& scale)
{
    return oracle::power_of_two(scale, -std::numeric_limits<T>::digits);
}

} // namespace

TEMPLATE_TEST_CASE("entries: those of the dense Jacobian, and of softmax_jacobian bit by bit", "[jacobian_view]", float,
                   double)
{
    using T = TestType;
    for_each_row<T>(65, [](const probability_row<T>& x) {
        const std::size_t n = x.p.size();
        const oracle::operator_of_row<T> exact(x.p.data(), n);
        row<T> dense(n * n);
        smx::softmax_jacobian(x.p, dense);
        for (const level<T>& by : levels<T>()) {
            row<T> diagonal(n);
            by.diagonal(x.p, diagonal);
            for (std::size_t i = 0; i < n; ++i)
                for (std::size_t j = 0; j < n; ++j) {
                    T entry{};
                    by.entry(x.p, i, j, entry);
                    judge(i == j ? diagonal_bound : off_diagonal_bound, x, by,
                          metric::in_ulp_at<T>(entry, exact.entry(i, j), exact.entry(i, j)), i);
                    if (i == j && !bits::same(entry, diagonal[i]))
                        FAIL("J(i, i) is not diagonal[i]: " << by.name() << " " << x.kind << " n " << n);
                    if (by.is_public() && !bits::same(entry, dense[i * n + j]))
                        FAIL("J(i, j) is not that of softmax_jacobian: " << x.kind << " n " << n);
                }
        }
    });
}

TEMPLATE_TEST_CASE("trace, frobenius_norm", "[jacobian_view]", float, double)
{
    using T = TestType;
    for_each_row<T>(4099, [](const probability_row<T>& x) {
        const oracle::operator_of_row<T> exact(x.p.data(), x.p.size());
        const wide<T> trace = exact.trace(), norm = x.p.size() <= 257 ? exact.frobenius_norm() : wide<T>(0);
        for (const level<T>& by : levels<T>()) {
            T result{};
            by.trace(x.p, result);
            judge(trace_bound, x, by, metric::in_ulp_at<T>(result, trace, trace));
            if (x.p.size() > 257)
                continue; // n^2 in the oracle
            by.frobenius_norm(x.p, result);
            judge(frobenius_bound, x, by, metric::in_ulp_at<T>(result, norm, norm));
        }
    });
}

TEMPLATE_TEST_CASE("apply: the bits of softmax_jvp", "[jacobian_view]", float, double, long double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (const std::size_t n : {1u, 2u, 3u, 17u, 33u, 130u, 1000u})
        for (const T scale : {T(1), T(30)}) {
            row<T> p = normal_row<T>(random, n);
            for (T& each : p)
                each *= scale;
            smx::softmax(p, p);
            const smx::jacobian_view J(p);
            for (const row<T>& v : vectors<T>(seed_of_all, n)) {
                row<T> a(n), b(n);
                J.apply(v, a);
                smx::softmax_jvp(p, v, b);
                CAPTURE(n, scale);
                for (std::size_t i = 0; i < n; ++i)
                    REQUIRE(bits::same(a[i], b[i]));
            }
        }
}

TEMPLATE_TEST_CASE("solve_shifted: a small backward error for every shift", "[jacobian_view]", float, double)
{
    using T = TestType;
    for_each_row<T>(4099, [](const probability_row<T>& x) {
        const std::size_t n = x.p.size();
        const oracle::operator_of_row<T> exact(x.p.data(), n);
        std::size_t turn = x.k; // 24 x 4 combinations
        for (const double s : {1e-30, 1e-12, 1e-6, 1e-3, 1.0, 1e6}) {
            const T shift = static_cast<T>(s);
            ++turn;
            std::vector<row<T>> right_sides = vectors<T>(seed_of_all + x.k, n);
            right_sides.push_back(right_sides[0]);
            for (T& each : right_sides.back()) // products with it are subnormal
                each *= static_cast<T>(std::is_same_v<T, float> ? 1e-38 : 1e-308);
            for (const row<T>& b : right_sides)
                for (const level<T>& by : levels<T>()) {
                    if (n > 20 && turn++ % 3 != 0)
                        continue; // the oracle is slow
                    row<T> solution(n);
                    by.solve_shifted(x.p, shift, b, solution);
                    const auto error = exact.backward_error(wide<T>(shift), widened(b), widened(solution));
                    // half a subnormal step of b, and of x times a norm of at most 1 + shift
                    const auto after_rounding =
                        error.value - (wide<T>(2) + wide<T>(shift)) * metric::subnormal_step<T>() / wide<T>(2);
                    judge(solve_bound, x, by,
                          after_rounding > wide<T>(0) ? metric::as_double(after_rounding / unit_of<T>(error.scale))
                                                      : 0);
                }
        }
    });
}

TEMPLATE_TEST_CASE("pseudo_inverse", "[jacobian_view]", float, double)
{
    using T = TestType;
    const double least = std::is_same_v<T, float> ? 1e-30 : 1e-290;
    for_each_row<T>(4099, [&](const probability_row<T>& x) {
        const std::size_t n = x.p.size();
        T smallest = T(1);
        for (const T& each : x.p)
            if (each > T(0))
                smallest = std::min(smallest, each);
        if (static_cast<double>(smallest) < least)
            return;
        const oracle::operator_of_row<T> exact(x.p.data(), n);
        for (const row<T>& b : vectors<T>(seed_of_all + x.k, n)) {
            const auto solution = exact.pseudo_inverse(widened(b));
            const wide<T> scale = largest(widened(b)) / wide<T>(smallest);
            for (const level<T>& by : levels<T>()) {
                row<T> computed(n);
                by.pseudo_inverse(x.p, b, computed);
                for (std::size_t i = 0; i < n; ++i)
                    judge(pseudo_inverse_bound, x, by, metric::in_u<T>(computed[i], {solution[i], scale}), i);
            }
        }
    });
}

TEMPLATE_TEST_CASE("pseudo_inverse: Penrose's four conditions", "[jacobian_view][property]", float, double)
{
    using T = TestType;
    using W = wide<T>;
    for_each_row<T>(12, [](const probability_row<T>& x) {
        const std::size_t n = x.p.size();
        const oracle::operator_of_row<T> exact(x.p.data(), n);
        W smallest = 1;
        for (const W& each : exact.p)
            if (each > W(0))
                smallest = each < smallest ? each : smallest;
        if (smallest < W(1e-4))
            return;
        const oracle::matrix<W> J = exact.dense();
        for (const level<T>& by : levels<T>()) {
            oracle::matrix<W> plus(n * n);
            for (std::size_t j = 0; j < n; ++j) {
                row<T> e(n), column(n);
                e[j] = T(1);
                by.pseudo_inverse(x.p, e, column);
                for (std::size_t i = 0; i < n; ++i)
                    plus[i * n + j] = W(column[i]);
            }
            const auto differ = [&](const oracle::matrix<W>& a, const oracle::matrix<W>& b) {
                W out = 0;
                for (std::size_t k = 0; k < n * n; ++k)
                    out = oracle::larger(out, oracle::magnitude(a[k] - b[k]));
                return metric::as_double(out * smallest / unit_of<T>(W(static_cast<double>(n))));
            };
            const auto projection = product(J, plus, n), other = product(plus, J, n);
            CAPTURE(by.name(), x.kind, n);
            REQUIRE(differ(product(projection, J, n), J) < 64);
            REQUIRE(differ(product(other, plus, n), plus) < 64);
            REQUIRE(differ(projection, transposed(projection, n)) < 64);
            REQUIRE(differ(other, transposed(other, n)) < 64);
        }
    });
}

TEMPLATE_TEST_CASE("factor_apply, factor_apply_transposed", "[jacobian_view]", float, double)
{
    using T = TestType;
    using W = wide<T>;
    for_each_row<T>(4099, [](const probability_row<T>& x) {
        const std::size_t n = x.p.size();
        const oracle::operator_of_row<T> exact(x.p.data(), n);
        const W top = largest(exact.root);
        for (const row<T>& z : vectors<T>(seed_of_all + x.k, n)) {
            const auto Bz = exact.factor(widened(z)), Btz = exact.factor_transposed(widened(z));
            const W norm = largest(widened(z));
            // An exact B z has entries of sqrt(n) times the maximum norm, and so has its rounding.
            const W norm_of_B = n <= 1000 ? norm : euclidean_norm(widened(z));
            for (const level<T>& by : levels<T>()) {
                row<T> computed(n);
                by.factor_apply(x.p, z, computed);
                for (std::size_t i = 0; i < n; ++i)
                    judge(
                        factor_bound, x, by,
                        metric::in_u<T>(computed[i], {Bz[i], exact.root[i] * (oracle::magnitude(W(z[i])) + norm_of_B)}),
                        i);
                by.factor_apply_transposed(x.p, z, computed);
                for (std::size_t i = 0; i < n; ++i)
                    judge(factor_transposed_bound, x, by,
                          metric::in_u<T>(computed[i], {Btz[i], top * (oracle::magnitude(W(z[i])) + norm)}), i);
            }
        }
    });
}

// |B B^T - J|_ij <= 32 u sqrt(J_ii J_jj): exact where one entry has nearly all, too.
TEMPLATE_TEST_CASE("factor_apply: B B^T = J, and B^T is its transpose", "[jacobian_view][property]", float, double)
{
    using T = TestType;
    using W = wide<T>;
    for_each_row<T>(17, [](const probability_row<T>& x) {
        const std::size_t n = x.p.size();
        const oracle::operator_of_row<T> exact(x.p.data(), n);
        for (const level<T>& by : levels<T>()) {
            oracle::matrix<W> B(n * n), Bt(n * n);
            for (std::size_t j = 0; j < n; ++j) {
                row<T> e(n), column(n);
                e[j] = T(1);
                by.factor_apply(x.p, e, column);
                for (std::size_t i = 0; i < n; ++i)
                    B[i * n + j] = W(column[i]);
                by.factor_apply_transposed(x.p, e, column);
                for (std::size_t i = 0; i < n; ++i)
                    Bt[i * n + j] = W(column[i]);
            }
            const W step = metric::subnormal_step<T>();
            const auto JJ = product(B, transposed(B, n), n);
            for (std::size_t i = 0; i < n; ++i)
                for (std::size_t j = 0; j < n; ++j) {
                    const W scale = oracle::root_of(exact.entry(i, i)) * oracle::root_of(exact.entry(j, j));
                    const W error = oracle::magnitude(JJ[i * n + j] - exact.entry(i, j));
                    const W difference = oracle::magnitude(B[i * n + j] - Bt[j * n + i]);
                    CAPTURE(by.name(), x.kind, n, i, j);
                    REQUIRE(error <= W(32) * unit_of<T>(scale) + step);
                    REQUIRE(difference <= W(32) * unit_of<T>(exact.root[i]) + step);
                }
        }
    });
}

TEMPLATE_TEST_CASE("ldl: L D L^T = J", "[jacobian_view]", float, double)
{
    using T = TestType;
    using W = wide<T>;
    for_each_row<T>(40, [](const probability_row<T>& x) {
        const std::size_t n = x.p.size();
        const oracle::operator_of_row<T> exact(x.p.data(), n);
        for (const level<T>& by : levels<T>()) {
            row<T> tails(n), pivots(n);
            by.ldl(x.p, tails, pivots);
            oracle::matrix<W> L(n * n);
            for (std::size_t j = 0; j < n; ++j) {
                REQUIRE(bits::is_finite(tails[j]));
                REQUIRE(bits::is_finite(pivots[j]));
                L[j * n + j] = 1;
                for (std::size_t i = j + 1; i < n; ++i)
                    L[i * n + j] = tails[j] > T(0) ? -exact.p[i] / W(tails[j]) : W(0);
            }
            for (std::size_t i = 0; i < n; ++i)
                for (std::size_t j = 0; j <= i; ++j) {
                    W sum = 0, scale = 0, steps = 0;
                    for (std::size_t k = 0; k <= j; ++k) {
                        const W term = L[i * n + k] * W(pivots[k]) * L[j * n + k];
                        sum += term;
                        scale += oracle::magnitude(term);
                        steps += oracle::magnitude(L[i * n + k] * L[j * n + k]); // what half a step of a pivot does
                    }
                    const W error =
                        oracle::magnitude(sum - exact.entry(i, j)) - steps * metric::subnormal_step<T>() / W(2);
                    judge(ldl_bound, x, by,
                          !(error > W(0)) ? 0
                          : scale == W(0) ? metric::lost
                                          : metric::as_double(error / unit_of<T>(scale)),
                          i);
                }
        }
    });
}

TEMPLATE_TEST_CASE("ldl: nothing is left of trailing zeros", "[jacobian_view]", float, double)
{
    using T = TestType;
    const row<T> p = {T(0.5), T(0.5), T(0), T(0)};
    row<T> tails(4), pivots(4);
    smx::jacobian_view(p).ldl(tails, pivots);
    CHECK(tails == row<T>{T(0.5), T(0), T(0), T(0)});
    CHECK(pivots == row<T>{T(0.25), T(0), T(0), T(0)});
}

TEMPLATE_TEST_CASE("congruence: J Sigma J^T, symmetric, positive semidefinite if Sigma is", "[jacobian_view]", float,
                   double)
{
    using T = TestType;
    using W = wide<T>;
    for_each_row<T>(24, [](const probability_row<T>& x) {
        const std::size_t n = x.p.size();
        random_source random(mixed(seed_of_all + x.k, n));
        oracle::matrix<W> A(n * n);
        for (W& each : A)
            each = W(random.normal());
        const auto AAt = product(A, transposed(A, n), n);
        row<T> sigma(n * n); // semidefinite but for its rounding
        for (std::size_t k = 0; k < n * n; ++k)
            sigma[k] = static_cast<T>(AAt[k]);
        const oracle::operator_of_row<T> exact(x.p.data(), n);
        const W norm = largest(widened(sigma));
        const auto J = exact.dense();
        const auto value = product(product(J, widened(sigma), n), J, n);
        for (const level<T>& by : levels<T>()) {
            row<T> computed(n * n);
            by.congruence(x.p, sigma, computed);
            for (std::size_t i = 0; i < n; ++i)
                for (std::size_t j = 0; j < n; ++j) {
                    const W scale = exact.p[i] * exact.p[j] * norm;
                    judge(congruence_bound, x, by, metric::in_u<T>(computed[i * n + j], {value[i * n + j], scale}), i);
                    if (!bits::same(computed[i * n + j], computed[j * n + i]))
                        FAIL("not symmetric: " << by.name() << " " << x.kind << " n " << n);
                }
            if (n <= 8) {
                const auto eigen = oracle::eigenvalues(widened(computed), n);
                REQUIRE(eigen[0] >=
                        W(-256) * unit_of<T>(norm * largest(exact.p) * largest(exact.p)) - metric::subnormal_step<T>());
            }
        }
    });
}

TEMPLATE_TEST_CASE("log_pseudo_determinant", "[jacobian_view]", float, double)
{
    using T = TestType;
    for_each_row<T>(4099, [](const probability_row<T>& x) {
        const oracle::operator_of_row<T> exact(x.p.data(), x.p.size());
        const wide<T> value = exact.log_pseudo_determinant(), scale = exact.sum_of_logs();
        for (const level<T>& by : levels<T>()) {
            T result{};
            by.log_pseudo_determinant(x.p, result);
            judge(log_determinant_bound, x, by, metric::in_u<T>(result, {value, scale}));
        }
    });
}

TEMPLATE_TEST_CASE("log_pseudo_determinant: the product of the eigenvalues but those that are 0", "[jacobian_view]",
                   float, double)
{
    using T = TestType;
    using W = wide<T>;
    for_each_row<T>(12, [](const probability_row<T>& x) {
        const oracle::operator_of_row<T> exact(x.p.data(), x.p.size());
        const auto positive = static_cast<std::size_t>(exact.support);
        if (positive < 2)
            return;
        for (const W& each : exact.p)
            if (each > W(0) && each < W(1e-4))
                return; // the dense eigenvalues have too few digits
        const auto eigen = oracle::eigenvalues(exact.dense(), x.p.size());
        W sum = 0;
        for (std::size_t i = x.p.size() - positive + 1; i < x.p.size(); ++i)
            sum += oracle::log_of(eigen[i]);
        const T result = smx::jacobian_view(x.p).log_pseudo_determinant();
        REQUIRE(metric::in_u<T>(result, {sum, exact.sum_of_logs()}) <= log_determinant_bound.natural);
    });
}

TEMPLATE_TEST_CASE("eigenvalues, largest_eigenvalue", "[jacobian_view]", float, double)
{
    using T = TestType;
    using W = wide<T>;
    std::size_t turn = 0;
    for_each_row<T>(40, [&](const probability_row<T>& x) {
        const std::size_t n = x.p.size();
        if (n > 12 && turn++ % 5 != 0)
            return; // the oracle is slow
        const oracle::operator_of_row<T> exact(x.p.data(), n);
        const auto value = oracle::eigenvalues(exact.dense(), n);
        std::vector<W> poles = exact.p;
        std::sort(poles.begin(), poles.end());
        for (W& each : poles)
            each *= exact.s;
        for (const level<T>& by : levels<T>()) {
            row<T> computed(n);
            by.eigenvalues(x.p, computed);
            for (std::size_t i = 0; i < n; ++i)
                judge(eigenvalues_bound, x, by, metric::in_u<T>(computed[i], {value[i], value[n - 1]}), i);
            T top{};
            by.largest_eigenvalue(x.p, top);
            judge(largest_bound, x, by, metric::in_ulp_at<T>(top, value[n - 1], value[n - 1]));

            CAPTURE(by.name(), x.kind, n);
            REQUIRE(bits::is_plus_zero(computed[0]));
            for (std::size_t i = 1; i < n; ++i) {
                CAPTURE(i);
                const W low = poles[i - 1] - metric::ulp_of<T>(poles[i - 1]),
                        high = poles[i] + metric::ulp_of<T>(poles[i]);
                REQUIRE(computed[i - 1] <= computed[i]);
                REQUIRE(W(computed[i]) >= low);
                REQUIRE(W(computed[i]) <= high);
                if (poles[i - 1] == poles[i])
                    REQUIRE(metric::in_ulp_at<T>(computed[i], poles[i], poles[i]) <= 1);
            }
        }
    });
}

// J is of degree 2 in p: J(c p) = c^2 J(p), so are the eigenvalues, and powers of two are exact.
TEMPLATE_TEST_CASE("eigenvalues, largest_eigenvalue: of a row whose sum is far below 1", "[jacobian_view][property]",
                   float, double)
{
    using T = TestType;
    using W = wide<T>;
    constexpr int far = std::is_same_v<T, float> ? 50 : 480;
    for_each_row<T>(12, [](const probability_row<T>& x) {
        const std::size_t n = x.p.size();
        for (const int k : {1, far / 2, far}) {
            row<T> small = x.p;
            bool exact = true;
            for (std::size_t i = 0; i < n; ++i) {
                small[i] = std::ldexp(x.p[i], -k);
                exact = exact && bits::same(std::ldexp(small[i], k), x.p[i]);
            }
            if (!exact)
                continue;
            const W factor = static_cast<W>(std::ldexp(1.0L, -2 * k));
            for (const level<T>& by : levels<T>()) {
                row<T> of_p(n), of_small(n);
                T largest{}, largest_of_small{};
                by.eigenvalues(x.p, of_p);
                by.eigenvalues(small, of_small);
                by.largest_eigenvalue(x.p, largest);
                by.largest_eigenvalue(small, largest_of_small);
                CAPTURE(by.name(), x.kind, n, k);
                const W expected = W(largest) * factor;
                REQUIRE(metric::in_ulp_at<T>(largest_of_small, expected, expected) <= 1);
                for (std::size_t i = 0; i < n; ++i)
                    REQUIRE(metric::in_u<T>(of_small[i], {W(of_p[i]) * factor, expected}) <= 2);
            }
        }
    });
}

// long rows: the sum of the eigenvalues is the trace, the sum of their squares that of the entries
TEMPLATE_TEST_CASE("eigenvalues: their sums of powers, n = 300", "[jacobian_view]", float, double)
{
    using T = TestType;
    using W = wide<T>;
    for (const rows::kind<T>& kind : rows::probability_kinds<T>()) {
        const std::size_t n = 300;
        const row<T> p = rows::make(kind, n, seed_of_all);
        const oracle::operator_of_row<T> exact(p.data(), n);
        row<T> eigen(n);
        smx::jacobian_view(p).eigenvalues(eigen);
        W sum = 0, squares = 0;
        for (const T& each : eigen) {
            sum += W(each);
            squares += W(each) * W(each);
        }
        CAPTURE(kind.name);
        const W norm = exact.frobenius_norm();
        REQUIRE(oracle::magnitude(sum - exact.trace()) <= W(64) * unit_of<T>(exact.trace()));
        REQUIRE(oracle::magnitude(oracle::root_of(squares) - norm) <= W(64) * unit_of<T>(norm));
    }
}

namespace {

// a / b, by 0 too: a type without a range of its own has no units in which a gap between subnormal poles is not 0
__attribute__((no_sanitize("float-divide-by-zero"))) double ratio(double a, double b) { return a / b; }

// A double that counts its operations.
struct counting {
    double value;
    static inline std::size_t products = 0;

    counting(int x) : value(x) {}
    static counting of(double x)
    {
        counting out(0);
        out.value = x;
        return out;
    }
    friend counting operator+(const counting& a, const counting& b) { return of(a.value + b.value); }
    friend counting operator-(const counting& a, const counting& b) { return of(a.value - b.value); }
    friend counting operator*(const counting& a, const counting& b) { return ++products, of(a.value * b.value); }
    friend counting operator/(const counting& a, const counting& b) { return ++products, of(ratio(a.value, b.value)); }
    friend bool operator<(const counting& a, const counting& b) { return a.value < b.value; }
    [[maybe_unused]] friend counting exp(const counting& a) { return of(std::exp(a.value)); }
    [[maybe_unused]] friend counting log(const counting& a) { return of(std::log(a.value)); }
    friend counting sqrt(const counting& a) { return of(std::sqrt(a.value)); }
};

} // namespace

TEST_CASE("eigenvalues: at most 60 n^2 multiplications and divisions, and 60 steps a root", "[jacobian_view]")
{
    random_source random(seed_of_all);
    const auto count = [](const row<double>& p) {
        std::vector<counting> probs, out(p.size(), counting(0));
        for (const double each : p)
            probs.push_back(counting::of(each));
        counting::products = 0;
        smx::jacobian_view(probs).eigenvalues(out);
        return static_cast<double>(counting::products) / static_cast<double>(p.size() * p.size());
    };
    row<double> p(1000);
    rows::probabilities::normal<double>(random, p);
    CHECK(count(p) <= 60);
    double worst = 0;
    for (const auto& kind : hostile_kinds<double>())
        for (int k = 0; k < 10; ++k) {
            const double each = count(rows::make(kind, 100, random.next()));
            CAPTURE(kind.name, each);
            CHECK(each <= 60 * 7); // six products an entry and step, and some a step
            worst = std::max(worst, each);
        }
    if (std::getenv("SMX_TABLE") != nullptr)
        std::printf("products / n^2: %.1f at n = 1000, hostile rows %.1f\n", count(p), worst);
}

#if !defined(__FAST_MATH__) // which keeps the bounds, not the bits
TEMPLATE_TEST_CASE("jacobian_view: AVX2 and AVX-512 give the same bits, and so does the class", "[jacobian_view][bits]",
                   float, double)
{
    using T = TestType;
    if (level<T>::count() < 2)
        return;
    std::vector<level<T>> all = levels<T>();
    all.erase(all.begin()); // the generic one
    for_each_row<T>(257, [&](const probability_row<T>& x) {
        const std::size_t n = x.p.size();
        random_source random(mixed(seed_of_all, n));
        const row<T> b = normal_row<T>(random, n), sigma = normal_row<T>(random, n <= 40 ? n * n : 0);
        row<T> first;
        for (const level<T>& by : all) {
            row<T> out(9 * n + 5 + sigma.size());
            const std::span<T> o(out);
            T* const at = out.data();
            by.diagonal(x.p, o.subspan(0, n));
            by.solve_shifted(x.p, static_cast<T>(1e-3), b, o.subspan(n, n));
            by.pseudo_inverse(x.p, b, o.subspan(2 * n, n));
            by.factor_apply(x.p, b, o.subspan(3 * n, n));
            by.factor_apply_transposed(x.p, b, o.subspan(4 * n, n));
            by.ldl(x.p, o.subspan(5 * n, n), o.subspan(6 * n, n));
            if (n <= 40)
                by.eigenvalues(x.p, o.subspan(7 * n, n));
            by.apply(x.p, b, o.subspan(8 * n, n));
            by.trace(x.p, at[9 * n]);
            by.frobenius_norm(x.p, at[9 * n + 1]);
            by.log_pseudo_determinant(x.p, at[9 * n + 2]);
            by.largest_eigenvalue(x.p, at[9 * n + 3]);
            by.entry(x.p, n - 1, n - 1, at[9 * n + 4]);
            if (!sigma.empty())
                by.congruence(x.p, sigma, o.subspan(9 * n + 5));
            if (first.empty())
                first = out;
            CAPTURE(by.name(), x.kind, n);
            REQUIRE(bits::same(first.data(), out.data(), out.size()));
        }
    });
}
#endif

// --- special values -----------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("jacobian_view: n = 0 and n = 1", "[jacobian_view][special]", float, double, long double)
{
    using T = TestType;
    row<T> none, p = {T(1)}, x = {T(7)}, y = {T(7)};
    const smx::jacobian_view nothing(none);
    CHECK(nothing.size() == 0);
    CHECK(nothing.trace() == T(0));
    CHECK(nothing.frobenius_norm() == T(0));
    CHECK(nothing.log_pseudo_determinant() == T(0));
    CHECK(nothing.largest_eigenvalue() == T(0));
    nothing.apply(none, row<T>{}.empty() ? none : none);
    row<T> out;
    nothing.diagonal(out);
    nothing.solve_shifted(T(1), none, out);
    nothing.pseudo_inverse(none, out);
    nothing.factor_apply(none, out);
    nothing.factor_apply_transposed(none, out);
    nothing.congruence(none, out);
    nothing.eigenvalues(out);

    const smx::jacobian_view J(p);
    CHECK(J(0, 0) == T(0));
    CHECK(J.trace() == T(0));
    CHECK(J.frobenius_norm() == T(0));
    CHECK(J.log_pseudo_determinant() == T(0));
    CHECK(J.largest_eigenvalue() == T(0));
    J.solve_shifted(T(2), row<T>{T(3)}, x);
    CHECK(x[0] == T(1.5));
    J.pseudo_inverse(row<T>{T(3)}, x);
    CHECK(x[0] == T(0));
    J.factor_apply(row<T>{T(3)}, x);
    CHECK(x[0] == T(0));
    J.factor_apply_transposed(row<T>{T(3)}, x);
    CHECK(x[0] == T(0));
    J.ldl(x, y);
    CHECK((x[0] == T(0) && y[0] == T(0)));
    J.eigenvalues(x);
    CHECK(x[0] == T(0));
}

TEMPLATE_TEST_CASE("jacobian_view: a NaN among probs reaches every number", "[jacobian_view][special]", float, double)
{
    using T = TestType;
    for (const level<T>& by : levels<T>())
        for (const std::size_t n : {1u, 2u, 5u, 33u})
            for (std::size_t i = 0; i < n; i += 4) {
                row<T> p(n, static_cast<T>(1.0 / static_cast<double>(n))), x(n);
                bits::put_nan(p[i], i % bits::nan_kinds);
                T result{};
                CAPTURE(by.name(), n, i);
                by.trace(p, result);
                REQUIRE(bits::is_nan(result));
                by.frobenius_norm(p, result);
                REQUIRE(bits::is_nan(result));
                by.log_pseudo_determinant(p, result);
                REQUIRE(bits::is_nan(result));
                by.largest_eigenvalue(p, result);
                REQUIRE(bits::is_nan(result));
                by.eigenvalues(p, x);
                for (const T& each : x)
                    REQUIRE(bits::is_nan(each));
                by.solve_shifted(p, T(1), row<T>(n, T(1)), x);
                for (const T& each : x)
                    REQUIRE(bits::is_nan(each));
            }
}

TEMPLATE_TEST_CASE("jacobian_view: where p = 0 an infinite entry is not looked at", "[jacobian_view][special]", float,
                   double)
{
    using T = TestType;
    const row<T> p = {T(0.5), T(0), T(0.25), T(0.25)};
    row<T> b = {T(1), T(0), T(2), T(3)}, finite(4), infinite(4);
    for (const level<T>& by : levels<T>()) {
        row<T> c = b;
        bits::put_plus_infinity(c[1]);
        CAPTURE(by.name());
        const auto check = [&](auto member) {
            member(b, finite);
            member(c, infinite);
            REQUIRE(bits::same(finite.data(), infinite.data(), 4));
        };
        check([&](const row<T>& in, row<T>& x) { by.pseudo_inverse(p, in, x); });
        check([&](const row<T>& in, row<T>& x) { by.factor_apply(p, in, x); });
        check([&](const row<T>& in, row<T>& x) { by.factor_apply_transposed(p, in, x); });
        by.solve_shifted(p, T(1), b, finite);
        by.solve_shifted(p, T(1), c, infinite);
        REQUIRE(bits::is_plus_infinity(infinite[1]));
        infinite[1] = finite[1];
        REQUIRE(bits::same(finite.data(), infinite.data(), 4));
    }
}

TEMPLATE_TEST_CASE("jacobian_view: an output may be the input", "[jacobian_view]", float, double, long double)
{
    using T = TestType;
    for (const std::size_t n : {1u, 5u, 33u, 130u}) {
        random_source random(mixed(seed_of_all, n));
        row<T> p = normal_row<T>(random, n);
        const row<T> b = normal_row<T>(random, n);
        smx::softmax(p, p);
        const smx::jacobian_view J(p);
        const auto check = [&](auto member) {
            row<T> x(n), y = b;
            member(b, x);
            member(y, y);
            for (std::size_t i = 0; i < n; ++i)
                REQUIRE(bits::same(x[i], y[i]));
        };
        check([&](const row<T>& in, row<T>& x) { J.apply(in, x); });
        check([&](const row<T>& in, row<T>& x) { J.solve_shifted(T(0.5), in, x); });
        check([&](const row<T>& in, row<T>& x) { J.pseudo_inverse(in, x); });
        check([&](const row<T>& in, row<T>& x) { J.factor_apply(in, x); });
        check([&](const row<T>& in, row<T>& x) { J.factor_apply_transposed(in, x); });
    }
}

TEMPLATE_TEST_CASE("jacobian_view: no floating-point exception is raised on ordinary rows", "[jacobian_view]", float,
                   double)
{
    using T = TestType;
    for_each_row<T>(33, [](const probability_row<T>& x) {
        if (x.adversarial)
            return;
        const std::size_t n = x.p.size();
        const row<T> b(n, T(1));
        row<T> out(n), pivots(n), sigma(n * n, T(1)), covariance(n * n);
        std::feclearexcept(FE_ALL_EXCEPT);
        for (const level<T>& by : levels<T>()) {
            T result{};
            by.trace(x.p, result);
            by.frobenius_norm(x.p, result);
            by.log_pseudo_determinant(x.p, result);
            by.largest_eigenvalue(x.p, result);
            by.diagonal(x.p, out);
            by.solve_shifted(x.p, static_cast<T>(1e-6), b, out);
            by.factor_apply(x.p, b, out);
            by.factor_apply_transposed(x.p, b, out);
            by.ldl(x.p, out, pivots);
            by.eigenvalues(x.p, out);
            by.congruence(x.p, sigma, covariance);
        }
        const int raised = std::fetestexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW);
        CAPTURE(x.kind, n);
        REQUIRE(raised == 0);
    });
}

// --- other scalars ------------------------------------------------------------------------------------------------

TEST_CASE("jacobian_view: long double keeps more digits than double", "[jacobian_view][scalars]")
{
    const row<long double> p = {0.5L, 0.3L, 0.15L, 0.05L}, b = {1, -2, 3, 0.5L};
    const smx::jacobian_view J(p);
    row<long double> x(4), y(4), e(4);
    const long double unit = 64 * std::numeric_limits<long double>::epsilon();
    J.solve_shifted(0.125L, b, x);
    J.apply(x, y);
    for (std::size_t i = 0; i < 4; ++i)
        CHECK(std::fabs(y[i] + 0.125L * x[i] - b[i]) < unit);
    J.factor_apply_transposed(b, x);
    J.factor_apply(x, x);
    J.apply(b, y);
    for (std::size_t i = 0; i < 4; ++i)
        CHECK(std::fabs(y[i] - x[i]) < unit);
    J.eigenvalues(e);
    const oracle::operator_of_row<double> exact(row<double>(p.begin(), p.end()).data(), 4);
    CHECK(std::fabs(e[0] + e[1] + e[2] + e[3] - J.trace()) < unit);
    CHECK(std::fabs(e[3] - J.largest_eigenvalue()) < unit);
    CHECK(std::fabs(std::log(e[1] * e[2] * e[3]) - J.log_pseudo_determinant()) < unit);
    CHECK(std::fabs(std::sqrt(e[1] * e[1] + e[2] * e[2] + e[3] * e[3]) - J.frobenius_norm()) < unit);
}

namespace {

// value + slope e, e^2 = 0
struct dual {
    double value, slope;

    dual(int constant) : value(constant), slope(0) {}
    dual(double value_, double slope_) : value(value_), slope(slope_) {}
    friend dual operator+(const dual& a, const dual& b) { return {a.value + b.value, a.slope + b.slope}; }
    friend dual operator-(const dual& a, const dual& b) { return {a.value - b.value, a.slope - b.slope}; }
    friend dual operator*(const dual& a, const dual& b)
    {
        return {a.value * b.value, a.slope * b.value + a.value * b.slope};
    }
    friend dual operator/(const dual& a, const dual& b)
    {
        return {a.value / b.value, (a.slope - a.value / b.value * b.slope) / b.value};
    }
    friend bool operator<(const dual& a, const dual& b) { return a.value < b.value; }
    [[maybe_unused]] friend dual exp(const dual& a) { return {std::exp(a.value), std::exp(a.value) * a.slope}; }
    friend dual log(const dual& a) { return {std::log(a.value), a.slope / a.value}; }
    friend dual sqrt(const dual& a) { return {std::sqrt(a.value), a.slope / (2 * std::sqrt(a.value))}; }
};

} // namespace

TEST_CASE("jacobian_view: of dual numbers every member is differentiated", "[jacobian_view][scalars]")
{
    const row<double> p = {0.5, 0.25, 0.2, 0.05}, direction = {0.3, -0.2, 0.1, -0.2};
    const row<double> b = {1, -2, 3, 0.5};
    std::vector<dual> dp, db;
    for (std::size_t i = 0; i < 4; ++i) {
        dp.push_back({p[i], direction[i]});
        db.push_back({b[i], 0});
    }
    const smx::jacobian_view D(dp);
    const double h = 0x1p-20;
    row<double> ahead = p, behind = p;
    for (std::size_t i = 0; i < 4; ++i) {
        ahead[i] += h * direction[i];
        behind[i] -= h * direction[i];
    }
    const smx::jacobian_view A(ahead), B(behind);
    const auto check = [&](const char* name, const dual& x, double a, double c) {
        CAPTURE(name, x.value, x.slope);
        CHECK(std::fabs(x.value - (a + c) / 2) < 1e-8);
        CHECK(std::fabs(x.slope - (a - c) / (2 * h)) < 1e-6);
    };
    check("entry", D(1, 1), A(1, 1), B(1, 1));
    check("trace", D.trace(), A.trace(), B.trace());
    check("frobenius_norm", D.frobenius_norm(), A.frobenius_norm(), B.frobenius_norm());
    check("log_pseudo_determinant", D.log_pseudo_determinant(), A.log_pseudo_determinant(), B.log_pseudo_determinant());
    check("largest_eigenvalue", D.largest_eigenvalue(), A.largest_eigenvalue(), B.largest_eigenvalue());
    std::vector<dual> x(4, dual(0)), t(4, dual(0));
    row<double> y(4), z(4), s(4);
    const auto check_rows = [&](const char* name) {
        for (std::size_t i = 0; i < 4; ++i)
            check(name, x[i], y[i], z[i]);
    };
    D.solve_shifted(dual(1), db, x), A.solve_shifted(1.0, b, y), B.solve_shifted(1.0, b, z);
    check_rows("solve_shifted");
    D.pseudo_inverse(db, x), A.pseudo_inverse(b, y), B.pseudo_inverse(b, z);
    for (std::size_t i = 0; i < 4; ++i)
        CHECK(std::fabs(x[i].slope - (y[i] - z[i]) / (2 * h)) < 1e-3);
    D.factor_apply(db, x), A.factor_apply(b, y), B.factor_apply(b, z);
    check_rows("factor_apply");
    D.factor_apply_transposed(db, x), A.factor_apply_transposed(b, y), B.factor_apply_transposed(b, z);
    check_rows("factor_apply_transposed");
    D.ldl(t, x), A.ldl(s, y), B.ldl(s, z);
    check_rows("ldl");
    D.eigenvalues(x), A.eigenvalues(y), B.eigenvalues(z);
    check_rows("eigenvalues");
    D.diagonal(x), A.diagonal(y), B.diagonal(z);
    check_rows("diagonal");
    D.apply(db, x), A.apply(b, y), B.apply(b, z);
    check_rows("apply");
}

// --- errors -------------------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("jacobian_view: bad arguments throw, and nothing is written", "[jacobian_view][check]", float,
                   double, long double)
{
    using T = TestType;
    row<T> p = {T(0.5), T(0.25), T(0.25)}, v = {T(1), T(2), T(3)}, x(3, T(7)), four(4, T(7)), nine(9, T(7)),
           other(9, T(7));
    const row<T> same_p = p;
    const smx::jacobian_view J(p);
    const std::string view = "smx::jacobian_view::";
    CHECK(message_of([&] { (void)J(3, 0); }) == view + "operator(): i is 3, probs has 3 elements");
    CHECK(message_of([&] { (void)J(0, 9); }) == view + "operator(): j is 9, probs has 3 elements");
    CHECK(message_of([&] { J.diagonal(four); }) == view + "diagonal: out has 4 elements, probs has 3");
    CHECK(message_of([&] { J.diagonal(p); }) ==
          view + "diagonal: out (3 elements) must not overlap probs (3 elements)");
    CHECK(message_of([&] { J.apply(four, x); }) == view + "apply: v has 4 elements, probs has 3");
    CHECK(message_of([&] { J.apply(v, four); }) == view + "apply: out has 4 elements, probs has 3");
    CHECK(message_of([&] { J.apply(v, p); }) == view + "apply: out (3 elements) must not overlap probs (3 elements)");
    row<T> buffer(6, T(7));
    const std::span<T> whole(buffer);
    CHECK(message_of([&] { J.apply(whole.first(3), whole.subspan(1, 3)); }) ==
          view + "apply: out (3 elements) partly overlaps v (3 elements)");
    CHECK(message_of([&] { J.solve_shifted(T(1), four, x); }) == view + "solve_shifted: b has 4 elements, probs has 3");
    CHECK(message_of([&] { J.solve_shifted(T(1), v, four); }) == view + "solve_shifted: x has 4 elements, probs has 3");
    CHECK(message_of([&] { J.solve_shifted(T(1), v, p); }) ==
          view + "solve_shifted: x (3 elements) must not overlap probs (3 elements)");
    CHECK(message_of([&] { J.solve_shifted(T(0), v, x); }) ==
          view + "solve_shifted: shift is 0, must be positive and finite");
    CHECK(message_of([&] { J.solve_shifted(T(-0.5), v, x); }) ==
          view + "solve_shifted: shift is -0.5, must be positive and finite");
    T bad{};
    bits::put_nan(bad);
    CHECK(message_of([&] { J.solve_shifted(bad, v, x); }).find("must be positive and finite") != std::string::npos);
    bits::put_plus_infinity(bad);
    CHECK(message_of([&] { J.solve_shifted(bad, v, x); }).find("must be positive and finite") != std::string::npos);
    CHECK(message_of([&] { J.pseudo_inverse(four, x); }) == view + "pseudo_inverse: b has 4 elements, probs has 3");
    CHECK(message_of([&] { J.pseudo_inverse(v, p); }) ==
          view + "pseudo_inverse: x (3 elements) must not overlap probs (3 elements)");
    CHECK(message_of([&] { J.factor_apply(four, x); }) == view + "factor_apply: z has 4 elements, probs has 3");
    CHECK(message_of([&] { J.factor_apply(v, p); }) ==
          view + "factor_apply: out (3 elements) must not overlap probs (3 elements)");
    CHECK(message_of([&] { J.factor_apply_transposed(four, x); }) ==
          view + "factor_apply_transposed: v has 4 elements, probs has 3");
    CHECK(message_of([&] { J.factor_apply_transposed(v, p); }) ==
          view + "factor_apply_transposed: out (3 elements) must not overlap probs (3 elements)");
    CHECK(message_of([&] { J.ldl(four, x); }) == view + "ldl: tails has 4 elements, probs has 3");
    CHECK(message_of([&] { J.ldl(x, four); }) == view + "ldl: pivots has 4 elements, probs has 3");
    CHECK(message_of([&] { J.ldl(p, x); }) == view + "ldl: tails (3 elements) must not overlap probs (3 elements)");
    CHECK(message_of([&] { J.ldl(x, p); }) == view + "ldl: pivots (3 elements) must not overlap probs (3 elements)");
    CHECK(message_of([&] { J.ldl(x, x); }) == view + "ldl: pivots (3 elements) must not overlap tails (3 elements)");
    CHECK(message_of([&] { J.congruence(four, nine); }) ==
          view + "congruence: sigma has 4 elements, probs has 3: n * n is 9");
    CHECK(message_of([&] { J.congruence(nine, four); }) ==
          view + "congruence: out has 4 elements, probs has 3: n * n is 9");
    CHECK(message_of([&] { J.congruence(nine, nine); }) ==
          view + "congruence: out (9 elements) must not overlap sigma (9 elements)");
    CHECK(message_of([&] { J.eigenvalues(four); }) == view + "eigenvalues: out has 4 elements, probs has 3");
    CHECK(message_of([&] { J.eigenvalues(p); }) ==
          view + "eigenvalues: out (3 elements) must not overlap probs (3 elements)");
    CHECK(p == same_p);
    for (const row<T>* each : {&x, &four, &nine, &other, &buffer})
        CHECK(*each == row<T>(each->size(), T(7)));
    CHECK(message_of([&] { J.apply(v, x); }) == "threw nothing");
    CHECK(message_of([&] { J.congruence(nine, other); }) == "threw nothing");
}

// --- what does not compile ----------------------------------------------------------------------------------------

namespace {

template <class Probs>
concept can_be_viewed = requires(Probs (*probs)()) { smx::jacobian_view(probs()); };

static_assert(can_be_viewed<std::vector<double>&>);
static_assert(can_be_viewed<const std::vector<double>&>);
static_assert(can_be_viewed<std::span<const float>>);
static_assert(can_be_viewed<std::span<float>>);
static_assert(can_be_viewed<std::array<double, 3>&>);
static_assert(can_be_viewed<double (&)[3]>);
static_assert(!can_be_viewed<std::vector<double>>);       // a temporary
static_assert(!can_be_viewed<const std::vector<double>>); // a temporary
static_assert(!can_be_viewed<std::array<double, 3>>);     // a temporary
static_assert(!can_be_viewed<std::vector<int>&>);
static_assert(!can_be_viewed<std::vector<bool>&>);
static_assert(!can_be_viewed<double>);
static_assert(!smx::viewable_row<std::vector<double>>);
static_assert(smx::viewable_row<const std::vector<double>&>);

static_assert(
    std::is_same_v<decltype(smx::jacobian_view(std::declval<std::vector<float>&>())), smx::jacobian_view<float>>);
static_assert(
    std::is_same_v<decltype(smx::jacobian_view(std::declval<const double (&)[4]>())), smx::jacobian_view<double>>);
static_assert(std::is_trivially_copyable_v<smx::jacobian_view<double>>);
static_assert(!std::is_convertible_v<std::vector<double>&, smx::jacobian_view<double>>); // explicit

using view = smx::jacobian_view<double>;
template <class V, class Out>
concept can_apply = requires(const view& J, V v, Out out) { J.apply(static_cast<V>(v), static_cast<Out>(out)); };

using doubles = std::vector<double>;
static_assert(can_apply<const doubles&, doubles&>);
static_assert(can_apply<const doubles&, std::span<double>>);
static_assert(!can_apply<const doubles&, doubles>);        // a temporary output
static_assert(!can_apply<const doubles&, const doubles&>); // a const output
static_assert(!can_apply<const std::vector<float>&, doubles&>);
static_assert(!can_apply<const doubles&, std::vector<float>&>);
static_assert(!can_apply<const std::array<double, 3>&, std::array<double, 4>&>);

// --- constant expressions -----------------------------------------------------------------------------------------

template <class T>
constexpr bool near(T a, T b)
{
    const T difference = a < b ? b - a : a - b;
    return difference <= 8 * std::numeric_limits<T>::epsilon() * (b < 0 ? -b : b);
}

template <class T>
constexpr bool holds_in_a_constant_expression()
{
    const std::array<T, 4> p = {T(0.5), T(0.25), T(0.125), T(0.125)};
    const smx::jacobian_view J(p);
    bool holds = J.size() == 4 && J(0, 0) == T(0.25) && J(0, 1) == T(-0.125) && J.trace() == T(0.65625);
    std::array<T, 4> d{}, x{}, y{};
    J.diagonal(d);
    holds = holds && d == std::array<T, 4>{T(0.25), T(0.1875), T(0.109375), T(0.109375)};
    const std::array<T, 4> b = {T(1), T(-2), T(3), T(0.5)};
    J.solve_shifted(T(0.5), b, x);
    J.apply(x, y);
    for (std::size_t i = 0; i < 4; ++i)
        holds = holds && near(y[i] + x[i] / 2, b[i]);
    // one p within 1e-18 of 1
    const std::array<T, 2> q = {T(1), T(1e-20L)};
    const smx::jacobian_view K(q);
    return holds && K(0, 0) == T(1e-20L) && near(K.trace(), T(2e-20L));
}

static_assert(holds_in_a_constant_expression<float>());
static_assert(holds_in_a_constant_expression<double>());
static_assert(holds_in_a_constant_expression<long double>());

constexpr std::array<double, 0> none{};
static_assert(smx::jacobian_view(none).trace() == 0);

} // namespace
