// The streaming scatters of bfloat16 tensors.
#include "streaming_scatter.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_scatter<__nv_bfloat16, false>(const Triple&, std::int64_t, const StreamingParameters&,
                                                          const LaunchShape&);

}  // namespace mednext_ops::cuda::depthwise_conv3d
