// A gather at stride 2 as banded matrix products: the core for fp16 and bf16, NCDHW, KxKxK, sm_80 and newer.
// docs/kernels/strided_convolution.md counts what it costs.
//
// Four outputs of a row, a *quad*, read at most 13 neighbours of an input row: they fit one window of 16. Windows of
// neighbouring quads are 8 apart, as in banded_convolution.cuh, and the eight columns of the product are the quad's
// outputs in two rows:
//
//     C[m, 4 r + o] += sum over kappa of A[m, kappa] B[kappa, 4 r + o]        output 4 m + o of row 2 R + r
//     A[m, kappa]        = x[4 R + i - p][8 m + kappa - 4]                    i = 0 to K + 1: what two rows of outputs
//     read B[kappa, 4 r + o]  = weight[kh = i - 2 r][kw = kappa - 2 o + p - 4], or 0      p = K / 2
//
// so that each window that is loaded serves the (K + 1) / 2 planes of outputs that its plane reaches, and both rows.
// No element is told even from odd anywhere. A block walks along D over pairs of input planes:
//
//     planes 2 s - p and 2 s + 1 - p of the tile in shared memory      sums of a warp, (K + 1) / 2 planes x 2
//     fragments: (strided_planes.cuh), several ahead                                plane 2 s + b - p adds taps kd = b
//     + 2 j to
//                                                                        output plane s - j: acc[j]
//                                                                        acc[(K - 1) / 2] is complete: stored
//                                                                        then all move one up
//
// The order of every sum is that of the taps: the same bits always.
//
// A value that is not finite makes the whole windows that it lies in not finite (0 x inf is NaN), of two rows.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/launch.h"
#include "../common/mma.cuh"
#include "../common/moments.cuh"
#include "../common/opaque.cuh"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "strided_convolution.h"
#include "strided_planes.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

struct StridedParameters {
    StridedSource source;
    Parameter weight, bias;
    int out_d, out_h, out_w;
    std::int64_t channels;
    const void* add;
    void* output;
    bool pairs;  // two outputs are stored at once
    Moments<double>* moments;
    StridedTile tile;
};

template <typename T, int K, StridedFill Fill>
struct StridedGather {
    using Planes = StridedPlanes<T, Fill != StridedFill::direct, Fill == StridedFill::mapped, 4>;
    static constexpr int kMostThreads = StridedTile::kMostWarps * kWarpSize;
    static constexpr int kFragments = StridedTile::kFragments;
    static constexpr int kWindows = StridedTile::kWindows;
    static constexpr int kSums = (K + 1) / 2;  // output planes in progress
    static constexpr int kRows = K + 2;        // of the input, for two of the output
    static constexpr int kBlocksPerProcessor = K == 3 && Fill == StridedFill::direct ? 4 : 3;
    // Whether a row of taps is two registers, or one and a mask.
    static constexpr bool kWholeBand = K == 3 || (K == 5 && Fill == StridedFill::direct);
    // Rows of taps among zeros, so that the band is read without looking at bounds: kw is -1 to 7, kh -2 to K + 1.
    static constexpr int kTapsRow = 12;
    static constexpr int kTapsBegin = 2;
    static constexpr int kTapsRows = K + 4;

    struct Shared {
        SharedLayout layout;
        SharedArray<unsigned char> planes;
        SharedArray<int> kept;  // see StridedPlanes
        SharedArray<T> taps;
        SharedArray<Moments<double>> of_warp;

        constexpr explicit Shared(const StridedLayout& plane)
            : planes(layout.array<unsigned char>(
                  StridedTile::planes(Fill != StridedFill::direct, Fill == StridedFill::mapped) * plane.plane_bytes(),
                  128)),
              kept(layout.array<int>(Planes::kKept * kMostThreads)),
              taps(layout.array<T>(K * kTapsRows * kTapsRow)),
              of_warp(layout.array<Moments<double>>(StridedTile::kMostWarps)) {}
    };

