// Weight gradients of every kernel, stride, dilation, type and format.
#pragma once

#include <cuda_runtime_api.h>

#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Enqueues the weight gradient; `partial` has room for general_parts(problem) * C * taps floats.
cudaError_t launch_general_weight_gradient(const WeightGradientProblem& problem, float* partial, cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
