// The inverted bottleneck backward as matrix products over tiles of voxels, for fp16 and bf16, sm_80 and newer.
//
// A block walks over tiles of 64 voxels of one sample; each warp owns 32 hidden channels, or 16 of 64 channels. They
// are the rows of the first two products, so that what these leave in the registers is what the sums over the voxels
// take:
//
//     pre  [h, v] = W1 n + b1             W1 [h, c], n [c, v]
//     dh   [h, v] = W2^T g                W2 [o, h], g [o, v]
//     dpre        = dh gelu'(pre),  h = gelu(pre)                         in registers, 16 voxels at a time
//     G    [h, c] += dpre yhat^T          yhat [c, v] = (x - mean) rstd     } accumulators of the warp
//     dW2^T[h, o] += h g^T                                                  } for the whole walk
//     dn   [c, v] = W1^T dpre             dpre from shared memory: here a warp owns 32 channels x 16 voxels
//
// Two barriers a tile: when n and yhat are there, and when dpre is. The input and gradient of the next tile are on
// their way meanwhile. Tiles lie as the volumes do, [c][v] or with channels last [v][c]: ldmatrix transposes where a
// product wants the other, and the last one then has voxels as its rows. A block writes its sums to its own place of
// the workspace; the order of every sum follows from the shape alone.
#pragma once

#include <cstdint>

#include "../common/copy.cuh"
#include "../common/gelu.cuh"
#include "../common/launch.h"
#include "../common/mma.cuh"
#include "../common/opaque.cuh"
#include "../common/shared_memory.cuh"
#include "backward.h"
#include "voxel_rows.cuh"
#include "weights.cuh"

namespace mednext_ops::cuda::inverted_bottleneck {

struct BackwardParameters {
    Bottleneck bottleneck;
    BackwardPlan plan;
    BackwardPass pass;
    bool vectors;  // rows (voxels where channels are last) of all volumes begin at multiples of 16 bytes
};

template <typename T, int C, int O, bool ChannelsLast, int RowsOfWarp>
struct Backward {
    static constexpr int kVoxels = BackwardPlan::kVoxels;
    using Rows = VoxelRows<T, kVoxels>;
    static constexpr int kPitch = Rows::kPitch;  // of a row of voxels
    static constexpr int kRows = RowsOfWarp;
    static constexpr int kFragments = kRows / 16;
    static constexpr int kResidentThreads =
        BackwardPlan::resident_warps(C, O, kRows) * kWarpSize;  // more than a block has

    // How a tile of `Channels` lies: elements from one row to the next, and all of them.
    template <int Channels>
    static constexpr int pitch = ChannelsLast ? pitch_of(Channels) : kPitch;
    static constexpr int tile(int channels) { return ChannelsLast ? kVoxels * pitch_of(channels) : channels * kPitch; }
    // Where `voxel` of `channel` lies in it.
    template <int Channels>
    __device__ static int place(int channel, int voxel) {
        return ChannelsLast ? voxel * pitch<Channels> + channel : channel * kPitch + voxel;
    }

    struct Shared {
        SharedLayout layout;
        SharedArray<T> expand, compress;
        SharedArray<T> input, normalized, unit, grad_output, grad_hidden, grad;
        SharedArray<ChannelNorm> norms;
        SharedArray<float> expand_bias, gain, slope;

        constexpr explicit Shared(int hidden)
            : expand(layout.array<T>(hidden * pitch_of(C))),
              compress(layout.array<T>(O * pitch_of(hidden))),
              input(layout.array<T>(tile(C))),
              normalized(layout.array<T>(tile(C))),
              unit(layout.array<T>(tile(C))),
              grad_output(layout.array<T>(2 * tile(O))),
              grad_hidden(layout.array<T>(hidden * kPitch)),
              grad(layout.array<T>(tile(C))),
              norms(layout.array<ChannelNorm>(C)),
              expand_bias(layout.array<float>(hidden)),
              gain(layout.array<float>(hidden)),
              slope(layout.array<float>(hidden)) {}
    };

    // The sums of a warp over all voxels that it sees.
    struct Sums {
        float normalized[kFragments][C / 8][4] = {};
        float compress[kFragments][O / 8][4] = {};
        // Rows g and g + 8 of a fragment, this lane's voxels: the hidden gradient, or h squared. No pass wants both.
        float rows[kFragments][2] = {};
    };

