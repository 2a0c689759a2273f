// Which core runs a problem, and how the work is cut: decided on the host from the shape and the architecture alone.
//
// The number of multiprocessors does not enter: the same problem gives the same bits on every GPU of an architecture.
// Pure C++: it is also compiled into the module that `python -m mednext_ops.info --plan` asks.
#pragma once

#include <cstdint>
#include <string>

#include "plane_layout.h"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// general: any kernel, stride, dilation, type and format, in float FMAs.
// banded: 16-bit NCDHW at stride 1 on tensor cores (sm_80 and newer).
enum class ConvolutionCore { general, banded };

// The tile of a block of threads of the banded core. Eight outputs along W are an octet; a warp makes kFragments
// fragments of 16 octets, which are numbered along the rows of the tile.
struct BandedTile {
    static constexpr int kFragments = 4;
    static constexpr int kOctetsPerFragment = 16;
    static constexpr int kFullRowPitch = kOctetsPerFragment + 1;

    Fill fill;
    bool full_rows;  // a row of the tile is one fragment: neighbours share what they load
    int warps;
    int stages;     // planes in flight or in use
    int octets;     // of a row of the tile
    int rows;       // output rows of the tile
    int row_pitch;  // octets from one row of a plane in shared memory to the next
    int depth;      // output planes of a block
    int tiles_d, tiles_h, tiles_w;

    constexpr PlaneLayout planes(int kernel_h, bool affine) const {
        return {rows + kernel_h - 1, octets + 1, row_pitch, stages, affine, fill};
    }
    constexpr int tiles() const { return tiles_d * tiles_h * tiles_w; }  // blocks a sample and channel
};

struct ConvolutionPlan {
    ConvolutionCore core;
    std::int64_t moments_per_channel;  // written a sample and channel where statistics are asked for
    BandedTile banded;                 // of that core
};

enum class WeightGradientCore { general };

struct WeightGradientPlan {
    WeightGradientCore core;
    std::int64_t parts;  // partial sums a channel and tap
    std::int64_t workspace_bytes;
};

// `architecture` is 10 * major + minor: 90.
ConvolutionPlan plan_convolution(const ConvolutionProblem& problem, int architecture);
WeightGradientPlan plan_weight_gradient(const WeightGradientProblem& problem, int architecture);

}  // namespace mednext_ops::cuda::depthwise_conv3d
