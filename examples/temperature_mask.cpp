// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -Iinclude examples/temperature_mask.cpp -o temperature_mask && ./temperature_mask
//
// Choosing the next token: the temperature, and a mask over what must not be chosen.
#include <smx/smx.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <limits>

using row = std::array<double, 4>;

void print(const char* name, double temperature, const row& values)
{
    std::printf("%-8s %-4g%8.4f%8.4f%8.4f%8.4f\n", name, temperature, values[0], values[1], values[2], values[3]);
}

int main()
{
    const row logits{2.0, 1.0, -0.5, std::numeric_limits<double>::quiet_NaN()}; // red, green, blue, <pad>: no logit
    const std::array words{true, true, true, false};                            // false: never evaluated
    const std::array nothing{false, false, false, false};
    row probs{};

    std::printf("mask     T        red   green    blue   <pad>\n");
    for (const double temperature : {0.1, 1.0, 10.0}) {
        smx::softmax(logits, probs, {.temperature = temperature, .mask = words});
        print("words", temperature, probs);
    }
    smx::softmax(logits, probs, {.mask = nothing});
    print("nothing", 1, probs);

    // d probs / d logits = J / temperature: J v / temperature against a step of h along v
    const smx::softmax_options<double> options{.temperature = 0.7, .mask = words};
    const double h = 1e-5;
    const row v{1, -1, 0.5, 0};
    row ahead{}, behind{}, jv{};
    for (std::size_t i = 0; i < v.size(); ++i) {
        ahead[i] = logits[i] + h * v[i];
        behind[i] = logits[i] - h * v[i];
    }
    smx::softmax(ahead, ahead, options); // in place
    smx::softmax(behind, behind, options);
    smx::softmax(logits, probs, options);
    smx::softmax_jvp(probs, v, jv);
    double error = 0;
    for (std::size_t i = 0; i < v.size(); ++i) {
        jv[i] /= options.temperature;
        error += std::abs((ahead[i] - behind[i]) / (2 * h) - jv[i]);
    }
    print("J v / T", options.temperature, jv);
    std::printf("finite differences differ from it by %.0e: %s\n", error, error < 1e-8 ? "equal" : "NOT equal");
    return error < 1e-8 ? 0 : 1;
}
