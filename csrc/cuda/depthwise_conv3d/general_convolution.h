// Gathers and scatters of every kernel, stride, dilation, type and format, one output at a time.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/moments.h"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Enqueues the convolution; `moments`, if not null, gets [N, C, general_moments_per_channel(problem)].
cudaError_t launch_general_convolution(const ConvolutionProblem& problem, Moments<double>* moments,
                                       cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
