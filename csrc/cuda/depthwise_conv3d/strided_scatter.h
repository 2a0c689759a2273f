// The core of the scatter at stride 2 on tensor cores. See strided_scatter.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/moments.h"
#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// `moments`, if not null, gets [N, C, tile.tiles()].
cudaError_t launch_strided_scatter(const ConvolutionProblem& problem, const ScatterTile& tile, Moments<double>* moments,
                                   cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
