// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -Iinclude examples/softmax.cpp -o softmax && ./softmax
#include <smx/smx.hpp>

#include <array>
#include <cstdio>

int main()
{
    const std::array logits{2.0, 1.0, 0.1};
    const auto probs = smx::softmax(logits);
    const auto log_probs = smx::log_softmax(logits);
    const auto jacobian = smx::softmax_jacobian(probs); // jacobian[i][j] = d probs[i] / d logits[j]

    const std::array v{1.0, -1.0, 0.0}; // the first logit rises, the second falls ...
    std::array<double, 3> jv{};
    smx::softmax_jvp(probs, v, jv); // ... and probs move along J v, in O(n), without J

    const auto print = [](auto name, auto& x) { std::printf("%-10s%8.4f%8.4f%8.4f\n", name, x[0], x[1], x[2]); };
    print("probs", probs);
    print("log probs", log_probs);
    for (const auto& row : jacobian)
        print("J", row);
    print("J v", jv);
}
