// The special function unit's powers of two and reciprocals: an error of 2^-22, a quarter of an instruction's rate.
//
// Subnormal arguments and results count as zero. Emulated they are exact, but for that.
#pragma once

namespace mednext_ops::cuda {

#ifndef MEDNEXT_OPS_EMULATED

__device__ inline float exp2_approximate(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

__device__ inline float reciprocal_approximate(float value) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

#else

inline float flushed(float value) {
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

inline float exp2_approximate(float value) {
    return flushed(std::exp2(flushed(value)));
}

inline float reciprocal_approximate(float value) {
    return flushed(1.0f / flushed(value));
}

#endif

}  // namespace mednext_ops::cuda
