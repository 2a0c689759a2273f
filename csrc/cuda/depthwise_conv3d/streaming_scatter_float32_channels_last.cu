// The streaming scatters of float32 tensors in channels-last.
#include "streaming_scatter.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_scatter<float, true>(const Triple&, std::int64_t, const StreamingParameters&,
                                                 const LaunchShape&);

}  // namespace mednext_ops::cuda::depthwise_conv3d
