// GELU and its derivative: exact in float, and for values that end in 16 bits, two at a time.
//
// The latter:
// With Phi the normal distribution, phi its density and z = |x|,
//
//     gelu(x)  = x Phi(x)          = max(x, 0) - z Phi(-z)
//     gelu'(x) = Phi(x) + x phi(x)
//     Phi(-z)  = exp(-z^2 / 2) (c1 t + c2 t^2 + ... + c5 t^5),    t = 1 / (1 + p z)
//
// the form of Abramowitz & Stegun 7.1.26, fitted for the least *relative* error of Phi(-z): 2^-15.1 for z up to 14,
// where it underflows. So the left tail, where gelu is the small rest of a cancellation, is right as well: half a unit
// in the last place is 2^-12 and more in fp16, 2^-9 in bf16. The hardware's tanh would be cheaper by two instructions,
// but 1 + tanh keeps an absolute error of 2^-11: one percent of gelu(-2).
//
// The special function unit has a quarter of an instruction's rate: two values share a reciprocal, 1 / a = b (1 / a b),
// and the exponential serves Phi and phi. NaN stays NaN and does not reach the other value; infinities give what erf
// gives.
#pragma once

#include "approximate.cuh"

namespace mednext_ops::cuda {

namespace detail {

struct NormalTail {
    float z;            // |x|, at most 14
    float exponential;  // exp(-z^2 / 2)
    float probability;  // Phi(-z)
};

__device__ inline void normal_tails(float x0, float x1, NormalTail (&tails)[2]) {
    constexpr float kUnderflow = 14.0f;
    constexpr float kP = 0.376498502f;
    constexpr float kRootOfHalfLog2E = 0.849321800288f;  // exp(-z^2 / 2) = 2^-(k z)^2
    tails[0].z = fminf(fabsf(x0), kUnderflow);
    tails[1].z = fminf(fabsf(x1), kUnderflow);
    const float denominator[2] = {fmaf(kP, tails[0].z, 1.0f), fmaf(kP, tails[1].z, 1.0f)};
    const float both = reciprocal_approximate(denominator[0] * denominator[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float t = both * denominator[1 - i];
        const float root = kRootOfHalfLog2E * tails[i].z;
        tails[i].exponential = exp2_approximate(-root * root);
        float series = fmaf(-0.0909652377f, t, 0.197984016f);
        series = fmaf(series, t, 0.0852761463f);
        series = fmaf(series, t, 0.15800588f);
        series = fmaf(series, t, 0.149685019f);
        tails[i].probability = tails[i].exponential * t * series;
    }
}

__device__ inline float gelu_of(float x, const NormalTail& tail) {
    const float positive = fmaf(0.5f, fabsf(x), 0.5f * x);  // max(x, 0) that keeps NaN
    return fmaf(-tail.z, tail.probability, positive);
}

__device__ inline float normal_probability(float x, const NormalTail& tail) {
    return x < 0.0f ? tail.probability : 1.0f - tail.probability;
}

}  // namespace detail

__device__ inline void gelu(float& x0, float& x1) {
    detail::NormalTail tails[2];
    detail::normal_tails(x0, x1, tails);
    x0 = detail::gelu_of(x0, tails[0]);
    x1 = detail::gelu_of(x1, tails[1]);
}

// x becomes gelu(x), slope becomes gelu'(x).
__device__ inline void gelu_with_slope(float& x0, float& x1, float& slope0, float& slope1) {
    constexpr float kDensity = 0.398942280401f;  // phi(0)
    detail::NormalTail tails[2];
    detail::normal_tails(x0, x1, tails);
    slope0 = fmaf(x0 * kDensity, tails[0].exponential, detail::normal_probability(x0, tails[0]));
    slope1 = fmaf(x1 * kDensity, tails[1].exponential, detail::normal_probability(x1, tails[1]));
    x0 = detail::gelu_of(x0, tails[0]);
    x1 = detail::gelu_of(x1, tails[1]);
}

// x Phi(x), by erf, without the cancellation of 1 + erf in the left tail.
__device__ inline float gelu_exact(float x) {
    constexpr float kRootOfHalf = 0.707106781187f;
    return 0.5f * x * erfcf(-x * kRootOfHalf);
}

__device__ inline float gelu_slope_exact(float x) {
    constexpr float kRootOfHalf = 0.707106781187f;
    constexpr float kDensity = 0.398942280401f;  // phi(0)
    return fmaf(x * kDensity, expf(-0.5f * x * x), 0.5f * erfcf(-x * kRootOfHalf));
}

}  // namespace mednext_ops::cuda
