// A depthwise convolution as matrix products whose band covers rows as well as columns: the core for fp16 and bf16,
// NCDHW, stride 1, where the copy engine brings the planes (sm_90 and newer). docs/kernels/planar_convolution.md counts
// what it costs.
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
//
// A block walks along D as in banded_convolution.cuh: the sums of KD output planes lie in a ring of registers; the code
// of a step exists once a place. No barrier of the block in the walk: a warp waits for its plane, reads it, says so,
// and goes on; the warps take turns at asking for planes further on (banded_weight_gradient.cuh). A gradient that is
// not written out (Mapped) is computed by all warps into planes of its own, a step ahead of its use.
//
// The order of every sum is that of the pairs of rows and of the planes: the same bits always. A value that is not
// finite makes the patches whose windows it lies in not finite (0 x inf is NaN): up to 7 voxels along W, 6 along H.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/launch.h"
#include "../common/mma.cuh"
#include "../common/moments.cuh"
#include "../common/opaque.cuh"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "../common/tma.cuh"
#include "planar_convolution.h"
#include "ring_of_places.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

struct PlanarParameters {
    CUtensorMap box;         // of the input
    CUtensorMap box_output;  // of affine.output
    AffineGradient affine;
    int in_d, in_h, in_w;
    Parameter weight, bias;
    bool mirrored;  // the weight's taps in reverse: a scatter
    int kernel_w;
    int pad_d, pad_h;
    int out_d, out_h, out_w;
    std::int64_t channels;
    const void* add;
    void* output;
    Moments<double>* moments;
    PlanarTile tile;
};

template <typename T, int KD, int KH, int Fragments, bool Mapped>
struct Planar {
    static constexpr int kFragments = Fragments;
    static constexpr int kMaxThreads = PlanarTile::kMostWarps * kWarpSize;
#ifdef __CUDA_ARCH__
    static constexpr int kArchitecture = __CUDA_ARCH__ / 10;
#else
    static constexpr int kArchitecture = 90;
#endif
    static constexpr int kResident = PlanarTile::resident_blocks(KD, KH, Fragments, Mapped, kArchitecture);
    static constexpr int kBlocksPerProcessor = kResident == 0 ? 1 : kResident;
    static constexpr bool kChosen = kArchitecture >= 90 && kResident > 0;
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
    static constexpr int kAhead = PlanarTile::kAhead;
    static constexpr int kOperands = Mapped ? PlanarTile::kOperands : 0;

    // The affine map of a volume. In shared memory: it is needed once a step, and registers are few.
    struct alignas(16) Map {
        float scale, slope, offset, unused;

