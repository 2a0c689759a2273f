// A scatter at stride 2 as banded matrix products: the core for fp16 and bf16, NCDHW, KxKxK, sm_80 and newer: the data
// gradient of a strided convolution, the forward pass of a transposed one. docs/kernels/strided_scatter.md counts what
// it costs.
//
// Eight outputs of a row meet at most eight neighbours of an input row: a *window*, four inputs after the one before.
// A product has 16 windows and eight outputs of each; its depth is one or two input rows.
//
//     C[m, n] += sum over kappa of A[m, kappa] B[kappa, n]           output 8 m + n - s of row 2 U + e, a pair of rows
//     A[m, 8 r + c]     = x[U + t + r][4 m - 2 + c]                   t: the first row of the product
//     B[8 r + c, n]     = w[kh = e + p - 2 (t + r)][kw = n - s + p + 4 - 2 c], or 0                   p = K / 2
//
// s is 1 in rows that begin at an odd element of memory, and 0 in others, so that what a lane has of C, two outputs, is
// a word of the tensor everywhere: nothing is shuffled between lanes, whatever W is. It changes the band alone, and
// only with the parity of the plane and of the row, which have other taps anyway.
//
//     rows of x    U - 1   U    U + 1   U + 2
//     K = 3  e = 0         1                      one row: half a product
//            e = 1         2      0
//     K = 5  e = 0   4     2      0               U and U + 1, then U - 1: one and a half
//            e = 1         3      1
//     K = 7  e = 0   5     3      1               U - 1 and U, then U + 1 and U + 2
//            e = 1   6     4      2       0
//
// A block walks along D over input planes. Plane z adds taps kd to output plane 2 z + kd - p, in K planes of sums; then
// the first two are complete and stored, and the others move two down. The order of every sum is that of z, rows and
// columns, wherever it lies in a tile: the same bits always.
//
// A value that is not finite makes all outputs of the windows that it lies in not finite (0 x inf is NaN).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../common/launch.h"
#include "../common/mma.cuh"
#include "../common/moments.cuh"
#include "../common/opaque.cuh"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/select_bits.cuh"
#include "../common/shared_load.cuh"
#include "../common/shared_memory.cuh"
#include "strided_planes.cuh"
#include "strided_scatter.h"

namespace mednext_ops::cuda::depthwise_conv3d {

struct ScatterParameters {
    StridedSource source;
    Parameter weight, bias;
    int out_d, out_h, out_w;
    std::int64_t channels;
    const void* add;
    void* output;
    bool begins_odd;    // the output, at an odd element of memory
    bool add_in_words;  // `add` begins as the output does
    Moments<double>* moments;
    ScatterTile tile;
};

template <typename T, int K, StridedFill Fill>
struct StridedScatter {
    using Planes = StridedPlanes<T, Fill != StridedFill::direct, Fill == StridedFill::mapped, 1>;
    static constexpr int kMostThreads = ScatterTile::kMostWarps * kWarpSize;
    static constexpr int kFragments = ScatterTile::kFragments;
    static constexpr int kPadding = K / 2;
    static constexpr int kBefore = K / 2 / 2;  // input rows before that of the pair
    // Input planes before the one that completes an output plane, which reach it too.
    static constexpr int kPlanesBefore = (K - 1) / 2;
    static constexpr int kHeld = K - 2;  // planes of sums from one input plane to the next
    // For sm_80, and sm_86 and sm_89 from the same, the compiler needs a few registers more than for others.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800
    static constexpr int kBlocksPerProcessor = K == 7 ? 2 : 3;
#else
    static constexpr int kBlocksPerProcessor = K == 7 ? 2 : K == 5 ? 3 : 4;
#endif
    // Rows of taps among zeros, so that the band is read without looking at bounds.
    static constexpr int kTapsRow = 24;
    static constexpr int kTapsBegin = 11 - kPadding;

