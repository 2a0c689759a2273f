#include "plan.h"

#include <algorithm>
#include <climits>

#include "../common/architecture.h"
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

// Its planes begin four columns left of a multiple of eight, where no box of the copy engine can.
Fill fill_of(const ConvolutionProblem& p) {
    const bool all_aligned = aligned(p.input, 8) && (!p.affine.given() || aligned(p.affine.output, 8));
    return p.input_size.w % 4 == 0 && all_aligned ? Fill::async : Fill::elements;
}

// The GPU that plans are made for. Fixed, so that statistics have the same bits on every one.
constexpr std::int64_t kProcessors = 132;

// Warps that a multiprocessor should have to hide its latencies. A small kernel waits for memory, a large one keeps the
// tensor cores busy with few.
constexpr std::int64_t kWarpsOfSmallKernel = 15;
constexpr std::int64_t kWarpsOfLargeKernel = 8;

// Shared memory that a block may have on the architecture with tensor cores of bfloat16 that has the least.
constexpr int kLeastSharedBytes = most_shared_bytes(86);

// The tile that at most `most_warps` warps make, not yet cut along D.
BandedTile flat_tile(const ConvolutionProblem& p, int most_warps) {
    const Triple out = p.output_size;
    const std::int64_t octets = ceil_div(out.w, 8);
    BandedTile tile{};
    // A row that fills most of a fragment is one; otherwise rows share fragments, cut where the waste is least.
    const std::int64_t tiles_w = ceil_div(octets, BandedTile::kOctetsPerFragment);
    tile.full_rows = 8 * octets >= 7 * tiles_w * BandedTile::kOctetsPerFragment;
    tile.octets = static_cast<int>(tile.full_rows ? BandedTile::kOctetsPerFragment : ceil_div(octets, tiles_w));
    tile.tiles_w = static_cast<int>(tiles_w);
    // Where a fragment a warp is enough for the whole plane, more warps hide each other's latencies.
    const bool small = !tile.full_rows && out.h * tile.octets <= most_warps * BandedTile::kOctetsPerFragment;
    tile.fragments = small ? 1 : BandedTile::kMostFragments;
    const int octets_of_warp = tile.fragments * BandedTile::kOctetsPerFragment;

    const std::int64_t most_rows = std::min<std::int64_t>(out.h, most_warps * octets_of_warp / tile.octets);
    tile.tiles_h = static_cast<int>(ceil_div(out.h, most_rows));
    std::int64_t rows = ceil_div(out.h, tile.tiles_h);
    if (tile.full_rows) rows = ceil_div(rows, tile.fragments) * tile.fragments;
    tile.rows = static_cast<int>(rows);
    tile.warps = static_cast<int>(ceil_div(rows * tile.octets, octets_of_warp));
    return tile;
}

// Instructions of a warp a plane, about: products and stores of each fragment, and what comes with any plane.
constexpr std::int64_t kInstructionsAFragment = 25;
constexpr std::int64_t kInstructionsAPlane = 100;
// What begins and ends a block costs about as much as so many planes.
constexpr std::int64_t kPlanesABlock = 2;

// PlaneRing's table of a block.
int table_bytes(const PlaneLayout& planes, int threads) {
    return 4 * (planes.chunks() + 5 * threads);
}

// What a block of the banded core asks for, at most (Banded::Shared): planes, their table, taps, places and moments.
int banded_bytes(const ConvolutionProblem& p, const BandedTile& tile) {
    const PlaneLayout planes = tile.planes(static_cast<int>(p.geometry.kernel.h), p.affine.given());
    const int octets = tile.warps * tile.fragments * BandedTile::kOctetsPerFragment;
    const auto taps = static_cast<int>(p.geometry.kernel.d * p.geometry.kernel.h) * 32;
    return planes.bytes() + table_bytes(planes, tile.warps * 32) + taps + 8 * octets + 512;
}

