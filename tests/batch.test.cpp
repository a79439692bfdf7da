// SPDX-License-Identifier: BSL-1.0
// batch.test.cpp: rows of a batch have the bits that they have by themselves, whatever their neighbours, the executor and
// its pieces; columns are within the bounds of softmax; what lies between rows is neither read nor written; bad calls.
#include <smx/batch.hpp>
#include <smx/threads.hpp>

#include "bits.hpp"
#include "catch.hpp"
#include "leaves.hpp"
#include "oracle.hpp"
#include "rows.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cfenv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <limits>
#include <list>
#include <memory>
#include <mutex>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

using rows::mixed;
using rows::random_source;
using rows::row;

constexpr std::uint64_t seed_of_all = 0xba7c4e5u; // printed with every failure

// ---- executors ------------------------------------------------------------------------------------------------------

// Any executor. Small batches are one unit of work, so a test of pieces makes batches of many.
using pieces = std::function<void(std::size_t first, std::size_t last)>;
using any_executor = std::function<void(std::size_t count, pieces body)>;

struct named_executor {
    const char* name;
    any_executor run;
};

void one_at_a_time(std::size_t count, const pieces& body)
{
    for (std::size_t i = 0; i < count; ++i)
        body(i, i + 1);
}

void reversed(std::size_t count, const pieces& body)
{
    for (std::size_t i = count; i-- > 0;)
        body(i, i + 1);
}

void uneven(std::size_t count, const pieces& body) // pieces of 1, 2, 3, ... and empty ones
{
    std::size_t first = 0;
    for (std::size_t size = 1; first < count; ++size) {
        const std::size_t last = std::min(count, first + size);
        body(first, first);
        body(first, last);
        first = last;
    }
    body(count, count);
}

void on_two_threads(std::size_t count, const pieces& body)
{
    std::jthread other([&] { body(0, count / 2); });
    body(count / 2, count);
}

std::vector<named_executor> executors()
{
    return {{"sequential", smx::sequential},
            {"one at a time", one_at_a_time},
            {"reversed", reversed},
            {"uneven", uneven},
            {"two threads", on_two_threads},
            {"threads{1}", smx::threads{1}},
            {"threads{2}", smx::threads{2}},
            {"threads{3}", smx::threads{3}},
            {"threads{4}", smx::threads{4}},
            {"threads{0}", smx::threads{}},
            {"threads{1000}", smx::threads{1000}}};
}

// ---- one batch, and the functions that take it -----------------------------------------------------------------------

template <class T>
struct batch {
    std::span<const T> in, with; // logits; or probs and the vectors of a product
    std::span<T> out;
    smx::row_layout layout;
    T temperature = T(1);
    std::span<const bool> mask = {};

    std::size_t rows() const { return (in.size() + layout.row_stride - layout.row_length) / layout.row_stride; }
    std::size_t start(std::size_t r) const { return r * layout.row_stride; }
    std::span<const T> row_of(std::span<const T> all, std::size_t r) const
    {
        return all.empty() ? all : all.subspan(start(r), layout.row_length);
    }
    std::span<const bool> mask_of(std::size_t r) const
    {
        return mask.empty() || mask.size() == layout.row_length ? mask : mask.subspan(start(r), layout.row_length);
    }
};

// A function of rows: of one by itself, and of all of a batch, by the public interface or by the slices of a level.
template <class T>
struct rows_function {
    using slices = std::span<const smx::detail::row_slice<T>>;

    const char* name;
    bool of_logits, has_options, one_result;
    void (*single)(const leaf<T>&, std::span<const T> in, std::span<const T> with, std::span<T> out, const T& t,
                   std::span<const bool> mask);
    void (*all)(const any_executor&, const batch<T>&);
    void (*at_level)(std::string_view level, slices, const smx::detail::exp_scale<T>&);
};

// the slices function of that name
template <class All>
auto named(const All& all, std::string_view level)
{
    for (const auto& each : all)
        if (each.name == level)
            return each.function;
    throw std::runtime_error("no such level");
}

