// A weight gradient at stride 1 or 2 that walks along D, in float FMAs.
//
// A thread owns R x 4 positions of the small tensor in the planes that its warp walks through, and the sums of a group
// of kd: all taps of them, in registers from the first plane to the last. At stride 1, for K = 3 and R = 2:
//
//      window of plane z of the large tensor         the thread's positions of the small tensor, a plane a kd
//
//      h-1  . x x x x x x .                          small[0]   plane z + 1     meets kd = 0
//      h    . x x x x x x .    O: the positions      small[1]   plane z         meets kd = 1
//      h+1  . x x x x x x .       that a position    small[2]   plane z - 1     meets kd = 2
//      h+2  . x x x x x x .       of small meets                then all move one up
//
//      sum[kd][kh][kw] += small[kd][i][q] * window[i + kh][q + kw]
//
// so a window is read once for all kd of the group: 14 loads for 216 FMAs (K = 5, three kd: 20 for 600; K = 7, one kd:
// 26 for 392). The warps of a block are the groups of one tile, or neighbours; what one has read
// comes to the others from the first-level cache. Warps wait for nobody. At stride 2 every step is two planes of the
// large tensor, and a group has the kd of one parity, which meet the same ones.
//
// At the end of a tile the lanes of a channel add up their sums, in a fixed order. Where there are many tiles a warp
// has several, one after the other, and adds them to its part of the workspace.
#pragma once

#include <utility>

#include "../common/launch.h"
#include "../common/opaque.cuh"
#include "streaming_warp.cuh"
#include "streaming_weight_gradient.h"

namespace mednext_ops::cuda::depthwise_conv3d {

struct StreamingWeightParameters {
    const void* small;
    Extent small_extent;
    const void* large;
    Extent large_extent;
    AffineGradient affine;  // how one of the two is read
    bool mirrored;          // taps in reverse: at stride 1 the two tensors may change places
    std::int64_t channels;
    int steps;
    StreamingWeightTile tile;
    float* partial;
};

// MapsLarge: the affine map, if there is one, belongs to the large tensor; otherwise to the small one.
template <int KD_, int K_, int Stride_, bool MapsLarge_, bool ChannelsLast_>
struct WeightSums {
    static constexpr bool kMapsLarge = MapsLarge_;
    static constexpr bool kChannelsLast = ChannelsLast_;
    static constexpr int KD = KD_;
    static constexpr int K = K_;
    static constexpr int kStride = Stride_;
    static constexpr WeightGradientGroups kGroups = weight_gradient_groups(KD, kStride, kChannelsLast);
    static constexpr int kPlanes = kGroups.planes;  // of taps, in registers
    static constexpr int kRows = weight_gradient_rows(K, kChannelsLast);
    static constexpr int kColumns = StreamingTile::kColumns;
    static constexpr int kWindowRows = kStride * (kRows - 1) + K;
    static constexpr int kWindowColumns = kStride * (kColumns - 1) + K;
    static constexpr int kRowsAtOnce = kChannelsLast && K == 7 ? 1 : 2;  // of the window, in registers
    static constexpr int kPieces = (kWindowRows + kRowsAtOnce - 1) / kRowsAtOnce;
    // From the multiple of four before the window to the window, along W.
    static constexpr int kBefore = 4 - K / 2;
    static constexpr int kWarps = weight_gradient_warps(kGroups);
    static constexpr int kPartsPerBlock = kWarps / kGroups.groups;
    // As many as leave a thread its registers. Windows and addresses of stride 2 take more of them.
    static constexpr bool kTakesMore = kStride == 2 && (KD < 7 || kMapsLarge || kChannelsLast);
    static constexpr int kBlocksPerProcessor = (KD == 7 ? 2 : 3) - (kTakesMore ? 1 : 0);

    // Whether the plane of taps j of the group that begins with `first_kd` is one of the kernel's.
    __device__ static bool in_kernel(int first_kd, int j) { return j == 0 || first_kd + kStride * j < KD; }
};

// ---- load ----

// The affine map of a lane's channel; `outputs` is null where there is none.
template <typename T>
struct LaneMap {
    const T* outputs;
    float scale, slope, offset;
};

template <typename T>
__device__ inline LaneMap<T> lane_map(const AffineGradient& affine, std::int64_t channel, bool valid) {
    if (!affine.given() || !valid) return {nullptr, 1.0f, 0.0f, 0.0f};
    return {static_cast<const T*>(affine.output), affine.scale[channel], affine.slope[channel], affine.offset[channel]};
}

// Reads Rows x Columns elements from `at` on, zero where the masks say outside, row by row: what follows from the masks
// and from the step between columns is cheaper to compute again for each than to keep.
template <bool ChannelsLast, int Before, bool Mapped, typename T, int Rows, int Columns>
__device__ inline void load_rows(const T* tensor, const LaneMap<T>& map, std::int64_t at, const Extent& of_tensor,
                                 unsigned rows, unsigned columns, float (&values)[Rows][Columns]) {
    Extent extent = of_tensor;
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
        make_opaque(columns);
        if constexpr (ChannelsLast) make_opaque(extent.step);
        float row[1][Columns];
        load_window<ChannelsLast, Before>(tensor + at, extent, rows >> r, columns, row);
        if (Mapped && map.outputs != nullptr) {
            float outputs[1][Columns];
            load_window<ChannelsLast, Before>(map.outputs + at, extent, rows >> r, columns, outputs);
#pragma unroll
            for (int c = 0; c < Columns; ++c) {
                const bool in = (rows >> r & 1) != 0 && (columns >> c & 1) != 0;
                const float value = fmaf(map.scale, row[0][c], fmaf(map.slope, outputs[0][c], map.offset));
                row[0][c] = in ? value : 0.0f;
            }
        }
#pragma unroll
        for (int c = 0; c < Columns; ++c) values[r][c] = row[0][c];
        at += row_pitch(of_tensor);
    }
}

