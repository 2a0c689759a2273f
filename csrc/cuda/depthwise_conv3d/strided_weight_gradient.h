// The core of the weight gradient at stride 2 on tensor cores. See strided_weight_gradient.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Enqueues the partial sums, [batch * tile.tiles(), C * taps]: launch_reduction adds the parts.
cudaError_t launch_strided_weight_gradient(const WeightGradientProblem& problem, const StridedWeightTile& tile,
                                           float* partial, cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