template <class T>
std::vector<rows_function<T>> rows_functions()
{
    using in = std::span<const T>;
    using out = std::span<T>;
    using mask = std::span<const bool>;
    using slices = typename rows_function<T>::slices;
    using scale = smx::detail::exp_scale<T>;
    using by = const leaf<T>&;
    using exec = const any_executor&;
    using all = const batch<T>&;
    using smx::detail::at_every_level;
    return {
        {"softmax", true, true, false, [](by f, in x, in, out y, const T& t, mask m) { f.softmax(x, y, t, m); },
         [](exec e, all b) { smx::softmax_rows(e, b.in, b.out, b.layout, {b.temperature, b.mask}); },
         [](std::string_view level, slices s, const scale& t) {
             named(at_every_level<T>([](auto rows) { return rows.softmax_slices; }), level)(s.data(), s.size(), t);
         }},
        {"log_softmax", true, true, false, [](by f, in x, in, out y, const T& t, mask m) { f.log_softmax(x, y, t, m); },
         [](exec e, all b) { smx::log_softmax_rows(e, b.in, b.out, b.layout, {b.temperature, b.mask}); },
         [](std::string_view level, slices s, const scale& t) {
             named(at_every_level<T>([](auto rows) { return rows.log_softmax_slices; }), level)(s.data(), s.size(), t);
         }},
        {"logsumexp", true, false, true, [](by f, in x, in, out y, const T&, mask) { f.logsumexp(x, y[0]); },
         [](exec e, all b) { smx::logsumexp_rows(e, b.in, b.out, b.layout); },
         [](std::string_view level, slices s, const scale&) {
             named(at_every_level<T>([](auto rows) { return rows.logsumexp_slices; }), level)(s.data(), s.size());
         }},
        {"softmax_jvp", false, false, false, [](by f, in p, in v, out y, const T&, mask) { f.softmax_jvp(p, v, y); },
         [](exec e, all b) { smx::softmax_jvp_rows(e, b.in, b.with, b.out, b.layout); },
         [](std::string_view level, slices s, const scale&) {
             named(at_every_level<T>([](auto rows) { return rows.softmax_jvp_slices; }), level)(s.data(), s.size());
         }},
        {"softmax_vjp", false, false, false, [](by f, in p, in u, out y, const T&, mask) { f.softmax_vjp(p, u, y); },
         [](exec e, all b) { smx::softmax_vjp_rows(e, b.in, b.with, b.out, b.layout); }, nullptr},
        {"log_softmax_jvp", false, false, false,
         [](by f, in p, in v, out y, const T&, mask) { f.log_softmax_jvp(p, v, y); },
         [](exec e, all b) { smx::log_softmax_jvp_rows(e, b.in, b.with, b.out, b.layout); },
         [](std::string_view level, slices s, const scale&) {
             named(at_every_level<T>([](auto rows) { return rows.log_softmax_jvp_slices; }), level)(s.data(), s.size());
         }},
        {"log_softmax_vjp", false, false, false,
         [](by f, in p, in u, out y, const T&, mask) { f.log_softmax_vjp(p, u, y); },
         [](exec e, all b) { smx::log_softmax_vjp_rows(e, b.in, b.with, b.out, b.layout); },
         [](std::string_view level, slices s, const scale&) {
             named(at_every_level<T>([](auto rows) { return rows.log_softmax_vjp_slices; }), level)(s.data(), s.size());
         }},
    };
}

// All rows of a batch by one leaf: the public interface, or the slices of a level in one call. False: there is no such thing.
template <class T>
bool run(const rows_function<T>& f, const leaf<T>& by, const batch<T>& b)
{
    if (by.is_public()) {
        f.all(smx::sequential, b);
        return true;
    }
    if (f.at_level == nullptr)
        return false;
    std::vector<smx::detail::row_slice<T>> slices;
    for (std::size_t r = 0; r < b.rows(); ++r)
        slices.push_back({b.in.data() + b.start(r), b.with.empty() ? nullptr : b.with.data() + b.start(r),
                          b.out.data() + (f.one_result ? r : b.start(r)), b.layout.row_length,
                          b.mask.empty() ? nullptr : b.mask_of(r).data()});
    f.at_level(by.name(), slices, smx::detail::scale_of<T>(b.temperature));
    return true;
}

// A NaN is a NaN: which of its many patterns comes out of arithmetic is nobody's promise.
template <class T>
bool same_or_nan(const T* a, const T* b, std::size_t n)
{
    for (std::size_t i = 0; i < n; ++i)
        if (!bits::same(a[i], b[i]) && !(bits::is_nan(a[i]) && bits::is_nan(b[i])))
            return false;
    return true;
}

// ---- what is in a batch ----------------------------------------------------------------------------------------------

enum class flavour { near, one_hard, hard };
constexpr flavour flavours[] = {flavour::near, flavour::one_hard, flavour::hard};

