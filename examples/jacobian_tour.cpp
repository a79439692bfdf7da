// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -Iinclude examples/jacobian_tour.cpp -o jacobian_tour && ./jacobian_tour 2 1 0.5 -1
//
// The Jacobian of softmax, J = diag(p) - p p^T at p = softmax(logits), member by member of smx::jacobian_view. Each line is
// checked: the error is the largest difference from what the dense matrix gives in long double, relative to the largest
// number of the line.
#include <smx/smx.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using real = long double;
using vector = std::vector<double>;
using exact_vector = std::vector<real>;

struct matrix { // n x n
    std::size_t n;
    exact_vector a = exact_vector(n * n);
    real& operator()(std::size_t i, std::size_t j) { return a[i * n + j]; }
    real operator()(std::size_t i, std::size_t j) const { return a[i * n + j]; }
};

matrix operator*(const matrix& a, const matrix& b)
{
    matrix c{a.n};
    for (std::size_t i = 0; i < a.n; ++i)
        for (std::size_t k = 0; k < a.n; ++k)
            for (std::size_t j = 0; j < a.n; ++j)
                c(i, j) += a(i, k) * b(k, j);
    return c;
}

exact_vector operator*(const matrix& a, const vector& x)
{
    exact_vector y(a.n);
    for (std::size_t i = 0; i < a.n; ++i)
        for (std::size_t j = 0; j < a.n; ++j)
            y[i] += a(i, j) * static_cast<real>(x[j]);
    return y;
}

matrix dense_jacobian(const vector& p)
{
    matrix J{p.size()};
    for (std::size_t i = 0; i < J.n; ++i)
        for (std::size_t j = 0; j < J.n; ++j)
            if (i != j) {
                J(i, j) = -static_cast<real>(p[i]) * static_cast<real>(p[j]);
                J(i, i) -= J(i, j); // p_i (s - p_i), as the sum of p_i p_j
            }
    return J;
}

// ascending, by Jacobi's rotations
exact_vector dense_eigenvalues(matrix a)
{
    for (int sweep = 0; sweep < 30; ++sweep)
        for (std::size_t p = 0; p < a.n; ++p)
            for (std::size_t q = p + 1; q < a.n; ++q) {
                if (a(p, q) == 0)
                    continue;
                const real theta = (a(q, q) - a(p, p)) / (2 * a(p, q));
                const real t = (theta < 0 ? -1 : 1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
                const real c = 1 / std::sqrt(t * t + 1), s = t * c;
                const auto rotate = [c, s](real& x, real& y) {
                    const real before = x;
                    x = c * before - s * y;
                    y = s * before + c * y;
                };
                for (std::size_t k = 0; k < a.n; ++k)
                    rotate(a(k, p), a(k, q));
                for (std::size_t k = 0; k < a.n; ++k)
                    rotate(a(p, k), a(q, k));
            }
    exact_vector mu;
    for (std::size_t i = 0; i < a.n; ++i)
        mu.insert(std::upper_bound(mu.begin(), mu.end(), a(i, i)), a(i, i));
    return mu;
}

bool all_right = true;

void line(const char* member, const char* formula, const vector& computed, const exact_vector& exact,
          double allowed = 64)
{
    real error = 0, size = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
        error = std::max(error, std::fabs(static_cast<real>(computed[i]) - exact[i]));
        size = std::max(size, std::fabs(exact[i]));
    }
    const double relative = static_cast<double>(size > 0 ? error / size : error);
    all_right = all_right && relative <= allowed * 0x1p-53;
    std::printf("%-26s %-34s %8.1e  ", member, formula, relative);
    for (std::size_t i = 0; i < std::min<std::size_t>(computed.size(), 6); ++i)
        std::printf(" %10.4g", computed[i]);
    std::printf(computed.size() > 6 ? " ...\n" : "\n");
}