// Cuts along D, and blocks of eight or of four warps: what keeps the busiest multiprocessor busy the least, in
// instructions of a warp. Short cuts load and multiply the planes of their halo twice; few leave multiprocessors
// without work.
BandedTile banded_tile(const ConvolutionProblem& p, int architecture) {
    const Triple kernel = p.geometry.kernel;
    const std::int64_t wanted_warps = kernel.d * kernel.h <= 9 ? kWarpsOfSmallKernel : kWarpsOfLargeKernel;
    const std::int64_t most_cuts = std::min<std::int64_t>(p.output_size.d, 64);
    BandedTile best{};
    double least = 0.0;
    // Two blocks of four warps rather than one of eight where they cost the same, since the warps of a block wait for
    // each other at every plane: one block multiplies what the other fetches. A small kernel waits for memory anyway.
    const bool large = kernel.d * kernel.h > 9;
    for (const int most_warps : {large ? 4 : 8, large ? 8 : 4}) {
        BandedTile tile = flat_tile(p, most_warps);
        tile.fill = fill_of(p);
        tile.stages = p.affine.given() ? 3 : 4;
        // Narrow volumes make tall planes. Those of four warps fit everywhere.
        if (banded_bytes(p, tile) > most_shared_bytes(architecture)) continue;
        const std::int64_t of_plane =
            tile.warps * (tile.fragments * (kernel.d * kernel.h + kInstructionsAFragment) + kInstructionsAPlane);
        for (std::int64_t cuts = 1; cuts <= most_cuts; ++cuts) {
            tile.depth = static_cast<int>(ceil_div(p.output_size.d, cuts));
            tile.tiles_d = static_cast<int>(ceil_div(p.output_size.d, tile.depth));
            const std::int64_t blocks = p.batch * p.channels * tile.tiles();
            const std::int64_t planes = tile.depth + kernel.d - 1 + kPlanesABlock;
            const double busy = static_cast<double>(ceil_div(blocks, kProcessors) * planes * of_plane);
            const double warps = static_cast<double>(blocks * tile.warps) / kProcessors;
            const double cost = busy / std::min(warps / static_cast<double>(wanted_warps), 1.0);
            if (best.warps == 0 || cost < least) {
                best = tile;
                least = cost;
            }
        }
    }
    return best;
}

// ---- the same by the copy engine ----

// The copy engine takes boxes of up to 256 rows and columns.
constexpr int kMostBox = 256;

// How its planes come: by boxes where they begin at multiples of 16 bytes; `elements` where neither way is open.
Fill planar_fill(const ConvolutionProblem& p, int architecture) {
    const auto begin_at = [&](std::int64_t bytes) {
        return p.input_size.w % (bytes / 2) == 0 && aligned(p.input, bytes) &&
               (!p.affine.given() || aligned(p.affine.output, bytes));
    };
    if (begin_at(16) && PlanarTile::is_built(Fill::boxes, architecture)) return Fill::boxes;
    return begin_at(8) && PlanarTile::is_built(Fill::async, architecture) ? Fill::async : Fill::elements;
}

bool takes_planar(const ConvolutionProblem& p, int architecture) {
    return takes_banded(p, architecture) && p.geometry.kernel.w <= p.geometry.kernel.h &&
           planar_fill(p, architecture) != Fill::elements && p.input_size.w < INT_MAX / 16 &&
           p.input_size.product() > 0 && aligned(p.output, 8) && aligned(p.add, 8);
}

