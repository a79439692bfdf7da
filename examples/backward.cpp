// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -Iinclude examples/backward.cpp -o backward && ./backward
//
// A backward pass by hand, softmax as the last layer:
//   forward    z = W x,  p = softmax(z),  loss = |p - y|^2
//   backward   dp = 2 (p - y),  dz = J^T dp,  dW = dz x^T        where da is d loss / d a
#include <smx/smx.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>

constexpr std::size_t classes = 3, inputs = 2;
using class_vector = std::array<double, classes>;
using weight_matrix = std::array<std::array<double, inputs>, classes>;

constexpr std::array<double, inputs> sample{0.5, -1.2};
constexpr class_vector target{0, 1, 0};

double loss(const weight_matrix& w, weight_matrix* dw = nullptr)
{
    class_vector z{}, dp{}, dz{};
    for (std::size_t i = 0; i < classes; ++i)
        z[i] = w[i][0] * sample[0] + w[i][1] * sample[1];
    const class_vector p = smx::softmax(z);
    double sum = 0;
    for (std::size_t i = 0; i < classes; ++i) {
        sum += (p[i] - target[i]) * (p[i] - target[i]);
        dp[i] = 2 * (p[i] - target[i]);
    }
    if (dw != nullptr) {
        smx::softmax_vjp(p, dp, dz);
        for (std::size_t i = 0; i < classes; ++i)
            (*dw)[i] = {dz[i] * sample[0], dz[i] * sample[1]};
    }
    return sum;
}

int main()
{
    weight_matrix w{{{0.1, -0.4}, {-0.3, 0.8}, {0.7, 0.2}}}, dw{};
    loss(w, &dw);
    double error = 0;
    for (std::size_t i = 0; i < classes; ++i)
        for (std::size_t k = 0; k < inputs; ++k) {
            weight_matrix ahead = w, behind = w;
            ahead[i][k] += 1e-5;
            behind[i][k] -= 1e-5;
            const double difference = (loss(ahead) - loss(behind)) / 2e-5;
            std::printf("dW[%zu][%zu] = %9.6f   finite difference %9.6f\n", i, k, dw[i][k], difference);
            error += std::abs(dw[i][k] - difference);
        }
    std::printf("sum of differences %.0e: %s\n", error,
                error < 1e-9 ? "the gradient is right" : "the gradient is WRONG");
    return error < 1e-9 ? 0 : 1;
}
