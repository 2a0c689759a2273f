// Which core runs a problem, and how the work is cut: decided on the host from the shape and the architecture alone.
//
// The number of multiprocessors does not enter: the same problem gives the same bits on every GPU of an architecture.
// Pure C++: it is also compiled into the module that `python -m mednext_ops.info --plan` asks.
#pragma once

#include <cstdint>
#include <string>

#include "plane_layout.h"
#include "problem.h"
#include "streaming_tiles.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// general: any kernel, stride, dilation, type and format, in float FMAs, one output at a time.
// streaming: KxKxK and 1xKxK, K = 3, 5, 7, of every type and format, in float FMAs.
// banded: 16-bit NCDHW at stride 1 on tensor cores (sm_80 and newer).
// planar: the same in fewer products, where planes come by the copy engine (sm_90 and newer) or by copies of 8 bytes.
// strided: 16-bit NCDHW, a gather of KxKxK at stride 2 along all axes on tensor cores (sm_80 and newer).
// strided_scatter: the scatter of the same.
enum class ConvolutionCore { general, streaming, banded, planar, strided, strided_scatter };

// The tile of a block of threads of the banded core. Eight outputs along W are an octet; a warp makes `fragments`, one
// or four, of 16 octets, which are numbered along the rows of the tile.
struct BandedTile {
    static constexpr int kMostFragments = 4;
    static constexpr int kOctetsPerFragment = 16;
    static constexpr int kFullRowPitch = kOctetsPerFragment + 1;

    Fill fill;
    bool full_rows;  // a row of the tile is one fragment: neighbours share what they load
    int fragments;
    int warps;
    int stages;  // planes in flight or in use
    int octets;  // of a row of the tile
    int rows;    // output rows of the tile
    int depth;   // output planes of a block
    int tiles_d, tiles_h, tiles_w;

    // Octets from one row of a plane in shared memory to the next. Rows that share a fragment may meet in a bank, two
    // windows of eight at most; in exchange a chunk's place follows from its number.
    constexpr int row_pitch() const { return octets + 1; }

    constexpr PlaneLayout planes(int kernel_h, bool affine) const {
        return {rows + kernel_h - 1, octets + 1, row_pitch(), stages, affine, fill};
    }
    constexpr int tiles() const { return tiles_d * tiles_h * tiles_w; }  // blocks a sample and channel
};

// The tile of a block of threads of the planar core. Four outputs along W are a quad, a quad of a few rows a unit; a
// warp makes `fragments` units one below the other, a strip, of 8 or 16 quads, which are numbered along the strips of
// the tile.
struct PlanarTile {
    static constexpr int kMostWarps = 8;
    static constexpr int kFewFragments = 2;
    static constexpr int kMostFragments = 4;
    static constexpr int kHalo = 8;  // columns on each side of a row: boxes begin at an octet
    // Planes of a gradient that is computed: one in use, by some warps still the one before it, one in the making.
    static constexpr int kOperands = 3;

    static constexpr int unit_rows(int kernel_h) { return kernel_h == 7 ? 4 : 2; }
    static constexpr int units(int kernel_h) { return kernel_h == 7 ? 8 : 16; }  // of a warp, side by side
    // Blocks of the most warps that a multiprocessor has registers for; 0 where even one would spill. For Blackwell
    // ptxas keeps in registers what it finds uniform for sm_90.
    static constexpr int resident_blocks(int kernel_d, int kernel_h, int fragments, bool mapped, Fill fill,
                                         int architecture) {
        const bool few = fragments == kFewFragments;
        if (kernel_d == 1) return 2;
        if (fill == Fill::async) return kernel_h == 3 && (few || !mapped) ? 2 : 1;
        if (architecture >= 100) return kernel_h == 3 && few ? 2 : kernel_h == 7 && !few ? 0 : 1;
        return kernel_h == 3 || (kernel_h == 5 && few && mapped) ? 2 : 1;
    }

    // Where there is code: Blackwell has the copy engine's alone.
    static constexpr bool is_built(Fill fill, int architecture) {
        return fill == Fill::boxes ? architecture >= 90
                                   : fill == Fill::async && architecture >= 80 && architecture < 100;
    }

    int fragments;
    int warps;
    int stages;  // planes in flight or in use
    int quads;   // of a row of the tile
    int strips;
    int depth;  // output planes of a block
    int tiles_d, tiles_h, tiles_w;
    Fill fill;

