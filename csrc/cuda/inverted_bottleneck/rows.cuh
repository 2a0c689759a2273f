// How the kernels around products share rows: a warp takes a run of one, its lanes vectors of eight elements next to
// each other.
#pragma once

#include <climits>
#include <cstdint>

#include "../common/launch.h"
#include "../common/scalar_types.cuh"
#include "../common/warp.h"
#include "products.h"

namespace mednext_ops::cuda::inverted_bottleneck {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kBlocksPerProcessor = 4;
constexpr int kVector = kAlignedVoxels;
constexpr int kSteps = 4;
constexpr int kStep = kWarpSize * kVector;
constexpr int kRun = kSteps * kStep;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

inline bool is_aligned(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

// Launches `Kernel` with `units` warps, or threads: numbers of 32 bits, which the kernels divide.
template <auto Kernel, typename Problem>
cudaError_t launch_units(std::int64_t units, int units_of_block, const Problem& problem, cudaStream_t stream) {
    if (units == 0) return cudaSuccess;
    if (units > INT_MAX) return cudaErrorInvalidConfiguration;
    const LaunchShape shape{static_cast<unsigned>(ceil_div(units, units_of_block)), kThreads, 0, stream};
    return launch<Kernel>(shape, problem);
}

__device__ inline unsigned warp_number() {
    return blockIdx.x * kWarps + threadIdx.x / kWarpSize;
}

// Eight elements as floats, the first `count` of them there. Only where all lie aligned, to 16 bytes, they come at
// once.
template <typename T, bool Aligned>
__device__ void read(const T* from, int count, float (&values)[kVector]) {
    if constexpr (Aligned) {
        constexpr int kElements = 16 / sizeof(T);
#pragma unroll
        for (int begin = 0; begin < kVector; begin += kElements) {
            const auto vector = *reinterpret_cast<const Vector<T, kElements>*>(from + begin);
#pragma unroll
            for (int i = 0; i < kElements; ++i) values[begin + i] = to_float(vector.element[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] = i < count ? to_float(from[i]) : 0.0f;
    }
}

template <typename T, bool Aligned>
__device__ void write(T* to, int count, const float (&values)[kVector]) {
    if constexpr (Aligned) {
        constexpr int kElements = 16 / sizeof(T);
#pragma unroll
        for (int begin = 0; begin < kVector; begin += kElements) {
            Vector<T, kElements> vector;
#pragma unroll
            for (int i = 0; i < kElements; ++i) vector.element[i] = from_float<T>(values[begin + i]);
            *reinterpret_cast<Vector<T, kElements>*>(to + begin) = vector;
        }
    } else {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            if (i < count) to[i] = from_float<T>(values[i]);
        }
    }
}

__device__ inline int elements_left(std::int64_t end, std::int64_t begin) {
    return end - begin < kVector ? static_cast<int>(end - begin) : kVector;
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