    // Where channels are last: calls `function(place in the tile, place in the volume, how many channels are there)`
    // for each eight channels of a voxel that are this thread's. Beyond the volume there are none.
    template <int Channels, typename Function>
    __device__ static void for_each_piece(int channels, std::int64_t voxels, std::int64_t begin, Function&& function) {
        constexpr int kPieces = Channels / 8;
        for (int i = threadIdx.x; i < kVoxels * kPieces; i += blockDim.x) {
            const std::int64_t voxel = begin + i / kPieces;
            const int channel = i % kPieces * 8;
            function(i / kPieces * pitch<Channels> + channel, voxel * channels + channel,
                     voxel < voxels ? channels - channel : 0);
        }
    }

    // Starts to load a tile of a volume of one sample.
    template <int Channels>
    __device__ static void fetch(const Rows& rows, const T* volume, int channels, std::int64_t begin, bool vectors,
                                 T* tile) {
        if constexpr (!ChannelsLast) {
            rows.fetch(volume, channels, begin, vectors, tile);
            return;
        }
        for_each_piece<Channels>(channels, rows.voxels, begin, [&](int to, std::int64_t from, int left) {
            if (vectors) {
                copy_async<16>(tile + to, left > 0 ? volume + from : volume, left > 0 ? 16 : 0);
            } else {
                Vector<T, 8> eight;  // all on their way before the first is needed
#pragma unroll
                for (int j = 0; j < 8; ++j) eight.element[j] = j < left ? volume[from + j] : from_float<T>(0.0f);
                *reinterpret_cast<Vector<T, 8>*>(tile + to) = eight;
            }
        });
    }

    // Stores a tile.
    __device__ static void store(const Rows& rows, const T* tile, int channels, std::int64_t begin, bool vectors,
                                 T* volume) {
        if constexpr (!ChannelsLast) {
            rows.store(tile, channels, begin, vectors, volume);
            return;
        }
        for_each_piece<C>(channels, rows.voxels, begin, [&](int from, std::int64_t to, int left) {
            if (vectors) {
                if (left > 0) {
                    *reinterpret_cast<Vector<T, 8>*>(volume + to) = *reinterpret_cast<const Vector<T, 8>*>(tile + from);
                }
            } else {
#pragma unroll 1
                for (int j = 0; j < min(left, 8); ++j) volume[to + j] = tile[from + j];
            }
        });
    }

    // Eight elements through the affine maps of their channels: n and yhat.
    template <typename Norms>
    __device__ static void normalize_eight(const Vector<T, 8>& x, Norms&& norms, T* normalized, T* unit) {
        Vector<T, 8> n;
        Vector<T, 8> y;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const ChannelNorm norm = norms(j);
            const float value = to_float(x.element[j]);
            n.element[j] = from_float<T>(fmaf(norm.scale, value, norm.shift));
            y.element[j] = from_float<T>(fmaf(norm.rstd, value, norm.offset));
        }
        *reinterpret_cast<Vector<T, 8>*>(normalized) = n;
        *reinterpret_cast<Vector<T, 8>*>(unit) = y;
    }

    // n and yhat of the input that has landed. `norms` has zeros where channels are filled up.
    __device__ static void normalize(const Rows& rows, const T* input, const T* volume, int channels, bool vectors,
                                     const ChannelNorm* norms, T* normalized, T* unit) {
        if constexpr (ChannelsLast) {
            for_each_piece<C>(channels, rows.voxels, 0, [&](int at, std::int64_t, int) {
                const auto x = *reinterpret_cast<const Vector<T, 8>*>(input + at);
                normalize_eight(x, [&](int j) { return norms[at % pitch<C> + j]; }, normalized + at, unit + at);
            });
        } else {
            const T* of_row = volume + rows.first_row;
            int at = rows.first * kPitch + rows.column;
            for (int row = rows.first; row < channels; row += rows.step) {
                const auto x = vectors ? *reinterpret_cast<const Vector<T, 8>*>(input + at)
                                       : Rows::eight(input + at, Rows::shift_of(of_row));
                const ChannelNorm norm = norms[row];
                normalize_eight(x, [&](int) { return norm; }, normalized + at, unit + at);
                of_row += rows.row_step;
                at += rows.step * kPitch;
            }
        }
    }