// Cycles that a multiprocessor of an H200 needs, fitted to what 1100 tiles took there (h200-planar.json; the tile that
// the plan chooses took on average 3 % longer than the best one): for a product, for what else a fragment and a plane
// of a warp come with, for a byte of a plane, and one of a gradient that is computed.
constexpr double kPlanarProduct = 1.9;
constexpr double kPlanarFragment = 6.7;
constexpr double kPlanarPlane = 36.0;
constexpr double kPlanarByte = 0.006;
constexpr double kPlanarMapped = 0.01;
// A step of a block that has the multiprocessor for itself: it waits for its plane, and for the sum before; likewise
// for a gradient, and a byte of it that a warp computes.
constexpr double kPlanarStep = 860.0;
constexpr double kPlanarWaiting = 5.3;
constexpr double kPlanarMappedStep = 280.0;
constexpr double kPlanarMappedAlone = 0.4;
// What begins and ends a block costs about as much as so many planes.
constexpr int kPlanarPlanesABlock = 9;
// Of the shared memory that a multiprocessor has for a block.
constexpr std::int64_t kSystemBytes = 1024;
// Columns of a tile at most, so that a strip of it is at most a block of warps.
constexpr int kMostQuads = 48;

PlanarTile planar_tile(const ConvolutionProblem& p, int architecture) {
    const auto kd = static_cast<int>(p.geometry.kernel.d);
    const auto kh = static_cast<int>(p.geometry.kernel.h);
    const Triple out = p.output_size;
    const bool mapped = p.affine.given();
    const Fill fill = planar_fill(p, architecture);
    const std::int64_t octets = ceil_div(out.w, 8);
    const std::int64_t tiles_w = ceil_div(2 * octets, kMostQuads);
    const std::int64_t most_cuts = std::min<std::int64_t>(out.d, 64);
    const int products = kd * (kh - 1 + PlanarTile::unit_rows(kh)) / 2;
    PlanarTile best{};
    double least = 0.0;
    for (const int fragments : {PlanarTile::kFewFragments, PlanarTile::kMostFragments}) {
        const int blocks_of_most_warps = PlanarTile::resident_blocks(kd, kh, fragments, mapped, fill, architecture);
        if (blocks_of_most_warps == 0) continue;
        PlanarTile tile{};
        tile.fill = fill;
        tile.fragments = fragments;
        tile.quads = static_cast<int>(2 * ceil_div(octets, tiles_w));
        tile.tiles_w = static_cast<int>(ceil_div(2 * octets, tile.quads));
        const std::int64_t strips = ceil_div(out.h, tile.strip_rows(kh));
        const int units = PlanarTile::units(kh);
        const std::int64_t most_strips = std::min<std::int64_t>(
            std::max(PlanarTile::kMostWarps * units / tile.quads, 1), (kMostBox - kh + 1) / tile.strip_rows(kh));
        const int other_bytes = 512 + 32 * kd * (kh + 2 * PlanarTile::unit_rows(kh) - 2);
        // Narrow volumes make tall planes: more tiles, where two stages of one would not fit.
        tile.tiles_h = static_cast<int>(ceil_div(strips, most_strips));
        tile.stages = 2;
        while (true) {
            tile.strips = static_cast<int>(ceil_div(strips, tile.tiles_h));
            const bool fits = tile.planes_bytes(kh, mapped) + other_bytes <= most_shared_bytes(architecture);
            if (fits || tile.strips == 1) break;
            ++tile.tiles_h;
        }
        tile.warps = static_cast<int>(ceil_div(tile.strips * tile.quads, units));
        const std::int64_t resident = blocks_of_most_warps * PlanarTile::kMostWarps / tile.warps;
        // As many planes ahead as the blocks of a multiprocessor have room for: 1 KiB of each is the system's, and
        // sizes are rounded up to 128 bytes. With boxes, of which more fits, as it was measured.
        const std::int64_t of_block =
            fill == Fill::boxes ? most_shared_bytes(architecture) / resident
                                : (most_shared_bytes(architecture) + kSystemBytes) / resident - kSystemBytes - 128;
        const std::int64_t most_bytes = of_block - other_bytes;
        for (tile.stages = 5; tile.stages > 2 && tile.planes_bytes(kh, mapped) > most_bytes;) --tile.stages;

        const int bytes = tile.plane_rows(kh) * tile.row_bytes(kh);
        const double warp = fragments * (products * kPlanarProduct + kPlanarFragment) + kPlanarPlane;
        double work = tile.warps * warp + bytes * kPlanarByte;
        double alone = kPlanarStep + fragments * products * kPlanarWaiting;
        if (mapped) {
            work += bytes * (kPlanarByte + kPlanarMapped);
            alone += kPlanarMappedStep + bytes * kPlanarMappedAlone / tile.warps;
        }
        for (std::int64_t cuts = 1; cuts <= most_cuts; ++cuts) {
            tile.depth = static_cast<int>(ceil_div(out.d, cuts));
            tile.tiles_d = static_cast<int>(ceil_div(out.d, tile.depth));
            const std::int64_t each = ceil_div(p.batch * p.channels * tile.tiles(), kProcessors);
            const std::int64_t together = std::max<std::int64_t>(std::min(each, resident), 1);
            const double busy = static_cast<double>(together) * work;
            const double step = std::max(busy, alone) + std::min(busy, alone) / 25;
            const double rounds = static_cast<double>(ceil_div(each, together));
            const double cost = rounds * (tile.depth + kd - 1 + kPlanarPlanesABlock) * step;
            if (best.warps == 0 || cost < least) {
                best = tile;
                least = cost;
            }
        }
    }
    return best;
}

