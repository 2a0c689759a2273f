// One walk serves both layouts, forward and backward: a lane has a channel and takes kPerThread values of it at a time.
//
//   contiguous:     a block is a run of kBlockElements of one channel of one sample; neighbours read neighbours
//   channels-last:  a block is kTileVoxels voxels x 32 channels; lane = channel, warp w takes voxels w, w + kWarps, ...
//
// The gradient's sums are added in float within a thread, over the threads of a block in a fixed order, and over the
// blocks in double by the reduction that weight gradients use. What is summed is the gradient as it was rounded.
#include "apply.h"

#include <climits>
#include <cstdint>

#include "../common/gelu.cuh"
#include "../common/launch.h"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "../common/warp.h"
#include "../depthwise_conv3d/weight_gradient_reduction.h"

namespace mednext_ops::cuda::group_norm {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
// What memory latency wants here is threads: four blocks leave 64 registers. The addresses of channels-last columns,
// which are no constants, take more on sm_100 and sm_120.
constexpr int kBlocksPerProcessor = 4;
constexpr int kBlocksPerProcessorChannelsLast = 2;

constexpr int kPerThread = 8;
constexpr std::int64_t kRounds = 8;
constexpr std::int64_t kBlockElements = kRounds * kThreads * kPerThread;
constexpr std::int64_t kTileVoxels = kRounds * kWarps * kPerThread;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

std::int64_t tiles_of(const ApplyProblem& p) {
    return ceil_div(p.voxels, p.channels_last ? kTileVoxels : kBlockElements);
}

std::int64_t blocks_of(const ApplyProblem& p) {
    return p.batch * tiles_of(p) * (p.channels_last ? ceil_div(p.channels, kWarpSize) : p.channels);
}

// The map of one channel of one sample.
struct Map {
    float mean, rstd, weight, bias;

    __device__ Map(const ApplyProblem& p, std::int64_t sample, std::int64_t channel) {
        const std::int64_t group = sample * p.num_groups + channel / (p.channels / p.num_groups);
        mean = p.mean[group];
        rstd = p.rstd[group];
        weight = load_parameter(p.weight, channel);
        bias = load_parameter(p.bias, channel);
    }

    // The difference first: where the mean dwarfs the deviation it is exact, and the folded map would cancel.
    __device__ float normalized(float value) const { return (value - mean) * rstd; }
    __device__ float affine(float normalized) const { return fmaf(normalized, weight, bias); }
};

// What a thread does with its values.
struct Parameters {
    ApplyProblem problem;
    std::int64_t tiles;
    const void* grad_output;  // null: forward
    void* output;             // or the gradient
    float* partial_sum;       // [tiles, N * C]
    float* partial_dot;
};

// `at(i)` is where value i lies, the first `count` of kPerThread exist.
template <typename T, bool Backward, typename Place>
__device__ void walk(const Parameters& p, const Map& map, int count, Place&& at, float& sum, float& dot) {
    const T* input = static_cast<const T*>(p.problem.input);
    const T* grad_output = static_cast<const T*>(p.grad_output);
    T* output = static_cast<T*>(p.output);
#pragma unroll
    for (int i = 0; i < kPerThread; i += 2) {
        float normalized[2];
        float value[2];
        float grad[2] = {0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const bool there = i + j < count;
            normalized[j] = there ? map.normalized(to_float(input[at(i + j)])) : 0.0f;
            value[j] = map.affine(normalized[j]);
            if (Backward && there) grad[j] = to_float(grad_output[at(i + j)]);
        }
        if (p.problem.gelu) {
#pragma unroll
            for (int j = 0; j < 2; ++j) value[j] = Backward ? gelu_with_slope<T>(value[j]) : gelu<T>(value[j]);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const bool there = i + j < count;
            if constexpr (Backward) {
                if (p.problem.gelu) {
                    const T rounded = from_float<T>(grad[j] * value[j]);
                    if (there) output[at(i + j)] = rounded;
                    grad[j] = there ? to_float(rounded) : 0.0f;
                }
                sum += grad[j];
                dot = fmaf(grad[j], normalized[j], dot);
            } else if (there) {
                output[at(i + j)] = from_float<T>(value[j]);
            }
        }
    }
}

template <typename T, bool Backward>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) contiguous(const __grid_constant__ Parameters p) {
    const std::int64_t volume = blockIdx.x / p.tiles;  // n * C + c
    const std::int64_t tile = blockIdx.x % p.tiles;
    const std::int64_t begin = tile * kBlockElements;
    const std::int64_t end = begin + kBlockElements < p.problem.voxels ? begin + kBlockElements : p.problem.voxels;
    const Map map(p.problem, volume / p.problem.channels, volume % p.problem.channels);

    float sum = 0.0f;
    float dot = 0.0f;
    // Neighbouring lanes take neighbouring pairs: a warp's access is whole lines, whatever V is.
    for (std::int64_t round = begin + 2 * static_cast<int>(threadIdx.x); round < end; round += kThreads * kPerThread) {
        int count = 0;
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) count += round + i / 2 * 2 * kThreads + i % 2 < end ? 1 : 0;
        const std::int64_t first = volume * p.problem.voxels + round;
        walk<T, Backward>(p, map, count, [&](int i) { return first + i / 2 * 2 * kThreads + i % 2; }, sum, dot);
    }
    if constexpr (Backward) {
        MEDNEXT_OPS_SHARED(of_warp, float[2][kWarps]);
#pragma unroll
        for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
            sum += __shfl_down_sync(kFullWarp, sum, distance);
            dot += __shfl_down_sync(kFullWarp, dot, distance);
        }
        if (threadIdx.x % kWarpSize == 0) {
            of_warp[0][threadIdx.x / kWarpSize] = sum;
            of_warp[1][threadIdx.x / kWarpSize] = dot;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int warp = 1; warp < kWarps; ++warp) {
                sum += of_warp[0][warp];
                dot += of_warp[1][warp];
            }
            const std::int64_t volumes = p.problem.batch * p.problem.channels;
            p.partial_sum[tile * volumes + volume] = sum;
            p.partial_dot[tile * volumes + volume] = dot;
        }
    }
}

