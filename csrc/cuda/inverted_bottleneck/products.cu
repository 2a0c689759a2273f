// What is computed before, between and after the products of a wide bottleneck.
#include "products.h"

#include <climits>
#include <cstdint>
#include <type_traits>

#include "../common/gelu.cuh"
#include "../common/launch.h"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "../common/warp.h"
#include "../common/warp_sum.cuh"
#include "../depthwise_conv3d/weight_gradient_reduction.h"
#include "rows.cuh"

namespace mednext_ops::cuda::inverted_bottleneck {
namespace {

// ---- weights: a warp has a row of the expansion, or a run of the compression ----

constexpr int kPieces = 2;

// A lane's part of a run of elements: pieces of `Width` that lie a warp's pieces apart.
template <int Width>
struct Part {
    static constexpr int kStride = kWarpSize * Width;
    float values[kPieces][Width];

    // All loads are on their way before the first is waited for, and none waits for a store.
    __device__ void load(const Parameter& parameter, std::int64_t begin, std::int64_t end) {
        with_elements(parameter, [&]<typename From>(const From* from) {
            Vector<From, Width> vectors[kPieces];
#pragma unroll
            for (int i = 0; i < kPieces; ++i) {
                const std::int64_t at = begin + i * kStride;
                if (at < end) vectors[i] = *reinterpret_cast<const Vector<From, Width>*>(from + at);
            }
#pragma unroll
            for (int i = 0; i < kPieces; ++i) {
#pragma unroll
                for (int j = 0; j < Width; ++j) {
                    values[i][j] = begin + i * kStride < end ? to_float(vectors[i].element[j]) : 0.0f;
                }
            }
        });
    }

    template <typename T>
    __device__ void store(void* array, std::int64_t begin, std::int64_t end) const {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const std::int64_t at = begin + i * kStride;
            Vector<T, Width> vector;
#pragma unroll
            for (int j = 0; j < Width; ++j) vector.element[j] = from_float<T>(values[i][j]);
            if (at < end) *reinterpret_cast<Vector<T, Width>*>(static_cast<T*>(array) + at) = vector;
        }
    }
};

// A launch for some KB takes as long as it waits: 256 channels of a row are on their way at once.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads) prepare_weights(const __grid_constant__ WeightsProblem p) {
    constexpr int kRunOfWarp = kPieces * kWarpSize * Width;
    const int lane = threadIdx.x % kWarpSize;
    const std::int64_t number = warp_number();
    if (number < p.hidden) {
        const std::int64_t row = number * p.channels;
        float sum = 0.0f;
        for (std::int64_t c = lane * Width; c < p.channels; c += kRunOfWarp) {
            Part<Width> weights, scales, shifts;
            weights.load(p.expand_weight, row + c, row + p.channels);
            scales.load(p.norm_weight, c, p.channels);
            shifts.load(p.norm_bias, c, p.channels);
#pragma unroll
            for (int i = 0; i < kPieces; ++i) {
#pragma unroll
                for (int j = 0; j < Width; ++j) {
                    sum = fmaf(weights.values[i][j], shifts.values[i][j], sum);
                    scales.values[i][j] *= weights.values[i][j];
                }
            }
            weights.template store<T>(p.expand, row + c, row + p.channels);
            scales.template store<T>(p.folded, row + c, row + p.channels);
        }
        sum = add_lanes(sum);
        if (lane == 0) {
            p.bias[number] = sum + (p.expand_bias.data == nullptr ? 0.0f : load_parameter(p.expand_bias, number));
        }
        return;
    }
    const std::int64_t begin = (number - p.hidden) * kRunOfWarp + lane * Width;
    Part<Width> weights;
    weights.load(p.compress_weight, begin, p.outputs * p.hidden);
    weights.template store<T>(p.compress, begin, p.outputs * p.hidden);
}

// ---- the normalised input ----

template <typename T, bool Aligned>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    normalize(const __grid_constant__ NormalizedProblem p) {
    const auto runs = static_cast<unsigned>((p.pitch + kRun - 1) / kRun);
    const std::int64_t row = warp_number() / runs;  // n * C + c
    if (row >= p.batch * p.channels) return;
    const std::int64_t group = row / (p.channels / p.groups);
    const float mean = p.mean[group];
    const float rstd = p.rstd[group];
    const T* const input = static_cast<const T*>(p.input) + row * p.voxels;
    T* const result = static_cast<T*>(p.result) + row * p.pitch;
    const std::int64_t first = std::int64_t{warp_number() % runs} * kRun + threadIdx.x % kWarpSize * kVector;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        const std::int64_t v = first + step * kStep;
        if (v >= p.pitch) break;
        float values[kVector];
        const int count = elements_left(p.voxels, v);
        read<T, Aligned>(input + v, count, values);
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] = Aligned || i < count ? (values[i] - mean) * rstd : 0.0f;
        write<T, true>(result + v, kVector, values);
    }
}

