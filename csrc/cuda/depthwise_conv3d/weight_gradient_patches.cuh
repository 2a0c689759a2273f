// The weight gradient of a depthwise convolution as matrix products: the core for fp16 and bf16, NCDHW, stride 1, sm_80
// and newer. docs/kernels/weight_gradient.md counts what it costs.
//
// With g the small tensor and x the large one (of a Conv3d the gradient and the input), R rows of x from row i0 on, and
// the 8 rows of g that they meet, from row i0 + ph - K + 1 on, are a patch of 16 columns:
//
//     C[m, n] += sum over kappa of A[m, kappa] B[kappa, n]
//     A[m, kappa] = x[i0 + r][w0 + kappa + kw - K / 2]        row m of A is a row r of x, shifted by a tap kw
//     B[kappa, n] = g[i0 + ph - K + 1 + n][w0 + kappa]        column n of B is a row of g
//
// so C[m, n] is a share of tap (kh = r - n + K - 1, kw) wherever the patch lies: one set of accumulators serves all the
// patches and planes that a warp meets. K = 7 fills 98 of the 128 elements of C with taps, 5 fills 75, 3 fills 36.
//
// The order of kappa is free as long as A and B agree: a lane's four elements of a row are neighbours, 4 t to 4 t + 3
// (t = lane % 4), so B is one load of 8 bytes. Rows m and m + 8 of A belong to the same lanes and are a shift by an
// even number and the next, odd one: three words, of which the odd row is cut, instead of a second copy of x one
// element off.
//
//         m = 0..7, even shift      |  x0 x1 |  x2 x3 |                 w0 + 4 t + shift: a multiple of 4 bytes
//         m + 8, one further             | x1 x2 | x3 x4 |
//
// A block walks along D. Plane z of g comes into the registers of the warps, and stays for KD steps:
//
//         held[z % KD]   8 rows of g a patch: 2 registers           x plane z - pd + kd with g plane z: tap kd,
//         acc[kd]        C of all taps (kd, ., .): 4 registers      so each A is loaded once and used KD times
//
// At the end the warps' C are added in shared memory, in a fixed order, to the block's part of the workspace.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../common/launch.h"
#include "../common/mma.cuh"
#include "../common/opaque.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "banded_weight_gradient.h"
#include "plane_fill.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

struct WeightGradientParameters {
    PlaneSource small, large;
    PlaneLayout small_planes, large_planes;
    int small_patch_bytes, large_patch_bytes;  // from a patch to the next of a warp, in a plane
    int pad_d, pad_h;
    std::int64_t channels;
    WeightGradientTile tile;
    float* partial;  // [parts, C * taps]
};

// Which row of the patch, and which tap along W, a row of A is. A kw outside of the kernel is no tap: what C has there
// is thrown away. kw - K / 2 is even for the rows that are loaded as they lie: 0 to 7, and those that stand alone.
struct OperandRow {
    int row, kw;
};

// Patches: those of a warp, where the kernel is made for that many; 0 where the tile says how many they are.
template <typename T, int KD, int K, int Patches = 0>
struct WeightGradientPatches {
    using Ring = PlaneRing<T, Fills::all, 2>;
    static constexpr int kRows = WeightGradientTile::patch_rows(K);
    static constexpr int kPatches = Patches > 0 ? Patches : WeightGradientTile::most_patches(KD);
    static constexpr int kMostThreads = WeightGradientTile::kMostWarps * kWarpSize;
    // Two blocks hide each other's barriers and leave 128 registers a thread. For Blackwell ptxas keeps in those what
    // it finds uniform for sm_90, and would spill: there one block has to do.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
    static constexpr int kBlocksPerProcessor = 1;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
    static constexpr int kBlocksPerProcessor = KD == 7 ? 1 : 2;
#else
    static constexpr int kBlocksPerProcessor = 2;
#endif
    // Products that follow each other must not wait for each other's sum: at least four lie between them.
    static constexpr int kSets = KD == 1 ? 4 : KD == 3 ? 2 : 1;
    static constexpr int kSmallRows = WeightGradientTile::kSmallRows;

    // Three rows of a 5 wide kernel are 15 rows of A: six pairs of shifts (0, 1), (2, 3) and three that stand alone.
    static constexpr int kPairs = K == 5 ? 6 : 8;

