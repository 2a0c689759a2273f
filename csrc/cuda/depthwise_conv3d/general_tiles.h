// How the general core cuts its work: plain C++, for the plan and for the kernels.
#pragma once

#include <cstdint>

#include "problem.h"
#include "streaming_tiles.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// A block of threads: all of a contiguous block work on one channel of a sample; in channels-last a lane is a channel,
// and the warps share the positions.
constexpr int kGeneralThreads = 128;
constexpr int kGeneralWarps = kGeneralThreads / 32;
constexpr int kGeneralChannels = 32;

// 128 registers a thread: left to itself, ptxas spills to save some (on sm_100), or takes more than it needs.
constexpr int kGeneralBlocksPerProcessor = 4;

// Output positions of a block of the convolution. 8 at a time are merged into a thread's moments; channels-last takes
// 8 rounds, or its moments would be many.
constexpr int kGeneralRound = 8;
constexpr std::int64_t kGeneralOutputs = kGeneralThreads * kGeneralRound;
constexpr std::int64_t kGeneralOutputsChannelsLast = kGeneralWarps * kGeneralRound * 8;

constexpr std::int64_t general_outputs(const ConvolutionProblem& p) {
    return p.channels_last ? kGeneralOutputsChannelsLast : kGeneralOutputs;
}

// What the statistics get a sample and channel: one for each block.
constexpr std::int64_t general_moments_per_channel(const ConvolutionProblem& p) {
    return ceil_div(p.output_size.product(), general_outputs(p));
}

// Positions of the small tensor, of one sample, that a block of the weight gradient adds up. A thread adds 32 in a
// row, then adds those sums: the error of a float grows with the length of a run.
constexpr int kGeneralRun = 32;
constexpr std::int64_t kGeneralPositions = kGeneralThreads * kGeneralRun;
constexpr std::int64_t kGeneralPositionsChannelsLast = kGeneralWarps * kGeneralRun * 8;

constexpr std::int64_t general_positions(const WeightGradientProblem& p) {
    return p.channels_last ? kGeneralPositionsChannelsLast : kGeneralPositions;
}

// Partial sums a channel and tap.
inline std::int64_t general_parts(const WeightGradientProblem& p) {
    return p.batch * ceil_div(p.small_size.product(), general_positions(p));
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
