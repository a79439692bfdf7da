// SPDX-License-Identifier: BSL-1.0
// row_table.hpp: the row functions of one instruction set, as a table.
#pragma once

#include <cstddef> // size_t

#include <smx/detail/scalar.hpp> // exp_scale

namespace smx::detail {

// Row functions on bare pointers; their arguments have been checked. mask may be null: all entries take part.
template <class T>
struct row_table {
    const char* name;
    void (*softmax)(const T* logits, T* probs, std::size_t n, const exp_scale<T>& scale, const bool* mask);
    void (*log_softmax)(const T* logits, T* log_probs, std::size_t n, const exp_scale<T>& scale, const bool* mask);
    void (*logsumexp)(const T* logits, std::size_t n, T* out);
    void (*softmax_jacobian)(const T* probs, std::size_t n, T* jacobian);
    void (*log_softmax_jacobian)(const T* probs, std::size_t n, T* jacobian);
    void (*softmax_jvp)(const T* probs, const T* tangent, T* out, std::size_t n); // softmax_vjp too
    void (*log_softmax_jvp)(const T* probs, const T* tangent, T* out, std::size_t n);
    void (*log_softmax_vjp)(const T* probs, const T* cotangent, T* out, std::size_t n);
    void (*softmax_hvp)(const T* probs, const T* cotangent, const T* tangent, T* out, std::size_t n);
};

} // namespace smx::detail
