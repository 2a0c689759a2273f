// An instance of the fused forward.
#include "forward.cuh"

namespace mednext_ops::cuda::inverted_bottleneck {

template cudaError_t launch_forward_of_size<64, 32>(ScalarType, const ForwardParameters&, unsigned, cudaStream_t);

}  // namespace mednext_ops::cuda::inverted_bottleneck
