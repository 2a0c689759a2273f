// Weight gradients of every kernel, stride, dilation, type and format.
#pragma once

#include <cuda_runtime_api.h>

#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Enqueues the partial sums of the weight gradient, [general_parts(problem), C * taps]: launch_reduction adds the
// parts.
cudaError_t launch_general_weight_gradient(const WeightGradientProblem& problem, float* partial, cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