    // The products of a pair of rows: the first input row of each, and how deep it is for row e of the pair.
    static constexpr int kProducts = K == 3 ? 1 : 2;
    static constexpr int first_row(int product) { return K == 7 ? 2 * product - 1 : -product; }
    static constexpr int rows(int product, int e) {
        if (product == 0) return K == 3 && e == 0 ? 1 : 2;
        return e == 0 ? 1 : K == 7 ? 2 : 0;
    }
    static constexpr int most_rows(int product) {
        return rows(product, 0) > rows(product, 1) ? rows(product, 0) : rows(product, 1);
    }

    struct Shared {
        SharedLayout layout;
        SharedArray<unsigned char> planes;
        SharedArray<unsigned char> zeros;  // a plane outside of the volume
        SharedArray<int> kept;             // see StridedPlanes
        SharedArray<int> masks;            // four a thread, fragment and parity of planes: see Outputs
        SharedArray<T> taps;
        SharedArray<Moments<double>> of_warp;

        constexpr explicit Shared(const ScatterLayout& plane)
            : planes(layout.array<unsigned char>(
                  StridedTile::planes(Fill != StridedFill::direct, Fill == StridedFill::mapped) * plane.plane_bytes(),
                  128)),
              zeros(layout.array<unsigned char>(plane.plane_bytes())),
              kept(layout.array<int>(Planes::kKept * kMostThreads)),
              masks(layout.array<int>(2 * kFragments * 4 * kMostThreads)),
              taps(layout.array<T>(K * K * kTapsRow)),
              of_warp(layout.array<Moments<double>>(ScatterTile::kMostWarps)) {}
    };

    // ---- the band ----

    __device__ static void load_taps(const Parameter& weight, std::int64_t channel, T* taps) {
        for (int i = static_cast<int>(threadIdx.x); i < K * K * kTapsRow; i += static_cast<int>(blockDim.x)) {
            const int kw = i % kTapsRow - kTapsBegin;
            const bool some = kw >= 0 && kw < K;
            taps[i] =
                from_float<T>(some ? load_parameter(weight, channel * (K * K * K) + i / kTapsRow * K + kw) : 0.0f);
        }
    }

    // Which rows begin at an odd element of memory: those of row e of a pair in the planes that tap kd reaches. There
    // the row's first output is the second of its word; where a row ends at an odd element, its last one is the first.
    struct OddRows {
        int of_first, of_plane, of_row;

        __device__ OddRows(const ScatterParameters& p, std::int64_t volume) {
            of_row = p.out_w % 2;
            of_plane = p.out_h % 2 * of_row;
            of_first = (p.begins_odd ? 1 : 0) ^ (static_cast<int>(volume % 2) & p.out_d % 2 & of_plane);
        }

        __device__ int operator()(int kd, int e) const {
            return of_first ^ ((kd + kPadding) % 2 != 0 ? of_plane : 0) ^ (e != 0 ? of_row : 0);
        }
        __device__ bool none() const { return (of_first | of_row) == 0; }
    };

    // Lane (g, t) holds columns 2 t and 2 t + 1 of output g: a register for each row of taps.
    struct Band {
        unsigned taps[K][kProducts][2][2];  // kd, product, e, row

        __device__ Band(const T* staged, const OddRows& odd) {
            const int g = static_cast<int>(threadIdx.x % kWarpSize) / 4;
            const int t = static_cast<int>(threadIdx.x % 4);
#pragma unroll
            for (int i = 0; i < K * kProducts * 4; ++i) {
                const int kd = i / (kProducts * 4);
                const int product = i / 4 % kProducts;
                const int e = i / 2 % 2;
                const int row = i % 2;
                if (row >= rows(product, e)) continue;
                const int kh = e + kPadding - 2 * (first_row(product) + row);
                const int kw = g - odd(kd, e) + kPadding + 4 - 4 * t;
                const T* const from = staged + (kd * K + kh) * kTapsRow + kTapsBegin + kw;
                taps[kd][product][e][row] = pack(from[0], from[-2]);
            }
        }
    };

