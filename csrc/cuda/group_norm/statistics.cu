// Two layouts, one scheme: a thread takes kPerThread values at a time into registers and adds them to its sums, then
// the threads of a block merge their moments, in double.
//
// Values are taken relative to a pivot, the first one that a block reads, so that float is enough for a thread's sums
// also where the mean is far larger than the deviation.
#include <climits>
#include <cstdint>

#include "../common/launch.h"
#include "../common/moments.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "statistics.h"

namespace mednext_ops::cuda::group_norm {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// Two blocks a multiprocessor leave 128 registers a thread; left to itself ptxas saves registers and spills (on sm_75,
// and in `finalize` on sm_100).
constexpr int kBlocksPerProcessor = 2;

// 16 loads in flight a thread; the division of a merge is shared by 16 values.
constexpr int kPerThread = 16;

// Contiguous: elements of one run that a block reads. 8 rounds: the block's own merge costs a few percent of them, and
// a 128^3 channel still makes 64 blocks.
constexpr std::int64_t kBlockElements = 8LL * kThreads * kPerThread;

// Channels-last: a block is a tile of voxels x channels, its warps are rows of 32 adjacent channels.
constexpr int kTileChannels = kWarpSize;
constexpr std::int64_t kTileVoxels = 8LL * kWarps * kPerThread;

constexpr int kFinalizeThreads = 128;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

// How a problem is cut. Moments in the workspace are [N, G, moments_per_group].
struct Plan {
    std::int64_t groups;             // N * G
    std::int64_t run_length;         // contiguous: (C / G) * V elements of a group lie side by side
    std::int64_t tiles;              // contiguous: blocks a run; channels-last: tiles of voxels
    std::int64_t channel_tiles;      // channels-last only
    std::int64_t moments_per_group;  // contiguous: tiles; channels-last: [C / G, tiles]
    std::int64_t blocks;

    explicit Plan(const StatisticsProblem& p)
        : groups(p.batch * p.num_groups), run_length(p.channels / p.num_groups * p.voxels) {
        tiles = p.channels_last ? ceil_div(p.voxels, kTileVoxels) : ceil_div(run_length, kBlockElements);
        channel_tiles = ceil_div(p.channels, kTileChannels);
        moments_per_group = p.channels_last ? p.channels / p.num_groups * tiles : tiles;
        blocks = p.channels_last ? p.batch * tiles * channel_tiles : groups * tiles;
    }
};

// Moments of many values from those of a few at a time: the sums of the means and of their squares, and of the squared
// deviations from them. In double nothing is lost where the pivot is an outlier and they are large and nearly equal.
struct Sums {
    double count = 0.0;
    double sum = 0.0;
    double squares = 0.0;
    double deviations = 0.0;

    __device__ void add(const Moments<float>& few, float missing) {
        const double mean = static_cast<double>(few.mean) + static_cast<double>(missing);
        const double share = few.count * mean;
        count += few.count;
        sum += share;
        squares = fma(share, mean, squares);
        deviations += few.sum_squared_deviations;
    }

    __device__ Moments<double> moments(float pivot) const {
        if (count == 0.0) return {0.0, 0.0, 0.0};
        const double mean = sum / count;
        const double between = squares - sum * mean;
        return {count, static_cast<double>(pivot) + mean, deviations + (between < 0.0 ? 0.0 : between)};
    }
};

// ---- contiguous ----
//
//   run:     |<------------------------ (C / G) * V elements ------------------------>|
//   blocks:  |  kBlockElements  |  kBlockElements  |  kBlockElements  |     rest      |
//   round:   vector j of thread t starts at ((j * kThreads) + t) * Width: neighbours read neighbours

template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    contiguous_moments(const T* __restrict__ input, std::int64_t run_length, std::int64_t tiles,
                       Moments<double>* __restrict__ moments) {
    constexpr int kVectors = kPerThread / Width;
    const std::int64_t run = blockIdx.x / tiles;
    const std::int64_t begin = blockIdx.x % tiles * kBlockElements;
    const std::int64_t end = begin + kBlockElements < run_length ? begin + kBlockElements : run_length;
    const T* __restrict__ values = input + run * run_length;
    const float pivot = to_float(values[begin]);
    Sums sums;
    for (std::int64_t round = begin; round < end; round += kThreads * kPerThread) {
        float loaded[kPerThread];
        int count = 0;  // valid ones come first, since a thread's later vectors lie further on
#pragma unroll
        for (int j = 0; j < kVectors; ++j) {
            const std::int64_t at = round + (j * kThreads + static_cast<int>(threadIdx.x)) * Width;
            const bool valid = at < end;  // Width divides the run's length: a vector is inside or outside as a whole
            Vector<T, Width> vector{};
            if (valid) vector = *reinterpret_cast<const Vector<T, Width>*>(values + at);
#pragma unroll
            for (int i = 0; i < Width; ++i) loaded[j * Width + i] = to_float(vector.element[i]) - pivot;
            count += valid ? Width : 0;
        }
        float missing;
        const Moments<float> few = moments_of(loaded, count, missing);
        sums.add(few, missing);
    }

    MEDNEXT_OPS_SHARED(of_warp, Moments<double>[kWarps]);
    Moments<double> mine = merge_warp(sums.moments(pivot));
    if (threadIdx.x % kWarpSize == 0) of_warp[threadIdx.x / kWarpSize] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < kWarps; ++warp) mine = merge(mine, of_warp[warp]);
        moments[blockIdx.x] = mine;
    }
}

