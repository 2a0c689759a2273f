// A depthwise convolution as matrix products whose band covers rows as well as columns (planar_patches.cuh): the core
// for fp16 and bf16, NCDHW, stride 1, rows of multiples of four. docs/kernels/planar_convolution.md counts what it
// costs.
//
// A block walks along D as in banded_convolution.cuh: the sums of KD output planes lie in a ring of registers; the code
// of a step exists once a place. No barrier of the block in the walk: a warp waits for its plane, reads it, says so,
// and goes on; the warps take turns at asking for planes further on (boxed_weight_gradient.cuh). A gradient that is
// not written out (Mapped) is computed by all warps into planes of its own, a step ahead of its use. Where the copy
// engine does not bring the planes each thread copies its quads of them, and *full* is when all threads' have landed.
//
// The order of every sum is that of the pairs of rows and of the planes: the same bits always. A value that is not
// finite makes the patches whose windows it lies in not finite (0 x inf is NaN): up to 7 voxels along W, 6 along H.
#pragma once

#include <cstdint>

#include "../common/copy.cuh"
#include "../common/launch.h"
#include "../common/moments.cuh"
#include "../common/opaque.cuh"
#include "../common/shared_memory.cuh"
#include "../common/tma.cuh"
#include "affine_map.cuh"
#include "planar_convolution.h"
#include "planar_patches.cuh"
#include "ring_of_places.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

template <typename T, int KD, int KH, int Fragments, bool Mapped, Fill Filled = Fill::boxes>
struct Planar : PlanarPatches<T, KD, KH, Fragments> {
    using Patches = PlanarPatches<T, KD, KH, Fragments>;
    static constexpr int kMaxThreads = PlanarTile::kMostWarps * kWarpSize;
#ifdef __CUDA_ARCH__
    static constexpr int kArchitecture = __CUDA_ARCH__ / 10;
#else
    static constexpr int kArchitecture = 90;
#endif
    static constexpr int kResident = PlanarTile::resident_blocks(KD, KH, Fragments, Mapped, Filled, kArchitecture);
    static constexpr int kBlocksPerProcessor = kResident == 0 ? 1 : kResident;
    static constexpr bool kBoxes = Filled == Fill::boxes;
    static constexpr bool kChosen = PlanarTile::is_built(Filled, kArchitecture) && kResident > 0;
    static constexpr int kOperands = Mapped ? PlanarTile::kOperands : 0;

    using Map = AffineMap<T>;  // in shared memory: it is needed once a step, and registers are few

    struct Shared {
        SharedLayout layout;
        SharedArray<unsigned char> planes;
        SharedArray<std::uint64_t> full;
        SharedArray<std::uint64_t> read;  // with Mapped: an operand plane is made
        SharedArray<Map> map;
        SharedArray<T> taps;
        SharedArray<Moments<double>> of_warp;

        constexpr explicit Shared(const PlanarTile& tile)
            : planes(layout.array<unsigned char>(tile.planes_bytes(KH, Mapped), 128)),
              full(layout.array<std::uint64_t>(tile.stages)),
              read(layout.array<std::uint64_t>(Mapped ? kOperands : tile.stages)),
              map(layout.array<Map>(1)),
              taps(layout.array<T>(Patches::kTaps)),
              of_warp(layout.array<Moments<double>>(PlanarTile::kMostWarps)) {}
    };

    // ---- planes ----

