// SPDX-License-Identifier: BSL-1.0
// cross_entropy.test.cpp: losses and their gradients: error bounds on natural and on adversarial rows, derivatives,
// saturation, special values, bad calls, and what is left alone.
//
// SMX_TABLE=1 in the environment prints the largest errors, SMX_NIGHTLY=1 runs thirty times the rows. Also compiled with
// -ffast-math: special values are written and read as integer bits.
#include <smx/cross_entropy.hpp>
#include <smx/softmax.hpp>

#include "allocations.hpp"
#include "bits.hpp"
#include "catch.hpp"
#include "error_table.hpp"
#include "message_of.hpp"
#include "oracle.hpp"
#include "rows.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cfenv>
#include <cmath>
#include <complex>
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

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

// --- exact values -----------------------------------------------------------------------------------------------

#if defined(__clang__)
#pragma float_control(precise, on, push)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("no-fast-math")
#endif

namespace exact {

using oracle::judged;
using oracle::quad;

#if LDBL_MANT_DIG == 113
inline quad expm1_of(quad x) { return ::expm1l(x); }
#else
extern "C" quad expm1q(quad);
inline quad expm1_of(quad x) { return expm1q(x); }
#endif

// p_i = e_i / (1 + R) with e_i = e^-d_i, d_i = max - x_i, R the sum of all e_j but that of one maximum.
template <class W>
struct distribution {
    std::vector<W> d, e;
    std::vector<bool> present;
    std::size_t top = 0;
    W rest = 0, log_sum = 0;

    template <class T>
    explicit distribution(const std::vector<T>& x) : d(x.size()), e(x.size()), present(x.size())
    {
        top = x.size();
        for (std::size_t i = 0; i < x.size(); ++i) {
            present[i] = bits::is_finite(x[i]);
            if (present[i] && (top == x.size() || x[top] < x[i]))
                top = i;
        }
        for (std::size_t i = 0; i < x.size(); ++i) {
            if (!present[i])
                continue;
            d[i] = W(x[top]) - W(x[i]);
            e[i] = oracle::exp_below(-d[i]);
            if (i != top)
                rest += e[i];
        }
        log_sum = oracle::log1p_of(rest);
    }

    W prob(std::size_t i) const { return e[i] / (W(1) + rest); }
    W surprise(std::size_t i) const { return d[i] + log_sum; } // -log p_i, where present
};

template <class T>
oracle::wide<T> label_loss(const std::vector<T>& x, std::size_t y)
{
    return distribution<oracle::wide<T>>(x).surprise(y);
}

template <class T>
std::vector<oracle::wide<T>> label_gradient(const std::vector<T>& x, std::size_t y)
{
    const distribution<oracle::wide<T>> p(x);
    std::vector<oracle::wide<T>> out(x.size());
    oracle::wide<T> others = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        out[i] = p.prob(i);
        if (i != y)
            others += p.e[i];
    }
    out[y] = -others / (1 + p.rest);
    return out;
}

template <class T>
oracle::wide<T> target_loss(const std::vector<T>& x, const std::vector<T>& t)
{
    const distribution<oracle::wide<T>> p(x);
    oracle::wide<T> out = 0;
    for (std::size_t i = 0; i < x.size(); ++i)
        if (p.present[i])
            out += oracle::wide<T>(t[i]) * p.surprise(i);
    return out;
}

template <class T>
std::vector<judged<oracle::wide<T>>> target_gradient(const std::vector<T>& x, const std::vector<T>& t)
{
    using W = oracle::wide<T>;
    const distribution<W> p(x);
    W mass = 0;
    for (const T& each : t)
        mass += W(each);
    std::vector<judged<W>> out(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
        out[i] = {p.prob(i) * mass - W(t[i]), p.prob(i) * mass + W(t[i])};
    return out;
}

template <class T>
oracle::wide<T> entropy(const std::vector<T>& x)
{
    const distribution<oracle::wide<T>> p(x);
    oracle::wide<T> out = p.log_sum;
    for (std::size_t i = 0; i < x.size(); ++i)
        out += p.prob(i) * p.d[i];
    return out;
}

template <class T>
std::vector<judged<oracle::wide<T>>> entropy_gradient(const std::vector<T>& x)
{
    using W = oracle::wide<T>;
    const distribution<W> p(x);
    std::vector<W> products(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
        products[i] = p.prob(i) * p.d[i];
    const std::vector<W> other_products = oracle::sums_of_others(products), other_terms = oracle::sums_of_others(p.e);
    std::vector<judged<W>> out(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        const W own = p.d[i] * other_terms[i] / (1 + p.rest); // sum_{j != i} p_j d_i
        out[i] = {p.prob(i) * (own - other_products[i]), p.prob(i) * (own + other_products[i])};
    }
    return out;
}

// (a - b) - (c - e), the inner differences without error (Knuth 1969)
inline quad difference(quad a, quad b, quad c, quad e)
{
    const quad x = a - b, b_part = x - a, y = c - e, e_part = y - c;
    return (x - y) + (((a - (x - b_part)) - (b + b_part)) - ((c - (y - e_part)) - (e + e_part)));
}

// log1p(sum p_i (e^-d_i - 1)) + <p, d>, against KL + sum p_i |d_i|
template <class T>
judged<quad> divergence(const std::vector<T>& x, const std::vector<T>& y)
{
    const distribution<quad> p(x), q(y);
    const std::size_t m = p.top;
    const quad log_ratio_of_tops = q.d[m]; // max y - y_m
    quad z = 0, dot = 0, size = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const quad from_m = q.present[i] ? q.d[m] - q.d[i] : quad(0); // y_i - y_m
        if (!p.present[i]) {
            z += q.present[i] && from_m < quad(11000)
                     ? oracle::exp_of(from_m < quad(-11000) ? quad(-11000) : from_m) / (1 + p.rest)
                     : quad(0);
            continue;
        }
        const quad d = difference(quad(x[i]), quad(x[m]), quad(y[i]), quad(y[m]));
        dot += p.prob(i) * d;
        size += p.prob(i) * oracle::magnitude(d);
        if (oracle::magnitude(d) < quad(1))
            z += p.prob(i) * expm1_of(-d);
        else if (from_m < quad(11000))
            z += (from_m < quad(-11000) ? quad(0) : oracle::exp_of(from_m)) / (1 + p.rest) - p.prob(i);
    }
    const quad value =
        log_ratio_of_tops < quad(11000) ? oracle::log1p_of(z) + dot : dot + log_ratio_of_tops + (q.log_sum - p.log_sum);
    return {value, value + size};
}

} // namespace exact

#if defined(__clang__)
#pragma float_control(pop)
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

namespace {

using rows::random_source;
using rows::row;

constexpr std::uint64_t seed_of_all = 0x1055e5; // printed with every failure

// --- one face for every level and the public interface ---------------------------------------------------------

template <class T>
class level {
public:
    using in = std::span<const T>;
    using out = std::span<T>;

    level() = default; // the public interface
    level(const char* name, std::size_t which) : name_(name), which_(which) {}

    const char* name() const { return name_; }
    bool is_public() const { return which_ == none; }

