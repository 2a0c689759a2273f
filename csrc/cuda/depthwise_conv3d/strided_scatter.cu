// The host's side of the scatter at stride 2: a problem and its tile become the parameters of an instance.
#include "strided_scatter.cuh"

#include <climits>

namespace mednext_ops::cuda::depthwise_conv3d {

#define MEDNEXT_OPS_INSTANCE(K) \
    extern template cudaError_t launch_scatter_of_size<K>(ScalarType, const ScatterParameters&, unsigned, cudaStream_t)
MEDNEXT_OPS_INSTANCE(3);
MEDNEXT_OPS_INSTANCE(5);
MEDNEXT_OPS_INSTANCE(7);
#undef MEDNEXT_OPS_INSTANCE

namespace {

// Whether a tensor of 16-bit elements begins at an odd one, counted in words of two.
bool begins_odd(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 4 != 0;
}

}  // namespace

cudaError_t launch_strided_scatter(const ConvolutionProblem& p, const ScatterTile& tile, Moments<double>* moments,
                                   cudaStream_t stream) {
    const std::int64_t count = p.batch * p.channels * tile.tiles();
    if (count == 0) return cudaSuccess;
    if (count > INT_MAX) return cudaErrorInvalidConfiguration;
    const ScatterParameters parameters{StridedSource(p),
                                       p.weight,
                                       p.bias,
                                       static_cast<int>(p.output_size.d),
                                       static_cast<int>(p.output_size.h),
                                       static_cast<int>(p.output_size.w),
                                       p.channels,
                                       p.add,
                                       p.output,
                                       begins_odd(p.output),
                                       begins_odd(p.add) == begins_odd(p.output),
                                       moments,
                                       tile};
    const auto blocks = static_cast<unsigned>(count);
    switch (p.geometry.kernel.w) {
        case 3:
            return launch_scatter_of_size<3>(p.type, parameters, blocks, stream);
        case 5:
            return launch_scatter_of_size<5>(p.type, parameters, blocks, stream);
        default:
            return launch_scatter_of_size<7>(p.type, parameters, blocks, stream);
    }
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
