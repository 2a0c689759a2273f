// The planar core: a 16-bit depthwise convolution at stride 1 on tensor cores, planes by the copy engine. See
// planar_convolution.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/moments.h"
#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

cudaError_t launch_planar_convolution(const ConvolutionProblem& problem, const PlanarTile& tile,
                                      Moments<double>* moments, cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