    // Results by reference: they may be NaN. Not inlined: nothing is known of them.
    [[gnu::noinline]] void cross_entropy(in x, std::size_t label, T& loss) const
    {
        if (is_public())
            loss = smx::cross_entropy(x, label);
        else
            at([](auto rows) { return rows.cross_entropy; })(x.data(), x.size(), label, &loss);
    }
    [[gnu::noinline]] void cross_entropy(in x, in t, T& loss) const
    {
        if (is_public())
            loss = smx::cross_entropy(x, t);
        else
            at([](auto rows) { return rows.cross_entropy_target; })(x.data(), t.data(), x.size(), &loss);
    }
    [[gnu::noinline]] void cross_entropy_gradient(in x, std::size_t label, out g, T& loss) const
    {
        if (is_public())
            loss = smx::cross_entropy_gradient(x, label, g);
        else
            at([](auto rows) { return rows.cross_entropy_gradient; })(x.data(), x.size(), label, g.data(), &loss);
    }
    [[gnu::noinline]] void cross_entropy_gradient(in x, in t, out g, T& loss) const
    {
        if (is_public())
            loss = smx::cross_entropy_gradient(x, t, g);
        else
            at([](auto rows) { return rows.cross_entropy_target_gradient; })(x.data(), t.data(), x.size(), g.data(),
                                                                             &loss);
    }
    [[gnu::noinline]] void entropy(in x, T& value) const
    {
        if (is_public())
            value = smx::entropy(x);
        else
            at([](auto rows) { return rows.entropy; })(x.data(), x.size(), &value);
    }
    [[gnu::noinline]] void entropy_gradient(in x, out g, T& value) const
    {
        if (is_public())
            value = smx::entropy_gradient(x, g);
        else
            at([](auto rows) { return rows.entropy_gradient; })(x.data(), x.size(), g.data(), &value);
    }
    [[gnu::noinline]] void kl_divergence(in p, in q, T& value) const
    {
        if (is_public())
            value = smx::kl_divergence(p, q);
        else
            at([](auto rows) { return rows.kl_divergence; })(p.data(), q.data(), p.size(), &value);
    }
    [[gnu::noinline]] void log_softmax(in x, out y) const
    {
        if (is_public())
            smx::log_softmax(x, y);
        else
            at([](auto rows) { return rows.log_softmax; })(x.data(), y.data(), x.size(), smx::detail::scale_of(T(1)),
                                                           nullptr);
    }

private:
    static constexpr std::size_t none = 99;

    template <class Pick>
    auto at(Pick pick) const
    {
        return smx::detail::at_every_level<T>(pick).functions[which_].function;
    }

    const char* name_ = "public";
    std::size_t which_ = none;
};

// Every level that this machine can run, then the public interface; long double has the latter only.
template <class T>
std::vector<level<T>> levels()
{
    std::vector<level<T>> all;
    if constexpr (!std::is_same_v<T, long double>)
        for (const auto& each : smx::detail::at_every_level<T>([](auto rows) { return rows.entropy; }))
            all.push_back(level<T>(each.name, all.size()));
    all.push_back(level<T>());
    return all;
}

// --- problems and how they are judged --------------------------------------------------------------------------

// Logits, and what a loss wants besides.
template <class T>
struct problem {
    std::string kind;
    row<T> x;
    row<T> other; // target, or the logits of Q
    std::size_t label = 0;

    std::string words() const
    {
        return rows::joined("rows '", kind, "', label ", std::to_string(label), ", logits ",
                            rows::hex(std::span<const T>(x)), other.empty() ? "" : ", other ",
                            other.empty() ? "" : rows::hex(std::span<const T>(other)));
    }
};

template <class T>
double worst_ulp(const row<T>& computed, const std::vector<oracle::wide<T>>& exact)
{
    double worst = 0;
    for (std::size_t i = 0; i < computed.size(); ++i)
        worst = std::max(worst, metric::in_ulp_at<T>(computed[i], exact[i], exact[i]));
    return worst;
}

template <class T>
double worst_u(const row<T>& computed, const std::vector<oracle::judged<oracle::wide<T>>>& exact)
{
    double worst = 0;
    for (std::size_t i = 0; i < computed.size(); ++i)
        worst = std::max(worst, metric::in_u<T>(computed[i], exact[i]));
    return worst;
}

enum class wants { nothing, label, target, logits };

// One output: its bounds, and its largest error for a problem.
template <class T>
struct output {
    const char* name;
    double natural, adversarial;
    wants other;
    double (*error)(const level<T>&, const problem<T>&);
};

template <class T>
constexpr output<T> label_loss = {
    "cross_entropy, label", 4, 6, wants::label, [](const level<T>& by, const problem<T>& at) {
        T loss{}, other{};
        row<T> g(at.x.size());
        by.cross_entropy(at.x, at.label, loss);
        by.cross_entropy_gradient(at.x, at.label, g, other);
        const auto exact = exact::label_loss(at.x, at.label);
        return std::max(metric::in_ulp_at<T>(loss, exact, exact), metric::in_ulp_at<T>(other, exact, exact));
    }};
template <class T>
constexpr output<T> label_gradient = {"cross_entropy_gradient, label", 4, 6, wants::label,
                                      [](const level<T>& by, const problem<T>& at) {
                                          T loss{};
                                          row<T> g(at.x.size());
                                          by.cross_entropy_gradient(at.x, at.label, g, loss);
                                          return worst_ulp(g, exact::label_gradient(at.x, at.label));
                                      }};
template <class T>
constexpr output<T> target_loss = {
    "cross_entropy, target", 4, 6, wants::target, [](const level<T>& by, const problem<T>& at) {
        T loss{}, other{};
        row<T> g(at.x.size());
        by.cross_entropy(at.x, at.other, loss);
        by.cross_entropy_gradient(at.x, at.other, g, other);
        const auto exact = exact::target_loss(at.x, at.other);
        return std::max(metric::in_ulp_at<T>(loss, exact, exact), metric::in_ulp_at<T>(other, exact, exact));
    }};
template <class T>
constexpr output<T> target_gradient = {"cross_entropy_gradient, target", 4, 6, wants::target,
                                       [](const level<T>& by, const problem<T>& at) {
                                           T loss{};
                                           row<T> g(at.x.size());
                                           by.cross_entropy_gradient(at.x, at.other, g, loss);
                                           return worst_u(g, exact::target_gradient(at.x, at.other));
                                       }};
template <class T>
constexpr output<T> entropy = {"entropy", 8, 16, wants::nothing, [](const level<T>& by, const problem<T>& at) {
                                   T value{}, other{};
                                   row<T> g(at.x.size());
                                   by.entropy(at.x, value);
                                   by.entropy_gradient(at.x, g, other);
                                   const auto exact = exact::entropy(at.x);
                                   return std::max(metric::in_ulp_at<T>(value, exact, exact),
                                                   metric::in_ulp_at<T>(other, exact, exact));
                               }};
template <class T>
constexpr output<T> entropy_gradient = {"entropy_gradient", 16, 24, wants::nothing,
                                        [](const level<T>& by, const problem<T>& at) {
                                            T value{};
                                            row<T> g(at.x.size());
                                            by.entropy_gradient(at.x, g, value);
                                            return worst_u(g, exact::entropy_gradient(at.x));
                                        }};
template <class T>
constexpr output<T> divergence = {"kl_divergence", 16, 32, wants::logits, [](const level<T>& by, const problem<T>& at) {
                                      using W = oracle::wide<T>;
                                      T value{};
                                      by.kl_divergence(at.x, at.other, value);
                                      const oracle::judged<oracle::quad> exact = exact::divergence(at.x, at.other);
                                      if (value < T(0))
                                          return metric::lost;
                                      return metric::in_u<T>(value, {W(exact.value), W(exact.scale)});
                                  }};

// --- targets, second rows of logits ----------------------------------------------------------------------------

template <class T>
std::size_t argmax(const row<T>& x)
{
    std::size_t best = 0;
    for (std::size_t i = 0; i < x.size(); ++i)
        if (bits::is_finite(x[i]) && (!bits::is_finite(x[best]) || x[best] < x[i]))
            best = i;
    return best;
}

constexpr const char* target_names[] = {"one-hot",    "one-hot at the argmax", "uniform",    "random", "smoothed",
                                        "some zeros", "unnormalised",          "many sizes", "tiny",   "zero"};

// Not negative; 0 where the logit is -inf.
template <class T>
row<T> make_target(std::size_t kind, const row<T>& x, random_source& random)
{
    const std::size_t n = x.size();
    const double share = 1.0 / static_cast<double>(n);
    constexpr double least = std::numeric_limits<T>::min_exponent10 - std::numeric_limits<T>::digits10;
    const double scale = kind == 6 ? std::pow(10, random.between(-3, 3)) : 1;
    row<T> t(n);
    for (T& each : t)
        each = kind == 2   ? static_cast<T>(share)
               : kind == 3 ? static_cast<T>(2 * share * random.uniform())
               : kind == 4 ? static_cast<T>(0.1 * share)
               : kind == 5 ? static_cast<T>(random.one_in(2) ? 0 : 4 * share * random.uniform())
               : kind == 6 ? static_cast<T>(scale * random.uniform())
               : kind == 7 ? static_cast<T>(std::pow(10, random.between(-30, std::is_same_v<T, float> ? 6 : 30)))
               : kind == 8 ? static_cast<T>(std::pow(10, random.between(least, least + 10)))
                           : T(0);
    if (kind == 0)
        t[random.below(n)] = T(1);
    if (kind == 1)
        t[argmax(x)] = T(1);
    if (kind == 4)
        t[random.below(n)] += static_cast<T>(0.9);
    for (std::size_t i = 0; i < n; ++i)
        if (!bits::is_finite(x[i]))
            t[i] = T(0);
    return t;
}

constexpr const char* second_names[] = {"another kind", "close", "neighbours", "shifted", "some moved", "scaled"};

// Finite where x is.
template <class T>
row<T> make_second(std::size_t kind, const row<T>& x, random_source& random)
{
    row<T> y = x;
    const double size = std::pow(10, random.between(-6, 1));
    const double shift = static_cast<double>(static_cast<int>(random.below(65)) - 32) / 8;
    const double factor = random.between(0.1, 3);
    const auto& kinds = rows::logit_kinds<T>();
    const row<T> another = rows::make(kinds[random.below(kinds.size())], x.size(), random.next());
    for (std::size_t i = 0; i < y.size(); ++i) {
        const double value = bits::is_finite(x[i]) ? static_cast<double>(x[i]) : 0;
        if (kind == 0)
            y[i] = another[i];
        else if (!bits::is_finite(x[i]))
            y[i] = random.one_in(2) ? x[i] : static_cast<T>(random.normal());
        else if (kind == 1)
            y[i] = rows::to<T>(value + size * random.normal());
        else if (kind == 2)
            bits::step_by(y[i], static_cast<std::int64_t>(random.below(9)) - 4);
        else if (kind == 3)
            y[i] = rows::to<T>(value + shift);
        else if (kind == 4)
            y[i] = rows::to<T>(random.one_in(8) ? value + 30 * random.normal() : value);
        else
            y[i] = rows::to<T>(value * factor);
        if (bits::is_finite(x[i]) && !bits::is_finite(y[i]))
            y[i] = T(0);
    }
    bool some = false;
    for (const T& each : y)
        some = some || bits::is_finite(each);
    if (!some)
        y[0] = T(0);
    return y;
}

// --- the largest errors ----------------------------------------------------------------------------------------

template <class T>
class errors {
public:
    errors(const output<T>& of, rows_are which) : of_(of), which_(which) {}

