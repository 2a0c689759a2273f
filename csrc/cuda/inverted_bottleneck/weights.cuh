// The parts that forward and backward share: weights and the affine map of the norm in shared memory.
#pragma once

#include <cstdint>

#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::inverted_bottleneck {

// A matrix [rows, columns] as operands of `T`, zeros where it is filled up; `scale` multiplies its columns if not null.
template <typename T>
__device__ inline void load_matrix(const Parameter& matrix, int rows, int columns, T* to, int filled_rows,
                                   int filled_columns, const float* scale = nullptr) {
    const int pitch = pitch_of(filled_columns);
    for (int i = threadIdx.x; i < filled_rows * filled_columns; i += blockDim.x) {
        const int row = i / filled_columns;
        const int column = i % filled_columns;
        const bool inside = row < rows && column < columns;
        float value = inside ? load_parameter(matrix, static_cast<std::int64_t>(row) * columns + column) : 0.0f;
        if (inside && scale != nullptr) value *= scale[column];
        to[row * pitch + column] = from_float<T>(value);
    }
}

// A bias or another vector, zeros where it is filled up or not given.
__device__ inline void load_vector(const Parameter& vector, int count, float* to, int filled) {
    for (int i = threadIdx.x; i < filled; i += blockDim.x) {
        to[i] = i < count && vector.data != nullptr ? load_parameter(vector, i) : 0.0f;
    }
}

// The norm of a channel of a sample: n = scale * x + shift, and without its weight and bias rstd * x + offset.
struct alignas(16) ChannelNorm {
    float scale, shift, rstd, offset;
};

__device__ inline ChannelNorm norm_of(const Bottleneck& p, std::int64_t sample, int channel) {
    const std::int64_t group = sample * p.groups + channel / (p.extents.channels / p.groups);
    const float mean = p.mean[group];
    const float rstd = p.rstd[group];
    const float scale = load_parameter(p.norm_weight, channel) * rstd;
    return {scale, fmaf(-mean, scale, load_parameter(p.norm_bias, channel)), rstd, -mean * rstd};
}

// Four matrices for ldmatrix out of a row-major one, its origin at `matrix`: lane 8 j + r names row r of the j-th.
//
//     rows_first:  j = 0  j = 2        else:  j = 0  j = 1
//                  j = 1  j = 3               j = 2  j = 3
__device__ inline int quarter(int pitch, bool rows_first) {
    const int lane = threadIdx.x % kWarpSize;
    const int lower = lane / 8 % 2 * 8;
    const int upper = lane / 16 * 8;
    return (lane % 8 + (rows_first ? lower : upper)) * pitch + (rows_first ? upper : lower);
}

template <typename T>
__device__ inline const T* quarter(const T* matrix, int pitch, bool rows_first) {
    return matrix + quarter(pitch, rows_first);
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