// ---- a gather at stride 2 ----

bool takes_strided(const ConvolutionProblem& p, int architecture) {
    return architecture >= 80 && p.type != ScalarType::float32 && !p.channels_last && !p.scatter &&
           is(p.geometry.stride, 2) && takes_streaming(p) && p.input_size.h * p.input_size.w < INT_MAX / 16 &&
           p.batch * p.channels < INT_MAX / 4;
}

// Bytes of a plane at most: six of them, where a gradient is computed, fit three times where 227 KiB are all.
constexpr int kMostStridedPlaneBytes = 11 * 1024 + 512;
// Warps that a multiprocessor should have to hide its latencies: three blocks of four.
constexpr std::int64_t kStridedConvolutionWarps = 12;
// What begins and ends a block costs about as much as so many input planes.
constexpr std::int64_t kStridedPlanesABlock = 4;

// Cuts `extent` planes of a tile along D as banded_tile() does; `planes(depth)` is how many a block of so many takes.
template <typename Tile, typename Planes>
void cut_along_d(const ConvolutionProblem& p, std::int64_t extent, Planes&& planes, Tile* tile) {
    int depth = 0;
    double least = 0.0;
    const auto set_depth = [&](std::int64_t of_block) {
        tile->depth = static_cast<int>(of_block);
        tile->tiles_d = static_cast<int>(ceil_div(extent, of_block));
    };
    for (std::int64_t cuts = 1; cuts <= std::min<std::int64_t>(extent, 64); ++cuts) {
        set_depth(ceil_div(extent, cuts));
        const std::int64_t blocks = p.batch * p.channels * tile->tiles();
        const double warps = static_cast<double>(blocks * tile->warps) / kProcessors;
        const double cost = static_cast<double>(ceil_div(blocks, kProcessors) * planes(tile->depth)) /
                            std::min(warps / static_cast<double>(kStridedConvolutionWarps), 1.0);
        if (depth == 0 || cost < least) {
            depth = tile->depth;
            least = cost;
        }
    }
    set_depth(depth);
}

// The tile follows from the shape alone.
StridedTile strided_tile(const ConvolutionProblem& p) {
    const auto k = static_cast<int>(p.geometry.kernel.d);
    const Triple out = p.output_size;
    StridedTile tile{};
    const std::int64_t quads = ceil_div(out.w, 4);
    tile.tiles_w = static_cast<int>(ceil_div(quads, StridedTile::kWindows));
    tile.quads = static_cast<int>(ceil_div(quads, tile.tiles_w));
    constexpr int kMostWindows = StridedTile::kMostWarps * StridedTile::kFragments * StridedTile::kWindows;
    const std::int64_t pairs = ceil_div(out.h, 2);
    tile.pairs = static_cast<int>(std::min<std::int64_t>(pairs, kMostWindows / tile.quads));
    while (tile.layout(k).plane_bytes() > kMostStridedPlaneBytes) --tile.pairs;
    tile.tiles_h = static_cast<int>(ceil_div(pairs, tile.pairs));
    tile.pairs = static_cast<int>(ceil_div(pairs, tile.tiles_h));
    tile.warps = static_cast<int>(ceil_div(tile.pairs * tile.quads, StridedTile::kFragments * StridedTile::kWindows));

    cut_along_d(p, out.d, [&](int depth) { return 2 * depth + k - 2 + kStridedPlanesABlock; }, &tile);
    tile.direct = p.input_size.w % 4 == 0 && aligned(p.input, 8) && !p.affine.given();
    return tile;
}

