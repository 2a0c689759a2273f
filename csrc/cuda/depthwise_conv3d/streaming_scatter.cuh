// A scatter at stride 2 that walks along D, in float FMAs: the data gradient of a strided convolution, the forward pass
// of a transposed one.
//
// Input i reaches the outputs 2 i + k - p of each axis, p = K / 2. So of the two outputs 2 u and 2 u + 1 one meets the
// even taps, the other one the odd taps, both at (K + 1) / 2 inputs around u, and nothing is multiplied by an inserted
// zero:
//
//      K = 3, p = 1                       K = 5, p = 2                       K = 7, p = 3
//      inputs    u     u + 1              u - 1  u     u + 1                 u - 1  u     u + 1  u + 2
//      2 u       k 1                      k 4    k 2   k 0                   k 5    k 3   k 1
//      2 u + 1   k 2   k 0                       k 3   k 1                   k 6    k 4   k 2    k 0
//
// A thread owns R x 1 such pairs of rows and columns, 2R x 2 outputs, of the planes that its warp walks through:
//
//      window of input plane z, in registers              sums in registers, one plane a kd
//
//      u      x x                                           plane z adds the taps kd to output plane 2 z + kd - p
//      u + 1  x x     O O   the thread's outputs            sum[0]   2 z - p        is complete: stored
//      u + 2  x x     O O   2 u, 2 u + 1, ...               sum[1]   2 z + 1 - p    is complete: stored
//      ...            ...                                   sum[2]   2 z + 2 - p    and so on; then all move two down
//
// One pair of columns a lane: 32 lanes read adjacent inputs and write adjacent pairs, whatever W is.
#pragma once

#include <utility>

#include "../common/launch.h"
#include "../common/opaque.cuh"
#include "streaming_store.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template <int KD_, int K_, int StrideD_, bool ChannelsLast_>
struct Scatter {
    static constexpr bool kChannelsLast = ChannelsLast_;
    static constexpr int KD = KD_;  // planes of sums
    static constexpr int K = K_;
    static constexpr int kStrideD = StrideD_;
    static constexpr int kPairs = kStreamingScatterRows;
    static constexpr int kRows = 2 * kPairs;   // of the output
    static constexpr int kBefore = K / 2 / 2;  // inputs before that of the first pair
    static constexpr int kWindowRows = kPairs + (K + 1) / 2 - 1;
    static constexpr int kWindowColumns = (K + 1) / 2;
    // Input planes before the one that completes an output plane, which reach it too.
    static constexpr int kPlanesBefore = (KD - 1) / kStrideD;
    // 168 registers a thread, or 255.
    static constexpr int kBlocksPerProcessor = K == 7 || (K == 5 && kChannelsLast) ? 2 : 3;

    // Which output of a pair tap k reaches, and from which input of the pair's window.
    static constexpr int output_of(int k) { return (k + K / 2) % 2; }
    static constexpr int input_of(int k) { return kBefore + (output_of(k) + K / 2 - k) / 2; }
};

// ---- multiply ----

// Adds the taps of one kd to the sums of an output plane.
template <typename G>
__device__ inline void scatter(const float (&window)[G::kWindowRows][G::kWindowColumns], const float* taps,
                               const float (&in_registers)[G::KD * G::K * G::K], int kd, float (&sum)[G::kRows][2]) {
#pragma unroll
    for (int kh = 0; kh < G::K; ++kh) {
        float row[G::K];
        Taps<G::KD, G::K>::take(taps, in_registers, kd * G::K + kh, row);
#pragma unroll
        for (int kw = 0; kw < G::K; ++kw) {
#pragma unroll
            for (int i = 0; i < G::kPairs; ++i) {
                float& to = sum[2 * i + G::output_of(kh)][G::output_of(kw)];
                to = fmaf(window[i + G::input_of(kh)][G::input_of(kw)], row[kw], to);
            }
        }
    }
}

// ---- store ----

// Which rows of a plane a lane of NCDHW stores how, a bit each. Rows begin at odd elements as often as not: there,
// lanes store their second value and the next lane's first one, so that a warp writes whole sectors all the same.
struct PairRows {
    unsigned odd;      // the lane's pair begins at an odd element
    unsigned vector;   // two values at once
    unsigned single;   // the first of the two alone
    unsigned leading;  // the lane's own first value, which no lane before has taken
};

// What a lane's columns allow, a bit each.
constexpr unsigned kFirst = 1, kSecond = 2;  // the column is there
constexpr unsigned kNext = 4;                // and that after it, which is the next lane's
constexpr unsigned kLeads = 8;               // the lane is the first of its row, and has a column

