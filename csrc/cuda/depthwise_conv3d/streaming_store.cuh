// How the streaming convolutions hold the weights, store their outputs and take their moments.
#pragma once

#include <cstdint>

#include "../common/moments.cuh"
#include "../common/parameter.cuh"
#include "../common/shared_load.cuh"
#include "../common/shared_memory.cuh"
#include "streaming_warp.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

struct StreamingParameters {
    const void* input;
    AffineGradient affine;
    Extent input_extent;
    Parameter weight, bias;
    bool mirrored;  // taps in reverse: a scatter at stride 1 is a gather
    const void* add;
    void* output;
    Extent output_extent;
    std::int64_t batch, channels;
    bool channels_last;
    StreamingTile tile;
    Moments<double>* moments;
};

// ---- weights ----

// The moments of what a thread has stored, relative to the first value of it.
struct alignas(16) RunningMoments {
    Moments<float> moments;
    float pivot;
};

// The taps of the block's channels in shared memory: rows of taps of 16 or 32 bytes, channels an odd number of 16 bytes
// apart, so that the vectors that eight lanes read lie in different banks. Moments wait there between planes: registers
// are what a large kernel has least of.
template <int KD, int K>
struct Taps {
    static constexpr int kRow = K <= 4 ? 4 : 8;
    static constexpr int kChannel = (KD * K * kRow / 4 | 1) * 4;
    static constexpr int kAll = KD * K * K;
    static constexpr bool kInRegisters = kAll <= 27;

    SharedLayout layout;
    SharedArray<float> array;
    SharedArray<RunningMoments> of_thread;

    __host__ __device__ constexpr explicit Taps(int channels)
        : array(layout.array<float>(static_cast<std::size_t>(channels) * kChannel)),
          of_thread(layout.array<RunningMoments>(StreamingTile::kWarps * kWarpSize)) {}

    // By the whole block; a barrier must follow.
    __device__ static void stage(float* taps, const StreamingParameters& p, std::int64_t first_channel) {
        for (int i = threadIdx.x; i < p.tile.lanes_c * kAll; i += StreamingTile::kWarps * kWarpSize) {
            const int channel = i / kAll;
            const int tap = i % kAll;
            if (first_channel + channel >= p.channels) break;
            const float weight = load_parameter(p.weight, first_channel * kAll + i);
            const int to = p.mirrored ? kAll - 1 - tap : tap;
            taps[channel * kChannel + to / K * kRow + to % K] = weight;
        }
    }

    // All taps of a channel, where they stay in registers.
    __device__ static void load_all(const float* of_channel, float (&taps)[kAll]) {
        if constexpr (kInRegisters) {
#pragma unroll
            for (int row = 0; row < KD * K; ++row) {
                float of_row[K];
                load(of_channel, row, of_row);
#pragma unroll
                for (int kw = 0; kw < K; ++kw) taps[row * K + kw] = of_row[kw];
            }
        }
    }

    // A row of taps of a channel, from the registers of load_all() where they are there.
    __device__ static void take(const float* of_channel, const float (&in_registers)[kAll], int row, float (&taps)[K]) {
        if constexpr (kInRegisters) {
#pragma unroll
            for (int kw = 0; kw < K; ++kw) taps[kw] = in_registers[row * K + kw];
        } else {
            load(of_channel, row, taps);
        }
    }

    // A row of taps of a channel from shared memory.
    __device__ static void load(const float* of_channel, int row, float (&taps)[K]) {
#pragma unroll
        for (int v = 0; v < kRow / 4; ++v) {
            float vector[4];
            load_shared_again(vector, of_channel + row * kRow + 4 * v);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (4 * v + i < K) taps[4 * v + i] = vector[i];
            }
        }
    }
};

// ---- store ----

