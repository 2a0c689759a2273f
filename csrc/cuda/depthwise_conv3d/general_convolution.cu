// One output at a time: for each axis the taps that meet the input, then the product of the three.
//
//     contiguous:     a block is kGeneralOutputs adjacent outputs of one channel; thread t takes t, t + 128, ...
//     channels-last:  a block is kGeneralOutputsChannelsLast adjacent voxels x 32 channels; lane = channel, and warp w
//                     takes the voxels w, w + 4, ...
//
// Inputs come from the first-level cache, where neighbours find most of what they need. The statistics read the outputs
// of the block once more, as they were stored.
#include "general_convolution.h"

#include <climits>
#include <numeric>

#include "../common/launch.h"
#include "../common/moments.cuh"
#include "../common/parameter.cuh"
#include "../common/shared_memory.cuh"
#include "general_reading.cuh"
#include "general_tiles.h"

namespace mednext_ops::cuda::depthwise_conv3d {
namespace {

// ---- taps of an axis ----

// Taps from one that meets an output to the next, and input positions between them. 1 and the dilation for a gather.
struct Step {
    int tap;
    std::int64_t input;
};

struct Steps {
    Step d, h, w;
};

// The taps that meet an output at one axis: `count` of them, from `tap` on, at the inputs from `input` on.
struct Reach {
    int tap;
    int count;
    std::int64_t input;
};

template <bool Scatter>
__device__ inline Reach reach_of(std::int64_t output, std::int64_t size, int kernel, std::int64_t stride,
                                 std::int64_t padding, std::int64_t dilation, const Step& step) {
    int tap = 0;
    std::int64_t input;
    if constexpr (Scatter) {
        // Whole positions come every step.tap taps, if at all.
        while (tap < step.tap && (output + padding - tap * dilation) % stride != 0) ++tap;
        if (tap == step.tap) return {0, 0, 0};
        input = (output + padding - tap * dilation) / stride;
    } else {
        input = output * stride - padding;
    }
    while (tap < kernel && (input < 0 || input >= size)) {
        tap += step.tap;
        input += step.input;
    }
    Reach reach{tap, 0, input};
    while (tap < kernel && input >= 0 && input < size) {
        ++reach.count;
        tap += step.tap;
        input += step.input;
    }
    return reach;
}

// ---- multiply ----

template <typename T, bool ChannelsLast, bool Scatter>
__device__ inline float convolve(const ConvolutionProblem& p, const Steps& steps, const Channel<T>& input,
                                 std::int64_t channel, const Triple& output) {
    const auto kernel_d = static_cast<int>(p.geometry.kernel.d);
    const auto kernel_h = static_cast<int>(p.geometry.kernel.h);
    const auto kernel_w = static_cast<int>(p.geometry.kernel.w);
    const Geometry& g = p.geometry;
    const Reach d =
        reach_of<Scatter>(output.d, p.input_size.d, kernel_d, g.stride.d, g.padding.d, g.dilation.d, steps.d);
    const Reach h =
        reach_of<Scatter>(output.h, p.input_size.h, kernel_h, g.stride.h, g.padding.h, g.dilation.h, steps.h);
    const Reach w =
        reach_of<Scatter>(output.w, p.input_size.w, kernel_w, g.stride.w, g.padding.w, g.dilation.w, steps.w);
    const std::int64_t voxel = voxel_step<ChannelsLast>(p.channels);
    float sum = 0.0f;
    for (int i = 0; i < d.count; ++i) {
        const std::int64_t plane = (d.input + i * steps.d.input) * p.input_size.h;
        const std::int64_t tap_plane = channel * kernel_d + d.tap + i * steps.d.tap;
        for (int j = 0; j < h.count; ++j) {
            std::int64_t at = ((plane + h.input + j * steps.h.input) * p.input_size.w + w.input) * voxel;
            std::int64_t tap = (tap_plane * kernel_h + h.tap + j * steps.h.tap) * kernel_w + w.tap;
            for (int k = 0; k < w.count; ++k) {
                sum = fmaf(load_parameter(p.weight, tap), input.at(at), sum);
                tap += steps.w.tap;
                at += steps.w.input * voxel;
            }
        }
    }
    return sum;
}

// ---- statistics ----

// Merges the moments of the threads of a block, or of those of them that share a lane; the result is in thread 0, or in
// the lanes of warp 0.
template <bool ChannelsLast>
__device__ inline Moments<double> merge_block(Moments<double> mine) {
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    MEDNEXT_OPS_SHARED(of_warp, Moments<double>[kGeneralWarps][kWarpSize]);
    if constexpr (!ChannelsLast) mine = merge_warp(mine);
    of_warp[warp][lane] = mine;
    __syncthreads();
    if (warp == 0) {
        for (int other = 1; other < kGeneralWarps; ++other) mine = merge(mine, of_warp[other][lane]);
    }
    return mine;
}

// ---- the kernel ----

template <typename T, bool ChannelsLast, bool Scatter>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralBlocksPerProcessor)
    general_convolution(const ConvolutionProblem p, const Steps steps, std::int64_t tiles,
                        Moments<double>* __restrict__ moments) {
    constexpr std::int64_t kOutputs = ChannelsLast ? kGeneralOutputsChannelsLast : kGeneralOutputs;
    constexpr int kPositionStep = ChannelsLast ? kGeneralWarps : kGeneralThreads;
    const std::int64_t channel_tiles = ChannelsLast ? ceil_div(p.channels, kGeneralChannels) : p.channels;
    // Adjacent blocks share their borders: tiles of a channel, or channels of a tile, follow each other.
    const std::int64_t tile = ChannelsLast ? blockIdx.x / channel_tiles % tiles : blockIdx.x % tiles;
    const std::int64_t channel_tile = ChannelsLast ? blockIdx.x % channel_tiles : blockIdx.x / tiles % channel_tiles;
    const std::int64_t sample = blockIdx.x / tiles / channel_tiles;
    const std::int64_t channel =
        ChannelsLast ? channel_tile * kGeneralChannels + threadIdx.x % kWarpSize : channel_tile;
    const std::int64_t voxels = p.output_size.product();
    const std::int64_t end = min(voxels, (tile + 1) * kOutputs);
    const std::int64_t first = tile * kOutputs + (ChannelsLast ? threadIdx.x / kWarpSize : threadIdx.x);
    const std::int64_t row = sample * p.channels + channel;
    const std::int64_t step = voxel_step<ChannelsLast>(p.channels);
    const std::int64_t begin = channel_begin<ChannelsLast>(sample, channel, p.channels, voxels);
    T* const outputs = static_cast<T*>(p.output) + begin;

    if (channel < p.channels) {
        const T* const add = static_cast<const T*>(p.add) + (p.add == nullptr ? 0 : begin);
        const float bias = p.bias.data == nullptr ? 0.0f : load_parameter(p.bias, channel);
        const Channel<T> input =
            channel_of<T>(p.input, p.affine.given(), p.affine,
                          channel_begin<ChannelsLast>(sample, channel, p.channels, p.input_size.product()), row);
        for (std::int64_t i = first; i < end; i += kPositionStep) {
            float value =
                bias + convolve<T, ChannelsLast, Scatter>(p, steps, input, channel, place_of(i, p.output_size));
            if (p.add != nullptr) value += to_float(add[i * step]);
            outputs[i * step] = from_float<T>(value);
        }
    }
    if (moments == nullptr) return;

    // Of what this thread has stored, less the first of it: with one pivot for all threads what is rounded of its
    // distance from the mean would remain.
    const std::int64_t stored = channel < p.channels && first < end ? ceil_div(end - first, kPositionStep) : 0;
    ShiftedSums sums;
    if (stored > 0) sums.pivot = to_float(outputs[first * step]);
    for (std::int64_t begun = 0; begun < stored; begun += kGeneralRound) {
        const int count = static_cast<int>(min(stored - begun, std::int64_t{kGeneralRound}));
        float values[kGeneralRound];
#pragma unroll
        for (int j = 0; j < kGeneralRound; ++j) {
            values[j] = j < count ? to_float(outputs[(first + (begun + j) * kPositionStep) * step]) : 0.0f;
        }
        sums.add<false>(values, (1u << count) - 1);
    }
    const Moments<double> mine = merge_block<ChannelsLast>(sums.moments(stored));
    if (threadIdx.x < (ChannelsLast ? kWarpSize : 1) && channel < p.channels) {
        moments[row * tiles + tile] = mine;
    }
}

// ---- launch ----

Step step_of(bool scatter, std::int64_t stride, std::int64_t dilation) {
    if (!scatter) return {1, dilation};
    const std::int64_t common = std::gcd(stride, dilation);
    return {static_cast<int>(stride / common), -dilation / common};
}

template <typename T, bool ChannelsLast>
cudaError_t launch_typed(const ConvolutionProblem& p, Moments<double>* moments, cudaStream_t stream) {
    const Geometry& g = p.geometry;
    const Steps steps{step_of(p.scatter, g.stride.d, g.dilation.d), step_of(p.scatter, g.stride.h, g.dilation.h),
                      step_of(p.scatter, g.stride.w, g.dilation.w)};
    const std::int64_t tiles = ceil_div(p.output_size.product(), general_outputs(p));
    const std::int64_t channel_tiles = ChannelsLast ? ceil_div(p.channels, kGeneralChannels) : p.channels;
    const std::int64_t blocks = p.batch * channel_tiles * tiles;
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    const LaunchShape shape{static_cast<unsigned>(blocks), kGeneralThreads, 0, stream};
    return p.scatter ? launch<general_convolution<T, ChannelsLast, true>>(shape, p, steps, tiles, moments)
                     : launch<general_convolution<T, ChannelsLast, false>>(shape, p, steps, tiles, moments);
}

}  // namespace

cudaError_t launch_general_convolution(const ConvolutionProblem& p, Moments<double>* moments, cudaStream_t stream) {
    return with_scalar_type(p.type, [&]<typename T>(const T*) {
        return p.channels_last ? launch_typed<T, true>(p, moments, stream) : launch_typed<T, false>(p, moments, stream);
    });
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
