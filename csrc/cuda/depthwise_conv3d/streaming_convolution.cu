// The host's side of the streaming convolutions: a problem and its tile become the parameters of an instance.
#include <climits>

#include "streaming_convolution.cuh"
#include "streaming_scatter.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

extern template cudaError_t launch_gather<float, false>(const Triple&, const Triple&, const StreamingParameters&,
                                                        const LaunchShape&);
extern template cudaError_t launch_gather<float, true>(const Triple&, const Triple&, const StreamingParameters&,
                                                       const LaunchShape&);
extern template cudaError_t launch_gather<__half, false>(const Triple&, const Triple&, const StreamingParameters&,
                                                         const LaunchShape&);
extern template cudaError_t launch_gather<__half, true>(const Triple&, const Triple&, const StreamingParameters&,
                                                        const LaunchShape&);
extern template cudaError_t launch_gather<__nv_bfloat16, false>(const Triple&, const Triple&,
                                                                const StreamingParameters&, const LaunchShape&);
extern template cudaError_t launch_gather<__nv_bfloat16, true>(const Triple&, const Triple&, const StreamingParameters&,
                                                               const LaunchShape&);

extern template cudaError_t launch_scatter<float, false>(const Triple&, std::int64_t, const StreamingParameters&,
                                                         const LaunchShape&);
extern template cudaError_t launch_scatter<float, true>(const Triple&, std::int64_t, const StreamingParameters&,
                                                        const LaunchShape&);
extern template cudaError_t launch_scatter<__half, false>(const Triple&, std::int64_t, const StreamingParameters&,
                                                          const LaunchShape&);
extern template cudaError_t launch_scatter<__half, true>(const Triple&, std::int64_t, const StreamingParameters&,
                                                         const LaunchShape&);
extern template cudaError_t launch_scatter<__nv_bfloat16, false>(const Triple&, std::int64_t,
                                                                 const StreamingParameters&, const LaunchShape&);
extern template cudaError_t launch_scatter<__nv_bfloat16, true>(const Triple&, std::int64_t, const StreamingParameters&,
                                                                const LaunchShape&);

cudaError_t launch_streaming_convolution(const ConvolutionProblem& p, const StreamingTile& tile,
                                         Moments<double>* moments, cudaStream_t stream) {
    const bool scatter = is_streaming_scatter(p);
    const bool input_aligned = is_vector_aligned(p.input, p.type) && is_vector_aligned(p.affine.output, p.type);
    const bool output_aligned = is_vector_aligned(p.output, p.type) && is_vector_aligned(p.add, p.type);
    const StreamingParameters parameters{
        p.input,  p.affine,   extent_of(p.input_size, p.channels, p.channels_last, input_aligned),
        p.weight, p.bias,     p.scatter && !scatter,
        p.add,    p.output,   extent_of(p.output_size, p.channels, p.channels_last, output_aligned),
        p.batch,  p.channels, p.channels_last,
        tile,     moments};
    const std::int64_t blocks = p.batch * tile.channel_tiles * ceil_div(tile.tiles(), StreamingTile::kWarps);
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    const LaunchShape shape{static_cast<unsigned>(blocks), StreamingTile::kWarps * kWarpSize, 0, stream};
    return with_scalar_type(p.type, [&]<typename T>(const T*) {
        const Triple& kernel = p.geometry.kernel;
        if (scatter) {
            return p.channels_last ? launch_scatter<T, true>(kernel, p.geometry.stride.d, parameters, shape)
                                   : launch_scatter<T, false>(kernel, p.geometry.stride.d, parameters, shape);
        }
        return p.channels_last ? launch_gather<T, true>(kernel, p.geometry.stride, parameters, shape)
                               : launch_gather<T, false>(kernel, p.geometry.stride, parameters, shape);
    });
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
