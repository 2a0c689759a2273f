// An instance of the core of the gather at stride 2.
#include "strided_convolution.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_strided_of_size<3>(ScalarType, const StridedParameters&, unsigned, cudaStream_t);

}  // namespace mednext_ops::cuda::depthwise_conv3d