// Adds bias and `add` to the sums of a lane in one plane, rounds them and stores them; `window` lies in that plane.
template <bool ChannelsLast, typename T, int Rows>
__device__ inline void store_sums(const StreamingParameters& p, const Window& window, std::int64_t at, float bias,
                                  const float (&sum)[Rows][StreamingTile::kColumns],
                                  float (&stored)[Rows * StreamingTile::kColumns]) {
    constexpr int kColumns = StreamingTile::kColumns;
    const Extent& extent = p.output_extent;
    T* const outputs = static_cast<T*>(p.output) + at;
    const T* const add = static_cast<const T*>(p.add) + (p.add == nullptr ? 0 : at);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
        const std::int64_t row = r * row_pitch(extent);
        const bool row_valid = (window.rows >> r & 1) != 0;
        if (!ChannelsLast && extent.vectors) {
            Vector<T, kColumns> added{};
            Vector<T, kColumns> rounded;
            const bool in = row_valid && (window.columns & 1) != 0;
            if (in && p.add != nullptr) added = *reinterpret_cast<const Vector<T, kColumns>*>(add + row);
#pragma unroll
            for (int q = 0; q < kColumns; ++q) {
                rounded.element[q] = from_float<T>(sum[r][q] + bias + to_float(added.element[q]));
                stored[r * kColumns + q] = to_float(rounded.element[q]);
            }
            if (in) *reinterpret_cast<Vector<T, kColumns>*>(outputs + row) = rounded;
        } else {
#pragma unroll
            for (int q = 0; q < kColumns; ++q) {
                const std::int64_t element = row + q * (ChannelsLast ? static_cast<std::int64_t>(extent.step) : 1);
                const bool in = row_valid && (window.columns >> q & 1) != 0;
                const float added = in && p.add != nullptr ? to_float(add[element]) : 0.0f;
                const T rounded = from_float<T>(sum[r][q] + bias + added);
                stored[r * kColumns + q] = to_float(rounded);
                if (in) outputs[element] = rounded;
            }
        }
    }
}

// ---- statistics ----

// Merges the moments of one plane into those of a lane: two passes over the values in registers.
template <int Columns = StreamingTile::kColumns, int N>
__device__ inline void add_moments(const float (&stored)[N], const Window& window, bool begun,
                                   RunningMoments& running) {
    unsigned counted = 0;
    const unsigned columns = window.columns & ((1u << Columns) - 1);
#pragma unroll
    for (int r = 0; r < N / Columns; ++r) counted |= (window.rows >> r & 1) != 0 ? columns << (r * Columns) : 0u;
    RunningMoments mine{{0.0f, 0.0f, 0.0f}, stored[0]};
    if (begun) mine = running;
    mine.moments = merge(mine.moments, masked_moments(stored, counted, mine.pivot));
    running = mine;
}

// Merges what the lanes of a channel have, in double, and writes it; called by whole warps.
__device__ inline void store_moments(const StreamingParameters& p, const Place& place, const RunningMoments& running) {
    const int lanes_hw = p.tile.lanes_h * p.tile.lanes_w;
    // Lanes of a channel are `step` apart; the first of them gets all.
    const int step = p.channels_last ? p.tile.lanes_c : 1;
    Moments<double> all{running.moments.count, static_cast<double>(running.pivot) + running.moments.mean,
                        running.moments.sum_squared_deviations};
    for (int distance = lanes_hw / 2 * step; distance >= step; distance /= 2) {
        const Moments<double> theirs{__shfl_down_sync(kFullWarp, all.count, distance),
                                     __shfl_down_sync(kFullWarp, all.mean, distance),
                                     __shfl_down_sync(kFullWarp, all.sum_squared_deviations, distance)};
        all = merge(all, theirs);
    }
    const int leader = p.channels_last ? place.channel_in_tile : place.channel_in_tile * lanes_hw;
    if (place.valid && static_cast<int>(threadIdx.x % kWarpSize) == leader) {
        p.moments[(place.sample * p.channels + place.channel) * p.tile.tiles() + place.tile] = all;
    }
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