        __device__ unsigned operator()(unsigned grads, unsigned outputs) const {
            float grad[2];
            float output[2];
            unpack<T>(grads, grad[0], grad[1]);
            unpack<T>(outputs, output[0], output[1]);
            return round_pair<T>(fmaf(scale, grad[0], fmaf(slope, output[0], offset)),
                                 fmaf(scale, grad[1], fmaf(slope, output[1], offset)));
        }
    };

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
              taps(layout.array<T>(KD * kTapsRows * kTapsRow)),
              of_warp(layout.array<Moments<double>>(PlanarTile::kMostWarps)) {}
    };

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

    // Zeros to `bytes` bytes of shared memory, a multiple of 16, by the block.
    __device__ static void clear(void* shared, int bytes) {
        auto* const vectors = static_cast<Vector<unsigned, 4>*>(shared);
        for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += static_cast<int>(blockDim.x)) vectors[i] = {};
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

    // ---- planes ----

    // Asks for plane z, which may lie outside of the volume: zeros. One thread.
    __device__ static void ask(const PlanarParameters& p, std::int64_t volume, int w0, int h0, int z,
                               unsigned char* stage, std::uint64_t* full) {
        const auto bytes = static_cast<unsigned>(p.tile.plane_rows(KH) * p.tile.row_bytes(KH));
        mbarrier_arrive_and_expect(full, Mapped ? 2 * bytes : bytes);
        const int at[kTensorRank] = {w0 - PlanarTile::kHalo, h0 - p.pad_h, z, static_cast<int>(volume), 0};
        load_box(stage, &p.box, at, full);
        if constexpr (Mapped) load_box(stage + p.tile.plane_bytes(KH), &p.box_output, at, full);
    }

    // The octets of a plane that are in the volume: the others are made zero once, and left alone then.
    struct Inside {
        int at;  // the first one, in bytes
        int count;
        int octets;  // of a row
        int share;   // a division by `octets` as a product: exact below 65536 / octets

        __device__ Inside(const PlanarParameters& p, int h0, int w0) {
            const int row = max(p.pad_h - h0, 0);
            const int rows = max(min(p.in_h - h0 + p.pad_h, p.tile.plane_rows(KH)) - row, 0);
            const int octet = w0 == 0 ? 1 : 0;
            octets = min((p.in_w - w0 + PlanarTile::kHalo) / 8, p.tile.row_bytes(KH) / 16) - octet;
            at = row * p.tile.row_bytes(KH) + 16 * octet;
            count = rows * octets;
            share = 65536 / octets + 1;
        }
    };

    // A plane of the gradient from the two that came, each thread its own octets; zeros where the plane is outside.
    __device__ static void compute(const PlanarParameters& p, const Inside& inside, const Map* shared_map,
                                   bool is_plane, const unsigned char* stage, unsigned char* operand) {
        using Octet = Vector<unsigned, 4>;
        constexpr int kAtOnce = KH == 7 ? 2 : 3;  // on their way together
        const int row_bytes = p.tile.row_bytes(KH);
        const unsigned char* const outputs = stage + p.tile.plane_bytes(KH);
        const auto threads = static_cast<int>(blockDim.x);
        const Map map = *shared_map;
#pragma unroll 1
        for (int first = static_cast<int>(threadIdx.x); first < inside.count; first += kAtOnce * threads) {
            int at[kAtOnce];
            Octet grad[kAtOnce];
            Octet output[kAtOnce];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int number = min(first + i * threads, inside.count - 1);
                const int row = number * inside.share >> 16;
                at[i] = inside.at + row * row_bytes + 16 * (number - row * inside.octets);
                grad[i] = *reinterpret_cast<const Octet*>(stage + at[i]);
                output[i] = *reinterpret_cast<const Octet*>(outputs + at[i]);
            }
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                Octet both{};
                if (is_plane) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) both.element[e] = map(grad[i].element[e], output[i].element[e]);
                }
                // The last one, where it is reached more than once, is each time the same.
                *reinterpret_cast<Octet*>(operand + at[i]) = both;
            }
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
                a[i] = *reinterpret_cast<const unsigned*>(plane + windows.at[i % 2 % Windows::kCount] +
                                                          (2 * pair + i / 2) * row_bytes);
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

        __device__ unsigned char* at(int f, int i) const { return to[i % Windows::kCount] + f * further; }

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

