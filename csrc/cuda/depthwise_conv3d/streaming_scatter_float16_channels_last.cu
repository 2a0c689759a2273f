// The streaming scatters of float16 tensors in channels-last.
#include "streaming_scatter.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_scatter<__half, true>(const Triple&, std::int64_t, const StreamingParameters&,
                                                  const LaunchShape&);

}  // namespace mednext_ops::cuda::depthwise_conv3d
