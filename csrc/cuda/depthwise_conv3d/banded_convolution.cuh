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
#include <cstring>

#include "../common/copy.cuh"
#include "../common/launch.h"
#include "../common/mma.cuh"
#include "../common/moments.cuh"
#include "../common/opaque.cuh"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "banded_convolution.h"
#include "convolution_operands.h"
#include "plane_fill.cuh"
#include "ring_of_places.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

struct BandedParameters : ConvolutionOperands {
    PlaneSource source;
    bool pairs;  // two outputs are stored at once
    BandedTile tile;
};

template <typename T, int KD, int KH, bool FullRows, int Fragments>
struct Banded {
    static constexpr int kFragments = Fragments;
    static constexpr int kOctets = BandedTile::kOctetsPerFragment;
    static constexpr int kMaxThreads = 256;
    // The most registers that this leaves a thread is 255, 128 where the accumulators are few. For the newest Blackwell
    // ptxas keeps in those what it finds uniform for sm_90, and would spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
    static constexpr int kBlocksPerProcessor = FullRows || KD * KH > 9 ? 1 : 2;
#else
    static constexpr int kBlocksPerProcessor = Fragments == 1 || KD * KH <= 9 ? 2 : 1;
#endif
    // Where 128 registers are all, and little room is left in them.
    static constexpr bool kTight = kBlocksPerProcessor == 2 && !FullRows && Fragments > 1;
    // Whether a row of taps is two registers, or one and a mask.
    static constexpr bool kWholeBand = KD * KH <= 25;
    // Whether the sums of output planes stay where they are, and the code of a step exists once a place, or move up by
    // one in each step: where they are many, the former takes more registers than there are.
    static constexpr bool kRotates = KD * KH * Fragments <= 100 && !kTight;
    // Whether what is added to the outputs is asked for before the products: its registers are held meanwhile.
    static constexpr bool kAsksEarly = !kTight && (FullRows || KD * KH <= 25);
    // A row of taps among zeros, so that the band is read without looking at bounds: kappa - n + pw - 4 is -3 to 9.
    static constexpr int kTapsRow = 16;
    static constexpr int kTapsBegin = 4;

    // Octets that the fragments of a block have room for: the last ones of a tile may have none.
    __host__ __device__ static constexpr int octets_of(int threads) {
        return threads / kWarpSize * kFragments * kOctets;
    }

    struct Shared {
        SharedLayout layout;
        SharedArray<unsigned char> planes;
        SharedArray<int> table;  // see PlaneRing
        SharedArray<T> taps;
        SharedArray<int> places;  // of each octet of the tile: where in the output plane, and how many are inside
        SharedArray<Moments<double>> of_warp;

        constexpr Shared(const PlaneLayout& plane, int threads)
            : planes(layout.array<unsigned char>(plane.bytes(), 128)),
              table(layout.array<int>(PlaneRing<T, Fills::copies>::table_length(plane, threads))),
              taps(layout.array<T>(KD * KH * kTapsRow)),
              places(layout.array<int>(2 * octets_of(threads))),
              of_warp(layout.array<Moments<double>>(kMaxThreads / kWarpSize)) {}
    };

    __device__ static void load_taps(const BandedParameters& p, std::int64_t channel, T* taps) {
        const int count = KD * KH * p.kernel_w;
        const auto threads = static_cast<int>(blockDim.x);
        for (int i = static_cast<int>(threadIdx.x); i < KD * KH * kTapsRow; i += threads) {
            const int kw = i % kTapsRow - kTapsBegin;
            if (kw < 0 || kw >= p.kernel_w) taps[i] = from_float<T>(0.0f);
        }
        constexpr int kAtOnce = 4;  // on their way together
        for (int first = static_cast<int>(threadIdx.x); first < count; first += kAtOnce * threads) {
            float values[kAtOnce];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int tap = min(first + i * threads, count - 1);
                values[i] = load_parameter(p.weight, channel * count + (p.mirrored ? count - 1 - tap : tap));
            }
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int tap = min(first + i * threads, count - 1);
                taps[tap / p.kernel_w * kTapsRow + kTapsBegin + tap % p.kernel_w] = from_float<T>(values[i]);
            }
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