    __device__ static void load_taps(const Parameter& weight, std::int64_t channel, T* taps) {
        for (int i = static_cast<int>(threadIdx.x); i < K * kTapsRows * kTapsRow; i += static_cast<int>(blockDim.x)) {
            const int kd = i / (kTapsRows * kTapsRow);
            const int kh = i / kTapsRow % kTapsRows - 2;
            const int kw = i % kTapsRow - kTapsBegin;
            const bool some = kh >= 0 && kh < K && kw >= 0 && kw < K;
            taps[i] =
                from_float<T>(some ? load_parameter(weight, channel * (K * K * K) + (kd * K + kh) * K + kw) : 0.0f);
        }
    }

    // Lane (g, t) holds kappa = 2 t, 2 t + 1 and 8 further on of column g = 4 r + o. A band of 7 taps is never in both,
    // and the first and last two rows of the input are read by one of the two rows of outputs each: `lower` and
    // `second` say, for the lane, where a register belongs. Input row i is in register i % K; or all are laid out, and
    // nothing is to say.
    struct Band {
        static constexpr int kHeld = kWholeBand ? kRows : K;
        unsigned taps[K][kHeld][kWholeBand ? 2 : 1];
        unsigned lower, second;

        __device__ explicit Band(const T* staged) {
            const int g = static_cast<int>(threadIdx.x % kWarpSize) / 4;
            const int t = static_cast<int>(threadIdx.x % 4);
            const int first = 2 * t - 2 * (g % 4) + K / 2 - 4;
            lower = first >= -1 ? ~0u : 0u;
            second = g >= 4 ? ~0u : 0u;
            const T* const pair = staged + (2 - 2 * (g / 4)) * kTapsRow + kTapsBegin + first + (first >= -1 ? 0 : 8);
#pragma unroll
            for (int i = 0; i < K * kHeld; ++i) {
                const int kd = i / kHeld;
                const int row = i % kHeld;
                const bool later = !kWholeBand && row < 2 && g >= 4;
                const T* const from = pair + (kd * kTapsRows + row + (later ? K : 0)) * kTapsRow;
                const unsigned both = pack(from[0], from[1]);
                taps[kd][row][0] = kWholeBand ? both & lower : both;
                if constexpr (kWholeBand) taps[kd][row][kWholeBand ? 1 : 0] = both & ~lower;
            }
        }

        // Inside of a loop: or the compiler keeps what take() makes of them, twice the registers.
        __device__ void forget() {
            if constexpr (!kWholeBand) {
                make_opaque(lower);
                make_opaque(second);
            }
        }

        __device__ void take(int kd, int row, unsigned (&b)[2]) const {
            if constexpr (kWholeBand) {
                b[0] = taps[kd][row][0];
                b[1] = taps[kd][row][kWholeBand ? 1 : 0];
            } else {
                const unsigned of_row = row < 2 ? ~second : row < K ? ~0u : second;
                b[0] = taps[kd][row % K][0] & lower & of_row;
                b[1] = taps[kd][row % K][0] & ~lower & of_row;
            }
        }
    };

