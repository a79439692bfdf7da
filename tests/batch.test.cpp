// SPDX-License-Identifier: BSL-1.0
// batch.test.cpp: rows of a batch have the bits that they have by themselves, whatever their neighbours, the executor
// and its pieces; columns are within the bounds of softmax; what lies between rows is left alone; bad calls.
#include <smx/batch.hpp>
#include <smx/threads.hpp>

#include "bits.hpp"
#include "catch.hpp"
#include "leaves.hpp"
#include "message_of.hpp"
#include "oracle.hpp"
#include "rows.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cfenv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <limits>
#include <list>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
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

// ---- executors -----------------------------------------------------------------------------------------------------

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

// ---- one batch, and the functions that take it ---------------------------------------------------------------------

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

// softmax or log_softmax of a batch
template <class T, class Function>
void transform_of(const batch<T>& b, Function transform)
{
    const bool own_masks = b.mask.size() == b.in.size() && b.mask.size() != b.layout.row_length;
    transform(b.in.data(), b.out.data(), b.rows(), b.layout.row_length, b.layout.row_stride,
              smx::detail::scale_of<T>(b.temperature), b.mask.empty() ? nullptr : b.mask.data(),
              own_masks ? b.layout.row_stride : 0);
}

template <class T, class Function>
void matrix_of(const batch<T>& b, Function products)
{
    products(b.in.data(), b.with.data(), b.out.data(), b.rows(), b.layout.row_length, b.layout.row_stride);
}

// A function of rows: of one by itself, and of all of a batch, by the public interface or by a level's function.
template <class T>
struct rows_function {
    const char* name;
    bool of_logits, has_options, one_result;
    void (*single)(const leaf<T>&, std::span<const T> in, std::span<const T> with, std::span<T> out, const T& t,
                   std::span<const bool> mask);
    void (*all)(const any_executor&, const batch<T>&);
    void (*at_level)(std::string_view level, const batch<T>&);
};

// the function of the level of that name
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
    using by = const leaf<T>&;
    using exec = const any_executor&;
    using all = const batch<T>&;
    using smx::detail::at_every_level;
    return {
        {"softmax", true, true, false, [](by f, in x, in, out y, const T& t, mask m) { f.softmax(x, y, t, m); },
         [](exec e, all b) { smx::softmax_rows(e, b.in, b.out, b.layout, {b.temperature, b.mask}); },
         [](std::string_view level, const batch<T>& b) {
             transform_of(b, named(at_every_level<T>([](auto rows) { return rows.softmax_matrix; }), level));
         }},
        {"log_softmax", true, true, false, [](by f, in x, in, out y, const T& t, mask m) { f.log_softmax(x, y, t, m); },
         [](exec e, all b) { smx::log_softmax_rows(e, b.in, b.out, b.layout, {b.temperature, b.mask}); },
         [](std::string_view level, const batch<T>& b) {
             transform_of(b, named(at_every_level<T>([](auto rows) { return rows.log_softmax_matrix; }), level));
         }},
        {"logsumexp", true, false, true, [](by f, in x, in, out y, const T&, mask) { f.logsumexp(x, y[0]); },
         [](exec e, all b) { smx::logsumexp_rows(e, b.in, b.out, b.layout); },
         [](std::string_view level, const batch<T>& b) {
             named(at_every_level<T>([](auto rows) { return rows.logsumexp_matrix; }),
                   level)(b.in.data(), b.out.data(), b.rows(), b.layout.row_length, b.layout.row_stride);
         }},
        {"softmax_jvp", false, false, false, [](by f, in p, in v, out y, const T&, mask) { f.softmax_jvp(p, v, y); },
         [](exec e, all b) { smx::softmax_jvp_rows(e, b.in, b.with, b.out, b.layout); },
         [](std::string_view level, const batch<T>& b) {
             matrix_of(b, named(at_every_level<T>([](auto rows) { return rows.softmax_jvp_matrix; }), level));
         }},
        {"softmax_vjp", false, false, false, [](by f, in p, in u, out y, const T&, mask) { f.softmax_vjp(p, u, y); },
         [](exec e, all b) { smx::softmax_vjp_rows(e, b.in, b.with, b.out, b.layout); }, nullptr},
        {"log_softmax_jvp", false, false, false,
         [](by f, in p, in v, out y, const T&, mask) { f.log_softmax_jvp(p, v, y); },
         [](exec e, all b) { smx::log_softmax_jvp_rows(e, b.in, b.with, b.out, b.layout); },
         [](std::string_view level, const batch<T>& b) {
             matrix_of(b, named(at_every_level<T>([](auto rows) { return rows.log_softmax_jvp_matrix; }), level));
         }},
        {"log_softmax_vjp", false, false, false,
         [](by f, in p, in u, out y, const T&, mask) { f.log_softmax_vjp(p, u, y); },
         [](exec e, all b) { smx::log_softmax_vjp_rows(e, b.in, b.with, b.out, b.layout); },
         [](std::string_view level, const batch<T>& b) {
             matrix_of(b, named(at_every_level<T>([](auto rows) { return rows.log_softmax_vjp_matrix; }), level));
         }},
    };
}

