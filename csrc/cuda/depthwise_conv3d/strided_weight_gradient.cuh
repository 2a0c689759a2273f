// The weight gradient at stride 2 as matrix products: the core for fp16 and bf16, NCDHW, KxKxK, sm_80 and newer.
// docs/kernels/strided_weight_gradient.md counts what it costs.
//
// With g the small tensor and x the large one, element w = 2 u + b of a row of x meets element u + s of a row of g in
// tap kw = b + K / 2 - 2 s, and so along H and D. Each of the two parities b of x is a correlation at stride 1 with the
// same few shifts s of g. It is g that is shifted, the small tensor, and x that is read once, as it lies:
//
//     C[b][m, n] += sum over kappa of A[m, kappa] B[b][kappa, n]
//     A[m, kappa]    = g[i + q][u0 + kappa + s]           row m of A is a row of g, q, shifted by s: 4 x 4 of them
//     B[b][kappa, n] = x[2 i + a][2 (u0 + kappa) + b]     column n is one of two rows, a, of one of four planes of x
//
// The order of kappa is free as long as A and B agree. A lane's four are neighbours, 4 t to 4 t + 3 (t = lane % 4): 16
// bytes of x, even elements to B[0], odd ones to B[1], and three words of g, in which rows m and m + 8 are the shifts
// s and s + 1. So nothing passes through shared memory, and no warp waits for another one:
//
//     a step: planes 4 s to 4 s + 3 of two rows and 32 columns of x, 16 bytes a lane, asked for kAhead steps before
//     held:   the (K + 3) / 2 planes of g that they meet, from 2 s - (K - 1) / 4 on; two of them are new in each step
//
// Which tap an element of C is does not depend on the step or the place of the warp: one set of accumulators serves
// all. At the end the warps' C are added in shared memory, in a fixed order, to the block's part of the workspace.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/launch.h"
#include "../common/mma.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "strided_weight_gradient.h"

namespace mednext_ops::cuda::depthwise_conv3d {

struct StridedWeightParameters {
    const void* small;
    const void* large;
    AffineGradient affine;
    int small_d, small_h, small_w;
    int large_d, large_h, large_w;
    std::int64_t channels, volumes;
    StridedWeightTile tile;
    float* partial;  // [parts, C * taps]
};

// Which of the two tensors is a gradient that is not written out.
enum class Mapped { none, small, large };

// How a lane reads `Pairs` pairs of neighbours of one row of a tensor, plane after plane. `Aligned`: rows are whole
// words, and four pairs are 16 bytes; otherwise a row may begin in the middle of a word, and there is one word more.
template <typename T, int Pairs, bool Aligned>
struct LaneRow {
    static constexpr int kWords = Aligned ? Pairs : Pairs + 1;

    std::int64_t at;  // the first element, in plane 0
    int plane_size;
    int depth;               // planes before this one are read, if not below 0; 0 where the row is outside
    unsigned inside[Pairs];  // the bits of each pair that are in the row
    int whole_begin;         // from this plane on, so many may be read in whole words: what these reach beyond the
    unsigned whole_count;    // row is in the tensor

    __device__ LaneRow(std::int64_t volumes, std::int64_t volume, int planes, int rows, int columns, int row,
                       int column, int planes_end)
        : at((volume * planes * rows + row) * columns + column),
          plane_size(rows * columns),
          depth(static_cast<unsigned>(row) < static_cast<unsigned>(rows) && column < columns ? min(planes, planes_end)
                                                                                             : 0),
          whole_begin(volume == 0 ? 1 : 0),
          whole_count(plane_size < 2 * kWords
                          ? 0
                          : static_cast<unsigned>(max(planes - (volume == volumes - 1 ? 1 : 0) - whole_begin, 0))) {
#pragma unroll
        for (int i = 0; i < Pairs; ++i) {
            const auto has = [&](int element) {
                return static_cast<unsigned>(column + element) < static_cast<unsigned>(columns);
            };
            if constexpr (Aligned) {  // all of a pair, and of four of them, or nothing
                inside[i] = Pairs == 4 || has(2 * i) ? ~0u : 0u;
            } else {
                inside[i] = (has(2 * i) ? 0xffffu : 0u) | (has(2 * i + 1) ? 0xffff0000u : 0u);
            }
        }
    }