// Logits that one row a lane can take: not far from 0, whatever is subnormal, saturated, or absent.
template <class T>
void put_near_logits(random_source& random, std::span<T> x)
{
    using namespace rows::logits;
    void (*const kinds[])(random_source&, std::span<T>) = {
        normal<T>, saturated<T>, ties<T>, subnormal_outputs<T>, wide_ramp<T>, tiny<T>, half_way<T>, some_absent<T>};
    kinds[random.below(std::size(kinds))](random, x);
}

// Far from 0, or a NaN or an infinity at any place, or nothing but -inf.
template <class T>
void put_hard_logits(random_source& random, std::span<T> x)
{
    const auto& kinds = rows::logit_kinds<T>();
    kinds[random.below(kinds.size())].fill(random, x);
    T& any = x[random.below(x.size())];
    switch (random.below(6)) {
    case 0:
        bits::put_nan(any, random.below(bits::nan_kinds));
        break;
    case 1:
        bits::put_plus_infinity(any);
        break;
    case 2:
        bits::put_minus_infinity(any);
        break;
    case 3:
        for (T& each : x)
            bits::put_minus_infinity(each);
        break;
    default:
        break;
    }
}

template <class T>
void put_probs(random_source& random, std::span<T> p)
{
    const auto& kinds = rows::probability_kinds<T>();
    kinds[random.below(kinds.size())].fill(random, p);
}

template <class T>
void put_tangent(random_source& random, std::span<const T> p, std::span<T> v)
{
    static const auto kinds = rows::tangent_kinds<T>(rows::reach::support);
    kinds[random.below(kinds.size())].fill(random, p, v);
    if (random.one_in(8))
        for (T& each : v)
            each = T(-0.0);
}

// The memory of one batch: rows with NaN between them, masks, and an output full of a pattern.
template <class T>
struct made {
    smx::row_layout layout;
    std::size_t count;
    row<T> logits, probs, vectors, out;
    rows::flags mask_of_all, mask_of_each;
    T temperature;
    static constexpr std::size_t margin = 8;

    made(random_source& random, std::size_t n, std::size_t rows, flavour how)
        : layout(n, n + (random.one_in(2) ? 0 : random.below(6))), count(rows),
          logits(rows * layout.row_stride - (random.one_in(2) ? 0 : layout.row_stride - n)), probs(logits.size()),
          vectors(logits.size()), out(logits.size() + margin), mask_of_all(n), mask_of_each(logits.size()),
          temperature(random.one_in(2) ? T(1) : static_cast<T>(random.between(0.3, 3)))
    {
        for (std::size_t i = 0; i < logits.size(); ++i) { // the padding, for what is a row is overwritten
            bits::put_nan(logits[i]);
            bits::put_nan(probs[i]);
            bits::put_nan(vectors[i]);
        }
        const std::size_t hard_row = random.below(rows);
        for (std::size_t r = 0; r < rows; ++r) {
            const std::size_t at = r * layout.row_stride;
            const std::span<T> x = std::span<T>(logits).subspan(at, n), p = std::span<T>(probs).subspan(at, n),
                               v = std::span<T>(vectors).subspan(at, n);
            const bool hard = how == flavour::hard || (how == flavour::one_hard && r == hard_row);
            if (hard)
                put_hard_logits(random, x);
            else
                put_near_logits(random, x);
            put_probs(random, p);
            put_tangent<T>(random, p, v);
            if (hard && random.one_in(4))
                bits::put_nan(random.one_in(2) ? p[random.below(n)] : v[random.below(n)]);
            if (hard && random.one_in(4))
                bits::put_infinity(v[random.below(n)], random.one_in(2));
        }
        for (std::size_t i = 0; i < n; ++i)
            mask_of_all[i] = !random.one_in(3);
        for (std::size_t i = 0; i < logits.size(); ++i)
            mask_of_each[i] = !random.one_in(3);
        if (rows > 1)
            for (std::size_t i = 0; i < n; ++i)
                mask_of_each[layout.row_stride + i] = false; // nothing unmasked
        clear();
    }

    void clear()
    {
        for (T& each : out)
            bits::put_nan(each, 3);
    }

    batch<T> arguments(const rows_function<T>& f)
    {
        const std::span<const T> in = f.of_logits ? logits : probs;
        const std::span<const T> with = f.of_logits ? std::span<const T>() : std::span<const T>(vectors);
        return {in, with, std::span<T>(out).first(f.one_result ? count : logits.size()), layout};
    }

    // Is all of out as clear() left it that no row of the output covers?
    bool intact(const batch<T>& b, bool one_result) const
    {
        T pattern{};
        bits::put_nan(pattern, 3);
        for (std::size_t i = 0; i < out.size(); ++i) {
            const bool written = one_result ? i < count : i < b.out.size() && i % layout.row_stride < layout.row_length;
            if (!written && !bits::same(out[i], pattern))
                return false;
        }
        return true;
    }
};

