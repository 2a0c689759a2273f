// The weight gradient with planes by the copy engine (sm_90): see weight_gradient_patches.cuh.
//
// No barrier of the block: a warp waits for the planes of its step, reads them, says so, and goes on. The warps take
// turns at asking for the planes further on, into the places that all have read a step ago.
//
// A gradient g that is not written out (Mapped) is computed by the lanes that read it. The 8 rows of a patch overlap
// those of the next one, so each row is computed once, in rounds of 8 rows, and moved to where the patches need it:
//
//         K = 7, R = 2     round 0: rows 0 .. 7     round 1: rows 8 .. 13
//                          patch 0: 0 .. 7          patch 1: 2 .. 9     patch 2: 4 .. 11     patch 3: 6 .. 13
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/launch.h"
#include "../common/mbarrier.cuh"
#include "../common/tma.cuh"
#include "../common/warp.h"
#include "affine_map.cuh"
#include "ring_of_places.cuh"
#include "weight_gradient_patches.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template <typename T, int KD, int K, bool Mapped, int Patches>
struct BoxedWeightGradient {
    using Core = WeightGradientPatches<T, KD, K, Patches>;
    using Map = AffineMap<T>;
    static constexpr int kRows = Core::kRows;
    static constexpr int kPatches = Core::kPatches;
    static constexpr int kSmallRows = Core::kSmallRows;
    // Rounds in which a warp computes the rows of its patches.
    static constexpr int kRounds = ((kPatches - 1) * kRows + 2 * kSmallRows - 1) / kSmallRows;
    // For sm_100 ptxas would spill where both the map and the number of patches are in registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
    static constexpr int kBlocksPerProcessor = Mapped && Patches == 0 ? 1 : Core::kBlocksPerProcessor;
#else
    static constexpr int kBlocksPerProcessor = Core::kBlocksPerProcessor;
#endif

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

    // Asks for the planes of step `z`: one of g, which is zero where it is outside of the volume, and from d0 on one
    // of x. One thread.
    __device__ static void ask(const WeightGradientParameters& p, const WeightGradientPlace& place, int z,
                               unsigned char* stage, std::uint64_t* full) {
        const bool has_large = z >= place.d0;
        const int large_bytes = has_large ? p.large_planes.rows * p.large_planes.row_pitch * 16 : 0;
        const int small_bytes = p.small_planes.rows * p.small_planes.row_pitch * 16;
        mbarrier_arrive_and_expect(full, static_cast<unsigned>(large_bytes + (Mapped ? 2 : 1) * small_bytes));
        const auto volume = static_cast<int>(place.volume);
        if (has_large) {
            const int at[kTensorRank] = {place.w0 - WeightGradientTile::kLargeHalo, place.h0, z, volume, 0};
            load_box(stage, &p.large.box, at, full);
        }
        const int at[kTensorRank] = {place.w0, place.h0 + p.pad_h - K + 1, z + p.pad_d, volume, 0};
        unsigned char* const small = stage + p.large_planes.plane_bytes();
        load_box(small, &p.small.box, at, full);
        if constexpr (Mapped) load_box(small + p.small_planes.plane_bytes(), &p.small.box_output, at, full);
    }

    // Where a lane finds the elements that it computes, in bytes from its place in the first round, and in which of
    // the rounds they are in the volume: what is outside comes as zero, and must stay that.
    struct Rounds {
        unsigned inside;  // bit by bit
        unsigned last;    // of the last round: the plane may end within it
    };

    __device__ static Rounds rounds_of(const WeightGradientParameters& p, const WeightGradientPlace& place) {
        const int lane = threadIdx.x % kWarpSize;
        const int warp = threadIdx.x / kWarpSize;
        const int first = lane / 4 + warp / p.tile.warps_w * p.tile.patches * kRows;  // row of the plane
        const int row = place.h0 + p.pad_h - K + 1 + first;
        const int column = place.w0 + warp % p.tile.warps_w * WeightGradientTile::kPatchColumns + 4 * (lane % 4);
        Rounds rounds{};
        for (int i = 0; i < kRounds; ++i) {
            const bool there = static_cast<unsigned>(row + i * kSmallRows) < static_cast<unsigned>(p.small.h);
            rounds.inside |= there && column < p.small.w ? 1u << i : 0u;
        }
        const int last = min(first + (kRounds - 1) * kSmallRows, p.small_planes.rows - 1);
        rounds.last = static_cast<unsigned>((last - first) * p.small_planes.row_pitch * 16);
        return rounds;
    }

