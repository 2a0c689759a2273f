// The last step of every weight gradient: the sum of the partial sums that blocks of threads have left.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace mednext_ops::cuda::depthwise_conv3d {

// Enqueues grad_weight[i] = sum over the parts of partial[part, i], in double and in an order that follows from the
// number of parts alone. `partial` is [parts, sums], `sums` is C * taps; no part at all gives zeros.
cudaError_t launch_reduction(const float* partial, std::int64_t sums, std::int64_t parts, float* grad_weight,
                             cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