// The batch by this leaf, against its rows one by one.
template <class T>
void check_rows(const rows_function<T>& f, const leaf<T>& by, made<T>& m, const batch<T>& b)
{
    m.clear();
    if (!run(f, by, b))
        return;
    row<T> expected(b.layout.row_length);
    const std::size_t results = f.one_result ? 1 : b.layout.row_length;
    for (std::size_t r = 0; r < b.rows(); ++r) {
        f.single(by, b.row_of(b.in, r), b.row_of(b.with, r), expected, b.temperature, b.mask_of(r));
        const T* const actual = b.out.data() + (f.one_result ? r : b.start(r));
        if (!same_or_nan(actual, expected.data(), results)) {
            CAPTURE(r, b.rows(), rows::hex(b.row_of(b.in, r)), rows::hex(b.row_of(b.with, r)));
            CAPTURE(rows::hex(std::span<const T>(actual, results)), rows::hex(std::span<const T>(expected)));
            CHECK(same_or_nan(actual, expected.data(), results));
            return;
        }
    }
    CHECK(m.intact(b, f.one_result));
}

} // namespace

TEMPLATE_TEST_CASE("batch: every row has the bits that it has by itself, and padding is left alone", "[batch][rows]",
                   float, double)
{
    using T = TestType;
    const auto functions = rows_functions<T>();
    const auto all_leaves = leaves<T>();
    const auto try_shape = [&](std::size_t n, std::size_t count, flavour how) {
        random_source random(mixed(mixed(seed_of_all, n), 3 * count + static_cast<std::size_t>(how)));
        made<T> m(random, n, count, how);
        for (const rows_function<T>& f : functions)
            for (const leaf<T>& by : all_leaves) {
                batch<T> b = m.arguments(f);
                CAPTURE(f.name, by.name(), n, count, b.layout.row_stride, b.in.size(), static_cast<int>(how));
                check_rows(f, by, m, b);
                if (!f.has_options)
                    continue;
                for (const std::span<const bool> mask :
                     {std::span<const bool>(), m.mask_of_all.span(), m.mask_of_each.span()}) {
                    b.temperature = m.temperature;
                    b.mask = mask;
                    CAPTURE(b.temperature, mask.size());
                    check_rows(f, by, m, b);
                }
            }
    };
    for (std::size_t n = 1; n <= 130; ++n)
        for (const flavour how : flavours)
            if (n <= 17)
                for (std::size_t count = 1; count <= 40; ++count)
                    try_shape(n, count, how);
            else
                try_shape(n, 1 + n % 7, how);
    for (const std::size_t n : {1000u, 4099u})
        for (const flavour how : flavours)
            try_shape(n, 3, how);
    for (const flavour how : flavours)
        try_shape(5, 1000, how); // many calls of 64 slices
}

TEMPLATE_TEST_CASE("batch: in place has the bits of out of place", "[batch][rows][memory]", float, double)
{
    using T = TestType;
    for (std::size_t n = 1; n <= 40; ++n)
        for (const flavour how : flavours) {
            random_source random(mixed(seed_of_all, n));
            made<T> m(random, n, 21, how);
            for (const rows_function<T>& f : rows_functions<T>())
                for (const leaf<T>& by : leaves<T>()) {
                    batch<T> b = m.arguments(f);
                    if (f.one_result)
                        continue;
                    CAPTURE(f.name, by.name(), n, static_cast<int>(how));
                    m.clear();
                    if (!run(f, by, b))
                        continue;
                    row<T> in(b.in.begin(), b.in.end()), with(b.with.begin(), b.with.end());
                    batch<T> in_place = b;
                    in_place.in = in_place.out = in;
                    run(f, by, in_place);
                    for (std::size_t r = 0; r < b.rows(); ++r)
                        REQUIRE(same_or_nan(in.data() + b.start(r), b.out.data() + b.start(r), n));
                    if (!f.of_logits) {
                        in_place.in = b.in;
                        in_place.with = in_place.out = with;
                        run(f, by, in_place);
                        for (std::size_t r = 0; r < b.rows(); ++r)
                            REQUIRE(same_or_nan(with.data() + b.start(r), b.out.data() + b.start(r), n));
                    }
                }
        }
}

