// An instance of the core of the scatter at stride 2.
#include "strided_scatter.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_scatter_of_size<3>(ScalarType, const ScatterParameters&, unsigned, cudaStream_t);

}  // namespace mednext_ops::cuda::depthwise_conv3d
