// The inverted bottleneck forward as two matrix products a tile of voxels, for fp16 and bf16, sm_80 and newer.
//
// A warp works alone: its tile is 32 voxels (16 of 128 outputs) and all channels, and it meets the others of its
// block only while the weights are loaded, once. Voxels are the rows of both products, so that what the first one
// leaves in the registers is what the second one takes, as in flash attention. The hidden tensor exists nowhere else.
//
//                 C                        16                          O
//           +-----------+               +------+                 +-----------+
//     32    | n = a x+b |  W1 chunk^T   |  h   |   W2 chunk^T    |  output   |     32 voxels = 2 fragments of 16 rows
//   voxels  |           |  [C, 16]  =>  | gelu |   [16, O]   =>  |  += ...   |
//           +-----------+               +------+                 +-----------+
//             registers                   registers                registers      for each chunk of 16 hidden channels
//
// In shared memory a warp has two windows of 32 voxels, [c][v] and [o][v], rows as they lie in memory:
//   - the input of its next tile, on its way since the fragments of this one were read;
//   - the residual, into whose place the output goes, transposed by movmatrix, to be stored by whole 16-byte pieces.
// In channels_last_3d the windows are [v][c] and [v][o], as the fragments want them: nothing is transposed.
//
// Compiled for each architecture: what is compiled for sm_80 spills on sm_120.
#pragma once

#include <cstdint>

#include "../common/copy.cuh"
#include "../common/gelu.cuh"
#include "../common/launch.h"
#include "../common/mma.cuh"
#include "../common/shared_memory.cuh"
#include "forward.h"
#include "voxel_rows.cuh"
#include "weights.cuh"

namespace mednext_ops::cuda::inverted_bottleneck {

struct ForwardParameters {
    Bottleneck bottleneck;
    const void* residual;
    void* output;
    const float* gain;
    ForwardPlan plan;
    bool vectors;  // rows of all volumes, or voxels where channels are last, begin at multiples of 16 bytes
};

// Scale and shift of the norm for two neighbouring channels.
struct alignas(16) AffinePair {
    float scale[2];
    float shift[2];
};

template <typename T, int C, int O, bool ChannelsLast>
struct Forward {
    static constexpr int kVoxels = ForwardPlan::voxels(O);
    using Rows = VoxelRows<T, kVoxels>;
    static constexpr int kPitch = Rows::kPitch;  // of a row of voxels
    static constexpr int kFragments = kVoxels / 16;
    static constexpr int kChunk = 16;                  // hidden channels
    static constexpr int kRowsAtOnce = C > O ? 2 : 1;  // of a lane, where they are shifted: more spill (sm_120)
    static constexpr int kMaxWarps = ForwardPlan::max_warps(C, O);
    static constexpr int kBlocksPerProcessor = ForwardPlan::blocks_per_processor(C, O);

    struct Shared {
        SharedLayout layout;
        SharedArray<T> expand, compress;
        SharedArray<AffinePair> affine;
        SharedArray<float> expand_bias, compress_bias;
        SharedArray<T> windows;

        constexpr Shared(int hidden, int warps)
            : expand(layout.array<T>(hidden * pitch_of(C))),
              compress(layout.array<T>(O * pitch_of(hidden))),
              affine(layout.array<AffinePair>(C / 2)),
              expand_bias(layout.array<float>(hidden)),
              compress_bias(layout.array<float>(O)),
              windows(layout.array<T>(warps * (window(C) + window(O)))) {}
    };

    // Elements of a window.
    static constexpr int window(int channels) {
        return ChannelsLast ? kVoxels * pitch_of(channels) : channels * kPitch;
    }