    __device__ bool has_plane(int plane) const { return static_cast<unsigned>(plane) < static_cast<unsigned>(depth); }

    // Whether the first element is the upper half of a word.
    __device__ bool is_odd(const void* data, int plane) const {
        const auto element = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(data) / sizeof(T));
        return ((element + static_cast<unsigned>(at) +
                 static_cast<unsigned>(plane) * static_cast<unsigned>(plane_size)) &
                1) != 0;
    }

    // The words that hold the pairs of a plane, as they lie; zero where there is no plane.
    __device__ void load(const void* data, int plane, unsigned (&words)[kWords]) const {
#pragma unroll
        for (int i = 0; i < kWords; ++i) words[i] = 0;
        if (!has_plane(plane)) return;
        const T* from = static_cast<const T*>(data) + (at + static_cast<std::int64_t>(plane) * plane_size);
        if constexpr (Aligned && Pairs == 4) {
            const auto elements = *reinterpret_cast<const Vector<T, 8>*>(from);
            std::memcpy(words, &elements, sizeof(words));
        } else if constexpr (Aligned) {
#pragma unroll
            for (int i = 0; i < kWords; ++i) {
                if (inside[i] != 0) load_word(words[i], from + 2 * i);
            }
        } else {
            const bool odd = is_odd(data, plane);
            from -= odd ? 1 : 0;
            if (static_cast<unsigned>(plane - whole_begin) < whole_count) {
#pragma unroll
                for (int i = 0; i < kWords; ++i) load_word(words[i], from + 2 * i);
            } else {
                load_elements(words, from, odd);
            }
        }
    }

    __device__ static void load_word(unsigned& word, const T* from) {
        const auto pair = *reinterpret_cast<const Vector<T, 2>*>(from);
        std::memcpy(&word, &pair, sizeof(word));
    }

    // The same, of the elements in the row alone.
    __device__ void load_elements(unsigned (&words)[kWords], const T* from, bool odd) const {
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
            const bool low =
                odd ? i > 0 && inside[i > 0 ? i - 1 : 0] >> 31 != 0 : i < Pairs && (inside[i < Pairs ? i : 0] & 1) != 0;
            const bool high =
                i < Pairs && (odd ? (inside[i < Pairs ? i : 0] & 1) != 0 : inside[i < Pairs ? i : 0] >> 31 != 0);
            T pair[2] = {from_float<T>(0.0f), from_float<T>(0.0f)};
            if (low) pair[0] = from[2 * i];
            if (high) pair[1] = from[2 * i + 1];
            words[i] = pack(pair[0], pair[1]);
        }
    }

    // The pairs themselves, as the words have them.
    __device__ void align(const void* data, int plane, const unsigned (&words)[kWords],
                          unsigned (&pairs)[Pairs]) const {
        const unsigned selector = !Aligned && is_odd(data, plane) ? 0x5432 : 0x3210;
#pragma unroll
        for (int i = 0; i < Pairs; ++i) {
            pairs[i] = Aligned ? words[i] : __byte_perm(words[i], words[Aligned ? i : i + 1], selector);
        }
    }
};

// The affine map of a volume.
struct VolumeMap {
    float scale, slope, offset;

    // scale * value + slope * output + offset of two elements, in float, rounded once.
    template <typename T>
    __device__ unsigned apply(unsigned value, unsigned output) const {
        float values[2];
        float outputs[2];
        unpack<T>(value, values[0], values[1]);
        unpack<T>(output, outputs[0], outputs[1]);
        return pack(from_float<T>(fmaf(scale, values[0], fmaf(slope, outputs[0], offset))),
                    from_float<T>(fmaf(scale, values[1], fmaf(slope, outputs[1], offset))));
    }
};

