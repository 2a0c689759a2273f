// An instance of the banded core.
#include "banded_convolution.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template cudaError_t launch_banded_of_size<1, 5>(ScalarType, const BandedParameters&, const BandedTile&, unsigned,
                                                 cudaStream_t);

}  // namespace mednext_ops::cuda::depthwise_conv3d