    // A plane's share of all output planes that it reaches. Those lie in a ring: the sums of the one that begins, with
    // `begin`, at place Newest, and of the one that the plane completes at the place behind it.
    template <int Newest>
    __device__ static void multiply(float (&acc)[KD][kFragments][4], const unsigned (&band)[KD][KH], unsigned lower,
                                    float begin, const unsigned char* plane,
                                    const int (&window)[FullRows ? 1 : kFragments], int row_pitch) {
        const int row_bytes = (FullRows ? BandedTile::kFullRowPitch : row_pitch) * 16;
        const float first[4] = {begin, begin, begin, begin};
        unsigned a[kFragments][4];
        if constexpr (FullRows) {  // row f + kh of the plane serves fragment f, and fragment f - 1 at the next kh
#pragma unroll
            for (int f = 0; f < kFragments - 1; ++f) ldmatrix(a[f], plane + window[0] + f * row_bytes);
        }
#pragma unroll
        for (int kh = 0; kh < KH; ++kh) {
            if constexpr (FullRows) {
                constexpr int kLast = kFragments - 1;
                ldmatrix(a[(kh + kLast) % kFragments], plane + window[0] + (kh + kLast) * row_bytes);
            } else {
#pragma unroll
                for (int f = 0; f < kFragments; ++f) ldmatrix(a[f], plane + window[f] + kh * row_bytes);
            }
#pragma unroll
            for (int kd = KD - 1; kd >= 0; --kd) {
                const unsigned b[2] = {band[kd][kh] & lower, band[kd][kh] & ~lower};
#pragma unroll
                for (int f = 0; f < kFragments; ++f) {
                    float (&sums)[4] = acc[(Newest - kd + KD) % KD][f];
                    const unsigned (&row)[4] = a[FullRows ? (kh + f) % kFragments : f];
                    if (kRotates && kd == 0 && kh == 0) {
                        mma_m16n8k16<T>(sums, row, b, first);
                    } else {
                        mma_m16n8k16<T>(sums, row, b);
                    }
                }
            }
        }
    }

    // Where element i of a lane's sums belongs, from the lane's first one in the same plane on. `places` begins at the
    // lane's first octet.
    __device__ static int place(int i, const int* places, int out_w) {
        const int octet = i / 4 * kOctets + i % 4 / 2 * 8;
        if constexpr (FullRows) return i / 4 * out_w + 8 * (octet % kOctets);
        return places[2 * octet];
    }

    // The pairs of `add` that belong to the plane that the next product completes: asked for before it is.
    __device__ static void load_pairs(const T* add, const int* places, unsigned inside, int out_w,
                                      unsigned (&pairs)[2 * kFragments]) {
#pragma unroll
        for (int i = 0; i < 4 * kFragments; i += 2) {
            pairs[i / 2] = 0;
            if (inside >> i & 1) pairs[i / 2] = *reinterpret_cast<const unsigned*>(add + place(i, places, out_w));
        }
    }

    // A finished plane to the output; `values` are what was stored, as float.
    template <bool Pairs, bool Add>
    __device__ static void store(const float (&acc)[kFragments][4], const T* add,
                                 const unsigned (&added)[2 * kFragments], T* output, const int* places, unsigned inside,
                                 int out_w, float (&values)[4 * kFragments]) {
#pragma unroll
        for (int i = 0; i < 4 * kFragments; i += 2) {
            float low = acc[i / 4][i % 4];
            float high = acc[i / 4][i % 4 + 1];
            const bool first = inside >> i & 1;
            const bool second = inside >> i & 2;
            const int to = Pairs || first ? place(i, places, out_w) : 0;
            if constexpr (Add && Pairs) {
                float more[2];
                unpack<T>(added[i / 2], more[0], more[1]);
                low += more[0];
                high += more[1];
            } else if constexpr (Add) {
                if (add != nullptr && first) low += to_float(add[to]);
                if (add != nullptr && second) high += to_float(add[to + 1]);
            }
            const unsigned pair = round_pair<T>(low, high);
            unpack<T>(pair, values[i], values[i + 1]);
            if constexpr (Pairs) {
                if (first) *reinterpret_cast<unsigned*>(output + to) = pair;
            } else {
                T elements[2];
                std::memcpy(elements, &pair, sizeof(pair));
                if (first) output[to] = elements[0];
                if (second) output[to + 1] = elements[1];
            }
        }
    }
};