void tour(const vector& logits)
{
    const std::size_t n = logits.size();
    vector p(n), v(n), x(n), back(n), tails(n), pivots(n), sigma(n * n), covariance(n * n);
    smx::softmax(logits, p);
    for (std::size_t i = 0; i < n; ++i) {
        v[i] = static_cast<double>(i + 1);
        sigma[i * n + i] = 0.01; // independent errors of the logits, 0.1 each
    }
    const matrix exact = dense_jacobian(p);
    const smx::jacobian_view J(p); // all that follows reads p; no n x n matrix is made

    std::printf("%-26s %-34s %8s  %10s\n", "member", "what it is; v = (1, 2, ..., n)", "error", "result");
    exact_vector diagonal(n);
    real trace = 0, squares = 0;
    for (std::size_t i = 0; i < n; ++i)
        trace += diagonal[i] = exact(i, i);
    for (const real each : exact.a)
        squares += each * each;
    line("J(0, n - 1)", "-p_i p_j; p_i (1 - p_i) if i = j", {J(0, n - 1)}, {exact(0, n - 1)});
    J.diagonal(x);
    line("diagonal", "variances of a draw from p", x, diagonal);
    line("trace", "their sum, 1 - sum p^2", {J.trace()}, {trace});
    line("frobenius_norm", "(sum J_ij^2)^1/2", {J.frobenius_norm()}, {std::sqrt(squares)});
    J.apply(v, x);
    line("apply", "J v, a directional derivative", x, exact * v);
    J.solve_shifted(0.1, v, x); // checked by what it solves
    matrix shifted = exact;
    for (std::size_t i = 0; i < n; ++i)
        shifted(i, i) += real(0.1); // the double
    const exact_vector right_side = shifted * x;
    line("solve_shifted", "(J + 0.1 I)^-1 v; J + 0.1 I of it", vector(right_side.begin(), right_side.end()),
         exact_vector(v.begin(), v.end()), 1024);
    J.apply(v, x);
    J.pseudo_inverse(x, back); // J^+ J v = v - mean(v)
    exact_vector centred(n);
    for (std::size_t i = 0; i < n; ++i)
        centred[i] = static_cast<real>(2 * i + 1) / 2 - static_cast<real>(n) / 2;
    const double least = *std::min_element(p.begin(), p.end());
    if (least > 0)
        line("pseudo_inverse", "J^+ J v = v - mean v", back, centred, 64 / least);
    J.factor_apply_transposed(v, x);
    J.factor_apply(x, x);
    line("factor_apply, transposed", "B B^T v = J v; B z samples N(0, J)", x, exact * v);
    J.ldl(tails, pivots);
    matrix L{n}, Lt{n}; // L diag(pivots), L^T
    for (std::size_t j = 0; j < n; ++j)
        for (std::size_t i = j; i < n; ++i) {
            Lt(j, i) = i == j ? 1 : tails[j] > 0 ? -static_cast<real>(p[i]) / static_cast<real>(tails[j]) : 0;
            L(i, j) = Lt(j, i) * static_cast<real>(pivots[j]);
        }
    const matrix product = L * Lt;
    line("ldl", "L diag(pivots) L^T = J", vector(product.a.begin(), product.a.end()), exact.a);
    J.congruence(sigma, covariance);
    line("congruence", "J Sigma J^T, covariance of softmax", covariance,
         (exact * matrix{n, exact_vector(sigma.begin(), sigma.end())} * exact).a);
    const exact_vector mu = dense_eigenvalues(exact);
    J.eigenvalues(x);
    line("eigenvalues", "sum p_i / (p_i - mu) = 0", x, mu);
    line("largest_eigenvalue", "the best step length's inverse", {J.largest_eigenvalue()}, {mu[n - 1]});
    real log_product = 0;
    for (std::size_t i = 1; i < n; ++i)
        log_product += std::log(mu[i]);
    if (least > 1e-6) // else the dense eigenvalues have lost their digits, not the operator
        line("log_pseudo_determinant", "log of the product of mu > 0", {J.log_pseudo_determinant()}, {log_product},
             1e6);
    std::printf(all_right ? "every line is right\n" : "a line is WRONG\n");
}

vector numbers(int count, char** texts)
{
    vector out;
    for (int i = 0; i < count; ++i) {
        char* end = nullptr;
        out.push_back(std::strtod(texts[i], &end));
        if (end == texts[i] || *end != '\0' || !std::isfinite(out.back()))
            throw std::runtime_error("not a finite number: '" + std::string(texts[i]) + "'");
    }
    return out;
}

} // namespace

int main(int argc, char** argv)
{
    try {
        tour(argc > 1 ? numbers(argc - 1, argv + 1) : vector{2, 1, 0.5, -1});
        return all_right ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "jacobian_tour: %s\n", error.what());
        return 2;
    }
}