// ---- multiply ----

// Adds what the rows First, First + 1, ... of a window give to the sums of one kd.
template <typename G, int First>
__device__ inline void multiply(const float (&window)[G::kRowsAtOnce][G::kWindowColumns],
                                const float (&small)[G::kRows][G::kColumns], float (&sum)[G::K][G::K]) {
#pragma unroll
    for (int r = 0; r < G::kRowsAtOnce; ++r) {
#pragma unroll
        for (int i = 0; i < G::kRows; ++i) {
            const int kh = First + r - G::kStride * i;
            if (kh < 0 || kh >= G::K) continue;
#pragma unroll
            for (int q = 0; q < G::kColumns; ++q) {
#pragma unroll
                for (int kw = 0; kw < G::K; ++kw) {
                    sum[kh][kw] = fmaf(small[i][q], window[r][G::kStride * q + kw], sum[kh][kw]);
                }
            }
        }
    }
}

// ---- the warp's sum ----

// Adds up the lanes of a channel; the first of them gets all. A row of taps at a time: all at once would need twice
// their registers.
template <typename G>
__device__ inline void add_lanes(const StreamingTile& tile, float (&sum)[G::kPlanes][G::K][G::K]) {
    const int step = G::kChannelsLast ? tile.lanes_c : 1;
#pragma unroll
    for (int row = 0; row < G::kPlanes * G::K; ++row) {
        float (&taps)[G::K] = sum[row / G::K][row % G::K];
#pragma unroll 1
        for (int distance = tile.lanes_h * tile.lanes_w / 2 * step; distance >= step; distance /= 2) {
#pragma unroll
            for (int kw = 0; kw < G::K; ++kw) taps[kw] += __shfl_down_sync(kFullWarp, taps[kw], distance);
        }
    }
}

// ---- the walk ----

// Adds up what a lane meets in one tile.
template <typename T, typename G>
__device__ inline void walk(const StreamingWeightParameters& p, const Place& place, int first_kd,
                            float (&sum)[G::kPlanes][G::K][G::K]) {
    const std::int64_t channel = place.sample * p.channels + place.channel;
    const Window small = window_of<G::kRows, G::kColumns>(
        p.small_extent, channel_begin(place, p.small_extent, p.channels, G::kChannelsLast), place.h, place.w,
        place.valid);
    const Window large = window_of<G::kWindowRows, G::kWindowColumns>(
        p.large_extent, channel_begin(place, p.large_extent, p.channels, G::kChannelsLast),
        G::kStride * place.h - G::K / 2, G::kStride * place.w - G::K / 2, place.valid);
    const LaneMap<T> map = lane_map<T>(p.affine, channel, place.valid);

    float values[G::kPlanes][G::kRows][G::kColumns] = {};
    const auto load_small = [&](int plane, float (&to)[G::kRows][G::kColumns]) {
        const unsigned rows = inside(plane, p.small_extent.d) ? small.rows : 0u;
        load_rows<G::kChannelsLast, 0, !G::kMapsLarge>(static_cast<const T*>(p.small), map,
                                                       small.at + plane * plane_pitch(p.small_extent), p.small_extent,
                                                       rows, small.columns, to);
    };
#pragma unroll
    for (int j = 1; j < G::kPlanes; ++j) load_small(place.d_begin - j, values[j - 1]);

    for (int step = place.d_begin; step < place.d_end; ++step) {
#pragma unroll
        for (int j = G::kPlanes - 1; j > 0; --j) {
#pragma unroll
            for (int i = 0; i < G::kRows * G::kColumns; ++i) {
                values[j][i / G::kColumns][i % G::kColumns] = values[j - 1][i / G::kColumns][i % G::kColumns];
            }
        }
        load_small(step, values[0]);
        const int z = G::kStride * step + first_kd - G::KD / 2;
        if (!inside(z, p.large_extent.d)) continue;
        const std::int64_t at = large.at + z * plane_pitch(p.large_extent);
        const auto add_rows = [&]<int First>(std::integral_constant<int, First>) {
            // A branch of its own: the loads of all pieces at once would take more registers than there are.
            const unsigned rows = large.rows >> First & ((1u << G::kRowsAtOnce) - 1);
            if (rows == 0) return;
            float window[G::kRowsAtOnce][G::kWindowColumns];
            load_rows<G::kChannelsLast, G::kBefore, G::kMapsLarge>(static_cast<const T*>(p.large), map,
                                                                   at + First * row_pitch(p.large_extent),
                                                                   p.large_extent, rows, large.columns, window);
#pragma unroll
            for (int j = 0; j < G::kPlanes; ++j) {
                if (G::in_kernel(first_kd, j)) multiply<G, First>(window, values[j], sum[j]);
            }
        };
        [&]<int... Piece>(std::integer_sequence<int, Piece...>) {
            (add_rows(std::integral_constant<int, Piece * G::kRowsAtOnce>{}), ...);
        }(std::make_integer_sequence<int, G::kPieces>{});
    }
}