    // acc [32 rows, 16] += left [32, K] right [K, 16]; `right` has K rows, with RightTransposed K columns. With Fresh,
    // acc begins at `begin` of its row: g and g + 8 of a fragment. `left` and `right` are what this lane names for
    // ldmatrix: as_left, as_right.
    template <int K, bool LeftTransposed, bool RightTransposed, bool Fresh>
    __device__ static void multiply(const T* left, int left_pitch, const T* right, int right_pitch,
                                    float (&acc)[kFragments][2][4], const float (&begin)[kFragments][2] = {}) {
#pragma unroll
        for (int k = 0; k < K; k += 16) {
            unsigned b[4];
            ldmatrix<4, !RightTransposed>(b, right + (RightTransposed ? k : k * right_pitch));
#pragma unroll
            for (int f = 0; f < kFragments; ++f) {
                unsigned a[4];
                ldmatrix<4, LeftTransposed>(
                    a, left + (LeftTransposed ? k * left_pitch + 16 * f : 16 * f * left_pitch + k));
                const float rows[4] = {begin[f][0], begin[f][0], begin[f][1], begin[f][1]};
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    const unsigned half[2] = {b[2 * n], b[2 * n + 1]};
                    if (Fresh && k == 0) {
                        mma_m16n8k16<T>(acc[f][n], a, half, rows);
                    } else {
                        mma_m16n8k16<T>(acc[f][n], a, half);
                    }
                }
            }
        }
    }

    // Where this lane's row lies. Opaque: else it is computed again for each use, with more instructions than products.
    __device__ static int opaque_quarter(int pitch, bool rows_first) {
        int place = quarter(pitch, rows_first);
        make_opaque(place);
        return place;
    }

    // pre becomes h, grad (of h) becomes that of pre, its sums are added. With GRN it is adjusted first: gain and slope
    // of the warp's rows. `left` is how many voxels there are from this lane's first one on: beyond, the output's
    // gradient is zero, but not what GRN adds.
    template <bool Adjusted>
    __device__ static void through_gelu(float (&pre)[kFragments][2][4], float (&grad)[kFragments][2][4],
                                        const float* gain, const float* slope, int left, Sums& sums) {
        const int g = threadIdx.x % kWarpSize / 4;
#pragma unroll
        for (int i = 0; i < 8 * kFragments; ++i) {
            float& h = pre[i / 8][i / 4 % 2][i % 4];
            float& d = grad[i / 8][i / 4 % 2][i % 4];
            const float gelu_slope = gelu_with_slope<T, true>(h);
            if constexpr (Adjusted) {
                const int row = i / 8 * 16 + i % 4 / 2 * 8 + g;
                const bool inside = i / 4 % 2 * 8 + i % 2 < left;
                d = inside ? fmaf(gain[row], d, slope[row] * h) : 0.0f;
            }
            d *= gelu_slope;
            sums.rows[i / 8][i % 4 / 2] += d;
        }
    }

    __device__ static void add_squares(const float (&hidden)[kFragments][2][4], int left, Sums& sums) {
#pragma unroll
        for (int i = 0; i < 8 * kFragments; ++i) {
            const float h = i / 4 % 2 * 8 + i % 2 < left ? hidden[i / 8][i / 4 % 2][i % 4] : 0.0f;
            float& sum = sums.rows[i / 8][i % 4 / 2];
            sum = fmaf(h, h, sum);
        }
    }

    // As a left operand: rows are hidden channels, columns voxels.
    __device__ static void to_operand(const float (&values)[kFragments][2][4], unsigned (&operand)[kFragments][4]) {
#pragma unroll
        for (int i = 0; i < 4 * kFragments; ++i) {  // fragment, half of the voxels, half of the rows
            const float* const pair = values[i / 4][i / 2 % 2] + i % 2 * 2;
            operand[i / 4][i % 4] = round_pair<T>(pair[0], pair[1]);
        }
    }

    // sums [32 rows, K] += left [32, 16 voxels] right^T; `right` is this lane's row of 16 voxels of a tile of K
    // channels.
    template <int K>
    __device__ static void accumulate(const unsigned (&left)[kFragments][4], const T* right,
                                      float (&sums)[kFragments][K / 8][4]) {
#pragma unroll
        for (int n = 0; n < K / 8; n += 2) {
            unsigned b[4];
            ldmatrix<4, ChannelsLast>(b, right + place<K>(8 * n, 0));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const unsigned operand[2] = {b[2 * half], b[2 * half + 1]};
#pragma unroll
                for (int f = 0; f < kFragments; ++f) mma_m16n8k16<T>(sums[f][n + half], left[f], operand);
            }
        }
    }

    // One tile of the gradient of the normalised tensor: [C, voxels] = expand^T [C, H] grad_hidden [H, voxels], or the
    // transpose of that. A warp makes 32 rows and 16 columns of it at a time.
    __device__ static void make_grad(const T* expand, const T* grad_hidden, int hidden, T* grad) {
        const int lane = threadIdx.x % kWarpSize;
        constexpr int kRowsOfTile = ChannelsLast ? kVoxels : C;
        constexpr int kColumns = (ChannelsLast ? C : kVoxels) / 16;
        constexpr int kLeft = ChannelsLast ? kPitch : pitch_of(C);
        constexpr int kRight = ChannelsLast ? pitch_of(C) : kPitch;
        const T* const left = ChannelsLast ? grad_hidden : expand;
        const T* const right = ChannelsLast ? expand : grad_hidden;
        const int left_quarter = opaque_quarter(kLeft, false);
        const int right_quarter = opaque_quarter(kRight, true);
        const int warps = blockDim.x / kWarpSize;
        for (int i = threadIdx.x / kWarpSize; i < kRowsOfTile / kRows * kColumns; i += warps) {
            const int of_row = i / kColumns * kRows;
            const int of_column = i % kColumns * 16;
            float acc[kFragments][2][4] = {};
            const T* from_left = left + of_row + left_quarter;
            const T* from_right = right + of_column + right_quarter;
#pragma unroll 2
            for (int k = 0; k < hidden; k += 32) {
                multiply<32, true, false, false>(from_left, kLeft, from_right, kRight, acc);
                from_left += 32 * kLeft;
                from_right += 32 * kRight;
            }
            T* const to = grad + (of_row + lane / 4) * pitch<C> + of_column + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < 4 * kFragments; ++j) {  // fragment, its half of the columns, its half of the rows
                const float* const values = acc[j / 4][j / 2 % 2] + 2 * (j % 2);
                *reinterpret_cast<unsigned*>(to + (j / 4 * 16 + j % 2 * 8) * pitch<C> + j / 2 % 2 * 8) =
                    round_pair<T>(values[0], values[1]);
            }
        }
    }

    // The sum of one channel over eight voxels.
    __device__ static float sum_of_eight(const T* tile, int channel, int voxel) {
        float sum = 0.0f;
        if constexpr (ChannelsLast) {
#pragma unroll
            for (int j = 0; j < 8; ++j) sum += to_float(tile[place<O>(channel, voxel + j)]);
        } else {
            const auto eight = *reinterpret_cast<const Vector<T, 8>*>(tile + place<O>(channel, voxel));
#pragma unroll
            for (int j = 0; j < 8; ++j) sum += to_float(eight.element[j]);
        }
        return sum;
    }

    __device__ static float sum_of_quad(float value) {
        value += __shfl_xor_sync(kFullWarp, value, 1);
        return value + __shfl_xor_sync(kFullWarp, value, 2);
    }

    template <int K>
    __device__ static void write(const float (&sums)[kFragments][K / 8][4], float* to) {
        const int lane = threadIdx.x % kWarpSize;
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
#pragma unroll
            for (int n = 0; n < K / 8; ++n) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int row = 16 * f + 8 * half + lane / 4;
                    *reinterpret_cast<Vector<float, 2>*>(to + row * K + 8 * n + lane % 4 * 2) = {
                        {sums[f][n][2 * half], sums[f][n][2 * half + 1]}};
                }
            }
        }
    }

    __device__ static void write_rows(const float (&sums)[kFragments][2], float* to) {
        const int lane = threadIdx.x % kWarpSize;
#pragma unroll
        for (int i = 0; i < 2 * kFragments; ++i) {
            const float sum = sum_of_quad(sums[i / 2][i % 2]);
            if (lane % 4 == 0) to[8 * i + lane / 4] = sum;
        }
    }
};