    // A lane's elements of its row of round `i`.
    __device__ static void compute(unsigned (&words)[2], int i, const unsigned char* small, const Rounds& rounds,
                                   unsigned inside, const Map& map, const WeightGradientParameters& p) {
        const int further = i * kSmallRows * p.small_planes.row_pitch * 16;
        // With as many patches as the tile says, any round may be one that the plane does not have.
        const unsigned char* const from =
            small + (i == kRounds - 1 || Patches == 0 ? min(rounds.last, static_cast<unsigned>(further)) : further);
        unsigned grads[2];
        unsigned outputs[2];
        Core::load_words(grads, from);
        Core::load_words(outputs, from + p.small_planes.plane_bytes());
        const auto mask = static_cast<unsigned>(static_cast<int>(inside << (31 - i)) >> 31);
#pragma unroll
        for (int word = 0; word < 2; ++word) words[word] = map(grads[word], outputs[word]) & mask;
    }

    // A plane of g comes to place Newest of those held, computed out of two planes.
    template <int Newest>
    __device__ static void hold(unsigned (&held)[kPatches][KD][2], bool is_inside, const unsigned char* small,
                                const Rounds& rounds, const Map& map, const WeightGradientParameters& p) {
        const int lane = threadIdx.x % kWarpSize;
        const unsigned inside = is_inside ? rounds.inside : 0;
        unsigned words[kRounds][2];
        const auto last_round = [](int patch) { return (patch * kRows + kSmallRows - 1) / kSmallRows; };
#pragma unroll
        for (int q = 0; q < kPatches; ++q) {
            if (!Core::has_patch(q, p)) continue;
            const int round = q * kRows / kSmallRows;  // that of the patch's first row
            const int skipped = q * kRows % kSmallRows;
#pragma unroll
            for (int i = q == 0 ? 0 : last_round(q - 1) + 1; i <= last_round(q); ++i) {
                compute(words[i], i, small, rounds, inside, map, p);
            }
#pragma unroll
            for (int word = 0; word < 2; ++word) {
                if (skipped == 0) {
                    held[q][Newest][word] = words[round][word];
                } else {
                    const unsigned mine = lane / 4 >= skipped ? words[round][word] : words[round + 1][word];
                    held[q][Newest][word] = __shfl_sync(kFullWarp, mine, lane + 4 * skipped);
                }
            }
        }
    }
};

template <typename T, int KD, int K, bool Mapped, int Patches>
__global__ void __launch_bounds__(WeightGradientPatches<T, KD, K>::kMostThreads,
                                  BoxedWeightGradient<T, KD, K, Mapped, Patches>::kBlocksPerProcessor)
    boxed_weight_gradient(const __grid_constant__ WeightGradientParameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    __trap();  // the planner does not come here
#else
    using Boxed = BoxedWeightGradient<T, KD, K, Mapped, Patches>;
    using Core = typename Boxed::Core;
    const WeightGradientPlace place(p, K);
    const typename Boxed::Shared shared(p);
    unsigned char* const planes = shared_array(shared.planes);
    std::uint64_t* const full = shared_array(shared.full);
    std::uint64_t* const read = shared_array(shared.read);
    typename Boxed::Map* const map = shared_array(shared.map);
    const int stages = p.tile.stages;
    const int stage_bytes = Boxed::stage_bytes(p);
    const int warps = static_cast<int>(blockDim.x) / kWarpSize;
    // Step z has plane z of x, from d0 on, and plane z + pd of g; the KD - 1 steps before bring g alone.
    const int begin = place.d0 - KD + 1;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < stages; ++stage) {
            mbarrier_initialise(full + stage, 1);
            mbarrier_initialise(read + stage, static_cast<unsigned>(warps));
        }
        mbarrier_initialised();
        for (int ahead = 0; ahead < stages && begin + ahead < place.d1; ++ahead) {
            Boxed::ask(p, place, begin + ahead, planes + ahead * stage_bytes, full + ahead);
        }
        if constexpr (Mapped) *map = Boxed::Map::of(p.small.affine, place.volume);
    }
    __syncthreads();

    const typename Core::Places places = Core::places_of(p);
    const typename Core::SecondRow second = Core::second_row(p, threadIdx.x);
    const typename Boxed::Rounds rounds = Mapped ? Boxed::rounds_of(p, place) : typename Boxed::Rounds{};
    float acc[Core::kSets][KD][4] = {};
    unsigned held[Core::kPatches][KD][2];
    StageCounter stage(stages);
    int turn = static_cast<int>(threadIdx.x) / kWarpSize;  // steps until it is this warp's to ask
    int z = begin;
    walk_along_places<KD>([&]<int Newest>() {
        const unsigned char* const large = planes + stage.index * stage_bytes;
        const unsigned char* const small = large + p.large_planes.plane_bytes();
        mbarrier_wait(full + stage.index, stage.parity);
        if constexpr (Mapped) {
            const bool is_inside = static_cast<unsigned>(z + p.pad_d) < static_cast<unsigned>(p.small.d);
            Boxed::template hold<Newest>(held, is_inside, small + places.small, rounds, *map, p);
        } else {
            Core::template hold<Newest>(held, true, small, places, p);
        }
        if (z >= place.d0) Core::template multiply<Newest>(acc, held, large, places, second, p);
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

}  // namespace mednext_ops::cuda::depthwise_conv3d
