// An instance of the fused backward.
#include "backward.cuh"

namespace mednext_ops::cuda::inverted_bottleneck {

template cudaError_t launch_backward_of_size<64, 64>(ScalarType, const BackwardParameters&, unsigned, cudaStream_t);

}  // namespace mednext_ops::cuda::inverted_bottleneck