// ---- channels-last ----
//
//   a block:  kTileVoxels voxels x 32 channels; lane = channel, warp w takes voxels w, w + kWarps, ...
//   the warps' moments of a channel are merged by the lane of warp 0 that owns it

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    channels_last_moments(const T* __restrict__ input, std::int64_t channels, std::int64_t voxels, std::int64_t tiles,
                          std::int64_t channel_tiles, Moments<double>* __restrict__ moments) {
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const std::int64_t channel = blockIdx.x % channel_tiles * kTileChannels + lane;
    const std::int64_t tile = blockIdx.x / channel_tiles % tiles;
    const std::int64_t sample = blockIdx.x / channel_tiles / tiles;
    const std::int64_t begin = tile * kTileVoxels;
    const std::int64_t end = begin + kTileVoxels < voxels ? begin + kTileVoxels : voxels;
    const T* __restrict__ values = input + sample * voxels * channels + channel;
    const float pivot = channel < channels ? to_float(values[begin * channels]) : 0.0f;
    Sums sums;
    for (std::int64_t round = begin + warp; round < end; round += kWarps * kPerThread) {
        const std::int64_t ahead = channel < channels ? ceil_div(end - round, kWarps) : 0;
        const int count = ahead < kPerThread ? static_cast<int>(ahead) : kPerThread;
        const T* __restrict__ column = values + round * channels;
        float loaded[kPerThread];
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
            loaded[i] = i < count ? to_float(*column) - pivot : 0.0f;
            column += kWarps * channels;
        }
        float missing;
        const Moments<float> few = moments_of(loaded, count, missing);
        sums.add(few, missing);
    }

    MEDNEXT_OPS_SHARED(of_warp, Moments<double>[kWarps][kWarpSize]);
    Moments<double> mine = sums.moments(pivot);
    of_warp[warp][lane] = mine;
    __syncthreads();
    if (warp == 0 && channel < channels) {
        for (int other = 1; other < kWarps; ++other) mine = merge(mine, of_warp[other][lane]);
        moments[(sample * channels + channel) * tiles + tile] = mine;
    }
}

// ---- finalize ----
//
//   one warp a group: lane l merges moments l, l + 32, ..., then the lanes merge theirs

__global__ void __launch_bounds__(kFinalizeThreads, kBlocksPerProcessor)
    finalize(const Moments<double>* __restrict__ moments, std::int64_t groups, std::int64_t moments_per_group,
             double eps, float* __restrict__ mean, float* __restrict__ rstd) {
    const int lane = threadIdx.x % kWarpSize;
    const std::int64_t group = (static_cast<std::int64_t>(blockIdx.x) * kFinalizeThreads + threadIdx.x) / kWarpSize;
    if (group >= groups) return;  // whole warps

    Moments<double> all{0.0, 0.0, 0.0};
    for (std::int64_t i = lane; i < moments_per_group; i += kWarpSize) {
        all = merge(all, moments[group * moments_per_group + i]);
    }
    all = merge_warp(all);
    if (lane == 0) {
        const double nan = __longlong_as_double(0x7ff8000000000000LL);
        const double variance = all.count > 0.0 ? all.sum_squared_deviations / all.count : nan;
        mean[group] = static_cast<float>(all.count > 0.0 ? all.mean : nan);
        rstd[group] = static_cast<float>(1.0 / sqrt(variance + eps));
    }
}

// ---- launch ----

template <typename T>
cudaError_t launch_moments(const StatisticsProblem& p, const Plan& plan, Moments<double>* moments,
                           cudaStream_t stream) {
    constexpr int kWidth = 16 / sizeof(T);  // one 128-bit load
    const T* input = static_cast<const T*>(p.input);
    const LaunchShape shape{static_cast<unsigned>(plan.blocks), kThreads, 0, stream};
    const bool aligned = reinterpret_cast<std::uintptr_t>(input) % 16 == 0 && plan.run_length % kWidth == 0;
    if (p.channels_last) {
        return launch<channels_last_moments<T>>(shape, input, p.channels, p.voxels, plan.tiles, plan.channel_tiles,
                                                moments);
    }
    if (aligned) return launch<contiguous_moments<T, kWidth>>(shape, input, plan.run_length, plan.tiles, moments);
    return launch<contiguous_moments<T, 1>>(shape, input, plan.run_length, plan.tiles, moments);
}

}  // namespace

std::int64_t statistics_workspace_bytes(const StatisticsProblem& p) {
    const Plan plan(p);
    return plan.groups * plan.moments_per_group * static_cast<std::int64_t>(sizeof(Moments<double>));
}

cudaError_t launch_statistics(const StatisticsProblem& p, void* workspace, float* mean, float* rstd,
                              cudaStream_t stream) {
    const Plan plan(p);
    if (plan.groups == 0) return cudaSuccess;
    if (plan.blocks > INT_MAX) return cudaErrorInvalidConfiguration;

    auto* moments = static_cast<Moments<double>*>(workspace);
    if (plan.blocks > 0) {
        const cudaError_t error =
            with_scalar_type(p.type, [&]<typename T>(const T*) { return launch_moments<T>(p, plan, moments, stream); });
        if (error != cudaSuccess) return error;
    }
    return launch_finalize(moments, plan.groups, plan.moments_per_group, p.eps, mean, rstd, stream);
}

cudaError_t launch_finalize(const Moments<double>* moments, std::int64_t groups, std::int64_t moments_per_group,
                            double eps, float* mean, float* rstd, cudaStream_t stream) {
    const std::int64_t blocks = ceil_div(groups * kWarpSize, kFinalizeThreads);
    if (groups == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    return launch<finalize>({static_cast<unsigned>(blocks), kFinalizeThreads, 0, stream}, moments, groups,
                            moments_per_group, eps, mean, rstd);
}

}  // namespace mednext_ops::cuda::group_norm
