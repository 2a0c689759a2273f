// A depthwise convolution as banded matrix products: the core for fp16 and bf16, NCDHW, stride 1, sm_80 and newer.
//
// One row of the output, eight voxels an octet, is a product of overlapping windows of an input row with a band:
//
//     C[m, n] = sum over kappa of A[m, kappa] B[kappa, n]        output voxel w = 8 m + n of a row
//     A[m, kappa] = x[8 m + kappa - 4]                           16 wide windows, 8 apart: two neighbouring octets of
//                                                                a row that lies 4 elements shifted in shared memory
//     B[kappa, n] = weight[kappa - n + pw - 4], or 0             any kernel up to 7 wide, at the same price
//
// so mma.m16n8k16 makes 128 voxels' share of one (kd, kh) row of taps. A block walks along D over input planes:
//
//     plane z of the tile in shared memory, `stages` deep:       accumulators of a warp, K = KD planes x 4 fragments:
//
//          4   <- 8 octets outputs ->  4                           plane z adds taps kd to output plane z + pd - kd
//        +---+------------------------+---+                        acc[0]     z + pd          begins
//        |   halo rows, KH / 2            |                        acc[1]     z + pd - 1
//        |   rows of the tile             |                        ...
//        |   halo rows                    |                        acc[K-1]   z + pd - K + 1  is complete: stored
//        +---+------------------------+---+                        then all move one up
//
// Every plane is loaded once a block, every fragment of a row once a warp (full_rows) or once a (fragment, kh), and
// each feeds KD products. The band stays in registers. The order of every sum is that of the taps: the same bits
// always.
//
// A value that is not finite makes the whole window of its octets not finite (0 x inf is NaN): up to 11 voxels along W.
#pragma once

#include <cstdint>

#include "../common/copy.cuh"
#include "../common/launch.h"
#include "../common/mma.cuh"
#include "../common/moments.cuh"
#include "../common/opaque.cuh"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "banded_convolution.h"
#include "plane_fill.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

struct BandedParameters {
    PlaneSource source;
    Parameter weight, bias;
    bool mirrored;  // the weight's taps in reverse: a scatter
    int kernel_w;
    int pad_d, pad_h;
    int out_d, out_h, out_w;
    std::int64_t channels;
    const void* add;
    void* output;
    bool pairs;  // two outputs are stored at once
    Moments<double>* moments;
    BandedTile tile;
};

// The moments of what a thread has stored, relative to the first value of it.
struct alignas(16) RunningMoments {
    Moments<float> moments;
    float pivot;
};

template <typename T, int KD, int KH, bool FullRows>
struct Banded {
    static constexpr int kFragments = BandedTile::kFragments;
    static constexpr int kOctets = BandedTile::kOctetsPerFragment;
    static constexpr int kMaxThreads = 256;
    // The most registers that this leaves a thread is 255, 128 where the accumulators are few.
    static constexpr int kBlocksPerProcessor = FullRows && KD * KH <= 9 ? 2 : 1;
    // A row of taps among zeros, so that the band is read without looking at bounds: kappa - n + pw - 4 is -3 to 9.
    static constexpr int kTapsRow = 16;
    static constexpr int kTapsBegin = 4;

    struct Shared {
        SharedLayout layout;
        SharedArray<unsigned char> planes;
        SharedArray<T> taps;
        SharedArray<int> places;  // of each octet of the tile: where in the output plane, and how many are inside
        SharedArray<RunningMoments> of_thread;  // between planes: registers are what a 7x7x7 kernel has least of
        SharedArray<Moments<double>> of_warp;
        SharedArray<std::uint64_t> full;

        constexpr Shared(const PlaneLayout& plane, int octets)
            : planes(layout.array<unsigned char>(plane.bytes(), 128)),
              taps(layout.array<T>(KD * KH * kTapsRow)),
              places(layout.array<int>(2 * octets)),
              of_thread(layout.array<RunningMoments>(kMaxThreads)),
              of_warp(layout.array<Moments<double>>(kMaxThreads / kWarpSize)),
              full(layout.array<std::uint64_t>(plane.stages)) {}
    };

