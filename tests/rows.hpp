// SPDX-License-Identifier: BSL-1.0
// rows.hpp: the rows that the tests run on. A row is made from its kind, its length and a seed, and from nothing else.
#pragma once
#include "bits.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace rows {

// --- random numbers ---------------------------------------------------------------------------------------------

// splitmix64 (Steele, Lea & Flood 2014): the same stream with every compiler and library.
class random_source {
public:
    explicit random_source(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next()
    {
        std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    std::size_t below(std::size_t n) { return static_cast<std::size_t>(next() % n); }
    bool one_in(std::size_t n) { return below(n) == 0; }
    double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; } // [0, 1)
    double between(double a, double b) { return a + (b - a) * uniform(); }
    double sign() { return one_in(2) ? -1.0 : 1.0; }

    double normal() // Box & Muller
    {
        const double radius = std::sqrt(-2 * std::log(1 - uniform()));
        return radius * std::cos(6.283185307179586 * uniform());
    }

private:
    std::uint64_t state_;
};

inline std::uint64_t mixed(std::uint64_t seed, std::uint64_t salt)
{
    return random_source(seed ^ (salt * 0xd6e8feb86659fd93u)).next();
}

// SMX_NIGHTLY=1 in the environment multiplies the rows.
inline std::size_t volume()
{
    static const char* nightly = std::getenv("SMX_NIGHTLY");
    return nightly != nullptr && std::strcmp(nightly, "1") == 0 ? 30 : 1;
}

// --- what T can hold --------------------------------------------------------------------------------------------

template <class T>
inline constexpr T largest = std::numeric_limits<T>::max();
template <class T>
inline constexpr T smallest = std::numeric_limits<T>::denorm_min();

// e^-d is subnormal from the first of these on, and 0 from the second.
template <class T>
inline constexpr double subnormal_from = std::is_same_v<T, float> ? 87.3 : 708.4;
template <class T>
inline constexpr double nothing_from = std::is_same_v<T, float> ? 104.0 : 745.2;

// Nearest T, never an infinity. W is finite: under -ffast-math an infinite x would pass for a small one.
template <class T, class W>
T to(W x)
{
    constexpr W edge = static_cast<W>(std::is_same_v<T, float> ? 0x1.fffffep+127 : largest<double>);
    return static_cast<T>(x > edge ? edge : x < -edge ? -edge : x);
}

inline constexpr std::size_t lengths[] = {0,   1,   2,   3,   4,   5,   6,   7,   8,   9,    10,  11,
                                          12,  13,  14,  15,  16,  17,  31,  32,  33,  63,   64,  65,
                                          100, 127, 128, 129, 130, 255, 256, 257, 300, 1000, 4099};

// --- rows of logits ---------------------------------------------------------------------------------------------

template <class T>
using row = std::vector<T>;

template <class T>
struct kind {
    const char* name;
    void (*fill)(random_source&, std::span<T>);
};

namespace logits {

inline constexpr double scales[] = {1, 3, 10, 30, 100, 300};
inline constexpr double offsets[] = {-1e5, -1e4, -1e3, -100, -10, 10, 100, 1e3, 1e4, 1e5};

template <class T>
void normal(random_source& random, std::span<T> x)
{
    const double scale = scales[random.below(std::size(scales))];
    for (T& each : x)
        each = to<T>(scale * random.normal());
}

template <class T>
void offset(random_source& random, std::span<T> x)
{
    const double scale = scales[random.below(std::size(scales))];
    const double middle = offsets[random.below(std::size(offsets))];
    for (T& each : x)
        each = to<T>(middle + scale * random.normal());
}

// One wins by 5 to three times the range of exp.
template <class T>
void saturated(random_source& random, std::span<T> x)
{
    for (T& each : x)
        each = to<T>(random.normal());
    if (!x.empty())
        x[random.below(x.size())] = to<T>(random.between(5, 3 * nothing_from<T>));
}

template <class T>
void ties(random_source& random, std::span<T> x)
{
    const double step = random.between(0.01, 3);
    const double base = random.one_in(2) ? 0 : 100 * random.normal();
    for (T& each : x)
        each = to<T>(base + step * static_cast<double>(random.below(3)));
}

template <class T>
void one_huge(random_source& random, std::span<T> x)
{
    for (T& each : x)
        each = to<T>(random.normal());
    const double exponent = random.between(2, std::numeric_limits<T>::max_exponent10);
    if (!x.empty())
        x[random.below(x.size())] = to<T>(random.sign() * std::pow(10, exponent));
}

// Probabilities around and below the smallest normal number, down to the last that is not 0.
template <class T>
void subnormal_outputs(random_source& random, std::span<T> x)
{
    const double top = random.one_in(2) ? 0 : random.between(-30, 30);
    for (T& each : x)
        each = to<T>(top - random.between(subnormal_from<T> - 3, nothing_from<T> + 1));
    if (!x.empty())
        x[random.below(x.size())] = to<T>(top);
}

template <class T>
void ascending(random_source& random, std::span<T> x)
{
    const double step = random.between(0.001, 2);
    const double start = random.between(-50, 50);
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = to<T>(start + step * static_cast<double>(i));
}

template <class T>
void descending(random_source& random, std::span<T> x)
{
    const double step = random.between(0.001, 2);
    const double start = random.between(-50, 50);
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = to<T>(start - step * static_cast<double>(i));
}

template <class T>
void alternating(random_source& random, std::span<T> x)
{
    const double size = scales[random.below(std::size(scales))] * random.uniform();
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = to<T>(i % 2 == 0 ? size : -size);
}

// Random bits: every exponent, both signs.
template <class T>
void any_bits(random_source& random, std::span<T> x)
{
    for (T& each : x)
        bits::put_finite(each, random.next());
}

// The whole line, from -max to max.
template <class T>
void largest_magnitudes(random_source& random, std::span<T> x)
{
    for (T& each : x)
        each = static_cast<T>(random.sign() * random.uniform()) * largest<T>;
    for (std::size_t k = 0; k < x.size() / 4 + 1 && !x.empty(); ++k)
        x[random.below(x.size())] = random.one_in(2) ? largest<T> : -largest<T>;
}

template <class T>
void all_equal(random_source& random, std::span<T> x)
{
    T value = to<T>(100 * random.normal());
    if (random.one_in(4))
        bits::put_finite(value, random.next());
    for (T& each : x)
        each = value;
}

// Neighbours on the number line.
template <class T>
void nearly_equal(random_source& random, std::span<T> x)
{
    const T value = to<T>(scales[random.below(std::size(scales))] * random.normal());
    for (T& each : x) {
        each = value;
        bits::step_by(each, static_cast<std::int64_t>(random.below(9)) - 4);
    }
}

// A straight line through the whole range of exp and beyond, in random order of its ends.
template <class T>
void wide_ramp(random_source& random, std::span<T> x)
{
    const double end = random.sign() * random.between(1, 3) * nothing_from<T>;
    const double n = static_cast<double>(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = to<T>(end * static_cast<double>(i) / n);
}

template <class T>
void some_absent(random_source& random, std::span<T> x)
{
    normal(random, x);
    const std::size_t kept = x.empty() ? 0 : random.below(x.size());
    const std::size_t rarity = 1 + random.below(4);
    for (std::size_t i = 0; i < x.size(); ++i)
        if (i != kept && random.one_in(rarity))
            bits::put_minus_infinity(x[i]);
}

// Zeros of both signs, subnormals and other numbers whose exponential is 1 but for rounding.
template <class T>
void tiny(random_source& random, std::span<T> x)
{
    for (T& each : x) {
        const double exponent = random.between(std::numeric_limits<T>::min_exponent10 - 20, -3);
        each = random.one_in(4) ? to<T>(random.one_in(2) ? 0.0 : -0.0) : to<T>(random.sign() * std::pow(10, exponent));
    }
}

// Half-way points of the reductions that an exponential may use: multiples of ln 2 / 32, and their neighbours.
template <class T>
void half_way(random_source& random, std::span<T> x)
{
    const double step = 0.6931471805599453 / (random.one_in(2) ? 32.0 : 2.0);
    const double top = random.one_in(2) ? 0.0 : random.between(-20, 20);
    const auto reach = static_cast<std::size_t>(std::is_same_v<T, float> ? 90 / step : 720 / step);
    for (T& each : x) {
        each = to<T>(top - step * static_cast<double>(random.below(reach)));
        bits::step_by(each, static_cast<std::int64_t>(random.below(5)) - 2);
    }
}

// Large logits with small differences: where an algorithm changes over to subtracting the maximum first.
template <class T>
void large_and_close(random_source& random, std::span<T> x)
{
    const double middle =
        random.sign() *
        std::ldexp(random.between(1, 2), std::is_same_v<T, float> ? static_cast<int>(10 + random.below(13))
                                                                  : static_cast<int>(30 + random.below(21)));
    const double scale = scales[random.below(std::size(scales))];
    for (T& each : x)
        each = to<T>(middle + scale * random.normal());
}

// Logits of every size below the range of exp, so that sums meet terms of every size.
template <class T>
void many_sizes(random_source& random, std::span<T> x)
{
    for (T& each : x)
        each = to<T>(-std::pow(10, random.between(-8, 2.9)));
}

} // namespace logits

template <class T>
const std::vector<kind<T>>& logit_kinds()
{
    static const std::vector<kind<T>> all = {
        {"normal", logits::normal<T>},
        {"offset", logits::offset<T>},
        {"saturated", logits::saturated<T>},
        {"ties", logits::ties<T>},
        {"one huge", logits::one_huge<T>},
        {"subnormal outputs", logits::subnormal_outputs<T>},
        {"ascending", logits::ascending<T>},
        {"descending", logits::descending<T>},
        {"alternating", logits::alternating<T>},
        {"any bits", logits::any_bits<T>},
        {"largest magnitudes", logits::largest_magnitudes<T>},
        {"all equal", logits::all_equal<T>},
        {"nearly equal", logits::nearly_equal<T>},
        {"wide ramp", logits::wide_ramp<T>},
        {"some -inf", logits::some_absent<T>},
        {"tiny", logits::tiny<T>},
        {"half-way", logits::half_way<T>},
        {"large and close", logits::large_and_close<T>},
        {"many sizes", logits::many_sizes<T>},
    };
    return all;
}

template <class T>
row<T> make(const kind<T>& how, std::size_t n, std::uint64_t seed)
{
    random_source random(mixed(seed, n));
    row<T> out(n);
    how.fill(random, out);
    return out;
}

// --- temperatures -----------------------------------------------------------------------------------------------

// From the smallest subnormal to the largest finite number.
template <class T>
std::vector<T> temperatures()
{
    std::vector<T> out = {smallest<T>, 3 * smallest<T>, std::numeric_limits<T>::min(), largest<T>};
    for (const double each : {1e-310, 1e-300, 1e-40, 1e-30, 1e-10, 0.1, 0.5, 1.0, 2.0, 7.0, 1e10, 1e30, 1e300})
        if (each >= static_cast<double>(smallest<T>) && each <= static_cast<double>(largest<T>))
            out.push_back(static_cast<T>(each));
    return out;
}

template <class T>
T any_temperature(random_source& random)
{
    T out{};
    do
        bits::put_finite(out, random.next() >> 1);
    while (bits::is_zero(out));
    return out;
}

// --- masks ------------------------------------------------------------------------------------------------------

// A row of bool: std::vector<bool> is not one.
class flags {
public:
    explicit flags(std::size_t n, bool value = true) : size_(n), data_(new bool[n + 1])
    {
        for (std::size_t i = 0; i <= n; ++i)
            data_[i] = value;
    }

