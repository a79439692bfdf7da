// SPDX-License-Identifier: BSL-1.0
// accuracy.test.cpp: the error bounds of the library against the oracle, on natural and on adversarial rows.
//
// Every figure in a doc comment under "Error" is owned by a test here. SMX_TABLE=1 in the environment prints the
// largest errors at the end, SMX_NIGHTLY=1 runs thirty times the rows. Also compiled with -ffast-math.
#include "bits.hpp"
#include "catch.hpp"
#include "error_table.hpp"
#include "leaves.hpp"
#include "oracle.hpp"
#include "rows.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace {

using rows::mixed;
using rows::random_source;
using rows::row;

constexpr std::uint64_t seed_of_all = 0x5eed0f50f7a11; // printed with every failure

// --- the table of bounds ----------------------------------------------------------------------------------------

constexpr bound softmax_bound = {"softmax", 3, 4};
constexpr bound log_softmax_bound = {"log_softmax", 3, 4};
constexpr bound logsumexp_bound = {"logsumexp", 2, 2};
constexpr bound logaddexp_bound = {"logaddexp", 2, 2};
constexpr bound diagonal_bound = {"softmax_jacobian, diagonal", 2, 2};
constexpr bound off_diagonal_bound = {"softmax_jacobian, off the diagonal", 1, 1};
constexpr bound log_jacobian_bound = {"log_softmax_jacobian", 2, 2};
constexpr bound jvp_bound = {"softmax_jvp, softmax_vjp", 8, 12};
constexpr bound log_jvp_bound = {"log_softmax_jvp", 8, 12};
constexpr bound log_vjp_bound = {"log_softmax_vjp", 8, 12};
constexpr bound hvp_bound = {"softmax_hvp", 32, 64};

// The worst entry of one row.
template <class T>
struct verdict {
    double error = -1;
    std::size_t i = 0;
    T computed{};
    long double exact = 0;

    template <class W>
    void consider(double candidate, std::size_t at, const T& value, W exact_value)
    {
        if (candidate <= error)
            return;
        error = candidate;
        i = at;
        std::memcpy(&computed, &value, sizeof value);
        exact = static_cast<long double>(exact_value);
    }

    std::string words() const
    {
        return rows::joined("i ", std::to_string(i), ", computed ", rows::hex(computed), ", exact ", rows::hex(exact));
    }
};

// The largest error of one output, for every leaf and every kind of row, with the words to make the row again.
template <class T>
class errors {
public:
    errors(const bound& limits, rows_are which) : limits_(limits), which_(which) {}

    template <class Row>
    void note(const leaf<T>& by, const Row& x, const verdict<T>& found)
    {
        worst& entry = worst_[{by.name(), x.kind}];
        if (found.error <= entry.error)
            return;
        entry.error = found.error;
        if (found.error > allowed())
            entry.where = rows::joined(found.words(), ", ", x.words());
    }

    double allowed() const { return which_ == rows_are::natural ? limits_.natural : limits_.adversarial; }

    void check() const
    {
        double error = -1;
        std::string words;
        for (const auto& [key, entry] : worst_) {
            all_errors.note(limits_, rows::name_of<T>(), key.first.c_str(), which_, entry.error);
            error = std::max(error, entry.error);
            if (entry.error > allowed())
                words += rows::joined("\n  ", key.first, " leaf, rows '", key.second, "': ", figure(entry.error), " > ",
                                      figure(allowed()), "\n    ", entry.where);
        }
        INFO(limits_.output << ", " << rows::name_of<T>() << ", seed " << seed_of_all << words);
        CHECK(error >= 0);
        CHECK(error <= allowed());
    }

private:
    struct worst {
        double error = -1;
        std::string where;
    };

    bound limits_;
    rows_are which_;
    std::map<std::pair<std::string, std::string>, worst> worst_;
};

// How many rows of n elements make up one volume of so many elements.
std::size_t repetitions(std::size_t n, std::size_t elements)
{
    return std::max<std::size_t>(1, std::min<std::size_t>(40, elements / (n + 1))) * rows::volume();
}

// --- rows of logits ---------------------------------------------------------------------------------------------

template <class T>
struct logit_row {
    std::string kind;
    row<T> logits;
    T temperature = T(1);
    rows::flags mask = rows::flags(0); // none

    std::size_t size() const { return logits.size(); }

    std::string words() const
    {
        std::string out = rows::joined("n ", std::to_string(size()), ", temperature ", rows::hex(temperature),
                                       ", logits ", rows::hex(std::span<const T>(logits)));
        if (!mask.span().empty()) {
            out += ", mask ";
            for (std::size_t k = 0; k < std::min<std::size_t>(size(), 20); ++k)
                out += mask[k] ? '1' : '0';
        }
        return out;
    }
};

// Rows of every kind and length, at temperature 1.
template <class T, class Use>
void for_each_plain_row(std::size_t elements, Use use)
{
    for (const rows::kind<T>& kind : rows::logit_kinds<T>())
        for (const std::size_t n : rows::lengths)
            for (std::size_t k = 0; n > 0 && k < repetitions(n, elements); ++k)
                use(logit_row<T>{kind.name, rows::make(kind, n, mixed(seed_of_all, k))});
}

// The same, and once more with a mask, with NaN behind it, half of them with a temperature.
template <class T, class Use>
void for_each_row(std::size_t elements, Use use)
{
    random_source random(seed_of_all);
    for_each_plain_row<T>(elements, [&](logit_row<T> x) {
        use(x);
        x.mask = rows::any_mask(random, std::span<const T>(x.logits));
        for (std::size_t i = 0; i < x.size(); ++i)
            if (!x.mask[i] && random.one_in(2))
                bits::put_nan(x.logits[i], random.below(bits::nan_kinds));
        x.kind += ", masked";
        if (random.one_in(2))
            x.temperature = static_cast<T>(random.between(0.01, 20));
        use(x);
    });
}