template <typename T, bool Backward>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessorChannelsLast)
    channels_last(const __grid_constant__ Parameters p) {
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const std::int64_t channels = p.problem.channels;
    const std::int64_t channel_tiles = ceil_div(channels, kWarpSize);
    const std::int64_t channel = blockIdx.x % channel_tiles * kWarpSize + lane;
    const std::int64_t tile = blockIdx.x / channel_tiles % p.tiles;
    const std::int64_t sample = blockIdx.x / channel_tiles / p.tiles;
    const std::int64_t begin = tile * kTileVoxels;
    const std::int64_t end = begin + kTileVoxels < p.problem.voxels ? begin + kTileVoxels : p.problem.voxels;
    const Map map(p.problem, sample, channel < channels ? channel : 0);

    float sum = 0.0f;
    float dot = 0.0f;
    for (std::int64_t round = begin + warp; round < end; round += kWarps * kPerThread) {
        const std::int64_t ahead = channel < channels ? ceil_div(end - round, kWarps) : 0;
        const int count = ahead < kPerThread ? static_cast<int>(ahead) : kPerThread;
        const std::int64_t first = (sample * p.problem.voxels + round) * channels + channel;
        walk<T, Backward>(p, map, count, [&](int i) { return first + i * kWarps * channels; }, sum, dot);
    }
    if constexpr (Backward) {
        MEDNEXT_OPS_SHARED(of_warp, float[2][kWarps][kWarpSize]);
        of_warp[0][warp][lane] = sum;
        of_warp[1][warp][lane] = dot;
        __syncthreads();
        if (warp == 0 && channel < channels) {
            for (int other = 1; other < kWarps; ++other) {
                sum += of_warp[0][other][lane];
                dot += of_warp[1][other][lane];
            }
            const std::int64_t at = (tile * p.problem.batch + sample) * channels + channel;
            p.partial_sum[at] = sum;
            p.partial_dot[at] = dot;
        }
    }
}

// ---- the gradient of the normalised tensor, written out ----
//
//   contiguous:     a block is a run of kBlockElements of one channel of one sample
//   channels-last:  a thread takes a vector of channels of one voxel
//   vectors are 16 bytes, or a single element where V, or C in channels-last, is no multiple of that

template <typename T, int Width>
__device__ void write_gradient(const GradientProblem& p, void* result, std::int64_t at, const float (&scale)[Width],
                               const float (&slope)[Width], const float (&offset)[Width]) {
    const auto grad = *reinterpret_cast<const Vector<T, Width>*>(static_cast<const T*>(p.grad) + at);
    const auto output = *reinterpret_cast<const Vector<T, Width>*>(static_cast<const T*>(p.output) + at);
    Vector<T, Width> written;
#pragma unroll
    for (int i = 0; i < Width; ++i) {
        const float rest = fmaf(slope[i], to_float(output.element[i]), offset[i]);
        written.element[i] = from_float<T>(fmaf(scale[i], to_float(grad.element[i]), rest));
    }
    *reinterpret_cast<Vector<T, Width>*>(static_cast<T*>(result) + at) = written;
}

