// The affine map that makes a gradient, of a sample and channel, out of two tensors: see AffineGradient.
#pragma once

#include <cstdint>

#include "../common/scalar_types.cuh"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// One vector of 16 bytes: kernels that are short of registers keep it in shared memory.
template <typename T>
struct alignas(16) AffineMap {
    float scale, slope, offset, unused;

    __device__ static AffineMap of(const AffineGradient& gradient, std::int64_t volume) {
        return {gradient.scale[volume], gradient.slope[volume], gradient.offset[volume], 0.0f};
    }

    // Of two neighbours, computed in float and rounded once.
    __device__ unsigned operator()(unsigned grads, unsigned outputs) const {
        float grad[2];
        float output[2];
        unpack<T>(grads, grad[0], grad[1]);
        unpack<T>(outputs, output[0], output[1]);
        return round_pair<T>(fmaf(scale, grad[0], fmaf(slope, output[0], offset)),
                             fmaf(scale, grad[1], fmaf(slope, output[1], offset)));
    }
};

}  // namespace mednext_ops::cuda::depthwise_conv3d