template <typename T, int KD, int KH, bool FullRows, int Fragments>
__global__ void __launch_bounds__(256, Banded<T, KD, KH, FullRows, Fragments>::kBlocksPerProcessor)
    banded_convolution(const __grid_constant__ BandedParameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    __trap();  // the planner does not come here
#else
    using Core = Banded<T, KD, KH, FullRows, Fragments>;
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
    const typename Core::Shared shared(layout, static_cast<int>(blockDim.x));
    unsigned char* const planes = shared_array(shared.planes);
    T* const taps = shared_array(shared.taps);
    int* const places = shared_array(shared.places);

    // From the first plane on that is inside of the volume, or completes one: those before add nothing.
    const int z_complete = d0 - p.pad_d + KD - 1;
    const int z_begin = max(d0 - p.pad_d, min(z_complete, 0));
    const int z_end = d1 - p.pad_d + KD - 1;
    PlaneRing<T, Fills::copies> ring(p.source, layout, planes, nullptr, shared_array(shared.table), volume,
                                     h0 - p.pad_h, w0 - 4, z_begin, z_begin, z_end);
    ring.start();

    Core::load_taps(p, volume % p.channels, taps);
    for (int i = threadIdx.x; i < Core::octets_of(static_cast<int>(blockDim.x)); i += blockDim.x) {
        const int h = h0 + i / tile.octets;
        const int w = w0 + 8 * (i % tile.octets);
        places[2 * i] = i / tile.octets * p.out_w + 8 * (i % tile.octets);
        places[2 * i + 1] = i < octets && h < p.out_h ? min(p.out_w - w, 8) : 0;
    }
    __syncthreads();
    unsigned band[KD][KH];
    unsigned lower;
    Core::load_band(taps, p.kernel_w, band, lower);

    // Where each fragment's windows lie in a plane: lane 8 j + r names row r + 8 (j % 2), columns from 8 (j / 2).
    const int first = warp * kFragments * kOctets;
    int window[FullRows ? 1 : kFragments];
#pragma unroll
    for (int f = 0; f < (FullRows ? 1 : kFragments); ++f) {
        const int octet = min(first + f * kOctets + lane % 16, octets - 1);
        window[f] = (octet / tile.octets * tile.row_pitch() + octet % tile.octets + lane / 16) * 16;
    }

    // What of a plane this lane stores: bit 4 f + i for element i of fragment f.
    const int g = lane / 4;
    const int t = lane % 4;
    unsigned inside = 0;
#pragma unroll
    for (int i = 0; i < 4 * kFragments; ++i) {
        const int octet = first + i / 4 * kOctets + g + i % 4 / 2 * 8;
        if (2 * t + i % 2 < places[2 * octet + 1]) inside |= 1u << i;
    }
    const std::int64_t plane_size = static_cast<std::int64_t>(p.out_h) * p.out_w;
    std::int64_t at = (volume * p.out_d + d0) * plane_size + static_cast<std::int64_t>(h0) * p.out_w + w0 + 2 * t;
    if constexpr (FullRows) at += static_cast<std::int64_t>(warp) * kFragments * p.out_w + 8 * g;
    const int* const my_places = places + 2 * (first + g);
    const bool all_inside = __all_sync(kFullWarp, inside == (1u << 4 * kFragments) - 1);
    ShiftedSums running;

    const float bias = p.bias.data == nullptr ? 0.0f : load_parameter(p.bias, volume % p.channels);
    float acc[KD][kFragments][4];
#pragma unroll
    for (int i = 0; i < KD * kFragments * 4; ++i) acc[i / (4 * kFragments)][i / 4 % kFragments][i % 4] = bias;
    int newest = 0;
    for (int z = z_begin; z < z_end; ++z) {
        const unsigned char* plane = ring.next();
        const bool completes = z >= z_complete;
        make_opaque(inside);  // or its bits are kept one by one
        const T* const add = static_cast<const T*>(p.add) + at;
        unsigned added[2 * kFragments];
        const bool adds_pairs = completes && p.pairs && p.add != nullptr;
        if (Core::kAsksEarly && adds_pairs) Core::load_pairs(add, my_places, inside, p.out_w, added);
        if constexpr (!Core::kWholeBand) make_opaque(lower);  // both halves of every band take twice the registers
        float complete[kFragments][4];
        if constexpr (Core::kRotates) {
            at_place<KD>(newest, [&]<int Newest>() {
                Core::template multiply<Newest>(acc, band, lower, bias, plane, window, tile.row_pitch());
#pragma unroll
                for (int i = 0; i < 4 * kFragments; ++i) complete[i / 4][i % 4] = acc[(Newest + 1) % KD][i / 4][i % 4];
            });
            newest = newest + 1 == KD ? 0 : newest + 1;
        } else {
            Core::template multiply<KD - 1>(acc, band, lower, bias, plane, window, tile.row_pitch());
        }
        if (!Core::kAsksEarly && adds_pairs) Core::load_pairs(add, my_places, inside, p.out_w, added);
        if (completes) {
            float values[4 * kFragments];
            const auto store = [&]<bool Pairs, bool Add>() {
                Core::template store<Pairs, Add>(Core::kRotates ? complete : acc[0], p.add == nullptr ? nullptr : add,
                                                 added, static_cast<T*>(p.output) + at, my_places, inside, p.out_w,
                                                 values);
            };
            if (p.pairs && p.add == nullptr) {
                store.template operator()<true, false>();
            } else if (p.pairs) {
                store.template operator()<true, true>();
            } else {
                store.template operator()<false, true>();
            }
            if (p.moments != nullptr) {
                if (z == z_complete) running.pivot = values[0];
                if (all_inside) {
                    running.add<true>(values, inside);
                } else {
                    running.add<false>(values, inside);
                }
            }
            at += plane_size;
        }
        if constexpr (!Core::kRotates) {
#pragma unroll
            for (int i = 0; i < 4 * KD * kFragments; ++i) {
                const int place = i / (4 * kFragments);
                acc[place][i / 4 % kFragments][i % 4] =
                    place + 1 < KD ? acc[place + 1][i / 4 % kFragments][i % 4] : bias;
            }
        }
    }
    ring.finish();

    if (p.moments != nullptr) {
        store_moments(running.moments((d1 - d0) * __popc(inside)), shared_array(shared.of_warp),
                      p.moments + blockIdx.x);
    }
#endif
}