    __device__ static void load_taps(const BandedParameters& p, std::int64_t channel, T* taps) {
        const int count = KD * KH * p.kernel_w;
        for (int i = threadIdx.x; i < KD * KH * kTapsRow; i += blockDim.x) {
            const int kw = i % kTapsRow - kTapsBegin;
            float value = 0.0f;
            if (kw >= 0 && kw < p.kernel_w) {
                const int tap = i / kTapsRow * p.kernel_w + kw;
                value = load_parameter(p.weight, channel * count + (p.mirrored ? count - 1 - tap : tap));
            }
            taps[i] = from_float<T>(value);
        }
    }

    // Lane (g, t) holds B[2t], B[2t + 1] and B[2t + 8], B[2t + 9] of column n = g. A band of up to 7 taps is never in
    // both, so one register a row of taps is enough; `lower` says, for the lane, in which of the two it belongs.
    __device__ static void load_band(const T* taps, int kernel_w, unsigned (&band)[KD][KH], unsigned& lower) {
        const int first =
            2 * static_cast<int>(threadIdx.x % 4) - static_cast<int>(threadIdx.x % kWarpSize / 4) + kernel_w / 2 - 4;
        lower = first >= -1 ? ~0u : 0u;
        const T* pair = taps + kTapsBegin + first + (first >= -1 ? 0 : 8);
#pragma unroll
        for (int row = 0; row < KD * KH; ++row) {
            band[row / KH][row % KH] = pack(pair[row * kTapsRow], pair[row * kTapsRow + 1]);
        }
    }

    // A plane's share of all output planes that it reaches.
    __device__ static void multiply(float (&acc)[KD][kFragments][4], const unsigned (&band)[KD][KH], unsigned lower,
                                    const unsigned char* plane, const int (&window)[FullRows ? 1 : kFragments],
                                    int row_pitch, int fragments) {
        const int row_bytes = (FullRows ? BandedTile::kFullRowPitch : row_pitch) * 16;
        make_opaque(lower);  // both halves of every band would take twice the registers
        unsigned a[kFragments][4];
        if constexpr (FullRows) {  // row f + kh of the plane serves fragment f, and fragment f - 1 at the next kh
#pragma unroll
            for (int f = 0; f < kFragments - 1; ++f) ldmatrix(a[f], plane + window[0] + f * row_bytes);
        }
#pragma unroll
        for (int kh = 0; kh < KH; ++kh) {
            if constexpr (FullRows) {
                constexpr int kNewest = kFragments - 1;
                ldmatrix(a[(kh + kNewest) % kFragments], plane + window[0] + (kh + kNewest) * row_bytes);
            } else {
#pragma unroll
                for (int f = 0; f < kFragments; ++f) {
                    if (f < fragments) ldmatrix(a[f], plane + window[f] + kh * row_bytes);
                }
            }
#pragma unroll
            for (int kd = 0; kd < KD; ++kd) {
                const unsigned b[2] = {band[kd][kh] & lower, band[kd][kh] & ~lower};
#pragma unroll
                for (int f = 0; f < kFragments; ++f) {
                    if (FullRows || f < fragments) {
                        mma_m16n8k16<T>(acc[kd][f], a[FullRows ? (kh + f) % kFragments : f], b);
                    }
                }
            }
        }
    }

