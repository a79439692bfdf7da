// SPDX-License-Identifier: BSL-1.0
// constraints.test.cpp: what compiles and what does not: accept and reject tables. Each rule is a concept of its own.
#include <smx/jacobian.hpp>
#include <smx/softmax.hpp>

#include "catch.hpp"

#include <array>            // array
#include <complex>          // complex
#include <cstddef>          // size_t
#include <deque>            // deque
#include <initializer_list> // initializer_list
#include <list>             // list
#include <memory>           // unique_ptr
#include <ranges>           // enable_borrowed_range
#include <span>             // span
#include <string>           // string
#include <type_traits>      // is_invocable_v
#include <utility>          // forward
#include <vector>           // vector

namespace {

// ---- scalar ---------------------------------------------------------------------------------------------------------

enum class missing { nothing, from_int, copy, plus, minus, times, divides, less, result_of_less, exp, log };

// clang-format off
template <missing M>
struct number {
    number() = delete;
    explicit number(int) requires(M != missing::from_int) {}
    number(const number&) requires(M != missing::copy) = default;
    number& operator=(const number&) requires(M != missing::copy) = default;
    friend number operator+(const number& a, const number&) requires(M != missing::plus) { return a; }
    friend number operator-(const number& a, const number&) requires(M != missing::minus) { return a; }
    friend number operator*(const number& a, const number&) requires(M != missing::times) { return a; }
    friend number operator/(const number& a, const number&) requires(M != missing::divides) { return a; }
    friend auto operator<(const number& a, const number& b) requires(M != missing::less)
    {
        if constexpr (M != missing::result_of_less)
            return &a < &b;
    }
    friend number exp(const number& a) requires(M != missing::exp) { return a; }
    friend number log(const number& a) requires(M != missing::log) { return a; }
};
// clang-format on

struct converts_to_double // std::exp would take it, and lose what it is
{
    converts_to_double(int) {}
    operator double() const { return 0; }
};

enum class category : int {};

static_assert(smx::scalar<float>);
static_assert(smx::scalar<double>);
static_assert(smx::scalar<long double>);
static_assert(smx::scalar<number<missing::nothing>>);
static_assert(!smx::scalar<number<missing::from_int>>);
static_assert(!smx::scalar<number<missing::copy>>);
static_assert(!smx::scalar<number<missing::plus>>);
static_assert(!smx::scalar<number<missing::minus>>);
static_assert(!smx::scalar<number<missing::times>>);
static_assert(!smx::scalar<number<missing::divides>>);
static_assert(!smx::scalar<number<missing::less>>);
static_assert(!smx::scalar<number<missing::result_of_less>>);
static_assert(!smx::scalar<number<missing::exp>>);
static_assert(!smx::scalar<number<missing::log>>);
static_assert(!smx::scalar<converts_to_double>);
static_assert(!smx::scalar<int>);
static_assert(!smx::scalar<unsigned>);
static_assert(!smx::scalar<long long>);
static_assert(!smx::scalar<char>);
static_assert(!smx::scalar<bool>);
static_assert(!smx::scalar<category>);
static_assert(!smx::scalar<float*>);
static_assert(!smx::scalar<float&>);
static_assert(!smx::scalar<const float>);
static_assert(!smx::scalar<float[2]>);
static_assert(!smx::scalar<std::array<float, 2>>);
static_assert(!smx::scalar<std::complex<double>>);
static_assert(!smx::scalar<std::string>);
static_assert(!smx::scalar<void>);

// ---- readable_row, writable_row, scalar_of --------------------------------------------------------------------------

struct borrowed // somebody's own view: the elements live elsewhere
{
    double* data_;
    std::size_t size_;

    double* begin() const { return data_; }
    double* end() const { return data_ + size_; }
};
struct owning : borrowed {};

} // namespace

template <>
inline constexpr bool std::ranges::enable_borrowed_range<borrowed> = true;