// ---- the kernel ----

template <typename T, typename G>
__global__ void __launch_bounds__(G::kWarps* kWarpSize, G::kBlocksPerProcessor)
    streaming_weight_gradient(const __grid_constant__ StreamingWeightParameters p) {
    const int warp = threadIdx.x / kWarpSize;
    const int first_kd = warp % G::kGroups.groups * G::kGroups.first;
    const auto parts = static_cast<unsigned>(p.tile.parts());
    const unsigned blocks = (parts + G::kPartsPerBlock - 1) / G::kPartsPerBlock;
    const unsigned part = blockIdx.x % blocks * G::kPartsPerBlock + warp / G::kGroups.groups;

#pragma unroll 1
    for (int turn = 0; turn < p.tile.turns; ++turn) {
        const unsigned number = part * p.tile.turns + turn;
        const Place place =
            place_of_lane(p.tile.each, number, blockIdx.x / blocks, p.channels, G::kChannelsLast, p.steps);
        if (!place.working) return;
        float sum[G::kPlanes][G::K][G::K] = {};
        walk<T, G>(p, place, first_kd, sum);
        add_lanes<G>(p.tile.each, sum);

        const int lanes_hw = p.tile.each.lanes_h * p.tile.each.lanes_w;
        const int leader = place.channel_in_tile * (G::kChannelsLast ? 1 : lanes_hw);
        if (!place.valid || static_cast<int>(threadIdx.x % kWarpSize) != leader) continue;
        constexpr int kTaps = G::K * G::K;
        float* const partial =
            p.partial + ((place.sample * parts + part) * p.channels + place.channel) * (G::KD * kTaps);
#pragma unroll
        for (int j = 0; j < G::kPlanes; ++j) {
            if (!G::in_kernel(first_kd, j)) continue;
#pragma unroll
            for (int i = 0; i < kTaps; ++i) {
                const int tap = (first_kd + G::kStride * j) * kTaps + i;
                float& to = partial[p.mirrored ? G::KD * kTaps - 1 - tap : tap];
                to = turn == 0 ? sum[j][i / G::K][i % G::K] : to + sum[j][i / G::K][i % G::K];
            }
        }
    }
}

// ---- launch ----

template <typename T, bool ChannelsLast>
cudaError_t launch_weight_sums(const Triple& kernel, std::int64_t stride, bool maps_large,
                               const StreamingWeightParameters& p, std::int64_t batch, cudaStream_t stream) {
    const auto launch_one = [&]<int KD, int K, int Stride, bool MapsLarge>() {
        using G = WeightSums<KD, K, Stride, MapsLarge, ChannelsLast>;
        const std::int64_t blocks = batch * p.tile.each.channel_tiles * ceil_div(p.tile.parts(), G::kPartsPerBlock);
        if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
        const LaunchShape shape{static_cast<unsigned>(blocks), G::kWarps * kWarpSize, 0, stream};
        return launch<streaming_weight_gradient<T, G>>(shape, p);
    };
    if (stride == 2) {
        if (kernel.w == 3) {
            return maps_large ? launch_one.template operator()<3, 3, 2, true>()
                              : launch_one.template operator()<3, 3, 2, false>();
        }
        if (kernel.w == 5) {
            return maps_large ? launch_one.template operator()<5, 5, 2, true>()
                              : launch_one.template operator()<5, 5, 2, false>();
        }
        return maps_large ? launch_one.template operator()<7, 7, 2, true>()
                          : launch_one.template operator()<7, 7, 2, false>();
    }
    if (maps_large) return cudaErrorInvalidValue;  // the host exchanges the two
    if (kernel.d == 1) {
        if (kernel.w == 3) return launch_one.template operator()<1, 3, 1, false>();
        if (kernel.w == 5) return launch_one.template operator()<1, 5, 1, false>();
        return launch_one.template operator()<1, 7, 1, false>();
    }
    if (kernel.w == 3) return launch_one.template operator()<3, 3, 1, false>();
    if (kernel.w == 5) return launch_one.template operator()<5, 5, 1, false>();
    return launch_one.template operator()<7, 7, 1, false>();
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