// Rows of every kind for every temperature, their logits as they are and then measured in temperatures, so that the
// probabilities are neither 0 nor 1.
template <class T, class Use>
void for_each_temperature(Use use)
{
    random_source random(seed_of_all);
    std::vector<T> temperatures = rows::temperatures<T>();
    for (std::size_t k = 0; k < 30 * rows::volume(); ++k)
        temperatures.push_back(rows::any_temperature<T>(random));
    for (const T& temperature : temperatures)
        for (const rows::kind<T>& kind : rows::logit_kinds<T>())
            for (const std::size_t n : {1u, 2u, 3u, 5u, 17u, 33u}) {
                logit_row<T> x = {rows::joined(kind.name, ", temperature"), rows::make(kind, n, random.next()),
                                  temperature};
                use(x);
                for (T& each : x.logits)
                    if (bits::is_finite(each))
                        each = rows::to<T>(static_cast<long double>(each) * static_cast<long double>(temperature));
                x.kind += " scaled";
                use(x);
            }
}

template <class T>
oracle::shifted_row<T> exact_of(const logit_row<T>& x)
{
    return oracle::shifted_row<T>(x.logits.data(), x.size(), x.temperature,
                                  x.mask.span().empty() ? nullptr : x.mask.data());
}

template <class T>
verdict<T> judge_softmax(const leaf<T>& by, const logit_row<T>& x, const oracle::shifted_row<T>& exact)
{
    row<T> probs(x.size());
    by.softmax(x.logits, probs, x.temperature, x.mask.span());
    verdict<T> out;
    for (std::size_t i = 0; i < x.size(); ++i)
        out.consider(metric::softmax<T>(probs[i], exact.softmax(i)), i, probs[i], exact.softmax(i));
    return out;
}

template <class T>
verdict<T> judge_log_softmax(const leaf<T>& by, const logit_row<T>& x, const oracle::shifted_row<T>& exact)
{
    row<T> log_probs(x.size());
    by.log_softmax(x.logits, log_probs, x.temperature, x.mask.span());
    verdict<T> out;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const bool absent = !exact.present(i);
        const auto value = absent ? oracle::wide<T>(0) : exact.log_softmax(i);
        const double error = !absent                                 ? metric::log_softmax<T>(log_probs[i], value)
                             : bits::is_minus_infinity(log_probs[i]) ? 0.0
                                                                     : metric::lost;
        out.consider(error, i, log_probs[i], value);
    }
    return out;
}

template <class T>
verdict<T> judge_logsumexp(const leaf<T>& by, const logit_row<T>& x, const oracle::shifted_row<T>& exact)
{
    T result{};
    by.logsumexp(x.logits, result);
    verdict<T> out;
    out.consider(metric::logsumexp<T>(result, exact.logsumexp(), exact.logsumexp_scale()), 0, result,
                 exact.logsumexp());
    return out;
}

template <class T>
verdict<T> judge_logaddexp(const leaf<T>&, const logit_row<T>& x, const oracle::shifted_row<T>& exact)
{
    const T result = smx::logaddexp(x.logits[0], x.logits[1]);
    verdict<T> out;
    out.consider(metric::logaddexp<T>(result, exact.logsumexp(), exact.logsumexp_scale()), 0, result,
                 exact.logsumexp());
    return out;
}

template <class T>
using logit_judge = verdict<T> (*)(const leaf<T>&, const logit_row<T>&, const oracle::shifted_row<T>&);

// --- adversarial rows of logits ---------------------------------------------------------------------------------

// Moves one logit: by a few places on the number line, to a random place in the range of exp, onto another one, or by
// about a step of a table of exponentials.
template <class T>
T moved(random_source& random, const logit_row<T>& x, std::size_t i)
{
    const double other = static_cast<double>(x.logits[random.below(x.size())]);
    const double t = static_cast<double>(x.temperature);
    T out = x.logits[i];
    switch (random.below(8)) {
    case 0:
    case 1:
    case 2:
        bits::step_by(out, static_cast<std::int64_t>(random.below(17)) - 8);
        break;
    case 3:
        bits::step_by(out, static_cast<std::int64_t>(random.below(1u << 16)) - (1 << 15));
        break;
    case 4:
        out = rows::to<T>(other - t * random.between(0, rows::nothing_from<T>));
        break;
    case 5:
        out = rows::to<T>(other - t * random.between(0, 2));
        break;
    case 6:
        out = rows::to<T>(other);
        break;
    default:
        out = rows::to<T>(static_cast<double>(out) + t * random.between(-0.03, 0.03));
        break;
    }
    return out;
}

// Moves one logit at a time and keeps what does not make the largest error smaller.
template <class T>
void climb(const leaf<T>& by, logit_judge<T> judge, logit_row<T>& x, std::size_t steps, random_source& random)
{
    oracle::shifted_row<T> exact = exact_of(x);
    double best = -1;
    for (std::size_t step = 0; step < steps; ++step) {
        const std::size_t i = random.below(x.size());
        const T before = x.logits[i];
        x.logits[i] = moved(random, x, i);
        exact.set(i, x.logits[i]);
        const double error = judge(by, x, exact).error;
        if (error >= best) {
            best = error;
        } else {
            x.logits[i] = before;
            exact.set(i, before);
        }
    }
}

// The public interface is one of the others: it only gets their worst rows.
template <class T>
std::vector<leaf<T>> leaves_to_climb()
{
    std::vector<leaf<T>> all = leaves<T>();
    all.pop_back();
    return all;
}

