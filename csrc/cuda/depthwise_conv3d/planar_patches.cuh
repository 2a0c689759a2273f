// What a warp of planar_convolution.cuh makes of one plane: products whose band covers rows as well as columns.
//
// The eight columns of a product are a small patch of outputs, its sixteen elements of kappa a patch of two input rows:
//
//     C[m, n] += sum over kappa of A[m, kappa] B[kappa, n]
//
//     KH = 3, 5    n = 4 r + o       output row h + r, column 4 m + o             2 rows of a quad
//                  kappa = 8 i + c   input row h - ph + 2 j + i, column 4 m - 2 + c
//     KH = 7       n = 2 r + o       output row h + r, column 2 m + o             4 rows of half a quad
//                  kappa             input row h - ph + 2 j + i, column 2 m - 3 + c
//
// for the pairs of input rows j that the outputs reach: 2, 3 and 5 products a plane of taps for 128 outputs, where a
// band along a row alone takes 3, 5 and 7. A pair of input rows is loaded once a warp, and serves KD planes of outputs
// and each patch that meets it: a warp has `Fragments` patches of rows one below the other (a strip).
//
// Windows of neighbouring m overlap and begin anywhere, so a lane (g, t) loads its own words. For KH = 3 and 5 a
// register of A is the word at column 4 m - 2 + 2 t: all words of a load lie in different banks, or are the same. For
// KH = 7 windows begin at odd columns, and the order of kappa is free as long as A and B agree: a lane has four
// neighbours, columns 4 q - 3 + 4 (t % 2) on for m = g and two further for m = g + 8, of row i = t / 2. Four words hold
// both:
//
//         |  .  x0 | x1 x2 | x3 x4 | x5  . |      m = g: (x0 x1) (x2 x3)      m = g + 8: (x2 x3) (x4 x5)
#pragma once

#include <cstdint>

#include "../common/mma.cuh"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/tensor_map.h"
#include "convolution_operands.h"
#include "plan.h"

namespace mednext_ops::cuda::depthwise_conv3d {

struct PlanarParameters : ConvolutionOperands {
    CUtensorMap box;         // of the input
    CUtensorMap box_output;  // of affine.output
    AffineGradient affine;
    int in_d, in_h, in_w;
    PlanarTile tile;
    const void* input;
};

template <typename T, int KD, int KH, int Fragments>
struct PlanarPatches {
    static constexpr int kFragments = Fragments;
    static constexpr int kUnitRows = PlanarTile::unit_rows(KH);
    static constexpr int kUnits = PlanarTile::units(KH);
    // Of a patch: pairs of output rows, and of input rows that they reach.
    static constexpr int kPairs = kUnitRows / 2;
    static constexpr int kSteps = (KH - 1 + kUnitRows) / 2;
    // Pairs of input rows that a warp reads a plane.
    static constexpr int kReadPairs = (Fragments - 1) * kPairs + kSteps;
    // Rows of taps among zeros, so that the band is read without looking at bounds.
    static constexpr int kTapsRow = 16;
    static constexpr int kTapsBegin = 5;
    static constexpr int kTapsHalo = kUnitRows - 1;
    static constexpr int kTapsRows = KH + 2 * kTapsHalo;
    static constexpr int kTaps = KD * kTapsRows * kTapsRow;

    // ---- weights ----