    // Zeros to `bytes` bytes of shared memory, a multiple of 16, by the block.
    __device__ static void clear(void* shared, int bytes) {
        auto* const vectors = static_cast<Vector<unsigned, 4>*>(shared);
        for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += static_cast<int>(blockDim.x)) vectors[i] = {};
    }

    // Asks for plane z, which may lie outside of the volume: zeros. One thread.
    __device__ static void ask(const PlanarParameters& p, std::int64_t volume, int w0, int h0, int z,
                               unsigned char* stage, std::uint64_t* full) {
        const auto bytes = static_cast<unsigned>(p.tile.plane_rows(KH) * p.tile.row_bytes(KH));
        mbarrier_arrive_and_expect(full, Mapped ? 2 * bytes : bytes);
        const int at[kTensorRank] = {w0 - PlanarTile::kHalo, h0 - p.pad_h, z, static_cast<int>(volume), 0};
        load_box(stage, &p.box, at, full);
        if constexpr (Mapped) load_box(stage + p.tile.plane_bytes(KH), &p.box_output, at, full);
    }

    // The pieces of a plane that are in the volume, octets or quads: the others are made zero once, and left alone
    // then.
    struct Inside {
        static constexpr int kPiece = kBoxes ? 8 : 4;  // elements
        static constexpr int kPieceBytes = 2 * kPiece;
        int at;  // the first one, in bytes
        int count;
        int pieces;  // of a row
        int share;   // a division by `pieces` as a product: exact below 65536 / octets, 2^31 / quads

        __device__ Inside(const PlanarParameters& p, int h0, int w0) {
            const int row = max(p.pad_h - h0, 0);
            const int rows = max(min(p.in_h - h0 + p.pad_h, p.tile.plane_rows(KH)) - row, 0);
            const int piece = w0 == 0 ? PlanarTile::kHalo / kPiece : 0;
            pieces = min((p.in_w - w0 + PlanarTile::kHalo) / kPiece, p.tile.row_bytes(KH) / kPieceBytes) - piece;
            at = row * p.tile.row_bytes(KH) + kPieceBytes * piece;
            count = rows * pieces;
            share = kBoxes ? 65536 / pieces + 1 : static_cast<int>(0x7fffffffu / static_cast<unsigned>(pieces) + 1);
        }

        __device__ int row_of(int number) const {
            if constexpr (kBoxes) return number * share >> 16;
            return static_cast<int>(std::uint64_t{2} * number * static_cast<unsigned>(share) >> 32);
        }
    };

    // Copies this thread's quads of plane z, zeros where that is outside; `first` is the first element inside of plane
    // 0 of the volume.
    __device__ static void copy(const PlanarParameters& p, const Inside& inside, std::int64_t first, int z,
                                unsigned char* stage, std::uint64_t* full) {
        constexpr int kBytes = Inside::kPieceBytes;
        const bool is_plane = static_cast<unsigned>(z) < static_cast<unsigned>(p.in_d);
        const std::int64_t plane = first + (is_plane ? static_cast<std::int64_t>(z) * p.in_h * p.in_w : 0);
        const auto* const input = static_cast<const T*>(p.input) + plane;
        const auto* const output = static_cast<const T*>(p.affine.output) + (Mapped ? plane : 0);
        const int row_bytes = p.tile.row_bytes(KH);
        const auto threads = static_cast<int>(blockDim.x);
#pragma unroll 1
        for (int number = static_cast<int>(threadIdx.x); number < inside.count; number += threads) {
            const int row = inside.row_of(number);
            const int piece = number - row * inside.pieces;
            const int from = row * p.in_w + Inside::kPiece * piece;
            unsigned char* const to = stage + inside.at + row * row_bytes + kBytes * piece;
            copy_async<kBytes>(to, input + from, is_plane ? kBytes : 0);
            if constexpr (Mapped) {
                copy_async<kBytes>(to + p.tile.plane_bytes(KH), output + from, is_plane ? kBytes : 0);
            }
        }
        mbarrier_arrive_when_copied(full);
    }

    // A plane of the gradient from the two that came, each thread its own pieces; zeros where the plane is outside.
    __device__ static void compute(const PlanarParameters& p, const Inside& inside, const Map* shared_map,
                                   bool is_plane, const unsigned char* stage, unsigned char* operand) {
        constexpr int kWords = Inside::kPieceBytes / 4;
        using Piece = Vector<unsigned, kWords>;
        constexpr int kAtOnce = KH == 7 ? 2 : 3;  // on their way together
        const int row_bytes = p.tile.row_bytes(KH);
        const unsigned char* const outputs = stage + p.tile.plane_bytes(KH);
        const auto threads = static_cast<int>(blockDim.x);
        const Map map = *shared_map;
#pragma unroll 1
        for (int first = static_cast<int>(threadIdx.x); first < inside.count; first += kAtOnce * threads) {
            int at[kAtOnce];
            Piece grad[kAtOnce];
            Piece output[kAtOnce];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int number = min(first + i * threads, inside.count - 1);
                const int row = inside.row_of(number);
                at[i] = inside.at + row * row_bytes + Inside::kPieceBytes * (number - row * inside.pieces);
                grad[i] = *reinterpret_cast<const Piece*>(stage + at[i]);
                output[i] = *reinterpret_cast<const Piece*>(outputs + at[i]);
            }
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                Piece both{};
                if (is_plane) {
#pragma unroll
                    for (int e = 0; e < kWords; ++e) both.element[e] = map(grad[i].element[e], output[i].element[e]);
                }
                // The last one, where it is reached more than once, is each time the same.
                *reinterpret_cast<Piece*>(operand + at[i]) = both;
            }
        }
    }
};