template <class T>
void check_climbs(const bound& limits, logit_judge<T> judge, std::initializer_list<std::size_t> sizes,
                  std::size_t climbs, bool temperatures)
{
    errors<T> found(limits, rows_are::adversarial);
    random_source random(seed_of_all);
    for (const leaf<T>& by : leaves_to_climb<T>())
        for (std::size_t k = 0; k < climbs * rows::volume(); ++k)
            for (const std::size_t n : sizes) {
                const rows::kind<T>& kind = rows::logit_kinds<T>()[random.below(rows::logit_kinds<T>().size())];
                logit_row<T> x = {kind.name, rows::make(kind, n, random.next())};
                for (T& each : x.logits)
                    if (!bits::is_finite(each))
                        each = T(0);
                if (temperatures && random.one_in(2))
                    x.temperature = rows::to<T>(std::pow(10, random.between(-3, 3)));
                climb(by, judge, x, 300, random);
                x.kind = rows::joined("climbed from ", x.kind);
                const oracle::shifted_row<T> exact = exact_of(x);
                found.note(by, x, judge(by, x, exact));
                found.note(leaf<T>(), x, judge(leaf<T>(), x, exact));
            }
    found.check();
}

// --- rows of probabilities --------------------------------------------------------------------------------------

template <class T>
struct product_row {
    std::string kind;
    row<T> probs, cotangent, tangent; // products of one vector use the tangent

    std::size_t size() const { return probs.size(); }

    std::string words() const
    {
        return rows::joined("n ", std::to_string(size()), ", probs ", rows::hex(std::span<const T>(probs)),
                            ", tangent ", rows::hex(std::span<const T>(tangent)),
                            cotangent.empty() ? "" : ", cotangent ",
                            cotangent.empty() ? "" : rows::hex(std::span<const T>(cotangent)));
    }
};

template <class T, class Use>
void for_each_product(std::size_t elements, const std::vector<rows::tangent_kind<T>>& tangents, bool second, Use use)
{
    random_source random(seed_of_all);
    for (const rows::kind<T>& kind : rows::probability_kinds<T>())
        for (const rows::tangent_kind<T>& tangent : tangents)
            for (const std::size_t n : rows::lengths)
                for (std::size_t k = 0; n > 0 && k < repetitions(n, elements); ++k) {
                    product_row<T> x;
                    x.kind = rows::joined(kind.name, ", ", tangent.name);
                    x.probs = rows::make(kind, n, random.next());
                    x.tangent = rows::make(tangent, x.probs, random.next());
                    if (second) {
                        const rows::tangent_kind<T>& cotangent = tangents[random.below(tangents.size())];
                        x.kind += rows::joined(" and ", cotangent.name);
                        x.cotangent = rows::make(cotangent, x.probs, random.next());
                    }
                    use(x);
                }
}

template <class T>
using exact_product = std::vector<oracle::judged<oracle::wide<T>>>;

// One product: the library's, the oracle's, and how far apart they are.
template <class T>
struct product {
    bound limits;
    void (*run)(const leaf<T>&, const product_row<T>&, std::span<T>);
    exact_product<T> (*exact)(const product_row<T>&);
    double (*distance)(const T&, const oracle::judged<oracle::wide<T>>&);
    bool second; // of two vectors
    std::vector<rows::tangent_kind<T>> tangents;
};

template <class T>
verdict<T> judge(const product<T>& f, const leaf<T>& by, const product_row<T>& x, const exact_product<T>& exact)
{
    row<T> computed(x.size());
    f.run(by, x, computed);
    verdict<T> out;
    for (std::size_t i = 0; i < x.size(); ++i)
        out.consider(f.distance(computed[i], exact[i]), i, computed[i], exact[i].value);
    return out;
}

template <class T>
product<T> softmax_jvp()
{
    return {
        jvp_bound,
        [](const leaf<T>& by, const product_row<T>& x, std::span<T> out) { by.softmax_jvp(x.probs, x.tangent, out); },
        [](const product_row<T>& x) { return oracle::jacobian<T>(x.probs.data(), x.size()).jvp(x.tangent.data()); },
        metric::jvp<T>,
        false,
        rows::tangent_kinds<T>(rows::reach::support)};
}

template <class T>
product<T> softmax_vjp()
{
    product<T> out = softmax_jvp<T>();
    out.run = [](const leaf<T>& by, const product_row<T>& x, std::span<T> out_row) {
        by.softmax_vjp(x.probs, x.tangent, out_row);
    };
    return out;
}

template <class T>
product<T> log_softmax_jvp()
{
    return {
        log_jvp_bound,
        [](const leaf<T>& by, const product_row<T>& x, std::span<T> out) {
            by.log_softmax_jvp(x.probs, x.tangent, out);
        },
        [](const product_row<T>& x) { return oracle::jacobian<T>(x.probs.data(), x.size()).log_jvp(x.tangent.data()); },
        metric::log_softmax_jvp<T>,
        false,
        rows::tangent_kinds<T>(rows::reach::everywhere)};
}

template <class T>
product<T> log_softmax_vjp()
{
    return {
        log_vjp_bound,
        [](const leaf<T>& by, const product_row<T>& x, std::span<T> out) {
            by.log_softmax_vjp(x.probs, x.tangent, out);
        },
        [](const product_row<T>& x) { return oracle::jacobian<T>(x.probs.data(), x.size()).log_vjp(x.tangent.data()); },
        metric::log_softmax_vjp<T>,
        false,
        rows::tangent_kinds<T>(rows::reach::everywhere)};
}

template <class T>
product<T> softmax_hvp()
{
    return {hvp_bound,
            [](const leaf<T>& by, const product_row<T>& x, std::span<T> out) {
                by.softmax_hvp(x.probs, x.cotangent, x.tangent, out);
            },
            [](const product_row<T>& x) {
                return oracle::jacobian<T>(x.probs.data(), x.size()).hvp(x.cotangent.data(), x.tangent.data());
            },
            metric::hvp<T>,
            true,
            rows::tangent_kinds<T>(rows::reach::products)};
}

template <class T>
void check_natural(const product<T>& f, std::size_t elements)
{
    errors<T> found(f.limits, rows_are::natural);
    const std::vector<leaf<T>> all = leaves<T>();
    for_each_product<T>(elements, f.tangents, f.second, [&](const product_row<T>& x) {
        const exact_product<T> exact = f.exact(x);
        for (const leaf<T>& by : all)
            found.note(by, x, judge(f, by, x, exact));
    });
    found.check();
}

