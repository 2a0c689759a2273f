// Which shapes the tensor-core kernels take and how the work is cut: from the shape and the architecture alone.
//
// The number of multiprocessors does not enter: the same problem gives the same bits on every GPU of an architecture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "problem.h"

namespace mednext_ops::cuda::inverted_bottleneck {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) {
    return ceil_div(a, b) * b;
}

// Elements from one row of a matrix in shared memory to the next: an odd number of 16-byte units, so that the eight
// rows that ldmatrix reads at once lie in different banks.
constexpr int pitch_of(int columns) {
    return columns / 8 % 2 == 0 ? columns + 8 : columns;
}

// Forward: a warp's tile is some voxels and all channels; the weights stay in shared memory.
struct ForwardPlan {
    static constexpr int kMostContiguousChannels = 64;

    // Two fragments of rows share what is loaded of the weights; of 128 outputs the registers hold one.
    static constexpr int voxels(int outputs) { return outputs <= 64 ? 32 : 16; }

    // 16 warps a multiprocessor hide the latencies of the memory where the registers of few channels allow it; with
    // many, the weights fill the shared memory and are there once.
    static constexpr int max_warps(int channels, int outputs) {
        const int product = channels * outputs;
        return product <= 32 * 64 ? 4 : 8;
    }
    static constexpr int blocks_per_processor(int channels, int outputs) {
        const int product = channels * outputs;
        return product <= 32 * 32 ? 4 : product <= 32 * 64 ? 3 : 1;
    }

    int channels, outputs;  // of the instance: what there is, filled up with zeros
    int hidden;             // filled up to whole products
    int warps;              // of a block
    int parts;              // blocks a sample
    std::int64_t tiles;     // a sample
};

// Backward, and GRN's sums of squares: the warps of a block share a tile of kVoxels voxels. Each owns 16 or 32 hidden
// channels, and where these are few, a share of the voxels too.
struct BackwardPlan {
    static constexpr int kVoxels = 64;
    static constexpr int kHiddenStep = 32;
    static constexpr int kMostHidden = 256;

    // Hidden channels of a warp. Two fragments share what is loaded of the tile, and what a warp does for each tile is
    // done half as often; with more channels their accumulators would leave registers for 8 warps a multiprocessor
    // only, those of one fragment for 16. ptxas would spill some of those on Blackwell, and of 32
    // channels with 64 outputs.
    static constexpr int rows_of_warp(int channels, int architecture) {
        return channels < 64 || architecture >= 100 ? 32 : 16;
    }
    static constexpr int resident_warps(int channels, int outputs, int rows) {
        return rows == 16 ? 16 : channels * outputs <= 32 * 32 ? 12 : 8;
    }

    int channels, outputs;  // of the instance
    int rows;               // of a warp: hidden channels
    int hidden;             // filled up to whole warps
    int splits;             // of the voxels of a tile
    int parts;              // blocks a sample
    std::int64_t tiles;     // a sample

    constexpr int warps() const { return hidden / rows * splits; }

    // Sums that each split of a block leaves in the workspace, in this order: [H, C] of the hidden gradient times the
    // normalised input, [H] of the hidden gradient; [H, O] of h times the output's gradient, [O] of the output's
    // gradient; [H] of h squared.
    constexpr std::int64_t normalized() const { return 0; }
    constexpr std::int64_t hidden_sums() const { return normalized() + std::int64_t{hidden} * channels; }
    constexpr std::int64_t compress() const { return hidden_sums() + hidden; }
    constexpr std::int64_t output_sums() const { return compress() + std::int64_t{hidden} * outputs; }
    constexpr std::int64_t squares() const { return output_sums() + outputs; }
    constexpr std::int64_t sums() const { return squares() + hidden; }
};

// None where no instance is large enough, or the GPU's shared memory too small. `architecture` is 10 * major + minor.
std::optional<ForwardPlan> plan_forward(const Extents& extents, bool channels_last, int architecture);
std::optional<BackwardPlan> plan_backward(const Extents& extents, int architecture);

// Of a block's shared memory, in the memory format that takes more.
std::int64_t shared_bytes(const ForwardPlan& plan);
std::int64_t shared_bytes(const BackwardPlan& plan);

}  // namespace mednext_ops::cuda::inverted_bottleneck
