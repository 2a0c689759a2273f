// The exact GELU, x * Phi(x), and its derivative, for a register of floats.
//
// Phi is the normal distribution's cumulative function: Phi(x) = (1 + erf(x / sqrt 2)) / 2.
#pragma once

#include "vector.h"

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {
namespace {

template <int kCount>
MEDNEXT_OPS_INLINE Vector polynomial(const float (&coefficients)[kCount], Vector x) {
    Vector value = broadcast(coefficients[kCount - 1]);
#pragma GCC unroll 8
    for (int i = kCount - 2; i >= 0; --i) value = fma(value, x, broadcast(coefficients[i]));
    return value;
}

// exp(-(square + low) / 2) for square >= 0 and a tiny low: 2^n times a polynomial on half an octave around zero, a
// relative minimax fit (Lawson's weights) of error 3.1e-9 whose first two coefficients are one and its argument.
MEDNEXT_OPS_INLINE Vector bell_of(Vector square, Vector low) {
    // Powers of -1/2, exact, are multiplied in: the argument is never halved.
    constexpr float kCoefficients[] = {1.0f,
                                       -0.5f,
                                       0.4999999343f / 4,
                                       -0.166665204f / 8,
                                       0.04166839079f / 16,
                                       -0.008368745136f / 32,
                                       0.001381454011f / 64};
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves a whole number in the lowest bits
    const Vector shifted = fma(square, broadcast(-0.721347520444f), broadcast(kRound));
    const Vector whole = shifted - kRound;
    // 2 ln 2 in two parts: the first one has few enough digits for an exact product.
    const Vector rest = fma(whole, broadcast(2.85721354e-6f), fma(whole, broadcast(1.38629150390625f), square)) + low;
    return times_power_of_two(polynomial(kCoefficients, rest), whole);
}

struct Normal {
    Vector cumulative;  // Phi(x)
    Vector bell;        // exp(-x^2 / 2)
};

// Phi(-a) = exp(-a^2 / 2) M(a) for a >= 0, where M is Mills' ratio over sqrt(2 pi): smooth, between 1/2 and 0.03. M is
// a rational function here, fitted in 40 digits to a relative error of 5.9e-9 on [0, 14] (Lawson's weights on the
// linearised problem). Nothing cancels: all coefficients are positive, and the lower tail keeps its digits, unlike in
// (1 + erf) / 2.
//
// x must be within +-kFarthest, where the tail is less than any float, or not a number.
constexpr float kFarthest = 14.5f;

MEDNEXT_OPS_INLINE Normal normal(Vector x) {
    constexpr float kAbove[] = {0.500000002649f, 0.437198362398f, 0.182417314971f, 0.0403559237788f, 0.00407468347464f};
    constexpr float kBelow[] = {
        1.0f, 1.67228166755f, 1.19911793703f, 0.467310194756f, 0.101164104889f, 0.0102135882379f};
    const Vector a = absolute(x);
    // Rounded as a whole, 100 / 2 would cost the exponential five bits.
    const auto [square, low] = exact_square(a);
    const Vector bell = bell_of(square, low);
    const Vector tail = bell * quotient(polynomial(kAbove, a), polynomial(kBelow, a));
    return {select(x < Vector{}, tail, 1.0f - tail), bell};
}

MEDNEXT_OPS_INLINE Vector gelu(Vector x) {
    return x * normal(within(x, kFarthest)).cumulative;
}

struct Activation {
    Vector value;
    Vector slope;  // Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)
};

MEDNEXT_OPS_INLINE Activation gelu_with_slope(Vector x) {
    const Vector near = within(x, kFarthest);
    const auto [cumulative, bell] = normal(near);
    return {x * cumulative, fma(near, bell * 0.398942280401f, cumulative)};
}

}  // namespace
}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