__device__ inline unsigned columns_of_pair(int lanes_w, int w, int extent) {
    const int lane_w = static_cast<int>(threadIdx.x) % lanes_w;
    return inside_mask<2>(w, extent) | (lane_w + 1 < lanes_w && w + 2 < extent ? kNext : 0u) |
           (lane_w == 0 && w < extent ? kLeads : 0u);
}

// For the plane in which the lane's first value goes to element `first` of memory.
__device__ inline PairRows pair_rows(std::uintptr_t first, int extent_w, unsigned rows, unsigned columns) {
    constexpr unsigned kEverySecond = 0xaaaaaaaau;
    const unsigned odd = (first % 2 != 0 ? ~0u : 0u) ^ (extent_w % 2 != 0 ? kEverySecond : 0u);
    const auto where = [&](unsigned column) { return (columns & column) != 0 ? rows : 0u; };
    const unsigned begins = (odd & where(kSecond)) | (~odd & where(kFirst));
    const unsigned ends = (odd & where(kNext)) | (~odd & where(kSecond));
    return {odd, begins & ends, begins & ~ends, odd & where(kLeads)};
}

// Stores the pairs of row r. Called by whole warps.
template <typename T>
__device__ inline void store_pair(T* row, const PairRows& rows, int r, int lanes_w, float first, float second) {
    const float next = __shfl_down_sync(kFullWarp, first, 1, lanes_w);
    int odd = static_cast<int>(rows.odd >> r & 1);
    const Vector<T, 2> pair{from_float<T>(odd != 0 ? second : first), from_float<T>(odd != 0 ? next : second)};
    if ((rows.leading >> r & 1) != 0) *row = from_float<T>(first);
    make_opaque(odd);  // or the two halves of the vector get addresses of their own
    if ((rows.vector >> r & 1) != 0) *reinterpret_cast<Vector<T, 2>*>(row + odd) = pair;
    if ((rows.single >> r & 1) != 0) row[odd] = pair.element[0];
}

// Adds bias and `add` to the sums of a lane in one plane, rounds them and stores them; `window` lies in that plane.
template <typename T, typename G>
__device__ inline void store_pairs(const StreamingParameters& p, const Window& window, std::int64_t at, float bias,
                                   const float (&sum)[G::kRows][2], float (&stored)[G::kRows * 2]) {
    const std::int64_t pitch = row_pitch(p.output_extent);
    int step = G::kChannelsLast ? p.output_extent.step : 1;
    if constexpr (G::kChannelsLast) make_opaque(step);
    const auto in = [&](int i) { return (window.rows >> (i / 2) & window.columns >> (i % 2) & 1) != 0; };
#pragma unroll
    for (int i = 0; i < G::kRows * 2; ++i) stored[i] = sum[i / 2][i % 2] + bias;
    if (p.add != nullptr) {
        const T* const add = static_cast<const T*>(p.add) + at;
#pragma unroll
        for (int i = 0; i < G::kRows * 2; ++i) {
            if (in(i)) stored[i] += to_float(add[i / 2 * pitch + i % 2 * step]);
        }
    }
    T* const outputs = static_cast<T*>(p.output) + at;
    PairRows rows{};
    if constexpr (!G::kChannelsLast) {
        rows = pair_rows(reinterpret_cast<std::uintptr_t>(outputs) / sizeof(T), p.output_extent.w, window.rows,
                         window.columns);
    }
#pragma unroll
    for (int r = 0; r < G::kRows; ++r) {
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
            const T rounded = from_float<T>(stored[i]);
            stored[i] = to_float(rounded);
            if (G::kChannelsLast && in(i)) outputs[r * pitch + i % 2 * step] = rounded;
        }
        if constexpr (!G::kChannelsLast) {
            store_pair(outputs + r * pitch, rows, r, p.tile.lanes_w, stored[2 * r], stored[2 * r + 1]);
        }
    }
}

// ---- the kernel ----

