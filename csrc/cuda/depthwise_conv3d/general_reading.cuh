// How the cores in float FMAs find and read elements: offsets of both formats, and gradients that are not written out
// yet.
#pragma once

#include <cstdint>

#include "../common/scalar_types.cuh"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// A voxel's place from its number in its volume. Divisions of 64 bits cost about 100 instructions: rarely needed.
__device__ inline Triple place_of(std::int64_t number, const Triple& size) {
    if (number >> 32 == 0 && size.h * size.w >> 32 == 0) {
        const auto n = static_cast<unsigned>(number);
        const auto h = static_cast<unsigned>(size.h);
        const auto w = static_cast<unsigned>(size.w);
        return {n / w / h, n / w % h, n % w};
    }
    return {number / size.w / size.h, number / size.w % size.h, number % size.w};
}

// Elements from one voxel to the next, and where a channel of a sample begins.
template <bool ChannelsLast>
__device__ inline std::int64_t voxel_step(std::int64_t channels) {
    return ChannelsLast ? channels : 1;
}

template <bool ChannelsLast>
__device__ inline std::int64_t channel_begin(std::int64_t sample, std::int64_t channel, std::int64_t channels,
                                             std::int64_t voxels) {
    return ChannelsLast ? sample * voxels * channels + channel : (sample * channels + channel) * voxels;
}

// One channel of a sample, read as it is or through the affine map of an AffineGradient.
template <typename T>
struct Channel {
    const T* __restrict__ values;
    const T* __restrict__ outputs;  // null: as it is
    float scale, slope, offset;

    __device__ float at(std::int64_t element) const {
        const float value = to_float(values[element]);
        return outputs == nullptr ? value : fmaf(scale, value, fmaf(slope, to_float(outputs[element]), offset));
    }
};

// `begin` is the first element of the channel, `row` its number among all [N, C]; `mapped`: through `affine`.
template <typename T>
__device__ inline Channel<T> channel_of(const void* tensor, bool mapped, const AffineGradient& affine,
                                        std::int64_t begin, std::int64_t row) {
    Channel<T> channel{static_cast<const T*>(tensor) + begin, nullptr, 1.0f, 0.0f, 0.0f};
    if (mapped) {
        channel.outputs = static_cast<const T*>(affine.output) + begin;
        channel.scale = affine.scale[row];
        channel.slope = affine.slope[row];
        channel.offset = affine.offset[row];
    }
    return channel;
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