    // ---- multiply ----

    // What all products of a fragment read of an input plane.
    struct Windows {
        unsigned words[kProducts][4];

        __device__ void load(const unsigned char* plane, const int (&window)[2]) {
#pragma unroll
            for (int i = 0; i < kProducts * 4; ++i) {
                const int product = i / 4;
                const int row = i / 2 % 2;
                if (row >= most_rows(product)) continue;
                const int at = (first_row(product) + row + kBefore) * ScatterLayout::kRowBytes;
                words[product][i % 4] = *reinterpret_cast<const unsigned*>(plane + window[i % 2] + at);
            }
        }
    };

    using Sums = float[kFragments][2][4];  // of an output plane: fragment, e

    // Adds taps Begin to End - 1 along D to as many planes of sums.
    template <int Begin, int End>
    __device__ static void multiply(Sums (&sums)[End - Begin], const Windows (&windows)[kFragments], const Band& band) {
#pragma unroll
        for (int i = 0; i < kProducts * (End - Begin) * 2 * kFragments; ++i) {
            const int product = i / ((End - Begin) * 2 * kFragments);
            const int kd = i / (2 * kFragments) % (End - Begin) + Begin;
            const int e = i / kFragments % 2;
            const int f = i % kFragments;
            float (&sum)[4] = sums[kd - Begin][f][e];
            const unsigned (&a)[4] = windows[f].words[product];
            const unsigned (&b)[2] = band.taps[kd][product][e];
            if (rows(product, e) == 2) mma_m16n8k16<T>(sum, a, b);
            if (rows(product, e) == 1) mma_m16n8k8<T>(sum, {a[0], a[1]}, b[0], sum);
        }
    }

    // Plane kd of the sums of K planes, of which those that are held have begun.
    __device__ static void begin(Sums& sums, const Sums (&held)[kHeld], int kd, const float (&bias)[4]) {
#pragma unroll
        for (int i = 0; i < kFragments * 8; ++i) {
            sums[i / 8][i / 4 % 2][i % 4] =
                kd < kHeld ? held[kd < kHeld ? kd : 0][i / 8][i / 4 % 2][i % 4] : bias[i % 4];
        }
    }

    // ---- store ----

    // Where a lane's outputs belong: words of two, one a fragment, row e and half (row g or g + 8 of C). What of each
    // word there is in the volume, a half or all of it, are masks in shared memory.
    struct Outputs {
        unsigned place[kFragments][2];  // of the even row of the pair, in bytes from the begin of the plane
        int row[2][2];  // from there to row e of the first or second plane that are stored together, in elements

        template <typename Element>
        __device__ Element* word(Element* plane, int which, int f, int i) const {
            using Byte = std::conditional_t<std::is_const_v<Element>, const unsigned char, unsigned char>;
            return reinterpret_cast<Element*>(reinterpret_cast<Byte*>(plane + row[which][i / 2]) + place[f][i % 2]);
        }
    };

    __device__ static const int* masks_of(const int* masks, int which, int f) {
        return masks + 4 * ((which * kFragments + f) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x));
    }

