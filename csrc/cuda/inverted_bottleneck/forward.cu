// The host's side of the fused forward: a problem and its plan become the parameters of an instance.
#include "forward.cuh"

#include <climits>

namespace mednext_ops::cuda::inverted_bottleneck {

extern template cudaError_t launch_forward_of_size<32, 32>(ScalarType, const ForwardParameters&, unsigned,
                                                           cudaStream_t);
extern template cudaError_t launch_forward_of_size<32, 64>(ScalarType, const ForwardParameters&, unsigned,
                                                           cudaStream_t);
extern template cudaError_t launch_forward_of_size<64, 32>(ScalarType, const ForwardParameters&, unsigned,
                                                           cudaStream_t);
extern template cudaError_t launch_forward_of_size<64, 64>(ScalarType, const ForwardParameters&, unsigned,
                                                           cudaStream_t);
extern template cudaError_t launch_forward_of_size<64, 128>(ScalarType, const ForwardParameters&, unsigned,
                                                            cudaStream_t);
extern template cudaError_t launch_forward_of_size<128, 64>(ScalarType, const ForwardParameters&, unsigned,
                                                            cudaStream_t);
extern template cudaError_t launch_forward_of_size<128, 128>(ScalarType, const ForwardParameters&, unsigned,
                                                             cudaStream_t);

namespace {

bool at_vectors(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

}  // namespace

cudaError_t launch_fused_forward(const ForwardProblem& problem, const ForwardPlan& plan, const float* gain,
                                 cudaStream_t stream) {
    const Bottleneck& bottleneck = problem.bottleneck;
    const Extents& extents = bottleneck.extents;
    const bool even =
        bottleneck.channels_last ? extents.channels % 8 == 0 && extents.outputs % 8 == 0 : extents.voxels % 8 == 0;
    const bool vectors =
        even && at_vectors(bottleneck.input) && at_vectors(problem.residual) && at_vectors(problem.output);
    const ForwardParameters parameters{bottleneck, problem.residual, problem.output, gain, plan, vectors};
    if (bottleneck.extents.batch * plan.parts > INT_MAX) return cudaErrorInvalidConfiguration;

    const auto blocks = static_cast<unsigned>(bottleneck.extents.batch * plan.parts);
    const ScalarType type = bottleneck.type;
    const int c = plan.channels;
    const int o = plan.outputs;
    if (c == 32 && o == 32) return launch_forward_of_size<32, 32>(type, parameters, blocks, stream);
    if (c == 32 && o == 64) return launch_forward_of_size<32, 64>(type, parameters, blocks, stream);
    if (c == 64 && o == 32) return launch_forward_of_size<64, 32>(type, parameters, blocks, stream);
    if (c == 64 && o == 64) return launch_forward_of_size<64, 64>(type, parameters, blocks, stream);
    if (c == 64 && o == 128) return launch_forward_of_size<64, 128>(type, parameters, blocks, stream);
    if (c == 128 && o == 64) return launch_forward_of_size<128, 64>(type, parameters, blocks, stream);
    if (c == 128 && o == 128) return launch_forward_of_size<128, 128>(type, parameters, blocks, stream);
    return cudaErrorInvalidValue;
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