// ---- GELU with the bias before it, and its gradient ----

struct HiddenParameters {
    HiddenProblem problem;
    std::int64_t sums;  // summed_rows
    float* partial;     // [runs, sums]
};

// The rows of the hidden tensor, then those of the output's gradient, of which there is only the sum to make.
// `Response` is GRN: a sum of squares, or its part of the gradient.
template <typename T, bool Backward, bool Response>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) activate(const __grid_constant__ HiddenParameters p) {
    const HiddenProblem& problem = p.problem;
    const auto runs = static_cast<unsigned>((problem.length + kRun - 1) / kRun);
    const unsigned run = warp_number() % runs;
    const std::int64_t row = warp_number() / runs;  // n * R + r
    const std::int64_t rows = problem.batch * problem.hidden;
    const std::int64_t first = std::int64_t{run} * kRun + threadIdx.x % kWarpSize * kVector;
    float sum = 0.0f;
    if (row >= rows) {
        const auto output = static_cast<unsigned>(row - rows);  // n * O + o
        const auto outputs = static_cast<unsigned>(problem.outputs);
        if (output >= problem.batch * outputs) return;
        const T* const grad_output = static_cast<const T*>(problem.grad_output) +
                                     output / outputs * problem.output_sample + output % outputs * problem.output_row;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const std::int64_t v = first + step * kStep;
            if (v >= problem.length) break;
            float values[kVector];
            read<T, true>(grad_output + v, kVector, values);
#pragma unroll
            for (int i = 0; i < kVector; ++i) sum += values[i];
        }
        sum = add_lanes(sum);
        const std::int64_t place = Backward || Response ? row : output;
        if (threadIdx.x % kWarpSize == 0) p.partial[run * p.sums + place] = sum;
        return;
    }
    const float bias = problem.bias[row % problem.hidden];
    float response = 0.0f;
    if constexpr (Backward && Response) response = problem.slope[row];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        const std::int64_t v = first + step * kStep;
        if (v >= problem.length) break;
        T* const hidden = static_cast<T*>(problem.preactivation) + row * problem.length + v;
        float values[kVector];
        read<T, true>(hidden, kVector, values);
        if constexpr (Backward) {
            T* const grad = static_cast<T*>(problem.grad) + row * problem.length + v;
            float grads[kVector];
            read<T, true>(grad, kVector, grads);
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                values[i] += bias;
                const float slope = gelu_with_slope<T, true>(values[i]);
                if constexpr (Response) {
                    grads[i] = v + i < problem.voxels ? fmaf(response, values[i], grads[i]) : 0.0f;
                }
                grads[i] *= slope;
                sum += to_float(from_float<T>(grads[i]));
            }
            write<T, true>(grad, kVector, grads);
        } else {
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                values[i] = gelu<T, true>(values[i] + bias);
                if constexpr (Response) {
                    const float stored = to_float(from_float<T>(values[i]));
                    if (v + i < problem.voxels) sum = fmaf(stored, stored, sum);
                }
            }
        }
        write<T, true>(hidden, kVector, values);
    }
    if constexpr (Backward || Response) {
        sum = add_lanes(sum);
        if (threadIdx.x % kWarpSize == 0) p.partial[run * p.sums + row] = sum;
    }
}

// ---- what follows from the sums ----

constexpr int kSumThreads = 1024;  // a launch takes as long as one thread's hidden channels follow each other
constexpr int kColumns = 8;  // of a block: as many as share a sector of memory, so that many blocks share the sums
constexpr int kRowsAtOnce = kSumThreads / kColumns;

