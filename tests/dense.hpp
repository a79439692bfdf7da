// SPDX-License-Identifier: BSL-1.0
// dense.hpp: the Jacobian as a dense matrix in the type that T is judged in, and the linear algebra that checks an
// operator: products, Jacobi's eigenvalues. Shares no line with the library; see oracle.hpp for its rules.
#pragma once
#include "oracle.hpp"

#include <algorithm>
#include <cstddef>
#include <math.h> // ::sqrtl, ::logl
#include <type_traits>
#include <vector>

#if defined(__clang__)
#pragma float_control(precise, on, push)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("no-fast-math")
#endif

namespace oracle {

#if LDBL_MANT_DIG != 113
extern "C" { // libquadmath
quad sqrtq(quad);
quad logq(quad);
}
inline quad root_of(quad x) { return sqrtq(x); }
inline quad log_of(quad x) { return logq(x); }
#endif
inline long double root_of(long double x) { return ::sqrtl(x); }
inline long double log_of(long double x) { return ::logl(x); }

template <class W>
using matrix = std::vector<W>; // n * n, row-major

template <class W>
matrix<W> product(const matrix<W>& a, const matrix<W>& b, std::size_t n)
{
    matrix<W> out(n * n);
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t k = 0; k < n; ++k)
            for (std::size_t j = 0; j < n; ++j)
                out[i * n + j] += a[i * n + k] * b[k * n + j];
    return out;
}

template <class W>
matrix<W> transposed(const matrix<W>& a, std::size_t n)
{
    matrix<W> out(n * n);
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < n; ++j)
            out[i * n + j] = a[j * n + i];
    return out;
}

// Eigenvalues of a symmetric matrix, ascending, by cyclic Jacobi rotations.
template <class W>
std::vector<W> eigenvalues(matrix<W> a, std::size_t n)
{
    const W small = power_of_two(W(1), std::is_same_v<W, quad> ? -104 : -58); // of the norm, above the rounding
    W total = 0;
    for (const W& each : a)
        total += each * each;
    for (int sweep = 0; sweep < 60; ++sweep) {
        W off = 0;
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t j = 0; j < i; ++j)
                off += a[i * n + j] * a[i * n + j];
        if (!(off > total * small * small))
            break;
        for (std::size_t p = 0; p < n; ++p)
            for (std::size_t q = p + 1; q < n; ++q) {
                const W apq = a[p * n + q];
                if (apq == W(0))
                    continue;
                const W theta = (a[q * n + q] - a[p * n + p]) / (W(2) * apq);
                const W t = (theta < W(0) ? W(-1) : W(1)) / (magnitude(theta) + root_of(theta * theta + W(1)));
                const W c = W(1) / root_of(t * t + W(1)), s = t * c;
                for (std::size_t k = 0; k < n; ++k) {
                    const W x = a[k * n + p], y = a[k * n + q];
                    a[k * n + p] = c * x - s * y;
                    a[k * n + q] = s * x + c * y;
                }
                for (std::size_t k = 0; k < n; ++k) {
                    const W x = a[p * n + k], y = a[q * n + k];
                    a[p * n + k] = c * x - s * y;
                    a[q * n + k] = s * x + c * y;
                }
            }
    }
    std::vector<W> out(n);
    for (std::size_t i = 0; i < n; ++i)
        out[i] = a[i * n + i];
    std::sort(out.begin(), out.end());
    return out;
}

// J of probabilities as given, and what an operator says of it.
template <class T>
class operator_of_row {
public:
    using W = wide<T>;

    operator_of_row(const T* probs, std::size_t n) : p(probs, probs + n)
    {
        rest = sums_of_others(p);
        for (std::size_t i = 0; i < n; ++i) {
            s += p[i];
            root.push_back(root_of(p[i]));
            support += p[i] > W(0) ? 1 : 0;
        }
    }

    std::size_t size() const { return p.size(); }
    W entry(std::size_t i, std::size_t j) const { return i == j ? p[i] * rest[i] : -(p[i] * p[j]); }