namespace {

using floats = std::vector<float>;
using doubles = std::vector<double>;

static_assert(smx::readable_row<floats>);
static_assert(smx::readable_row<floats&>);
static_assert(smx::readable_row<const floats>);
static_assert(smx::readable_row<const floats&>);
static_assert(smx::readable_row<std::array<double, 4>>);
static_assert(smx::readable_row<const std::array<double, 0>&>);
static_assert(smx::readable_row<std::span<float>>);
static_assert(smx::readable_row<std::span<const float>>);
static_assert(smx::readable_row<std::span<const long double, 4>>);
static_assert(smx::readable_row<float[4]>);
static_assert(smx::readable_row<const double (&)[4]>);
static_assert(smx::readable_row<std::initializer_list<float>>);
static_assert(smx::readable_row<borrowed>);
static_assert(smx::readable_row<std::vector<number<missing::nothing>>>);
static_assert(!smx::readable_row<std::vector<int>>);
static_assert(!smx::readable_row<std::vector<bool>>);
static_assert(!smx::readable_row<std::string>);
static_assert(!smx::readable_row<std::vector<number<missing::exp>>>);
static_assert(!smx::readable_row<std::vector<floats>>);
static_assert(!smx::readable_row<std::array<std::array<float, 2>, 2>>);
static_assert(!smx::readable_row<float[2][2]>);
static_assert(!smx::readable_row<std::deque<float>>);
static_assert(!smx::readable_row<std::list<float>>);
static_assert(!smx::readable_row<float*>);
static_assert(!smx::readable_row<std::unique_ptr<float[]>>);
static_assert(!smx::readable_row<float>);
static_assert(!smx::readable_row<void>);

static_assert(smx::writable_row<floats&>);
static_assert(smx::writable_row<std::array<double, 4>&>);
static_assert(smx::writable_row<float (&)[4]>);
static_assert(smx::writable_row<std::span<float>>);
static_assert(smx::writable_row<std::span<float>&>);
static_assert(smx::writable_row<const std::span<float>&>); // the view is const, its elements are not
static_assert(smx::writable_row<std::span<long double, 4>>);
static_assert(smx::writable_row<borrowed>);
static_assert(smx::writable_row<owning&>);
static_assert(smx::writable_row<std::vector<number<missing::nothing>>&>);
static_assert(!smx::writable_row<floats>); // a temporary: nobody would see the result
static_assert(!smx::writable_row<std::array<double, 4>>);
static_assert(!smx::writable_row<float (&&)[4]>);
static_assert(!smx::writable_row<owning>); // nobody said that its elements live elsewhere
static_assert(!smx::writable_row<const floats&>);
static_assert(!smx::writable_row<const std::array<double, 4>&>);
static_assert(!smx::writable_row<const float (&)[4]>);
static_assert(!smx::writable_row<std::span<const float>>);
static_assert(!smx::writable_row<std::span<const float>&>);
static_assert(!smx::writable_row<std::initializer_list<float>&>);
static_assert(!smx::writable_row<std::vector<int>&>);
static_assert(!smx::writable_row<std::vector<bool>&>);
static_assert(!smx::writable_row<std::deque<float>&>);
static_assert(!smx::writable_row<std::list<float>&>);
static_assert(!smx::writable_row<float*>);

static_assert(std::is_same_v<smx::scalar_of<floats>, float>);
static_assert(std::is_same_v<smx::scalar_of<const doubles&>, double>);
static_assert(std::is_same_v<smx::scalar_of<std::span<const float>>, float>);
static_assert(std::is_same_v<smx::scalar_of<const long double (&)[3]>, long double>);

// ---- same_scalar, same_extent, square_extent ------------------------------------------------------------------------

template <class T, std::size_t N>
using array = std::array<T, N>;

static_assert(smx::same_scalar<floats&, std::span<const float>>);
static_assert(smx::same_scalar<const array<double, 3>&, double (&)[3]>);
static_assert(!smx::same_scalar<floats&, doubles&>);
static_assert(!smx::same_scalar<doubles&, std::span<const long double>>);

static_assert(smx::same_extent<floats&, floats&>);
static_assert(smx::same_extent<floats&, array<float, 3>&>);
static_assert(smx::same_extent<std::span<const float>, float (&)[3]>);
static_assert(smx::same_extent<const array<float, 3>&, float (&)[3]>);
static_assert(smx::same_extent<const array<float, 3>&, std::span<float, 3>>);
static_assert(smx::same_extent<array<float, 0>&, array<float, 0>&>);
static_assert(!smx::same_extent<const array<float, 3>&, array<float, 4>&>);
static_assert(!smx::same_extent<const array<float, 3>&, array<float, 0>&>);
static_assert(!smx::same_extent<const array<float, 3>&, float (&)[4]>);
static_assert(!smx::same_extent<std::span<const float, 3>, std::span<float, 4>>);

static_assert(smx::square_extent<array<float, 9>&, array<float, 3>&>); // the matrix, then the row
static_assert(smx::square_extent<float (&)[9], std::span<const float, 3>>);
static_assert(smx::square_extent<floats&, array<float, 3>&>);
static_assert(smx::square_extent<array<float, 8>&, floats&>);
static_assert(smx::square_extent<array<float, 0>&, array<float, 0>&>);
static_assert(!smx::square_extent<array<float, 8>&, array<float, 3>&>);
static_assert(!smx::square_extent<array<float, 3>&, array<float, 3>&>);
static_assert(!smx::square_extent<std::span<float, 3>, std::span<const float, 9>>);
static_assert(!smx::square_extent<array<float, 0>&, array<float, 3>&>);

// ---- the functions --------------------------------------------------------------------------------------------------

struct softmax {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax(std::forward<A>(a)...));
};
struct log_softmax {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::log_softmax(std::forward<A>(a)...));
};
struct logsumexp {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::logsumexp(std::forward<A>(a)...));
};
struct logaddexp {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::logaddexp(std::forward<A>(a)...));
};
struct softmax_jacobian {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax_jacobian(std::forward<A>(a)...));
};
struct log_softmax_jacobian {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::log_softmax_jacobian(std::forward<A>(a)...));
};
struct softmax_jvp {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax_jvp(std::forward<A>(a)...));
};
struct softmax_vjp {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax_vjp(std::forward<A>(a)...));
};
struct log_softmax_jvp {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::log_softmax_jvp(std::forward<A>(a)...));
};
struct log_softmax_vjp {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::log_softmax_vjp(std::forward<A>(a)...));
};
struct softmax_hvp {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax_hvp(std::forward<A>(a)...));
};

