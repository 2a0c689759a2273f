// GELU and its derivative: by erf in float, and cheaper for values that end in 16 bits.
//
// With Phi the normal distribution, phi its density and z = |x|,
//
//     gelu(x)  = x Phi(x)              = max(x, 0) - z Phi(-z)
//     gelu'(x) = Phi(x) + x phi(x)
//     Phi(-z)  = 2^P(z)
//
// The logarithm of Phi(-z) is nearly a parabola: a polynomial of degree 5 or 6 gives Phi(-z) with a small *relative*
// error, by one instruction of the special function unit and no division. So the left tail, where gelu is the small
// rest of a cancellation, is right as well:
//
//                            degree   fitted for z up to   relative error   half a unit in the last place   beyond
//     bfloat16               8        13.2                 2^-12.9          2^-9 to 2^-8                    underflows
//     bfloat16, a summand    5        5.0                  2^-12.6          2^-9 to 2^-8                    5e-10
//     float16                6        5.5                  2^-15.3          2^-12 to 2^-11                  1e-11
//
// What lies beyond is below the smallest fp16, and in bf16 matters to nobody who adds it to values around one: products
// of matrices take the cheaper polynomial.
//
// The hardware's tanh would cost as much, but 1 + tanh keeps an absolute error of 2^-11: one percent of gelu(-2). The
// form of Abramowitz & Stegun 7.1.26, which has a reciprocal too, took 17 instructions where this takes 9 (bfloat16, a
// summand).
//
// NaN stays NaN. Infinities give the limits, but the slope there is NaN (infinity times zero), as PyTorch's is, and so
// is gelu(-infinity) in float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "approximate.cuh"

namespace mednext_ops::cuda {

namespace detail {

constexpr float kRootOfHalf = 0.707106781187f;

// Where Phi(-z) is below every float.
constexpr float kTailUnderflow = 16.0f;

// What normal_tail multiplies with, so that the last of what bfloat16 has is not flushed to zero before z comes to it.
template <typename T, bool Summand>
constexpr float kTailScale = std::is_same_v<T, __nv_bfloat16> && !Summand ? 0x1p24f : 1.0f;

// kTailScale * Phi(-z) for 0 <= z <= kTailUnderflow.
template <typename T, bool Summand>
__device__ inline float normal_tail(float z) {
    float logarithm;
    if constexpr (std::is_same_v<T, __nv_bfloat16> && !Summand) {
        logarithm = fmaf(2.71626904e-08f, z, -1.73123622e-06f);
        logarithm = fmaf(logarithm, z, 4.75494759e-05f);
        logarithm = fmaf(logarithm, z, -0.000743483414f);
        logarithm = fmaf(logarithm, z, 0.0074162663f);
        logarithm = fmaf(logarithm, z, -0.0507947971f);
        logarithm = fmaf(logarithm, z, -0.462790444f);
        logarithm = fmaf(logarithm, z, -1.14903547f);
        logarithm = fmaf(logarithm, z, 24.0f - 1.00018384f);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        logarithm = fmaf(-0.000269918856f, z, 0.00529736251f);
        logarithm = fmaf(logarithm, z, -0.0463194025f);
        logarithm = fmaf(logarithm, z, -0.466907337f);
        logarithm = fmaf(logarithm, z, -1.14778898f);
        logarithm = fmaf(logarithm, z, -1.00022833f);
    } else {
        static_assert(std::is_same_v<T, __half>, "the polynomials are for the rounding of 16 bits");
        logarithm = fmaf(2.61537448e-05f, z, -0.000660981162f);
        logarithm = fmaf(logarithm, z, 0.00748830984f);
        logarithm = fmaf(logarithm, z, -0.0519704064f);
        logarithm = fmaf(logarithm, z, -0.460329475f);
        logarithm = fmaf(logarithm, z, -1.150584f);
        logarithm = fmaf(logarithm, z, -1.00003606f);
    }
    return exp2_approximate(logarithm);
}

// gelu(x) from |x| and the scaled tail.
template <typename T, bool Summand>
__device__ inline float gelu_of(float x, float z, float tail) {
    constexpr float kScale = kTailScale<T, Summand>;
    if constexpr (kScale == 1.0f) return fmaf(-z, tail, positive_part(x));
    return fmaf(-z * tail, 1.0f / kScale, positive_part(x));
}

}  // namespace detail

// For a result that is rounded to T, and with Summand, then added to others.
template <typename T, bool Summand = false>
__device__ inline float gelu(float x) {
    if constexpr (std::is_same_v<T, float>) {  // without the cancellation of 1 + erf in the left tail
        return 0.5f * x * erfcf(-x * detail::kRootOfHalf);
    } else {
        const float z = fminf(fabsf(x), detail::kTailUnderflow);
        return detail::gelu_of<T, Summand>(x, z, detail::normal_tail<T, Summand>(z));
    }
}

// x becomes gelu(x); returns the slope. As above.
template <typename T, bool Summand = false>
__device__ inline float gelu_with_slope(float& x) {
    if constexpr (std::is_same_v<T, float>) {
        constexpr float kDensityAtZero = 0.398942280401f;
        const float probability = 0.5f * erfcf(-x * detail::kRootOfHalf);
        const float slope = fmaf(x * kDensityAtZero, expf(-0.5f * x * x), probability);
        x *= probability;
        return slope;
    } else {
        constexpr float kHalfLog2E = 0.721347520444f;
        constexpr float kUnscale = 1.0f / detail::kTailScale<T, Summand>;
        constexpr float kLog2DensityAtZero = -1.32574806473f;
        const float z = fminf(fabsf(x), detail::kTailUnderflow);
        const float tail = detail::normal_tail<T, Summand>(z);
        const float density = exp2_approximate(fmaf(-kHalfLog2E * z, z, kLog2DensityAtZero));
        const float below = kUnscale * tail;  // 1 - below is one instruction where nothing is scaled, and else fused
        const float slope = fmaf(x, density, x < 0.0f ? below : 1.0f - below);
        x = detail::gelu_of<T, Summand>(x, z, tail);
        return slope;
    }
}

}  // namespace mednext_ops::cuda