// All rows of a batch by one leaf: the public interface, or a level's function in one call. False: there is none.
template <class T>
bool run(const rows_function<T>& f, const leaf<T>& by, const batch<T>& b)
{
    if (by.is_public()) {
        f.all(smx::sequential, b);
        return true;
    }
    if (f.at_level == nullptr)
        return false;
    f.at_level(by.name(), b);
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

// ---- what is in a batch --------------------------------------------------------------------------------------------

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

TEMPLATE_TEST_CASE("softmax_rows, log_softmax_rows, logsumexp_rows: a matrix at every level has the bits of its rows",
                   "[batch]", float, double)
{
    using T = TestType;
    rows::random_source random(0x5eed0f3a77);
    for (const auto& kind : rows::logit_kinds<T>())
        for (const std::size_t n : {1u, 2u, 3u, 7u, 8u, 9u, 10u, 15u, 16u, 17u, 23u, 28u, 29u, 40u})
            for (const std::size_t count : {1u, 15u, 16u, 17u, 40u})
                for (const std::size_t padding : {0u, 3u}) {
                    const std::size_t stride = n + padding;
                    std::vector<T> x(count * stride), p(x.size()), expected(n);
                    for (std::size_t r = 0; r < count; ++r)
                        kind.fill(random, std::span<T>(x).subspan(r * stride, n));
                    for (const rows_function<T>& f : rows_functions<T>())
                        for (const leaf<T>& by : leaves<T>()) {
                            if (!f.of_logits)
                                continue;
                            p.assign(p.size(), T(2));
                            const std::size_t results = f.one_result ? 1 : n, step = f.one_result ? 1 : stride;
                            run(f, by, batch<T>{x, {}, std::span<T>(p).first(count * step), {n, stride}});
                            for (std::size_t r = 0; r < count; ++r) {
                                const std::span<const T> row_of = std::span<const T>(x).subspan(r * stride, n);
                                f.single(by, row_of, {}, std::span<T>(expected).first(results), T(1), {});
                                CAPTURE(kind.name, f.name, by.name(), n, count, stride, r, rows::hex(row_of));
                                REQUIRE(same_or_nan(p.data() + r * step, expected.data(), results));
                                for (std::size_t k = results; k < step; ++k)
                                    REQUIRE(p[r * step + k] == T(2));
                            }
                        }
                }
}

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

#if !defined(__FAST_MATH__) // which keeps the bounds, not the bits

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

#endif

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

// ---- columns -------------------------------------------------------------------------------------------------------

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
        try_shape(17, 1031, how);  // more than a strip
        try_shape(260, 1024, how); // a matrix that no near cache holds, its rows in the same few places of one
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
    const auto try_shape = [](std::size_t length, std::size_t count, flavour how) {
        random_source random(mixed(seed_of_all, count * length));
        const row<T> x = matrix_of_columns<T>(random, length, count, how);
        row<T> first;
        for (const leaf<T>& by : leaves<T>()) {
            row<T> p(x.size()), in_place = x, alone(length);
            columns<T>(by, x, p, count);
            columns<T>(by, in_place, in_place, count);
            CAPTURE(by.name(), length, count, static_cast<int>(how), seed_of_all);
            REQUIRE(same_or_nan(p.data(), in_place.data(), p.size()));
            for (std::size_t c = 0; c < count; c += count <= 130 ? 1 : 11) {
                columns<T>(by, column_of(x, count, c), alone, 1);
                const row<T> among = column_of(p, count, c);
                REQUIRE(same_or_nan(among.data(), alone.data(), length));
            }
#if !defined(__FAST_MATH__)
            if (by.is_generic())
                continue;
            if (first.empty())
                first = p;
            REQUIRE(same_or_nan(first.data(), p.data(), p.size()));
#endif
        }
    };
    for (const flavour how : flavours) {
        for (std::size_t count = 1; count <= 130; count += count < 20 ? 1 : 11)
            for (const std::size_t length : {1u, 5u, 16u, 17u, 70u})
                try_shape(length, count, how);
        try_shape(5, 1031, how); // more than a strip
        try_shape(5, 2 * 1024 + 1, how);
        try_shape(260, 1024, how); // a matrix that no near cache holds, its rows in the same few places of one
        try_shape(260, 1100, how);
    }
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__FAST_MATH__)

TEMPLATE_TEST_CASE("softmax_columns: finite logits of any size raise no INVALID, DIVBYZERO or OVERFLOW flag",
                   "[batch][columns]", float, double)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (const std::size_t length : {1u, 2u, 3u, 17u, 40u, 300u})
        for (const std::size_t count : {1u, 5u, 16u, 70u, 512u})
            for (const double spread : {1.0, 25.0, 88.75, 300.0, 710.0, 3000.0, 1e6}) {
                row<T> x(length * count), p(x.size());
                for (T& logit : x)
                    logit = rows::to<T>(random.between(-spread, spread));
                x[random.below(x.size())] = rows::to<T>(spread);
                for (const leaf<T>& by : leaves<T>()) {
                    std::feclearexcept(FE_ALL_EXCEPT);
                    columns<T>(by, x, p, count);
                    const int raised = std::fetestexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW);
                    CAPTURE(by.name(), length, count, spread);
                    REQUIRE(raised == 0);
                }
            }
}

#endif

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

