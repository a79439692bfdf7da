// SPDX-License-Identifier: BSL-1.0
// odr_b.cpp: the second translation unit of the link test, see odr_a.cpp. Every header stands here twice, every
// function is called for every type, and every result is compared with its closed form.
//
// Hardly anything of the standard library: its inline functions would be shared by both units, and then a copy of them
// compiled for the wrong CPU would be found here, not one of ours.
#include <smx/jacobian.hpp>
#include <smx/row.hpp>
#include <smx/smx.hpp>
#include <smx/softmax.hpp>

#include <smx/jacobian.hpp>
#include <smx/row.hpp>
#include <smx/smx.hpp>
#include <smx/softmax.hpp>

#include <array>     // array
#include <cstddef>   // size_t
#include <cstdio>    // printf
#include <limits>    // numeric_limits
#include <stdexcept> // invalid_argument

// What the CPU must have to run this unit: 1 to 4, as in -march=x86-64-v3. Data, not code.
#if defined(__AVX512F__)
extern const int odr_b_level;
const int odr_b_level = 4;
#elif defined(__AVX2__)
extern const int odr_b_level;
const int odr_b_level = 3;
#elif defined(__SSE4_2__)
extern const int odr_b_level;
const int odr_b_level = 2;
#else
extern const int odr_b_level;
const int odr_b_level = 1;
#endif

int odr_b();

namespace {

constexpr std::size_t n = 19; // more than any vector has lanes, and a tail

template <class T>
bool near(const T& computed, const T& exact)
{
    constexpr T epsilon = std::numeric_limits<T>::epsilon(); // a constant: no call
    const T difference = computed < exact ? exact - computed : computed - exact;
    return difference <= 16 * epsilon * (exact < 0 ? -exact : exact);
}

template <class T>
bool near(const T (&computed)[n], T at_even, T at_odd)
{
    for (std::size_t i = 0; i < n; ++i)
        if (!near(computed[i], i % 2 == 0 ? at_even : at_odd))
            return false;
    return true;
}

template <class T>
bool near(const T (&matrix)[n * n], T diagonal_even, T diagonal_odd, const T (&off_diagonal)[2][2])
{
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < n; ++j)
            if (!near(matrix[i * n + j], i != j       ? off_diagonal[i % 2][j % 2]
                                         : i % 2 == 0 ? diagonal_even
                                                      : diagonal_odd))
                return false;
    return true;
}

template <class T>
void copy(const T* from, T* to, std::size_t count)
{
    for (std::size_t i = 0; i < count; ++i)
        to[i] = from[i];
}

template <class T>
bool refuses(const T (&row)[n], T (&out)[n])
{
    try {
        smx::softmax(row, out, {.temperature = T(0)});
    } catch (const std::invalid_argument&) {
        return true;
    }
    return false;
}

int failures;

void expect(bool right, const char* what, std::size_t size)
{
    if (!right) {
        std::printf("wrong: %s, scalar of %zu bytes\n", what, size);
        ++failures;
    }
}

// logits 0, 1, 0, 1, ..., 0: ten times 0, nine times 1. With S = 10 + 9 e, p is a = 1 / S or b = e / S.
template <class T>
void check()
{
    const T e = static_cast<T>(2.718281828459045235360287471352662498L);
    const T log_sum = static_cast<T>(3.539930866548383062823676072903546748L);
    T logits[n], probs[n], out[n], even[n], odd[n], jacobian[n * n];
    bool mask[n];
    for (std::size_t i = 0; i < n; ++i) {
        logits[i] = static_cast<T>(i % 2);
        even[i] = static_cast<T>(1 - i % 2);
        odd[i] = static_cast<T>(i % 2);
        mask[i] = i % 2 == 0;
    }
    const T a = 1 / (10 + 9 * e), b = e / (10 + 9 * e);

    smx::softmax(logits, probs);
    expect(near(probs, a, b), "softmax", sizeof(T));
    smx::softmax(logits, out, {.temperature = T(4), .mask = mask});
    expect(near(out, T(0.1L), T(0)), "softmax, masked", sizeof(T));
    smx::log_softmax(logits, out);
    expect(near(out, -log_sum, 1 - log_sum), "log_softmax", sizeof(T));
    expect(near(smx::logsumexp(logits), log_sum), "logsumexp", sizeof(T));
    expect(near(smx::logaddexp(log_sum, log_sum), log_sum + T(0.693147180559945309417232121458176568L)), "logaddexp",
           sizeof(T));

    std::array<T, n> row;
    copy(logits, row.data(), n);
    copy(smx::softmax(row).data(), out, n);
    expect(near(out, a, b), "softmax, by value", sizeof(T));
    copy(smx::log_softmax(row).data(), out, n);
    expect(near(out, -log_sum, 1 - log_sum), "log_softmax, by value", sizeof(T));

    smx::softmax_jacobian(probs, jacobian);
    expect(near(jacobian, a * (9 * a + 9 * b), b * (10 * a + 8 * b), {{-a * a, -a * b}, {-b * a, -b * b}}),
           "softmax_jacobian", sizeof(T));
    copy(probs, row.data(), n);
    copy(smx::softmax_jacobian(row).data()->data(), jacobian, n * n);
    expect(near(jacobian, a * (9 * a + 9 * b), b * (10 * a + 8 * b), {{-a * a, -a * b}, {-b * a, -b * b}}),
           "softmax_jacobian, by value", sizeof(T));
    smx::log_softmax_jacobian(probs, jacobian);
    expect(near(jacobian, 9 * a + 9 * b, 10 * a + 8 * b, {{-a, -b}, {-a, -b}}), "log_softmax_jacobian", sizeof(T));
    smx::softmax_jvp(probs, odd, out);
    expect(near(out, -a * 9 * b, b * 10 * a), "softmax_jvp", sizeof(T));
    smx::softmax_vjp(probs, even, out);
    expect(near(out, a * 9 * b, -b * 10 * a), "softmax_vjp", sizeof(T));
    smx::log_softmax_jvp(probs, odd, out);
    expect(near(out, -9 * b, 10 * a), "log_softmax_jvp", sizeof(T));
    smx::log_softmax_vjp(probs, odd, out); // u_i (1 - p_i) - p_i sum of the other u
    expect(near(out, -9 * a, 10 * a + 8 * b - 8 * b), "log_softmax_vjp", sizeof(T));
    // u = v = odd: centred, they are -9 b and 10 a; of the squares, J takes the difference
    smx::softmax_hvp(probs, odd, odd, out);
    const T squares = (10 * a - 9 * b) * (10 * a + 9 * b);
    expect(near(out, -a * 9 * b * squares, b * 10 * a * squares), "softmax_hvp", sizeof(T));
    expect(refuses(logits, out), "the check of a temperature", sizeof(T));
}

} // namespace

int odr_b()
{
    failures = 0;
    check<float>();
    check<double>();
    check<long double>();
    return failures;
}