    // What is added to a plane. Elements one by one where not all words are whole, and at multiples of four bytes.
    __device__ static void load_added(unsigned (&added)[kFragments][4], const T* plane, const Outputs& outputs,
                                      int which, const int* masks, bool in_words, bool none_odd) {
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
            int mask[4];
            load_shared_again(mask, masks_of(masks, which, f));
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                added[f][i] = 0;
                const T* const from = outputs.word(plane, which, f, i);
                if (in_words && mask[i] == -1) added[f][i] = *reinterpret_cast<const unsigned*>(from);
            }
            if (in_words && none_odd) continue;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const T* const from = outputs.word(plane, which, f, i);
                T elements[2];
                std::memcpy(elements, &added[f][i], sizeof(elements));
                if (in_words && mask[i] == -1) continue;
                if ((mask[i] & 1) != 0) elements[0] = from[0];
                if (mask[i] < 0) elements[1] = from[1];
                added[f][i] = pack(elements[0], elements[1]);
            }
        }
    }

    __device__ static void add(Sums& sums, const unsigned (&added)[kFragments][4]) {
#pragma unroll
        for (int i = 0; i < kFragments * 4; ++i) {
            float (&sum)[4] = sums[i / 4][i / 2 % 2];
            float more[2];
            unpack<T>(added[i / 4][i % 4], more[0], more[1]);
            sum[2 * (i % 2)] += more[0];
            sum[2 * (i % 2) + 1] += more[1];
        }
    }

    // Stores a plane; `words` are what was stored.
    __device__ static void store(const Sums& sums, T* plane, const Outputs& outputs, int which, const int* masks,
                                 const OddRows& odd, unsigned (&words)[kFragments][4]) {
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
            int mask[4];
            load_shared_again(mask, masks_of(masks, which, f));
            T* to[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float (&sum)[4] = sums[f][i / 2];
                words[f][i] = round_pair<T>(sum[2 * (i % 2)], sum[2 * (i % 2) + 1]);
                to[i] = outputs.word(plane, which, f, i);
                if (mask[i] == -1) *reinterpret_cast<unsigned*>(to[i]) = words[f][i];
            }
            if (odd.none()) continue;
            const auto store_first = [&](int i) {
                if (mask[i] == 0xffff) to[i][0] = element(words[f][i]);
            };
            const auto store_second = [&](int i) {
                if (mask[i] == ~0xffff) to[i][1] = element(words[f][i] >> 16);
            };
            const bool second = odd(which, 0) != 0;  // and the other row the other half, where W is odd
            if (second || odd.of_row == 0) {
                store_second(0);
                store_second(1);
                store_first(2);
                store_first(3);
            }
            if (!second || odd.of_row == 0) {
                store_first(0);
                store_first(1);
                store_second(2);
                store_second(3);
            }
        }
    }

    // The first element of a word.
    __device__ static T element(unsigned word) {
        const auto bits = static_cast<std::uint16_t>(word);
        T result;
        std::memcpy(&result, &bits, sizeof(result));
        return result;
    }

    // ---- statistics ----

    // Of a step: the sum of what was stored less the pivot, and of its squares.
    struct StepSums {
        float sum = 0.0f;
        float squares = 0.0f;

        // What of the words is in the volume; the pivot instead of the rest, which adds nothing.
        __device__ void add(unsigned pivot, const unsigned (&words)[kFragments][4], int which, const int* masks) {
            float pivots[2];
            unpack<T>(pivot, pivots[0], pivots[1]);
#pragma unroll
            for (int f = 0; f < kFragments; ++f) {
                int mask[4];
                load_shared_again(mask, masks_of(masks, which, f));
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const unsigned word = select_bits(static_cast<unsigned>(mask[i / 2]), words[f][i / 2], pivot);
                    float values[2];
                    unpack<T>(word, values[0], values[1]);
                    const float deviation = values[i % 2] - pivots[0];
                    sum += deviation;
                    squares = fmaf(deviation, deviation, squares);
                }
            }
        }
    };
};