// What a climb may use: half of them keep away from the smallest numbers, where half a subnormal step is all there is
// to find, so that they find the rest.
template <class T>
bool in_reach(const T& x, double smallest)
{
    const double size = std::fabs(static_cast<double>(x));
    return bits::is_zero(x) || (size >= smallest && size < 1e15);
}

// Moves one entry of a vector: by places on the number line, by a power of two, to another one's value, or anywhere.
template <class T>
void move_vector(random_source& random, row<T>& v, double smallest)
{
    T& out = v[random.below(v.size())];
    const T before = out;
    const double other = static_cast<double>(v[random.below(v.size())]);
    switch (random.below(6)) {
    case 0:
    case 1:
        bits::step_by(out, static_cast<std::int64_t>(random.below(17)) - 8);
        break;
    case 2:
        out = -out;
        break;
    case 3:
        out = rows::to<T>(other);
        break;
    case 4:
        out = rows::to<T>(other * std::ldexp(1.0, static_cast<int>(random.below(13)) - 6));
        break;
    default:
        out = rows::to<T>(other + random.normal());
        break;
    }
    if (!in_reach(out, smallest))
        out = before;
}

// Moves one probability, as long as the sum stays about 1.
template <class T>
void move_probability(random_source& random, row<T>& p, double smallest)
{
    T& out = p[random.below(p.size())];
    const T before = out;
    if (random.one_in(2))
        bits::step_by(out, static_cast<std::int64_t>(random.below(17)) - 8);
    else
        out = rows::to<T>(static_cast<double>(p[random.below(p.size())]) * random.between(0, 2));
    double sum = 0;
    for (const T& each : p)
        sum += static_cast<double>(each);
    if (out < T(0) || !in_reach(out, smallest) || sum < 0.9 || sum > 1.05)
        out = before;
}

template <class T>
product_row<T> start_of_climb(const product<T>& f, std::size_t n, double smallest, random_source& random)
{
    const rows::kind<T>& kind = rows::probability_kinds<T>()[random.below(rows::probability_kinds<T>().size())];
    const rows::tangent_kind<T>& tangent = f.tangents[random.below(f.tangents.size())];
    product_row<T> x;
    x.kind = rows::joined(smallest > 0 ? "climbed far from 0 from " : "climbed from ", kind.name, ", ", tangent.name);
    x.probs = rows::make(kind, n, random.next());
    x.tangent = rows::make(tangent, x.probs, random.next());
    if (f.second)
        x.cotangent = rows::make(f.tangents[random.below(f.tangents.size())], x.probs, random.next());
    for (row<T>* v : {&x.probs, &x.tangent, &x.cotangent})
        for (T& each : *v)
            if (!bits::is_finite(each) || !in_reach(each, smallest))
                each = T(0);
    return x;
}

template <class T>
void climb(const product<T>& f, const leaf<T>& by, product_row<T>& x, double smallest, std::size_t steps,
           random_source& random)
{
    double best = judge(f, by, x, f.exact(x)).error;
    for (std::size_t step = 0; step < steps; ++step) {
        const product_row<T> before = x;
        switch (random.below(f.second ? 3 : 2)) {
        case 0:
            move_probability(random, x.probs, smallest);
            break;
        case 1:
            move_vector(random, x.tangent, smallest);
            break;
        default:
            move_vector(random, x.cotangent, smallest);
            break;
        }
        const double error = judge(f, by, x, f.exact(x)).error;
        if (error >= best)
            best = error;
        else
            x = before;
    }
}

template <class T>
void check_climbs(const product<T>& f, std::size_t climbs)
{
    errors<T> found(f.limits, rows_are::adversarial);
    random_source random(seed_of_all);
    const double far_from_zero = std::is_same_v<T, float> ? 1e-10 : 1e-90; // the product of three is a normal number
    for (const leaf<T>& by : leaves_to_climb<T>())
        for (std::size_t k = 0; k < climbs * rows::volume(); ++k)
            for (const std::size_t n : {2u, 3u, 4u, 5u, 8u, 16u, 17u, 33u, 65u})
                for (const double smallest : {0.0, far_from_zero}) {
                    product_row<T> x = start_of_climb(f, n, smallest, random);
                    climb(f, by, x, smallest, 300, random);
                    const exact_product<T> exact = f.exact(x);
                    found.note(by, x, judge(f, by, x, exact));
                    found.note(leaf<T>(), x, judge(f, leaf<T>(), x, exact));
                }
    found.check();
}

} // namespace

// --- the oracle itself, in this compiler and with these flags ---------------------------------------------------

