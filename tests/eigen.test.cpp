// SPDX-License-Identifier: BSL-1.0
// eigen.test.cpp: Eigen's vectors, maps and blocks as rows, where Eigen is installed.
#include <smx/jacobian.hpp>
#include <smx/softmax.hpp>

#include "catch.hpp"

#if __has_include(<Eigen/Core>)
#include <Eigen/Core>

#include <cstddef>     // size_t
#include <stdexcept>   // invalid_argument
#include <string>      // string
#include <type_traits> // is_invocable_v
#include <utility>     // declval, forward
#include <vector>      // vector

namespace {

using Eigen::Map;
using Eigen::MatrixXd;
using Eigen::RowVectorXd;
using Eigen::VectorXd;
using Eigen::VectorXf;
using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ColumnOf = decltype(std::declval<MatrixXd&>().col(0));
using ConstColumnOf = decltype(std::declval<const MatrixXd&>().col(0));
using RowOf = decltype(std::declval<MatrixXd&>().row(0));
using RowOfRowMajor = decltype(std::declval<RowMajor&>().row(0));
using ColumnOfRowMajor = decltype(std::declval<RowMajor&>().col(0));
using ColumnOfFixed = decltype(std::declval<Eigen::Matrix3d&>().col(0));
using HeadOf = decltype(std::declval<VectorXd&>().head(2));
using ThreeOf = decltype(std::declval<VectorXd&>().head<3>());
using Doubled = decltype(2 * std::declval<VectorXd&>());
using Strided = Map<VectorXd, 0, Eigen::InnerStride<2>>;
using StridedAtRunTime = Map<VectorXd, 0, Eigen::InnerStride<>>;

// ---- readable_row, writable_row -------------------------------------------------------------------------------------

static_assert(smx::readable_row<VectorXf>);
static_assert(smx::readable_row<const VectorXd&>);
static_assert(smx::readable_row<RowVectorXd>);
static_assert(smx::readable_row<Eigen::ArrayXd>);
static_assert(smx::readable_row<Eigen::Vector4f>);
static_assert(smx::readable_row<Eigen::Matrix<long double, Eigen::Dynamic, 1>>);
static_assert(smx::readable_row<Map<VectorXd>>);
static_assert(smx::readable_row<Map<const VectorXd>>);
static_assert(smx::readable_row<Eigen::Ref<VectorXd>>);
static_assert(smx::readable_row<Eigen::Ref<const VectorXd>>);
static_assert(smx::readable_row<ColumnOf>);
static_assert(smx::readable_row<ConstColumnOf>);
static_assert(smx::readable_row<RowOfRowMajor>);
static_assert(smx::readable_row<HeadOf>);
static_assert(!smx::readable_row<Eigen::VectorXi>);
static_assert(!smx::readable_row<MatrixXd>); // no vector
static_assert(!smx::readable_row<Eigen::Matrix3d>);
static_assert(!smx::readable_row<Map<MatrixXd>>);
static_assert(!smx::readable_row<RowOf>); // of a column-major matrix: its entries are not neighbours
static_assert(!smx::readable_row<ColumnOfRowMajor>);
static_assert(!smx::readable_row<Strided>);
static_assert(!smx::readable_row<StridedAtRunTime>);
static_assert(!smx::readable_row<Doubled>); // is nowhere in memory

static_assert(smx::writable_row<VectorXd&>);
static_assert(smx::writable_row<RowVectorXd&>);
static_assert(smx::writable_row<Eigen::Vector4f&>);
static_assert(smx::writable_row<ColumnOf>); // a temporary view of what stays
static_assert(smx::writable_row<ColumnOf&>);
static_assert(smx::writable_row<ColumnOfFixed>);
static_assert(smx::writable_row<RowOfRowMajor>);
static_assert(smx::writable_row<HeadOf>);
static_assert(smx::writable_row<Map<VectorXd>>);
static_assert(smx::writable_row<Eigen::Ref<VectorXd>>);
static_assert(!smx::writable_row<VectorXd>); // a temporary: nobody would see the result
static_assert(!smx::writable_row<Eigen::Vector3d>);
static_assert(!smx::writable_row<Eigen::ArrayXd>);
static_assert(!smx::writable_row<const VectorXd&>);
static_assert(!smx::writable_row<ConstColumnOf>);
static_assert(!smx::writable_row<Map<const VectorXd>>);
static_assert(!smx::writable_row<Eigen::Ref<const VectorXd>>);
static_assert(!smx::writable_row<RowOf>);
static_assert(!smx::writable_row<ColumnOfRowMajor>);
static_assert(!smx::writable_row<Strided>);
static_assert(!smx::writable_row<MatrixXd&>);
static_assert(!smx::writable_row<Eigen::VectorXi&>);
static_assert(!smx::writable_row<Doubled>);

static_assert(std::is_same_v<smx::scalar_of<const VectorXf&>, float>);
static_assert(std::is_same_v<smx::scalar_of<ConstColumnOf>, double>);

// ---- same_scalar, same_extent, square_extent ------------------------------------------------------------------------

static_assert(smx::same_scalar<VectorXd&, std::vector<double>&>);
static_assert(!smx::same_scalar<VectorXd&, VectorXf&>);
static_assert(smx::same_extent<VectorXd&, Eigen::Vector3d&>);
static_assert(smx::same_extent<Eigen::RowVector3d&, Eigen::Vector3d&>);
static_assert(smx::same_extent<ColumnOfFixed, Eigen::Vector3d&>);
static_assert(!smx::same_extent<Eigen::Vector4d&, Eigen::Vector3d&>);
static_assert(!smx::same_extent<ThreeOf, Eigen::Vector4d&>);
static_assert(smx::square_extent<Eigen::Matrix<double, 9, 1>&, Eigen::Vector3d&>);
static_assert(!smx::square_extent<Eigen::Matrix<double, 8, 1>&, Eigen::Vector3d&>);

// ---- the functions --------------------------------------------------------------------------------------------------

struct softmax {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax(std::forward<A>(a)...));
};
struct softmax_jvp {
    template <class... A>
    auto operator()(A&&... a) -> decltype(smx::softmax_jvp(std::forward<A>(a)...));
};
template <class F, class... A>
constexpr bool takes = std::is_invocable_v<F, A...>;

