// Which problems the streaming kernels take, and how they cut the volume: plain C++, for the plan and for the kernels.
//
// A warp is a tile of the volume that walks along D; its lanes are cut from W, H and the channels as the volume asks.
#pragma once

#include <climits>
#include <cstdint>

#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

struct StreamingTile {
    static constexpr int kWarps = 4;    // of a block: neighbours along H, which share rows in the first-level cache
    static constexpr int kColumns = 4;  // a thread's along W: 16 bytes of floats
    static constexpr int kPairs = 1;    // a thread's in a scatter, pairs of columns

    int rows;                       // a thread's along H
    int lanes_w, lanes_h, lanes_c;  // 32 together
    int depth;                      // planes a warp walks along
    int tiles_d, tiles_h, tiles_w;
    std::int64_t channel_tiles;

    constexpr std::int64_t tiles() const { return static_cast<std::int64_t>(tiles_d) * tiles_h * tiles_w; }
};

// A thread's rows in the convolutions: with more, sums, windows and addresses take more registers than there are.
constexpr int streaming_rows(std::int64_t kernel, std::int64_t stride, bool channels_last) {
    return channels_last && (kernel == 7 || (kernel == 5 && stride == 2)) ? 1 : 2;
}

// Warps that a launch should have at least: one and a half times what 132 multiprocessors hold. Fixed, whatever the GPU
// is, so that sums have the same bits everywhere.
constexpr std::int64_t kStreamingWarps = 2400;

// How much of `tiles` tiles of `each` is used by `all`, in thousandths.
constexpr std::int64_t use_of(std::int64_t all, std::int64_t each) {
    return all == 0 ? 1000 : 1000 * all / (ceil_div(all, each) * each);
}

// The tile for a volume of `size`, `rows` and `columns` a thread and `warps_a_tile` warps that share one. Wide lanes
// are taken unless others waste a twentieth less.
inline StreamingTile streaming_tile(const Triple& size, std::int64_t batch, std::int64_t channels, bool channels_last,
                                    int rows, int columns, int most_lanes_c, int most_depth, int warps_a_tile = 1) {
    const std::int64_t columns_of_threads = ceil_div(size.w, columns);
    const std::int64_t rows_of_threads = ceil_div(size.h, rows);
    StreamingTile best{};
    std::int64_t best_use = -1;
    const auto consider = [&](int w, int h, int c) {
        const std::int64_t use =
            use_of(columns_of_threads, w) * use_of(rows_of_threads, h) * use_of(channels, c) / 1000;
        if (c > most_lanes_c || 20 * use <= 21 * best_use) return;
        best_use = use;
        best.lanes_w = w;
        best.lanes_h = h;
        best.lanes_c = c;
    };
    if (channels_last) {
        for (int c = 32; c >= 1; c /= 2) {
            for (int w = 32 / c; w >= 1; w /= 2) consider(w, 32 / c / w, c);
        }
    } else {
        for (int w = 32; w >= 1; w /= 2) {
            for (int h = 32 / w; h >= 1; h /= 2) consider(w, h, 32 / w / h);
        }
    }
    best.rows = rows;
    best.channel_tiles = ceil_div(channels, best.lanes_c);
    best.tiles_w = static_cast<int>(ceil_div(columns_of_threads, best.lanes_w));
    best.tiles_h = static_cast<int>(ceil_div(rows_of_threads, best.lanes_h));
    best.depth = most_depth;
    const std::int64_t warps = batch * best.channel_tiles * best.tiles_w * best.tiles_h * warps_a_tile;
    while (best.depth > 2 && warps * ceil_div(size.d, best.depth) < kStreamingWarps) best.depth /= 2;
    best.tiles_d = static_cast<int>(ceil_div(size.d, best.depth));
    return best;
}

// ---- what they take ----

// KxKxK and 1xKxK, centred, at stride 1, at stride 2 along H and W, and KxKxK at stride 2 along all axes.
constexpr bool is_streaming_geometry(const Geometry& g) {
    const std::int64_t k = g.kernel.w;
    const bool kernel = (k == 3 || k == 5 || k == 7) && g.kernel.h == k && (g.kernel.d == k || g.kernel.d == 1);
    const bool centred = g.padding.d == g.kernel.d / 2 && g.padding.h == k / 2 && g.padding.w == k / 2;
    const bool stride = g.stride.h == g.stride.w && (g.stride.w == 1 || g.stride.w == 2) &&
                        (g.stride.d == 1 || (g.stride.d == 2 && g.stride.w == 2 && g.kernel.d == k));
    return kernel && centred && stride && g.dilation.d == 1 && g.dilation.h == 1 && g.dilation.w == 1;
}

// Offsets in a plane are 32-bit, and coordinates may be off by a tile.
constexpr bool is_streaming_size(const Triple& size, std::int64_t channels, bool channels_last) {
    constexpr std::int64_t kMost = INT_MAX / 4;
    const std::int64_t step = channels_last ? channels : 1;
    return size.d < kMost && size.h < kMost && size.w < kMost && step < kMost && size.h * size.w < kMost &&
           size.h * size.w * step < kMost;
}

// ---- convolutions ----

constexpr bool takes_streaming(const ConvolutionProblem& p) {
    return is_streaming_geometry(p.geometry) && is_streaming_size(p.input_size, p.channels, p.channels_last) &&
           is_streaming_size(p.output_size, p.channels, p.channels_last);
}