// ---- a scatter at stride 2 ----

bool takes_strided_scatter(const ConvolutionProblem& p, int architecture) {
    return architecture >= 80 && p.type != ScalarType::float32 && !p.channels_last && p.scatter &&
           is(p.geometry.stride, 2) && takes_streaming(p) && p.input_size.h * p.input_size.w < INT_MAX / 16 &&
           p.output_size.h * p.output_size.w < INT_MAX / 16 && p.batch * p.channels < INT_MAX / 4;
}

// Bytes of a plane at most: seven of them, where a gradient is computed, fit twice where 227 KiB are all.
constexpr int kMostScatterPlaneBytes = 9 * 1024;
// What begins and ends a block costs about as much as so many input planes.
constexpr std::int64_t kScatterPlanesABlock = 2;

// The tile follows from the shape alone.
ScatterTile scatter_tile(const ConvolutionProblem& p) {
    const auto k = static_cast<int>(p.geometry.kernel.d);
    const Triple pairs = streaming_scatter_size(p);  // of output planes and rows
    ScatterTile tile{};
    // Words that two outputs share begin one output earlier in rows at odd addresses, which odd rows and tensors have.
    const bool odd = p.output_size.w % 2 != 0 || !aligned(p.output, 4);
    const std::int64_t windows = ceil_div(p.output_size.w + (odd ? 1 : 0), 8);
    tile.tiles_w = static_cast<int>(ceil_div(windows, ScatterTile::kWindows));
    tile.windows = static_cast<int>(ceil_div(windows, tile.tiles_w));
    const int windows_of_warp = ScatterTile::kFragments * ScatterTile::kWindows;
    tile.pairs =
        static_cast<int>(std::min<std::int64_t>(pairs.h, ScatterTile::kMostWarps * windows_of_warp / tile.windows));
    while (tile.layout(k).plane_bytes() > kMostScatterPlaneBytes) --tile.pairs;
    tile.tiles_h = static_cast<int>(ceil_div(pairs.h, tile.pairs));
    tile.pairs = static_cast<int>(ceil_div(pairs.h, tile.tiles_h));
    tile.warps = static_cast<int>(ceil_div(tile.pairs * tile.windows, windows_of_warp));

    cut_along_d(p, pairs.d, [&](int depth) { return depth + (k - 1) / 2 + kScatterPlanesABlock; }, &tile);
    tile.direct = p.input_size.w % 4 == 0 && aligned(p.input, 8) && !p.affine.given();
    return tile;
}

// ---- the weight gradient ----

bool takes_banded(const WeightGradientProblem& p, int architecture) {
    const Geometry& g = p.geometry;
    return architecture >= 80 && p.type != ScalarType::float32 && !p.channels_last && is(g.stride, 1) &&
           is(g.dilation, 1) && is_banded_kernel(g.kernel) && g.kernel.w == g.kernel.h &&
           g.padding.w == g.kernel.w / 2 && p.small_size.w == p.large_size.w && fits_int(p.small_size) &&
           fits_int(p.large_size) && p.small_size.product() > 0 && p.large_size.product() > 0 &&
           g.padding.d < INT_MAX / 4 && g.padding.h < INT_MAX / 4 && p.batch * p.channels < INT_MAX / 4;
}