    // A plane's share of all output planes that it reaches; `Sub` is which one of its pair it is.
    template <int Sub>
    __device__ static void multiply(float (&acc)[kSums][kFragments][4], const Band& band, const unsigned char* plane,
                                    const int (&window)[kFragments], int row_bytes) {
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
            unsigned a[kFragments][4];
#pragma unroll
            for (int f = 0; f < kFragments; ++f) ldmatrix(a[f], plane + window[f] + row * row_bytes);
#pragma unroll
            for (int j = 0; j < kSums - Sub; ++j) {
                unsigned b[2];
                band.take(Sub + 2 * j, row, b);
#pragma unroll
                for (int f = 0; f < kFragments; ++f) mma_m16n8k16<T>(acc[j][f], a[f], b);
            }
        }
    }

    // A finished plane to the output. Pairs of sums belong at `place`; `values` are what was stored, as float.
    template <bool Pairs>
    __device__ static void store(const float (&acc)[kFragments][4], const T* add,
                                 const unsigned (&added)[2 * kFragments], T* output, const int (&place)[2 * kFragments],
                                 unsigned inside, float (&values)[4 * kFragments]) {
#pragma unroll
        for (int i = 0; i < 4 * kFragments; i += 2) {
            const bool first = inside >> i & 1;
            const bool second = inside >> i & 2;
            float more[2] = {0.0f, 0.0f};
            if constexpr (Pairs) {
                unpack<T>(added[i / 2], more[0], more[1]);
            } else if (add != nullptr) {
                if (first) more[0] = to_float(add[place[i / 2]]);
                if (second) more[1] = to_float(add[place[i / 2] + 1]);
            }
            const unsigned pair = round_pair<T>(acc[i / 4][i % 4] + more[0], acc[i / 4][i % 4 + 1] + more[1]);
            unpack<T>(pair, values[i], values[i + 1]);
            if constexpr (Pairs) {
                if (first) *reinterpret_cast<unsigned*>(output + place[i / 2]) = pair;
            } else {
                T elements[2];
                std::memcpy(elements, &pair, sizeof(pair));
                if (first) output[place[i / 2]] = elements[0];
                if (second) output[place[i / 2] + 1] = elements[1];
            }
        }
    }
};

template <typename T, int K, StridedFill Fill>
__global__ void __launch_bounds__(StridedGather<T, K, Fill>::kMostThreads,
                                  StridedGather<T, K, Fill>::kBlocksPerProcessor)
    strided_convolution(const __grid_constant__ StridedParameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    __trap();  // the planner does not come here
#else
    using Core = StridedGather<T, K, Fill>;
    constexpr int kFragments = Core::kFragments;
    constexpr int kSums = Core::kSums;

    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const StridedTile& tile = p.tile;
    const std::int64_t volume = blockIdx.x / tile.tiles();  // n * C + c
    const int number = static_cast<int>(blockIdx.x % tile.tiles());
    const int w0 = number % tile.tiles_w * 4 * tile.quads;
    const int h0 = number / tile.tiles_w % tile.tiles_h * 2 * tile.pairs;
    const int d0 = number / tile.tiles_w / tile.tiles_h * tile.depth;
    const int d1 = min(d0 + tile.depth, p.out_d);

    const StridedLayout layout = tile.layout(K);
    const typename Core::Shared shared(layout);
    typename Core::Planes planes(p.source, layout, shared_array(shared.planes), shared_array(shared.kept), volume,
                                 2 * h0 - K / 2, 2 * w0 - 4, 2 * d0 - K / 2, 2 * (d1 - 1) - K / 2 + K);
    T* const taps = shared_array(shared.taps);
    planes.clear(volume);
    Core::load_taps(p.weight, volume % p.channels, taps);
    __syncthreads();
    planes.start();
    typename Core::Band band(taps);

    // Where each fragment's windows lie in a plane: lane 8 j + r names row r + 8 (j % 2), columns from 8 (j / 2).
    const int windows = tile.pairs * tile.quads;
    const int row_bytes = layout.row_bytes();
    int window[kFragments];
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
        const int i = min((warp * kFragments + f) * Core::kWindows + lane % 16, windows - 1);
        window[f] = i / tile.quads * 4 * row_bytes + (i % tile.quads + lane / 16) * 16;
    }

    // What of a plane this lane stores, in pairs, and where: bit 4 f + i for element i of fragment f.
    int place[2 * kFragments];
    unsigned inside = 0;
#pragma unroll
    for (int i = 0; i < 2 * kFragments; ++i) {
        const int of_warp = i / 2 * Core::kWindows + lane / 4 + i % 2 * 8;
        const int at = warp * kFragments * Core::kWindows + of_warp;
        const int h = h0 + at / tile.quads * 2 + lane % 4 / 2;
        const int w = w0 + at % tile.quads * 4 + lane % 2 * 2;
        place[i] = h * p.out_w + w;
        if (at < windows && h < p.out_h) {
            if (w < p.out_w) inside |= 1u << 2 * i;
            if (w + 1 < p.out_w) inside |= 2u << 2 * i;
        }
    }
    const bool all_inside = __all_sync(kFullWarp, inside == (1u << 4 * kFragments) - 1);
    const std::int64_t plane_size = static_cast<std::int64_t>(p.out_h) * p.out_w;
    std::int64_t at = (volume * p.out_d + d0) * plane_size;
    ShiftedSums running;

    const float bias = p.bias.data == nullptr ? 0.0f : load_parameter(p.bias, volume % p.channels);
    float acc[kSums][kFragments][4];
