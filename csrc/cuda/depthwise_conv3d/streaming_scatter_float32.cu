// The streaming scatters of float32 tensors.
#include "streaming_scatter.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_scatter<float, false>(const Triple&, std::int64_t, const StreamingParameters&,
                                                  const LaunchShape&);

}  // namespace mednext_ops::cuda::depthwise_conv3d
