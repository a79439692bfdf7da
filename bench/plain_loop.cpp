// SPDX-License-Identifier: BSL-1.0
// Compiled with -Ofast -march=native, by itself.
#include "plain_loop.hpp"

#include <algorithm>
#include <cmath>

namespace plain {

template <class T>
void softmax(const T* logits, T* probs, std::size_t n)
{
    const T max = *std::max_element(logits, logits + n);
    T sum = 0;
    for (std::size_t i = 0; i < n; ++i)
        sum += probs[i] = std::exp(logits[i] - max);
    for (std::size_t i = 0; i < n; ++i)
        probs[i] /= sum;
}

template <class T>
T logsumexp(const T* logits, std::size_t n)
{
    const T max = *std::max_element(logits, logits + n);
    T sum = 0;
    for (std::size_t i = 0; i < n; ++i)
        sum += std::exp(logits[i] - max);
    return max + std::log(sum);
}

template <class T>
void log_softmax(const T* logits, T* log_probs, std::size_t n)
{
    const T normaliser = plain::logsumexp(logits, n);
    for (std::size_t i = 0; i < n; ++i)
        log_probs[i] = logits[i] - normaliser;
}

template <class T>
void softmax_jacobian(const T* probs, std::size_t n, T* jacobian)
{
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < n; ++j)
            jacobian[i * n + j] = i == j ? probs[i] * (1 - probs[i]) : -probs[i] * probs[j];
}

template <class T>
void log_softmax_jacobian(const T* probs, std::size_t n, T* jacobian)
{
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < n; ++j)
            jacobian[i * n + j] = i == j ? 1 - probs[i] : -probs[j];
}

template <class T>
T dot(const T* a, const T* b, std::size_t n)
{
    T sum = 0;
    for (std::size_t i = 0; i < n; ++i)
        sum += a[i] * b[i];
    return sum;
}

template <class T>
void softmax_vjp(const T* probs, const T* cotangent, T* out, std::size_t n)
{
    const T mean = dot(probs, cotangent, n);
    for (std::size_t i = 0; i < n; ++i)
        out[i] = probs[i] * (cotangent[i] - mean);
}

template <class T>
void log_softmax_jvp(const T* probs, const T* tangent, T* out, std::size_t n)
{
    const T mean = dot(probs, tangent, n);
    for (std::size_t i = 0; i < n; ++i)
        out[i] = tangent[i] - mean;
}

template <class T>
void log_softmax_vjp(const T* probs, const T* cotangent, T* out, std::size_t n)
{
    T sum = 0;
    for (std::size_t i = 0; i < n; ++i)
        sum += cotangent[i];
    for (std::size_t i = 0; i < n; ++i)
        out[i] = cotangent[i] - probs[i] * sum;
}

template <class T>
void softmax_hvp(const T* probs, const T* cotangent, const T* tangent, T* out, std::size_t n)
{
    const T u = dot(probs, cotangent, n), v = dot(probs, tangent, n);
    T mean = 0;
    for (std::size_t i = 0; i < n; ++i)
        mean += probs[i] * (cotangent[i] - u) * (tangent[i] - v);
    for (std::size_t i = 0; i < n; ++i)
        out[i] = probs[i] * ((cotangent[i] - u) * (tangent[i] - v) - mean);
}

#define SMX_PLAIN(T)                                                                                                   \
    template void softmax(const T*, T*, std::size_t);                                                                  \
    template void log_softmax(const T*, T*, std::size_t);                                                              \
    template T logsumexp(const T*, std::size_t);                                                                       \
    template void softmax_jacobian(const T*, std::size_t, T*);                                                         \
    template void log_softmax_jacobian(const T*, std::size_t, T*);                                                     \
    template void softmax_vjp(const T*, const T*, T*, std::size_t);                                                    \
    template void log_softmax_jvp(const T*, const T*, T*, std::size_t);                                                \
    template void log_softmax_vjp(const T*, const T*, T*, std::size_t);                                                \
    template void softmax_hvp(const T*, const T*, const T*, T*, std::size_t);
SMX_PLAIN(float)
SMX_PLAIN(double)

} // namespace plain