TEMPLATE_TEST_CASE("batch: avx2, avx512 and the public interface give the same bits", "[batch][rows][columns]", float,
                   double)
{
    using T = TestType;
    for (std::size_t n = 1; n <= 130; n += n < 34 ? 1 : 13)
        for (const flavour how : flavours) {
            random_source random(mixed(seed_of_all, n));
            made<T> m(random, n, 37, how);
            for (const rows_function<T>& f : rows_functions<T>()) {
                const batch<T> b = m.arguments(f);
                row<T> first;
                for (const leaf<T>& by : leaves_of_same_bits<T>()) {
                    m.clear();
                    if (!run(f, by, b))
                        continue;
                    if (first.empty())
                        first.assign(b.out.begin(), b.out.end());
                    CAPTURE(f.name, by.name(), n, static_cast<int>(how));
                    REQUIRE(same_or_nan(first.data(), b.out.data(), first.size()));
                }
            }
        }
}

TEMPLATE_TEST_CASE("batch: one masked entry, at every position of every row", "[batch][rows][mask]", float, double)
{
    using T = TestType;
    const auto functions = rows_functions<T>();
    for (std::size_t n = 1; n <= 35; ++n) {
        constexpr std::size_t count = 5;
        random_source random(mixed(seed_of_all, n));
        row<T> x(count * n), y(x.size()), expected(n);
        for (T& each : x)
            each = rows::to<T>(5 * random.normal());
        for (std::size_t at = 0; at < x.size(); ++at) {
            rows::flags mask(x.size());
            mask[at] = false;
            const T kept = x[at];
            bits::put_nan(x[at], at % bits::nan_kinds); // never evaluated
            for (const leaf<T>& by : leaves<T>())
                for (const rows_function<T>& f : functions) {
                    if (!f.has_options)
                        continue;
                    run(f, by, {x, {}, y, n, T(1), mask.span()});
                    CAPTURE(f.name, by.name(), n, at);
                    const std::string_view name = f.name;
                    REQUIRE((name == "softmax" ? bits::is_plus_zero(y[at]) : bits::is_minus_infinity(y[at])));
                    for (std::size_t i = 0; i < x.size(); ++i)
                        if (i != at)
                            REQUIRE(bits::is_finite(y[i]));
                    for (std::size_t r = 0; r < count; ++r) {
                        f.single(by, std::span<const T>(x).subspan(r * n, n), {}, expected, T(1),
                                 mask.span().subspan(r * n, n));
                        REQUIRE(bits::same(expected.data(), y.data() + r * n, n));
                    }
                }
            x[at] = kept;
        }
    }
}

TEMPLATE_TEST_CASE("batch: nothing unmasked is 0 everywhere, in log_softmax -inf", "[batch][rows][mask]", float, double)
{
    using T = TestType;
    for (const std::size_t n : {1u, 3u, 8u, 16u, 17u, 40u}) {
        row<T> x(3 * n), p(x.size(), T(7)), y(x.size(), T(7));
        for (std::size_t i = 0; i < x.size(); ++i)
            bits::put_nan(x[i], i % bits::nan_kinds);
        const rows::flags none(n, false);
        smx::softmax_rows(x, p, n, {.mask = none.span()});
        smx::log_softmax_rows(x, y, n, {.mask = none.span()});
        for (std::size_t i = 0; i < x.size(); ++i) {
            REQUIRE(bits::is_plus_zero(p[i]));
            REQUIRE(bits::is_minus_infinity(y[i]));
        }
    }
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__FAST_MATH__)

TEMPLATE_TEST_CASE("batch: finite rows raise no INVALID, DIVBYZERO or OVERFLOW flag", "[batch][rows][columns]", float,
                   double)
{
    using T = TestType;
    const auto functions = rows_functions<T>();
    for (std::size_t n = 1; n <= 33; ++n)
        for (const std::size_t count : {1u, 2u, 7u, 16u, 19u}) {
            random_source random(mixed(seed_of_all, n * count));
            row<T> x(n * count), p(x.size()), v(x.size()), out(x.size());
            for (std::size_t r = 0; r < count; ++r) {
                const auto part = [&](row<T>& all) { return std::span<T>(all).subspan(r * n, n); };
                put_near_logits<T>(random, part(x));
                rows::probabilities::zeros_and_subnormals<T>(random, part(p));
                rows::tangents::normal<T>(random, part(p), part(v));
            }
            for (const leaf<T>& by : leaves<T>()) {
                for (const rows_function<T>& f : functions) {
                    const batch<T> b{f.of_logits ? x : p, f.of_logits ? std::span<const T>() : std::span<const T>(v),
                                     std::span<T>(out).first(f.one_result ? count : out.size()), n};
                    std::feclearexcept(FE_ALL_EXCEPT);
                    run(f, by, b);
                    const int raised = std::fetestexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW);
                    CAPTURE(f.name, by.name(), n, count);
                    REQUIRE(raised == 0);
                }
            }
        }
}