// ---- segments ------------------------------------------------------------------------------------------------------

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
    const std::size_t count = random.one_in(40) ? 1000 + random.below(2000) : random.below(90); // 1024 at a time
    const std::size_t longest = random.one_in(3) ? 130 : 1 + random.below(20);
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
    const std::vector<std::size_t> starts(offsets.begin(), offsets.end());
    for (const leaf<T>& by : leaves<T>()) {
        if (by.is_public())
            continue;
        const auto f =
            named(smx::detail::at_every_level<T>([](auto rows) { return rows.softmax_segments; }), by.name());
        const std::size_t all = hard ? x.size() : 1u << 24; // what is read next is fetched where all are many
        if (count != 0)
            f(x.data(), p.data(), starts.data(), count, all, smx::detail::scale_of(T(1)));
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

// ---- executors -----------------------------------------------------------------------------------------------------

namespace {

// A batch function with its executor: all of them, on memory of their own, in many units of work.
template <class T>
struct executed {
    const char* name;
    std::function<void(const any_executor&, std::span<T> out)> run;
    std::size_t out_size;
};

// 32 KB are one unit: these have some 20.
template <class T>
struct workload {
    static constexpr std::size_t n = 10, stride = 12, count = 20 * 32768 / (sizeof(T) * n) + 7;
    row<T> logits, probs, vectors;
    rows::flags mask;
    std::vector<int> offsets;

    workload() : logits(count * stride), probs(logits.size()), vectors(logits.size()), mask(n)
    {
        random_source random(seed_of_all);
        for (std::size_t r = 0; r < count; ++r) {
            const std::size_t at = r * stride;
            put_near_logits<T>(random, std::span<T>(logits).subspan(at, stride));
            put_probs<T>(random, std::span<T>(probs).subspan(at, stride));
            put_tangent<T>(random, std::span<const T>(probs).subspan(at, stride),
                           std::span<T>(vectors).subspan(at, stride));
        }
        mask[3] = false;
        offsets = {0};
        while (static_cast<std::size_t>(offsets.back()) < logits.size())
            offsets.push_back(static_cast<int>(
                std::min(logits.size(), static_cast<std::size_t>(offsets.back()) + random.below(2 * n + 1))));
    }

    std::vector<executed<T>> all() const
    {
        std::vector<executed<T>> out;
        for (const rows_function<T>& f : rows_functions<T>())
            out.push_back({f.name,
                           [this, f](const any_executor& exec, std::span<T> to) {
                               f.all(exec, {f.of_logits ? logits : probs,
                                            f.of_logits ? std::span<const T>() : std::span<const T>(vectors),
                                            to,
                                            {n, stride}});
                           },
                           f.one_result ? count : logits.size()});
        out.push_back({"softmax, masked",
                       [this](const any_executor& exec, std::span<T> to) {
                           smx::softmax_rows(exec, logits, to, {n, stride}, {.mask = mask.span()});
                       },
                       logits.size()});
        out.push_back(
            {"softmax_segments",
             [this](const any_executor& exec, std::span<T> to) { smx::softmax_segments(exec, logits, offsets, to); },
             logits.size()});
        out.push_back({"softmax_columns",
                       [this](const any_executor& exec, std::span<T> to) {
                           smx::softmax_columns(exec, logits, to, logits.size() / stride);
                       },
                       logits.size()});
        return out;
    }
};

} // namespace

TEMPLATE_TEST_CASE("batch: every executor gives the same bits", "[batch][executor]", float, double)
{
    using T = TestType;
    const workload<T> work;
    for (const executed<T>& each : work.all()) {
        row<T> expected(each.out_size, T(7));
        each.run(smx::sequential, expected);
        for (const named_executor& by : executors()) {
            row<T> out(each.out_size, T(7));
            each.run(by.run, out);
            CAPTURE(each.name, by.name);
            REQUIRE(same_or_nan(out.data(), expected.data(), out.size()));
        }
    }
}

TEMPLATE_TEST_CASE("batch: each unit of work writes what is its own, and all of them all", "[batch][executor]", float,
                   double)
{
    using T = TestType;
    const workload<T> work;
    T pattern{};
    bits::put_nan(pattern, 3);
    for (const executed<T>& each : work.all()) {
        std::vector<int> writers(each.out_size);
        std::size_t units = 0, calls = 0;
        row<T> out(each.out_size, pattern);
        const auto recording = [&](std::size_t count, const pieces& body) {
            units = count;
            ++calls;
            for (std::size_t i = 0; i < count; ++i) {
                std::fill(out.begin(), out.end(), pattern);
                body(i, i + 1);
                for (std::size_t k = 0; k < out.size(); ++k)
                    writers[k] += !bits::same(out[k], pattern);
            }
        };
        each.run(recording, out);
        CAPTURE(each.name, units);
        CHECK(calls == 1);
        CHECK(units >= 2); // of 32 KB each, not of one row
        CHECK(units <= 30);
        row<T> all(each.out_size, pattern);
        each.run(smx::sequential, all);
        std::size_t wrong = 0;
        for (std::size_t k = 0; k < all.size(); ++k)
            wrong += writers[k] != (bits::same(all[k], pattern) ? 0 : 1);
        CHECK(wrong == 0);
    }
}

TEST_CASE("batch: an executor takes the body by reference, by value, or as a forwarding reference", "[batch][executor]")
{
    const auto by_reference = [](std::size_t count, auto& body) { body(0, count); };
    const auto by_const_reference = [](std::size_t count, const auto& body) { body(0, count); };
    const auto by_value = [](std::size_t count, auto body) { body(0, count); };
    const auto forwarded = [](std::size_t count, auto&& body) { body(0, count); };
    const workload<float> work;
    std::vector<float> out(work.logits.size());
    const auto try_all = [&](const auto& exec) {
        smx::softmax_rows(exec, work.logits, out, 12);
        smx::logsumexp_rows(exec, work.logits, std::span(out).first(out.size() / 12), 12);
        smx::softmax_vjp_rows(exec, work.probs, work.vectors, out, 12);
        smx::softmax_columns(exec, work.logits, out, 12);
        smx::softmax_segments(exec, work.logits, work.offsets, out);
        std::vector<float> expected(out.size());
        smx::softmax_segments(work.logits, work.offsets, expected);
        CHECK(same_or_nan(out.data(), expected.data(), out.size()));
    };
    try_all(by_reference);
    try_all(by_const_reference);
    try_all(by_value);
    try_all(forwarded);
}

TEST_CASE("batch: work of less than 32 KB is one unit, a longer row is one", "[batch][executor]")
{
    std::size_t units = 0;
    const auto counting = [&](std::size_t count, auto&&) { units = count; };
    std::vector<float> x(100000);
    smx::softmax_rows(counting, std::span(x).first(8000), std::span(x).first(8000), 10);
    CHECK(units == 1);
    smx::softmax_rows(counting, x, x, 50000);
    CHECK(units == 2);
    smx::softmax_columns(counting, std::span(x).first(8000), std::span(x).first(8000), 10);
    CHECK(units == 1);
    units = 7;
    smx::softmax_rows(counting, std::span(x).first(0), std::span(x).first(0), 10);
    smx::softmax_columns(counting, std::span(x).first(0), std::span(x).first(0), 10);
    CHECK(units == 7); // nothing to do: not called
}

TEST_CASE("batch: what an executor or a piece throws passes through, after all threads have ended", "[batch][executor]")
{
    struct failure {
        std::size_t at;
    };
    const workload<float> work;
    for (const executed<float>& each : work.all()) {
        std::vector<float> out(each.out_size);
        const auto throwing = [](std::size_t count, const pieces&) { throw failure{count}; };
        CHECK_THROWS_AS(each.run(throwing, out), failure);
    }

    for (const unsigned k : {1u, 2u, 4u, 0u}) {
        const smx::threads threads{k};
        std::atomic<std::size_t> running = 0, done = 0;
        const auto body = [&](std::size_t first, std::size_t last) {
            ++running;
            std::this_thread::yield();
            --running;
            done += last - first;
            throw failure{first};
        };
        std::size_t caught = 7;
        try {
            threads(100, body);
        } catch (const failure& error) {
            caught = error.at;
        }
        CHECK(caught == 0); // the first piece's
        CHECK(running == 0);
        CHECK(done == 100);
    }
}

TEST_CASE("threads: pieces cover all units once, on at most k threads", "[batch][executor]")
{
    for (const unsigned k : {0u, 1u, 2u, 3u, 4u, 64u})
        for (const std::size_t units : {0u, 1u, 2u, 3u, 5u, 17u, 100u, 1000u}) {
            std::mutex guard;
            std::vector<int> seen(units);
            std::set<std::thread::id> ids;
            std::size_t pieces = 0;
            smx::threads{k}(units, [&](std::size_t first, std::size_t last) {
                const std::scoped_lock lock(guard);
                ids.insert(std::this_thread::get_id());
                ++pieces;
                for (std::size_t i = first; i < last; ++i)
                    ++seen[i];
            });
            CAPTURE(k, units, pieces, ids.size());
            CHECK(std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; }));
            CHECK(pieces <= units);
            CHECK(ids.size() <= (k != 0 ? k : std::max(1u, std::thread::hardware_concurrency())));
            if (k == 1) {
                CHECK(pieces == std::min<std::size_t>(units, 1));
                CHECK(ids.count(std::this_thread::get_id()) == pieces);
            }
        }
}

TEST_CASE("threads: a thread that is slow leaves the rest to the others", "[batch][executor]")
{
    constexpr std::size_t units = 64;
    std::atomic<std::size_t> done = 0;
    std::size_t by_slow = 0;
    std::atomic<bool> is_slow = true;
    smx::threads{2}(units, [&](std::size_t first, std::size_t last) {
        if (is_slow.exchange(false)) { // whoever comes first waits until all other units are done
            by_slow = last - first;
            while (done != units - by_slow)
                std::this_thread::yield();
        } else
            done += last - first;
    });
    CHECK(by_slow <= units / 8);
    CHECK(done + by_slow == units);
}

TEST_CASE("threads: the end of as many units as there can be is found", "[batch][executor]")
{
    constexpr std::size_t units = std::numeric_limits<std::size_t>::max();
    std::atomic<std::size_t> covered = 0, pieces = 0;
    smx::threads{4}(units, [&](std::size_t first, std::size_t last) {
        covered += last - first;
        if (++pieces > 1000)
            std::abort(); // it would never end
    });
    CHECK(covered == units);
}

// ---- other scalars -------------------------------------------------------------------------------------------------

namespace {

// a / b, by 0 too: the way to infinity and NaN of a type that has no other
__attribute__((no_sanitize("float-divide-by-zero"))) double ratio(double a, double b) { return a / b; }

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
        const double quotient = ratio(a.value, b.value);
        return {quotient, ratio(a.slope - quotient * b.slope, b.value)};
    }
    friend bool operator<(const dual& a, const dual& b) { return a.value < b.value; }
    friend dual exp(const dual& a) { return {std::exp(a.value), std::exp(a.value) * a.slope}; }
    friend dual log(const dual& a) { return {std::log(a.value), ratio(a.slope, a.value)}; }
};