Fill fill_of(const WeightGradientProblem& p, int architecture) {
    const auto all_aligned = [&](std::uintptr_t bytes) {
        return aligned(p.small, bytes) && aligned(p.large, bytes) &&
               (!p.affine.given() || aligned(p.affine.output, bytes));
    };
    if (architecture >= 90 && p.large_size.w % 8 == 0 && all_aligned(16)) return Fill::boxes;
    return p.large_size.w % 4 == 0 && all_aligned(8) ? Fill::async : Fill::elements;
}

// What a multiprocessor of an H200 needs, calculated: of the second-level cache a byte, of its tensor cores a product.
constexpr double kCyclesAByte = 1.0 / 24;
constexpr double kCyclesAProduct = 1.3;
// What a warp does a step beside its patches: about 100 instructions, four warps at once.
constexpr double kCyclesAWarp = 25.0;
// A row of a plane costs what its sectors cost and one more: rows begin in the middle of one, and short ones are slow.
constexpr int kSector = 32;
// A step of a block that has the multiprocessor for itself: its barrier and its loads, and products that wait for the
// sum before them.
constexpr double kCyclesAStep = 400.0;
constexpr double kCyclesAWaitingProduct = 10.0;
// What begins and ends a block costs about as much as so many steps.
constexpr int kStepsABlock = 4;

// A chain of sums in one accumulator of a tensor core, which may truncate: at most 5 patches x 64 planes long.
constexpr int kMostDepth = 64;

// What the kernel keeps in shared memory beside the planes, its tables of chunks (PlaneRing) left out.
constexpr int kOtherBytes = 5 * 1024;

int bytes_loaded(const PlaneLayout& plane) {
    return plane.rows * static_cast<int>(ceil_div(plane.row_pitch * 16, kSector) + 1) * kSector;
}

// Cycles that a multiprocessor needs for its share of the problem.
double cycles(const WeightGradientProblem& p, const WeightGradientTile& tile) {
    const int k = static_cast<int>(p.geometry.kernel.h);
    const int kd = static_cast<int>(p.geometry.kernel.d);
    const std::int64_t blocks = std::max<std::int64_t>(p.batch * p.channels * tile.tiles(), 1);
    const int bytes = bytes_loaded(tile.large_planes(k, false)) + bytes_loaded(tile.small_planes(k, false));
    const double work = tile.warps() * (tile.patches * kd * kCyclesAProduct + kCyclesAWarp) + bytes * kCyclesAByte;
    const double alone = kCyclesAStep + tile.patches * kd * kCyclesAWaitingProduct;
    const std::int64_t resident = 2 * WeightGradientTile::kMostWarps / tile.warps();
    const std::int64_t each = ceil_div(blocks, kProcessors);  // of the busiest multiprocessor
    const std::int64_t together = std::min(each, resident);
    const double busy = static_cast<double>(together) * work;
    const double step = std::max(busy, alone) + std::min(busy, alone) / 4;
    return static_cast<double>(each) / static_cast<double>(together) * (tile.depth + kd - 1 + kStepsABlock) * step;
}