#endif

// ---- columns ---------------------------------------------------------------------------------------------------------

namespace {

template <class T>
void columns(const leaf<T>& by, std::span<const T> logits, std::span<T> probs, std::size_t count)
{
    if (by.is_public())
        return smx::softmax_columns(logits, probs, count);
    const auto f = named(smx::detail::at_every_level<T>([](auto rows) { return rows.softmax_columns; }), by.name());
    f(logits.data(), probs.data(), logits.size() / count, count, 0, count,
      smx::detail::generic::each_column_softmax<smx::detail::generic::lane<T>>);
}

// Columns of every kind, all different.
template <class T>
row<T> matrix_of_columns(random_source& random, std::size_t length, std::size_t count, flavour how)
{
    row<T> out(length * count), column(length);
    const std::size_t hard_column = random.below(count);
    for (std::size_t c = 0; c < count; ++c) {
        if (how == flavour::hard || (how == flavour::one_hard && c == hard_column))
            put_hard_logits<T>(random, column);
        else
            put_near_logits<T>(random, column);
        for (std::size_t i = 0; i < length; ++i)
            out[i * count + c] = column[i];
    }
    return out;
}

template <class T>
row<T> column_of(const row<T>& matrix, std::size_t count, std::size_t c)
{
    row<T> out(matrix.size() / count);
    for (std::size_t i = 0; i < out.size(); ++i)
        out[i] = matrix[i * count + c];
    return out;
}

constexpr std::size_t column_lengths[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 48, 65, 130};

} // namespace

TEMPLATE_TEST_CASE("softmax_columns: every column is within the bounds of softmax", "[batch][columns]", float, double)
{
    using T = TestType;
    double worst_of_all[4] = {};
    const auto all_leaves = leaves<T>();
    const auto try_shape = [&](std::size_t length, std::size_t count, flavour how) {
        random_source random(mixed(mixed(seed_of_all, length), 3 * count + static_cast<std::size_t>(how)));
        const row<T> x = matrix_of_columns<T>(random, length, count, how);
        std::vector<oracle::wide<T>> exact(x.size());
        std::vector<bool> ordinary(count);
        for (std::size_t c = 0; c < count; ++c) {
            const row<T> column = column_of(x, count, c);
            ordinary[c] =
                std::none_of(column.begin(), column.end(),
                             [](const T& each) { return bits::is_nan(each) || bits::is_plus_infinity(each); }) &&
                std::any_of(column.begin(), column.end(), [](const T& each) { return bits::is_finite(each); });
            if (!ordinary[c])
                continue;
            const oracle::shifted_row<T> reference(column.data(), length, T(1), nullptr);
            for (std::size_t i = 0; i < length; ++i)
                exact[i * count + c] = reference.softmax(i);
        }
        for (std::size_t k = 0; k < all_leaves.size(); ++k) {
            row<T> p(x.size(), T(7));
            columns<T>(all_leaves[k], x, p, count);
            double worst = 0;
            bool lost_are_nan = true;
            for (std::size_t i = 0; i < x.size(); ++i)
                if (ordinary[i % count])
                    worst = std::max(worst, metric::softmax<T>(p[i], exact[i]));
                else
                    lost_are_nan = lost_are_nan && bits::is_nan(p[i]);
            CAPTURE(all_leaves[k].name(), length, count, static_cast<int>(how), seed_of_all);
            REQUIRE(worst <= 3);
            REQUIRE(lost_are_nan);
            worst_of_all[k] = std::max(worst_of_all[k], worst);
        }
    };
    for (std::size_t count = 1; count <= 130; ++count)
        for (const flavour how : flavours)
            for (std::size_t k = 0; k < rows::volume(); ++k)
                try_shape(
                    column_lengths[(count * 5 + 3 * k + static_cast<std::size_t>(how)) % std::size(column_lengths)],
                    count, how);
    for (const flavour how : flavours) {
        try_shape(1000, 9, how);
        try_shape(4099, 3, how);
        try_shape(20000, 1, how);
    }
    if (std::getenv("SMX_TABLE") != nullptr)
        for (std::size_t k = 0; k < all_leaves.size(); ++k)
            std::printf("softmax_columns %-6s %-8s %.3f\n", rows::name_of<T>(), all_leaves[k].name(), worst_of_all[k]);
}