    constexpr int strip_rows(int kernel_h) const { return fragments * unit_rows(kernel_h); }
    constexpr int rows(int kernel_h) const { return strips * strip_rows(kernel_h); }
    constexpr int plane_rows(int kernel_h) const { return rows(kernel_h) + kernel_h - 1; }
    // For KH = 7 lanes load of two rows at once: 12 words modulo 32 from row to row keep them apart.
    constexpr int row_bytes(int kernel_h) const {
        const int octets = (4 * quads + 2 * kHalo) / 8;
        return 16 * (kernel_h == 7 && octets % 8 == 2 ? octets + 1 : octets);
    }
    constexpr int plane_bytes(int kernel_h) const {
        return (plane_rows(kernel_h) * row_bytes(kernel_h) + 127) / 128 * 128;
    }
    constexpr int planes_bytes(int kernel_h, bool mapped) const {
        return (mapped ? 2 * stages + kOperands : stages) * plane_bytes(kernel_h);
    }
    constexpr std::int64_t tiles() const { return static_cast<std::int64_t>(tiles_d) * tiles_h * tiles_w; }
};

// A plane of a strided tile in shared memory: rows of windows, an octet apart and two wide, with an octet more that the
// copies of staged rows may reach.
struct StridedLayout {
    int rows;
    int quads;  // windows a row

    constexpr int row_bytes() const { return 16 * (octets() + 1); }
    constexpr int octets() const { return quads + 1; }  // of a row, that windows reach
    constexpr int plane_bytes() const { return (rows * row_bytes() + 127) / 128 * 128; }
};

// The tile of a block of threads of the strided core. Four outputs along W are a quad; a warp makes two fragments of 16
// quads in two rows, which are numbered along the pairs of rows of the tile.
struct StridedTile {
    static constexpr int kMostWarps = 4;
    static constexpr int kFragments = 2;
    static constexpr int kWindows = 16;  // of a fragment

    bool direct;  // input rows are whole chunks of 8 bytes, and need no computing
    int warps;
    int quads;  // of a row of the tile
    int pairs;  // of output rows
    int depth;  // output planes of a block
    int tiles_d, tiles_h, tiles_w;

    constexpr std::int64_t tiles() const { return static_cast<std::int64_t>(tiles_d) * tiles_h * tiles_w; }
    constexpr StridedLayout layout(int kernel) const { return {4 * pairs + kernel - 2, quads}; }

    // Input planes on their way, and those in shared memory: where they are staged, two of them are operands, and where
    // they are computed, each is two on its way. Three blocks fit a multiprocessor.
    static constexpr int stages(bool staged, bool mapped) { return mapped ? 2 : staged ? 3 : 4; }
    static constexpr int planes(bool staged, bool mapped) {
        return stages(staged, mapped) * (mapped ? 2 : 1) + (staged ? 2 : 0);
    }
};

// A plane of the input of a strided scatter in shared memory: rows of octets, a fixed number of bytes apart.
struct ScatterLayout {
    static constexpr int kRowBytes = 160;  // nine octets, and one that the copies of staged rows may reach

    int rows;
    int windows;  // a row, four elements apart and eight wide

    static constexpr int row_bytes() { return kRowBytes; }
    constexpr int octets() const { return (4 * windows + 13) / 8; }  // two elements before the first window
    constexpr int plane_bytes() const { return (rows * kRowBytes + 127) / 128 * 128; }
};

// The tile of a block of threads of the scatter at stride 2. A window makes eight outputs along W in two rows, a pair;
// a warp makes two fragments of 16 windows, which are numbered along the pairs of rows of the tile.
struct ScatterTile {
    static constexpr int kMostWarps = 4;
    static constexpr int kFragments = 2;
    static constexpr int kWindows = 16;  // of a fragment, and of a row at most

    bool direct;  // input rows are whole chunks of 8 bytes, and need no computing
    int warps;
    int windows;  // of a row of the tile
    int pairs;    // of output rows
    int depth;    // pairs of output planes of a block
    int tiles_d, tiles_h, tiles_w;

    constexpr std::int64_t tiles() const { return static_cast<std::int64_t>(tiles_d) * tiles_h * tiles_w; }
    constexpr ScatterLayout layout(int kernel) const { return {pairs + (kernel + 1) / 2 - 1, windows}; }
};

struct ConvolutionPlan {
    ConvolutionCore core;
    std::int64_t moments_per_channel;  // written a sample and channel where statistics are asked for
    StreamingTile streaming;           // of that core
    BandedTile banded;                 // of that core
    PlanarTile planar;                 // of that core
    StridedTile strided;               // of that core
    ScatterTile strided_scatter;       // of that core
};

