// Weight gradients of the kernels KxKxK and 1xKxK, K = 3, 5, 7, centred, at stride 1 and 2, in float FMAs.
#pragma once

#include <cuda_runtime_api.h>

#include "problem.h"
#include "streaming_tiles.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Enqueues the partial sums of a weight gradient that takes_streaming(), [batch * tile.parts(), C * taps];
// launch_reduction adds the parts.
cudaError_t launch_streaming_weight_gradient(const WeightGradientProblem& problem, const StreamingWeightTile& tile,
                                             float* partial, cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