template <typename T, int KD, int KH, int Fragments, bool Mapped>
__device__ void walk_planes(const PlanarParameters& p) {
    using Core = Planar<T, KD, KH, Fragments, Mapped>;
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
        for (int stage = 0; stage < stages; ++stage) mbarrier_initialise(full + stage, 1);
        for (int i = 0; i < (Mapped ? Core::kOperands : stages); ++i) {
            mbarrier_initialise(read + i, static_cast<unsigned>(warps));
        }
        mbarrier_initialised();
        if constexpr (Mapped) *map = {p.affine.scale[volume], p.affine.slope[volume], p.affine.offset[volume], 0.0f};
        for (int ahead = 0; ahead < stages && z_begin + ahead < z_end; ++ahead) {
            Core::ask(p, volume, w0, h0, z_begin + ahead, planes + ahead * stage_bytes, full + ahead);
        }
    }
    unsigned char* const operands = planes + stages * stage_bytes;
    if constexpr (Mapped) Core::clear(operands, Core::kOperands * plane_bytes);
    Core::clear(taps, KD * Core::kTapsRows * Core::kTapsRow * static_cast<int>(sizeof(T)));
    __syncthreads();
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
    const typename Core::Inside octets(p, h0, w0);
    const auto compute = [&](int z, int place) {
        mbarrier_wait(full + stage.index, stage.parity);
        Core::compute(p, octets, map, static_cast<unsigned>(z) < static_cast<unsigned>(p.in_d),
                      planes + stage.index * stage_bytes, operands + place * plane_bytes);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(read + place);
        stage.advance();
    };
    if constexpr (Mapped) {
        for (int ahead = 0; ahead < Core::kAhead && z_begin + ahead < z_end; ++ahead) compute(z_begin + ahead, ahead);
    }
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
            // All have computed this plane, so all have read what it is made of, and used the operand that the place of
            // the next one had before: kOperands planes ago.
            mbarrier_wait(read + operand.index, operand.parity);
            plane = operands + operand.index * plane_bytes;
            if (turn == 0 && lane == 0 && z + stages < z_end) {
                const int index = stage.index_before(Core::kAhead);
                shared_memory_to_copy_engine();
                Core::ask(p, volume, w0, h0, z + stages, planes + index * stage_bytes, full + index);
            }
            if (z + Core::kAhead < z_end) {
                const int place = operand.index + Core::kAhead;
                compute(z + Core::kAhead, place < Core::kOperands ? place : place - Core::kOperands);
            }
            operand.advance();
        } else {
            mbarrier_wait(full + stage.index, stage.parity);
            plane = planes + stage.index * stage_bytes;
        }
        Core::template multiply<Newest>(acc, band, bias, plane, windows, row_bytes);
        if constexpr (!Mapped) {
            __syncwarp();
            if (lane == 0) mbarrier_arrive(read + stage.index);
            // The plane of a step ago has been read, but by a warp that is far behind.
            if (turn == 0 && lane == 0 && z > z_begin && z - 1 + stages < z_end) {
                const StageCounter before = stage.before();
                mbarrier_wait(read + before.index, before.parity);
                shared_memory_to_copy_engine();
                Core::ask(p, volume, w0, h0, z - 1 + stages, planes + before.index * stage_bytes, full + before.index);
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
        Moments<double>* const of_warp = shared_array(shared.of_warp);
        Moments<double> all = merge_warp(running.moments(static_cast<std::int64_t>(d1 - d0) * __popc(places.inside)));
        if (lane == 0) of_warp[warp] = all;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int other = 1; other < warps; ++other) all = merge(all, of_warp[other]);
            p.moments[blockIdx.x] = all;
        }
    }
}

template <typename T, int KD, int KH, int Fragments, bool Mapped>
__global__ void __launch_bounds__(Planar<T, KD, KH, Fragments, Mapped>::kMaxThreads,
                                  Planar<T, KD, KH, Fragments, Mapped>::kBlocksPerProcessor)
    planar_convolution(const __grid_constant__ PlanarParameters p) {
    if constexpr (Planar<T, KD, KH, Fragments, Mapped>::kChosen) {
        walk_planes<T, KD, KH, Fragments, Mapped>(p);
    } else {
        __trap();  // what the planner does not choose for an architecture is no code there
    }
}

template <typename T, int KD, int KH, int Fragments, bool Mapped>
cudaError_t launch_planar(const PlanarParameters& p, unsigned blocks, cudaStream_t stream) {
    const typename Planar<T, KD, KH, Fragments, Mapped>::Shared shared(p.tile);
    const auto threads = static_cast<unsigned>(p.tile.warps * kWarpSize);
    return launch<planar_convolution<T, KD, KH, Fragments, Mapped>>({blocks, threads, shared.layout.bytes(), stream},
                                                                    p);
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
