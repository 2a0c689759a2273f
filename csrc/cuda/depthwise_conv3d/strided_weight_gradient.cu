// The host's side of the weight gradient at stride 2: a problem and its tile become the parameters of an instance.
#include "strided_weight_gradient.cuh"

#include <climits>

namespace mednext_ops::cuda::depthwise_conv3d {

#define MEDNEXT_OPS_INSTANCE(K)                                            \
    extern template cudaError_t launch_strided_weight_gradient_of_size<K>( \
        ScalarType, Mapped, const StridedWeightParameters&, unsigned, cudaStream_t)
MEDNEXT_OPS_INSTANCE(3);
MEDNEXT_OPS_INSTANCE(5);
MEDNEXT_OPS_INSTANCE(7);
#undef MEDNEXT_OPS_INSTANCE

cudaError_t launch_strided_weight_gradient(const WeightGradientProblem& p, const StridedWeightTile& tile,
                                           float* partial, cudaStream_t stream) {
    const std::int64_t volumes = p.batch * p.channels;
    const std::int64_t count = volumes * tile.tiles();
    if (count == 0) return cudaSuccess;  // no part at all: the reduction gives zeros
    if (count > INT_MAX) return cudaErrorInvalidConfiguration;
    const Mapped map = !p.affine.given() ? Mapped::none : p.large_is_gradient ? Mapped::large : Mapped::small;
    const StridedWeightParameters parameters{p.small,
                                             p.large,
                                             p.affine,
                                             static_cast<int>(p.small_size.d),
                                             static_cast<int>(p.small_size.h),
                                             static_cast<int>(p.small_size.w),
                                             static_cast<int>(p.large_size.d),
                                             static_cast<int>(p.large_size.h),
                                             static_cast<int>(p.large_size.w),
                                             p.channels,
                                             volumes,
                                             tile,
                                             partial};
    const auto blocks = static_cast<unsigned>(count);
    switch (p.geometry.kernel.w) {
        case 3:
            return launch_strided_weight_gradient_of_size<3>(p.type, map, parameters, blocks, stream);
        case 5:
            return launch_strided_weight_gradient_of_size<5>(p.type, map, parameters, blocks, stream);
        default:
            return launch_strided_weight_gradient_of_size<7>(p.type, map, parameters, blocks, stream);
    }
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
