// The streaming gathers of bfloat16 tensors.
#include "streaming_convolution.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_gather<__nv_bfloat16, false>(const Triple&, const Triple&, const StreamingParameters&,
                                                         const LaunchShape&);

}  // namespace mednext_ops::cuda::depthwise_conv3d
