// The host's side of the gather at stride 2: a problem and its tile become the parameters of an instance.
#include "strided_convolution.cuh"

#include <climits>

namespace mednext_ops::cuda::depthwise_conv3d {

#define MEDNEXT_OPS_INSTANCE(K) \
    extern template cudaError_t launch_strided_of_size<K>(ScalarType, const StridedParameters&, unsigned, cudaStream_t)
MEDNEXT_OPS_INSTANCE(3);
MEDNEXT_OPS_INSTANCE(5);
MEDNEXT_OPS_INSTANCE(7);
#undef MEDNEXT_OPS_INSTANCE

namespace {

bool at_pairs(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 4 == 0;
}

}  // namespace

cudaError_t launch_strided_convolution(const ConvolutionProblem& p, const StridedTile& tile, Moments<double>* moments,
                                       cudaStream_t stream) {
    const std::int64_t count = p.batch * p.channels * tile.tiles();
    if (count == 0) return cudaSuccess;
    if (count > INT_MAX) return cudaErrorInvalidConfiguration;
    const StridedParameters parameters{StridedSource(p),
                                       p.weight,
                                       p.bias,
                                       static_cast<int>(p.output_size.d),
                                       static_cast<int>(p.output_size.h),
                                       static_cast<int>(p.output_size.w),
                                       p.channels,
                                       p.add,
                                       p.output,
                                       p.output_size.w % 2 == 0 && at_pairs(p.output) && at_pairs(p.add),
                                       moments,
                                       tile};
    const auto blocks = static_cast<unsigned>(count);
    switch (p.geometry.kernel.w) {
        case 3:
            return launch_strided_of_size<3>(p.type, parameters, blocks, stream);
        case 5:
            return launch_strided_of_size<5>(p.type, parameters, blocks, stream);
        default:
            return launch_strided_of_size<7>(p.type, parameters, blocks, stream);
    }
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