template <typename T, int KD, int KH, bool FullRows, int Fragments>
cudaError_t launch_banded(const BandedParameters& p, const BandedTile& tile, unsigned blocks, cudaStream_t stream) {
    const int threads = tile.warps * kWarpSize;
    const typename Banded<T, KD, KH, FullRows, Fragments>::Shared shared(p.tile.planes(KH, p.source.affine.given()),
                                                                         threads);
    return launch<banded_convolution<T, KD, KH, FullRows, Fragments>>(
        {blocks, static_cast<unsigned>(threads), shared.layout.bytes(), stream}, p);
}

// The instances of a kernel size, each size in a file of its own.
template <int KD, int KH>
cudaError_t launch_banded_of_size(ScalarType type, const BandedParameters& p, const BandedTile& tile, unsigned blocks,
                                  cudaStream_t stream) {
    const auto of_type = [&]<typename T>(const T*) {
        constexpr int kMost = BandedTile::kMostFragments;
        if (tile.full_rows) return launch_banded<T, KD, KH, true, kMost>(p, tile, blocks, stream);
        return tile.fragments == 1 ? launch_banded<T, KD, KH, false, 1>(p, tile, blocks, stream)
                                   : launch_banded<T, KD, KH, false, kMost>(p, tile, blocks, stream);
    };
    return type == ScalarType::float16 ? of_type(static_cast<const __half*>(nullptr))
                                       : of_type(static_cast<const __nv_bfloat16*>(nullptr));
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
