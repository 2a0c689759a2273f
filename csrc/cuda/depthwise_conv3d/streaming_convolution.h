// Convolutions with the kernels KxKxK and 1xKxK, K = 3, 5, 7, centred, at stride 1, 2 and 1x2x2, in float FMAs.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/moments.h"
#include "problem.h"
#include "streaming_tiles.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Enqueues a convolution that takes_streaming(); `moments`, if not null, gets [N, C, tile.tiles()].
cudaError_t launch_streaming_convolution(const ConvolutionProblem& problem, const StreamingTile& tile,
                                         Moments<double>* moments, cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