    __device__ static constexpr OperandRow operand_row(int m) {
        const int i = m % 8;
        const int odd = m / 8;
        if constexpr (K == 3) return {i / 2, 2 * (i % 2) - 1 + odd};
        if constexpr (K == 7) return {i / 4, 2 * (i % 4) - 1 + odd};
        if (i < kPairs) return {i / 2, 2 * (i % 2) + odd};
        // (1, 4), (0, 4) and none, (2, 4): in this order no two of the words that are loaded at once share a bank.
        return odd == 0 ? OperandRow{1, i == kPairs ? 4 : 6} : OperandRow{i == kPairs ? 0 : 2, 4};
    }

    __device__ static bool has_patch(int q, const WeightGradientParameters& p) {
        return Patches > 0 || q < p.tile.patches;
    }

    // ---- load ----

    // Where a lane finds its elements of the warp's first patch in a plane, in bytes.
    struct Places {
        unsigned large;  // of row lane / 4 of A
        unsigned small;
    };

    struct Shared {
        SharedLayout layout;
        SharedArray<unsigned char> large, small;  // and at the end, the C of each warp
        SharedArray<std::uint64_t> large_full, small_full;
        SharedArray<int> large_table, small_table;  // see PlaneRing

        constexpr Shared(const PlaneLayout& large_plane, const PlaneLayout& small_plane, int threads)
            : large(layout.array<unsigned char>(std::max(large_plane.bytes(), 4 * sums_of(threads / kWarpSize)), 128)),
              small(layout.array<unsigned char>(small_plane.bytes(), 128)),
              large_full(layout.array<std::uint64_t>(large_plane.stages)),
              small_full(layout.array<std::uint64_t>(small_plane.stages)),
              large_table(layout.array<int>(Ring::table_length(large_plane, threads))),
              small_table(layout.array<int>(Ring::table_length(small_plane, threads))) {}
    };

    __device__ static Places places_of(const WeightGradientParameters& p) {
        const int lane = threadIdx.x % kWarpSize;
        const int warp = threadIdx.x / kWarpSize;
        const int row = warp / p.tile.warps_w * p.tile.patches * kRows;
        const int column = warp % p.tile.warps_w * WeightGradientTile::kPatchColumns + 4 * (lane % 4);
        const OperandRow at = operand_row(lane / 4);
        const int element = column + at.kw - K / 2 + WeightGradientTile::kLargeHalo;
        return {static_cast<unsigned>((row + at.row) * p.large_planes.row_pitch * 16 + element * 2),
                static_cast<unsigned>((row + lane / 4) * p.small_planes.row_pitch * 16 + column * 2)};
    }

    // How far row lane / 4 + 8 of A is from row lane / 4, in bytes, where some rows stand alone, and how it is made of
    // the words: see load_large.
    struct SecondRow {
        int further;
        unsigned cut;
    };

    __device__ static SecondRow second_row(const WeightGradientParameters& p, unsigned thread) {
        const int m = static_cast<int>(thread % kWarpSize / 4);
        if (m < kPairs) return {4, 0x5432};
        const OperandRow first = operand_row(m);
        const OperandRow second = operand_row(m + 8);
        return {(second.row - first.row) * p.large_planes.row_pitch * 16 + (second.kw - first.kw) * 2, 0x7654};
    }

    template <int Words>
    __device__ static void load_words(unsigned (&words)[Words], const unsigned char* from) {
        const auto elements = *reinterpret_cast<const Vector<T, 2 * Words>*>(from);
        std::memcpy(words, &elements, sizeof(words));
    }

    // The fragment of A: a pair of rows is three words, of which row m + 8 takes the upper half of one and the lower
    // half of the next; rows that stand alone are two words each.
    __device__ static void load_large(unsigned (&a)[4], const unsigned char* from, const SecondRow& second) {
        unsigned word[1];
        load_words(word, from);
        a[0] = word[0];
        load_words(word, from + 4);
        a[2] = word[0];
        if constexpr (kPairs == 8) {
            load_words(word, from + 8);
            a[1] = __byte_perm(a[0], a[2], 0x5432);
            a[3] = __byte_perm(a[2], word[0], 0x5432);
        } else {
            unsigned next[1];
            load_words(word, from + second.further);
            load_words(next, from + second.further + 4);
            a[1] = __byte_perm(a[0], word[0], second.cut);
            a[3] = __byte_perm(word[0], next[0], second.cut);
        }
    }

    // ---- multiply ----

