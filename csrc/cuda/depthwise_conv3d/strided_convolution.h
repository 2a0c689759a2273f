// The core of the gather at stride 2 on tensor cores. See strided_convolution.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/moments.h"
#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// `moments`, if not null, gets [N, C, tile.tiles()].
cudaError_t launch_strided_convolution(const ConvolutionProblem& problem, const StridedTile& tile,
                                       Moments<double>* moments, cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
