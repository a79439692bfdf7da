// SPDX-License-Identifier: BSL-1.0
// plain_loop.hpp: what a user writes without a library, for float and double.
#pragma once

#include <cstddef>

namespace plain {

template <class T>
void softmax(const T* logits, T* probs, std::size_t n); // max_element, std::exp, divide
template <class T>
void log_softmax(const T* logits, T* log_probs, std::size_t n);
template <class T>
T logsumexp(const T* logits, std::size_t n);
template <class T>
void softmax_jacobian(const T* probs, std::size_t n, T* jacobian); // p_i (1 - p_i), -p_i p_j
template <class T>
void log_softmax_jacobian(const T* probs, std::size_t n, T* jacobian);
template <class T>
void softmax_vjp(const T* probs, const T* cotangent, T* out, std::size_t n); // dot, then p (u - dot)
template <class T>
void log_softmax_vjp(const T* probs, const T* cotangent, T* out, std::size_t n); // u - p sum u
template <class T>
void log_softmax_jvp(const T* probs, const T* tangent, T* out, std::size_t n); // v - dot
template <class T>
void softmax_hvp(const T* probs, const T* cotangent, const T* tangent, T* out, std::size_t n);

} // namespace plain