template <typename T, int C, int O, bool ChannelsLast, int RowsOfWarp, BackwardPass::Kind Kind>
__device__ __forceinline__ void walk_backward(const BackwardParameters& p) {
    using Core = Backward<T, C, O, ChannelsLast, RowsOfWarp>;
    constexpr int kPitch = Core::kPitch;
    constexpr int kFragments = Core::kFragments;
    constexpr bool kHidden = Kind != BackwardPass::Kind::squares;
    constexpr bool kSquares = Kind == BackwardPass::Kind::squares;
    constexpr bool kAdjusted = Kind == BackwardPass::Kind::adjusted;
    const BackwardPass& pass = p.pass;
    const Extents& extents = p.bottleneck.extents;
    const std::int64_t voxels = extents.voxels;
    const int channels = static_cast<int>(extents.channels);
    const int outputs = static_cast<int>(extents.outputs);
    const int real_hidden = static_cast<int>(extents.hidden);
    const int hidden = p.plan.hidden;
    const std::int64_t sample = blockIdx.x / p.plan.parts;
    const int part = blockIdx.x % p.plan.parts;
    const int lane = threadIdx.x % kWarpSize;
    const int groups = hidden / Core::kRows;
    const int first_row = threadIdx.x / kWarpSize % groups * Core::kRows;
    const int split = threadIdx.x / kWarpSize / groups;

    const typename Core::Shared shared(hidden);
    T* const expand = shared_array(shared.expand);
    T* const compress = shared_array(shared.compress);
    T* const input_tile = shared_array(shared.input);
    T* const normalized = shared_array(shared.normalized);
    T* const unit = shared_array(shared.unit);
    T* const grad_tiles = shared_array(shared.grad_output);
    T* const grad_hidden = shared_array(shared.grad_hidden);
    T* const grad_tile = shared_array(shared.grad);
    ChannelNorm* const norms = shared_array(shared.norms);
    float* const expand_bias = shared_array(shared.expand_bias);
    float* const gain = shared_array(shared.gain);
    float* const slope = shared_array(shared.slope);

    const bool with_grad = !kSquares || pass.grad_output != nullptr;
    const bool with_compress = !kAdjusted && with_grad;
    const T* const input = static_cast<const T*>(p.bottleneck.input) + sample * channels * voxels;
    const T* const grad_output = static_cast<const T*>(pass.grad_output) + (with_grad ? sample * outputs * voxels : 0);
    T* const grad_volume = static_cast<T*>(pass.grad) + (pass.grad != nullptr ? sample * channels * voxels : 0);
    const typename Core::Rows rows(threadIdx.x, blockDim.x, voxels);
    const auto fetch = [&](int tile, int stage) {
        if (tile < p.plan.tiles) {
            const std::int64_t begin = std::int64_t{tile} * Core::kVoxels;
            Core::template fetch<C>(rows, input, channels, begin, p.vectors, input_tile);
            if (with_grad) {
                T* const to = grad_tiles + stage * Core::tile(O);
                Core::template fetch<O>(rows, grad_output, outputs, begin, p.vectors, to);
            }
        }
        copy_async_commit();
    };
    fetch(part, 0);

    // What is filled up is multiplied with zeros, and must be finite. Where channels are last it is loaded as zeros.
    if constexpr (!ChannelsLast) {
        const auto clear = [&](T* tile, int begin, int end) {
            for (int i = begin * kPitch + threadIdx.x; i < end * kPitch; i += blockDim.x) tile[i] = from_float<T>(0.0f);
        };
        clear(normalized, channels, C);
        clear(unit, channels, C);
        clear(grad_tiles, outputs, O);
        clear(grad_tiles, O + outputs, 2 * O);
    }
    load_matrix(p.bottleneck.expand_weight, real_hidden, channels, expand, hidden, C);
    load_matrix(p.bottleneck.compress_weight, outputs, real_hidden, compress, O, hidden);
    load_vector(p.bottleneck.expand_bias, real_hidden, expand_bias, hidden);
    if constexpr (kAdjusted) {
        load_vector({pass.gain + sample * real_hidden, ScalarType::float32}, real_hidden, gain, hidden);
        load_vector({pass.slope + sample * real_hidden, ScalarType::float32}, real_hidden, slope, hidden);
    }
    for (int i = threadIdx.x; i < channels; i += blockDim.x) {
        norms[i] = norm_of(p.bottleneck, sample, i);
    }
    if constexpr (ChannelsLast) {
        for (int i = channels + threadIdx.x; i < C; i += blockDim.x) norms[i] = ChannelNorm{};
    }
    __syncthreads();

    typename Core::Sums sums;
    const float* const bias_of_lane = expand_bias + first_row + lane / 4;
    float output_sum = 0.0f;  // of row threadIdx % O, a share of the columns
    int stage = 0;
    // What this lane names for ldmatrix: of the weights, and of 16 voxels of a tile as a right operand and transposed.
    const T* const expand_left = expand + (first_row * pitch_of(C) + Core::opaque_quarter(pitch_of(C), true));
    const T* const compress_left = compress + (first_row + Core::opaque_quarter(pitch_of(hidden), false));
    const int input_right = Core::opaque_quarter(Core::template pitch<C>, !ChannelsLast);
    const int input_columns = Core::opaque_quarter(Core::template pitch<C>, ChannelsLast);
    const int output_right = Core::template pitch<C> == Core::template pitch<O>
                                 ? input_right
                                 : Core::opaque_quarter(Core::template pitch<O>, !ChannelsLast);
    const int output_columns = Core::template pitch<C> == Core::template pitch<O>
                                   ? input_columns
                                   : Core::opaque_quarter(Core::template pitch<O>, ChannelsLast);
    int of_lane = (first_row + lane / 4) * kPitch + lane % 4 * 2;
    make_opaque(of_lane);
    T* const grad_hidden_of_lane = grad_hidden + of_lane;
    for (int tile = part; tile < p.plan.tiles; tile += p.plan.parts) {
        const std::int64_t begin = std::int64_t{tile} * Core::kVoxels;
        T* const output_tile = grad_tiles + stage * Core::tile(O);
        copy_async_wait<0>();
        if constexpr (!ChannelsLast) {
            if (!p.vectors) {
                __syncwarp();  // a row's pieces came by the lanes of one warp
                if (with_grad) rows.template align<1>(grad_output, outputs, output_tile);
            }
        }
        Core::normalize(rows, input_tile, input, channels, p.vectors, norms, normalized, unit);
        __syncthreads();
        stage ^= 1;
        fetch(tile + p.plan.parts, stage);
        if (pass.grad != nullptr && tile != part) {  // of the tile before, which all warps have made
            Core::store(rows, grad_tile, channels, begin - std::int64_t{p.plan.parts} * Core::kVoxels, p.vectors,
                        grad_volume);
        }
        const int inside = static_cast<int>(min(voxels - begin, std::int64_t{Core::kVoxels}));

        for (int column = 16 * split; column < Core::kVoxels; column += 16 * p.plan.splits) {
            float bias[kFragments][2];  // again each time: registers are few
#pragma unroll
            for (int i = 0; i < 2 * kFragments; ++i) bias[i / 2][i % 2] = bias_of_lane[8 * i];
            float pre[kFragments][2][4];
            float grad[kFragments][2][4] = {};
            const int of_input = Core::template place<C>(0, column);
            const int of_output = Core::template place<O>(0, column);
            Core::template multiply<C, false, ChannelsLast, true>(
                expand_left, pitch_of(C), normalized + (of_input + input_right), Core::template pitch<C>, pre, bias);
            if constexpr (kHidden) {
                Core::template multiply<O, true, ChannelsLast, true>(compress_left, pitch_of(hidden),
                                                                     output_tile + (of_output + output_right),
                                                                     Core::template pitch<O>, grad);
            }
            const int left = inside - column - lane % 4 * 2;
            Core::template through_gelu<kAdjusted>(pre, grad, gain + first_row, slope + first_row, left, sums);
            if constexpr (kSquares) Core::add_squares(pre, left, sums);

            unsigned operand[kFragments][4];
            if (with_compress) {
                Core::to_operand(pre, operand);
                Core::template accumulate<O>(operand, output_tile + (of_output + output_columns), sums.compress);
            }
            if constexpr (kHidden) {
                Core::to_operand(grad, operand);
                Core::template accumulate<C>(operand, unit + (of_input + input_columns), sums.normalized);
                T* const to = grad_hidden_of_lane + column;
#pragma unroll
                for (int i = 0; i < 4 * kFragments; ++i) {
                    *reinterpret_cast<unsigned*>(to + (i / 4 * 16 + i % 2 * 8) * kPitch + i / 2 % 2 * 8) =
                        operand[i / 4][i % 4];
                }
            }
        }
        if (with_compress) {
            const int segments = blockDim.x / O;
            for (int piece = threadIdx.x / O; piece < Core::kVoxels / 8 && threadIdx.x / O < segments;
                 piece += segments) {
                output_sum += Core::sum_of_eight(output_tile, threadIdx.x % O, 8 * piece);
            }
        }
        __syncthreads();
        if (kHidden && pass.grad != nullptr) Core::make_grad(expand, grad_hidden, hidden, grad_tile);
    }
    copy_async_wait<0>();
    __syncthreads();
    if (kHidden && pass.grad != nullptr) {
        const std::int64_t last = p.plan.tiles - 1 - (p.plan.tiles - 1 - part) % p.plan.parts;
        Core::store(rows, grad_tile, channels, last * Core::kVoxels, p.vectors, grad_volume);
    }

    float* const partial = pass.partial + ((sample * p.plan.parts + part) * p.plan.splits + split) * p.plan.sums();
    if constexpr (kHidden) {
        Core::template write<C>(sums.normalized, partial + p.plan.normalized() + first_row * C);
        Core::write_rows(sums.rows, partial + p.plan.hidden_sums() + first_row);
    }
    if constexpr (kSquares) Core::write_rows(sums.rows, partial + p.plan.squares() + first_row);
    if (with_compress) {
        Core::template write<O>(sums.compress, partial + p.plan.compress() + first_row * O);
        auto* const of_thread = reinterpret_cast<float*>(grad_hidden);  // which nobody needs any more
        of_thread[threadIdx.x] = output_sum;
        __syncthreads();
        for (int i = threadIdx.x; i < O * p.plan.splits; i += blockDim.x) {  // the first split has all of them
            float sum = 0.0f;
            if (i < O) {
                for (int j = i; j < static_cast<int>(blockDim.x / O) * O; j += O) sum += of_thread[j];
            }
            pass.partial[((sample * p.plan.parts + part) * p.plan.splits + i / O) * p.plan.sums() +
                         p.plan.output_sums() + i % O] = sum;
        }
    }
}