template <typename T, int K, StridedFill Fill>
__global__ void __launch_bounds__(StridedScatter<T, K, Fill>::kMostThreads,
                                  StridedScatter<T, K, Fill>::kBlocksPerProcessor)
    strided_scatter(const __grid_constant__ ScatterParameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    __trap();  // the planner does not come here
#else
    using Core = StridedScatter<T, K, Fill>;
    constexpr int kFragments = Core::kFragments;
    constexpr int kPadding = Core::kPadding;

    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const ScatterTile& tile = p.tile;
    const std::int64_t volume = blockIdx.x / tile.tiles();  // n * C + c
    const int number = static_cast<int>(blockIdx.x % tile.tiles());
    const int window0 = number % tile.tiles_w * tile.windows;
    const int pair0 = number / tile.tiles_w % tile.tiles_h * tile.pairs;
    // The input planes that complete this block's outputs, two planes each.
    const int z0 = kPadding / 2 + number / tile.tiles_w / tile.tiles_h * tile.depth;
    const int z1 = min(z0 + tile.depth, (p.out_d - 1 + kPadding) / 2 + 1);

    const ScatterLayout layout = tile.layout(K);
    const typename Core::Shared shared(layout);
    typename Core::Planes planes(p.source, layout, shared_array(shared.planes), shared_array(shared.kept), volume,
                                 pair0 - Core::kBefore, 4 * window0 - 4, z0 - Core::kPlanesBefore, z1);
    T* const taps = shared_array(shared.taps);
    planes.clear(volume);
    unsigned char* const zeros = shared_array(shared.zeros);
    for (int i = static_cast<int>(threadIdx.x); i < layout.plane_bytes() / 16; i += static_cast<int>(blockDim.x)) {
        reinterpret_cast<Vector<unsigned, 4>*>(zeros)[i] = Vector<unsigned, 4>{};
    }
    Core::load_taps(p.weight, volume % p.channels, taps);
    __syncthreads();
    planes.start();
    const typename Core::OddRows odd(p, volume);
    const typename Core::Band band(taps, odd);

    // Where each fragment's windows lie in a plane of the input, and its outputs in one of the output.
    const int windows = tile.pairs * tile.windows;
    int window[kFragments][2];
    typename Core::Outputs outputs;
    int* const masks = shared_array(shared.masks);
#pragma unroll
    for (int i = 0; i < 4; ++i) outputs.row[i / 2][i % 2] = i % 2 * p.out_w - odd(i / 2, i % 2);
#pragma unroll
    for (int i = 0; i < kFragments * 2; ++i) {
        const int f = i / 2;
        const int number_of_window = (warp * kFragments + f) * ScatterTile::kWindows + i % 2 * 8 + lane / 4;
        const int at = min(number_of_window, windows - 1);
        const int pair = at / tile.windows;
        const int h = 2 * (pair0 + pair);
        const int w = 8 * (window0 + at % tile.windows) + 2 * (lane % 4);
        window[f][i % 2] = pair * ScatterLayout::kRowBytes + 8 * (at % tile.windows) + 4 * (lane % 4) + 4;
        outputs.place[f][i % 2] = static_cast<unsigned>(h * p.out_w + w) * static_cast<unsigned>(sizeof(T));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int begin = w - odd(j / 2, j % 2);
            const bool some = number_of_window < windows && h + j % 2 < p.out_h;
            const int mask =
                (some && begin >= 0 && begin < p.out_w ? 0xffff : 0) | (some && begin + 1 < p.out_w ? ~0xffff : 0);
            masks[Core::masks_of(masks, j / 2, f) - masks + 2 * (j % 2) + i % 2] = mask;
        }
    }

    const std::int64_t plane_size = static_cast<std::int64_t>(p.out_h) * p.out_w;
    const T* const add = static_cast<const T*>(p.add);
    T* const output = static_cast<T*>(p.output);
    ShiftedSums running;
    unsigned pivot = 0;
    bool begun = false;

    // Four registers of it that a product reads as they are: or they are made again for each.
    float bias[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        bias[i] = p.bias.data == nullptr ? 0.0f : load_parameter(p.bias, volume % p.channels);
        make_opaque(bias[i]);
    }
    typename Core::Sums held[Core::kHeld];
#pragma unroll
    for (int kd = 0; kd < Core::kHeld; ++kd) Core::begin(held[kd], held, Core::kHeld, bias);