    void note(const level<T>& by, const problem<T>& at)
    {
        const double error = of_.error(by, at);
        all_errors.note({of_.name, of_.natural, of_.adversarial}, rows::name_of<T>(), by.name(), which_, error);
        if (error > worst_ && error > allowed())
            where_ = rows::joined(by.name(), ", n ", std::to_string(at.x.size()), ", ", at.words());
        worst_ = std::max(worst_, error);
    }
    double allowed() const { return which_ == rows_are::natural ? of_.natural : of_.adversarial; }
    void check() const
    {
        CAPTURE(of_.name, rows::name_of<T>(), seed_of_all, where_);
        CHECK(worst_ >= 0);
        CHECK(worst_ <= allowed());
    }

private:
    output<T> of_;
    rows_are which_;
    double worst_ = -1;
    std::string where_;
};

// Every label, target or second row that a row of logits is judged with.
template <class T, class Use>
void for_each_other(const output<T>& of, problem<T> at, random_source& random, Use use)
{
    const std::string kind = at.kind;
    if (of.other == wants::nothing)
        use(at);
    if (of.other == wants::label)
        for (const bool winner : {true, false}) {
            at.label = winner ? argmax(at.x) : random.below(at.x.size());
            if (bits::is_finite(at.x[at.label]))
                use(at);
        }
    if (of.other == wants::target)
        for (std::size_t k = 0; k < std::size(target_names); ++k) {
            at.kind = rows::joined(kind, ", target ", target_names[k]);
            at.other = make_target(k, at.x, random);
            use(at);
        }
    if (of.other == wants::logits)
        for (std::size_t k = 0; k < std::size(second_names); ++k) {
            at.kind = rows::joined(kind, ", second ", second_names[k]);
            at.other = make_second(k, at.x, random);
            bool possible = true;
            for (std::size_t i = 0; i < at.x.size(); ++i)
                possible = possible && (bits::is_finite(at.other[i]) || !bits::is_finite(at.x[i]));
            if (possible)
                use(at);
        }
}

template <class T>
void check_natural(const output<T>& of, std::size_t elements)
{
    errors<T> found(of, rows_are::natural);
    random_source random(seed_of_all);
    const std::vector<level<T>> all = levels<T>();
    for (const rows::kind<T>& kind : rows::logit_kinds<T>())
        for (const std::size_t n : rows::lengths) {
            const std::size_t times = std::max<std::size_t>(1, std::min<std::size_t>(20, elements / (n + 1)));
            for (std::size_t k = 0; n > 0 && k < times * rows::volume(); ++k)
                for_each_other<T>(of, {kind.name, rows::make(kind, n, random.next()), {}, 0}, random,
                                  [&](const problem<T>& at) {
                                      for (const level<T>& by : all)
                                          found.note(by, at);
                                  });
        }
    found.check();
}

// Moves one logit, or one entry of the other row, and keeps what does not make the error smaller.
template <class T>
void move_one(const output<T>& of, problem<T>& at, random_source& random)
{
    const bool of_other = !at.other.empty() && random.one_in(2);
    row<T>& v = of_other ? at.other : at.x;
    T& out = v[random.below(v.size())];
    const T before = out;
    const double other = static_cast<double>(v[random.below(v.size())]);
    switch (random.below(6)) {
    case 0:
    case 1:
        bits::step_by(out, static_cast<std::int64_t>(random.below(17)) - 8);
        break;
    case 2:
        out = rows::to<T>(other);
        break;
    case 3:
        out = rows::to<T>(other - random.between(0, 3));
        break;
    case 4:
        out = rows::to<T>(static_cast<double>(out) * random.between(0.25, 1)); // never infinite
        break;
    default:
        out = rows::to<T>(other - random.between(0, rows::nothing_from<T>));
        break;
    }
    if (of_other && of.other == wants::target && out < T(0))
        out = before;
}

template <class T>
void check_climbs(const output<T>& of, std::size_t climbs)
{
    errors<T> found(of, rows_are::adversarial);
    random_source random(seed_of_all);
    std::vector<level<T>> all = levels<T>();
    all.pop_back(); // the public interface is one of the others
    for (const level<T>& by : all)
        for (std::size_t k = 0; k < climbs * rows::volume(); ++k)
            for (const std::size_t n : {2u, 3u, 4u, 5u, 8u, 17u, 33u, 65u}) {
                const rows::kind<T>& kind = rows::logit_kinds<T>()[random.below(rows::logit_kinds<T>().size())];
                problem<T> at = {rows::joined("climbed from ", kind.name), rows::make(kind, n, random.next()), {}, 0};
                for (T& each : at.x)
                    if (!bits::is_finite(each))
                        each = T(0);
                if (of.other == wants::label)
                    at.label = random.one_in(2) ? argmax(at.x) : random.below(n);
                if (of.other == wants::target)
                    at.other = make_target(random.below(std::size(target_names)), at.x, random);
                if (of.other == wants::logits)
                    at.other = make_second(random.below(std::size(second_names)), at.x, random);
                for (T& each : at.other)
                    if (!bits::is_finite(each))
                        each = T(0);
                double best = -1;
                for (std::size_t step = 0; step < 150; ++step) {
                    const problem<T> before = at;
                    move_one(of, at, random);
                    const double error = of.error(by, at);
                    if (error >= best)
                        best = error;
                    else
                        at = before;
                }
                found.note(by, at);
                found.note(level<T>(), at);
            }
    found.check();
}

} // namespace

