// Two layouts, one scheme: shifted sums over a block in double (a float's square is exact in it), then Chan's merge.
#include "statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mednext_ops::cpu::group_norm {
namespace {

// A block stays in the second-level cache and takes some 10 us: enough to pay for handing it to a thread.
constexpr std::int64_t kBlockElements = 32768;

// Channels-last: a block is kTileVoxels voxels of kTileChannels channels; the sums of a tile fit the first-level cache.
constexpr std::int64_t kTileChannels = 32;
constexpr std::int64_t kTileVoxels = kBlockElements / kTileChannels;

// Independent partial sums: as many as fill the vector registers of plain x86-64 without spilling.
constexpr int kLanes = 8;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

// Contiguous: a group is one run of (C / G) * V elements, cut into `blocks_per_run`; moments are [N, G,
// blocks_per_run].
std::int64_t run_length(const StatisticsProblem& p) {
    return p.channels / p.num_groups * p.voxels;
}

std::int64_t blocks_per_run(const StatisticsProblem& p) {
    return ceil_div(run_length(p), kBlockElements);
}

// Channels-last: blocks are [N, voxel tiles, channel tiles]; moments are [N, C, voxel tiles] = [N, G, C / G, tiles].
std::int64_t voxel_tiles(const StatisticsProblem& p) {
    return ceil_div(p.voxels, kTileVoxels);
}

std::int64_t channel_tiles(const StatisticsProblem& p) {
    return ceil_div(p.channels, kTileChannels);
}

template <typename T>
Moments moments_of_run(const T* values, std::int64_t count) {
    const double shift = to_float(values[0]);
    double sum[kLanes] = {};
    double sum_squares[kLanes] = {};
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const double shifted = static_cast<double>(to_float(values[i + lane])) - shift;
            sum[lane] += shifted;
            sum_squares[lane] += shifted * shifted;
        }
    }
    for (; i < count; ++i) {
        const double shifted = static_cast<double>(to_float(values[i])) - shift;
        sum[0] += shifted;
        sum_squares[0] += shifted * shifted;
    }
    for (int lane = 1; lane < kLanes; ++lane) {
        sum[0] += sum[lane];
        sum_squares[0] += sum_squares[lane];
    }
    return moments_from_shifted_sums(static_cast<double>(count), shift, sum[0], sum_squares[0]);
}

template <typename T>
void compute_contiguous_block(const StatisticsProblem& p, std::int64_t block, Moments* moments) {
    const std::int64_t length = run_length(p);
    const std::int64_t begin = block % blocks_per_run(p) * kBlockElements;
    const T* run = static_cast<const T*>(p.input) + block / blocks_per_run(p) * length;
    moments[block] = moments_of_run(run + begin, std::min(kBlockElements, length - begin));
}

template <typename T>
void compute_channels_last_block(const StatisticsProblem& p, std::int64_t block, Moments* moments) {
    const std::int64_t channel_tile = block % channel_tiles(p);
    const std::int64_t voxel_tile = block / channel_tiles(p) % voxel_tiles(p);
    const std::int64_t sample = block / channel_tiles(p) / voxel_tiles(p);
    const std::int64_t channel = channel_tile * kTileChannels;
    const std::int64_t width = std::min(kTileChannels, p.channels - channel);
    const std::int64_t voxel = voxel_tile * kTileVoxels;
    const std::int64_t height = std::min(kTileVoxels, p.voxels - voxel);

    const T* row = static_cast<const T*>(p.input) + (sample * p.voxels + voxel) * p.channels + channel;
    double shift[kTileChannels];
    double sum[kTileChannels] = {};
    double sum_squares[kTileChannels] = {};
    for (std::int64_t c = 0; c < width; ++c) shift[c] = to_float(row[c]);
    for (std::int64_t v = 0; v < height; ++v, row += p.channels) {
        for (std::int64_t c = 0; c < width; ++c) {
            const double shifted = static_cast<double>(to_float(row[c])) - shift[c];
            sum[c] += shifted;
            sum_squares[c] += shifted * shifted;
        }
    }
    Moments* out = moments + (sample * p.channels + channel) * voxel_tiles(p) + voxel_tile;
    for (std::int64_t c = 0; c < width; ++c) {
        out[c * voxel_tiles(p)] =
            moments_from_shifted_sums(static_cast<double>(height), shift[c], sum[c], sum_squares[c]);
    }
}

}  // namespace

std::int64_t block_count(const StatisticsProblem& p) {
    return p.channels_last ? p.batch * voxel_tiles(p) * channel_tiles(p) : p.batch * p.num_groups * blocks_per_run(p);
}

std::int64_t moments_count(const StatisticsProblem& p) {
    return p.channels_last ? p.batch * p.channels * voxel_tiles(p) : block_count(p);
}

std::int64_t elements_per_block(const StatisticsProblem& p) {
    const std::int64_t blocks = block_count(p);
    return blocks == 0 ? kBlockElements : ceil_div(p.batch * p.channels * p.voxels, blocks);
}

void compute_blocks(const StatisticsProblem& p, std::int64_t begin, std::int64_t end, Moments* moments) {
    with_scalar_type(p.type, [&]<typename T>(const T*) {
        for (std::int64_t block = begin; block < end; ++block) {
            if (p.channels_last) {
                compute_channels_last_block<T>(p, block, moments);
            } else {
                compute_contiguous_block<T>(p, block, moments);
            }
        }
    });
}

void finalize(const Moments* moments, std::int64_t groups, std::int64_t moments_per_group, double eps, float* mean,
              float* rstd) {
    for (std::int64_t group = 0; group < groups; ++group) {
        Moments all;
        for (std::int64_t i = 0; i < moments_per_group; ++i) all = merge(all, moments[group * moments_per_group + i]);
        const double nan = std::numeric_limits<double>::quiet_NaN();
        const double variance = all.count > 0 ? all.sum_squared_deviations / all.count : nan;
        mean[group] = static_cast<float>(all.count > 0 ? all.mean : nan);
        rstd[group] = static_cast<float>(1.0 / std::sqrt(variance + eps));
    }
}

}  // namespace mednext_ops::cpu::group_norm