// What a lane has asked for: the words of a tensor, and those of the other one from which it is computed.
template <typename T, int Pairs, bool Aligned, bool IsMapped>
struct Asked {
    using Row = LaneRow<T, Pairs, Aligned>;
    unsigned words[Row::kWords];
    unsigned outputs[IsMapped ? Row::kWords : 1];

    __device__ void ask(const Row& row, const void* data, const AffineGradient& affine, int plane) {
        row.load(data, plane, words);
        if constexpr (IsMapped) row.load(affine.output, plane, outputs);
    }

    __device__ void take(const Row& row, const void* data, const AffineGradient& affine, const VolumeMap& map,
                         int plane, unsigned (&pairs)[Pairs]) const {
        row.align(data, plane, words, pairs);
        if constexpr (IsMapped) {
            unsigned others[Pairs];
            row.align(affine.output, plane, outputs, others);
#pragma unroll
            for (int i = 0; i < Pairs; ++i) {
                pairs[i] = row.has_plane(plane) ? map.apply<T>(pairs[i], others[i]) & row.inside[i] : 0;
            }
        } else if constexpr (!Aligned) {
#pragma unroll
            for (int i = 0; i < Pairs; ++i) pairs[i] &= row.inside[i];
        }
    }
};

template <int K, bool SmallAligned, Mapped Map>
struct StridedWeightGradient {
    static constexpr int kMostThreads = StridedWeightTile::kMostWarps * kWarpSize;
    static constexpr int kFirst = StridedWeightTile::first(K);
    static constexpr int kSpan = StridedWeightTile::span(K);
    static constexpr int kHeld = StridedWeightTile::held(K);
    static constexpr int kSums = kHeld * 2 * 128;  // of a warp

    // Planes of x are asked for so many steps before they are multiplied, and those of g. A tensor that is computed is
    // two, and takes its registers twice; one whose rows begin anywhere takes more, too.
    static constexpr int kAhead = Map == Mapped::large || (Map == Mapped::small && !SmallAligned) ? 2 : 4;
    static constexpr int kSmallAhead = Map == Mapped::small || !SmallAligned ? 1 : 2;
    static constexpr int kBlocksPerProcessor = 3;

    struct Shared {
        SharedLayout layout;
        SharedArray<float> sums;

        constexpr explicit Shared(int warps) : sums(layout.array<float>(warps * kSums)) {}
    };

    // The block's sums of the taps from the C of its warps, in ascending order.
    __device__ static void store(const float (&acc)[kHeld][2][4], float* sums, float* partial) {
        const int lane = threadIdx.x % kWarpSize;
        const int warp = threadIdx.x / kWarpSize;
        const int warps = static_cast<int>(blockDim.x) / kWarpSize;
#pragma unroll
        for (int i = 0; i < kHeld * 2 * 4; ++i) {
            sums[warp * kSums + i / 4 * 128 + (lane / 4 + i % 4 / 2 * 8) * 8 + lane % 4 * 2 + i % 2] =
                acc[i / 8][i / 4 % 2][i % 4];
        }
        __syncthreads();
        for (int tap = static_cast<int>(threadIdx.x); tap < K * K * K; tap += static_cast<int>(blockDim.x)) {
            const int parity_d = (tap / (K * K) + K / 2) % 2;
            const int parity_h = (tap / K % K + K / 2) % 2;
            const int parity_w = (tap % K + K / 2) % 2;
            const int plane = (parity_d + K / 2 - tap / (K * K)) / 2 - kFirst;
            const int row = (parity_h + K / 2 - tap / K % K) / 2 - kFirst;
            const int shift = (parity_w + K / 2 - tap % K) / 2 + 1;
            const int m = 2 * row + shift / 2 + shift % 2 * 8;
            const int n = 2 * parity_d + parity_h;
            const float* const of_tap = sums + (2 * plane + parity_w) * 128 + m * 8 + n;
            float sum = 0.0f;
            for (int other = 0; other < warps; ++other) {
                sum += of_tap[other * kSums];            // planes 4 s and 4 s + 1 of x
                sum += of_tap[other * kSums + 256 + 4];  // planes 4 s + 2 and 4 s + 3, which meet the next plane of g
            }
            partial[tap] = sum;
        }
    }
};