TEMPLATE_TEST_CASE("softmax_columns: a column's bits depend neither on its neighbours nor on the instruction set",
                   "[batch][columns]", float, double)
{
    using T = TestType;
    for (std::size_t count = 1; count <= 130; count += count < 20 ? 1 : 11)
        for (const std::size_t length : {1u, 5u, 16u, 17u, 70u})
            for (const flavour how : flavours) {
                random_source random(mixed(seed_of_all, count * length));
                const row<T> x = matrix_of_columns<T>(random, length, count, how);
                row<T> first;
                for (const leaf<T>& by : leaves<T>()) {
                    row<T> p(x.size()), in_place = x, alone(length);
                    columns<T>(by, x, p, count);
                    columns<T>(by, in_place, in_place, count);
                    CAPTURE(by.name(), length, count, static_cast<int>(how), seed_of_all);
                    REQUIRE(same_or_nan(p.data(), in_place.data(), p.size()));
                    for (std::size_t c = 0; c < count; ++c) {
                        columns<T>(by, column_of(x, count, c), alone, 1);
                        const row<T> among = column_of(p, count, c);
                        REQUIRE(same_or_nan(among.data(), alone.data(), length));
                    }
                    if (by.is_generic())
                        continue;
                    if (first.empty())
                        first = p;
                    REQUIRE(same_or_nan(first.data(), p.data(), p.size()));
                }
            }
}

TEMPLATE_TEST_CASE("softmax_columns: a NaN or an infinity at any place, a column of -inf", "[batch][columns]", float,
                   double)
{
    using T = TestType;
    for (const std::size_t length : {1u, 2u, 15u, 16u, 17u, 40u})
        for (std::size_t at = 0; at < length; ++at)
            for (const std::size_t kind : {0u, 1u, 2u, 3u, 4u, 5u}) {
                constexpr std::size_t count = 37, column = 21; // that one
                row<T> x(length * count, T(1));
                T& entry = x[at * count + column];
                if (kind < bits::nan_kinds)
                    bits::put_nan(entry, kind);
                else
                    bits::put_infinity(entry, kind == 5);
                for (const leaf<T>& by : leaves<T>()) {
                    row<T> p(x.size(), T(7));
                    columns<T>(by, x, p, count);
                    CAPTURE(by.name(), length, at, kind);
                    for (std::size_t i = 0; i < p.size(); ++i)
                        if (i % count != column)
                            REQUIRE(metric::softmax<T>(p[i], oracle::wide<T>(1) / oracle::wide<T>(length)) <= 3);
                        else if (kind == 5 && length > 1)
                            REQUIRE((i / count == at ? bits::is_plus_zero(p[i]) : p[i] > T(0)));
                        else
                            REQUIRE(bits::is_nan(p[i]));
                }
            }
}

// ---- segments --------------------------------------------------------------------------------------------------------

namespace {

// Ascending from 0 to the size, each row of at most `longest`, many of them empty.
template <class Offset>
std::vector<Offset> random_offsets(random_source& random, std::size_t count, std::size_t longest)
{
    std::vector<Offset> out = {Offset(0)};
    const auto most = static_cast<std::uint64_t>(std::numeric_limits<Offset>::max());
    for (std::size_t r = 0; r < count; ++r) {
        const std::uint64_t length = random.one_in(5) ? 0 : random.below(longest + 1);
        const std::uint64_t next = static_cast<std::uint64_t>(out.back()) + length;
        out.push_back(static_cast<Offset>(next < most ? next : most));
    }
    return out;
}

template <class T, class Offset>
void check_segments(std::uint64_t seed)
{
    random_source random(seed);
    const std::size_t count = random.below(90), longest = random.one_in(3) ? 130 : 1 + random.below(20);
    const std::vector<Offset> offsets = random_offsets<Offset>(random, count, longest);
    row<T> x(static_cast<std::size_t>(offsets.back()));
    const auto segment = [&](row<T>& all, std::size_t r) {
        const auto from = static_cast<std::size_t>(offsets[r]), to = static_cast<std::size_t>(offsets[r + 1]);
        return std::span<T>(all).subspan(from, to - from);
    };
    const bool hard = random.one_in(2);
    for (std::size_t r = 0; r < count; ++r)
        if (!segment(x, r).empty() && hard && random.one_in(9))
            put_hard_logits<T>(random, segment(x, r));
        else
            put_near_logits<T>(random, segment(x, r));

    row<T> p(x.size()), in_place = x;
    smx::softmax_segments(x, offsets, p);
    smx::softmax_segments(in_place, offsets, in_place);
    CAPTURE(seed, count, longest, sizeof(Offset));
    REQUIRE(same_or_nan(p.data(), in_place.data(), p.size()));
    row<T> expected(130);
    for (std::size_t r = 0; r < count; ++r) {
        const std::span<T> logits = segment(x, r), probs = segment(p, r);
        smx::softmax(logits, std::span<T>(expected).first(logits.size()));
        CAPTURE(r, rows::hex(std::span<const T>(logits)));
        REQUIRE(same_or_nan(probs.data(), expected.data(), logits.size()));
    }

    // at every level, all in one call
    for (const leaf<T>& by : leaves<T>()) {
        if (by.is_public())
            continue;
        std::vector<smx::detail::row_slice<T>> slices;
        for (std::size_t r = 0; r < count; ++r)
            slices.push_back({segment(x, r).data(), nullptr, segment(p, r).data(), segment(x, r).size(), nullptr});
        const auto f = named(smx::detail::at_every_level<T>([](auto rows) { return rows.softmax_slices; }), by.name());
        f(slices.data(), slices.size(), smx::detail::scale_of(T(1)));
        for (std::size_t r = 0; r < count; ++r) {
            const std::span<T> logits = segment(x, r), probs = segment(p, r);
            by.softmax(logits, std::span<T>(expected).first(logits.size()));
            CAPTURE(by.name(), r, rows::hex(std::span<const T>(logits)));
            REQUIRE(same_or_nan(probs.data(), expected.data(), logits.size()));
        }
    }
}

} // namespace