TEST_CASE("oracle: it knows constants, cancelling sums and special values under any flags", "[oracle]")
{
    using quad = oracle::quad;
    // By decimal arithmetic with 80 digits, as sums of two doubles.
    const quad e_inverse = quad(0x1.78b56362cef38p-2) + quad(-0x1.ca8a4270fadf5p-57);
    const quad ln_2 = quad(0x1.62e42fefa39efp-1) + quad(0x1.abc9e3b39803fp-56);
    CHECK(static_cast<double>(oracle::magnitude(oracle::exp_below(quad(-1)) - e_inverse)) < 0x1p-106);
    CHECK(static_cast<double>(oracle::magnitude(oracle::log1p_of(quad(1)) - ln_2)) < 0x1p-106);
    CHECK(static_cast<double>(oracle::magnitude(oracle::exp_below(-1.0L) - static_cast<long double>(e_inverse))) <
          0x1p-64);
    CHECK(static_cast<double>(oracle::magnitude(oracle::log1p_of(1.0L) - static_cast<long double>(ln_2))) < 0x1p-63);

    CHECK(static_cast<double>(metric::ulp_of<float>(1.0L)) == 0x1p-23);
    CHECK(static_cast<double>(metric::ulp_of<double>(quad(1))) == 0x1p-52);
    CHECK(static_cast<double>(metric::ulp_of<float>(0.0L)) == 0x1p-149);
    CHECK(static_cast<double>(metric::ulp_of<float>(0x1p-140L)) == 0x1p-149);
    CHECK(static_cast<double>(metric::ulp_of<float>(0x1p-125L)) == 0x1p-148);
    CHECK(static_cast<double>(metric::ulp_of<float>(-0x1p200L)) == 0x1p104);
    CHECK(metric::softmax<float>(0x1.000002p+0f, 1.0L) == 1);
    CHECK(metric::softmax<double>(0x1.0000000000003p+0, quad(1)) == 3);
    CHECK(metric::softmax<double>(0.0, quad(0x1p-1074)) == 1);
    CHECK(metric::jvp<float>(0.0f, {0x1p-150L, 0.0L}) == 0);            // half a subnormal step, freely
    CHECK(metric::jvp<float>(0.0f, {0x1p-149L, 0.0L}) == metric::lost); // and no more
    CHECK(metric::jvp<double>(1 + 0x1p-52, {quad(1), quad(1)}) == 2);

    float special = 0;
    bits::put_nan(special);
    CHECK(metric::softmax<float>(special, 1.0L) == metric::lost);
    CHECK(metric::jvp<float>(special, {1.0L, 1.0L}) == metric::lost);
    bits::put_minus_infinity(special);
    CHECK(metric::log_softmax<float>(special, -1.0L) > 1e20);
    CHECK(metric::log_softmax<float>(special, -0x1p129L) == 0); // beyond the range, -inf is the exact value
    CHECK(metric::log_softmax<float>(-rows::largest<float>, -0x1p129L) == 1);

    // The others of 1 are not 1 + tiny - 1, and a tangent's offset leaves without a trace.
    const double probs[] = {1, 1e-300, 0x1p-1070};
    const oracle::jacobian<double> J(probs, 3);
    CHECK(static_cast<double>(J.diagonal(0)) == 1e-300);
    const double offset[] = {1e15 + 1, 1e15, 1e15};
    CHECK(static_cast<double>(J.jvp(offset)[0].value) == 1e-300);
    CHECK(static_cast<double>(J.log_jvp(offset)[1].value) == -1);

    const double logits[] = {0, -700, 1e308};
    const oracle::shifted_row<double> below(logits, 2, 1.0, nullptr);
    CHECK(static_cast<double>(below.log_softmax(0)) == -static_cast<double>(below.softmax(1)));
    CHECK(static_cast<double>(below.softmax(1)) == 0x1.14f2b0fb9307fp-1010); // e^-700
    const oracle::shifted_row<double> coldest(logits, 3, 0x1p-1074, nullptr);
    CHECK(static_cast<double>(coldest.softmax(2)) == 1);
    CHECK(static_cast<double>(coldest.softmax(0)) == 0);
    CHECK(coldest.log_softmax(0) < quad(-1) * oracle::power_of_two(quad(1), 2090));
}

// --- the exponential --------------------------------------------------------------------------------------------

TEST_CASE("exp: the generic leaf's power of two is within 0.52 ULP", "[accuracy][exp]")
{
    using quad = oracle::quad;
    const quad ln_2 = oracle::log1p_of(quad(1));
    random_source random(seed_of_all);
    double worst = 0, worst_r = 0;
    int worst_steps = 0;
    for (std::size_t k = 0; k < 100000 * rows::volume(); ++k) {
        const int steps = -static_cast<int>(random.below(64 * 1000));
        const double r = random.one_in(4) ? random.sign() * std::pow(10, random.between(-20, -2)) // 2^r near 1
                                          : random.between(-0.01, 0.01);
        const double computed = generic_power(steps, r);
        const quad exponent = quad(steps) / quad(64) + quad(r);
        const double error = metric::softmax<double>(computed, oracle::exp_of(exponent * ln_2));
        if (error > worst) {
            worst = error;
            worst_r = r;
            worst_steps = steps;
        }
    }
    CAPTURE(worst_steps, rows::hex(worst_r), seed_of_all);
    CHECK(worst <= 0.52);
}

// In a row whose other entries are e^-40 (float) or e^-80 (double) and less, a probability is the exponential itself: not
// even the second half of 1 / sum differs from that of 1 by anything that counts.
TEMPLATE_TEST_CASE("exp: the exponential of every leaf is within 0.75 ULP", "[accuracy][exp]", float, double)
{
    using T = TestType;
    const std::vector<leaf<T>> all = leaves<T>();
    random_source random(seed_of_all);
    std::map<std::string, double> worst;
    std::string where;
    row<T> x(4097), probs(4097);
    for (const double max : {0.0, -0.7, 33.3, -1000.25}) {
        x[0] = static_cast<T>(max);
        for (std::size_t k = 0; k < (std::is_same_v<T, float> ? 40 : 4) * rows::volume(); ++k) {
            for (std::size_t i = 1; i < x.size(); ++i)
                x[i] = rows::to<T>(max - random.between(std::is_same_v<T, float> ? 40 : 80, rows::subnormal_from<T>));
            const oracle::shifted_row<T> exact(x.data(), x.size(), T(1), nullptr);
            for (const leaf<T>& by : all) {
                by.softmax(x, probs);
                double& error = worst[by.name()];
                for (std::size_t i = 1; i < x.size(); ++i) {
                    const double here = metric::softmax<T>(probs[i], exact.softmax(i));
                    if (here > error && here > 0.75)
                        where = rows::joined(by.name(), " leaf, e^(", rows::hex(x[i]), " - ", rows::hex(x[0]), ")");
                    error = std::max(error, here);
                }
            }
        }
    }
    for (const auto& [name, error] : worst) {
        all_errors.note({"exp", 0.75, 0.75}, rows::name_of<T>(), name.c_str(), rows_are::natural, error);
        CAPTURE(name, where, seed_of_all);
        CHECK(error <= 0.75);
    }
}