template <typename T, int K, bool LargeAligned, bool SmallAligned, Mapped Map>
__global__ void __launch_bounds__(StridedWeightGradient<K, SmallAligned, Map>::kMostThreads,
                                  StridedWeightGradient<K, SmallAligned, Map>::kBlocksPerProcessor)
    strided_weight_gradient(const __grid_constant__ StridedWeightParameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    __trap();  // the planner does not come here
#else
    using Core = StridedWeightGradient<K, SmallAligned, Map>;
    constexpr int kAhead = Core::kAhead;
    constexpr int kSmallAhead = Core::kSmallAhead;
    constexpr int kHeld = Core::kHeld;

    const StridedWeightTile& tile = p.tile;
    const int number = static_cast<int>(blockIdx.x % tile.tiles_hw);  // neighbours, which share rows of g, run together
    const int cut = static_cast<int>(blockIdx.x / tile.tiles_hw % tile.tiles_d);
    const std::int64_t volume = blockIdx.x / tile.tiles_hw / tile.tiles_d;  // n * C + c

    const int lane = threadIdx.x % kWarpSize;
    const int patch = number * tile.warps + static_cast<int>(threadIdx.x) / kWarpSize;
    const int pair_of_rows = patch / tile.patches_w;
    const int patch_w = patch % tile.patches_w;
    const int begin = cut * tile.depth;
    const int end = pair_of_rows < tile.patches_h ? min(begin + tile.depth, tile.steps) : begin;

    using OfLarge = Asked<T, 4, LargeAligned, Map == Mapped::large>;
    using OfSmall = Asked<T, 3, SmallAligned, Map == Mapped::small>;
    const typename OfLarge::Row large(p.volumes, volume, p.large_d, p.large_h, p.large_w,
                                      2 * pair_of_rows + lane / 4 % 2, 32 * patch_w + 8 * (lane % 4), 4 * end);
    const bool has_row = lane / 8 < Core::kSpan;  // of A
    const typename OfSmall::Row small(p.volumes, volume, p.small_d, p.small_h, p.small_w,
                                      pair_of_rows + Core::kFirst + lane / 8,
                                      16 * patch_w + 4 * (lane % 4) + 2 * (lane / 4 % 2) - 2, has_row ? p.small_d : 0);
    VolumeMap map{};
    if constexpr (Map != Mapped::none) {
        map = {p.affine.scale[volume], p.affine.slope[volume], p.affine.offset[volume]};
    }
    // Plane of x that the lane has in a step, and the first plane of g of a step.
    const auto large_plane = [&](int step) { return 4 * step + lane / 8; };
    const auto small_plane = [](int step) { return 2 * step + Core::kFirst; };

    OfLarge of_large[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) of_large[i].ask(large, p.large, p.affine, large_plane(begin + i));

    // Rows m are the shift that takes halves of two words, rows m + 8 the next one, whole words.
    unsigned held[kHeld][4];
    const auto hold = [&](unsigned (&a)[4], const OfSmall& asked, int plane) {
        unsigned pairs[3];
        asked.take(small, p.small, p.affine, map, plane, pairs);
        a[0] = __byte_perm(pairs[0], pairs[1], 0x5432);
        a[1] = pairs[1];
        a[2] = __byte_perm(pairs[1], pairs[2], 0x5432);
        a[3] = pairs[2];
    };
    OfSmall of_small[kSmallAhead][2];
    {
        OfSmall first[kHeld - 2];
#pragma unroll
        for (int f = 0; f < kHeld - 2; ++f) first[f].ask(small, p.small, p.affine, small_plane(begin) + f);
#pragma unroll
        for (int i = 0; i < 2 * kSmallAhead; ++i) {
            of_small[i / 2][i % 2].ask(small, p.small, p.affine, small_plane(begin) + kHeld - 2 + i);
        }
#pragma unroll
        for (int f = 0; f < kHeld - 2; ++f) hold(held[f], first[f], small_plane(begin) + f);
    }

    float acc[kHeld][2][4] = {};
#pragma unroll 1
    for (int from = begin; from < end; from += kAhead) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int step = from + i;
            unsigned x[4];
            of_large[i].take(large, p.large, p.affine, map, large_plane(step), x);
            of_large[i].ask(large, p.large, p.affine, large_plane(step + kAhead));
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                OfSmall& asked = of_small[i % kSmallAhead][j];
                const int plane = small_plane(step) + kHeld - 2 + j;
                hold(held[kHeld - 2 + j], asked, plane);
                asked.ask(small, p.small, p.affine, plane + 2 * kSmallAhead);
            }
            const unsigned even[2] = {__byte_perm(x[0], x[1], 0x5410), __byte_perm(x[2], x[3], 0x5410)};
            const unsigned odd[2] = {__byte_perm(x[0], x[1], 0x7632), __byte_perm(x[2], x[3], 0x7632)};
