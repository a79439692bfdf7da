// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -Iinclude examples/eigen.cpp -o eigen && ./eigen
//
// Eigen's vectors, and the rows of its row-major matrices, are rows: no copy, no conversion.
#include <smx/smx.hpp>

#include <cstdio>

#if __has_include(<Eigen/Core>)
#include <Eigen/Core>
#elif __has_include(<eigen3/Eigen/Core>)
#include <eigen3/Eigen/Core>
#endif

#ifdef EIGEN_WORLD_VERSION

#include <iostream>

int main()
{
    const Eigen::Vector4d logits(1.0, 2.0, 3.0, 4.0);
    const Eigen::Vector4d v(1.0, 0.0, 0.0, -1.0);
    Eigen::Vector4d probs, jv;
    smx::softmax(logits, probs);
    smx::softmax_jvp(probs, v, jv);

    Eigen::Matrix4d jacobian; // column-major is as good as row-major: J is symmetric
    smx::softmax_jacobian(probs, jacobian.reshaped());
    std::cout << "J =\n" << jacobian << "\n";
    const bool equal = (jv - jacobian * v).norm() < 1e-15;
    std::cout << "softmax_jvp " << (equal ? "equals" : "does NOT equal") << " J * v\n";

    using row_major = Eigen::Matrix<float, 3, Eigen::Dynamic, Eigen::RowMajor>;
    row_major batch = row_major::Random(3, 5);
    for (Eigen::Index i = 0; i < batch.rows(); ++i)
        smx::softmax(batch.row(i), batch.row(i)); // in place
    std::cout << "row sums of a batch: " << batch.rowwise().sum().transpose() << "\n";
    return equal ? 0 : 1;
}

#else

int main() { std::printf("Eigen not found: apt-get install libeigen3-dev\n"); }

#endif