    // A finished plane to the output; `values` are what was stored, as float. `places` begins at the lane's first
    // octet.
    template <bool Pairs, bool Add>
    __device__ static void store(const BandedParameters& p, const float (&acc)[kFragments][4], float bias,
                                 std::int64_t at, const int* places, unsigned inside, float (&values)[4 * kFragments]) {
        const T* const add = static_cast<const T*>(p.add) + at;
        T* const output = static_cast<T*>(p.output) + at;
#pragma unroll
        for (int i = 0; i < 4 * kFragments; i += 2) {
            const int to = inside >> i & 1 ? places[2 * (i / 4 * kOctets + i % 4 / 2 * 8)] : 0;
            const bool both = Pairs ? inside >> i & 1 : inside >> i & 2;
            Vector<T, 2> pair{};
            if constexpr (Add && Pairs) {
                if (both) pair = *reinterpret_cast<const Vector<T, 2>*>(add + to);
            } else if constexpr (Add) {
                if (p.add != nullptr && (inside >> i & 1)) pair.element[0] = add[to];
                if (p.add != nullptr && both) pair.element[1] = add[to + 1];
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float sum = acc[i / 4][i % 4 + j] + bias;
                pair.element[j] = from_float<T>(Add ? sum + to_float(pair.element[j]) : sum);
                values[i + j] = to_float(pair.element[j]);
            }
            if constexpr (Pairs) {
                if (both) *reinterpret_cast<Vector<T, 2>*>(output + to) = pair;
            } else {
                if (inside >> i & 1) output[to] = pair.element[0];
                if (both) output[to + 1] = pair.element[1];
            }
        }
    }
};

template <typename T, int KD, int KH, bool FullRows>
__global__ void __launch_bounds__(256, Banded<T, KD, KH, FullRows>::kBlocksPerProcessor)
    banded_convolution(const __grid_constant__ BandedParameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    __trap();  // the planner does not come here
#else
    using Core = Banded<T, KD, KH, FullRows>;
    constexpr int kFragments = Core::kFragments;
    constexpr int kOctets = Core::kOctets;

    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const BandedTile& tile = p.tile;
    const std::int64_t volume = blockIdx.x / tile.tiles();  // n * C + c
    const int number = blockIdx.x % tile.tiles();
    const int w0 = number % tile.tiles_w * 8 * tile.octets;
    const int h0 = number / tile.tiles_w % tile.tiles_h * tile.rows;
    const int d0 = number / tile.tiles_w / tile.tiles_h * tile.depth;
    const int d1 = min(d0 + tile.depth, p.out_d);

    const PlaneLayout layout = p.tile.planes(KH, p.source.affine.given());
    const int octets = tile.rows * tile.octets;
    const typename Core::Shared shared(layout, octets);
    unsigned char* const planes = shared_array(shared.planes);
    T* const taps = shared_array(shared.taps);
    int* const places = shared_array(shared.places);

    const int z_begin = d0 - p.pad_d;
    const int z_end = d1 - p.pad_d + KD - 1;
    PlaneRing<T> ring(p.source, layout, planes, shared_array(shared.full), volume, h0 - p.pad_h, w0 - 4, z_begin,
                      z_begin, z_end);
    ring.start();

    Core::load_taps(p, volume % p.channels, taps);
    for (int i = threadIdx.x; i < octets; i += blockDim.x) {
        const int h = h0 + i / tile.octets;
        const int w = w0 + 8 * (i % tile.octets);
        places[2 * i] = i / tile.octets * p.out_w + 8 * (i % tile.octets);
        places[2 * i + 1] = h < p.out_h ? min(p.out_w - w, 8) : 0;
    }
    __syncthreads();
    unsigned band[KD][KH];
    unsigned lower;
    Core::load_band(taps, p.kernel_w, band, lower);

    // Where each fragment's windows lie in a plane: lane 8 j + r names row r + 8 (j % 2), columns from 8 (j / 2).
    const int first = warp * kFragments * kOctets;
    const int fragments = min((octets - first + kOctets - 1) / kOctets, kFragments);
    int window[FullRows ? 1 : kFragments];
#pragma unroll
    for (int f = 0; f < (FullRows ? 1 : kFragments); ++f) {
        const int octet = min(first + f * kOctets + lane % 16, octets - 1);
        window[f] = (octet / tile.octets * tile.row_pitch + octet % tile.octets + lane / 16) * 16;
    }

    // What of a plane this lane stores: bit 4 f + i for element i of fragment f.
    const int g = lane / 4;
    const int t = lane % 4;
    unsigned inside = 0;
#pragma unroll
    for (int i = 0; i < 4 * kFragments; ++i) {
        const int octet = first + i / 4 * kOctets + g + i % 4 / 2 * 8;
        if (octet < octets && 2 * t + i % 2 < places[2 * octet + 1]) inside |= 1u << i;
    }
    RunningMoments& running = shared_array(shared.of_thread)[threadIdx.x];
    const std::int64_t plane_size = static_cast<std::int64_t>(p.out_h) * p.out_w;
    std::int64_t at = (volume * p.out_d + d0) * plane_size + static_cast<std::int64_t>(h0) * p.out_w + w0 + 2 * t;

    float acc[KD][kFragments][4] = {};
    for (int z = z_begin; z < z_end; ++z) {
        const unsigned char* plane = ring.next();
        if (plane != nullptr) {
            Core::multiply(acc, band, lower, plane, window, tile.row_pitch, fragments);
        }
        if (z >= z_begin + KD - 1) {
            make_opaque(inside);  // or its bits are kept one by one
            const float bias = p.bias.data == nullptr ? 0.0f : load_parameter(p.bias, volume % p.channels);
            float values[4 * kFragments];
            const auto store = [&]<bool Pairs, bool Add>() {
                Core::template store<Pairs, Add>(p, acc[KD - 1], bias, at, places + 2 * (first + g), inside, values);
            };
            if (p.pairs && p.add == nullptr) {
                store.template operator()<true, false>();
            } else if (p.pairs) {
                store.template operator()<true, true>();
            } else {
                store.template operator()<false, true>();
            }
            if (p.moments != nullptr) {
                RunningMoments mine{{0.0f, 0.0f, 0.0f}, values[0]};
                if (z > z_begin + KD - 1) mine = running;
                mine.moments = merge(mine.moments, masked_moments(values, inside, mine.pivot));
                running = mine;
            }
            at += plane_size;
        }
#pragma unroll
        for (int kd = KD - 1; kd >= 0; --kd) {
#pragma unroll
            for (int i = 0; i < 4 * kFragments; ++i) {
                acc[kd][i / 4][i % 4] = kd > 0 ? acc[kd > 0 ? kd - 1 : 0][i / 4][i % 4] : 0.0f;
            }
        }
    }
    ring.finish();

    if (p.moments != nullptr) {
        Moments<double>* const of_warp = shared_array(shared.of_warp);
        const Moments<float>& mine = running.moments;
        Moments<double> all = merge_warp(
            Moments<double>{mine.count, static_cast<double>(running.pivot) + mine.mean, mine.sum_squared_deviations});
        if (lane == 0) of_warp[warp] = all;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int other = 1; other < static_cast<int>(blockDim.x) / kWarpSize; ++other) {
                all = merge(all, of_warp[other]);
            }
            p.moments[blockIdx.x] = all;
        }
    }