#pragma unroll
    for (int i = 0; i < kSums * kFragments * 4; ++i) acc[i / (4 * kFragments)][i / 4 % kFragments][i % 4] = bias;
#pragma unroll 1
    for (int step = d0; step < d1 + kSums - 1; ++step) {
        const bool completes = step >= d0 + kSums - 1;
        const T* const add = p.add == nullptr ? nullptr : static_cast<const T*>(p.add) + at;
        unsigned added[2 * kFragments] = {};
        if (completes && p.pairs && p.add != nullptr) {  // on their way during the products
#pragma unroll
            for (int i = 0; i < 2 * kFragments; ++i) {
                if (inside >> 2 * i & 1) added[i] = *reinterpret_cast<const unsigned*>(add + place[i]);
            }
        }
        band.forget();
        const int z = 2 * step - K / 2;
        const unsigned char* plane = planes.next();
        if (planes.has(z)) Core::template multiply<0>(acc, band, plane, window, row_bytes);
        plane = planes.next();
        if (planes.has(z + 1)) Core::template multiply<1>(acc, band, plane, window, row_bytes);
        if (completes) {
            float values[4 * kFragments];
            T* const output = static_cast<T*>(p.output) + at;
            if (p.pairs) {
                Core::template store<true>(acc[kSums - 1], add, added, output, place, inside, values);
            } else {
                Core::template store<false>(acc[kSums - 1], add, added, output, place, inside, values);
            }
            if (p.moments != nullptr) {
                if (step == d0 + kSums - 1) running.pivot = values[0];
                if (all_inside) {
                    running.add<true>(values, inside);
                } else {
                    running.add<false>(values, inside);
                }
            }
            at += plane_size;
        }
#pragma unroll
        for (int i = kSums * kFragments * 4 - 1; i >= 0; --i) {
            const int j = i / (4 * kFragments);
            acc[j][i / 4 % kFragments][i % 4] = j > 0 ? acc[j > 0 ? j - 1 : 0][i / 4 % kFragments][i % 4] : bias;
        }
    }
    planes.finish();

    if (p.moments != nullptr) {
        store_moments(running.moments(static_cast<std::int64_t>(d1 - d0) * __popc(inside)),
                      shared_array(shared.of_warp), p.moments + blockIdx.x);
    }
#endif
}

template <typename T, int K, StridedFill Fill>
cudaError_t launch_strided_instance(const StridedParameters& p, unsigned blocks, cudaStream_t stream) {
    const typename StridedGather<T, K, Fill>::Shared shared(p.tile.layout(K));
    return launch<strided_convolution<T, K, Fill>>(
        {blocks, static_cast<unsigned>(p.tile.warps * kWarpSize), shared.layout.bytes(), stream}, p);
}

// The instances of a kernel size, each size in a file of its own.
template <int K>
cudaError_t launch_strided_of_size(ScalarType type, const StridedParameters& p, unsigned blocks, cudaStream_t stream) {
    const auto of_type = [&]<typename T>(const T*) {
        if (p.source.affine.given()) return launch_strided_instance<T, K, StridedFill::mapped>(p, blocks, stream);
        return p.tile.direct ? launch_strided_instance<T, K, StridedFill::direct>(p, blocks, stream)
                             : launch_strided_instance<T, K, StridedFill::staged>(p, blocks, stream);
    };
    return type == ScalarType::float16 ? of_type(static_cast<const __half*>(nullptr))
                                       : of_type(static_cast<const __nv_bfloat16*>(nullptr));
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