    // A plane of g comes to place Newest of those held.
    template <int Newest>
    __device__ static void hold(unsigned (&held)[kPatches][KD][2], bool has_small, const unsigned char* small,
                                const Places& places, const WeightGradientParameters& p) {
        const unsigned char* from = small + places.small;
#pragma unroll
        for (int q = 0; q < kPatches; ++q) {
            held[q][Newest][0] = held[q][Newest][1] = 0;
            if (!has_small || !has_patch(q, p)) continue;
            load_words(held[q][Newest], from);
            from += p.small_patch_bytes;
        }
    }

    // A plane of x meets all planes of g that are held, the newest of them in place Newest.
    template <int Newest>
    __device__ static void multiply(float (&acc)[kSets][KD][4], const unsigned (&held)[kPatches][KD][2],
                                    const unsigned char* large, const Places& places, const SecondRow& second,
                                    const WeightGradientParameters& p) {
        // The next patch's words are on their way while this one is multiplied; the last one is loaded again.
        unsigned a[2][4];
        const unsigned char* from = large + places.large;
        load_large(a[0], from, second);
#pragma unroll
        for (int q = 0; q < kPatches; ++q) {
            if (!has_patch(q, p)) continue;
            if (q + 1 < kPatches) {
                if (has_patch(q + 1, p)) from += p.large_patch_bytes;
                load_large(a[(q + 1) % 2], from, second);
            }
#pragma unroll
            for (int kd = KD - 1; kd >= 0; --kd) {  // the newest plane last: it has just been asked for
                mma_m16n8k16<T>(acc[q % kSets][kd], a[q % 2], held[q][(Newest - kd + KD) % KD]);
            }
        }
    }

    // ---- store ----

    // Floats that the sum over a block's warps takes.
    __host__ __device__ static constexpr int sums_of(int warps) { return warps * KD * kProduct; }
    static constexpr int kProduct = 16 * 8;  // elements of C

    // The block's sums of all taps from the C of its warps: over the warps, then over the rows of A, in ascending
    // order.
    __device__ static void store(float (&acc)[kSets][KD][4], float* sums, float* partial) {
        const int lane = threadIdx.x % kWarpSize;
        const int warp = threadIdx.x / kWarpSize;
        const int warps = static_cast<int>(blockDim.x) / kWarpSize;
        __syncthreads();  // what was there has been read
#pragma unroll
        for (int kd = 0; kd < KD; ++kd) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int set = 1; set < kSets; ++set) acc[0][kd][i] += acc[set][kd][i];
                sums[(warp * KD + kd) * kProduct + (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = acc[0][kd][i];
            }
        }
        __syncthreads();
        for (int element = threadIdx.x; element < KD * kProduct; element += blockDim.x) {
            float sum = sums[element];
            for (int other = 1; other < warps; ++other) sum += sums[other * KD * kProduct + element];
            sums[element] = sum;
        }
        __syncthreads();
        for (int tap = threadIdx.x; tap < KD * K * K; tap += blockDim.x) {
            const float* const c = sums + tap / (K * K) * kProduct;
            float sum = 0.0f;
#pragma unroll
            for (int m = 0; m < 16; ++m) {
                const OperandRow at = operand_row(m);
                if (at.kw == tap % K) sum += c[m * 8 + at.row - tap / K % K + K - 1];
            }
            partial[tap] = sum;
        }
    }
};

// Where a block is in the volumes.
struct WeightGradientPlace {
    std::int64_t volume;  // n * C + c
    int number;           // of the tile in its volume; neighbours along W and H, which share a halo, run together
    int d0, d1, h0, w0;   // of the large tensor

    __device__ WeightGradientPlace(const WeightGradientParameters& p, int kernel_h) {
        const WeightGradientTile& tile = p.tile;
        volume = blockIdx.x / tile.tiles();
        number = blockIdx.x % tile.tiles();
        w0 = number % tile.tiles_w * tile.columns();
        h0 = number / tile.tiles_w % tile.tiles_h * tile.rows(kernel_h);
        d0 = number / tile.tiles_w / tile.tiles_h * tile.depth;
        d1 = min(d0 + tile.depth, p.large.d);
    }

    __device__ float* partial(const WeightGradientParameters& p, int taps) const {
        const std::int64_t part = volume / p.channels * p.tile.tiles() + number;
        return p.partial + (part * p.channels + volume % p.channels) * taps;
    }
};

}  // namespace mednext_ops::cuda::depthwise_conv3d