// Lanes along the channels: the weights of all of them lie in shared memory, 50 KiB for 32 of 7x7x7.
constexpr int streaming_most_lanes_c(const Geometry& g) {
    return g.kernel.product() > 125 ? 16 : 32;
}

// At stride 1 a scatter is a gather with the mirrored kernel.
constexpr bool is_streaming_scatter(const ConvolutionProblem& p) {
    return p.scatter && p.geometry.stride.w == 2;
}

// A thread's pairs of output rows in a scatter.
constexpr int kStreamingScatterRows = 4;

// Input plane z of a scatter reaches the output planes from stride * z - padding on, and completes the first `stride`
// of them. The first input plane that completes one that exists:
constexpr std::int64_t first_completing_plane(std::int64_t padding, std::int64_t stride) {
    return padding / stride;
}

// What the tile of a scatter counts: input planes that complete output planes, and pairs of output rows and columns.
constexpr Triple streaming_scatter_size(const ConvolutionProblem& p) {
    const std::int64_t stride = p.geometry.stride.d;
    const std::int64_t padding = p.geometry.padding.d;
    const std::int64_t last = (p.output_size.d - 1 + padding) / stride;
    return {last + 1 - first_completing_plane(padding, stride), ceil_div(p.output_size.h, 2),
            ceil_div(p.output_size.w, 2)};
}

inline StreamingTile streaming_tile(const ConvolutionProblem& p) {
    const Geometry& g = p.geometry;
    const int most_lanes_c = streaming_most_lanes_c(g);
    if (is_streaming_scatter(p)) {
        return streaming_tile(streaming_scatter_size(p), p.batch, p.channels, p.channels_last, kStreamingScatterRows,
                              StreamingTile::kPairs, most_lanes_c, 32);
    }
    return streaming_tile(p.output_size, p.batch, p.channels, p.channels_last,
                          streaming_rows(g.kernel.w, g.stride.w, p.channels_last), StreamingTile::kColumns,
                          most_lanes_c, 32);
}

// ---- the weight gradient ----

// How the planes of taps of a kernel are dealt to the warps that share a tile: warp g adds up the planes
// kd = first * g + stride * j for j = 0, 1, ..., planes - 1, as far as they are in the kernel.
struct WeightGradientGroups {
    int planes;
    int groups;
    int first;
};

// As many planes a warp as leave it its registers; in channels-last the addresses take many of them. At stride 2 a
// group has the kd of one parity, which meet the same planes of the large tensor.
constexpr WeightGradientGroups weight_gradient_groups(std::int64_t kernel_d, std::int64_t stride, bool channels_last) {
    const auto kd = static_cast<int>(kernel_d);
    if (kd == 1 || kd == 7 || (kd == 5 && channels_last)) return {1, kd, 1};
    if (stride == 1) return {3, (kd + 2) / 3, 3};
    return {(kd + 1) / 2, 2, 1};
}

// A thread's rows: 5x5x5 in channels-last has one plane of taps a warp, which leaves registers for more.
constexpr int weight_gradient_rows(std::int64_t kernel, bool channels_last) {
    return channels_last && kernel == 5 ? 4 : 2;
}

// Warps of a block.
constexpr int weight_gradient_warps(const WeightGradientGroups& groups) {
    return groups.groups > StreamingTile::kWarps ? groups.groups : StreamingTile::kWarps;
}

constexpr bool takes_streaming(const WeightGradientProblem& p) {
    return is_streaming_geometry(p.geometry) && p.geometry.stride.d == p.geometry.stride.w &&
           p.batch * p.channels * p.small_size.product() > 0 &&
           is_streaming_size(p.small_size, p.channels, p.channels_last) &&
           is_streaming_size(p.large_size, p.channels, p.channels_last);
}

// The steps of a warp along D: one for each plane of the small tensor, and more for those that the taps of a group
// reach beyond it.
constexpr std::int64_t weight_gradient_steps(const WeightGradientProblem& p) {
    return p.small_size.d + weight_gradient_groups(p.geometry.kernel.d, p.geometry.stride.d, p.channels_last).planes -
           1;
}

// What a warp has: `turns` tiles, one after the other, which make one part of the workspace.
struct StreamingWeightTile {
    StreamingTile each;  // its depth counts steps
    int turns;

    constexpr std::int64_t parts() const { return ceil_div(each.tiles(), turns); }  // a sample and channel
};

// A thread adds 8 or 16 products to a sum in each step: runs of 256, as the error of a float grows with the length of a
// run. More than twice the warps that a launch should have would only make more parts.
inline StreamingWeightTile streaming_weight_tile(const WeightGradientProblem& p) {
    const int rows = weight_gradient_rows(p.geometry.kernel.w, p.channels_last);
    const int groups = weight_gradient_groups(p.geometry.kernel.d, p.geometry.stride.d, p.channels_last).groups;
    const Triple steps{weight_gradient_steps(p), p.small_size.h, p.small_size.w};
    const StreamingTile each = streaming_tile(steps, p.batch, p.channels, p.channels_last, rows,
                                              StreamingTile::kColumns, 32, 64 / rows, groups);
    const std::int64_t warps = p.batch * each.channel_tiles * each.tiles() * groups;
    return {each, static_cast<int>(warps / (2 * kStreamingWarps) > 1 ? warps / (2 * kStreamingWarps) : 1)};
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