template <class F, class... A>
constexpr bool takes = std::is_invocable_v<F, A...>;

// How many of the functions take these rows, all of whose inputs are alike?
template <class In, class Out>
constexpr int to_row = takes<softmax, In, Out> + takes<log_softmax, In, Out> + takes<softmax_jvp, In, In, Out> +
                       takes<softmax_vjp, In, In, Out> + takes<log_softmax_jvp, In, In, Out> +
                       takes<log_softmax_vjp, In, In, Out> + takes<softmax_hvp, In, In, In, Out>;
template <class In, class Out>
constexpr int to_matrix = takes<softmax_jacobian, In, Out> + takes<log_softmax_jacobian, In, Out>;
template <class In, class Out>
constexpr bool accepted = to_row<In, Out> == 7 && to_matrix<In, Out> == 2;
template <class In, class Out>
constexpr bool rejected = to_row<In, Out> == 0 && to_matrix<In, Out> == 0;

static_assert(accepted<floats&, floats&>);
static_assert(accepted<const floats&, floats&>);
static_assert(accepted<floats, floats&>); // a temporary input outlives the call
static_assert(accepted<std::span<const float>, std::span<float>>);
static_assert(accepted<std::span<float>, const std::span<float>&>);
static_assert(accepted<std::initializer_list<double>, doubles&>);
static_assert(accepted<const array<double, 4>&, doubles&>);
static_assert(accepted<doubles&, borrowed>);
static_assert(accepted<const long double (&)[3], std::span<long double>>);
static_assert(accepted<std::vector<number<missing::nothing>>&, std::vector<number<missing::nothing>>&>);
static_assert(to_row<const array<double, 4>&, array<double, 4>&> == 7);
static_assert(to_row<array<double, 4>, double (&)[4]> == 7);
static_assert(to_row<const double (&)[4], std::span<double, 4>> == 7);
static_assert(to_matrix<const array<double, 4>&, array<double, 16>&> == 2);
static_assert(to_matrix<const double (&)[4], std::span<double, 16>> == 2);
static_assert(to_matrix<array<double, 0>, array<double, 0>&> == 2);