// As above, and strided: 16-bit NCDHW, KxKxK at stride 2 on tensor cores (sm_80 and newer).
enum class WeightGradientCore { general, streaming, banded, strided };

// The tile of a block of threads of the banded weight gradient. A patch is 16 columns of a few rows of the large
// tensor, with the rows of the small one that they meet; a warp has `patches` of them, one below the other.
struct WeightGradientTile {
    static constexpr int kMostWarps = 8;
    static constexpr int kPatchColumns = 16;
    // Rows of the small tensor that a patch meets. A kernel of 3 and of 5 leaves one or two of them without a use.
    static constexpr int kSmallRows = 8;
    static constexpr int kLargeHalo = 8;  // columns of the large tensor on each side: an octet

    // Rows of the large tensor in a patch.
    static constexpr int patch_rows(int kernel_h) { return kernel_h == 3 ? 4 : kernel_h == 5 ? 3 : 2; }
    // Patches of a warp that leave it enough registers.
    static constexpr int most_patches(int kernel_d) { return kernel_d <= 3 ? 8 : kernel_d == 5 ? 5 : 4; }

    Fill fill;
    int warps_h, warps_w;  // of the block, rows and columns of warps
    int patches;
    int stages;  // planes in flight or in use
    int depth;   // planes of the large tensor
    int tiles_d, tiles_h, tiles_w;

    constexpr int warps() const { return warps_h * warps_w; }
    constexpr int tiles() const { return tiles_d * tiles_h * tiles_w; }  // blocks a sample and channel
    constexpr int columns() const { return kPatchColumns * warps_w; }
    constexpr int rows(int kernel_h) const { return warps_h * patches * patch_rows(kernel_h); }

    // Rows follow on in shared memory so that a warp's loads find each word in another bank:
    // weight_gradient_patches.cuh.
    constexpr PlaneLayout large_planes(int kernel_h, bool affine) const {
        const int octets = 2 * warps_w + 2 * kLargeHalo / 8;
        int pitch = octets;
        while (kernel_h == 3 ? pitch % 4 != 2 : pitch % 8 != 3 && pitch % 8 != 5 && (kernel_h == 5 || pitch % 8 != 4)) {
            ++pitch;
        }
        return {rows(kernel_h), octets, pitch, stages, affine, fill};
    }
    constexpr PlaneLayout small_planes(int kernel_h, bool affine) const {
        const int octets = 2 * warps_w;
        return {
            rows(kernel_h) - patch_rows(kernel_h) + kSmallRows, octets, octets + 2 - octets % 4, stages, affine, fill};
    }
};

// The tile of a block of threads of the weight gradient at stride 2. A warp has one patch, two rows and 32 columns of
// the large tensor, and walks along D in steps of four planes.
struct StridedWeightTile {
    static constexpr int kMostWarps = 4;
    static constexpr int kPatchRows = 2;
    static constexpr int kPatchColumns = 32;
    static constexpr int kStepPlanes = 4;

    // Rows 2 i and 2 i + 1 of the large tensor meet `span` rows of the small one, from i + first on; likewise planes
    // and columns. A step, two such pairs of planes, meets one more.
    static constexpr int first(int kernel) { return -((kernel - 1) / 4); }
    static constexpr int span(int kernel) { return (kernel + 1) / 2; }
    static constexpr int held(int kernel) { return span(kernel) + 1; }

    bool large_aligned;  // rows are whole vectors of 16 bytes
    bool small_aligned;  // rows are whole words
    int warps;           // of the block: patches that follow each other, along W first
    int depth;           // steps of a block
    int steps;           // of the volume
    int patches_h, patches_w;
    int tiles_d, tiles_hw;

    constexpr std::int64_t tiles() const { return static_cast<std::int64_t>(tiles_d) * tiles_hw; }
};

struct WeightGradientPlan {
    WeightGradientCore core;
    std::int64_t parts;  // partial sums a channel and tap
    std::int64_t workspace_bytes;
    StreamingWeightTile streaming;  // of that core
    WeightGradientTile banded;      // of that core
    StridedWeightTile strided;      // of that core
};

// `architecture` is 10 * major + minor: 90.
ConvolutionPlan plan_convolution(const ConvolutionProblem& problem, int architecture);
WeightGradientPlan plan_weight_gradient(const WeightGradientProblem& problem, int architecture);

}  // namespace mednext_ops::cuda::depthwise_conv3d