// --- error bounds -----------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("cross_entropy, label: natural rows are within 4 ULP", "[accuracy][loss]", float, double)
{
    check_natural(label_loss<TestType>, 1500);
}
TEMPLATE_TEST_CASE("cross_entropy, label: adversarial rows are within 6 ULP", "[accuracy][adversarial][loss]", float,
                   double)
{
    check_climbs(label_loss<TestType>, 10);
}
TEMPLATE_TEST_CASE("cross_entropy_gradient, label: natural rows are within 4 ULP", "[accuracy][gradient]", float,
                   double)
{
    check_natural(label_gradient<TestType>, 1500);
}
TEMPLATE_TEST_CASE("cross_entropy_gradient, label: adversarial rows are within 6 ULP",
                   "[accuracy][adversarial][gradient]", float, double)
{
    check_climbs(label_gradient<TestType>, 10);
}
TEMPLATE_TEST_CASE("cross_entropy, target: natural rows are within 4 ULP", "[accuracy][loss]", float, double)
{
    check_natural(target_loss<TestType>, 300);
}
TEMPLATE_TEST_CASE("cross_entropy, target: adversarial rows are within 6 ULP", "[accuracy][adversarial][loss]", float,
                   double)
{
    check_climbs(target_loss<TestType>, 10);
}
TEMPLATE_TEST_CASE("cross_entropy_gradient, target: natural rows are within 4 units", "[accuracy][gradient]", float,
                   double)
{
    check_natural(target_gradient<TestType>, 300);
}
TEMPLATE_TEST_CASE("cross_entropy_gradient, target: adversarial rows are within 6 units",
                   "[accuracy][adversarial][gradient]", float, double)
{
    check_climbs(target_gradient<TestType>, 10);
}
TEMPLATE_TEST_CASE("entropy: natural rows are within 8 ULP", "[accuracy][loss]", float, double)
{
    check_natural(entropy<TestType>, 1500);
}
TEMPLATE_TEST_CASE("entropy: adversarial rows are within 16 ULP", "[accuracy][adversarial][loss]", float, double)
{
    check_climbs(entropy<TestType>, 10);
}
TEMPLATE_TEST_CASE("entropy_gradient: natural rows are within 16 units", "[accuracy][gradient]", float, double)
{
    check_natural(entropy_gradient<TestType>, 1500);
}
TEMPLATE_TEST_CASE("entropy_gradient: adversarial rows are within 24 units", "[accuracy][adversarial][gradient]", float,
                   double)
{
    check_climbs(entropy_gradient<TestType>, 10);
}
TEMPLATE_TEST_CASE("kl_divergence: natural rows are within 16 units", "[accuracy][loss]", float, double)
{
    check_natural(divergence<TestType>, 300);
}
TEMPLATE_TEST_CASE("kl_divergence: adversarial rows are within 32 units", "[accuracy][adversarial][loss]", float,
                   double)
{
    check_climbs(divergence<TestType>, 10);
}

// --- what has to be exact ---------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("cross_entropy, label: the loss is -log_softmax of the label, bit for bit", "[loss]", float, double,
                   long double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (const level<T>& by : levels<T>())
        for (std::size_t n = 1; n <= 70; ++n) {
            row<T> x(n), y(n), g(n);
            for (T& each : x)
                each = static_cast<T>(5 * random.normal());
            by.log_softmax(x, y);
            for (std::size_t label = 0; label < n; ++label) {
                T loss{}, other{};
                by.cross_entropy(x, label, loss);
                by.cross_entropy_gradient(x, label, g, other);
                CAPTURE(by.name(), n, label);
                REQUIRE(loss == -y[label]);
                REQUIRE(std::fabs(static_cast<double>(other - loss)) <=
                        2 * static_cast<double>(std::numeric_limits<T>::epsilon() * loss));
            }
        }
}

TEST_CASE("cross_entropy: a label that wins or loses by 700 keeps all digits", "[loss][gradient][saturation]")
{
    constexpr double e_700 = 0x1.14f2b0fb9307fp-1010; // e^-700, by decimal arithmetic
    for (const level<double>& by : levels<double>())
        for (const std::size_t n : {2u, 3u, 9u, 40u}) {
            CAPTURE(by.name(), n);
            row<double> x(n, -700.0), g(n), t(n), h(n);
            x[n / 2] = 0;
            t[n / 2] = 1;
            const double others = static_cast<double>(n - 1) * e_700;
            double loss = 0, target_loss = 0;
            by.cross_entropy_gradient(x, n / 2, g, loss);
            by.cross_entropy_gradient(x, t, h, target_loss);
            CHECK(std::fabs(loss / others - 1) < 1e-15);
            CHECK(std::fabs(target_loss / others - 1) < 1e-15);
            CHECK(std::fabs(g[n / 2] / -others - 1) < 1e-15); // not p - 1, which is 0
            CHECK(std::fabs(g[0] / e_700 - 1) < 1e-15);

            by.cross_entropy_gradient(x, 0, g, loss);
            CHECK(loss == 700);
            CHECK(g[0] == -1);
            CHECK(std::fabs(g[n - 1] / (n / 2 == n - 1 ? 1 : e_700) - 1) < 1e-15);
            by.entropy_gradient(x, g, loss);
            CHECK(std::fabs(loss / (701 * others) - 1) < 1e-15);
            CHECK(std::fabs(g[n / 2] / (-700 * others) - 1) < 1e-15);
            CHECK(std::fabs(g[0] / (700 * e_700) - 1) < 1e-15);
        }
}

TEMPLATE_TEST_CASE("kl_divergence: equal logits, also shifted, give exactly 0, and it is never negative", "[loss]",
                   float, double, long double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (const level<T>& by : levels<T>())
        for (const std::size_t n : {1u, 2u, 3u, 8u, 17u, 33u, 130u})
            for (int k = 0; k < 50; ++k) {
                row<T> x(n), y(n), z(n);
                for (std::size_t i = 0; i < n; ++i) {
                    x[i] = static_cast<T>(std::round(64 * 5 * random.normal()) / 64);
                    y[i] = x[i] + static_cast<T>(37.25);
                    z[i] = x[i] + static_cast<T>(std::pow(10, random.between(-9, 0)) * random.normal());
                }
                T same{}, shifted{}, close{};
                by.kl_divergence(x, x, same);
                by.kl_divergence(x, y, shifted);
                by.kl_divergence(x, z, close);
                CAPTURE(by.name(), n);
                REQUIRE(same == T(0));
                REQUIRE(shifted == T(0));
                REQUIRE(close >= T(0));
            }
}

// The bound is in units of <p, |d|>; for nearly equal logits the result is much smaller than that, and right all the same.
TEMPLATE_TEST_CASE("kl_divergence: nearly equal logits keep their digits", "[loss][accuracy]", float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    double worst = 0;
    for (const double size : {1e-1, 1e-3, 1e-6})
        for (const std::size_t n : {2u, 3u, 10u, 100u})
            for (int k = 0; k < 20; ++k) {
                row<T> x(n), y(n);
                for (std::size_t i = 0; i < n; ++i) {
                    x[i] = static_cast<T>(random.normal());
                    y[i] = x[i] + static_cast<T>(size * random.normal());
                }
                const auto exact = exact::divergence(x, y).value;
                for (const level<T>& by : levels<T>()) {
                    T value{};
                    by.kl_divergence(x, y, value);
                    worst =
                        std::max(worst, metric::in_ulp_at<T>(value, oracle::wide<T>(exact), oracle::wide<T>(exact)));
                }
            }
    CAPTURE(seed_of_all);
    CHECK(worst <= 32);
}

