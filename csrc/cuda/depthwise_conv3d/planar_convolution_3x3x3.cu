// An instance of the planar core.
#include "planar_convolution.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_planar_of_size<3, 3>(ScalarType, const PlanarParameters&, unsigned, cudaStream_t);

}  // namespace mednext_ops::cuda::depthwise_conv3d