TEMPLATE_TEST_CASE("softmax_segments: rows at random offsets of any integer type have their own bits",
                   "[batch][segments]", float, double)
{
    using T = TestType;
    for (std::uint64_t k = 0; k < 150 * rows::volume(); ++k) {
        const std::uint64_t seed = mixed(seed_of_all, k);
        check_segments<T, int>(seed);
        check_segments<T, unsigned char>(seed);
        check_segments<T, signed char>(seed);
        check_segments<T, short>(seed);
        check_segments<T, unsigned>(seed);
        check_segments<T, long long>(seed);
        check_segments<T, unsigned long long>(seed);
        check_segments<T, std::size_t>(seed);
    }
}

// Products of rows of different lengths in one call: what an executor of ragged products would do.
TEMPLATE_TEST_CASE("batch: a level's products of rows of different lengths have their own bits", "[batch][segments]",
                   float, double)
{
    using T = TestType;
    for (std::uint64_t k = 0; k < 300 * rows::volume(); ++k) {
        random_source random(mixed(seed_of_all, k));
        const std::size_t count = 1 + random.below(40);
        std::vector<row<T>> p, v, out;
        for (std::size_t r = 0; r < count; ++r) {
            p.emplace_back(random.below(19));
            v.emplace_back(p[r].size());
            out.emplace_back(p[r].size());
            put_probs<T>(random, p[r]);
            if (!p[r].empty())
                put_tangent<T>(random, p[r], v[r]);
        }
        for (const rows_function<T>& f : rows_functions<T>())
            for (const leaf<T>& by : leaves<T>()) {
                if (f.of_logits || f.at_level == nullptr || by.is_public())
                    continue;
                std::vector<smx::detail::row_slice<T>> slices;
                for (std::size_t r = 0; r < count; ++r)
                    slices.push_back({p[r].data(), v[r].data(), out[r].data(), p[r].size(), nullptr});
                f.at_level(by.name(), slices, smx::detail::scale_of(T(1)));
                for (std::size_t r = 0; r < count; ++r) {
                    row<T> expected(p[r].size());
                    f.single(by, p[r], v[r], expected, T(1), {});
                    CAPTURE(f.name, by.name(), r, rows::hex(std::span<const T>(p[r])),
                            rows::hex(std::span<const T>(v[r])));
                    REQUIRE(same_or_nan(out[r].data(), expected.data(), expected.size()));
                }
            }
    }
}

TEST_CASE("softmax_segments: no row, and nothing but empty rows", "[batch][segments]")
{
    std::vector<float> nothing;
    for (const std::vector<int>& offsets : {std::vector<int>{0}, {0, 0}, {0, 0, 0, 0}})
        CHECK_NOTHROW(smx::softmax_segments(nothing, offsets, nothing));
    const int edges[] = {0, 0, 2, 2};
    std::vector<float> x(2, 1.0f), p(2);
    smx::softmax_segments(x, edges, p);
    CHECK(p == std::vector<float>{0.5f, 0.5f});
}