// Every float x from -87.3 to 24 but those within 2^-26 of 0, below a maximum from which it is at least 40 away, and so near
// that e^(x - max) is a normal number; with SMX_NIGHTLY=1 every one, else one in 1009. As above, a probability is the
// exponential itself.
TEST_CASE("exp: the exponential of every float is within 0.75 ULP", "[accuracy][exp]")
{
    const std::vector<leaf<float>> all = leaves<float>();
    std::map<std::string, double> worst;
    float at_worst = 0;
    std::size_t count = 0;
    row<float> x, probs;
    std::vector<long double> exact;
    const auto judge_row = [&] {
        probs.resize(x.size());
        for (const leaf<float>& by : all) {
            by.softmax(x, probs);
            double& error = worst[by.name()];
            for (std::size_t i = 1; i < x.size(); ++i) {
                const double here = metric::softmax<float>(probs[i], exact[i]);
                if (here > error) {
                    error = here;
                    at_worst = x[i];
                }
            }
        }
    };
    for (const auto& [max, low, high] :
         {std::array{0.0f, -87.3f, -40.0f}, std::array{20.0f, -40.0f, -23.0f}, std::array{64.0f, -23.0f, 24.0f}})
        for (const bool negative : {true, false})
            for (float next = negative ? -0x1p-26f : 0x1p-26f; low <= next && next <= high;) {
                x.assign(1, max);
                exact.assign(1, 1);
                for (; x.size() < 4097 && low <= next && next <= high;
                     bits::step_by(next, (negative ? -1 : 1) * (rows::volume() > 1 ? 1 : 1009))) {
                    x.push_back(next);
                    exact.push_back(oracle::exp_of(static_cast<long double>(next) - static_cast<long double>(max)));
                }
                count += x.size() - 1;
                judge_row();
            }
    for (const auto& [name, error] : worst) {
        all_errors.note({"exp, every float", 0.75, 0.75}, "float", name.c_str(), rows_are::natural, error);
        CAPTURE(name, rows::hex(at_worst), count);
        CHECK(error <= 0.75);
    }
}

// --- values -----------------------------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("softmax: natural rows are within 3 ULP", "[accuracy][softmax]", float, double)
{
    using T = TestType;
    errors<T> found(softmax_bound, rows_are::natural);
    const std::vector<leaf<T>> all = leaves<T>();
    const auto judge_row = [&](const logit_row<T>& x) {
        const oracle::shifted_row<T> exact = exact_of(x);
        for (const leaf<T>& by : all)
            found.note(by, x, judge_softmax(by, x, exact));
    };
    for_each_row<T>(3000, judge_row);
    for_each_temperature<T>(judge_row);
    found.check();
}

TEMPLATE_TEST_CASE("softmax: adversarial rows are within 4 ULP", "[accuracy][adversarial][softmax]", float, double)
{
    using T = TestType;
    check_climbs<T>(softmax_bound, judge_softmax<T>, {2, 3, 4, 5, 8, 16, 17, 33, 65, 130}, 20, true);
}

TEMPLATE_TEST_CASE("log_softmax: natural rows are within 3 ULP", "[accuracy][log_softmax]", float, double)
{
    using T = TestType;
    errors<T> found(log_softmax_bound, rows_are::natural);
    const std::vector<leaf<T>> all = leaves<T>();
    const auto judge_row = [&](const logit_row<T>& x) {
        const oracle::shifted_row<T> exact = exact_of(x);
        for (const leaf<T>& by : all)
            found.note(by, x, judge_log_softmax(by, x, exact));
    };
    for_each_row<T>(3000, judge_row);
    for_each_temperature<T>(judge_row);
    found.check();
}

TEMPLATE_TEST_CASE("log_softmax: adversarial rows are within 4 ULP", "[accuracy][adversarial][log_softmax]", float,
                   double)
{
    using T = TestType;
    check_climbs<T>(log_softmax_bound, judge_log_softmax<T>, {2, 3, 4, 5, 8, 16, 17, 33, 65, 130}, 20, true);
}

TEMPLATE_TEST_CASE("logsumexp: natural rows are within 2 ULP of the largest part", "[accuracy][logsumexp]", float,
                   double)
{
    using T = TestType;
    errors<T> found(logsumexp_bound, rows_are::natural);
    const std::vector<leaf<T>> all = leaves<T>();
    for_each_plain_row<T>(3000, [&](const logit_row<T>& x) {
        const oracle::shifted_row<T> exact = exact_of(x);
        for (const leaf<T>& by : all)
            found.note(by, x, judge_logsumexp(by, x, exact));
    });
    found.check();
}

TEMPLATE_TEST_CASE("logsumexp: adversarial rows are within 2 ULP of the largest part",
                   "[accuracy][adversarial][logsumexp]", float, double)
{
    using T = TestType;
    check_climbs<T>(logsumexp_bound, judge_logsumexp<T>, {2, 3, 4, 5, 8, 16, 17, 33, 65, 130}, 20, false);
}

TEMPLATE_TEST_CASE("logaddexp: natural pairs are within 2 ULP of the largest part", "[accuracy][logsumexp]", float,
                   double)
{
    using T = TestType;
    errors<T> found(logaddexp_bound, rows_are::natural);
    random_source random(seed_of_all);
    for (const rows::kind<T>& kind : rows::logit_kinds<T>())
        for (std::size_t k = 0; k < 2000 * rows::volume(); ++k) {
            const logit_row<T> x = {kind.name, rows::make(kind, 2, random.next())};
            if (bits::is_finite(x.logits[0]) && bits::is_finite(x.logits[1]))
                found.note(leaf<T>(), x, judge_logaddexp(leaf<T>(), x, exact_of(x)));
        }
    found.check();
}

TEMPLATE_TEST_CASE("logaddexp: adversarial pairs are within 2 ULP of the largest part",
                   "[accuracy][adversarial][logsumexp]", float, double)
{
    using T = TestType;
    check_climbs<T>(logaddexp_bound, judge_logaddexp<T>, {2}, 100, false);
}