// --- derivatives ------------------------------------------------------------------------------------------------

namespace {

// Central differences of a loss of long double logits, in direction i.
template <class Loss>
std::vector<long double> differences(const row<long double>& x, Loss loss)
{
    const long double h = 1e-6L;
    std::vector<long double> out(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        row<long double> up = x, down = x;
        up[i] += h;
        down[i] -= h;
        out[i] = (loss(up) - loss(down)) / (up[i] - down[i]);
    }
    return out;
}

double largest_difference(const row<double>& g, const std::vector<long double>& expected)
{
    double worst = 0;
    for (std::size_t i = 0; i < g.size(); ++i)
        worst = std::max(worst, std::fabs(static_cast<double>(static_cast<long double>(g[i]) - expected[i])));
    return worst;
}

} // namespace

TEST_CASE("cross_entropy_gradient, entropy_gradient: they are the differences of their losses", "[gradient]")
{
    random_source random(seed_of_all);
    for (const level<double>& by : levels<double>())
        for (const std::size_t n : {1u, 2u, 3u, 7u, 20u}) {
            CAPTURE(by.name(), n, seed_of_all);
            row<double> x(n), t(n), g(n);
            for (std::size_t i = 0; i < n; ++i) {
                x[i] = 2 * random.normal();
                t[i] = random.uniform();
            }
            const row<long double> wide_x(x.begin(), x.end()), wide_t(t.begin(), t.end());
            const std::size_t label = random.below(n);
            double loss = 0;
            by.cross_entropy_gradient(x, label, g, loss);
            CHECK(largest_difference(g, differences(wide_x, [&](const row<long double>& at) {
                                         return smx::cross_entropy(at, label);
                                     })) < 1e-10);
            by.cross_entropy_gradient(x, t, g, loss);
            CHECK(largest_difference(g, differences(wide_x, [&](const row<long double>& at) {
                                         return smx::cross_entropy(at, wide_t);
                                     })) < 1e-10);
            by.entropy_gradient(x, g, loss);
            CHECK(largest_difference(
                      g, differences(wide_x, [&](const row<long double>& at) { return smx::entropy(at); })) < 1e-10);
        }
}

namespace {

// value + slope e, e^2 = 0: carries a directional derivative. It has what the concept asks for and no more.
struct dual {
    double value, slope;

    dual(int constant) : value(constant), slope(0) {}
    dual(double value_, double slope_) : value(value_), slope(slope_) {}

    friend dual operator+(dual a, dual b) { return {a.value + b.value, a.slope + b.slope}; }
    friend dual operator-(dual a, dual b) { return {a.value - b.value, a.slope - b.slope}; }
    friend dual operator*(dual a, dual b) { return {a.value * b.value, a.slope * b.value + a.value * b.slope}; }
    friend dual operator/(dual a, dual b)
    {
        const double quotient = a.value / b.value;
        return {quotient, (a.slope - quotient * b.slope) / b.value};
    }
    friend bool operator<(dual a, dual b) { return a.value < b.value; }
    friend dual exp(dual a) { return {std::exp(a.value), std::exp(a.value) * a.slope}; }
    friend dual log(dual a) { return {std::log(a.value), a.slope / a.value}; }
};

double dot(const row<double>& a, const row<double>& b)
{
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
        sum += a[i] * b[i];
    return sum;
}

} // namespace

TEST_CASE("losses of dual numbers: the slope is <gradient, tangent>, ties among the logits or not",
          "[gradient][scalars]")
{
    random_source random(seed_of_all);
    for (const bool ties : {false, true})
        for (const std::size_t n : {1u, 2u, 3u, 8u, 20u}) {
            CAPTURE(ties, n, seed_of_all);
            row<double> x(n), t(n), v(n), y(n), g(n), p(n);
            std::vector<dual> dual_x, dual_t, dual_y, dual_g;
            for (std::size_t i = 0; i < n; ++i) {
                x[i] = ties ? static_cast<double>(random.below(2)) : random.normal();
                y[i] = x[i] + (n == 8 ? 0.1 : 2.0) * random.normal(); // both ways to the divergence
                t[i] = random.uniform();
                v[i] = random.normal();
                dual_x.push_back({x[i], v[i]});
                dual_t.push_back({t[i], 0});
                dual_y.push_back({y[i], 0});
            }
            dual_g = dual_x;
            for (std::size_t label = 0; label < n; ++label) {
                const double loss = smx::cross_entropy_gradient(x, label, g);
                const dual other = smx::cross_entropy_gradient(dual_x, label, dual_g);
                CHECK(std::fabs(other.value - loss) < 1e-14);
                CHECK(std::fabs(other.slope - dot(g, v)) < 1e-14);
                CHECK(std::fabs(smx::cross_entropy(dual_x, label).slope - dot(g, v)) < 1e-14);
                smx::softmax(x, p); // the slope of the gradient is J v
                CHECK(std::fabs(dual_g[label].slope - p[label] * (v[label] - dot(p, v))) < 1e-14);
            }
            const double loss = smx::cross_entropy_gradient(x, t, g);
            const dual other = smx::cross_entropy_gradient(dual_x, dual_t, dual_g);
            CHECK(std::fabs(other.value - loss) < 1e-13);
            CHECK(std::fabs(other.slope - dot(g, v)) < 1e-13);
            CHECK(std::fabs(smx::cross_entropy(dual_x, dual_t).slope - dot(g, v)) < 1e-13);

            const double entropy = smx::entropy_gradient(x, g);
            const dual dual_entropy = smx::entropy_gradient(dual_x, dual_g);
            CHECK(std::fabs(dual_entropy.value - entropy) < 1e-14);
            CHECK(std::fabs(dual_entropy.slope - dot(g, v)) < 1e-14);
            CHECK(std::fabs(smx::entropy(dual_x).slope - dot(g, v)) < 1e-14);

            // dKL / dx_i = p_i (d_i - <p, d>)
            const dual divergence = smx::kl_divergence(dual_x, dual_y);
            double mean = 0;
            for (std::size_t i = 0; i < n; ++i)
                mean += p[i] * (x[i] - y[i]);
            for (std::size_t i = 0; i < n; ++i)
                g[i] = p[i] * (x[i] - y[i] - mean);
            CHECK(std::fabs(divergence.value - smx::kl_divergence(x, y)) < 1e-13);
            CHECK(std::fabs(divergence.slope - dot(g, v)) < 1e-13);
        }
}

TEST_CASE("losses of long double: as those of double, with more digits", "[scalars]")
{
    random_source random(seed_of_all);
    for (const std::size_t n : {1u, 2u, 5u, 33u}) {
        row<double> x(n), y(n), t(n), g(n);
        row<long double> wide_x(n), wide_y(n), wide_t(n), wide_g(n);
        for (std::size_t i = 0; i < n; ++i) {
            x[i] = 10 * random.normal();
            y[i] = 10 * random.normal();
            t[i] = random.uniform();
            wide_x[i] = static_cast<long double>(x[i]);
            wide_y[i] = static_cast<long double>(y[i]);
            wide_t[i] = static_cast<long double>(t[i]);
        }
        CAPTURE(n, seed_of_all);
        const auto agree = [](double a, long double b) {
            return std::fabs(a - static_cast<double>(b)) <= 1e-14 * (std::fabs(a) + 1e-3);
        };
        CHECK(agree(smx::cross_entropy_gradient(x, 0, g), smx::cross_entropy_gradient(wide_x, 0, wide_g)));
        CHECK(agree(g[n - 1], wide_g[n - 1]));
        CHECK(agree(smx::cross_entropy_gradient(x, t, g), smx::cross_entropy_gradient(wide_x, wide_t, wide_g)));
        CHECK(agree(g[n - 1], wide_g[n - 1]));
        CHECK(agree(smx::entropy_gradient(x, g), smx::entropy_gradient(wide_x, wide_g)));
        CHECK(agree(g[n - 1], wide_g[n - 1]));
        CHECK(agree(smx::kl_divergence(x, y), smx::kl_divergence(wide_x, wide_y)));
        CHECK(agree(smx::cross_entropy(x, 0), smx::cross_entropy(wide_x, 0)));
        CHECK(agree(smx::cross_entropy(x, t), smx::cross_entropy(wide_x, wide_t)));
        CHECK(agree(smx::entropy(x), smx::entropy(wide_x)));
    }
}