    matrix<W> dense() const
    {
        matrix<W> out;
        for (std::size_t i = 0; i < size(); ++i)
            for (std::size_t j = 0; j < size(); ++j)
                out.push_back(entry(i, j));
        return out;
    }

    W trace() const
    {
        W out = 0;
        for (std::size_t i = 0; i < size(); ++i)
            out += p[i] * rest[i];
        return out;
    }

    W frobenius_norm() const
    {
        W out = 0;
        for (std::size_t i = 0; i < size(); ++i)
            for (std::size_t j = 0; j < size(); ++j)
                out += entry(i, j) * entry(i, j);
        return root_of(out);
    }

    // |b - (J + shift I) x| / (|J + shift I| |x| + |b|), maximum norms; the scale comes back too
    judged<W> backward_error(W shift, const std::vector<W>& b, const std::vector<W>& x) const
    {
        std::vector<W> px(size());
        for (std::size_t i = 0; i < size(); ++i)
            px[i] = p[i] * x[i];
        const std::vector<W> dots = sums_of_others(px);
        W residual = 0, norm = 0, largest_x = 0, largest_b = 0;
        for (std::size_t i = 0; i < size(); ++i) {
            residual = larger(residual, magnitude(b[i] - (p[i] * (rest[i] * x[i] - dots[i]) + shift * x[i])));
            norm = larger(norm, W(2) * p[i] * rest[i] + shift);
            largest_x = larger(largest_x, magnitude(x[i]));
            largest_b = larger(largest_b, magnitude(b[i]));
        }
        return {residual, norm * largest_x + largest_b};
    }

    std::vector<W> pseudo_inverse(const std::vector<W>& b) const
    {
        std::vector<W> x(size());
        if (support < 2)
            return x;
        const std::vector<W> c = centred_on_support(b);
        for (std::size_t i = 0; i < size(); ++i)
            if (p[i] > W(0))
                x[i] = c[i] / (p[i] * s);
        return centred_on_support(x);
    }

    std::vector<W> factor(const std::vector<W>& z) const // B z
    {
        std::vector<W> wz(size()), out(size());
        for (std::size_t i = 0; i < size(); ++i)
            wz[i] = root[i] * z[i];
        const std::vector<W> dots = sums_of_others(wz);
        for (std::size_t i = 0; i < size(); ++i)
            if (p[i] > W(0))
                out[i] = root[i] * (rest[i] * z[i] - root[i] * dots[i]) / root_of(s);
        return out;
    }

    std::vector<W> factor_transposed(const std::vector<W>& v) const // B^T v
    {
        std::vector<W> pv(size()), out(size());
        for (std::size_t i = 0; i < size(); ++i)
            pv[i] = p[i] * v[i];
        const std::vector<W> dots = sums_of_others(pv);
        for (std::size_t i = 0; i < size(); ++i)
            if (p[i] > W(0))
                out[i] = root[i] * (rest[i] * v[i] - dots[i]) / root_of(s);
        return out;
    }

    W log_pseudo_determinant() const
    {
        if (support < 2)
            return 0;
        W out = log_of(W(support)) + W(support - 2) * log_of(s);
        for (const W& each : p)
            if (each > W(0))
                out += log_of(each);
        return out;
    }

    W sum_of_logs() const // sum |log p| + log n
    {
        W out = size() == 0 ? W(0) : log_of(W(size()));
        for (const W& each : p)
            if (each > W(0))
                out += magnitude(log_of(each));
        return out;
    }

    std::vector<W> p, rest, root;
    W s = 0;
    int support = 0;

private:
    std::vector<W> centred_on_support(std::vector<W> x) const
    {
        W mean = 0;
        for (std::size_t i = 0; i < size(); ++i)
            mean += p[i] > W(0) ? x[i] : W(0);
        mean /= W(support);
        for (std::size_t i = 0; i < size(); ++i)
            x[i] = p[i] > W(0) ? x[i] - mean : W(0);
        return x;
    }
};

} // namespace oracle

#if defined(__clang__)
#pragma float_control(pop)
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
