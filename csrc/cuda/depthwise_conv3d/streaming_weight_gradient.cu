// The host's side of the streaming weight gradients: a problem and its tile become the parameters of an instance.
#include "streaming_weight_gradient.cuh"

#include <utility>

namespace mednext_ops::cuda::depthwise_conv3d {

extern template cudaError_t launch_weight_sums<float, false>(const Triple&, std::int64_t, bool,
                                                             const StreamingWeightParameters&, std::int64_t,
                                                             cudaStream_t);
extern template cudaError_t launch_weight_sums<float, true>(const Triple&, std::int64_t, bool,
                                                            const StreamingWeightParameters&, std::int64_t,
                                                            cudaStream_t);
extern template cudaError_t launch_weight_sums<__half, false>(const Triple&, std::int64_t, bool,
                                                              const StreamingWeightParameters&, std::int64_t,
                                                              cudaStream_t);
extern template cudaError_t launch_weight_sums<__half, true>(const Triple&, std::int64_t, bool,
                                                             const StreamingWeightParameters&, std::int64_t,
                                                             cudaStream_t);
extern template cudaError_t launch_weight_sums<__nv_bfloat16, false>(const Triple&, std::int64_t, bool,
                                                                     const StreamingWeightParameters&, std::int64_t,
                                                                     cudaStream_t);
extern template cudaError_t launch_weight_sums<__nv_bfloat16, true>(const Triple&, std::int64_t, bool,
                                                                    const StreamingWeightParameters&, std::int64_t,
                                                                    cudaStream_t);

namespace {

Extent extent_of(const WeightGradientProblem& p, const Triple& size, const void* tensor, const void* output) {
    const bool aligned = is_vector_aligned(tensor, p.type) && is_vector_aligned(output, p.type);
    return extent_of(size, p.channels, p.channels_last, aligned);
}

}  // namespace

cudaError_t launch_streaming_weight_gradient(const WeightGradientProblem& p, const StreamingWeightTile& tile,
                                             float* partial, cudaStream_t stream) {
    const void* const of_small = p.large_is_gradient ? nullptr : p.affine.output;
    const void* const of_large = p.large_is_gradient ? p.affine.output : nullptr;
    StreamingWeightParameters parameters{p.small,    extent_of(p, p.small_size, p.small, of_small),
                                         p.large,    extent_of(p, p.large_size, p.large, of_large),
                                         p.affine,   false,
                                         p.channels, static_cast<int>(weight_gradient_steps(p)),
                                         tile,       partial};
    bool maps_large = p.affine.given() && p.large_is_gradient;
    if (maps_large && p.geometry.stride.w == 1) {
        // The sum over o of small[o] * large[o + k - padding] is that over i of large[i] * small[i - k + padding].
        std::swap(parameters.small, parameters.large);
        std::swap(parameters.small_extent, parameters.large_extent);
        parameters.mirrored = true;
        maps_large = false;
    }
    return with_scalar_type(p.type, [&]<typename T>(const T*) {
        const Triple& kernel = p.geometry.kernel;
        const std::int64_t stride = p.geometry.stride.w;
        return p.channels_last ? launch_weight_sums<T, true>(kernel, stride, maps_large, parameters, p.batch, stream)
                               : launch_weight_sums<T, false>(kernel, stride, maps_large, parameters, p.batch, stream);
    });
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