    // Calls `function(place in the window, place in the volume, how many channels are there)` for each eight channels
    // of a voxel that are this lane's, where channels are last. Beyond the volume there are none.
    template <int Rows, typename Function>
    __device__ static void for_each_piece(int rows, std::int64_t voxels, std::int64_t tile, Function&& function) {
        constexpr int kOfVoxel = Rows / 8;
#pragma unroll 1
        for (int first = 0; first < kVoxels * kOfVoxel; first += kWarpSize) {
            const int i = first + static_cast<int>(threadIdx.x) % kWarpSize;
            const int channel = i % kOfVoxel * 8;
            const std::int64_t voxel = tile * kVoxels + i / kOfVoxel;
            function(i / kOfVoxel * pitch_of(Rows) + channel, voxel * rows + channel,
                     voxel < voxels ? rows - channel : 0);
        }
    }

    // Starts to load a tile of a volume of one sample into a window.
    template <int Channels>
    __device__ static void fetch(const Rows& rows, const T* volume, int channels, std::int64_t tile, bool vectors,
                                 T* window) {
        if (volume != nullptr && tile * kVoxels < rows.voxels) {
            if constexpr (ChannelsLast) {
                for_each_piece<Channels>(channels, rows.voxels, tile, [&](int to, std::int64_t from, int left) {
                    if (vectors) {
                        copy_async<16>(window + to, left > 0 ? volume + from : volume, left > 0 ? 16 : 0);
                    } else {
#pragma unroll 1
                        for (int j = 0; j < 8; ++j) window[to + j] = j < left ? volume[from + j] : from_float<T>(0.0f);
                    }
                });
            } else {
                rows.fetch(volume, channels, tile * kVoxels, vectors, window);
            }
        }
        copy_async_commit();
    }

    // A window that the warp has asked for, when only the `Newest` groups after it may still be on their way.
    template <int Newest>
    __device__ static void wait(const Rows& rows, const T* volume, int channels, bool vectors, T* window) {
        copy_async_wait<Newest>();
        __syncwarp();
        if constexpr (!ChannelsLast) {
            if (vectors || volume == nullptr) return;
            rows.template align<kRowsAtOnce>(volume, channels, window);
            __syncwarp();
        }
    }

    // The normalised input as fragments: rows are voxels.
    __device__ static void load_normalized(const T* window, const AffinePair* affine,
                                           unsigned (&a)[C / 16][kFragments][4]) {
        const int t = threadIdx.x % 4;
        const T* const place = ChannelsLast ? quarter(window, pitch_of(C), true) : quarter(window, kPitch, false);
#pragma unroll
        for (int k = 0; k < C / 16; ++k) {
#pragma unroll
            for (int m = 0; m < kFragments; ++m) {
                const int first = ChannelsLast ? 16 * k + 16 * m * pitch_of(C) : 16 * k * kPitch + 16 * m;
                ldmatrix<4, !ChannelsLast>(a[k][m], place + first);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const AffinePair map = affine[8 * k + 4 * half + t];
#pragma unroll
                for (int i = 0; i < 2 * kFragments; ++i) {
                    unsigned& pair = a[k][i / 2][2 * half + i % 2];
                    float low;
                    float high;
                    unpack<T>(pair, low, high);
                    pair = pack(from_float<T>(fmaf(map.scale[0], low, map.shift[0])),
                                from_float<T>(fmaf(map.scale[1], high, map.shift[1])));
                }
            }
        }
    }

    // One chunk of hidden channels, as fragments of the second product.
    __device__ static void expand(const unsigned (&a)[C / 16][kFragments][4], const T* weight, const float* bias,
                                  unsigned (&hidden)[kFragments][4]) {
        const int t = threadIdx.x % 4;
        float acc[kFragments][2][4];
#pragma unroll
        for (int k = 0; k < C / 16; ++k) {
            unsigned b[4];
            ldmatrix(b, quarter(weight, pitch_of(C), false) + 16 * k);
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const unsigned half[2] = {b[2 * n], b[2 * n + 1]};
                const auto pair = *reinterpret_cast<const Vector<float, 2>*>(bias + 8 * n + 2 * t);
                const float begin[4] = {pair.element[0], pair.element[1], pair.element[0], pair.element[1]};
#pragma unroll
                for (int m = 0; m < kFragments; ++m) {
                    if (k == 0) {
                        mma_m16n8k16<T>(acc[m][n], a[k][m], half, begin);
                    } else {
                        mma_m16n8k16<T>(acc[m][n], a[k][m], half);
                    }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < kFragments; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* const pair = acc[m][i / 2] + 2 * (i % 2);
                hidden[m][i] = pack(from_float<T>(gelu<T, true>(pair[0])), from_float<T>(gelu<T, true>(pair[1])));
            }
        }
    }