static_assert(takes<softmax, VectorXd&, ColumnOf>);
static_assert(takes<softmax, ConstColumnOf, std::vector<double>&>);
static_assert(takes<softmax, std::vector<float>&, VectorXf&>);
static_assert(!takes<softmax, VectorXd&, VectorXd>);                // temporary output
static_assert(!takes<softmax, VectorXd&, const VectorXd&>);         // const output
static_assert(!takes<softmax, VectorXd&, VectorXf&>);               // two scalars
static_assert(!takes<softmax, Eigen::VectorXi&, Eigen::VectorXi&>); // integers
static_assert(!takes<softmax, VectorXd&, RowOf>);                   // inner stride not 1
static_assert(!takes<softmax, RowOf, VectorXd&>);                   // inner stride not 1
static_assert(!takes<softmax, MatrixXd&, MatrixXd&>);               // no vectors
static_assert(!takes<softmax, Eigen::Vector3d&, Eigen::Vector4d&>); // static extents
static_assert(!takes<softmax, Doubled, VectorXd&>);                 // an expression
static_assert(takes<softmax_jvp, VectorXd&, ConstColumnOf, ColumnOf>);
static_assert(!takes<softmax_jvp, VectorXd&, VectorXf&, VectorXd&>);

// What std::vector gives: the rows of this file differ from it in type only.
template <class T>
std::vector<T> expected_softmax(const std::vector<T>& logits)
{
    std::vector<T> probs(logits.size());
    smx::softmax(logits, probs);
    return probs;
}

template <class Row>
auto elements(const Row& row)
{
    return std::vector<typename Row::Scalar>(row.data(), row.data() + row.size());
}

} // namespace

TEST_CASE("eigen: vectors of any size and direction are rows", "[eigen]")
{
    const std::vector<double> logits = {1, 4, 2};
    const auto expected = expected_softmax(logits);
    const VectorXd x = Map<const VectorXd>(logits.data(), 3);
    const RowVectorXd across = x.transpose();
    const Eigen::Vector3d three = x;

    VectorXd probs(3);
    smx::softmax(x, probs);
    CHECK(elements(probs) == expected);
    RowVectorXd probs_across(3);
    smx::softmax(across, probs_across);
    CHECK(elements(probs_across) == expected);
    Eigen::Vector3d probs_three;
    smx::softmax(three, probs_three);
    CHECK(elements(probs_three) == expected);
    std::vector<double> probs_std(3);
    smx::softmax(x, probs_std);
    CHECK(probs_std == expected);
    smx::softmax(logits, Map<VectorXd>(probs.data(), 3));
    CHECK(elements(probs) == expected);
    CHECK(smx::logsumexp(x) == smx::logsumexp(logits));

    const VectorXf single = x.cast<float>();
    VectorXf probs_single(3);
    smx::softmax(single, probs_single);
    CHECK(elements(probs_single) == expected_softmax<float>({1, 4, 2}));
}

