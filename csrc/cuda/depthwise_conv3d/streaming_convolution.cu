// The host's side of the streaming convolutions: a problem and its tile become the parameters of an instance.
#include "streaming_convolution.cuh"

#include <climits>

namespace mednext_ops::cuda::depthwise_conv3d {

extern template cudaError_t launch_gather<float, false>(const Triple&, std::int64_t, const StreamingParameters&,
                                                        const LaunchShape&);
extern template cudaError_t launch_gather<float, true>(const Triple&, std::int64_t, const StreamingParameters&,
                                                       const LaunchShape&);
extern template cudaError_t launch_gather<__half, false>(const Triple&, std::int64_t, const StreamingParameters&,
                                                         const LaunchShape&);
extern template cudaError_t launch_gather<__half, true>(const Triple&, std::int64_t, const StreamingParameters&,
                                                        const LaunchShape&);
extern template cudaError_t launch_gather<__nv_bfloat16, false>(const Triple&, std::int64_t, const StreamingParameters&,
                                                                const LaunchShape&);
extern template cudaError_t launch_gather<__nv_bfloat16, true>(const Triple&, std::int64_t, const StreamingParameters&,
                                                               const LaunchShape&);

namespace {

// Vectors of four elements.
bool aligned(const void* pointer, ScalarType type) {
    return reinterpret_cast<std::uintptr_t>(pointer) % (type == ScalarType::float32 ? 16 : 8) == 0;
}

Extent extent_of(const ConvolutionProblem& p, const Triple& size, bool all_aligned) {
    return {static_cast<int>(size.d), static_cast<int>(size.h), static_cast<int>(size.w),
            p.channels_last ? static_cast<int>(p.channels) : 1,
            all_aligned && !p.channels_last && size.w % StreamingTile::kColumns == 0};
}

}  // namespace

cudaError_t launch_streaming_convolution(const ConvolutionProblem& p, Moments<double>* moments, cudaStream_t stream) {
    const StreamingTile tile = streaming_tile(p);
    const bool input_aligned = aligned(p.input, p.type) && aligned(p.affine.output, p.type);
    const bool output_aligned = aligned(p.output, p.type) && aligned(p.add, p.type);
    const StreamingParameters parameters{
        p.input, p.affine, extent_of(p, p.input_size, input_aligned),   p.weight, p.bias,     p.scatter,
        p.add,   p.output, extent_of(p, p.output_size, output_aligned), p.batch,  p.channels, p.channels_last,
        tile,    moments};
    const std::int64_t blocks = p.batch * tile.channel_tiles * ceil_div(tile.tiles(), StreamingTile::kWarps);
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    const LaunchShape shape{static_cast<unsigned>(blocks), StreamingTile::kWarps * kWarpSize, 0, stream};
    return with_scalar_type(p.type, [&]<typename T>(const T*) {
        const Triple& kernel = p.geometry.kernel;
        return p.channels_last ? launch_gather<T, true>(kernel, p.geometry.stride.w, parameters, shape)
                               : launch_gather<T, false>(kernel, p.geometry.stride.w, parameters, shape);
    });
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