// A block owns eight channels of a sample, its threads share the hidden ones: blocks of columns. After them an element
// of the weights' gradients a thread.
__global__ void __launch_bounds__(kSumThreads, 1)
    expansion_gradients(const __grid_constant__ ExpansionProblem p, unsigned blocks_of_columns) {
    MEDNEXT_OPS_SHARED(of_row, double[2][kRowsAtOnce][kColumns]);
    if (blockIdx.x < blocks_of_columns) {
        const int column = threadIdx.x % kColumns;
        const int row = threadIdx.x / kColumns;
        const auto blocks = static_cast<unsigned>((p.channels + kColumns - 1) / kColumns);
        const std::int64_t sample = blockIdx.x / blocks;
        const std::int64_t c = std::int64_t{blockIdx.x % blocks} * kColumns + column;
        double sum = 0.0;
        double dot = 0.0;
        if (c < p.channels) {
            with_elements(p.expand_weight, [&](const auto* weights) {
#pragma unroll 4
                for (std::int64_t r = row; r < p.hidden; r += kRowsAtOnce) {
                    const double weight = to_float(weights[r * p.channels + c]);
                    sum += weight * p.hidden_sums[sample * p.hidden + r];
                    dot += weight * p.hidden_normalized[(sample * p.hidden + r) * p.channels + c];
                }
            });
        }
        of_row[0][row][column] = sum;
        of_row[1][row][column] = dot;
        for (int distance = kRowsAtOnce / 2; distance > 0; distance /= 2) {
            __syncthreads();
            if (row >= distance) continue;
            of_row[0][row][column] += of_row[0][row + distance][column];
            of_row[1][row][column] += of_row[1][row + distance][column];
        }
        if (row != 0 || c >= p.channels) return;
        p.grad_sum[sample * p.channels + c] = static_cast<float>(of_row[0][0][column]);
        p.grad_dot_normalized[sample * p.channels + c] = static_cast<float>(of_row[1][0][column]);
        return;
    }
    const std::int64_t i = std::int64_t{blockIdx.x - blocks_of_columns} * kSumThreads + threadIdx.x;
    const std::int64_t weights = p.hidden * p.channels;
    if (i >= weights + p.hidden) return;
    double sum = 0.0;
    if (i < weights) {
        const double scale = load_parameter(p.norm_weight, i % p.channels);
        const double shift = load_parameter(p.norm_bias, i % p.channels);
        for (std::int64_t n = 0; n < p.batch; ++n) {
            sum += scale * p.hidden_normalized[n * weights + i] + shift * p.hidden_sums[n * p.hidden + i / p.channels];
        }
        p.grad_weight[i] = static_cast<float>(sum);
    } else {
        for (std::int64_t n = 0; n < p.batch; ++n) sum += p.hidden_sums[n * p.hidden + i - weights];
        p.grad_bias[i - weights] = static_cast<float>(sum);
    }
}

}  // namespace

cudaError_t launch_weights(const WeightsProblem& p, cudaStream_t stream) {
    constexpr int kWidth = 4;
    bool aligned = p.channels % kWidth == 0 && p.outputs * p.hidden % kWidth == 0;
    for (const void* pointer : {p.norm_weight.data, p.norm_bias.data, p.expand_weight.data, p.compress_weight.data}) {
        aligned = aligned && is_aligned(pointer);
    }
    const std::int64_t width = aligned ? kWidth : 1;
    const std::int64_t warps = p.hidden + ceil_div(p.outputs * p.hidden, kPieces * kWarpSize * width);
    return with_scalar_type(p.type, [&]<typename T>(const T*) {
        return aligned ? launch_units<prepare_weights<T, kWidth>>(warps, kWarps, p, stream)
                       : launch_units<prepare_weights<T, 1>>(warps, kWarps, p, stream);
    });
}

cudaError_t launch_normalized(const NormalizedProblem& p, cudaStream_t stream) {
    return with_scalar_type(p.type, [&]<typename T>(const T*) {
        const std::int64_t warps = p.batch * p.channels * ceil_div(p.pitch, kRun);
        return p.voxels % kVector == 0 && is_aligned(p.input)
                   ? launch_units<normalize<T, true>>(warps, kWarps, p, stream)
                   : launch_units<normalize<T, false>>(warps, kWarps, p, stream);
    });
}

std::int64_t summed_rows(const HiddenProblem& p) {
    return p.batch * ((p.grad != nullptr || p.squares ? p.hidden : 0) + p.outputs);
}

std::int64_t hidden_parts(const HiddenProblem& p) {
    return ceil_div(p.length, kRun);
}

cudaError_t launch_hidden(const HiddenProblem& p, float* workspace, float* sums, cudaStream_t stream) {
    const std::int64_t parts = hidden_parts(p);
    const HiddenParameters parameters{p, summed_rows(p), parts == 1 ? sums : workspace};
    const std::int64_t warps = p.batch * (p.hidden + p.outputs) * parts;
    const cudaError_t error = with_scalar_type(p.type, [&]<typename T>(const T*) {
        const auto launch_of = [&]<bool Response>(std::bool_constant<Response>) {
            return p.grad != nullptr ? launch_units<activate<T, true, Response>>(warps, kWarps, parameters, stream)
                                     : launch_units<activate<T, false, Response>>(warps, kWarps, parameters, stream);
        };
        return p.squares || p.slope != nullptr ? launch_of(std::true_type()) : launch_of(std::false_type());
    });
    if (error != cudaSuccess || parts == 1) return error;
    return depthwise_conv3d::launch_reduction(workspace, parameters.sums, parts, sums, stream);
}

cudaError_t launch_expansion(const ExpansionProblem& p, cudaStream_t stream) {
    const std::int64_t columns = p.batch * ceil_div(p.channels, kColumns);
    const std::int64_t blocks = columns + ceil_div(p.hidden * (p.channels + 1), kSumThreads);
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    return launch<expansion_gradients>({static_cast<unsigned>(blocks), kSumThreads, 0, stream}, p,
                                       static_cast<unsigned>(columns));
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
