// The streaming gathers of float16 tensors in channels-last.
#include "streaming_convolution.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_gather<__half, true>(const Triple&, const Triple&, const StreamingParameters&,
                                                 const LaunchShape&);

}  // namespace mednext_ops::cuda::depthwise_conv3d