    // acc += hidden times a chunk of the compression's weight.
    __device__ static void compress(const unsigned (&hidden)[kFragments][4], const T* weight, int pitch,
                                    float (&acc)[kFragments][O / 8][4]) {
#pragma unroll
        for (int n = 0; n < O / 8; n += 2) {
            unsigned b[4];
            ldmatrix(b, quarter(weight + 8 * n * pitch, pitch, false));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const unsigned operand[2] = {b[2 * half], b[2 * half + 1]};
#pragma unroll
                for (int m = 0; m < kFragments; ++m) mma_m16n8k16<T>(acc[m][n + half], hidden[m], operand);
            }
        }
    }

    // Adds the residual that lies in the window, and leaves the output there.
    __device__ static void finish(const float (&acc)[kFragments][O / 8][4], bool residual, T* window) {
        const int lane = threadIdx.x % kWarpSize;
        const int g = lane / 4;
        const int t = lane % 4;
        if constexpr (ChannelsLast) {
#pragma unroll
            for (int i = 0; i < 2 * kFragments * (O / 8); ++i) {  // eight channels, fragment, its half of the rows
                if (i % (2 * kFragments) == 0) __syncwarp();      // else all of the residual is read first, and spills
                const float* const sums = acc[i / 2 % kFragments][i / (2 * kFragments)] + 2 * (i % 2);
                const int column = i / (2 * kFragments) * 8 + 2 * t;
                T* const place = window + (i / 2 % kFragments * 16 + i % 2 * 8 + g) * pitch_of(O) + column;
                auto& pair = *reinterpret_cast<unsigned*>(place);
                float low = 0.0f;
                float high = 0.0f;
                if (residual) unpack<T>(pair, low, high);
                pair = pack(from_float<T>(sums[0] + low), from_float<T>(sums[1] + high));
            }
            return;
        }
#pragma unroll
        for (int n = 0; n < O / 8; n += 2) {
#pragma unroll
            for (int m = 0; m < kFragments; ++m) {
                T* const block = window + 8 * n * kPitch + 16 * m;
                unsigned added[4] = {};
                if (residual) ldmatrix<4, true>(added, quarter(block, kPitch, false));
                __syncwarp();
#pragma unroll
                for (int i = 0; i < 4; ++i) {  // rows 8 (i % 2) of the fragment, columns 8 (i / 2) of the pair
                    const float* sums = acc[m][n + i / 2] + 2 * (i % 2);
                    float low;
                    float high;
                    unpack<T>(added[i], low, high);
                    const unsigned rounded = pack(from_float<T>(sums[0] + low), from_float<T>(sums[1] + high));
                    const unsigned of_channel = transposed(rounded);  // channel g, voxels 2t and 2t + 1
                    *reinterpret_cast<unsigned*>(block + (8 * (i / 2) + g) * kPitch + 8 * (i % 2) + 2 * t) = of_channel;
                }
            }
        }
    }