namespace {

// softmax, log_softmax and logsumexp of the same rows, by every leaf
template <class T>
class all_three {
public:
    void judge(const logit_row<T>& x)
    {
        const oracle::shifted_row<T> exact = exact_of(x);
        for (const leaf<T>& by : all_) {
            probs_.note(by, x, judge_softmax(by, x, exact));
            log_probs_.note(by, x, judge_log_softmax(by, x, exact));
            sums_.note(by, x, judge_logsumexp(by, x, exact));
        }
    }
    void check()
    {
        probs_.check();
        log_probs_.check();
        sums_.check();
    }

private:
    std::vector<leaf<T>> all_ = leaves<T>();
    errors<T> probs_{softmax_bound, rows_are::natural};
    errors<T> log_probs_{log_softmax_bound, rows_are::natural};
    errors<T> sums_{logsumexp_bound, rows_are::natural};
};

} // namespace

// T, the others together less than the winner or little more, down to where its own digits are lost in the sum with the winner.
TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: rows with a winner are within the same bounds", "[accuracy]",
                   float, double)
{
    using T = TestType;
    all_three<T> found;
    random_source random(seed_of_all);
    for (const std::size_t n : {129u, 130u, 160u, 177u, 255u, 256u, 257u, 300u, 511u, 512u, 513u, 700u, 768u, 769u,
                                1000u, 2047u, 2048u, 2049u})
        for (std::size_t k = 0; k < 24 * rows::volume(); ++k) {
            const double max = random.between(-19, 19), log_tail = random.between(-26, 4);
            logit_row<T> x = {"winner", row<T>(n)};
            for (T& others : x.logits)
                others = rows::to<T>(max + log_tail - std::log(static_cast<double>(n)) - random.uniform());
            const std::size_t m = k % 4 == 0 ? n - 1 - random.below(40) : random.below(n);
            x.logits[m] = rows::to<T>(max);
            const std::size_t other = m ^ std::size_t{64 / sizeof(T)}; // what is added to the winner first
            if (k % 2 == 0 && other < n)
                x.logits[other] = rows::to<T>(max + log_tail - random.uniform());
            found.judge(x);
        }
    found.check();
}

// Nearly all of T is one term. One more rounding of it, with what lies a vector away, and logsumexp is off by 2.4.
TEST_CASE("softmax, log_softmax, logsumexp: rows with a winner at 0 and a runner-up are within the same bounds",
          "[accuracy]")
{
    struct {
        std::size_t n;
        float runner_up, a_vector_away, rest;
    } constexpr found_by_climbing[] = {{129, -0x1.624c0ep+1f, -0x1.e5f844p+2f, -0x1.2e5a88p+4f},
                                       {400, -0x1.62935ep+1f, -0x1.98c36p+2f, -0x1.179258p+4f},
                                       {1000, -0x1.5f7fb4p+1f, -0x1.06254cp+3f, -0x1.23477p+4f}};
    all_three<float> found;
    for (const auto& row_of : found_by_climbing) {
        logit_row<float> x = {"runner-up", row<float>(row_of.n, row_of.rest)};
        x.logits[0] = 0;
        x.logits[17] = row_of.runner_up;
        x.logits[1] = row_of.a_vector_away;
        found.judge(x);
    }
    found.check();
}

TEMPLATE_TEST_CASE("softmax, log_softmax, logsumexp: long rows are within the same bounds", "[accuracy]", float, double)
{
    using T = TestType;
    all_three<T> found;
    constexpr std::size_t n = std::is_same_v<T, float> ? 1u << 20 : 1u << 18;
    random_source random(seed_of_all);
    for (const bool ascending : {false, true}) {
        logit_row<T> x = {ascending ? "long, ascending" : "long, normal", row<T>(n)};
        for (std::size_t i = 0; i < n; ++i)
            x.logits[i] = rows::to<T>(ascending ? 1e-5 * static_cast<double>(i) : 5 * random.normal());
        found.judge(x);
    }
    found.check();
}

// --- the dense Jacobian -----------------------------------------------------------------------------------------

namespace {

// Rows to look at: all of a small matrix, five of a large one, whose diagonal is looked at in full.
std::vector<std::size_t> rows_to_judge(std::size_t n)
{
    std::vector<std::size_t> out;
    if (n > 130)
        return {0, 1, n / 3, n / 2, n - 1};
    for (std::size_t i = 0; i < n; ++i)
        out.push_back(i);
    return out;
}

template <class T, class Use>
void for_each_matrix(Use use)
{
    random_source random(seed_of_all);
    for (const rows::kind<T>& kind : rows::probability_kinds<T>())
        for (const std::size_t n : rows::lengths)
            for (std::size_t k = 0; n > 0 && n <= 1000 && k < repetitions(n, 200); ++k)
                use(product_row<T>{kind.name, rows::make(kind, n, random.next()), {}, {}});
}

} // namespace

TEMPLATE_TEST_CASE("softmax_jacobian: the diagonal is within 2 ULP and the rest within 1", "[accuracy][jacobian]",
                   float, double)
{
    using T = TestType;
    const std::vector<leaf<T>> all = leaves<T>();
    errors<T> on(diagonal_bound, rows_are::natural), off(off_diagonal_bound, rows_are::natural);
    for_each_matrix<T>([&](const product_row<T>& x) {
        const std::size_t n = x.size();
        const oracle::jacobian<T> exact(x.probs.data(), n);
        row<T> J(n * n);
        for (const leaf<T>& by : all) {
            by.softmax_jacobian(x.probs, J);
            verdict<T> diagonal, rest;
            for (std::size_t i = 0; i < n; ++i)
                diagonal.consider(metric::jacobian_diagonal<T>(J[i * n + i], exact.diagonal(i)), i, J[i * n + i],
                                  exact.diagonal(i));
            for (const std::size_t i : rows_to_judge(n))
                for (std::size_t j = 0; j < n; ++j)
                    if (i != j)
                        rest.consider(metric::jacobian_off_diagonal<T>(J[i * n + j], exact.off_diagonal(i, j)),
                                      i * n + j, J[i * n + j], exact.off_diagonal(i, j));
            on.note(by, x, diagonal);
            off.note(by, x, rest);
        }
    });
    on.check();
    off.check();
}

