// Single instructions that C++ has no word for.
#pragma once

namespace mednext_ops::cuda {

#ifndef MEDNEXT_OPS_EMULATED

// A power of two by the special function unit: an error of 2^-22, at a quarter of an instruction's rate. Subnormal
// arguments and results count as zero; emulated it is exact, but for that.
__device__ inline float exp2_approximate(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// max(value, 0) that keeps NaN.
__device__ inline float positive_part(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float result;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(value));
    return result;
#else
    return value < 0.0f ? 0.0f : value;
#endif
}

#else

inline float exp2_approximate(float value) {
    const auto flushed = [](float any) { return std::fpclassify(any) == FP_SUBNORMAL ? 0.0f : any; };
    return flushed(std::exp2(flushed(value)));
}

inline float positive_part(float value) {
    return value < 0.0f ? 0.0f : value;
}

#endif

}  // namespace mednext_ops::cuda
