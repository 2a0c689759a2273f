// The parts that the streaming kernels share: where a lane works, how it reads a window of a plane into registers.
//
//     NCDHW                                        channels-last
//     lane = (channel, h, w), w fastest            lane = (h, w, channel), channel fastest
//     4 columns are one vector where W is a        every load is a scalar; lanes read adjacent channels
//     multiple of 4
//
// Windows overlap: what a neighbour has read comes from the first-level cache.
#pragma once

#include <cstdint>

#include "../common/scalar_types.cuh"
#include "../common/warp.h"
#include "general_reading.cuh"
#include "streaming_tiles.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// A dense volume, and whether its rows can be read or written as vectors of four.
struct Extent {
    int d, h, w;
    int step;  // elements from one voxel to the next
    bool vectors;
};

// Whether vectors of four elements may begin there; null may.
inline bool is_vector_aligned(const void* pointer, ScalarType type) {
    return reinterpret_cast<std::uintptr_t>(pointer) % (type == ScalarType::float32 ? 16 : 8) == 0;
}

inline Extent extent_of(const Triple& size, std::int64_t channels, bool channels_last, bool aligned) {
    return {static_cast<int>(size.d), static_cast<int>(size.h), static_cast<int>(size.w),
            channels_last ? static_cast<int>(channels) : 1,
            aligned && !channels_last && size.w % StreamingTile::kColumns == 0};
}

// The tile of a warp, and a lane's place in it.
struct Place {
    bool working;  // the warp has a tile
    bool valid;    // and the lane a channel
    std::int64_t sample, channel;
    int channel_in_tile;
    int tile;            // number of the warp's tile
    int d_begin, d_end;  // planes
    int h, w;            // first row and column of the lane
};

// The lane's place in tile `number` of the volume that is `volume` among all samples and tiles of channels.
template <int Columns = StreamingTile::kColumns>
__device__ inline Place place_of_lane(const StreamingTile& tile, unsigned number, unsigned volume,
                                      std::int64_t channels, bool channels_last, int depth) {
    const int lane = threadIdx.x % kWarpSize;
    const int lanes_hw = tile.lanes_h * tile.lanes_w;
    const int c = channels_last ? lane % tile.lanes_c : lane / lanes_hw;
    const int hw = channels_last ? lane / tile.lanes_c : lane % lanes_hw;
    Place place;
    place.working = number < static_cast<unsigned>(tile.tiles());
    place.sample = volume / tile.channel_tiles;
    place.channel = volume % tile.channel_tiles * tile.lanes_c + c;
    place.channel_in_tile = c;
    place.valid = place.channel < channels;
    place.tile = static_cast<int>(number);
    const auto tile_h = static_cast<int>(number % tile.tiles_h);
    const auto tile_w = static_cast<int>(number / tile.tiles_h % tile.tiles_w);
    place.d_begin = static_cast<int>(number / tile.tiles_h / tile.tiles_w) * tile.depth;
    place.d_end = min(place.d_begin + tile.depth, depth);
    place.h = (tile_h * tile.lanes_h + hw / tile.lanes_w) * tile.rows;
    place.w = (tile_w * tile.lanes_w + hw % tile.lanes_w) * Columns;
    return place;
}

// Which element a lane's channel begins with.
__device__ inline std::int64_t channel_begin(const Place& place, const Extent& extent, std::int64_t channels,
                                             bool channels_last) {
    const std::int64_t voxels = static_cast<std::int64_t>(extent.d) * extent.h * extent.w;
    return channels_last ? channel_begin<true>(place.sample, place.channel, channels, voxels)
                         : channel_begin<false>(place.sample, place.channel, channels, voxels);
}

// ---- load ----

__device__ inline bool inside(int at, int extent) {
    return static_cast<unsigned>(at) < static_cast<unsigned>(extent);
}

// Bit i: whether `begin + i` lies inside. Masks take one register where coordinates and bounds would take many.
template <int Count>
__device__ inline unsigned inside_mask(int begin, int extent) {
    unsigned mask = 0;
#pragma unroll
    for (int i = 0; i < Count; ++i) mask |= inside(begin + i, extent) ? 1u << i : 0u;
    return mask;
}