    // Into taps that are zero.
    __device__ static void load_taps(const PlanarParameters& p, std::int64_t channel, T* taps) {
        const int count = KD * KH * p.kernel_w;
        const auto threads = static_cast<int>(blockDim.x);
        constexpr int kAtOnce = 8;  // on their way together
#pragma unroll 1
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
                const int row = tap / p.kernel_w;
                const int at = row / KH * kTapsRows + row % KH + kTapsHalo;
                taps[at * kTapsRow + kTapsBegin + tap % p.kernel_w] = from_float<T>(values[i]);
            }
        }
    }

    // A lane's two registers of B of each product: column n = g.
    __device__ static void load_band(const T* taps, int kernel_w, unsigned (&band)[KD][kSteps][2]) {
        const int g = static_cast<int>(threadIdx.x % kWarpSize) / 4;
        const int t = static_cast<int>(threadIdx.x % 4);
        constexpr int kColumns = 8 / kUnitRows;
        const int row = kTapsHalo - g / kColumns + (KH == 7 ? t / 2 : 0);
        const int column = kTapsBegin + kernel_w / 2 - g % kColumns + (KH == 7 ? 4 * (t % 2) - 3 : 2 * t - 2);
        const T* const first = taps + row * kTapsRow + column;
#pragma unroll
        for (int i = 0; i < KD * kSteps * 2; ++i) {
            const int kd = i / (2 * kSteps);
            const int j = i / 2 % kSteps;
            const T* const pair =
                first + (kd * kTapsRows + 2 * j + (KH == 7 ? 0 : i % 2)) * kTapsRow + (KH == 7 ? i % 2 * 2 : 0);
            band[kd][j][i % 2] = pack(pair[0], pair[1]);
        }
    }

    // ---- products ----

    // Where a lane's words of A begin in a plane, in bytes, for the units of m = g and m = g + 8.
    struct Windows {
        static constexpr int kCount = KH == 7 ? 1 : 2;
        int at[kCount];

        __device__ explicit Windows(const PlanarTile& tile) {
            const int lane = static_cast<int>(threadIdx.x % kWarpSize);
            const int t = lane % 4;
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                const Unit unit(tile, i);
                const int column = 4 * unit.quad + PlanarTile::kHalo + (KH == 7 ? 4 * (t % 2) - 4 : 2 * t - 2);
                at[i] = (unit.row + (KH == 7 ? t / 2 : 0)) * tile.row_bytes(KH) + 2 * column;
            }
        }
    };

    // A lane's unit m = g or, where i is 1, g + 8: a quad of a strip, numbered along the strips.
    struct Unit {
        int row, quad;  // in the tile
        bool some;

        __device__ Unit(const PlanarTile& tile, int i) {
            const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
            const int units = tile.strips * tile.quads;
            const int number = warp * kUnits + static_cast<int>(threadIdx.x % kWarpSize) / 4 + 8 * i;
            some = number < units;
            const int there = min(number, units - 1);
            row = there / tile.quads * tile.strip_rows(KH);
            quad = there % tile.quads;
        }
    };

    __device__ static void load_pair(unsigned (&a)[4], const unsigned char* plane, const Windows& windows, int pair,
                                     int row_bytes) {
        if constexpr (KH == 7) {
            const unsigned char* const from = plane + windows.at[0] + 2 * pair * row_bytes;
            const auto low = *reinterpret_cast<const Vector<unsigned, 2>*>(from);
            const auto high = *reinterpret_cast<const Vector<unsigned, 2>*>(from + 8);
            a[0] = __byte_perm(low.element[0], low.element[1], 0x5432);
            a[1] = a[2] = __byte_perm(low.element[1], high.element[0], 0x5432);
            a[3] = __byte_perm(high.element[0], high.element[1], 0x5432);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                a[i] = *reinterpret_cast<const unsigned*>(plane + windows.at[i % 2] + (2 * pair + i / 2) * row_bytes);
            }
        }
    }

    // A plane's share of all output planes that it reaches: the one that begins, with `begin`, at place Newest.
    template <int Newest>
    __device__ static void multiply(float (&acc)[KD][kFragments][4], const unsigned (&band)[KD][kSteps][2], float begin,
                                    const unsigned char* plane, const Windows& windows, int row_bytes) {
        const float first[4] = {begin, begin, begin, begin};
#pragma unroll
        for (int pair = 0; pair < kReadPairs; ++pair) {
            unsigned a[4];
            load_pair(a, plane, windows, pair, row_bytes);
#pragma unroll
            for (int kd = KD - 1; kd >= 0; --kd) {
#pragma unroll
                for (int f = 0; f < kFragments; ++f) {
                    const int j = pair - f * kPairs;
                    if (j < 0 || j >= kSteps) continue;
                    float (&sums)[4] = acc[(Newest - kd + KD) % KD][f];
                    if (kd == 0 && j == 0) {
                        mma_m16n8k16<T>(sums, a, band[kd][j], first);
                    } else {
                        mma_m16n8k16<T>(sums, a, band[kd][j]);
                    }
                }
            }
        }
    }

    // ---- outputs ----

    // Where a lane's sums of an output plane belong, and which of them are in it.
    struct Places {
        unsigned char* to[Windows::kCount];  // in the output plane in turn
        int further;                         // bytes from a fragment to the next
        unsigned inside = 0;                 // bit 4 f + i: element i of fragment f

        __device__ Places(const PlanarParameters& p, std::int64_t plane, int h0, int w0)
            : further(kUnitRows * p.out_w * static_cast<int>(sizeof(T))) {
            const int t = static_cast<int>(threadIdx.x % 4);
#pragma unroll
            for (int i = 0; i < Windows::kCount; ++i) {
                const Unit unit(p.tile, i);
                const int row = h0 + unit.row + (KH == 7 ? t : t / 2);
                const int column = w0 + 4 * unit.quad + (KH == 7 ? 0 : t % 2 * 2);
                to[i] = reinterpret_cast<unsigned char*>(static_cast<T*>(p.output) +
                                                         ((plane * p.out_h + row) * p.out_w + column));
#pragma unroll
                for (int f = 0; f < kFragments; ++f) {
                    if (unit.some && row + f * kUnitRows < p.out_h && column < p.out_w) {
                        inside |= (KH == 7 ? 15u : 3u << 2 * i) << 4 * f;
                    }
                }
            }
        }

        __device__ unsigned char* at(int f, int i) const { return to[i] + f * further; }

        template <bool All>
        __device__ bool has(int f, int i) const {
            return All || (inside >> (4 * f + 2 * i) & 1);
        }

        __device__ void advance(std::int64_t bytes) {
#pragma unroll
            for (int i = 0; i < Windows::kCount; ++i) to[i] += bytes;
        }
    };

    // Pairs of elements of a lane: of what is added, or is to be stored.
    using Pairs = unsigned[kFragments][2];

    // `distance`: from the output to the tensor that is read.
    template <bool All>
    __device__ static void load_pairs(const Places& places, std::int64_t distance, Pairs& pairs) {
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
            if constexpr (KH == 7) {
                Vector<unsigned, 2> both{};
                if (places.template has<All>(f, 0)) {
                    both = *reinterpret_cast<const Vector<unsigned, 2>*>(places.at(f, 0) + distance);
                }
                pairs[f][0] = both.element[0];
                pairs[f][1] = both.element[1];
            } else {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    pairs[f][i] = 0;
                    if (places.template has<All>(f, i)) {
                        pairs[f][i] = *reinterpret_cast<const unsigned*>(places.at(f, i) + distance);
                    }
                }
            }
        }
    }

    // A complete plane to the output, with what is added; `values` are what was stored, as float.
    template <bool All, bool Add>
    __device__ static void store(const float (&sums)[kFragments][4], const Pairs& added, const Places& places,
                                 float (&values)[4 * kFragments]) {
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
            unsigned stored[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float more[2] = {0.0f, 0.0f};
                if constexpr (Add) unpack<T>(added[f][i], more[0], more[1]);
                const float low = Add ? sums[f][2 * i] + more[0] : sums[f][2 * i];
                const float high = Add ? sums[f][2 * i + 1] + more[1] : sums[f][2 * i + 1];
                stored[i] = round_pair<T>(low, high);
                unpack<T>(stored[i], values[4 * f + 2 * i], values[4 * f + 2 * i + 1]);
            }
            if constexpr (KH == 7) {
                if (places.template has<All>(f, 0)) {
                    *reinterpret_cast<Vector<unsigned, 2>*>(places.at(f, 0)) = {stored[0], stored[1]};
                }
            } else {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if (places.template has<All>(f, i)) *reinterpret_cast<unsigned*>(places.at(f, i)) = stored[i];
                }
            }
        }
    }
};

}  // namespace mednext_ops::cuda::depthwise_conv3d
