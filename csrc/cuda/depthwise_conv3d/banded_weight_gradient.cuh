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

template <typename T, int KD, int K, bool Boxes>
struct BandedWeightGradient {
    using Ring = PlaneRing<T, Boxes ? Fills::boxes : Fills::all, 2>;
    static constexpr int kRows = WeightGradientTile::patch_rows(K);
    static constexpr int kPatches = WeightGradientTile::most_patches(KD);
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

    // ---- load ----

    // Where a lane finds its elements of the warp's first patch in a plane, in bytes.
    struct Places {
        unsigned large;  // of row lane / 4 of A
        unsigned small;
    };

    struct Shared {
        SharedLayout layout;
        SharedArray<unsigned char> large, small;
        SharedArray<float> sums;  // C of one kd, of each warp
        SharedArray<std::uint64_t> large_full, small_full;
        SharedArray<int> large_table, small_table;  // see PlaneRing

        constexpr Shared(const PlaneLayout& large_plane, const PlaneLayout& small_plane, int threads)
            : large(layout.array<unsigned char>(large_plane.bytes(), 128)),
              small(layout.array<unsigned char>(small_plane.bytes(), 128)),
              sums(layout.array<float>(WeightGradientTile::kMostWarps * 16 * 8)),
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
        unsigned further;
        unsigned cut;
    };

    __device__ static SecondRow second_row(const WeightGradientParameters& p) {
        unsigned thread = threadIdx.x;
        make_opaque(thread);  // computed for each plane: registers are what this kernel has least of
        const int m = static_cast<int>(thread % kWarpSize / 4);
        if (m < kPairs) return {4, 0x5432};
        const OperandRow first = operand_row(m);
        const OperandRow second = operand_row(m + 8);
        return {static_cast<unsigned>((second.row - first.row) * p.large_planes.row_pitch * 16 +
                                      (second.kw - first.kw) * 2),
                0x7654};
    }

    template <int Words>
    __device__ static void load_words(unsigned (&words)[Words], const unsigned char* from) {
        const auto elements = *reinterpret_cast<const Vector<T, 2 * Words>*>(from);
        std::memcpy(words, &elements, sizeof(words));
    }

    // The fragment of A: a pair of rows is three words, of which row m + 8 takes the upper half of one and the lower
    // half of the next; rows that stand alone are two words each.
    __device__ static void load_large(unsigned (&a)[4], const unsigned char* plane, unsigned at,
                                      const SecondRow& second) {
        unsigned word[1];
        load_words(word, plane + at);
        a[0] = word[0];
        load_words(word, plane + at + 4);
        a[2] = word[0];
        if constexpr (kPairs == 8) {
            load_words(word, plane + at + 8);
            a[1] = __byte_perm(a[0], a[2], 0x5432);
            a[3] = __byte_perm(a[2], word[0], 0x5432);
        } else {
            unsigned next[1];
            load_words(word, plane + (at + second.further));
            load_words(next, plane + (at + second.further) + 4);
            a[1] = __byte_perm(a[0], word[0], second.cut);
            a[3] = __byte_perm(word[0], next[0], second.cut);
        }
    }

    // ---- multiply ----

    // A plane of g comes to place Newest of those held, and a plane of x meets all of them.
    template <int Newest>
    __device__ static void step(float (&acc)[kSets][KD][4], unsigned (&held)[kPatches][KD][2], bool has_large,
                                const unsigned char* large, bool has_small, const unsigned char* small,
                                const Places& places, const WeightGradientParameters& p) {
        const int patches = p.tile.patches;
        const auto large_step = static_cast<unsigned>(kRows * p.large_planes.row_pitch * 16);
        const auto small_step = static_cast<unsigned>(kRows * p.small_planes.row_pitch * 16);
#pragma unroll
        for (int q = 0; q < kPatches; ++q) {
            if (q >= patches) continue;
            if (has_small) {
                load_words(held[q][Newest], small + places.small + q * small_step);
            } else {
                held[q][Newest][0] = held[q][Newest][1] = 0;
            }
        }
        if (!has_large) return;
        // The next patch's words are on their way while this one is multiplied; the last one is loaded again.
        unsigned a[2][4];
        const SecondRow second = second_row(p);
        load_large(a[0], large, places.large, second);
#pragma unroll
        for (int q = 0; q < kPatches; ++q) {
            if (q >= patches) continue;
            if (q + 1 < kPatches) {
                const unsigned ahead = static_cast<unsigned>(min(q + 1, patches - 1)) * large_step;
                load_large(a[(q + 1) % 2], large, places.large + ahead, second);
            }
#pragma unroll
            for (int kd = KD - 1; kd >= 0; --kd) {  // the newest plane last: it has just been asked for
                mma_m16n8k16<T>(acc[q % kSets][kd], a[q % 2], held[q][(Newest - kd + KD) % KD]);
            }
        }
    }

    // Calls function<newest>(): what is held must be named by constants, or it is no register.
    template <int Place = 0, typename Function>
    __device__ static void at_place(int newest, Function&& function) {
        if constexpr (Place + 1 == KD) {
            function.template operator()<Place>();
        } else if (newest == Place) {
            function.template operator()<Place>();
        } else {
            at_place<Place + 1>(newest, function);
        }
    }

    // ---- store ----