#endif
}

template <typename T, int KD, int KH, bool FullRows>
cudaError_t launch_banded(const BandedParameters& p, const BandedTile& tile, unsigned blocks, cudaStream_t stream) {
    const typename Banded<T, KD, KH, FullRows>::Shared shared(p.tile.planes(KH, p.source.affine.given()),
                                                              tile.rows * tile.octets);
    const auto threads = static_cast<unsigned>(tile.warps * kWarpSize);
    return launch<banded_convolution<T, KD, KH, FullRows>>({blocks, threads, shared.layout.bytes(), stream}, p);
}

// One instance a kernel size, each in a file of its own.
template <int KD, int KH>
cudaError_t launch_banded_of_size(ScalarType type, const BandedParameters& p, const BandedTile& tile, unsigned blocks,
                                  cudaStream_t stream) {
    if (type == ScalarType::float16) {
        return tile.full_rows ? launch_banded<__half, KD, KH, true>(p, tile, blocks, stream)
                              : launch_banded<__half, KD, KH, false>(p, tile, blocks, stream);
    }
    return tile.full_rows ? launch_banded<__nv_bfloat16, KD, KH, true>(p, tile, blocks, stream)
                          : launch_banded<__nv_bfloat16, KD, KH, false>(p, tile, blocks, stream);
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