TEMPLATE_TEST_CASE("log_softmax_jacobian: every entry is within 2 ULP", "[accuracy][jacobian]", float, double)
{
    using T = TestType;
    const std::vector<leaf<T>> all = leaves<T>();
    errors<T> found(log_jacobian_bound, rows_are::natural);
    for_each_matrix<T>([&](const product_row<T>& x) {
        const std::size_t n = x.size();
        const oracle::jacobian<T> exact(x.probs.data(), n);
        row<T> J(n * n);
        for (const leaf<T>& by : all) {
            by.log_softmax_jacobian(x.probs, J);
            verdict<T> worst;
            for (std::size_t i = 0; i < n; ++i)
                worst.consider(metric::log_softmax_jacobian<T>(J[i * n + i], exact.log_diagonal(i)), i * n + i,
                               J[i * n + i], exact.log_diagonal(i));
            for (const std::size_t i : rows_to_judge(n))
                for (std::size_t j = 0; j < n; ++j)
                    if (i != j)
                        worst.consider(metric::log_softmax_jacobian<T>(J[i * n + j], exact.log_off_diagonal(j)),
                                       i * n + j, J[i * n + j], exact.log_off_diagonal(j));
            found.note(by, x, worst);
        }
    });
    found.check();
}

// A diagonal entry is the only one with a sum in it: climb on the probabilities.
TEMPLATE_TEST_CASE("softmax_jacobian, log_softmax_jacobian: adversarial rows keep the bounds",
                   "[accuracy][adversarial][jacobian]", float, double)
{
    using T = TestType;
    errors<T> on(diagonal_bound, rows_are::adversarial), off(off_diagonal_bound, rows_are::adversarial);
    errors<T> logs(log_jacobian_bound, rows_are::adversarial);
    random_source random(seed_of_all);
    const auto& kinds = rows::probability_kinds<T>();
    for (const leaf<T>& by : leaves_to_climb<T>())
        for (std::size_t k = 0; k < 20 * rows::volume(); ++k)
            for (const std::size_t n : {2u, 3u, 5u, 8u, 17u, 33u}) {
                const rows::kind<T>& kind = kinds[random.below(kinds.size())];
                product_row<T> x = {
                    rows::joined("climbed from ", kind.name), rows::make(kind, n, random.next()), {}, {}};
                row<T> J(n * n), log_J(n * n);
                verdict<T> diagonal, rest, log_diagonal;
                double best = -1;
                for (std::size_t step = 0; step < 100; ++step) {
                    const row<T> before = x.probs;
                    move_probability(random, x.probs, 0.0);
                    const oracle::jacobian<T> exact(x.probs.data(), n);
                    by.softmax_jacobian(x.probs, J);
                    by.log_softmax_jacobian(x.probs, log_J);
                    verdict<T> here, log_here;
                    for (std::size_t i = 0; i < n; ++i) {
                        const std::size_t at = i * n + i, beside = i * n + (i + 1) % n;
                        here.consider(metric::jacobian_diagonal<T>(J[at], exact.diagonal(i)), at, J[at],
                                      exact.diagonal(i));
                        log_here.consider(metric::log_softmax_jacobian<T>(log_J[at], exact.log_diagonal(i)), at,
                                          log_J[at], exact.log_diagonal(i));
                        const auto product = exact.off_diagonal(i, (i + 1) % n);
                        rest.consider(metric::jacobian_off_diagonal<T>(J[beside], product), beside, J[beside], product);
                    }
                    const double error = std::max(here.error, log_here.error);
                    if (error < best) {
                        x.probs = before;
                        continue;
                    }
                    best = error;
                    diagonal = here;
                    log_diagonal = log_here;
                }
                on.note(by, x, diagonal);
                off.note(by, x, rest);
                logs.note(by, x, log_diagonal);
            }
    on.check();
    off.check();
    logs.check();
}

// --- products with the Jacobian ---------------------------------------------------------------------------------

TEMPLATE_TEST_CASE("softmax_jvp: natural rows are within 8 units", "[accuracy][jvp]", float, double)
{
    check_natural(softmax_jvp<TestType>(), 400);
}

TEMPLATE_TEST_CASE("softmax_jvp: adversarial rows are within 12 units", "[accuracy][adversarial][jvp]", float, double)
{
    check_climbs(softmax_jvp<TestType>(), 8);
}

TEMPLATE_TEST_CASE("softmax_vjp: natural rows are within 8 units", "[accuracy][vjp]", float, double)
{
    check_natural(softmax_vjp<TestType>(), 50);
}

TEMPLATE_TEST_CASE("log_softmax_jvp: natural rows are within 8 units", "[accuracy][jvp]", float, double)
{
    check_natural(log_softmax_jvp<TestType>(), 400);
}

TEMPLATE_TEST_CASE("log_softmax_jvp: adversarial rows are within 12 units", "[accuracy][adversarial][jvp]", float,
                   double)
{
    check_climbs(log_softmax_jvp<TestType>(), 8);
}

TEMPLATE_TEST_CASE("log_softmax_vjp: natural rows are within 8 units", "[accuracy][vjp]", float, double)
{
    check_natural(log_softmax_vjp<TestType>(), 400);
}

TEMPLATE_TEST_CASE("log_softmax_vjp: adversarial rows are within 12 units", "[accuracy][adversarial][vjp]", float,
                   double)
{
    check_climbs(log_softmax_vjp<TestType>(), 8);
}

TEMPLATE_TEST_CASE("softmax_hvp: natural rows are within 32 units", "[accuracy][hvp]", float, double)
{
    check_natural(softmax_hvp<TestType>(), 400);
}

TEMPLATE_TEST_CASE("softmax_hvp: adversarial rows are within 64 units", "[accuracy][adversarial][hvp]", float, double)
{
    check_climbs(softmax_hvp<TestType>(), 8);
}