static_assert(rejected<floats&, floats>);                                // temporary output
static_assert(rejected<array<float, 1>&, array<float, 1>>);              // temporary output
static_assert(rejected<floats&, const floats&>);                         // const output
static_assert(rejected<floats&, std::span<const float>>);                // const output
static_assert(rejected<floats&, doubles&>);                              // two scalars
static_assert(rejected<doubles&, floats&>);                              // two scalars
static_assert(rejected<long double (&)[3], double (&)[3]>);              // two scalars
static_assert(rejected<std::vector<int>&, std::vector<int>&>);           // integers
static_assert(rejected<std::vector<int>&, floats&>);                     // integers
static_assert(rejected<std::vector<bool>&, std::vector<bool>&>);         // integers
static_assert(rejected<std::list<float>&, floats&>);                     // not contiguous
static_assert(rejected<floats&, std::deque<float>&>);                    // not contiguous
static_assert(rejected<float*, float*>);                                 // no size
static_assert(rejected<const array<float, 3>&, array<float, 4>&>);       // static extents: not 3, not 9
static_assert(rejected<std::span<const float, 3>, std::span<float, 4>>); // static extents: not 3, not 9
static_assert(to_row<const array<float, 3>&, array<float, 9>&> == 0);
static_assert(to_matrix<const array<float, 3>&, array<float, 3>&> == 0);
static_assert(to_matrix<const array<float, 3>&, array<array<float, 3>, 3>&> == 0);

// Each further input is held to the same rules.
template <class F>
constexpr bool checks_its_second_input =
    takes<F, floats&, const floats&, floats&> && takes<F, array<float, 3>&, floats&, float (&)[3]> &&
    !takes<F, floats&, doubles&, floats&> && !takes<F, doubles&, floats&, doubles&> &&
    !takes<F, floats&, std::vector<int>&, floats&> && !takes<F, floats&, std::list<float>&, floats&> &&
    !takes<F, array<float, 3>&, array<float, 4>&, array<float, 3>&> && // against probs
    !takes<F, array<float, 3>&, array<float, 4>&, floats&> &&
    !takes<F, floats&, array<float, 4>&, array<float, 3>&> && // against out
    !takes<F, array<float, 4>&, floats&, array<float, 3>&>;
static_assert(checks_its_second_input<softmax_jvp>);
static_assert(checks_its_second_input<softmax_vjp>);
static_assert(checks_its_second_input<log_softmax_jvp>);
static_assert(checks_its_second_input<log_softmax_vjp>);
static_assert(takes<softmax_hvp, floats&, std::span<const float>, float (&)[3], floats&>);
static_assert(!takes<softmax_hvp, floats&, doubles&, floats&, floats&>);
static_assert(!takes<softmax_hvp, floats&, floats&, doubles&, floats&>);
static_assert(!takes<softmax_hvp, array<float, 3>&, array<float, 4>&, floats&, floats&>);
static_assert(!takes<softmax_hvp, array<float, 3>&, floats&, array<float, 4>&, floats&>);
static_assert(!takes<softmax_hvp, floats&, array<float, 3>&, array<float, 4>&, floats&>);
static_assert(!takes<softmax_hvp, floats&, array<float, 3>&, floats&, array<float, 4>&>);
static_assert(!takes<softmax_hvp, floats&, floats&, array<float, 3>&, array<float, 4>&>);

static_assert(takes<logsumexp, floats>);
static_assert(takes<logsumexp, const array<double, 3>&>);
static_assert(takes<logsumexp, std::span<const long double>>);
static_assert(!takes<logsumexp, std::vector<int>&>);
static_assert(!takes<logsumexp, std::list<float>&>);
static_assert(!takes<logsumexp, float>);
static_assert(takes<logaddexp, float, float>);
static_assert(takes<logaddexp, const long double&, long double>);
static_assert(takes<logaddexp, number<missing::nothing>, number<missing::nothing>>);
static_assert(!takes<logaddexp, float, double>);
static_assert(!takes<logaddexp, int, int>);