// The same tile for every architecture, alignment and affine map: the order of the sums follows from the shape alone.
WeightGradientTile weight_gradient_tile(const WeightGradientProblem& p) {
    const int k = static_cast<int>(p.geometry.kernel.h);
    const int most_patches = WeightGradientTile::most_patches(static_cast<int>(p.geometry.kernel.d));
    const auto columns = static_cast<int>(ceil_div(p.large_size.w, WeightGradientTile::kPatchColumns));
    const auto rows = static_cast<int>(ceil_div(p.large_size.h, WeightGradientTile::patch_rows(k)));
    const auto planes = static_cast<int>(std::min<std::int64_t>(p.large_size.d, kMostDepth));
    WeightGradientTile best{};
    double least = 0.0;
    for (int warps_w = 1; warps_w <= std::min(columns, WeightGradientTile::kMostWarps); ++warps_w) {
        for (int warps_h = 1; warps_h <= std::min(rows, WeightGradientTile::kMostWarps / warps_w); ++warps_h) {
            const auto fewest_tiles = static_cast<int>(ceil_div(rows, warps_h * most_patches));
            for (int tiles_h = fewest_tiles; tiles_h <= fewest_tiles + 2; ++tiles_h) {
                WeightGradientTile tile{};
                tile.warps_w = warps_w;
                tile.warps_h = warps_h;
                tile.patches = static_cast<int>(ceil_div(rows, warps_h * tiles_h));
                tile.tiles_h = static_cast<int>(ceil_div(rows, warps_h * tile.patches));
                tile.tiles_w = static_cast<int>(ceil_div(columns, warps_w));
                tile.stages = 2;
                const PlaneLayout large = tile.large_planes(k, false);
                const PlaneLayout small = tile.small_planes(k, false);
                // Also where the larger one is a gradient that is computed: two tensors a stage, and two planes of it.
                const int most_bytes = 2 * (large.plane_bytes() + small.plane_bytes()) +
                                       4 * std::max(large.plane_bytes(), small.plane_bytes()) + kOtherBytes +
                                       table_bytes(large, tile.warps() * 32);
                const bool fits = most_bytes <= kLeastSharedBytes && std::max(large.rows, small.rows) <= kMostBox;
                for (int depth = planes; fits && depth >= std::min(planes, 4); depth = depth * 3 / 4) {
                    tile.depth = depth;
                    tile.tiles_d = static_cast<int>(ceil_div(p.large_size.d, depth));
                    tile.depth = static_cast<int>(ceil_div(p.large_size.d, tile.tiles_d));
                    const double cost = cycles(p, tile);
                    if (best.patches == 0 || cost < least) {
                        best = tile;
                        least = cost;
                    }
                }
            }
        }
    }
    return best;
}

// As many planes ahead as two blocks of a multiprocessor have room for.
int stages_of(const WeightGradientProblem& p, WeightGradientTile tile, int architecture) {
    const int k = static_cast<int>(p.geometry.kernel.h);
    const bool affine = p.affine.given();
    // By boxes a small tensor that is computed is computed in registers: no operand planes, no table.
    const bool by_boxes = tile.fill == Fill::boxes && !(affine && p.large_is_gradient);
    for (tile.stages = 4; tile.stages > 2; --tile.stages) {
        const PlaneLayout large = tile.large_planes(k, affine && p.large_is_gradient);
        const PlaneLayout small = tile.small_planes(k, affine && !p.large_is_gradient);
        const int planes = by_boxes ? tile.stages * (large.plane_bytes() + (affine ? 2 : 1) * small.plane_bytes())
                                    : large.bytes() + small.bytes();
        const int table = affine && !by_boxes ? table_bytes(tile.large_planes(k, true), tile.warps() * 32) : 0;
        if (2 * (planes + table + kOtherBytes) <= most_shared_bytes(architecture)) break;
    }
    return tile.stages;
}

// ---- the weight gradient at stride 2 ----

bool takes_strided(const WeightGradientProblem& p, int architecture) {
    return architecture >= 80 && p.type != ScalarType::float32 && !p.channels_last && is(p.geometry.stride, 2) &&
           takes_streaming(p) && p.batch * p.channels < INT_MAX / 4;
}

// Warps that a launch should have at least: 16 on each multiprocessor, which hold as many bytes in flight as the memory
// needs. A warp begins with what four steps cost.
constexpr std::int64_t kStridedWarps = 16 * kProcessors;

// A chain of sums in one accumulator: a product a step.
constexpr int kMostSteps = 64;