    // The block's sums of the taps (kd, ., .) from the C of its warps: rows of A and warps in ascending order.
    __device__ static void store(const float (&c)[4], float* sums, float* partial) {
        const int lane = threadIdx.x % kWarpSize;
        const int warp = threadIdx.x / kWarpSize;
        const int warps = static_cast<int>(blockDim.x) / kWarpSize;
        __syncthreads();  // what was there has been read
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sums[warp * 128 + (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
        }
        __syncthreads();
        for (int tap = threadIdx.x; tap < K * K; tap += blockDim.x) {
            float sum = 0.0f;
            for (int m = 0; m < 16; ++m) {
                const OperandRow at = operand_row(m);
                if (at.kw != tap % K) continue;
                const int n = at.row - tap / K + K - 1;
                for (int other = 0; other < warps; ++other) sum += sums[other * 128 + m * 8 + n];
            }
            partial[tap] = sum;
        }
    }
};

template <typename T, int KD, int K, bool Boxes>
__global__ void __launch_bounds__(BandedWeightGradient<T, KD, K, Boxes>::kMostThreads,
                                  BandedWeightGradient<T, KD, K, Boxes>::kBlocksPerProcessor)
    banded_weight_gradient(const __grid_constant__ WeightGradientParameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    __trap();  // the planner does not come here
#else
    using Core = BandedWeightGradient<T, KD, K, Boxes>;
    const WeightGradientTile& tile = p.tile;
    const std::int64_t volume = blockIdx.x / tile.tiles();  // n * C + c
    const int number = blockIdx.x % tile.tiles();  // neighbours along W and H, which share a halo, run together
    const int w0 = number % tile.tiles_w * tile.columns();
    const int h0 = number / tile.tiles_w % tile.tiles_h * tile.rows(K);
    const int d0 = number / tile.tiles_w / tile.tiles_h * tile.depth;
    const int d1 = min(d0 + tile.depth, p.large.d);

    const typename Core::Shared shared(p.large_planes, p.small_planes, static_cast<int>(blockDim.x));

    // Step z has plane z of x, from d0 on, and plane z + pd of g; the KD - 1 steps before bring g alone.
    using Ring = typename Core::Ring;
    const int begin = d0 - KD + 1;
    Ring large(p.large, p.large_planes, shared_array(shared.large), shared_array(shared.large_full),
               shared_array(shared.large_table), volume, h0, w0 - WeightGradientTile::kLargeHalo, begin, d0, d1);
    Ring small(p.small, p.small_planes, shared_array(shared.small), shared_array(shared.small_full),
               shared_array(shared.small_table), volume, h0 + p.pad_h - K + 1, w0, begin + p.pad_d, begin + p.pad_d,
               d1 + p.pad_d);
    Ring::start(large, small);
    __syncthreads();

    const typename Core::Places places = Core::places_of(p);
    float acc[Core::kSets][KD][4] = {};
    unsigned held[Core::kPatches][KD][2];
    int newest = 0;
    for (int z = begin; z < d1; ++z) {
        const bool has_large = large.is_inside();
        const bool has_small = small.is_inside();
        large.arrive();
        small.arrive();
        __syncthreads();  // the planes are there, and nobody reads those before them any more
        const unsigned char* large_plane = large.turn();
        const unsigned char* small_plane = small.turn();
        Core::at_place(newest, [&]<int Newest>() {
            Core::template step<Newest>(acc, held, has_large, large_plane, has_small, small_plane, places, p);
        });
        newest = newest + 1 == KD ? 0 : newest + 1;
    }
    large.finish();
    small.finish();

    float* const sums = shared_array(shared.sums);
    const std::int64_t part = volume / p.channels * tile.tiles() + number;
    float* partial = p.partial + (part * p.channels + volume % p.channels) * (KD * K * K);
#pragma unroll
    for (int kd = 0; kd < KD; ++kd) {
#pragma unroll
        for (int set = 1; set < Core::kSets; ++set) {
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[0][kd][i] += acc[set][kd][i];
        }
        Core::store(acc[0][kd], sums, partial + kd * K * K);
    }
#endif
}

template <typename T, int KD, int K, bool Boxes>
cudaError_t launch_banded_weight_gradient_instance(const WeightGradientParameters& p, unsigned blocks,
                                                   cudaStream_t stream) {
    const int threads = p.tile.warps() * kWarpSize;
    const typename BandedWeightGradient<T, KD, K, Boxes>::Shared shared(p.large_planes, p.small_planes, threads);
    return launch<banded_weight_gradient<T, KD, K, Boxes>>(
        {blocks, static_cast<unsigned>(threads), shared.layout.bytes(), stream}, p);
}

// The instances of a kernel size, each size in a file of its own.
template <int KD, int K>
cudaError_t launch_banded_weight_gradient_of_size(ScalarType type, const WeightGradientParameters& p, unsigned blocks,
                                                  cudaStream_t stream) {
    const auto of_type = [&]<typename T>(const T*) {
        return p.tile.fill == Fill::boxes ? launch_banded_weight_gradient_instance<T, KD, K, true>(p, blocks, stream)
                                          : launch_banded_weight_gradient_instance<T, KD, K, false>(p, blocks, stream);
    };
    return type == ScalarType::float16 ? of_type(static_cast<const __half*>(nullptr))
                                       : of_type(static_cast<const __nv_bfloat16*>(nullptr));
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
