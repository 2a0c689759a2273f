#include "plan.h"

#include <algorithm>
#include <climits>

#include "general_tiles.h"

namespace mednext_ops::cuda::depthwise_conv3d {
namespace {

bool is(const Triple& triple, std::int64_t value) {
    return triple.d == value && triple.h == value && triple.w == value;
}

bool aligned(const void* pointer, std::uintptr_t bytes) {
    return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

// The kernels that the tensor-core cores are compiled for: KxKxK and 1xKxK; along W they take any up to 7 wide.
bool is_banded_kernel(const Triple& kernel) {
    const bool size = kernel.h == 3 || kernel.h == 5 || kernel.h == 7;
    return size && (kernel.d == kernel.h || kernel.d == 1) && kernel.w % 2 == 1 && kernel.w <= 7;
}

// Offsets inside a sample and channel are 32-bit in these cores, and coordinates may be off by a kernel.
bool fits_int(const Triple& size) {
    constexpr std::int64_t kMost = INT_MAX / 4;
    return size.d < kMost && size.h < kMost && size.w < kMost && size.h * size.w < kMost;
}

bool takes_banded(const ConvolutionProblem& p, int architecture) {
    const Geometry& g = p.geometry;
    return architecture >= 80 && p.type != ScalarType::float32 && !p.channels_last && is(g.stride, 1) &&
           is(g.dilation, 1) && is_banded_kernel(g.kernel) && g.padding.w == g.kernel.w / 2 &&
           p.output_size.w == p.input_size.w && fits_int(p.input_size) && fits_int(p.output_size) &&
           g.padding.d < INT_MAX / 4 && g.padding.h < INT_MAX / 4 && p.batch * p.channels < INT_MAX / 4;
}

Fill fill_of(const ConvolutionProblem& p, int architecture) {
    const auto all_aligned = [&](std::uintptr_t bytes) {
        return aligned(p.input, bytes) && (!p.affine.given() || aligned(p.affine.output, bytes));
    };
    if (architecture >= 90 && p.input_size.w % 8 == 0 && all_aligned(16)) return Fill::boxes;
    return p.input_size.w % 4 == 0 && all_aligned(8) ? Fill::async : Fill::elements;
}

// The GPU that plans are made for. Fixed, so that statistics have the same bits on every one.
constexpr std::int64_t kProcessors = 132;

// Warps that a multiprocessor should have to hide its latencies. A small kernel waits for memory, a large one keeps the
// tensor cores busy with few.
constexpr std::int64_t kWarpsOfSmallKernel = 16;
constexpr std::int64_t kWarpsOfLargeKernel = 8;

// The tile that at most `most_warps` warps make, not yet cut along D.
BandedTile flat_tile(const ConvolutionProblem& p, int most_warps) {
    constexpr int kPerWarp = BandedTile::kFragments * BandedTile::kOctetsPerFragment;
    const Triple out = p.output_size;
    const std::int64_t octets = ceil_div(out.w, 8);
    BandedTile tile{};
    // A row that fills most of a fragment is one; otherwise rows share fragments, cut where the waste is least.
    const std::int64_t tiles_w = ceil_div(octets, BandedTile::kOctetsPerFragment);
    tile.full_rows = 8 * octets >= 7 * tiles_w * BandedTile::kOctetsPerFragment;
    tile.octets = static_cast<int>(tile.full_rows ? BandedTile::kOctetsPerFragment : ceil_div(octets, tiles_w));
    tile.tiles_w = static_cast<int>(tiles_w);
    // Eight windows that ldmatrix reads at once lie in different banks if rows follow on modulo eight octets.
    tile.row_pitch = tile.octets % 8 == 0 ? tile.octets + 1 : tile.octets + 8;

    const std::int64_t most_rows = std::min<std::int64_t>(out.h, most_warps * kPerWarp / tile.octets);
    tile.tiles_h = static_cast<int>(ceil_div(out.h, most_rows));
    std::int64_t rows = ceil_div(out.h, tile.tiles_h);
    if (tile.full_rows) rows = ceil_div(rows, BandedTile::kFragments) * BandedTile::kFragments;
    tile.rows = static_cast<int>(rows);
    tile.warps = static_cast<int>(ceil_div(rows * tile.octets, kPerWarp));
    return tile;
}

// Cuts along D, and blocks of eight or of four warps: what keeps the busiest multiprocessor busy the least, in planes
// of a warp. Short cuts load and multiply the planes of their halo twice; few leave multiprocessors without work.
BandedTile banded_tile(const ConvolutionProblem& p, int architecture) {
    const Triple kernel = p.geometry.kernel;
    const std::int64_t wanted_warps = kernel.d * kernel.h <= 9 ? kWarpsOfSmallKernel : kWarpsOfLargeKernel;
    const std::int64_t most_cuts = std::min<std::int64_t>(p.output_size.d, 64);
    BandedTile best{};
    double least = 0.0;
    for (const int most_warps : {8, 4}) {
        BandedTile tile = flat_tile(p, most_warps);
        for (std::int64_t cuts = 1; cuts <= most_cuts; ++cuts) {
            tile.depth = static_cast<int>(ceil_div(p.output_size.d, cuts));
            tile.tiles_d = static_cast<int>(ceil_div(p.output_size.d, tile.depth));
            const std::int64_t blocks = p.batch * p.channels * tile.tiles();
            const std::int64_t planes = ceil_div(blocks, kProcessors) * tile.warps * (tile.depth + kernel.d - 1);
            const double warps = static_cast<double>(blocks * tile.warps) / kProcessors;
            const double cost = static_cast<double>(planes) / std::min(warps / static_cast<double>(wanted_warps), 1.0);
            if (best.warps == 0 || cost < least) {
                best = tile;
                least = cost;
            }
        }
    }
    best.fill = fill_of(p, architecture);
    best.stages = p.affine.given() ? 3 : 4;
    return best;
}

}  // namespace

ConvolutionPlan plan_convolution(const ConvolutionProblem& p, int architecture) {
    if (takes_banded(p, architecture)) {
        const BandedTile tile = banded_tile(p, architecture);
        return {ConvolutionCore::banded, tile.tiles(), tile};
    }
    return {ConvolutionCore::general, general_moments_per_channel(p), {}};
}

WeightGradientPlan plan_weight_gradient(const WeightGradientProblem& p, int) {
    const std::int64_t parts = general_parts(p);
    const std::int64_t sums = p.channels * p.geometry.kernel.product();
    return {WeightGradientCore::general, parts, parts * sums * static_cast<std::int64_t>(sizeof(float))};
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