// The order of the sums follows from the shape alone; alignment does not change it.
StridedWeightTile strided_weight_tile(const WeightGradientProblem& p) {
    const Triple& large = p.large_size;
    StridedWeightTile tile{};
    tile.patches_h = static_cast<int>(ceil_div(large.h, StridedWeightTile::kPatchRows));
    tile.patches_w = static_cast<int>(ceil_div(large.w, StridedWeightTile::kPatchColumns));
    tile.steps = static_cast<int>(ceil_div(large.d, StridedWeightTile::kStepPlanes));
    const std::int64_t patches = static_cast<std::int64_t>(tile.patches_h) * tile.patches_w;
    tile.warps = static_cast<int>(std::min<std::int64_t>(patches, StridedWeightTile::kMostWarps));
    tile.tiles_hw = static_cast<int>(ceil_div(patches, tile.warps));
    tile.depth = std::min(tile.steps, kMostSteps);
    const std::int64_t warps = p.batch * p.channels * patches;
    while (tile.depth > 2 && warps * ceil_div(tile.steps, tile.depth) < kStridedWarps) tile.depth /= 2;
    tile.tiles_d = static_cast<int>(ceil_div(tile.steps, tile.depth));
    tile.depth = static_cast<int>(ceil_div(tile.steps, tile.tiles_d));

    const auto output_is = [&](bool of_large, std::uintptr_t bytes) {
        return !p.affine.given() || p.large_is_gradient != of_large || aligned(p.affine.output, bytes);
    };
    tile.small_aligned = p.small_size.w % 2 == 0 && aligned(p.small, 4) && output_is(false, 4);
    tile.large_aligned = tile.small_aligned && large.w % 8 == 0 && aligned(p.large, 16) && output_is(true, 16);
    return tile;
}

}  // namespace

ConvolutionPlan plan_convolution(const ConvolutionProblem& p, int architecture) {
    ConvolutionPlan plan{};
    if (takes_planar(p, architecture)) {
        plan.core = ConvolutionCore::planar;
        plan.planar = planar_tile(p, architecture);
        plan.moments_per_channel = plan.planar.tiles();
    } else if (takes_banded(p, architecture)) {
        plan.core = ConvolutionCore::banded;
        plan.banded = banded_tile(p, architecture);
        plan.moments_per_channel = plan.banded.tiles();
    } else if (takes_strided(p, architecture)) {
        plan.core = ConvolutionCore::strided;
        plan.strided = strided_tile(p);
        plan.moments_per_channel = plan.strided.tiles();
    } else if (takes_strided_scatter(p, architecture)) {
        plan.core = ConvolutionCore::strided_scatter;
        plan.strided_scatter = scatter_tile(p);
        plan.moments_per_channel = plan.strided_scatter.tiles();
    } else if (takes_streaming(p)) {
        plan.core = ConvolutionCore::streaming;
        plan.streaming = streaming_tile(p);
        plan.moments_per_channel = plan.streaming.tiles();
    } else {
        plan.core = ConvolutionCore::general;
        plan.moments_per_channel = general_moments_per_channel(p);
    }
    return plan;
}

WeightGradientPlan plan_weight_gradient(const WeightGradientProblem& p, int architecture) {
    const auto part_bytes = p.channels * p.geometry.kernel.product() * static_cast<std::int64_t>(sizeof(float));
    if (takes_banded(p, architecture)) {
        WeightGradientTile tile = weight_gradient_tile(p);
        tile.fill = fill_of(p, architecture);
        tile.stages = stages_of(p, tile, architecture);
        const std::int64_t parts = p.batch * tile.tiles();
        return {WeightGradientCore::banded, parts, parts * part_bytes, {}, tile, {}};
    }
    if (takes_strided(p, architecture)) {
        const StridedWeightTile tile = strided_weight_tile(p);
        const std::int64_t parts = p.batch * tile.tiles();
        return {WeightGradientCore::strided, parts, parts * part_bytes, {}, {}, tile};
    }
    if (takes_streaming(p)) {
        const StreamingWeightTile tile = streaming_weight_tile(p);
        const std::int64_t parts = p.batch * tile.parts();
        return {WeightGradientCore::streaming, parts, parts * part_bytes, tile, {}, {}};
    }
    const std::int64_t parts = general_parts(p);
    return {WeightGradientCore::general, parts, parts * part_bytes, {}, {}, {}};
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
