// A gather at stride 1 or 2 that walks along D, in float FMAs.
//
// A thread owns 2 x 4 outputs of the planes that its warp walks through. At stride 1, for K = 3:
//
//      window of input plane z, in registers              sums in registers, one plane a kd
//
//      h-1  . x x x x x x .                                 plane z adds the taps kd to output plane z + 1 - kd
//      h    . x O O O O x .   O: the thread's outputs       sum[0]   z + 1     begins
//      h+1  . x O O O O x .                                 sum[1]   z
//      h+2  . x x x x x x .                                 sum[2]   z - 1     is complete: stored
//                                                           then all move one up
//
// so every value of a window is used for all taps that it meets: 24 loads for 216 FMAs (K = 5: 48 for 1000; K = 7: 80
// for 2744). At stride 2 along D the planes come in pairs, `sub` = 0 and 1, and the sums are half as many. Windows come
// through the first-level cache, which serves the overlaps; there is no barrier after the weights are staged.
//
// A scatter at stride 1 is a gather with the mirrored kernel; at stride 2 it is streaming_scatter.cuh's.
#pragma once

#include <utility>

#include "../common/launch.h"
#include "streaming_convolution.h"
#include "streaming_store.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template <int KD_, int K_, int StrideD_, int Stride_, bool ChannelsLast_>
struct Gather {
    static constexpr bool kChannelsLast = ChannelsLast_;
    static constexpr int KD = KD_;
    static constexpr int K = K_;
    static constexpr int kStrideD = StrideD_;
    static constexpr int kStride = Stride_;  // along H and W
    static constexpr int kRows = streaming_rows(K, kStride, kChannelsLast);
    static constexpr int kColumns = StreamingTile::kColumns;
    static constexpr int kSums = (KD + kStrideD - 1) / kStrideD;  // output planes in progress
    static constexpr int kWindowRows = kStride * (kRows - 1) + K;
    static constexpr int kWindowColumns = kStride * (kColumns - 1) + K;
    // Rows of the window in registers at once. In channels-last every load has an address of its own.
    static constexpr int kRowsAtOnce = kChannelsLast ? (kStride == 1 && K < 7 ? 2 : 1) : kStride == 1 && K != 5 ? 4 : 3;
    static constexpr int kPieces = (kWindowRows + kRowsAtOnce - 1) / kRowsAtOnce;
    // From the multiple of four before the window to the window, along W.
    static constexpr int kBefore = 4 - K / 2;
    // 168 registers a thread, or 255.
    static constexpr int kBlocksPerProcessor = K == 7 || kChannelsLast ? 2 : 3;
};

// ---- multiply ----

// Adds the taps of one kd to the sums of an output plane, from the rows First, First + 1, ... of a window.
template <typename G, int First>
__device__ inline void multiply(const float (&window)[G::kRowsAtOnce][G::kWindowColumns], const float* taps,
                                const float (&in_registers)[G::KD * G::K * G::K], int kd,
                                float (&sum)[G::kRows][G::kColumns]) {
    using TapsOf = Taps<G::KD, G::K>;
#pragma unroll
    for (int kh = 0; kh < G::K; ++kh) {
        float row[G::K];
        TapsOf::take(taps, in_registers, kd * G::K + kh, row);
#pragma unroll
        for (int i = 0; i < G::kRows; ++i) {
            const int r = G::kStride * i + kh - First;
            if (r < 0 || r >= G::kRowsAtOnce) continue;
#pragma unroll
            for (int kw = 0; kw < G::K; ++kw) {
#pragma unroll
                for (int q = 0; q < G::kColumns; ++q) {
                    sum[i][q] = fmaf(window[r][G::kStride * q + kw], row[kw], sum[i][q]);
                }
            }
        }
    }
}

// ---- the kernel ----