    bool& operator[](std::size_t i) { return data_[i]; }
    bool operator[](std::size_t i) const { return data_[i]; }
    const bool* data() const { return data_.get(); }
    std::span<const bool> span() const { return {data_.get(), size_}; }

private:
    std::size_t size_;
    std::unique_ptr<bool[]> data_;
};

// Each entry takes part with probability 1 - 1/rarity, and one finite entry does for certain.
template <class T>
flags any_mask(random_source& random, std::span<const T> x)
{
    flags out(x.size());
    const std::size_t rarity = 1 + random.below(4);
    for (std::size_t i = 0; i < x.size(); ++i)
        out[i] = !random.one_in(rarity);
    if (!x.empty()) {
        std::size_t kept = random.below(x.size());
        while (!bits::is_finite(x[kept]))
            kept = (kept + 1) % x.size();
        out[kept] = true;
    }
    return out;
}

// --- rows of probabilities --------------------------------------------------------------------------------------

namespace probabilities {

// e^x / sum, in double: probabilities to work on, not values to compare with.
template <class T>
void from_logits(std::span<T> p, const std::vector<double>& x, double factor = 1)
{
    double top = x.empty() ? 0 : x[0];
    for (const double each : x)
        top = top < each ? each : top;
    double sum = 0;
    for (const double each : x)
        sum += std::exp(each - top);
    for (std::size_t i = 0; i < x.size(); ++i)
        p[i] = static_cast<T>(factor * (std::exp(x[i] - top) / sum));
}

inline std::vector<double> spread(random_source& random, std::size_t n, double scale)
{
    std::vector<double> out(n);
    for (double& each : out)
        each = scale * random.normal();
    return out;
}

template <class T>
void normal(random_source& random, std::span<T> p)
{
    constexpr double scales[] = {0.1, 1, 3, 10, 30};
    from_logits(p, spread(random, p.size(), scales[random.below(std::size(scales))]));
}

template <class T>
void uniform(random_source&, std::span<T> p)
{
    for (T& each : p)
        each = static_cast<T>(1.0 / static_cast<double>(p.size()));
}

// The sum is 15/16: J is s diag(p) - p p^T for probabilities as given.
template <class T>
void unnormalised(random_source& random, std::span<T> p)
{
    from_logits(p, spread(random, p.size(), random.between(0.1, 5)), 15.0 / 16);
}

// One within 1e-18 of 1.
template <class T>
void saturated(random_source& random, std::span<T> p)
{
    const double size = std::pow(10, random.between(-30, -18)) / static_cast<double>(p.size() + 1);
    for (T& each : p)
        each = static_cast<T>(size * random.uniform());
    if (!p.empty())
        p[random.below(p.size())] = T(1);
}

// Close to 1, but not as close: 1 - p has few digits left when it is taken from p.
template <class T>
void nearly_saturated(random_source& random, std::span<T> p)
{
    std::vector<double> x = spread(random, p.size(), 1);
    if (!p.empty())
        x[random.below(p.size())] = random.between(5, 40);
    from_logits(p, x);
}

template <class T>
void zeros_and_subnormals(random_source& random, std::span<T> p)
{
    std::vector<double> x = spread(random, p.size(), 2);
    for (double& each : x)
        if (random.one_in(3))
            each -= random.between(subnormal_from<T> - 5, nothing_from<T> + 5);
    from_logits(p, x);
    double top = 0;
    for (const T& each : p)
        top = top < static_cast<double>(each) ? static_cast<double>(each) : top;
    for (T& each : p)
        if (static_cast<double>(each) < top && random.one_in(5))
            each = T(0);
}

// Exactly 1/2 and 1/2, the rest 1e-30.
template <class T>
void two_halves(random_source& random, std::span<T> p)
{
    for (T& each : p)
        each = static_cast<T>(1e-30);
    if (p.empty())
        return;
    const std::size_t first = random.below(p.size());
    p[first] = static_cast<T>(0.5);
    p[(first + 1 + random.below(p.size())) % p.size()] = static_cast<T>(0.5);
}

// The winner just above, at or just below 1/2: where products change over.
template <class T>
void about_half(random_source& random, std::span<T> p)
{
    if (p.empty())
        return;
    std::vector<double> x = spread(random, p.size(), 2);
    T& winner = p[random.below(p.size())];
    x[static_cast<std::size_t>(&winner - p.data())] = -1e4; // the others share the other half
    from_logits(p, x, 0.5);
    winner = static_cast<T>(0.5);
    bits::step_by(winner, static_cast<std::int64_t>(random.below(5)) - 2);
}

template <class T>
void one_hot(random_source& random, std::span<T> p)
{
    for (T& each : p)
        each = T(0);
    if (!p.empty())
        p[random.below(p.size())] = T(1);
}

template <class T>
void ramp(random_source& random, std::span<T> p)
{
    std::vector<double> x(p.size());
    const double step = random.sign() * random.between(0.01, 3);
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = step * static_cast<double>(i);
    from_logits(p, x);
}

} // namespace probabilities

template <class T>
const std::vector<kind<T>>& probability_kinds()
{
    static const std::vector<kind<T>> all = {
        {"softmax of normal", probabilities::normal<T>},
        {"uniform", probabilities::uniform<T>},
        {"sum 15/16", probabilities::unnormalised<T>},
        {"saturated", probabilities::saturated<T>},
        {"nearly saturated", probabilities::nearly_saturated<T>},
        {"zeros and subnormals", probabilities::zeros_and_subnormals<T>},
        {"two halves", probabilities::two_halves<T>},
        {"winner about 1/2", probabilities::about_half<T>},
        {"one-hot", probabilities::one_hot<T>},
        {"ramp", probabilities::ramp<T>},
    };
    return all;
}

// --- tangents and cotangents ------------------------------------------------------------------------------------

template <class T>
struct tangent_kind {
    const char* name;
    void (*fill)(random_source&, std::span<const T> probs, std::span<T>);
};

template <class T>
std::size_t argmax(std::span<const T> probs)
{
    std::size_t best = 0;
    for (std::size_t i = 0; i < probs.size(); ++i)
        if (probs[best] < probs[i])
            best = i;
    return best;
}

namespace tangents {

template <class T>
void normal(random_source& random, std::span<const T>, std::span<T> v)
{
    for (T& each : v)
        each = to<T>(random.normal());
}

template <class T>
void constant(random_source& random, std::span<const T>, std::span<T> v)
{
    const T value = to<T>(100 * random.normal());
    for (T& each : v)
        each = value;
}

// An offset that hides the differences, of which J v is made.
template <class T>
void huge_offset(random_source& random, std::span<const T>, std::span<T> v)
{
    const double middle = random.sign() * std::pow(10, random.between(2, std::is_same_v<T, float> ? 7 : 15));
    for (T& each : v)
        each = to<T>(middle + random.normal());
}

// -1/p_y at the argmax, as a cross-entropy sends it back.
template <class T>
void minus_one_over_p(random_source&, std::span<const T> probs, std::span<T> v)
{
    for (T& each : v)
        each = T(0);
    if (!v.empty())
        v[argmax(probs)] = -1 / probs[argmax(probs)];
}

// An outlier at the argmax that would drown the rest if it were taken out first.
template <class T>
void outlier_at_argmax(random_source& random, std::span<const T> probs, std::span<T> v)
{
    normal(random, probs, v);
    if (!v.empty())
        v[argmax(probs)] = to<T>(random.sign() * std::pow(10, random.between(2, 12)));
}

template <class T>
void one_hot(random_source& random, std::span<const T>, std::span<T> v)
{
    for (T& each : v)
        each = T(0);
    if (!v.empty())
        v[random.below(v.size())] = to<T>(random.normal());
}

template <class T>
void alternating(random_source& random, std::span<const T>, std::span<T> v)
{
    const double size = random.between(0.1, 1000);
    for (std::size_t i = 0; i < v.size(); ++i)
        v[i] = to<T>(i % 2 == 0 ? size : -size);
}

template <class T>
void many_sizes(random_source& random, std::span<const T>, std::span<T> v)
{
    for (T& each : v)
        each = to<T>(random.sign() * std::pow(10, random.between(-30, 30)));
}

// Such that the product of two is in range.
template <class T>
void moderate_sizes(random_source& random, std::span<const T>, std::span<T> v)
{
    for (T& each : v)
        each = to<T>(random.sign() * std::pow(10, random.between(-15, 15)));
}

// Down to the smallest number there is: products of these with probabilities are subnormal.
template <class T>
void tiny(random_source& random, std::span<const T>, std::span<T> v)
{
    constexpr double least = std::numeric_limits<T>::min_exponent10 - std::numeric_limits<T>::digits10;
    for (T& each : v)
        each = to<T>(random.sign() * std::pow(10, random.between(least, least + 40)));
}

// Every size from the smallest number there is to 1e15.
template <class T>
void any_size(random_source& random, std::span<const T>, std::span<T> v)
{
    constexpr double least = std::numeric_limits<T>::min_exponent10 - std::numeric_limits<T>::digits10;
    for (T& each : v)
        each = to<T>(random.sign() * std::pow(10, random.between(least, 15)));
}

template <class T>
void zero(random_source&, std::span<const T>, std::span<T> v)
{
    for (T& each : v)
        each = T(0);
}

// Nearly the same everywhere: neighbours on the number line.
template <class T>
void nearly_constant(random_source& random, std::span<const T>, std::span<T> v)
{
    const T value = to<T>(10 * random.normal());
    for (T& each : v) {
        each = value;
        bits::step_by(each, static_cast<std::int64_t>(random.below(9)) - 4);
    }
}

// Infinities where p_i = 0, of which the products do not know.
template <class T>
void infinite_where_absent(random_source& random, std::span<const T> probs, std::span<T> v)
{
    normal(random, probs, v);
    for (std::size_t i = 0; i < v.size(); ++i)
        if (bits::is_zero(probs[i]) && random.one_in(2))
            bits::put_infinity(v[i], random.one_in(2));
}

} // namespace tangents

// Which entries of a tangent a product looks at, and whether it multiplies two of them.
enum class reach { everywhere, support, products };

template <class T>
std::vector<tangent_kind<T>> tangent_kinds(reach of)
{
    std::vector<tangent_kind<T>> all = {
        {"normal", tangents::normal<T>},
        {"constant", tangents::constant<T>},
        {"huge offset", tangents::huge_offset<T>},
        {"-1/p at the argmax", tangents::minus_one_over_p<T>},
        {"outlier at the argmax", tangents::outlier_at_argmax<T>},
        {"one-hot", tangents::one_hot<T>},
        {"alternating", tangents::alternating<T>},
        {"many sizes", of == reach::products ? tangents::moderate_sizes<T> : tangents::many_sizes<T>},
        {"zero", tangents::zero<T>},
        {"nearly constant", tangents::nearly_constant<T>},
        {"tiny", tangents::tiny<T>},
        {"any size", tangents::any_size<T>},
    };
    if (of != reach::everywhere)
        all.push_back({"infinite where p = 0", tangents::infinite_where_absent<T>});
    return all;
}

template <class T>
row<T> make(const tangent_kind<T>& how, const row<T>& probs, std::uint64_t seed)
{
    random_source random(mixed(seed, probs.size()));
    row<T> out(probs.size());
    how.fill(random, std::span<const T>(probs), out);
    return out;
}

// --- words ------------------------------------------------------------------------------------------------------

// One string. Not `+`: GCC 12 warns of a copy that overlaps itself (GCC #105651).
template <class... Parts>
std::string joined(const Parts&... parts)
{
    std::string out;
    (out.append(parts), ...);
    return out;
}

template <class T>
std::string hex(const T& at)
{
    if (bits::is_nan(at))
        return "nan";
    if (bits::is_infinite(at))
        return bits::parts_of(at).negative ? "-inf" : "inf";
    char text[64] = {};
    if constexpr (std::is_same_v<T, long double>)
        std::snprintf(text, sizeof text, "%La", at);
    else
        std::snprintf(text, sizeof text, "%a", static_cast<double>(at));
    return text;
}

// A short row in full, so that a failure can be typed in again; of a long one the length.
template <class T>
std::string hex(std::span<const T> x)
{
    if (x.size() > 20)
        return joined("[", std::to_string(x.size()), " elements]");
    std::string out = "{";
    for (std::size_t i = 0; i < x.size(); ++i)
        out.append(i == 0 ? "" : ", ").append(hex(x[i]));
    return out.append("}");
}

template <class T>
const char* name_of()
{
    return std::is_same_v<T, float> ? "float" : std::is_same_v<T, double> ? "double" : "long double";
}

} // namespace rows