template <typename T, int KD, int KH, int Fragments, bool Mapped, Fill Filled>
__device__ void walk_planes(const PlanarParameters& p) {
    using Core = Planar<T, KD, KH, Fragments, Mapped, Filled>;
    constexpr int kFragments = Core::kFragments;
    const PlanarTile& tile = p.tile;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int warps = static_cast<int>(blockDim.x) / kWarpSize;
    const std::int64_t volume = blockIdx.x / tile.tiles();  // n * C + c
    const int number = static_cast<int>(blockIdx.x % tile.tiles());
    const int w0 = number % tile.tiles_w * 4 * tile.quads;
    const int h0 = number / tile.tiles_w % tile.tiles_h * tile.rows(KH);
    const int d0 = number / tile.tiles_w / tile.tiles_h * tile.depth;
    const int d1 = min(d0 + tile.depth, p.out_d);

    const typename Core::Shared shared(tile);
    unsigned char* const planes = shared_array(shared.planes);
    std::uint64_t* const full = shared_array(shared.full);
    std::uint64_t* const read = shared_array(shared.read);
    typename Core::Map* const map = shared_array(shared.map);
    T* const taps = shared_array(shared.taps);
    const int stages = tile.stages;
    const int plane_bytes = tile.plane_bytes(KH);
    const int stage_bytes = Mapped ? 2 * plane_bytes : plane_bytes;
    const int row_bytes = tile.row_bytes(KH);

    // From the first plane on that is inside of the volume, or completes one: those before add nothing.
    const int z_complete = d0 - p.pad_d + KD - 1;
    const int z_begin = max(d0 - p.pad_d, min(z_complete, 0));
    const int z_end = d1 - p.pad_d + KD - 1;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < stages; ++stage) mbarrier_initialise(full + stage, Core::kBoxes ? 1 : blockDim.x);
        for (int i = 0; i < (Mapped ? Core::kOperands : stages); ++i) {
            mbarrier_initialise(read + i, static_cast<unsigned>(warps));
        }
        if constexpr (Core::kBoxes) {
            mbarrier_initialised();
            for (int ahead = 0; ahead < stages && z_begin + ahead < z_end; ++ahead) {
                Core::ask(p, volume, w0, h0, z_begin + ahead, planes + ahead * stage_bytes, full + ahead);
            }
        }
        if constexpr (Mapped) *map = Core::Map::of(p.affine, volume);
    }
    unsigned char* const operands = planes + stages * stage_bytes;
    if constexpr (Mapped) Core::clear(operands, Core::kOperands * plane_bytes);
    if constexpr (!Mapped && !Core::kBoxes) Core::clear(planes, stages * plane_bytes);
    Core::clear(taps, Core::kTaps * static_cast<int>(sizeof(T)));
    __syncthreads();
    const std::int64_t first_inside =
        (volume * p.in_d * p.in_h + max(h0 - p.pad_h, 0)) * p.in_w + max(w0 - PlanarTile::kHalo, 0);
    if constexpr (!Core::kBoxes) {
        const typename Core::Inside inside(p, h0, w0);
        for (int ahead = 0; ahead < stages && z_begin + ahead < z_end; ++ahead) {
            Core::copy(p, inside, first_inside, z_begin + ahead, planes + ahead * stage_bytes, full + ahead);
        }
    }
    Core::load_taps(p, volume % p.channels, taps);
    __syncthreads();
    unsigned band[KD][Core::kSteps][2];
    Core::load_band(taps, p.kernel_w, band);

    const typename Core::Windows windows(tile);
    typename Core::Places places(p, volume * p.out_d + d0, h0, w0);
    const bool all_inside = __all_sync(kFullWarp, places.inside == (1u << 4 * kFragments) - 1);
    const std::int64_t plane_size = static_cast<std::int64_t>(p.out_h) * p.out_w * static_cast<int>(sizeof(T));
    ShiftedSums running;

    const float bias = p.bias.data == nullptr ? 0.0f : load_parameter(p.bias, volume % p.channels);
    float acc[KD][kFragments][4];
