// The streaming weight gradients of float32 tensors.
#include "streaming_weight_gradient.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_weight_sums<float, false>(const Triple&, std::int64_t, bool,
                                                      const StreamingWeightParameters&, std::int64_t, cudaStream_t);

}  // namespace mednext_ops::cuda::depthwise_conv3d
