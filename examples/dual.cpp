// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -Iinclude examples/dual.cpp -o dual && ./dual
//
// softmax of an own number type: a dual number a + b e, e^2 = 0, carries the derivative b along with the value a.
// It needs + - * / <, a constructor from int, exp and log; this one has no log1p.
#include <smx/smx.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>

namespace autodiff {

struct dual {
    double value = 0, derivative = 0;

    dual(double a, double b = 0) : value(a), derivative(b) {}
    friend dual operator+(dual x, dual y) { return {x.value + y.value, x.derivative + y.derivative}; }
    friend dual operator-(dual x, dual y) { return {x.value - y.value, x.derivative - y.derivative}; }
    friend dual operator*(dual x, dual y)
    {
        return {x.value * y.value, x.derivative * y.value + x.value * y.derivative};
    }
    friend dual operator/(dual x, dual y)
    {
        const double ratio = x.value / y.value;
        return {ratio, (x.derivative - ratio * y.derivative) / y.value};
    }
    friend bool operator<(dual x, dual y) { return x.value < y.value; }
    friend dual exp(dual x) { return {std::exp(x.value), std::exp(x.value) * x.derivative}; }
    friend dual log(dual x) { return {std::log(x.value), x.derivative / x.value}; }
};

} // namespace autodiff

int main()
{
    const std::array tangent{1.0, -0.5, 2.0};
    const auto probs = smx::softmax(std::array{1.2, 3.0, 0.4});
    std::array<double, 3> jv{}, log_jv{};
    smx::softmax_jvp(probs, tangent, jv);
    smx::log_softmax_jvp(probs, tangent, log_jv);

    const std::array<autodiff::dual, 3> dual_logits{{{1.2, 1.0}, {3.0, -0.5}, {0.4, 2.0}}}; // logits + tangent e
    const auto dual_probs = smx::softmax(dual_logits);
    const auto dual_log_probs = smx::log_softmax(dual_logits);

    double error = 0;
    std::printf("%12s %12s %12s    %12s %12s %15s\n", "p", "derivative", "J v", "log p", "derivative",
                "log_softmax_jvp");
    for (std::size_t i = 0; i < 3; ++i) {
        std::printf("%12.9f %12.9f %12.9f    %12.9f %12.9f %15.9f\n", dual_probs[i].value, dual_probs[i].derivative,
                    jv[i], dual_log_probs[i].value, dual_log_probs[i].derivative, log_jv[i]);
        error += std::abs(dual_probs[i].derivative - jv[i]) + std::abs(dual_log_probs[i].derivative - log_jv[i]);
    }
    std::printf("sum of differences %.0e: the derivatives are %s\n", error, error < 1e-14 ? "equal" : "NOT equal");
    return error < 1e-14 ? 0 : 1;
}
