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
#include "affine_map.cuh"
#include "banded_weight_gradient.h"
#include "plane_fill.cuh"
#include "ring_of_places.cuh"

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

template <typename T, int KD, int K>
struct BandedWeightGradient {
    using Ring = PlaneRing<T, Fills::all, 2>;
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

    __device__ static SecondRow second_row(const WeightGradientParameters& p) {
        unsigned thread = threadIdx.x;
        make_opaque(thread);  // computed for each plane: registers are what this kernel has least of
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
            if (!has_small || q >= p.tile.patches) continue;
            load_words(held[q][Newest], from);
            from += kRows * p.small_planes.row_pitch * 16;
        }
    }

    // A plane of x meets all planes of g that are held, the newest of them in place Newest.
    template <int Newest>
    __device__ static void multiply(float (&acc)[kSets][KD][4], const unsigned (&held)[kPatches][KD][2],
                                    const unsigned char* large, const Places& places,
                                    const WeightGradientParameters& p) {
        const int patches = p.tile.patches;
        // The next patch's words are on their way while this one is multiplied; the last one is loaded again.
        unsigned a[2][4];
        const SecondRow second = second_row(p);
        const unsigned char* from = large + places.large;
        load_large(a[0], from, second);
#pragma unroll
        for (int q = 0; q < kPatches; ++q) {
            if (q >= patches) continue;
            if (q + 1 < kPatches) {
                if (q + 1 < patches) from += kRows * p.large_planes.row_pitch * 16;
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

// Planes by any fill: two rings that walk together, a barrier of the block a step.
template <typename T, int KD, int K>
__global__ void __launch_bounds__(BandedWeightGradient<T, KD, K>::kMostThreads,
                                  BandedWeightGradient<T, KD, K>::kBlocksPerProcessor)
    banded_weight_gradient(const __grid_constant__ WeightGradientParameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    __trap();  // the planner does not come here
#else
    using Core = BandedWeightGradient<T, KD, K>;
    const WeightGradientPlace place(p, K);
    const typename Core::Shared shared(p.large_planes, p.small_planes, static_cast<int>(blockDim.x));

    // Step z has plane z of x, from d0 on, and plane z + pd of g; the KD - 1 steps before bring g alone.
    using Ring = typename Core::Ring;
    const int begin = place.d0 - KD + 1;
    Ring large(p.large, p.large_planes, shared_array(shared.large), shared_array(shared.large_full),
               shared_array(shared.large_table), place.volume, place.h0, place.w0 - WeightGradientTile::kLargeHalo,
               begin, place.d0, place.d1);
    Ring small(p.small, p.small_planes, shared_array(shared.small), shared_array(shared.small_full),
               shared_array(shared.small_table), place.volume, place.h0 + p.pad_h - K + 1, place.w0, begin + p.pad_d,
               begin + p.pad_d, place.d1 + p.pad_d);
    Ring::start(large, small);
    __syncthreads();

    const typename Core::Places places = Core::places_of(p);
    float acc[Core::kSets][KD][4] = {};
    unsigned held[Core::kPatches][KD][2];
    int newest = 0;
    for (int z = begin; z < place.d1; ++z) {
        const bool has_large = large.is_inside();
        const bool has_small = small.is_inside();
        large.arrive();
        small.arrive();
        __syncthreads();  // the planes are there, and nobody reads those before them any more
        const unsigned char* large_plane = large.turn();
        const unsigned char* small_plane = small.turn();
        at_place<KD>(newest, [&]<int Newest>() {
            Core::template hold<Newest>(held, has_small, small_plane, places, p);
            if (has_large) Core::template multiply<Newest>(acc, held, large_plane, places, p);
        });
        newest = newest + 1 == KD ? 0 : newest + 1;
    }
    large.finish();
    small.finish();
    Core::store(acc, reinterpret_cast<float*>(shared_array(shared.large)), place.partial(p, KD * K * K));
#endif
}

// Planes by the copy engine, and no barrier of the block: a warp waits for the planes of its step, reads them, says so,
// and goes on. The warps take turns at asking for the planes further on, into the places that all have read a step
// ago. A gradient that is not written out (g; Mapped) is computed by the lanes that read it.
template <typename T, int KD, int K, bool Mapped>
struct BoxedWeightGradient {
    using Core = BandedWeightGradient<T, KD, K>;

    using Map = AffineMap<T>;

    struct Shared {
        SharedLayout layout;
        SharedArray<unsigned char> planes;  // of each stage: x, g, with Mapped what g is computed from; as above
        SharedArray<std::uint64_t> full, read;
        SharedArray<Map> map;

        constexpr Shared(const WeightGradientParameters& p)
            : planes(layout.array<unsigned char>(
                  std::max(p.tile.stages * stage_bytes(p), 4 * Core::sums_of(p.tile.warps())), 128)),
              full(layout.array<std::uint64_t>(p.tile.stages)),
              read(layout.array<std::uint64_t>(p.tile.stages)),
              map(layout.array<Map>(1)) {}
    };

    __host__ __device__ static constexpr int stage_bytes(const WeightGradientParameters& p) {
        return p.large_planes.plane_bytes() + (Mapped ? 2 : 1) * p.small_planes.plane_bytes();
    }

    // Asks for the planes of step `z`, as far as they are in the volume. One thread.
    __device__ static void ask(const WeightGradientParameters& p, const WeightGradientPlace& place, int z,
                               unsigned char* stage, std::uint64_t* full) {
        const bool has_large = is_large(place, z);
        const bool has_small = is_small(p, z);
        const int large_bytes = has_large ? p.large_planes.rows * p.large_planes.row_pitch * 16 : 0;
        const int small_bytes = has_small ? p.small_planes.rows * p.small_planes.row_pitch * 16 : 0;
        mbarrier_arrive_and_expect(full, static_cast<unsigned>(large_bytes + (Mapped ? 2 : 1) * small_bytes));
        const auto volume = static_cast<int>(place.volume);
        if (has_large) {
            const int at[kTensorRank] = {place.w0 - WeightGradientTile::kLargeHalo, place.h0, z, volume, 0};
            load_box(stage, &p.large.box, at, full);
        }
        if (has_small) {
            const int at[kTensorRank] = {place.w0, place.h0 + p.pad_h - K + 1, z + p.pad_d, volume, 0};
            unsigned char* const small = stage + p.large_planes.plane_bytes();
            load_box(small, &p.small.box, at, full);
            if constexpr (Mapped) load_box(small + p.small_planes.plane_bytes(), &p.small.box_output, at, full);
        }
    }

    __device__ static bool is_large(const WeightGradientPlace& place, int z) { return z >= place.d0; }
    __device__ static bool is_small(const WeightGradientParameters& p, int z) {
        return static_cast<unsigned>(z + p.pad_d) < static_cast<unsigned>(p.small.d);
    }

    // Bit q: this lane's elements of patch q are in the volume. What is outside comes as zero, and must stay that.
    __device__ static unsigned inside(const WeightGradientParameters& p, const WeightGradientPlace& place) {
        const int lane = threadIdx.x % kWarpSize;
        const int warp = threadIdx.x / kWarpSize;
        const int row = place.h0 + p.pad_h - K + 1 + lane / 4 + warp / p.tile.warps_w * p.tile.patches * Core::kRows;
        const int column = place.w0 + warp % p.tile.warps_w * WeightGradientTile::kPatchColumns + 4 * (lane % 4);
        unsigned bits = 0;
        for (int q = 0; q < Core::kPatches; ++q) {
            const bool there = static_cast<unsigned>(row + q * Core::kRows) < static_cast<unsigned>(p.small.h);
            bits |= there && column < p.small.w ? 1u << q : 0u;
        }
        return bits;
    }

    // What `hold` of the core does, with the map. One patch after the other: all at once take too many registers.
    template <int Newest>
    __device__ static void hold(unsigned (&held)[Core::kPatches][KD][2], bool has_small, const unsigned char* small,
                                const typename Core::Places& places, const Map* shared_map, unsigned inside,
                                const WeightGradientParameters& p) {
        if constexpr (!Mapped) {
            Core::template hold<Newest>(held, has_small, small, places, p);
        } else {
            unsigned at = places.small;
#pragma unroll
            for (int q = 0; q < Core::kPatches; ++q) {
                held[q][Newest][0] = held[q][Newest][1] = 0;
                if (q >= p.tile.patches || !has_small) continue;
                unsigned grads[2];
                unsigned outputs[2];
                Core::load_words(grads, small + at);
                Core::load_words(outputs, small + (at + p.small_planes.plane_bytes()));
                const Map map = *shared_map;
                const auto mask = static_cast<unsigned>(static_cast<int>(inside << (31 - q)) >> 31);
#pragma unroll
                for (int i = 0; i < 2; ++i) held[q][Newest][i] = map(grads[i], outputs[i]) & mask;
                at += static_cast<unsigned>(Core::kRows * p.small_planes.row_pitch * 16);
                make_opaque(at);
            }
        }
    }
};

template <typename T, int KD, int K, bool Mapped>
__global__ void __launch_bounds__(BandedWeightGradient<T, KD, K>::kMostThreads,
                                  BandedWeightGradient<T, KD, K>::kBlocksPerProcessor)
    boxed_weight_gradient(const __grid_constant__ WeightGradientParameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    __trap();  // the planner does not come here
#else
    using Core = BandedWeightGradient<T, KD, K>;
    using Boxed = BoxedWeightGradient<T, KD, K, Mapped>;
    const WeightGradientPlace place(p, K);
    const typename Boxed::Shared shared(p);
    unsigned char* const planes = shared_array(shared.planes);
    std::uint64_t* const full = shared_array(shared.full);
    std::uint64_t* const read = shared_array(shared.read);
    typename Boxed::Map* const map = shared_array(shared.map);
    const int stages = p.tile.stages;
    const int stage_bytes = Boxed::stage_bytes(p);
    const int warps = static_cast<int>(blockDim.x) / kWarpSize;
    const int begin = place.d0 - KD + 1;  // of the steps, as above
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < stages; ++stage) {
            mbarrier_initialise(full + stage, 1);
            mbarrier_initialise(read + stage, static_cast<unsigned>(warps));
        }
        mbarrier_initialised();
        if constexpr (Mapped) {
            *map = Boxed::Map::of(p.small.affine, place.volume);
        }
        for (int ahead = 0; ahead < stages && begin + ahead < place.d1; ++ahead) {
            Boxed::ask(p, place, begin + ahead, planes + ahead * stage_bytes, full + ahead);
        }
    }
    __syncthreads();

    const typename Core::Places places = Core::places_of(p);
    const unsigned inside = Mapped ? Boxed::inside(p, place) : 0;
    float acc[Core::kSets][KD][4] = {};
    unsigned held[Core::kPatches][KD][2];
    StageCounter stage(stages);
    int turn = static_cast<int>(threadIdx.x) / kWarpSize;  // steps until it is this warp's to ask
    int z = begin;
    walk_along_places<KD>([&]<int Newest>() {
        const unsigned char* const large = planes + stage.index * stage_bytes;
        mbarrier_wait(full + stage.index, stage.parity);
        Boxed::template hold<Newest>(held, Boxed::is_small(p, z), large + p.large_planes.plane_bytes(), places, map,
                                     inside, p);
        if (Boxed::is_large(place, z)) Core::template multiply<Newest>(acc, held, large, places, p);
        __syncwarp();
        if (threadIdx.x % kWarpSize == 0) mbarrier_arrive(read + stage.index);
        if (turn == 0) {
            turn = warps;
            // The planes of a step ago have been read, but by a warp that is far behind.
            const StageCounter before = stage.before();
            const int next = z - 1 + stages;
            if (threadIdx.x % kWarpSize == 0 && z > begin && next < place.d1) {
                mbarrier_wait(read + before.index, before.parity);
                shared_memory_to_copy_engine();
                Boxed::ask(p, place, next, planes + before.index * stage_bytes, full + before.index);
            }
            __syncwarp();
        }
        --turn;
        stage.advance();
        return ++z < place.d1;
    });
    Core::store(acc, reinterpret_cast<float*>(planes), place.partial(p, KD * K * K));
#endif
}

// The instances of a kernel size, each size in a file of its own.
template <int KD, int K>
cudaError_t launch_banded_weight_gradient_of_size(ScalarType type, const WeightGradientParameters& p, unsigned blocks,
                                                  cudaStream_t stream) {
    const auto threads = static_cast<unsigned>(p.tile.warps() * kWarpSize);
    const auto of_type = [&]<typename T>(const T*) {
        const auto by_boxes = [&]<bool Mapped>() {
            const typename BoxedWeightGradient<T, KD, K, Mapped>::Shared shared(p);
            return launch<boxed_weight_gradient<T, KD, K, Mapped>>({blocks, threads, shared.layout.bytes(), stream}, p);
        };
        // A large tensor that is computed needs its planes computed once, for all warps.
        if (p.tile.fill == Fill::boxes && !p.large.affine.given()) {
            return p.small.affine.given() ? by_boxes.template operator()<true>()
                                          : by_boxes.template operator()<false>();
        }
        const typename BandedWeightGradient<T, KD, K>::Shared shared(p.large_planes, p.small_planes,
                                                                     static_cast<int>(threads));
        return launch<banded_weight_gradient<T, KD, K>>({blocks, threads, shared.layout.bytes(), stream}, p);
    };
    return type == ScalarType::float16 ? of_type(static_cast<const __half*>(nullptr))
                                       : of_type(static_cast<const __nv_bfloat16*>(nullptr));
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