#pragma unroll
    for (int i = 0; i < KD * kFragments * 4; ++i) acc[i / (4 * kFragments)][i / 4 % kFragments][i % 4] = bias;

    StageCounter stage(stages);  // of plane z; with Mapped of the plane to be computed
    StageCounter operand(Core::kOperands);
    const typename Core::Inside inside(p, h0, w0);
    const auto compute = [&](int z, int place) {
        mbarrier_wait(full + stage.index, stage.parity);
        Core::compute(p, inside, map, static_cast<unsigned>(z) < static_cast<unsigned>(p.in_d),
                      planes + stage.index * stage_bytes, operands + place * plane_bytes);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(read + place);
        stage.advance();
    };
    if constexpr (Mapped) compute(z_begin, 0);
    int turn = warp;  // steps until it is this warp's to ask
    int z = z_begin;
    walk_along_places<KD>([&]<int Newest>() {
        const bool completes = z >= z_complete;
        make_opaque(places.inside);  // or its bits are kept one by one
        typename Core::Pairs added;  // asked for before the products
        if (completes && p.add != nullptr) {
            const std::int64_t distance =
                static_cast<const unsigned char*>(p.add) - static_cast<unsigned char*>(p.output);
            if (all_inside) {
                Core::template load_pairs<true>(places, distance, added);
            } else {
                Core::template load_pairs<false>(places, distance, added);
            }
        }

        const unsigned char* plane;
        if constexpr (Mapped) {
            // All have computed this plane: they have read what it is made of, and done with the operand of two planes
            // ago.
            mbarrier_wait(read + operand.index, operand.parity);
            plane = operands + operand.index * plane_bytes;
            if constexpr (!Core::kBoxes) {
                const int made_of = stage.before().index;
                if (z + stages < z_end) {
                    Core::copy(p, inside, first_inside, z + stages, planes + made_of * stage_bytes, full + made_of);
                }
            } else if (turn == 0) {
                const int made_of = stage.before().index;
                if (lane == 0 && z + stages < z_end) {
                    shared_memory_to_copy_engine();
                    Core::ask(p, volume, w0, h0, z + stages, planes + made_of * stage_bytes, full + made_of);
                }
                __syncwarp();
            }
            operand.advance();
            if (z + 1 < z_end) compute(z + 1, operand.index);
        } else {
            mbarrier_wait(full + stage.index, stage.parity);
            plane = planes + stage.index * stage_bytes;
        }
        Core::template multiply<Newest>(acc, band, bias, plane, windows, row_bytes);
        if constexpr (!Mapped) {
            __syncwarp();
            if (lane == 0) mbarrier_arrive(read + stage.index);
            // The plane of a step ago has been read, but by a warp that is far behind.
            if constexpr (!Core::kBoxes) {
                const StageCounter before = stage.before();
                if (z > z_begin && z - 1 + stages < z_end) {
                    mbarrier_wait(read + before.index, before.parity);
                    Core::copy(p, inside, first_inside, z - 1 + stages, planes + before.index * stage_bytes,
                               full + before.index);
                }
            } else if (turn == 0) {
                const StageCounter before = stage.before();
                if (lane == 0 && z > z_begin && z - 1 + stages < z_end) {
                    unsigned char* const free = planes + before.index * stage_bytes;
                    mbarrier_wait(read + before.index, before.parity);
                    shared_memory_to_copy_engine();
                    Core::ask(p, volume, w0, h0, z - 1 + stages, free, full + before.index);
                }
                __syncwarp();
            }
            stage.advance();
        }
        turn = turn == 0 ? warps - 1 : turn - 1;

        if (completes) {
            const auto complete = [&]<bool All, bool Add>() {
                float values[4 * kFragments];
                Core::template store<All, Add>(acc[(Newest + 1) % KD], added, places, values);
                if (p.moments == nullptr) return;
                if (z == z_complete) running.pivot = values[0];
                running.add<All>(values, places.inside);
            };
            if (all_inside && p.add == nullptr) {
                complete.template operator()<true, false>();
            } else if (all_inside) {
                complete.template operator()<true, true>();
            } else if (p.add == nullptr) {
                complete.template operator()<false, false>();
            } else {
                complete.template operator()<false, true>();
            }
            places.advance(plane_size);
        }
        return ++z < z_end;
    });

    if (p.moments != nullptr) {
        store_moments(running.moments(static_cast<std::int64_t>(d1 - d0) * __popc(places.inside)),
                      shared_array(shared.of_warp), p.moments + blockIdx.x);
    }
}

