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

// exp(x + low) for x <= 0 and a tiny low: 2^n times a Taylor polynomial on half an octave around zero. Below -87 it
// stays at exp(-87).
MEDNEXT_OPS_INLINE Vector exp_of_negative(Vector x, Vector low) {
    constexpr float kInverseFactorials[] = {1.0f, 1.0f, 0.5f, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves a whole number in the lowest bits
    x = x < broadcast(-87.0f) ? broadcast(-87.0f) : x;
    const Vector shifted = fma(x + low, broadcast(1.44269504089f), broadcast(kRound));
    const Vector whole = shifted - kRound;
    // ln 2 in two parts: the first one has few enough digits for an exact product.
    const Vector rest = fma(whole, broadcast(-1.42860677e-6f), fma(whole, broadcast(-0.693145751953125f), x)) + low;
    const Vector scale = (Vector)(((Ints)shifted << 23) + 0x3f800000);
    return polynomial(kInverseFactorials, rest) * scale;
}

struct Normal {
    Vector cumulative;  // Phi(x)
    Vector bell;        // exp(-x^2 / 2)
};

// Phi(-a) = exp(-a^2 / 2) M(a) for a >= 0, where M is Mills' ratio over sqrt(2 pi): smooth, between 1/2 and 0.03. M is
// a rational function here, fitted in 40 digits to a relative error of 5.9e-9 on [0, 14] (Lawson's weights on the
// linearised problem). Nothing cancels: all coefficients are positive, and the lower tail keeps its digits, unlike in
// (1 + erf) / 2.
MEDNEXT_OPS_INLINE Normal normal(Vector x) {
    constexpr float kAbove[] = {0.500000002649f, 0.437198362398f, 0.182417314971f, 0.0403559237788f, 0.00407468347464f};
    constexpr float kBelow[] = {
        1.0f, 1.67228166755f, 1.19911793703f, 0.467310194756f, 0.101164104889f, 0.0102135882379f};
    const Vector a = absolute(x);
    // a^2 in two parts, the first of them exact: rounded as a whole, 100 / 2 would cost the exponential five bits.
    const Vector high = (Vector)((Words)a & 0xfffff000u);
    const Vector bell = exp_of_negative(high * high * -0.5f, (a - high) * (a + high) * -0.5f);
    const Vector within = minimum(a, broadcast(14.0f));
    const Vector ratio = polynomial(kAbove, within) / polynomial(kBelow, within);
    const Vector tail = select(a > broadcast(13.5f), Vector{}, bell * ratio);
    return {select(x < Vector{}, tail, 1.0f - tail), bell};
}

MEDNEXT_OPS_INLINE Vector gelu(Vector x) {
    return x * normal(x).cumulative;
}

struct Activation {
    Vector value;
    Vector slope;  // Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)
};

MEDNEXT_OPS_INLINE Activation gelu_with_slope(Vector x) {
    const auto [cumulative, bell] = normal(x);
    // Beyond 13 the second term is below 1e-36; an infinite x times a density of zero would be NaN.
    const Vector slope = fma(x, bell * 0.398942280401f, cumulative);
    return {x * cumulative, select(absolute(x) > broadcast(13.0f), cumulative, slope)};
}

}  // namespace
}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
