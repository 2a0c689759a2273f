// The banded core of the weight gradient, on tensor cores. See weight_gradient_patches.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Enqueues the partial sums, [batch * tile.tiles(), C * taps]: launch_reduction adds the parts.
cudaError_t launch_banded_weight_gradient(const WeightGradientProblem& problem, const WeightGradientTile& tile,
                                          float* partial, cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