// By value: arrays only.
static_assert(takes<softmax, array<float, 3>>);
static_assert(takes<log_softmax, const array<long double, 3>&>);
static_assert(takes<softmax_jacobian, array<double, 0>>);
static_assert(!takes<softmax, array<int, 3>>);
static_assert(!takes<softmax, floats&>);
static_assert(!takes<log_softmax, float (&)[3]>);
static_assert(!takes<softmax_jacobian, std::span<float, 3>>);

static_assert(std::is_same_v<std::invoke_result_t<logsumexp, const floats&>, float>);
static_assert(std::is_same_v<std::invoke_result_t<logaddexp, double, double>, double>);
static_assert(std::is_same_v<std::invoke_result_t<softmax, floats&, floats&>, void>);
static_assert(std::is_same_v<std::invoke_result_t<softmax, array<float, 3>>, array<float, 3>>);
static_assert(std::is_same_v<std::invoke_result_t<log_softmax, array<float, 3>>, array<float, 3>>);
static_assert(std::is_same_v<std::invoke_result_t<softmax_jacobian, array<float, 3>>, array<array<float, 3>, 3>>);

static_assert(!noexcept(smx::softmax(std::declval<floats&>(), std::declval<floats&>()))); // it checks

// ---- options --------------------------------------------------------------------------------------------------------

template <class T>
concept has_options = requires { typename smx::softmax_options<T>; };
static_assert(has_options<float>);
static_assert(has_options<number<missing::nothing>>);
static_assert(!has_options<int>);
static_assert(!has_options<const float>);

template <class T>
concept written_in_braces = requires(std::vector<T>& row, std::span<const bool> mask) {
    smx::softmax(row, row, {});
    smx::softmax(row, row, {.temperature = T(2)});
    smx::log_softmax(row, row, {.mask = mask});
    smx::log_softmax(row, row, {.temperature = T(2), .mask = mask});
};
static_assert(written_in_braces<float>);
static_assert(written_in_braces<long double>);
static_assert(written_in_braces<number<missing::nothing>>);

static_assert(takes<softmax, floats&, floats&, smx::softmax_options<float>>);
static_assert(takes<log_softmax, doubles&, doubles&, const smx::softmax_options<double>&>);
static_assert(!takes<softmax, floats&, floats&, smx::softmax_options<double>>);
static_assert(!takes<log_softmax, doubles&, doubles&, smx::softmax_options<float>>);
static_assert(!takes<softmax, floats&, floats&, float>); // a bare number could be anything
static_assert(!takes<softmax, floats&, floats&, std::span<const bool>>);

template <class Mask>
concept is_mask = requires(floats& row, Mask mask) { smx::softmax(row, row, {.mask = mask}); };
static_assert(is_mask<std::span<const bool>>);
static_assert(is_mask<std::span<bool>>);
static_assert(is_mask<std::span<bool, 4>>);
static_assert(is_mask<array<bool, 4>&>);
static_assert(is_mask<const array<bool, 4>&>);
static_assert(is_mask<bool (&)[4]>);
static_assert(!is_mask<std::vector<bool>&>); // packs its bits
static_assert(!is_mask<const std::vector<bool>&>);
static_assert(!is_mask<std::vector<char>&>);
static_assert(!is_mask<std::vector<int>&>);
static_assert(!is_mask<floats&>);

// ---- a caller's own constraints -------------------------------------------------------------------------------------

struct callers {
    template <smx::readable_row Logits, smx::writable_row Probs>
        requires smx::same_scalar<Logits, Probs> && smx::same_extent<Logits, Probs> &&
                 smx::scalar<smx::scalar_of<Logits>>
    void operator()(const Logits& logits, Probs&& probs)
    {
        smx::softmax(logits, probs);
    }
};
static_assert(takes<callers, floats&, std::span<float>>);
static_assert(!takes<callers, floats&, floats>);
static_assert(!takes<callers, floats&, doubles&>);
static_assert(!takes<callers, array<float, 3>&, array<float, 4>&>);
static_assert(!takes<callers, std::vector<int>&, std::vector<int>&>);

} // namespace

TEST_CASE("constraints: a caller's own requires leads to a call that compiles", "[constraints]")
{
    const array<double, 2> logits = {1, 1};
    doubles probs(2);
    callers{}(logits, probs);
    CHECK(probs == doubles{0.5, 0.5});
}