template <typename T, typename G>
__global__ void __launch_bounds__(StreamingTile::kWarps* kWarpSize, G::kBlocksPerProcessor)
    streaming_scatter(const __grid_constant__ StreamingParameters p) {
    using TapsOf = Taps<G::KD, G::K>;
    constexpr auto kFirstPlane = static_cast<int>(first_completing_plane(G::KD / 2, G::kStrideD));
    const TapsOf shared(p.tile.lanes_c);
    const auto blocks = static_cast<unsigned>((p.tile.tiles() + StreamingTile::kWarps - 1) / StreamingTile::kWarps);
    const unsigned number = blockIdx.x % blocks * StreamingTile::kWarps + threadIdx.x / kWarpSize;
    const int planes = (p.output_extent.d - 1 + G::KD / 2) / G::kStrideD + 1 - kFirstPlane;
    const Place place =
        place_of_lane<StreamingTile::kPairs>(p.tile, number, blockIdx.x / blocks, p.channels, G::kChannelsLast, planes);
    float* const staged = shared_array(shared.array);
    TapsOf::stage(staged, p, place.channel - place.channel_in_tile);
    __syncthreads();
    if (!place.working) return;

    const float* const taps = staged + place.channel_in_tile * TapsOf::kChannel;
    float in_registers[TapsOf::kAll];
    TapsOf::load_all(taps, in_registers);
    const std::int64_t channel = place.sample * p.channels + place.channel;
    Window input = window_of<G::kWindowRows, G::kWindowColumns>(
        p.input_extent, channel_begin(place, p.input_extent, p.channels, G::kChannelsLast), place.h - G::kBefore,
        place.w - G::kBefore, place.valid);
    Window output =
        window_of<G::kRows, 2>(p.output_extent, channel_begin(place, p.output_extent, p.channels, G::kChannelsLast),
                               2 * place.h, 2 * place.w, place.valid);
    if constexpr (!G::kChannelsLast) {
        output.columns = columns_of_pair(p.tile.lanes_w, 2 * place.w, p.output_extent.w);
    }
    const float bias = p.bias.data == nullptr || !place.valid ? 0.0f : load_parameter(p.bias, place.channel);

    float sum[G::KD][G::kRows][2] = {};
    bool begun = false;
    for (int step = place.d_begin - G::kPlanesBefore; step < place.d_end; ++step) {
        // What follows from the masks, and from the step between columns, is cheaper to compute again for each plane
        // than to keep.
        make_opaque(input.rows);
        make_opaque(input.columns);
        make_opaque(output.rows);
        make_opaque(output.columns);
        const int z = step + kFirstPlane;
        if (inside(z, p.input_extent.d)) {
            float window[G::kWindowRows][G::kWindowColumns];
            Extent extent = p.input_extent;
            if constexpr (G::kChannelsLast) make_opaque(extent.step);
            load_mapped<G::kChannelsLast, kScalars, T>(p.input, p.affine, channel, input.at + z * plane_pitch(extent),
                                                       extent, input.rows, input.columns, window);
#pragma unroll
            for (int kd = 0; kd < G::KD; ++kd) {
                // Output planes of the warp before and after this one's.
                if (kd < G::kStrideD * (place.d_begin - step) || kd >= G::kStrideD * (place.d_end - step)) continue;
                scatter<G>(window, taps, in_registers, kd, sum[kd]);
            }
        }
#pragma unroll
        for (int kd = 0; kd < G::kStrideD; ++kd) {
            const int complete = G::kStrideD * z + kd - G::KD / 2;
            if (step < place.d_begin || !inside(complete, p.output_extent.d)) continue;
            float stored[G::kRows * 2];
            store_pairs<T, G>(p, output, output.at + complete * plane_pitch(p.output_extent), bias, sum[kd], stored);
            if (p.moments != nullptr) {
                add_moments<2>(stored, output, begun, shared_array(shared.of_thread)[threadIdx.x]);
                begun = true;
            }
        }
#pragma unroll
        for (int kd = 0; kd < G::KD; ++kd) {
#pragma unroll
            for (int i = 0; i < G::kRows * 2; ++i) {
                sum[kd][i / 2][i % 2] = kd + G::kStrideD < G::KD ? sum[(kd + G::kStrideD) % G::KD][i / 2][i % 2] : 0.0f;
            }
        }
    }
    if (p.moments != nullptr) store_moments(p, place, shared_array(shared.of_thread)[threadIdx.x]);
}

// ---- launch ----

template <typename T, bool ChannelsLast>
cudaError_t launch_scatter(const Triple& kernel, std::int64_t stride_d, const StreamingParameters& p,
                           const LaunchShape& shape) {
    const auto launch_one = [&]<int KD, int K, int StrideD>() {
        LaunchShape with_taps = shape;
        with_taps.shared_bytes = Taps<KD, K>(p.tile.lanes_c).layout.bytes();
        return launch<streaming_scatter<T, Scatter<KD, K, StrideD, ChannelsLast>>>(with_taps, p);
    };
    const auto of_strides = [&]<int K>() {
        if (kernel.d == 1) return launch_one.template operator()<1, K, 1>();
        return stride_d == 1 ? launch_one.template operator()<K, K, 1>() : launch_one.template operator()<K, K, 2>();
    };
    if (kernel.w == 3) return of_strides.template operator()<3>();
    if (kernel.w == 5) return of_strides.template operator()<5>();
    return of_strides.template operator()<7>();
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