#pragma unroll 1
    for (int z = z0 - Core::kPlanesBefore; z < z1; ++z) {
        const int first = 2 * z - kPadding;  // of the planes that are complete now
        const std::int64_t at = (volume * p.out_d + first) * plane_size;
        const auto completes = [&](int which) {
            return z >= z0 && static_cast<unsigned>(first + which) < static_cast<unsigned>(p.out_d);
        };
        unsigned added[2][kFragments][4];
        const auto load_added = [&](int which) {
            if (p.add == nullptr || !completes(which)) return;
            Core::load_added(added[which], add + at + which * plane_size, outputs, which, masks, p.add_in_words,
                             odd.none());
        };
        load_added(0);  // on its way during the products, the other one during the store
        const unsigned char* plane = planes.next();
        if (!planes.has(z)) plane = zeros;
        typename Core::Windows of_plane[kFragments];
#pragma unroll
        for (int f = 0; f < kFragments; ++f) of_plane[f].load(plane, window[f]);
        // First what is complete, which leaves its registers to those that move down.
        if (z >= z0) {
            typename Core::Sums complete[2];
            Core::begin(complete[0], held, 0, bias);
            Core::begin(complete[1], held, 1, bias);
            Core::template multiply<0, 2>(complete, of_plane, band);
            typename Core::StepSums of_step;
            load_added(1);
#pragma unroll
            for (int which = 0; which < 2; ++which) {
                if (!completes(which)) continue;
                if (p.add != nullptr) Core::add(complete[which], added[which]);
                unsigned words[kFragments][4];
                Core::store(complete[which], output + at + which * plane_size, outputs, which, masks, odd, words);
                if (p.moments == nullptr) continue;
                if (!begun) pivot = words[0][0] << 16 | (words[0][0] & 0xffff);
                begun = true;
                of_step.add(pivot, words, which, masks);
            }
            if (p.moments != nullptr) running.add_sums(of_step.sum, of_step.squares);
        }
#pragma unroll
        for (int kd = 2; kd < K; ++kd) Core::begin(held[kd - 2], held, kd, bias);
        Core::template multiply<2, K>(held, of_plane, band);
    }
    planes.finish();

    if (p.moments != nullptr) {
        float pivots[2];
        unpack<T>(pivot, pivots[0], pivots[1]);
        running.pivot = pivots[0];
        // Input plane z completes 2 z - p, which may lie before the volume, and the next plane, which may lie behind.
        const int planes_stored[2] = {z1 - z0 - (2 * z0 < kPadding ? 1 : 0),
                                      z1 - z0 - (2 * z1 - 1 - kPadding < p.out_d ? 0 : 1)};
        std::int64_t counted = 0;
#pragma unroll
        for (int i = 0; i < 2 * kFragments * 4; ++i) {
            const int mask = Core::masks_of(masks, i / (kFragments * 4), i / 4 % kFragments)[i % 4];
            counted += static_cast<std::int64_t>(planes_stored[i / (kFragments * 4)]) * (__popc(mask) / 16);
        }
        store_moments(running.moments(counted), shared_array(shared.of_warp), p.moments + blockIdx.x);
    }
#endif
}

template <typename T, int K, StridedFill Fill>
cudaError_t launch_scatter_instance(const ScatterParameters& p, unsigned blocks, cudaStream_t stream) {
    const typename StridedScatter<T, K, Fill>::Shared shared(p.tile.layout(K));
    return launch<strided_scatter<T, K, Fill>>(
        {blocks, static_cast<unsigned>(p.tile.warps * kWarpSize), shared.layout.bytes(), stream}, p);
}

// The instances of a kernel size, each size in a file of its own.
template <int K>
cudaError_t launch_scatter_of_size(ScalarType type, const ScatterParameters& p, unsigned blocks, cudaStream_t stream) {
    const auto of_type = [&]<typename T>(const T*) {
        if (p.source.affine.given()) return launch_scatter_instance<T, K, StridedFill::mapped>(p, blocks, stream);
        return p.tile.direct ? launch_scatter_instance<T, K, StridedFill::direct>(p, blocks, stream)
                             : launch_scatter_instance<T, K, StridedFill::staged>(p, blocks, stream);
    };
    return type == ScalarType::float16 ? of_type(static_cast<const __half*>(nullptr))
                                       : of_type(static_cast<const __nv_bfloat16*>(nullptr));
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