template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    contiguous_gradient(const __grid_constant__ GradientProblem p, void* result, std::int64_t tiles) {
    const std::int64_t volume = blockIdx.x / tiles;  // n * C + c
    const std::int64_t begin = blockIdx.x % tiles * kBlockElements;
    const std::int64_t end = begin + kBlockElements < p.voxels ? begin + kBlockElements : p.voxels;
    float scale[Width];
    float slope[Width];
    float offset[Width];
#pragma unroll
    for (int i = 0; i < Width; ++i) {
        scale[i] = p.scale[volume];
        slope[i] = p.slope[volume];
        offset[i] = p.offset[volume];
    }
#pragma unroll 4
    for (std::int64_t v = begin + static_cast<int>(threadIdx.x) * Width; v < end; v += kThreads * Width) {
        write_gradient<T>(p, result, volume * p.voxels + v, scale, slope, offset);
    }
}

template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessorChannelsLast)
    channels_last_gradient(const __grid_constant__ GradientProblem p, void* result, std::int64_t vectors) {
    const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (number >= vectors) return;
    const std::int64_t at = number * Width;
    const std::int64_t first = at / (p.voxels * p.channels) * p.channels + at % p.channels;
    float scale[Width];
    float slope[Width];
    float offset[Width];
#pragma unroll
    for (int i = 0; i < Width; ++i) {
        scale[i] = p.scale[first + i];
        slope[i] = p.slope[first + i];
        offset[i] = p.offset[first + i];
    }
    write_gradient<T>(p, result, at, scale, slope, offset);
}

template <typename T, int Width>
cudaError_t launch_gradient_of_width(const GradientProblem& p, void* result, cudaStream_t stream) {
    const std::int64_t tiles = ceil_div(p.voxels, kBlockElements);
    const std::int64_t vectors = p.batch * p.channels * p.voxels / Width;
    const std::int64_t blocks = p.channels_last ? ceil_div(vectors, kThreads) : p.batch * p.channels * tiles;
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    const LaunchShape shape{static_cast<unsigned>(blocks), kThreads, 0, stream};
    return p.channels_last ? launch<channels_last_gradient<T, Width>>(shape, p, result, vectors)
                           : launch<contiguous_gradient<T, Width>>(shape, p, result, tiles);
}

template <bool Backward>
cudaError_t launch_walk(const Parameters& p, cudaStream_t stream) {
    const std::int64_t blocks = blocks_of(p.problem);
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    const LaunchShape shape{static_cast<unsigned>(blocks), kThreads, 0, stream};
    return with_scalar_type(p.problem.type, [&]<typename T>(const T*) {
        return p.problem.channels_last ? launch<channels_last<T, Backward>>(shape, p)
                                       : launch<contiguous<T, Backward>>(shape, p);
    });
}

}  // namespace

cudaError_t launch_apply(const ApplyProblem& p, void* output, cudaStream_t stream) {
    return launch_walk<false>({p, tiles_of(p), nullptr, output, nullptr, nullptr}, stream);
}

cudaError_t launch_gradient(const GradientProblem& p, void* result, cudaStream_t stream) {
    return with_scalar_type(p.type, [&]<typename T>(const T*) {
        constexpr int kWidth = 16 / sizeof(T);
        const auto aligned = [](const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; };
        const bool wide = aligned(p.grad) && aligned(p.output) && aligned(result) &&
                          (p.channels_last ? p.channels : p.voxels) % kWidth == 0;
        return wide ? launch_gradient_of_width<T, kWidth>(p, result, stream)
                    : launch_gradient_of_width<T, 1>(p, result, stream);
    });
}

std::int64_t gradient_parts(const ApplyProblem& p) {
    return tiles_of(p);
}

cudaError_t launch_apply_gradient(const ApplyProblem& p, const void* grad_output, void* grad, float* workspace,
                                  float* grad_sum, float* grad_dot_normalized, cudaStream_t stream) {
    const std::int64_t sums = p.batch * p.channels;
    const std::int64_t parts = gradient_parts(p);
    float* const partial_dot = workspace + parts * sums;
    cudaError_t error = launch_walk<true>({p, parts, grad_output, grad, workspace, partial_dot}, stream);
    using depthwise_conv3d::launch_reduction;
    if (error == cudaSuccess) error = launch_reduction(workspace, sums, parts, grad_sum, stream);
    if (error == cudaSuccess) error = launch_reduction(partial_dot, sums, parts, grad_dot_normalized, stream);
    return error;
}

}  // namespace mednext_ops::cuda::group_norm