bool equal(const dual& a, const dual& b) { return bits::same(a.value, b.value) && bits::same(a.slope, b.slope); }
bool equal(long double a, long double b) { return bits::same(a, b); }

long double a_scalar(random_source& random, long double*) { return static_cast<long double>(random.normal()); }
dual a_scalar(random_source& random, dual*) { return {random.normal(), random.normal()}; }

} // namespace

TEMPLATE_TEST_CASE("batch: rows of long double and of a user's scalar equal single calls", "[batch][scalars]",
                   long double, dual)
{
    using T = TestType;
    random_source random(seed_of_all);
    for (const std::size_t n : {1u, 2u, 10u, 33u}) {
        const std::size_t stride = n + 2, count = 7, size = count * stride - 2;
        const smx::row_layout layout(n, stride);
        std::vector<T> x, p(size, T(0)), v;
        for (std::size_t i = 0; i < size; ++i) {
            x.push_back(a_scalar(random, static_cast<T*>(nullptr)));
            v.push_back(a_scalar(random, static_cast<T*>(nullptr)));
        }
        rows::flags mask(n);
        mask[n / 2] = n < 2;
        const smx::softmax_options<T> options{T(2), mask.span()};
        std::vector<T> out(size, T(7)), expected(n, T(0)), sums(count, T(7));
        const auto check = [&](auto single) {
            bool all = true;
            for (std::size_t r = 0; r < count; ++r) {
                single(r * stride);
                for (std::size_t i = 0; i < n; ++i)
                    all = all && equal(out[r * stride + i], expected[i]);
                for (std::size_t i = r * stride + n; i < std::min(size, (r + 1) * stride); ++i)
                    all = all && equal(out[i], T(7));
            }
            CHECK(all);
        };
        const auto part = [&](const std::vector<T>& all, std::size_t at) {
            return std::span<const T>(all).subspan(at, n);
        };
        smx::softmax_rows(x, p, layout);
        smx::softmax_rows(smx::threads{2}, x, out, layout, options);
        check([&](std::size_t at) { smx::softmax(part(x, at), expected, options); });
        smx::log_softmax_rows(x, out, layout, options);
        check([&](std::size_t at) { smx::log_softmax(part(x, at), expected, options); });
        smx::softmax_jvp_rows(p, v, out, layout);
        check([&](std::size_t at) { smx::softmax_jvp(part(p, at), part(v, at), expected); });
        smx::softmax_vjp_rows(p, v, out, layout);
        check([&](std::size_t at) { smx::softmax_vjp(part(p, at), part(v, at), expected); });
        smx::log_softmax_jvp_rows(p, v, out, layout);
        check([&](std::size_t at) { smx::log_softmax_jvp(part(p, at), part(v, at), expected); });
        smx::log_softmax_vjp_rows(p, v, out, layout);
        check([&](std::size_t at) { smx::log_softmax_vjp(part(p, at), part(v, at), expected); });
        smx::logsumexp_rows(x, sums, layout);
        for (std::size_t r = 0; r < count; ++r)
            CHECK(equal(sums[r], smx::logsumexp(part(x, r * stride))));

        // A matrix of one row that stands upright: columns of its entries are 1, of n entries as softmax.
        std::vector<T> upright(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(n)), probs(n, T(0));
        smx::softmax_columns(upright, probs, n);
        for (const T& each : probs)
            CHECK(equal(each, T(1)));
        const int offsets[] = {0, 0, static_cast<int>(n)};
        smx::softmax(upright, expected);
        smx::softmax_segments(upright, offsets, probs);
        for (std::size_t i = 0; i < n; ++i)
            CHECK(equal(probs[i], expected[i]));
        smx::softmax_columns(upright, probs, 1);
        for (std::size_t i = 0; i < n; ++i)
            CHECK(!(probs[i] < expected[i] * (T(1) - T(1) / T(1 << 30))));
    }
}

// ---- bad calls -----------------------------------------------------------------------------------------------------

namespace {

// An output that must stay as it is, and an executor that must not be called.
template <class T>
struct untouched {
    std::vector<T> memory;
    bool called = false;

    explicit untouched(std::size_t n) : memory(n, T(-77)) {}
    std::span<T> first(std::size_t n) { return std::span<T>(memory).first(n); }
    auto executor()
    {
        return [this](std::size_t, auto&&) { called = true; };
    }
    bool intact() const
    {
        return !called && std::all_of(memory.begin(), memory.end(), [](const T& each) { return each == T(-77); });
    }
};

// The functions of rows with one input, then those with two, as the messages call them.
struct names {
    const char *function, *in, *with, *out;
};
constexpr names names_of[] = {
    {"softmax_rows", "logits", "", "probs"},
    {"log_softmax_rows", "logits", "", "log_probs"},
    {"logsumexp_rows", "logits", "", "out"},
    {"softmax_jvp_rows", "probs", "tangents", "out"},
    {"softmax_vjp_rows", "probs", "cotangents", "out"},
    {"log_softmax_jvp_rows", "probs", "tangents", "out"},
    {"log_softmax_vjp_rows", "probs", "cotangents", "out"},
};

std::string number_of(std::size_t n) { return std::to_string(n); }

} // namespace

TEMPLATE_TEST_CASE("batch: a bad layout is refused with its numbers, and nothing is written", "[batch][check]", float,
                   double, long double)
{
    using T = TestType;
    const auto functions = rows_functions<T>();
    const std::vector<T> in(100, T(1));
    struct shape {
        std::size_t size, length, stride, rows;
        std::string text;
    };
    const shape shapes[] = {
        {24, 0, 0, 0, "row_length is 0"},
        {24, 0, 5, 0, "row_length is 0"},
        {0, 0, 0, 0, "row_length is 0"},
        {24, 6, 5, 4, "row_stride is 5, row_length is 6"},
        {24, 6, 0, 4, "row_stride is 0, row_length is 6"},
        {0, 6, 5, 0, "row_stride is 5, row_length is 6"},
        {24, 5, 5, 5, "IN has 24 elements, row_length is 5"},
        {4, 5, 5, 1, "IN has 4 elements, row_length is 5"},
        {1, std::size_t(-1), std::size_t(-1), 1, "IN has 1 elements, row_length is " + number_of(std::size_t(-1))},
        {24, 5, 7, 4, "IN has 24 elements, row_length is 5, row_stride is 7"}, // 21 + 3
        {27, 5, 7, 4, "IN has 27 elements, row_length is 5, row_stride is 7"}, // 21 + 6
        {4, 5, 7, 1, "IN has 4 elements, row_length is 5, row_stride is 7"},
    };
    for (std::size_t k = 0; k < functions.size(); ++k)
        for (const shape& each : shapes) {
            const rows_function<T>& f = functions[k];
            untouched<T> out(100);
            const std::span<const T> x = std::span<const T>(in).first(each.size);
            const batch<T> b{x,
                             f.of_logits ? std::span<const T>() : x,
                             out.first(f.one_result ? each.rows : each.size),
                             {each.length, each.stride}};
            std::string text = each.text;
            if (text.compare(0, 2, "IN") == 0)
                text.replace(0, 2, names_of[k].in);
            CHECK(message_of([&] { f.all(out.executor(), b); }) ==
                  rows::joined("smx::", names_of[k].function, ": ", text));
            CHECK(out.intact());
        }
    // what stands just inside the contract
    for (std::size_t k = 0; k < functions.size(); ++k)
        for (const shape& each : {shape{26, 5, 7, 4, ""},
                                  {28, 5, 7, 4, ""},
                                  {5, 5, 7, 1, ""},
                                  {7, 5, 7, 1, ""},
                                  {0, 5, 7, 0, ""},
                                  {25, 5, 5, 5, ""}}) {
            const rows_function<T>& f = functions[k];
            std::vector<T> out(100);
            const std::span<const T> x = std::span<const T>(in).first(each.size);
            CHECK(message_of([&] {
                      f.all(smx::sequential, {x,
                                              f.of_logits ? std::span<const T>() : x,
                                              std::span<T>(out).first(f.one_result ? each.rows : each.size),
                                              {each.length, each.stride}});
                  }) == "threw nothing");
        }
}