// --- special values ---------------------------------------------------------------------------------------------

namespace {

template <class T>
using predicate = bool (*)(const T&);

template <class T>
bool all(const row<T>& x, predicate<T> holds)
{
    return std::all_of(x.begin(), x.end(), [&](const T& each) { return holds(each); });
}

template <class T>
row<T> finite_row(std::size_t n, std::uint64_t salt = 0)
{
    random_source random(rows::mixed(seed_of_all + salt, n));
    row<T> out(n);
    for (T& each : out)
        each = static_cast<T>(3 * random.normal());
    return out;
}

template <class T>
row<T> uniform_target(std::size_t n)
{
    return row<T>(n, static_cast<T>(1.0 / static_cast<double>(n)));
}

// What all functions give for one row, the gradients with a sentinel in them before.
template <class T>
struct results {
    T label{}, label_again{}, target{}, target_again{}, entropy{}, entropy_again{}, to{}, from{};
    row<T> label_gradient, target_gradient, entropy_gradient;

    results(const level<T>& by, const row<T>& x, const row<T>& t, std::size_t y)
        : label_gradient(x.size(), T(7)), target_gradient(x.size(), T(7)), entropy_gradient(x.size(), T(7))
    {
        by.cross_entropy(x, y, label);
        by.cross_entropy_gradient(x, y, label_gradient, label_again);
        by.cross_entropy(x, t, target);
        by.cross_entropy_gradient(x, t, target_gradient, target_again);
        by.entropy(x, entropy);
        by.entropy_gradient(x, entropy_gradient, entropy_again);
        const row<T> flat(x.size(), T(1));
        by.kl_divergence(x, flat, to);
        by.kl_divergence(flat, x, from);
    }
    bool losses(predicate<T> holds) const
    {
        return holds(label) && holds(label_again) && holds(target) && holds(target_again) && holds(entropy) &&
               holds(entropy_again);
    }
    bool gradients(predicate<T> holds) const
    {
        return all(label_gradient, holds) && all(target_gradient, holds) && all(entropy_gradient, holds);
    }
};

// Every n from 1 to 40, every position.
template <class T, class Use>
void for_each_position(Use use)
{
    for (const level<T>& by : levels<T>())
        for (std::size_t n = 1; n <= 40; ++n)
            for (std::size_t k = 0; k < n; ++k) {
                INFO(rows::name_of<T>() << ", " << by.name() << " level, n " << n << ", position " << k);
                use(by, finite_row<T>(n), k);
            }
}

} // namespace

TEMPLATE_TEST_CASE("losses: a NaN or +inf logit makes the loss and the whole gradient NaN", "[special]", float, double,
                   long double)
{
    using T = TestType;
    for_each_position<T>([](const level<T>& by, row<T> x, std::size_t k) {
        const row<T> t = uniform_target<T>(x.size());
        for (std::size_t kind = 0; kind <= bits::nan_kinds; ++kind) {
            if (kind < bits::nan_kinds)
                bits::put_nan(x[k], kind);
            else
                bits::put_plus_infinity(x[k]);
            CAPTURE(kind);
            for (const std::size_t label : {k, std::size_t(0), x.size() - 1}) {
                const results<T> y(by, x, t, label);
                REQUIRE(y.losses(bits::is_nan));
                REQUIRE(y.gradients(bits::is_nan));
                REQUIRE(bits::is_nan(y.to));
                REQUIRE(bits::is_nan(y.from));
            }
        }
        // also beside what would make the divergence infinite
        bits::put_nan(x[k]);
        row<T> q = finite_row<T>(x.size());
        bits::put_minus_infinity(q[(k + 1) % q.size()]);
        T value{};
        by.kl_divergence(x, q, value);
        REQUIRE(bits::is_nan(value));
    });
}

TEMPLATE_TEST_CASE("losses: nothing but -inf makes the loss and the whole gradient NaN", "[special]", float, double,
                   long double)
{
    using T = TestType;
    for (const level<T>& by : levels<T>())
        for (std::size_t n = 1; n <= 70; ++n) {
            row<T> x(n);
            for (T& each : x)
                bits::put_minus_infinity(each);
            const results<T> y(by, x, uniform_target<T>(n), n / 2);
            CAPTURE(by.name(), n);
            REQUIRE(y.losses(bits::is_nan));
            REQUIRE(y.gradients(bits::is_nan));
            REQUIRE(bits::is_nan(y.to));
            REQUIRE(bits::is_nan(y.from));
        }
}

TEMPLATE_TEST_CASE("losses: a -inf logit is as if absent, a label or target there makes the loss +inf", "[special]",
                   float, double, long double)
{
    using T = TestType;
    for_each_position<T>([](const level<T>& by, row<T> x, std::size_t k) {
        const std::size_t n = x.size();
        if (n == 1)
            return;
        bits::put_minus_infinity(x[k]);
        row<T> t = uniform_target<T>(n), removed = x, removed_t = t;
        t[k] = T(0);
        removed.erase(removed.begin() + static_cast<std::ptrdiff_t>(k));
        removed_t.erase(removed_t.begin() + static_cast<std::ptrdiff_t>(k));
        const std::size_t label = (k + 1) % n, removed_label = label < k ? label : label - 1;
        const results<T> y(by, x, t, label), expected(by, removed, removed_t, removed_label);
        const auto near = [&](const T& a, const T& b) {
            const double difference = std::fabs(static_cast<double>(a - b));
            return difference <= 64 * static_cast<double>(std::numeric_limits<T>::epsilon());
        };
        REQUIRE(y.losses(bits::is_finite));
        REQUIRE(y.gradients(bits::is_finite));
        REQUIRE(bits::is_zero(y.label_gradient[k]));
        REQUIRE(bits::is_zero(y.target_gradient[k]));
        REQUIRE(bits::is_zero(y.entropy_gradient[k]));
        REQUIRE((near(y.label, expected.label) && near(y.target, expected.target)));
        REQUIRE(near(y.entropy, expected.entropy));
        REQUIRE(bits::is_finite(y.to)); // p = 0: only the mass of q counts
        REQUIRE(bits::is_plus_infinity(y.from));

        t[k] = static_cast<T>(0.25);
        const results<T> impossible(by, x, t, k);
        REQUIRE(bits::is_plus_infinity(impossible.label));
        REQUIRE(bits::is_plus_infinity(impossible.label_again));
        REQUIRE(bits::is_plus_infinity(impossible.target));
        REQUIRE(bits::is_plus_infinity(impossible.target_again));
        REQUIRE(impossible.label_gradient[k] == T(-1));
        REQUIRE(impossible.target_gradient[k] == static_cast<T>(-0.25));
        REQUIRE(impossible.gradients(bits::is_finite));
    });
}

TEMPLATE_TEST_CASE("losses: one finite logit among -inf is certain, exactly", "[special]", float, double, long double)
{
    using T = TestType;
    using limits = std::numeric_limits<T>;
    for_each_position<T>([](const level<T>& by, row<T> x, std::size_t k) {
        for (const T& value : {T(0), x[k], limits::max(), limits::lowest(), limits::min(), limits::denorm_min()}) {
            for (T& each : x)
                bits::put_minus_infinity(each);
            x[k] = value;
            row<T> t(x.size());
            t[k] = T(1);
            const results<T> y(by, x, t, k);
            CAPTURE(rows::hex(value));
            REQUIRE(y.losses(bits::is_plus_zero));
            REQUIRE(y.gradients(bits::is_zero));
            const row<T> flat(x.size(), T(1));
            T to{}; // log n
            by.kl_divergence(x, flat, to);
            REQUIRE(std::fabs(static_cast<double>(to) - std::log(static_cast<double>(x.size()))) <
                    16 * static_cast<double>(limits::epsilon()));
        }
    });
}

