// The element types of a tensor on the GPU, how they are read, and how a run-time type becomes a template argument.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "scalar_type.h"

namespace mednext_ops::cuda {

__device__ inline float to_float(float value) {
    return value;
}

__device__ inline float to_float(__half value) {
    return __half2float(value);
}

__device__ inline float to_float(__nv_bfloat16 value) {
    return __bfloat162float(value);
}

// Rounded to nearest, ties to even.
template <typename T>
__device__ inline T from_float(float value) {
    if constexpr (std::is_same_v<T, __half>) {
        return __float2half_rn(value);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        return __float2bfloat16_rn(value);
    } else {
        return value;
    }
}

// Two 16-bit elements in one register, the first in its lower half.
template <typename T>
__device__ inline unsigned pack(T low, T high) {
    static_assert(sizeof(T) == 2, "two elements of 16 bits make a register");
    std::uint16_t bits[2];
    std::memcpy(&bits[0], &low, 2);
    std::memcpy(&bits[1], &high, 2);
    return static_cast<unsigned>(bits[1]) << 16 | bits[0];
}

// The two elements of a register as float.
template <typename T>
__device__ inline void unpack(unsigned pair, float& low, float& high) {
    static_assert(sizeof(T) == 2, "two elements of 16 bits make a register");
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {  // a float without its lower half
        low = __uint_as_float(pair << 16);
        high = __uint_as_float(pair & 0xffff0000u);
    } else {
        const std::uint16_t bits[2] = {static_cast<std::uint16_t>(pair), static_cast<std::uint16_t>(pair >> 16)};
        T elements[2];
        std::memcpy(elements, bits, 4);
        low = to_float(elements[0]);
        high = to_float(elements[1]);
    }
}

// Two floats rounded to a register of two elements, by one instruction where there is one (sm_80).
template <typename T>
__device__ inline unsigned round_pair(float low, float high) {
    static_assert(sizeof(T) == 2, "two elements of 16 bits make a register");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned pair;
    if constexpr (std::is_same_v<T, __half>) {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    }
    return pair;
#else
    return pack(from_float<T>(low), from_float<T>(high));
#endif
}

// `Size` elements that are loaded by one instruction; their address is a multiple of their size together.
template <typename T, int Size>
struct alignas(sizeof(T) * Size) Vector {
    T element[Size];
};

// Calls `function` with a null pointer to the element type that `type` names.
template <typename Function>
decltype(auto) with_scalar_type(ScalarType type, Function&& function) {
    switch (type) {
        case ScalarType::float16:
            return std::forward<Function>(function)(static_cast<const __half*>(nullptr));
        case ScalarType::bfloat16:
            return std::forward<Function>(function)(static_cast<const __nv_bfloat16*>(nullptr));
        case ScalarType::float32:
            break;
    }
    return std::forward<Function>(function)(static_cast<const float*>(nullptr));
}

}  // namespace mednext_ops::cuda