#pragma unroll
            for (int f = 0; f < kHeld; ++f) {
                mma_m16n8k16<T>(acc[f][0], held[f], even);
                mma_m16n8k16<T>(acc[f][1], held[f], odd);
            }
#pragma unroll
            for (int f = 0; f < 4 * (kHeld - 2); ++f) held[f / 4][f % 4] = held[f / 4 + 2][f % 4];
        }
    }

    const typename Core::Shared shared(tile.warps);
    const std::int64_t part = (volume / p.channels * tile.tiles_d + cut) * tile.tiles_hw + number;
    Core::store(acc, shared_array(shared.sums), p.partial + (part * p.channels + volume % p.channels) * (K * K * K));
#endif
}

template <typename T, int K, bool LargeAligned, bool SmallAligned>
cudaError_t launch_strided_weight_gradient_instance(const StridedWeightParameters& p, Mapped map, unsigned blocks,
                                                    cudaStream_t stream) {
    const typename StridedWeightGradient<K, SmallAligned, Mapped::none>::Shared shared(p.tile.warps);
    const LaunchShape shape{blocks, static_cast<unsigned>(p.tile.warps * kWarpSize), shared.layout.bytes(), stream};
    switch (map) {
        case Mapped::small:
            return launch<strided_weight_gradient<T, K, LargeAligned, SmallAligned, Mapped::small>>(shape, p);
        case Mapped::large:
            return launch<strided_weight_gradient<T, K, LargeAligned, SmallAligned, Mapped::large>>(shape, p);
        default:
            return launch<strided_weight_gradient<T, K, LargeAligned, SmallAligned, Mapped::none>>(shape, p);
    }
}

// A large tensor of whole vectors has a small one of whole words; a transposed convolution's often has not.
template <typename T, int K>
cudaError_t launch_strided_weight_gradient_of_type(const StridedWeightParameters& p, Mapped map, unsigned blocks,
                                                   cudaStream_t stream) {
    if (!p.tile.small_aligned) {
        return launch_strided_weight_gradient_instance<T, K, false, false>(p, map, blocks, stream);
    }
    return p.tile.large_aligned ? launch_strided_weight_gradient_instance<T, K, true, true>(p, map, blocks, stream)
                                : launch_strided_weight_gradient_instance<T, K, false, true>(p, map, blocks, stream);
}

// One instance a kernel size, each in a file of its own.
template <int K>
cudaError_t launch_strided_weight_gradient_of_size(ScalarType type, Mapped map, const StridedWeightParameters& p,
                                                   unsigned blocks, cudaStream_t stream) {
    return type == ScalarType::float16
               ? launch_strided_weight_gradient_of_type<__half, K>(p, map, blocks, stream)
               : launch_strided_weight_gradient_of_type<__nv_bfloat16, K>(p, map, blocks, stream);
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