TEMPLATE_TEST_CASE("losses: a NaN in target makes the loss and the whole gradient NaN", "[special]", float, double,
                   long double)
{
    using T = TestType;
    for_each_position<T>([](const level<T>& by, const row<T>& x, std::size_t k) {
        row<T> t = uniform_target<T>(x.size()), g(x.size());
        bits::put_nan(t[k], k % bits::nan_kinds);
        T loss{};
        by.cross_entropy(x, t, loss);
        REQUIRE(bits::is_nan(loss));
        by.cross_entropy_gradient(x, t, g, loss);
        REQUIRE(bits::is_nan(loss));
        REQUIRE(all<T>(g, bits::is_nan));
    });
}

TEMPLATE_TEST_CASE("losses: of an empty row they are 0, and nothing is written", "[special]", float, double,
                   long double)
{
    using T = TestType;
    for (const level<T>& by : levels<T>()) {
        T cell = T(7);
        const std::span<T> none(&cell, 0);
        for (int k = 0; k < 5; ++k) {
            T value = T(5);
            if (k == 0)
                by.cross_entropy(none, std::span<const T>(none), value);
            if (k == 1)
                by.cross_entropy_gradient(none, std::span<const T>(none), none, value);
            if (k == 2)
                by.entropy(none, value);
            if (k == 3)
                by.entropy_gradient(none, none, value);
            if (k == 4)
                by.kl_divergence(none, none, value);
            CAPTURE(by.name(), k);
            REQUIRE(bits::is_plus_zero(value));
            REQUIRE(cell == T(7));
        }
    }
}

// --- memory -----------------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("gradients: they may overwrite logits or target", "[memory]", float, double, long double)
{
    using T = TestType;
    for (const level<T>& by : levels<T>())
        for (std::size_t n = 1; n <= 150; ++n) {
            const row<T> x = finite_row<T>(n), t = uniform_target<T>(n);
            for (const std::size_t label : {std::size_t(0), n / 2, n - 1, argmax(x)}) {
                const results<T> expected(by, x, t, label);
                row<T> a = x, b = x, c = x, d = t;
                T loss{};
                CAPTURE(by.name(), n, label);
                by.cross_entropy_gradient(a, label, a, loss);
                REQUIRE(bits::same(loss, expected.label_again));
                REQUIRE(bits::same(a.data(), expected.label_gradient.data(), n));
                by.cross_entropy_gradient(b, t, b, loss);
                REQUIRE(bits::same(loss, expected.target_again));
                REQUIRE(bits::same(b.data(), expected.target_gradient.data(), n));
                by.cross_entropy_gradient(x, d, d, loss);
                REQUIRE(bits::same(loss, expected.target_again));
                REQUIRE(bits::same(d.data(), expected.target_gradient.data(), n));
                by.entropy_gradient(c, c, loss);
                REQUIRE(bits::same(loss, expected.entropy_again));
                REQUIRE(bits::same(c.data(), expected.entropy_gradient.data(), n));
            }
        }
}

TEMPLATE_TEST_CASE("losses: AVX2, AVX-512 and the public functions give the same bits, wherever the row lies",
                   "[memory]", float, double)
{
    using T = TestType;
    std::vector<level<T>> all_levels = levels<T>();
    all_levels.erase(all_levels.begin()); // the generic one promises no bits
    random_source random(seed_of_all);
    for (const rows::kind<T>& kind : rows::logit_kinds<T>())
        for (const std::size_t n : rows::lengths) {
            if (n == 0)
                continue;
            const row<T> x = rows::make(kind, n, random.next()), t = make_target(3, x, random);
            const row<T> q = make_second(random.below(std::size(second_names)), x, random);
            const std::size_t label = random.below(n);
            const results<T> expected(all_levels.back(), x, t, label);
            T divergence{};
            all_levels.back().kl_divergence(x, q, divergence);
            for (const level<T>& by : all_levels)
                for (const std::size_t offset : {0u, 1u}) {
                    row<T> moved_x(n + 1), moved_t(n + 1), g(n + 1);
                    std::copy(x.begin(), x.end(), moved_x.begin() + static_cast<std::ptrdiff_t>(offset));
                    std::copy(t.begin(), t.end(), moved_t.begin() + static_cast<std::ptrdiff_t>(offset));
                    const std::span<const T> at(moved_x.data() + offset, n), target(moved_t.data() + offset, n);
                    const std::span<T> out(g.data() + offset, n);
                    T loss{};
                    CAPTURE(by.name(), kind.name, n, offset);
                    by.cross_entropy_gradient(at, label, out, loss);
                    REQUIRE(bits::same(loss, expected.label_again));
                    REQUIRE(bits::same(out.data(), expected.label_gradient.data(), n));
                    by.cross_entropy_gradient(at, target, out, loss);
                    REQUIRE(bits::same(loss, expected.target_again));
                    REQUIRE(bits::same(out.data(), expected.target_gradient.data(), n));
                    by.entropy_gradient(at, out, loss);
                    REQUIRE(bits::same(loss, expected.entropy_again));
                    REQUIRE(bits::same(out.data(), expected.entropy_gradient.data(), n));
                    by.kl_divergence(at, q, loss);
                    REQUIRE(bits::same(loss, divergence));
                }
        }
}

// --- what is left alone -----------------------------------------------------------------------------------------

namespace {

unsigned control_word()
{
#if defined(__SSE__)
    return _mm_getcsr() & ~0x3fu; // without the sticky flags
#else
    return static_cast<unsigned>(std::fegetround());
#endif
}

constexpr int flags = FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW;

} // namespace

TEMPLATE_TEST_CASE("losses: finite logits raise no floating-point error, errno, MXCSR and the heap are left alone",
                   "[environment]", float, double)
{
    using T = TestType;
#if defined(__SSE__)
    REQUIRE(control_word() == 0x1f80); // or something was linked with -ffast-math
#endif
    random_source random(seed_of_all);
    const std::vector<level<T>> all_levels = levels<T>();
    for (const rows::kind<T>& kind : rows::logit_kinds<T>())
        for (const std::size_t n : {1u, 2u, 5u, 16u, 33u, 130u})
            for (std::size_t k = 0; k < std::size(target_names); ++k) {
                row<T> x = rows::make(kind, n, random.next()), g(n);
                for (T& each : x)
                    if (!bits::is_finite(each))
                        each = std::numeric_limits<T>::lowest();
                const row<T> t = make_target(k, x, random);
                row<T> q = make_second(k % std::size(second_names), x, random);
                for (T& each : q)
                    if (!bits::is_finite(each))
                        each = std::numeric_limits<T>::lowest();
                const std::size_t label = random.below(n);
                for (const level<T>& by : all_levels) {
                    T losses[8] = {};
                    int raised[8] = {};
                    const auto run = [&](std::size_t at, auto f) {
                        std::feclearexcept(FE_ALL_EXCEPT);
                        f(losses[at]);
                        raised[at] = std::fetestexcept(flags);
                    };
                    const unsigned control = control_word();
                    const std::size_t before = allocations;
                    errno = 4242;
                    run(0, [&](T& loss) { by.cross_entropy(x, label, loss); });
                    run(1, [&](T& loss) { by.cross_entropy_gradient(x, label, g, loss); });
                    run(2, [&](T& loss) { by.cross_entropy(x, t, loss); });
                    run(3, [&](T& loss) { by.cross_entropy_gradient(x, t, g, loss); });
                    run(4, [&](T& loss) { by.entropy(x, loss); });
                    run(5, [&](T& loss) { by.entropy_gradient(x, g, loss); });
                    run(6, [&](T& loss) { by.kl_divergence(x, q, loss); });
                    const int error = errno;
                    const std::size_t after = allocations;
                    CAPTURE(by.name(), kind.name, n, k, rows::hex(std::span<const T>(x)),
                            rows::hex(std::span<const T>(q)));
                    REQUIRE(error == 4242);
                    REQUIRE(after == before);
                    REQUIRE(control_word() == control);
                    for (std::size_t at = 0; at < 7; ++at) { // a loss beyond the range of the type may overflow
                        CAPTURE(at);
                        REQUIRE((raised[at] & ~(bits::is_infinite(losses[at]) ? FE_OVERFLOW : 0)) == 0);
                    }
                }
            }
    std::feclearexcept(FE_ALL_EXCEPT);
}

