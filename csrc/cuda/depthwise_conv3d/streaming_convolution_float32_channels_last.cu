// The streaming gathers of float32 tensors in channels-last.
#include "streaming_convolution.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_gather<float, true>(const Triple&, const Triple&, const StreamingParameters&,
                                                const LaunchShape&);

}  // namespace mednext_ops::cuda::depthwise_conv3d