template <typename T, int C, int O, bool ChannelsLast, int RowsOfWarp, BackwardPass::Kind Kind>
__global__ void __launch_bounds__(Backward<T, C, O, ChannelsLast, RowsOfWarp>::kResidentThreads, 1)
    fused_backward(const __grid_constant__ BackwardParameters p) {
#ifdef __CUDA_ARCH__
    // What the planner does not choose for an architecture is no code there.
    constexpr int kArchitecture = __CUDA_ARCH__ / 10;
    constexpr bool kChosen = kArchitecture >= 80 && BackwardPlan::rows_of_warp(C, kArchitecture) == RowsOfWarp;
#else
    constexpr bool kChosen = true;
#endif
    if constexpr (kChosen) {
        walk_backward<T, C, O, ChannelsLast, RowsOfWarp, Kind>(p);
    } else {
        __trap();
    }
}

template <int C, int O>
cudaError_t launch_backward_of_size(ScalarType type, const BackwardParameters& p, unsigned blocks,
                                    cudaStream_t stream) {
    using Kind = BackwardPass::Kind;
    const auto launch_kind = [&]<typename T, bool ChannelsLast, int RowsOfWarp>() {
        const typename Backward<T, C, O, ChannelsLast, RowsOfWarp>::Shared shared(p.plan.hidden);
        const auto threads = static_cast<unsigned>(p.plan.warps() * kWarpSize);
        const LaunchShape shape{blocks, threads, shared.layout.bytes(), stream};
        switch (p.pass.kind) {
            case Kind::squares:
                return launch<fused_backward<T, C, O, ChannelsLast, RowsOfWarp, Kind::squares>>(shape, p);
            case Kind::adjusted:
                return launch<fused_backward<T, C, O, ChannelsLast, RowsOfWarp, Kind::adjusted>>(shape, p);
            case Kind::complete:
                break;
        }
        return launch<fused_backward<T, C, O, ChannelsLast, RowsOfWarp, Kind::complete>>(shape, p);
    };
    const auto launch_format = [&]<typename T, bool ChannelsLast>() {
        if constexpr (C >= 64) {
            if (p.plan.rows == 16) return launch_kind.template operator()<T, ChannelsLast, 16>();
        }
        return launch_kind.template operator()<T, ChannelsLast, 32>();
    };
    const auto launch_type = [&]<typename T>() {
        return p.bottleneck.channels_last ? launch_format.template operator()<T, true>()
                                          : launch_format.template operator()<T, false>();
    };
    return type == ScalarType::float16 ? launch_type.template operator()<__half>()
                                       : launch_type.template operator()<__nv_bfloat16>();
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