// --- bad calls --------------------------------------------------------------------------------------------------

namespace {

template <class... Args>
concept cross_entropy_takes = requires(Args&&... args) { smx::cross_entropy(static_cast<Args&&>(args)...); };
template <class... Args>
concept gradient_takes = requires(Args&&... args) { smx::cross_entropy_gradient(static_cast<Args&&>(args)...); };
template <class... Args>
concept entropy_gradient_takes = requires(Args&&... args) { smx::entropy_gradient(static_cast<Args&&>(args)...); };
template <class... Args>
concept divergence_takes = requires(Args&&... args) { smx::kl_divergence(static_cast<Args&&>(args)...); };

using floats = std::vector<float>;
using doubles = std::vector<double>;
template <std::size_t N>
using array = std::array<float, N>;
enum class category : int {};

static_assert(smx::label_type<int> && smx::label_type<unsigned char> && smx::label_type<const std::size_t>);
static_assert(!smx::label_type<bool> && !smx::label_type<double> && !smx::label_type<category>);
#if defined(__SIZEOF_INT128__)
__extension__ using int128 = __int128; // integral with -std=gnu++20
static_assert(!smx::label_type<int128>);
#endif
static_assert(cross_entropy_takes<const floats&, int>);
static_assert(cross_entropy_takes<const floats&, std::size_t>);
static_assert(cross_entropy_takes<const floats&, std::int8_t>);
static_assert(cross_entropy_takes<floats, const floats&>);
static_assert(cross_entropy_takes<const array<3>&, const array<3>&>);
static_assert(!cross_entropy_takes<const floats&, bool>);
static_assert(!cross_entropy_takes<const floats&, double>);
static_assert(!cross_entropy_takes<const floats&, category>);
static_assert(!cross_entropy_takes<const floats&, const doubles&>);
static_assert(!cross_entropy_takes<const floats&, const std::vector<int>&>);
static_assert(!cross_entropy_takes<const array<3>&, const array<4>&>);
static_assert(gradient_takes<const floats&, int, floats&>);
static_assert(gradient_takes<const floats&, const floats&, floats&>);
static_assert(gradient_takes<const floats&, int, std::span<float>>);
static_assert(!gradient_takes<const floats&, int, floats>);
static_assert(!gradient_takes<const floats&, int, const floats&>);
static_assert(!gradient_takes<const floats&, int, doubles&>);
static_assert(!gradient_takes<const floats&, bool, floats&>);
static_assert(!gradient_takes<const floats&, const doubles&, floats&>);
static_assert(!gradient_takes<const array<3>&, int, array<4>&>);
static_assert(!gradient_takes<const array<3>&, const array<4>&, floats&>);
static_assert(!gradient_takes<const floats&, const array<3>&, array<4>&>);
static_assert(entropy_gradient_takes<const floats&, floats&>);
static_assert(!entropy_gradient_takes<const floats&, floats>);
static_assert(!entropy_gradient_takes<const floats&, doubles&>);
static_assert(!entropy_gradient_takes<const array<3>&, array<4>&>);
static_assert(divergence_takes<const floats&, const floats&>);
static_assert(!divergence_takes<const floats&, const doubles&>);
static_assert(!divergence_takes<const array<3>&, const array<4>&>);

} // namespace

TEMPLATE_TEST_CASE(
    "checks: a label out of range, another size or a partial overlap is refused before anything is written", "[check]",
    float, double, long double)
{
    using T = TestType;
    const row<T> x(4, T(1)), shorter(3, T(1));
    const row<T> untouched = {T(-1), T(-2), T(-3), T(-4)};
    row<T> g = untouched;

    CHECK(message_of([&] { (void)smx::cross_entropy(x, -1); }) ==
          "smx::cross_entropy: label is -1, logits has 4 elements");
    CHECK(message_of([&] { (void)smx::cross_entropy(x, 4u); }) ==
          "smx::cross_entropy: label is 4, logits has 4 elements");
    CHECK(message_of([&] { (void)smx::cross_entropy(x, std::numeric_limits<std::int64_t>::min()); }) ==
          "smx::cross_entropy: label is -9223372036854775808, logits has 4 elements");
    CHECK(message_of([&] { (void)smx::cross_entropy(x, std::numeric_limits<std::uint64_t>::max()); }) ==
          "smx::cross_entropy: label is 18446744073709551615, logits has 4 elements");
    CHECK(message_of([&] { (void)smx::cross_entropy(x, static_cast<std::int8_t>(-3)); }) ==
          "smx::cross_entropy: label is -3, logits has 4 elements");
    CHECK(message_of([&] { (void)smx::cross_entropy(row<T>(), 0); }) ==
          "smx::cross_entropy: label is 0, logits has 0 elements");
    CHECK(message_of([&] { (void)smx::cross_entropy(x, 3); }) == "threw nothing");
    CHECK(message_of([&] { (void)smx::cross_entropy(x, shorter); }) ==
          "smx::cross_entropy: target has 3 elements, logits has 4");
    CHECK(message_of([&] { (void)smx::kl_divergence(x, shorter); }) ==
          "smx::kl_divergence: logits_q has 3 elements, logits_p has 4");

    CHECK(message_of([&] { smx::cross_entropy_gradient(x, -1, g); }) ==
          "smx::cross_entropy_gradient: label is -1, logits has 4 elements");
    CHECK(message_of([&] { smx::cross_entropy_gradient(x, 4, g); }) ==
          "smx::cross_entropy_gradient: label is 4, logits has 4 elements");
    CHECK(message_of([&] { smx::cross_entropy_gradient(shorter, 0, g); }) ==
          "smx::cross_entropy_gradient: gradient has 4 elements, logits has 3");
    CHECK(message_of([&] { smx::cross_entropy_gradient(x, shorter, g); }) ==
          "smx::cross_entropy_gradient: target has 3 elements, logits has 4");
    CHECK(message_of([&] { smx::cross_entropy_gradient(shorter, shorter, g); }) ==
          "smx::cross_entropy_gradient: gradient has 4 elements, logits has 3");
    CHECK(message_of([&] { smx::entropy_gradient(shorter, g); }) ==
          "smx::entropy_gradient: gradient has 4 elements, logits has 3");

    const std::span<T> front(g.data(), 3), back(g.data() + 1, 3);
    CHECK(message_of([&] { smx::cross_entropy_gradient(front, 0, back); }) ==
          "smx::cross_entropy_gradient: gradient (3 elements) partly overlaps logits (3 elements)");
    CHECK(message_of([&] { smx::cross_entropy_gradient(front, shorter, back); }) ==
          "smx::cross_entropy_gradient: gradient (3 elements) partly overlaps logits (3 elements)");
    CHECK(message_of([&] { smx::cross_entropy_gradient(shorter, front, back); }) ==
          "smx::cross_entropy_gradient: gradient (3 elements) partly overlaps target (3 elements)");
    CHECK(message_of([&] { smx::entropy_gradient(front, back); }) ==
          "smx::entropy_gradient: gradient (3 elements) partly overlaps logits (3 elements)");
    CHECK(bits::same(g.data(), untouched.data(), g.size()));
}
