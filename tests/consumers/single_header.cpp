// SPDX-License-Identifier: BSL-1.0
#include <smx.hpp>

#include <cstdio>
#include <vector>

int main()
{
    const std::vector<double> logits{1, 2, 3};
    std::vector<double> probs(3);
    smx::softmax(logits, probs);
    std::printf("%.6f %.6f %.6f\n", probs[0], probs[1], probs[2]);
}