// Where a lane's window lies in every plane.
struct Window {
    std::int64_t at;         // element of its first row and column in plane 0; may lie outside
    unsigned rows, columns;  // which of them lie inside
};

template <int Rows, int Columns>
__device__ inline Window window_of(const Extent& extent, std::int64_t channel_begin, int h, int w, bool valid) {
    const std::int64_t first = static_cast<std::int64_t>(h) * extent.w + w;
    return {channel_begin + first * extent.step, valid ? inside_mask<Rows>(h, extent.h) : 0u,
            inside_mask<Columns>(w, extent.w)};
}

__device__ inline std::int64_t row_pitch(const Extent& extent) {
    return static_cast<std::int64_t>(extent.w) * extent.step;
}

__device__ inline std::int64_t plane_pitch(const Extent& extent) {
    return static_cast<std::int64_t>(extent.h) * extent.w * extent.step;
}

// The `Before` of windows that are never read as vectors.
constexpr int kScalars = -1;

// Reads Rows x Columns elements from `first` on, zero where the masks say outside. Before: columns from a multiple of
// four to the first one, where vectors are read.
template <bool ChannelsLast, int Before, typename T, int Rows, int Columns>
__device__ inline void load_window(const T* __restrict__ first, const Extent& extent, unsigned rows, unsigned columns,
                                   float (&window)[Rows][Columns]) {
    if (!ChannelsLast && Before != kScalars && extent.vectors) {
        constexpr int kVectors = (Before + Columns + 3) / 4;
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
            const T* row = first + r * row_pitch(extent) - Before;
#pragma unroll
            for (int v = 0; v < kVectors; ++v) {
                const int begin = v == 0 ? Before : 0;  // of the vector, of those that are wanted
                const int end = min(4, Before + Columns - 4 * v);
                // A vector lies inside or outside as a whole.
                const bool in = (rows >> r & 1) != 0 && (columns >> (4 * v + begin - Before) & 1) != 0;
                if (end - begin == 1) {
                    window[r][4 * v + begin - Before] = in ? to_float(row[4 * v + begin]) : 0.0f;
                    continue;
                }
                Vector<T, 4> vector{};
                if (in) vector = *reinterpret_cast<const Vector<T, 4>*>(row + 4 * v);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (i >= begin && i < end) window[r][4 * v + i - Before] = to_float(vector.element[i]);
                }
            }
        }
    } else {
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
            const T* row = first + r * row_pitch(extent);
#pragma unroll
            for (int c = 0; c < Columns; ++c) {
                const bool in = (rows >> r & 1) != 0 && (columns >> c & 1) != 0;
                window[r][c] = in ? to_float(row[c * (ChannelsLast ? extent.step : 1)]) : 0.0f;
            }
        }
    }
}

// The same through the affine map of a gradient, where there is one; `channel` is the number among all [N, C].
template <bool ChannelsLast, int Before, typename T, int Rows, int Columns>
__device__ inline void load_mapped(const void* tensor, const AffineGradient& affine, std::int64_t channel,
                                   std::int64_t at, const Extent& extent, unsigned rows, unsigned columns,
                                   float (&window)[Rows][Columns]) {
    load_window<ChannelsLast, Before>(static_cast<const T*>(tensor) + at, extent, rows, columns, window);
    if (!affine.given() || rows == 0) return;
    const float scale = affine.scale[channel];
    const float slope = affine.slope[channel];
    const float offset = affine.offset[channel];
#pragma unroll
    for (int r = 0; r < Rows; ++r) {  // row by row, to save registers
        float outputs[1][Columns];
        load_window<ChannelsLast, Before>(static_cast<const T*>(affine.output) + at + r * row_pitch(extent), extent,
                                          rows >> r, columns, outputs);
#pragma unroll
        for (int c = 0; c < Columns; ++c) {
            const bool in = (rows >> r & 1) != 0 && (columns >> c & 1) != 0;
            const float value = fmaf(scale, window[r][c], fmaf(slope, outputs[0][c], offset));
            window[r][c] = in ? value : 0.0f;
        }
    }
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