TEST_CASE("eigen: a matrix is worked on column by column, or row by row, in place too", "[eigen]")
{
    MatrixXd x(3, 2), p = MatrixXd::Constant(3, 2, -1);
    x << 1, 5, 4, -2, 2, 0;
    smx::softmax(x.col(1), p.col(0));
    CHECK(elements(VectorXd(p.col(0))) == expected_softmax<double>({5, -2, 0}));
    CHECK(p.col(1) == VectorXd::Constant(3, -1));
    smx::softmax(x.col(0), x.col(0));
    CHECK(elements(VectorXd(x.col(0))) == expected_softmax<double>({1, 4, 2}));
    CHECK(x.col(1) == Eigen::Vector3d(5, -2, 0));

    RowMajor rows(2, 3);
    rows << 1, 4, 2, 5, -2, 0;
    for (Eigen::Index i = 0; i < rows.rows(); ++i)
        smx::softmax(rows.row(i), rows.row(i));
    CHECK(elements(RowVectorXd(rows.row(0))) == expected_softmax<double>({1, 4, 2}));
    CHECK(elements(RowVectorXd(rows.row(1))) == expected_softmax<double>({5, -2, 0}));

    VectorXd long_row(5);
    long_row << 9, 1, 4, 2, 9;
    smx::softmax(long_row.segment(1, 3), long_row.segment(1, 3));
    CHECK(elements(VectorXd(long_row.segment(1, 3))) == expected_softmax<double>({1, 4, 2}));
    CHECK((long_row[0] == 9 && long_row[4] == 9));
}

TEST_CASE("eigen: every function takes Eigen's rows", "[eigen]")
{
    const Eigen::Vector3d x(1, 4, 2), u(1, -2, 3), v(0.5, 4, -1);
    VectorXd p(3), out(3);
    std::vector<double> expected(3);
    smx::softmax(x, p, {.temperature = 2.0});
    smx::softmax(elements(x), expected, {.temperature = 2.0});
    CHECK(elements(p) == expected);
    smx::log_softmax(x, out);
    smx::log_softmax(elements(x), expected);
    CHECK(elements(out) == expected);
    smx::softmax_jvp(p, v, out);
    smx::softmax_jvp(elements(p), elements(v), expected);
    CHECK(elements(out) == expected);
    smx::softmax_vjp(p, u, out);
    smx::softmax_vjp(elements(p), elements(u), expected);
    CHECK(elements(out) == expected);
    smx::log_softmax_jvp(p, v, out);
    smx::log_softmax_jvp(elements(p), elements(v), expected);
    CHECK(elements(out) == expected);
    smx::log_softmax_vjp(p, u, out);
    smx::log_softmax_vjp(elements(p), elements(u), expected);
    CHECK(elements(out) == expected);
    smx::softmax_hvp(p, u, v, out);
    smx::softmax_hvp(elements(p), elements(u), elements(v), expected);
    CHECK(elements(out) == expected);

    RowMajor jacobian(3, 3);
    std::vector<double> expected_jacobian(9);
    smx::softmax_jacobian(p, Map<VectorXd>(jacobian.data(), jacobian.size()));
    smx::softmax_jacobian(elements(p), expected_jacobian);
    CHECK(elements(jacobian) == expected_jacobian);
    smx::log_softmax_jacobian(p, Map<VectorXd>(jacobian.data(), jacobian.size()));
    smx::log_softmax_jacobian(elements(p), expected_jacobian);
    CHECK(elements(jacobian) == expected_jacobian);
}

TEST_CASE("eigen: a bad call throws as for any row", "[eigen]")
{
    const VectorXd logits = VectorXd::Zero(4);
    MatrixXd probs = MatrixXd::Constant(3, 2, -1);
    std::string message;
    try {
        smx::softmax(logits, probs.col(1));
    } catch (const std::invalid_argument& error) {
        message = error.what();
    }
    CHECK(message == "smx::softmax: probs has 3 elements, logits has 4");
    VectorXd row = VectorXd::Constant(5, -1);
    CHECK_THROWS_AS(smx::softmax(row.head(4), row.tail(4)), std::invalid_argument);
    CHECK((probs.array() == -1).all());
    CHECK((row.array() == -1).all());
}

#else

TEST_CASE("eigen: is not installed", "[eigen]") { SKIP("no <Eigen/Core>"); }

#endif
