// A block adds up to 8 adjacent taps of one row of the kernel over a stretch of the small tensor, of one sample:
//
//     contiguous:     a stretch is kGeneralPositions adjacent positions of one channel; thread t takes t, t + 128, ...
//     channels-last:  kGeneralPositionsChannelsLast positions x 32 channels; lane = channel, warp w takes w, w + 4, ...
//
//     small   . . . . g . . . .          one value g,
//     large   . x x x x x x x x .        and the values under the row: sum[i] += g * x[i]
//
// Its sums go to the workspace, [parts, C, taps]; weight_gradient_reduction.cu adds the parts.
#include "general_weight_gradient.h"

#include <climits>

#include "../common/launch.h"
#include "../common/shared_memory.cuh"
#include "../common/warp.h"
#include "general_reading.cuh"
#include "general_tiles.h"

namespace mednext_ops::cuda::depthwise_conv3d {
namespace {

// Covers the rows of kernels up to 7 at once.
constexpr int kTaps = 8;

// The taps of a block: `count` from (d, h, w) on along w.
struct RowOfTaps {
    std::int64_t d, h, w;
    int count;
};

__device__ inline RowOfTaps row_of_taps(std::int64_t number, const Triple& kernel) {
    const std::int64_t chunks = ceil_div(kernel.w, kTaps);
    const std::int64_t row = number / chunks;
    const std::int64_t w = number % chunks * kTaps;
    return {row / kernel.h, row % kernel.h, w, static_cast<int>(min(kernel.w - w, static_cast<std::int64_t>(kTaps)))};
}

// ---- multiply ----

template <typename T, bool ChannelsLast>
__device__ inline void add_position(const WeightGradientProblem& p, const RowOfTaps& taps, const Channel<T>& small,
                                    const Channel<T>& large, std::int64_t number, float (&sum)[kTaps]) {
    const Geometry& g = p.geometry;
    const Triple at = place_of(number, p.small_size);
    const std::int64_t d = at.d * g.stride.d + taps.d * g.dilation.d - g.padding.d;
    const std::int64_t h = at.h * g.stride.h + taps.h * g.dilation.h - g.padding.h;
    const std::int64_t w = at.w * g.stride.w + taps.w * g.dilation.w - g.padding.w;
    if (d < 0 || d >= p.large_size.d || h < 0 || h >= p.large_size.h) return;
    const std::int64_t step = voxel_step<ChannelsLast>(p.channels);
    const float value = small.at(number * step);
    const std::int64_t row = (d * p.large_size.h + h) * p.large_size.w;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
        const std::int64_t x = w + i * g.dilation.w;
        if (i < taps.count && x >= 0 && x < p.large_size.w) sum[i] = fmaf(value, large.at((row + x) * step), sum[i]);
    }
}

// ---- the block's sum ----

// Adds the sums of the threads of a block (or of those that share a lane) and stores them.
template <bool ChannelsLast>
__device__ inline void store_sums(const float (&sum)[kTaps], int count, bool valid, float* __restrict__ partial) {
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    MEDNEXT_OPS_SHARED(of_thread, float[kTaps][kGeneralThreads]);
#pragma unroll
    for (int i = 0; i < kTaps; ++i) of_thread[i][threadIdx.x] = sum[i];
    __syncthreads();
    for (int i = warp; i < kTaps; i += kGeneralWarps) {  // a warp a tap
        float all = 0.0f;
        for (int other = 0; other < kGeneralWarps; ++other) all += of_thread[i][other * kWarpSize + lane];
        if constexpr (!ChannelsLast) {
#pragma unroll
            for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
                all += __shfl_down_sync(kFullWarp, all, distance);
            }
        }
        if (valid && i < count && (ChannelsLast || lane == 0)) partial[i] = all;
    }
}

// ---- the kernel ----

template <typename T, bool ChannelsLast>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralBlocksPerProcessor)
    general_weight_gradient(const WeightGradientProblem p, std::int64_t tap_rows, std::int64_t tiles,
                            float* __restrict__ partial) {
    constexpr std::int64_t kPositions = ChannelsLast ? kGeneralPositionsChannelsLast : kGeneralPositions;
    constexpr int kPositionStep = ChannelsLast ? kGeneralWarps : kGeneralThreads;
    const std::int64_t channel_tiles = ChannelsLast ? ceil_div(p.channels, kGeneralChannels) : p.channels;
    // The rows of taps of one stretch follow each other: they read the same elements.
    const RowOfTaps taps = row_of_taps(blockIdx.x % tap_rows, p.geometry.kernel);
    const std::int64_t stretch = blockIdx.x / tap_rows;
    const std::int64_t channel_tile = stretch % channel_tiles;
    const std::int64_t part = stretch / channel_tiles;
    const std::int64_t sample = part / tiles;
    const std::int64_t tile = part % tiles;
    const std::int64_t channel =
        ChannelsLast ? channel_tile * kGeneralChannels + threadIdx.x % kWarpSize : channel_tile;
    const bool valid = channel < p.channels;
    const std::int64_t voxels = p.small_size.product();

    float sum[kTaps] = {};
    if (valid) {
        const std::int64_t row = sample * p.channels + channel;
        const bool mapped = p.affine.given();
        const Channel<T> small = channel_of<T>(p.small, mapped && !p.large_is_gradient, p.affine,
                                               channel_begin<ChannelsLast>(sample, channel, p.channels, voxels), row);
        const Channel<T> large =
            channel_of<T>(p.large, mapped && p.large_is_gradient, p.affine,
                          channel_begin<ChannelsLast>(sample, channel, p.channels, p.large_size.product()), row);
        const std::int64_t end = min(voxels, (tile + 1) * kPositions);
        std::int64_t at = tile * kPositions + (ChannelsLast ? threadIdx.x / kWarpSize : threadIdx.x);
        while (at < end) {
            float run[kTaps] = {};
            for (int i = 0; i < kGeneralRun && at < end; ++i, at += kPositionStep) {
                add_position<T, ChannelsLast>(p, taps, small, large, at, run);
            }
#pragma unroll
            for (int i = 0; i < kTaps; ++i) sum[i] += run[i];
        }
    }
    const std::int64_t tap = (taps.d * p.geometry.kernel.h + taps.h) * p.geometry.kernel.w + taps.w;
    const std::int64_t all_taps = p.geometry.kernel.product();
    store_sums<ChannelsLast>(sum, taps.count, valid, partial + (part * p.channels + channel) * all_taps + tap);
}

// ---- launch ----

template <typename T, bool ChannelsLast>
cudaError_t launch_typed(const WeightGradientProblem& p, float* partial, cudaStream_t stream) {
    const Triple& kernel = p.geometry.kernel;
    const std::int64_t tap_rows = kernel.d * kernel.h * ceil_div(kernel.w, kTaps);
    const std::int64_t channel_tiles = ChannelsLast ? ceil_div(p.channels, kGeneralChannels) : p.channels;
    const std::int64_t tiles = ceil_div(p.small_size.product(), general_positions(p));
    const std::int64_t blocks = p.batch * tiles * channel_tiles * tap_rows;
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    return launch<general_weight_gradient<T, ChannelsLast>>({static_cast<unsigned>(blocks), kGeneralThreads, 0, stream},
                                                            p, tap_rows, tiles, partial);
}

}  // namespace

cudaError_t launch_general_weight_gradient(const WeightGradientProblem& p, float* partial, cudaStream_t stream) {
    return with_scalar_type(p.type, [&]<typename T>(const T*) {
        return p.channels_last ? launch_typed<T, true>(p, partial, stream) : launch_typed<T, false>(p, partial, stream);
    });
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
