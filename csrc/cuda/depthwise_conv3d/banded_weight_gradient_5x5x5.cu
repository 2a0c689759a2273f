// An instance of the banded core of the weight gradient.
#include "banded_weight_gradient.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_banded_weight_gradient_of_size<5, 5>(ScalarType, const WeightGradientParameters&, unsigned,
                                                                 cudaStream_t);

}  // namespace mednext_ops::cuda::depthwise_conv3d