TEMPLATE_TEST_CASE("batch: rows of another size are refused with both sizes, and nothing is written", "[batch][check]",
                   float, double, long double)
{
    using T = TestType;
    const auto functions = rows_functions<T>();
    const std::vector<T> in(100, T(1));
    const std::span<const T> x = std::span<const T>(in).first(20);
    for (std::size_t k = 0; k < functions.size(); ++k)
        for (const std::size_t wrong : {0u, 15u, 19u, 21u, 25u}) {
            const rows_function<T>& f = functions[k];
            const std::string start = rows::joined("smx::", names_of[k].function, ": ");
            untouched<T> out(100);
            const std::string of_out = message_of(
                [&] { f.all(out.executor(), {x, f.of_logits ? std::span<const T>() : x, out.first(wrong), 5}); });
            CHECK(of_out == (f.one_result
                                 ? rows::joined(start, "out has ", number_of(wrong), " elements, there are 4 rows")
                                 : rows::joined(start, names_of[k].out, " has ", number_of(wrong), " elements, ",
                                                names_of[k].in, " has 20")));
            CHECK(out.intact());
            if (f.of_logits)
                continue;
            const std::string of_with =
                message_of([&] { f.all(out.executor(), {x, std::span<const T>(in).first(wrong), out.first(20), 5}); });
            CHECK(of_with ==
                  rows::joined(start, names_of[k].with, " has ", number_of(wrong), " elements, probs has 20"));
            CHECK(out.intact());
        }
    untouched<T> out(100);
    CHECK(message_of([&] { smx::softmax_columns(out.executor(), x, out.first(19), 5); }) ==
          "smx::softmax_columns: probs has 19 elements, logits has 20");
    const int offsets[] = {0, 20};
    CHECK(message_of([&] { smx::softmax_segments(out.executor(), x, offsets, out.first(19)); }) ==
          "smx::softmax_segments: probs has 19 elements, logits has 20");
    CHECK(out.intact());
}

TEMPLATE_TEST_CASE("batch: a mask of another size and a bad temperature are refused", "[batch][check]", float, double,
                   long double)
{
    using T = TestType;
    const auto functions = rows_functions<T>();
    const std::vector<T> in(18, T(1)); // 3 rows of 4 with 3 between, the last without
    const smx::row_layout layout(4, 7);
    for (std::size_t k = 0; k < functions.size(); ++k) {
        const rows_function<T>& f = functions[k];
        if (!f.has_options)
            continue;
        const std::string start = rows::joined("smx::", names_of[k].function, ": ");
        for (const std::size_t size : {1u, 3u, 5u, 7u, 12u, 17u, 19u, 21u}) {
            untouched<T> out(18);
            const rows::flags mask(size);
            CHECK(message_of([&] { f.all(out.executor(), {in, {}, out.memory, layout, T(1), mask.span()}); }) ==
                  rows::joined(start, "mask has ", number_of(size), " elements, row_length is 4, logits has 18"));
            CHECK(out.intact());
        }
        for (std::size_t which = 0; which < 6 + bits::nan_kinds; ++which) {
            untouched<T> out(18);
            T t = which == 0 ? T(0) : which == 1 ? T(-0.0) : which == 2 ? T(-1) : -std::numeric_limits<T>::denorm_min();
            if (which == 4 || which == 5)
                bits::put_infinity(t, which == 5);
            else if (which > 5)
                bits::put_nan(t, which - 6);
            batch<T> b{in, {}, out.memory, layout};
            std::memcpy(&b.temperature, &t, sizeof t);
            const std::string text = message_of([&] { f.all(out.executor(), b); });
            CAPTURE(text, which);
            CHECK(text.compare(0, start.size() + 15, rows::joined(start, "temperature is ")) == 0);
            CHECK(out.intact());
            b.in = b.in.first(0); // no row: checked all the same
            b.out = b.out.first(0);
            CHECK(message_of([&] { f.all(out.executor(), b); }) == text);
        }
    }
}

TEST_CASE("batch: an output that partly overlaps an input or the mask is refused", "[batch][check]")
{
    const auto functions = rows_functions<float>();
    constexpr std::size_t n = 4, size = 12;
    for (std::size_t k = 0; k < functions.size(); ++k) {
        const rows_function<float>& f = functions[k];
        const std::size_t out_size = f.one_result ? size / n : size;
        const std::vector<float> other(size, 1);
        for (std::size_t begin = 1; begin < size + out_size; ++begin)
            for (const bool second : {false, true}) {
                if ((second && f.of_logits) || (begin == size && out_size == size))
                    continue;
                untouched<float> all(3 * size);
                const std::span<const float> moving = std::span(all.memory).subspan(begin, size);
                batch<float> b{second ? std::span<const float>(other) : moving,
                               {}, // out begins at `size`
                               std::span(all.memory).subspan(size, out_size),
                               n};
                if (!f.of_logits)
                    b.with = second ? moving : std::span<const float>(other);
                CAPTURE(f.name, begin, second);
                CHECK(message_of([&] { f.all(all.executor(), b); }) ==
                      rows::joined("smx::", names_of[k].function, ": ", names_of[k].out, " (", number_of(out_size),
                                   " elements) partly overlaps ", second ? names_of[k].with : names_of[k].in,
                                   " (12 elements)"));
                CHECK(all.intact());
            }
    }
    untouched<float> all(3 * size);
    const auto x = std::span(all.memory).subspan(1, size), p = all.first(size);
    CHECK(message_of([&] { smx::softmax_columns(all.executor(), x, p, n); }) ==
          "smx::softmax_columns: probs (12 elements) partly overlaps logits (12 elements)");
    const int offsets[] = {0, 12};
    CHECK(message_of([&] { smx::softmax_segments(all.executor(), x, offsets, p); }) ==
          "smx::softmax_segments: probs (12 elements) partly overlaps logits (12 elements)");
    CHECK(all.intact());

    // A mask, or offsets, in the memory of the output: of another type, so never the same row, wherever they begin.
    union shared {
        float probs[size];
        bool mask[sizeof(float) * size];
        int offsets[size];
    } memory{{}};
    const std::vector<float> logits(size, 1.0f);
    CHECK(message_of([&] {
              smx::softmax_rows(logits, memory.probs, n, {.mask = std::span<const bool>(memory.mask, n)});
          }) == "smx::softmax_rows: probs (12 elements) partly overlaps mask (4 elements)");
    CHECK(message_of([&] { smx::softmax_segments(logits, memory.offsets, memory.probs); }) ==
          "smx::softmax_segments: probs (12 elements) partly overlaps offsets (12 elements)");
}

