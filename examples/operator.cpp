// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -Iinclude examples/operator.cpp -o operator && ./operator
//
// A natural-gradient step on a million classes: solve (J + shift I) x = g, J = diag(p) - p p^T of a million rows, in a few
// milliseconds. The matrix would fill 8 terabytes.
#include <smx/smx.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

int main()
{
    const std::size_t n = 1'000'000;
    std::vector<double> probs(n), g(n), x(n), residual(n);
    for (std::size_t i = 0; i < n; ++i) {
        probs[i] = 20 * std::sin(static_cast<double>(i));
        g[i] = std::cos(static_cast<double>(i));
    }
    smx::softmax(probs, probs);
    const smx::jacobian_view J(probs);
    J.solve_shifted(1e-9, g, x);

    J.apply(x, residual);
    double largest = 0;
    for (std::size_t i = 0; i < n; ++i)
        largest = std::fmax(largest, std::fabs(residual[i] + 1e-9 * x[i] - g[i]));
    std::printf("residual %.0e, largest eigenvalue %.6e\n", largest, J.largest_eigenvalue());
}
