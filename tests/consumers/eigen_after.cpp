// SPDX-License-Identifier: BSL-1.0
#include <smx/smx.hpp>

#include <Eigen/Core>

#include <cstdio>

int main()
{
    const Eigen::Vector3d logits(1, 2, 3);
    Eigen::Vector3d probs;
    smx::softmax(logits, probs);
    std::printf("%.6f %.6f %.6f\n", probs[0], probs[1], probs[2]);
}