TEST_CASE("softmax_columns: a column_count of 0, or one that does not divide the size, is refused", "[batch][check]")
{
    const std::vector<double> in(20, 1.0);
    for (const std::size_t count :
         {std::size_t(0), std::size_t(3), std::size_t(21), std::size_t(40), std::size_t(-1)}) {
        untouched<double> out(20);
        CHECK(message_of([&] { smx::softmax_columns(out.executor(), in, out.memory, count); }) ==
              rows::joined("smx::softmax_columns: logits has 20 elements, column_count is ", number_of(count)));
        CHECK(out.intact());
    }
    std::vector<double> nothing;
    CHECK(message_of([&] { smx::softmax_columns(nothing, nothing, 0); }) ==
          "smx::softmax_columns: logits has 0 elements, column_count is 0");
    CHECK(message_of([&] { smx::softmax_columns(nothing, nothing, 5); }) == "threw nothing");
}

TEST_CASE("softmax_segments: offsets that do not ascend from 0 to the size are refused", "[batch][check]")
{
    const std::vector<double> in(10, 1.0);
    const auto text_of = [&](const auto& offsets) {
        untouched<double> out(10);
        const std::string text = message_of([&] { smx::softmax_segments(out.executor(), in, offsets, out.memory); });
        CHECK(out.intact());
        const std::string start = "smx::softmax_segments: ";
        CHECK(text.compare(0, start.size(), start) == 0);
        return text.substr(std::min(text.size(), start.size()));
    };
    using ints = std::vector<int>;
    using longs = std::vector<long long>;
    using bytes = std::vector<unsigned char>;
    using sizes = std::vector<std::size_t>;
    CHECK(text_of(ints{}) == "offsets has 0 elements, logits has 10");
    CHECK(text_of(ints{10}) == "offsets[0] is 10, must be 0");
    CHECK(text_of(ints{1, 10}) == "offsets[0] is 1, must be 0");
    CHECK(text_of(ints{-1, 10}) == "offsets[0] is -1, must be 0");
    CHECK(text_of(ints{0, 5, 4, 10}) == "offsets[2] is 4, the one before is 5");
    CHECK(text_of(ints{0, 11, 10}) == "offsets[2] is 10, the one before is 11");
    CHECK(text_of(ints{0, -3, 10}) == "offsets[1] is -3, the one before is 0");
    CHECK(text_of(ints{0, 5, -5, 10}) == "offsets[2] is -5, the one before is 5");
    CHECK(text_of(longs{0, std::numeric_limits<long long>::min()}) ==
          "offsets[1] is -9223372036854775808, the one before is 0");
    CHECK(text_of(ints{0}) == "offsets[0] is 0, the size of logits is 10");
    CHECK(text_of(ints{0, 5, 9}) == "offsets[2] is 9, the size of logits is 10");
    CHECK(text_of(ints{0, 5, 11}) == "offsets[2] is 11, the size of logits is 10");
    CHECK(text_of(bytes{0, 200, 10}) == "offsets[2] is 10, the one before is 200");
    CHECK(text_of(sizes{0, 5, std::size_t(-1)}) ==
          rows::joined("offsets[2] is ",
                       std::to_string(std::min<unsigned long long>(std::size_t(-1), 0x7fffffffffffffff)),
                       ", the size of logits is 10"));
    CHECK(text_of(longs{0, 5, 0x10000000aLL}) == // 2^32 + 10 is not 10
          "offsets[2] is 4294967306, the size of logits is 10");
    CHECK(text_of(std::vector<signed char>{0, 5, 9}) == "offsets[2] is 9, the size of logits is 10");
}

// ---- what does not compile -----------------------------------------------------------------------------------------

namespace {

struct softmax_rows {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax_rows(std::forward<A>(a)...));
};
struct log_softmax_rows {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::log_softmax_rows(std::forward<A>(a)...));
};
struct logsumexp_rows {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::logsumexp_rows(std::forward<A>(a)...));
};
struct softmax_jvp_rows {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax_jvp_rows(std::forward<A>(a)...));
};
struct softmax_vjp_rows {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax_vjp_rows(std::forward<A>(a)...));
};
struct log_softmax_jvp_rows {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::log_softmax_jvp_rows(std::forward<A>(a)...));
};
struct log_softmax_vjp_rows {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::log_softmax_vjp_rows(std::forward<A>(a)...));
};
struct softmax_columns {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax_columns(std::forward<A>(a)...));
};
struct softmax_segments {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax_segments(std::forward<A>(a)...));
};

using floats = std::vector<float>;
using doubles = std::vector<double>;
template <class T, std::size_t N>
using array = std::array<T, N>;

template <class F, class... A>
constexpr bool takes = std::is_invocable_v<F, A...>;

// How many functions take these rows, all of whose inputs are alike? Each without an executor and with one.
template <class In, class Out, class Layout = smx::row_layout>
constexpr int takers =
    takes<softmax_rows, In, Out, Layout> + takes<log_softmax_rows, In, Out, Layout> +
    takes<softmax_jvp_rows, In, In, Out, Layout> + takes<softmax_vjp_rows, In, In, Out, Layout> +
    takes<log_softmax_jvp_rows, In, In, Out, Layout> + takes<log_softmax_vjp_rows, In, In, Out, Layout> +
    takes<softmax_columns, In, Out, std::size_t> + takes<softmax_segments, In, std::vector<int>&, Out>;
template <class Exec, class In, class Out, class Layout = smx::row_layout>
constexpr int takers_by =
    takes<softmax_rows, Exec, In, Out, Layout> + takes<log_softmax_rows, Exec, In, Out, Layout> +
    takes<softmax_jvp_rows, Exec, In, In, Out, Layout> + takes<softmax_vjp_rows, Exec, In, In, Out, Layout> +
    takes<log_softmax_jvp_rows, Exec, In, In, Out, Layout> + takes<log_softmax_vjp_rows, Exec, In, In, Out, Layout> +
    takes<softmax_columns, Exec, In, Out, std::size_t> + takes<softmax_segments, Exec, In, std::vector<int>&, Out>;
template <class In, class Out>
constexpr bool accepted = takers<In, Out> == 8 && takers_by<smx::threads, In, Out> == 8;
template <class In, class Out>
constexpr bool rejected = takers<In, Out> == 0 && takers_by<smx::threads, In, Out> == 0;

static_assert(accepted<floats&, floats&>);
static_assert(accepted<const floats&, std::span<float>>);
static_assert(accepted<floats, floats&>); // a temporary input outlives the call
static_assert(accepted<const array<double, 12>&, array<double, 12>&>);
static_assert(accepted<const long double (&)[3], std::span<long double>>);
static_assert(accepted<std::vector<dual>&, std::vector<dual>&>);