template <typename T, int KD, int KH, int Fragments, bool Mapped>
__global__ void __launch_bounds__(Planar<T, KD, KH, Fragments, Mapped>::kMaxThreads,
                                  Planar<T, KD, KH, Fragments, Mapped>::kBlocksPerProcessor)
    planar_convolution(const __grid_constant__ PlanarParameters p) {
    if constexpr (Planar<T, KD, KH, Fragments, Mapped>::kChosen) {
        walk_planes<T, KD, KH, Fragments, Mapped, Fill::boxes>(p);
    } else {
        __trap();  // what the planner does not choose for an architecture is no code there
    }
}

template <typename T, int KD, int KH, int Fragments, bool Mapped>
__global__ void __launch_bounds__(Planar<T, KD, KH, Fragments, Mapped, Fill::async>::kMaxThreads,
                                  Planar<T, KD, KH, Fragments, Mapped, Fill::async>::kBlocksPerProcessor)
    planar_convolution_by_copies(const __grid_constant__ PlanarParameters p) {
    if constexpr (Planar<T, KD, KH, Fragments, Mapped, Fill::async>::kChosen) {
        walk_planes<T, KD, KH, Fragments, Mapped, Fill::async>(p);
    } else {
        __trap();
    }
}

template <typename T, int KD, int KH, int Fragments, bool Mapped>
cudaError_t launch_planar(const PlanarParameters& p, unsigned blocks, cudaStream_t stream) {
    const typename Planar<T, KD, KH, Fragments, Mapped>::Shared shared(p.tile);
    const LaunchShape shape{blocks, static_cast<unsigned>(p.tile.warps * kWarpSize), shared.layout.bytes(), stream};
    return p.tile.fill == Fill::boxes ? launch<planar_convolution<T, KD, KH, Fragments, Mapped>>(shape, p)
                                      : launch<planar_convolution_by_copies<T, KD, KH, Fragments, Mapped>>(shape, p);
}

// The instances of a kernel size, each size in a file of its own.
template <int KD, int KH>
cudaError_t launch_planar_of_size(ScalarType type, const PlanarParameters& p, unsigned blocks, cudaStream_t stream) {
    const auto of_form = [&]<typename T, bool Mapped>(const T*) {
        return p.tile.fragments == PlanarTile::kFewFragments
                   ? launch_planar<T, KD, KH, PlanarTile::kFewFragments, Mapped>(p, blocks, stream)
                   : launch_planar<T, KD, KH, PlanarTile::kMostFragments, Mapped>(p, blocks, stream);
    };
    const auto of_type = [&]<typename T>(const T* none) {
        return p.affine.given() ? of_form.template operator()<T, true>(none)
                                : of_form.template operator()<T, false>(none);
    };
    return type == ScalarType::float16 ? of_type(static_cast<const __half*>(nullptr))
                                       : of_type(static_cast<const __nv_bfloat16*>(nullptr));
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