template <typename T, typename G>
__global__ void __launch_bounds__(StreamingTile::kWarps* kWarpSize, G::kBlocksPerProcessor)
    streaming_convolution(const __grid_constant__ StreamingParameters p) {
    using TapsOf = Taps<G::KD, G::K>;
    const TapsOf shared(p.tile.lanes_c);
    const auto blocks = static_cast<unsigned>((p.tile.tiles() + StreamingTile::kWarps - 1) / StreamingTile::kWarps);
    const unsigned number = blockIdx.x % blocks * StreamingTile::kWarps + threadIdx.x / kWarpSize;
    const Place place =
        place_of_lane(p.tile, number, blockIdx.x / blocks, p.channels, G::kChannelsLast, p.output_extent.d);
    float* const staged = shared_array(shared.array);
    TapsOf::stage(staged, p, place.channel - place.channel_in_tile);
    __syncthreads();
    if (!place.working) return;

    const float* const taps = staged + place.channel_in_tile * TapsOf::kChannel;
    float in_registers[TapsOf::kAll];
    TapsOf::load_all(taps, in_registers);
    const std::int64_t channel = place.sample * p.channels + place.channel;
    const Window input = window_of<G::kWindowRows, G::kWindowColumns>(
        p.input_extent, channel_begin(place, p.input_extent, p.channels, G::kChannelsLast),
        G::kStride * place.h - G::K / 2, G::kStride * place.w - G::K / 2, place.valid);
    const Window output = window_of<G::kRows, G::kColumns>(
        p.output_extent, channel_begin(place, p.output_extent, p.channels, G::kChannelsLast), place.h, place.w,
        place.valid);
    const float bias = p.bias.data == nullptr || !place.valid ? 0.0f : load_parameter(p.bias, place.channel);

    float sum[G::kSums][G::kRows][G::kColumns] = {};
    for (int step = place.d_begin; step < place.d_end + G::kSums - 1; ++step) {
#pragma unroll
        for (int sub = 0; sub < G::kStrideD; ++sub) {
            const int z = G::kStrideD * step + sub - G::KD / 2;
            if (!inside(z, p.input_extent.d)) continue;
            const auto add_rows = [&]<int First>(std::integral_constant<int, First>) {
                // A branch of its own, where the loads of all rows at once would take more registers than there are.
                if (G::kStride == 2 && G::kChannelsLast && (input.rows >> First) == 0) return;
                float window[G::kRowsAtOnce][G::kWindowColumns];
                load_mapped<G::kChannelsLast, G::kBefore, T>(
                    p.input, p.affine, channel,
                    input.at + z * plane_pitch(p.input_extent) + First * row_pitch(p.input_extent), p.input_extent,
                    input.rows >> First, input.columns, window);
#pragma unroll
                for (int j = 0; j < G::kSums; ++j) {
                    const int kd = sub + G::kStrideD * j;
                    if (kd >= G::KD || step - j < place.d_begin || step - j >= place.d_end) continue;
                    multiply<G, First>(window, taps, in_registers, kd, sum[j]);
                }
            };
            [&]<int... Piece>(std::integer_sequence<int, Piece...>) {
                (add_rows(std::integral_constant<int, Piece * G::kRowsAtOnce>{}), ...);
            }(std::make_integer_sequence<int, G::kPieces>{});
        }
        const int complete = step - (G::kSums - 1);
        if (complete >= place.d_begin) {
            float stored[G::kRows * G::kColumns];
            store_sums<G::kChannelsLast, T>(p, output, output.at + complete * plane_pitch(p.output_extent), bias,
                                            sum[G::kSums - 1], stored);
            if (p.moments != nullptr) {
                add_moments(stored, output, complete > place.d_begin, shared_array(shared.of_thread)[threadIdx.x]);
            }
        }
#pragma unroll
        for (int j = G::kSums - 1; j >= 0; --j) {
#pragma unroll
            for (int i = 0; i < G::kRows * G::kColumns; ++i) {
                sum[j][i / G::kColumns][i % G::kColumns] =
                    j > 0 ? sum[j > 0 ? j - 1 : 0][i / G::kColumns][i % G::kColumns] : 0.0f;
            }
        }
    }
    if (p.moments != nullptr) store_moments(p, place, shared_array(shared.of_thread)[threadIdx.x]);
}

// ---- launch ----

template <typename T, bool ChannelsLast>
cudaError_t launch_gather(const Triple& kernel, const Triple& stride, const StreamingParameters& p,
                          const LaunchShape& shape) {
    const auto launch_one = [&]<int KD, int K, int StrideD, int Stride>() {
        LaunchShape with_taps = shape;
        with_taps.shared_bytes = Taps<KD, K>(p.tile.lanes_c).layout.bytes();
        return launch<streaming_convolution<T, Gather<KD, K, StrideD, Stride, ChannelsLast>>>(with_taps, p);
    };
    const auto of_strides = [&]<int KD, int K>() {
        if (stride.w == 1) return launch_one.template operator()<KD, K, 1, 1>();
        // 1xKxK has no stride along D.
        if (KD == 1 || stride.d == 1) return launch_one.template operator()<KD, K, 1, 2>();
        return launch_one.template operator()<KD, K, KD == 1 ? 1 : 2, 2>();
    };
    const auto of_depth = [&]<int K>() {
        return kernel.d == 1 ? of_strides.template operator()<1, K>() : of_strides.template operator()<K, K>();
    };
    if (kernel.w == 3) return of_depth.template operator()<3>();
    if (kernel.w == 5) return of_depth.template operator()<5>();
    return of_depth.template operator()<7>();
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