static_assert(rejected<floats&, floats>);                            // temporary output
static_assert(rejected<floats&, const floats&>);                     // const output
static_assert(rejected<floats&, std::span<const float>>);            // const output
static_assert(rejected<floats&, doubles&>);                          // two scalars
static_assert(rejected<std::vector<int>&, std::vector<int>&>);       // integers
static_assert(rejected<std::vector<bool>&, std::vector<bool>&>);     // integers
static_assert(rejected<std::list<float>&, floats&>);                 // not contiguous
static_assert(rejected<floats&, std::deque<float>&>);                // not contiguous
static_assert(rejected<std::vector<floats>&, floats&>);              // rows of rows: one contiguous range is asked for
static_assert(rejected<const array<float, 12>&, array<float, 11>&>); // static extents
static_assert(rejected<float*, float*>);                             // no size

// Each further input is held to the same rules.
template <class F>
constexpr bool checks_its_second_input =
    takes<F, floats&, const floats&, floats&, int> && !takes<F, floats&, doubles&, floats&, int> &&
    !takes<F, floats&, std::list<float>&, floats&, int> &&
    !takes<F, array<float, 4>&, array<float, 3>&, array<float, 4>&, int> &&
    !takes<F, floats&, array<float, 4>&, array<float, 3>&, int>;
static_assert(checks_its_second_input<softmax_jvp_rows>);
static_assert(checks_its_second_input<softmax_vjp_rows>);
static_assert(checks_its_second_input<log_softmax_jvp_rows>);
static_assert(checks_its_second_input<log_softmax_vjp_rows>);

// one result for each row
static_assert(takes<logsumexp_rows, const floats&, floats&, int>);
static_assert(takes<logsumexp_rows, const array<float, 12>&, array<float, 3>&, int>);
static_assert(takes<logsumexp_rows, smx::threads, floats&, floats&, smx::row_layout>);
static_assert(!takes<logsumexp_rows, floats&, floats, int>);
static_assert(!takes<logsumexp_rows, floats&, doubles&, int>);
static_assert(!takes<logsumexp_rows, floats&, floats&>);

// layouts: a length, or a length and a stride in braces
template <class T>
concept written_in_braces = requires(std::vector<T>& row, std::span<const bool> mask, smx::threads exec) {
    smx::softmax_rows(row, row, 10);
    smx::softmax_rows(row, row, {10, 16});
    smx::softmax_rows(row, row, {10, 16}, {.temperature = T(2), .mask = mask});
    smx::softmax_rows(exec, row, row, {10, 16}, {.mask = mask});
    smx::log_softmax_rows(exec, row, row, {10, 16});
    smx::logsumexp_rows(exec, row, row, {10, 16});
    smx::softmax_vjp_rows(exec, row, row, row, {10, 16});
};
static_assert(written_in_braces<float>);
static_assert(written_in_braces<long double>);
static_assert(written_in_braces<dual>);
static_assert(takers<floats&, floats&, int> == 8);
static_assert(takers<floats&, floats&, floats&> == 2); // columns and segments, which take no layout
static_assert(smx::row_layout(10).row_stride == 10 && smx::row_layout(10, 16).row_stride == 16);
static_assert(!std::is_default_constructible_v<smx::row_layout>);

// executors
using function = void(std::size_t, const pieces&);
static_assert(smx::executor<smx::sequential_executor>);
static_assert(smx::executor<const smx::threads&>);
static_assert(!smx::executor<void (*)(std::size_t, void (*)(std::size_t, std::size_t))>); // a body is an object
static_assert(smx::executor<any_executor>);
static_assert(smx::executor<function&>);
static_assert(!smx::executor<floats&>);
static_assert(!smx::executor<int>);
static_assert(!smx::executor<void (*)(std::size_t)>);
static_assert(!smx::executor<pieces>); // a body is no executor
static_assert(takers_by<const smx::sequential_executor&, floats&, floats&> == 8);
static_assert(takers_by<any_executor&, floats&, floats&> == 8);
static_assert(takers_by<int, floats&, floats&> == 0);
static_assert(takers_by<pieces&, floats&, floats&> == 0);

// offsets
template <class Offsets>
constexpr bool are_offsets = takes<softmax_segments, floats&, Offsets, floats&>;
static_assert(are_offsets<const std::vector<unsigned char>&>);
static_assert(are_offsets<std::vector<std::size_t>>);
static_assert(are_offsets<std::span<const long>>);
static_assert(are_offsets<const short (&)[3]>);
static_assert(!are_offsets<floats&>);
static_assert(!are_offsets<bool (&)[3]>);
static_assert(!are_offsets<std::vector<bool>&>);
static_assert(!are_offsets<std::list<int>&>);
static_assert(!are_offsets<int>);

// masks
template <class Mask>
concept is_mask = requires(floats& row, Mask mask) { smx::softmax_rows(row, row, 4, {.mask = mask}); };
static_assert(is_mask<std::span<const bool>>);
static_assert(is_mask<bool (&)[4]>);
static_assert(!is_mask<std::vector<bool>&>);
static_assert(!is_mask<std::vector<char>&>);

} // namespace

// ---- memory --------------------------------------------------------------------------------------------------------

#if __has_include(<sys/mman.h>)

namespace {

// Pages of which every other one may not be touched: rows in those between are as far apart as two pages.
class guarded_pages {
public:
    explicit guarded_pages(std::size_t count) : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))), count_(count)
    {
        void* all = mmap(nullptr, (2 * count_ + 1) * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(all != MAP_FAILED);
        base_ = static_cast<unsigned char*>(all);
        for (std::size_t k = 0; k < count_; ++k)
            REQUIRE(mprotect(base_ + (2 * k + 1) * page_, page_, PROT_READ | PROT_WRITE) == 0);
    }
    guarded_pages(const guarded_pages&) = delete;
    guarded_pages& operator=(const guarded_pages&) = delete;
    ~guarded_pages() { munmap(base_, (2 * count_ + 1) * page_); }

    // rows of n elements that end, or begin, where a page does
    template <class E>
    std::span<E> rows(std::size_t n, bool at_end)
    {
        unsigned char* first = base_ + page_ + (at_end ? page_ - n * sizeof(E) : 0);
        return {reinterpret_cast<E*>(first), (count_ - 1) * stride<E>() + n};
    }
    template <class E>
    std::size_t stride() const
    {
        return 2 * page_ / sizeof(E);
    }

private:
    std::size_t page_, count_;
    unsigned char* base_ = nullptr;
};

} // namespace

TEMPLATE_TEST_CASE("batch: nothing is read or written between rows, before the first or behind the last",
                   "[batch][memory]", float, double)
{
    using T = TestType;
    constexpr std::size_t count = 19;
    guarded_pages in_pages(count), with_pages(count), out_pages(count);
    const auto functions = rows_functions<T>();
    for (std::size_t n = 1; n <= 130; n += n < 34 ? 1 : 8)
        for (const bool at_end : {false, true}) {
            row<T> expected(n);
            const std::span<T> in = in_pages.rows<T>(n, at_end), with = with_pages.rows<T>(n, at_end);
            const std::span<T> out = out_pages.rows<T>(n, at_end);
            const smx::row_layout layout(n, in_pages.stride<T>());
            random_source random(mixed(seed_of_all, n));
            row<T> sums(count);
            for (const rows_function<T>& f : functions) {
                for (std::size_t r = 0; r < count; ++r) {
                    const std::span<T> x = in.subspan(r * layout.row_stride, n);
                    if (f.of_logits) {
                        put_near_logits(random, x);
                    } else {
                        put_probs(random, x);
                        put_tangent<T>(random, x, with.subspan(r * layout.row_stride, n));
                    }
                }
                const batch<T> b{in, f.of_logits ? std::span<const T>() : std::span<const T>(with),
                                 f.one_result ? std::span<T>(sums) : out, layout};
                for (const leaf<T>& by : leaves<T>()) {
                    if (!run(f, by, b))
                        continue;
                    CAPTURE(f.name, by.name(), n, at_end);
                    for (std::size_t r = 0; r < count; ++r) {
                        f.single(by, b.row_of(b.in, r), b.row_of(b.with, r), expected, T(1), {});
                        REQUIRE(same_or_nan(f.one_result ? &sums[r] : &out[b.start(r)], expected.data(),
                                            f.one_result ? 1 : n));
                    }
                }
            }
        }
}

