// The gradient of GroupNorm's input as an affine map, out of the sums that the layers above leave.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/parameter.h"

namespace mednext_ops::cuda::group_norm {

// With the gradient g of the normalised tensor and the tensor y that was normalised, the gradient of y is
//
//     scale g + slope y + offset        scale = weight rstd
//                                       slope = -rstd^2 mean over the group of weight g (y - mean) rstd
//                                       offset = -rstd (mean over the group of weight g) - slope mean
struct InputGradientProblem {
    std::int64_t batch, channels, voxels, groups;
    const float* grad_sum;             // [N, C]: sum of g over the voxels
    const float* grad_dot_normalized;  // [N, C]: sum of g (y - mean) rstd
    const float* mean;                 // [N, G], as is rstd
    const float* rstd;
    Parameter weight;  // [C]
    float* scale;      // [N, C], as are the other two
    float* slope;
    float* offset;
};

cudaError_t launch_input_gradient(const InputGradientProblem& problem, cudaStream_t stream);

}  // namespace mednext_ops::cuda::group_norm