    __device__ static void store(const Rows& rows, const T* window, int channels, std::int64_t tile, bool vectors,
                                 T* volume) {
        if constexpr (ChannelsLast) {
            for_each_piece<O>(channels, rows.voxels, tile, [&](int from, std::int64_t to, int left) {
                const auto eight = *reinterpret_cast<const Vector<T, 8>*>(window + from);
                if (vectors) {
                    if (left > 0) *reinterpret_cast<Vector<T, 8>*>(volume + to) = eight;
                } else {
#pragma unroll 1
                    for (int j = 0; j < 8; ++j) {
                        if (j < left) volume[to + j] = window[from + j];
                    }
                }
            });
            return;
        }
        rows.store(window, channels, tile * kVoxels, vectors, volume);
    }
};

// The norm of a sample as scale and shift; zero where channels are filled up.
__device__ inline void load_affine(const Bottleneck& p, std::int64_t sample, AffinePair* affine, int filled) {
    for (int i = threadIdx.x; i < filled; i += blockDim.x) {
        const ChannelNorm map = i < p.extents.channels ? norm_of(p, sample, i) : ChannelNorm{};
        affine[i / 2].scale[i % 2] = map.scale;
        affine[i / 2].shift[i % 2] = map.shift;
    }
}

// The compression's weight and bias. With GRN it sees gain * h + beta: the gain goes into the weight, what the weight
// makes of beta into the bias.
template <typename T>
__device__ inline void load_compression(const ForwardParameters& p, std::int64_t sample, T* weight, float* bias,
                                        int filled_hidden, int filled_outputs) {
    const auto hidden = static_cast<int>(p.bottleneck.extents.hidden);
    const auto outputs = static_cast<int>(p.bottleneck.extents.outputs);
    const float* const gain = p.gain == nullptr ? nullptr : p.gain + sample * hidden;
    load_matrix(p.bottleneck.compress_weight, outputs, hidden, weight, filled_outputs, filled_hidden, gain);
    load_vector(p.bottleneck.compress_bias, outputs, bias, filled_outputs);
    if (gain == nullptr) return;
    for (int o = threadIdx.x; o < outputs; o += blockDim.x) {  // a thread's own element of the bias
        float sum = bias[o];
        for (int h = 0; h < hidden; ++h) {
            const float value = load_parameter(p.bottleneck.compress_weight, std::int64_t{o} * hidden + h);
            sum = fmaf(value, load_parameter(p.bottleneck.grn_beta, h), sum);
        }
        bias[o] = sum;
    }
}