TEMPLATE_TEST_CASE("batch: ragged rows, masks and columns stay inside their memory", "[batch][memory]", float, double)
{
    using T = TestType;
    guarded_pages in_page(1), out_page(1), other_page(1);
    for (std::size_t n = 1; n <= 130; ++n)
        for (const bool at_end : {false, true}) {
            const std::size_t size = n <= 60 ? 8 * n : n;
            random_source random(mixed(seed_of_all, n));
            const std::span<T> in = in_page.rows<T>(size, at_end), out = out_page.rows<T>(size, at_end);
            put_near_logits<T>(random, in);
            CAPTURE(n, at_end);
            row<T> x(in.begin(), in.end()), expected(size);

            const auto offsets = random_offsets<unsigned short>(random, 1000, 2 * n);
            const std::span<unsigned short> ends = other_page.rows<unsigned short>(offsets.size(), at_end);
            for (std::size_t i = 0; i < offsets.size(); ++i)
                ends[i] = static_cast<unsigned short>(std::min<std::size_t>(offsets[i], size));
            ends.back() = static_cast<unsigned short>(size);
            smx::softmax_segments(in, ends, out);
            smx::softmax_segments(x, ends, expected);
            REQUIRE(same_or_nan(out.data(), expected.data(), size));

            const std::span<bool> mask = other_page.rows<bool>(size, at_end);
            for (bool& each : mask)
                each = !random.one_in(4);
            smx::softmax_rows(in, out, n, {.mask = mask});
            smx::softmax_rows(x, expected, n, {.mask = mask});
            REQUIRE(same_or_nan(out.data(), expected.data(), size));

            for (const leaf<T>& by : leaves<T>()) {
                CAPTURE(by.name());
                columns<T>(by, in, out, n);
                columns<T>(by, x, expected, n);
                REQUIRE(same_or_nan(out.data(), expected.data(), size));
            }
        }
}

#if !defined(__FAST_MATH__)

// ---- more elements than 32 bits count ------------------------------------------------------------------------------

namespace {

// Address space for as many elements, of which only what is touched becomes memory.
template <class T>
class vast_row {
public:
    explicit vast_row(std::size_t n) : n_(n)
    {
        data_ =
            mmap(nullptr, n * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    vast_row(const vast_row&) = delete;
    vast_row& operator=(const vast_row&) = delete;
    ~vast_row()
    {
        if (is_there())
            munmap(data_, n_ * sizeof(T));
    }
    bool is_there() const { return data_ != MAP_FAILED; }
    std::span<T> span() { return {static_cast<T*>(data_), n_}; }

private:
    std::size_t n_;
    void* data_;
};

// The last unit of work alone.
struct last_unit {
    std::size_t* units;
    template <class Body>
    void operator()(std::size_t count, Body&& body) const
    {
        *units = count;
        body(count - 1, count);
    }
};

template <class T>
void put_ramp(std::span<T> x)
{
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = T(i) / T(4);
}

} // namespace

TEMPLATE_TEST_CASE("batch: more than 2^32 elements", "[batch][memory]", float, double)
{
    using T = TestType;
    if constexpr (sizeof(std::size_t) > 4) {
        constexpr std::size_t n = 10, many = (std::size_t{1} << (sizeof(std::size_t) * 8 - 32)) / n + 9; // 2^32 / 10
        vast_row<T> memory(2 * many * n + 4096);
        if (!memory.is_there())
            SKIP("no address space");
        const std::span<T> x = memory.span().first(many * n), p = memory.span().subspan(many * n, many * n);
        row<T> ramp(n), expected(n);
        put_ramp<T>(ramp);
        smx::softmax(ramp, expected);
        // Clang 14 computes other numbers when it fills rows that are 2^31 apart in one loop
        const auto put = [&](std::span<T> to) { std::memcpy(to.data(), ramp.data(), n * sizeof(T)); };
        std::size_t units = 0;
        const last_unit last{&units};

        // rows, one by one
        put(x.last(n));
        smx::softmax_rows(last, x, p, n);
        const std::size_t unit = 32768 / (n * sizeof(T));
        CHECK(units == (many + unit - 1) / unit);
        CHECK(bits::same(p.last(n).data(), expected.data(), n));

        // rows that are far apart
        const std::size_t stride = (std::size_t{1} << 31) + 5;
        const std::span<T> apart = memory.span().first(2 * stride + n);
        for (std::size_t r = 0; r < 3; ++r)
            put(apart.subspan(r * stride, n));
        smx::softmax_rows(apart, apart, {n, stride});
        for (std::size_t r = 0; r < 3; ++r)
            CHECK(bits::same(apart.data() + r * stride, expected.data(), n));

        // segments: the last of a few
        put(x.last(n));
        const std::size_t offsets[] = {0, x.size() - 2 * n, x.size() - n, x.size()};
        smx::softmax_segments(last, x, offsets, p);
        CHECK(units == 3);
        CHECK(bits::same(p.last(n).data(), expected.data(), n));

        // columns: the last of many
        const std::size_t columns = x.size() / 2;
        x[columns - 1] = T(0);
        x[2 * columns - 1] = T(0);
        smx::softmax_columns(last, x, p, columns);
        CHECK(p[columns - 1] == T(0.5));
        CHECK(p[2 * columns - 1] == T(0.5));
    }
}

TEST_CASE("batch: a real run over more than 2^31 bytes", "[batch][memory][long]")
{
    if constexpr (sizeof(std::size_t) > 4) {
        if (rows::volume() == 1)
            SKIP("only with SMX_NIGHTLY=1");
        constexpr std::size_t n = 10, count = (std::size_t{1} << 31) / (n * sizeof(float)) + 9;
        vast_row<float> memory(count * n);
        if (!memory.is_there())
            SKIP("no address space");
        const std::span<float> x = memory.span();
        row<float> ramp(n), expected(n);
        put_ramp<float>(ramp);
        smx::softmax(ramp, expected);
        for (std::size_t r = 0; r < count; ++r)
            std::copy(ramp.begin(), ramp.end(), x.begin() + static_cast<std::ptrdiff_t>(r * n));
        smx::softmax_rows(smx::threads{}, x, x, n);
        std::size_t wrong = 0;
        for (std::size_t r = 0; r < count; ++r)
            wrong += !bits::same(x.data() + r * n, expected.data(), n);
        CHECK(wrong == 0);
    }
}

#endif

#endif
