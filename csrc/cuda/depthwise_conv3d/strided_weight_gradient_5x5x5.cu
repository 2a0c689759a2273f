// An instance of the core of the weight gradient at stride 2.
#include "strided_weight_gradient.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_strided_weight_gradient_of_size<5>(ScalarType, Mapped, const StridedWeightParameters&,
                                                               unsigned, cudaStream_t);

}  // namespace mednext_ops::cuda::depthwise_conv3d