template <typename T, int C, int O, bool ChannelsLast>
__global__ void __launch_bounds__(Forward<T, C, O, ChannelsLast>::kMaxWarps* kWarpSize,
                                  Forward<T, C, O, ChannelsLast>::kBlocksPerProcessor)
    fused_forward(const __grid_constant__ ForwardParameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    __trap();  // the planner does not come here
#else
    using Core = Forward<T, C, O, ChannelsLast>;
    const Extents& extents = p.bottleneck.extents;
    const int channels = static_cast<int>(extents.channels);
    const int outputs = static_cast<int>(extents.outputs);
    const int real_hidden = static_cast<int>(extents.hidden);
    const int hidden = p.plan.hidden;
    const std::int64_t sample = blockIdx.x / p.plan.parts;
    const int part = blockIdx.x % p.plan.parts;
    const int warp = threadIdx.x / kWarpSize;

    const typename Core::Shared shared(hidden, p.plan.warps);
    T* const expand = shared_array(shared.expand);
    T* const compress = shared_array(shared.compress);
    AffinePair* const affine = shared_array(shared.affine);
    float* const expand_bias = shared_array(shared.expand_bias);
    float* const compress_bias = shared_array(shared.compress_bias);
    T* const input_window = shared_array(shared.windows) + warp * (Core::window(C) + Core::window(O));
    T* const output_window = input_window + Core::window(C);

    const T* const input = static_cast<const T*>(p.bottleneck.input) + sample * channels * extents.voxels;
    const T* const residual =
        p.residual == nullptr ? nullptr : static_cast<const T*>(p.residual) + sample * outputs * extents.voxels;
    T* const output = static_cast<T*>(p.output) + sample * outputs * extents.voxels;
    const int step = p.plan.parts * p.plan.warps;
    const int first = part * p.plan.warps + warp;
    const typename Core::Rows rows(threadIdx.x % kWarpSize, kWarpSize, extents.voxels);  // a warp's windows are its own
    Core::template fetch<C>(rows, input, channels, first, p.vectors, input_window);
    Core::template fetch<O>(rows, residual, outputs, first, p.vectors, output_window);
    if constexpr (!ChannelsLast) {  // else whole voxels are loaded, zeros where they are filled up
        for (int i = channels * Core::kPitch + threadIdx.x % kWarpSize; i < C * Core::kPitch; i += kWarpSize) {
            input_window[i] = from_float<T>(0.0f);  // what is filled up is multiplied with zeros, and must be finite
        }
    }

    load_matrix(p.bottleneck.expand_weight, real_hidden, channels, expand, hidden, C);
    load_compression(p, sample, compress, compress_bias, hidden, O);
    load_affine(p.bottleneck, sample, affine, C);
    load_vector(p.bottleneck.expand_bias, real_hidden, expand_bias, hidden);
    __syncthreads();

    const int compress_pitch = pitch_of(hidden);
    for (int tile = first; tile < p.plan.tiles; tile += step) {
        // The residual may still be on its way.
        Core::template wait<1>(rows, input, channels, p.vectors, input_window);
        unsigned a[C / 16][Core::kFragments][4];
        Core::load_normalized(input_window, affine, a);
        __syncwarp();
        Core::template fetch<C>(rows, input, channels, tile + step, p.vectors, input_window);

        float acc[Core::kFragments][O / 8][4];
#pragma unroll
        for (int n = 0; n < O / 8; ++n) {
            const auto pair = *reinterpret_cast<const Vector<float, 2>*>(compress_bias + 8 * n + threadIdx.x % 4 * 2);
#pragma unroll
            for (int i = 0; i < 4 * Core::kFragments; ++i) acc[i / 4][n][i % 4] = pair.element[i % 2];
        }
        for (int chunk = 0; chunk < hidden; chunk += Core::kChunk) {
            unsigned h[Core::kFragments][4];
            Core::expand(a, expand + chunk * pitch_of(C), expand_bias + chunk, h);
            Core::compress(h, compress + chunk, compress_pitch, acc);
        }

        // The next input may still be on its way.
        Core::template wait<1>(rows, residual, outputs, p.vectors, output_window);
        Core::finish(acc, residual != nullptr, output_window);
        __syncwarp();
        Core::store(rows, output_window, outputs, tile, p.vectors, output);
        __syncwarp();
        Core::template fetch<O>(rows, residual, outputs, tile + step, p.vectors, output_window);
    }
    copy_async_wait<0>();
#endif
}

template <int C, int O>
cudaError_t launch_forward_of_size(ScalarType type, const ForwardParameters& p, unsigned blocks, cudaStream_t stream) {
    const auto launch_kind = [&]<typename T, bool ChannelsLast>() {
        const typename Forward<T, C, O, ChannelsLast>::Shared shared(p.plan.hidden, p.plan.warps);
        const auto threads = static_cast<unsigned>(p.plan.warps * kWarpSize);
        return launch<fused_forward<T, C, O, ChannelsLast>>({blocks, threads, shared.layout.bytes(), stream}, p);
    };
    const auto launch_type = [&]<typename T>() {
        if (p.bottleneck.channels_last) return launch_kind.template operator()<T, true>();
        if constexpr (C <= ForwardPlan::kMostContiguousChannels && O <= ForwardPlan::kMostContiguousChannels) {
            return launch_kind.template operator()<T, false>();
        }
        return cudaErrorInvalidValue;  // the planner does not come here
    };
    return type == ScalarType::float16 ? launch_type.template operator()<__half>()
                                       : launch_type.template operator()<__nv_bfloat16>();
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
