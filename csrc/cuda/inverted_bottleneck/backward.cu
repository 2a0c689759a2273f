// The host's side of the fused backward: a pass becomes the parameters of an instance.
#include "backward.cuh"

#include <climits>

namespace mednext_ops::cuda::inverted_bottleneck {

extern template cudaError_t launch_backward_of_size<32, 32>(ScalarType, const BackwardParameters&, unsigned,
                                                            cudaStream_t);
extern template cudaError_t launch_backward_of_size<32, 64>(ScalarType, const BackwardParameters&, unsigned,
                                                            cudaStream_t);
extern template cudaError_t launch_backward_of_size<64, 32>(ScalarType, const BackwardParameters&, unsigned,
                                                            cudaStream_t);
extern template cudaError_t launch_backward_of_size<64, 64>(ScalarType, const BackwardParameters&, unsigned,
                                                            cudaStream_t);

namespace {

bool at_vectors(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

}  // namespace

cudaError_t launch_fused_backward(const Bottleneck& bottleneck, const BackwardPlan& plan, const BackwardPass& pass,
                                  cudaStream_t stream) {
    const Extents& extents = bottleneck.extents;
    const bool last = bottleneck.channels_last;
    const bool even = last ? extents.channels % 8 == 0 && extents.outputs % 8 == 0 : extents.voxels % 8 == 0;
    const bool vectors = even && at_vectors(bottleneck.input) && at_vectors(pass.grad_output) && at_vectors(pass.grad);
    const BackwardParameters parameters{bottleneck, plan, pass, vectors};
    if (extents.batch * plan.parts > INT_MAX) return cudaErrorInvalidConfiguration;

    const auto blocks = static_cast<unsigned>(extents.batch * plan.parts);
    const ScalarType type = bottleneck.type;
    const int c = plan.channels;
    const int o = plan.outputs;
    if (c == 32 && o == 32) return launch_backward_of_size<32, 32>(type, parameters, blocks, stream);
    if (c == 32 && o == 64) return launch_backward_of_size<32, 64>(type, parameters, blocks, stream);
    if (c == 64 && o == 32) return launch_backward_of_size<64, 32>(type, parameters, blocks, stream);
    if (c == 64 && o == 64) return launch_backward_of_size<64, 64>(type, parameters, blocks, stream);
    return cudaErrorInvalidValue;
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
