// A warp takes a run of a row, its lanes vectors of eight elements next to each other.
#include "products.h"

#include <climits>
#include <cstdint>

#include "../common/gelu.cuh"
#include "../common/launch.h"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "../common/warp.h"
#include "../common/warp_sum.cuh"
#include "../depthwise_conv3d/weight_gradient_reduction.h"

namespace mednext_ops::cuda::inverted_bottleneck {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kBlocksPerProcessor = 4;
constexpr int kVector = kAlignedVoxels;
constexpr int kSteps = 4;
constexpr int kStep = kWarpSize * kVector;
constexpr int kRun = kSteps * kStep;

template <typename T>
using Eight = Vector<T, kVector>;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

bool is_aligned(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

// Launches `Kernel` with `units` warps, or threads: numbers of 32 bits, which the kernels divide.
template <auto Kernel, typename Problem>
cudaError_t launch_units(std::int64_t units, int units_of_block, const Problem& problem, cudaStream_t stream) {
    if (units == 0) return cudaSuccess;
    if (units > INT_MAX) return cudaErrorInvalidConfiguration;
    const LaunchShape shape{static_cast<unsigned>(ceil_div(units, units_of_block)), kThreads, 0, stream};
    return launch<Kernel>(shape, problem);
}

template <typename Function>
cudaError_t with_half_type(ScalarType type, Function&& function) {
    if (type == ScalarType::float16) return function(static_cast<const __half*>(nullptr));
    if (type == ScalarType::bfloat16) return function(static_cast<const __nv_bfloat16*>(nullptr));
    return cudaErrorInvalidValue;
}

__device__ inline unsigned warp_number() {
    return blockIdx.x * kWarps + threadIdx.x / kWarpSize;
}

// Eight elements as floats, the first `count` of them there. Only where all lie aligned they come at once.
template <typename T, bool Aligned>
__device__ void read(const T* from, int count, float (&values)[kVector]) {
    if constexpr (Aligned) {
        const auto vector = *reinterpret_cast<const Eight<T>*>(from);
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] = to_float(vector.element[i]);
    } else {
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] = i < count ? to_float(from[i]) : 0.0f;
    }
}

template <typename T, bool Aligned>
__device__ void write(T* to, int count, const float (&values)[kVector]) {
    Eight<T> vector;
#pragma unroll
    for (int i = 0; i < kVector; ++i) vector.element[i] = from_float<T>(values[i]);
    if constexpr (Aligned) {
        *reinterpret_cast<Eight<T>*>(to) = vector;
    } else {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            if (i < count) to[i] = vector.element[i];
        }
    }
}

__device__ inline int elements_left(std::int64_t end, std::int64_t begin) {
    return end - begin < kVector ? static_cast<int>(end - begin) : kVector;
}

// ---- weights: a warp has a row of the expansion, or a run of the compression ----

template <typename T>
__global__ void __launch_bounds__(kThreads) prepare_weights(const __grid_constant__ WeightsProblem p) {
    const int lane = threadIdx.x % kWarpSize;
    const std::int64_t number = warp_number();
    if (number < p.hidden) {
        T* const folded = static_cast<T*>(p.folded) + number * p.channels;
        T* const expand = static_cast<T*>(p.expand) + number * p.channels;
        float sum = 0.0f;
        with_elements(p.expand_weight, [&](const auto* all_weights) {
            const auto* const weights = all_weights + number * p.channels;
            with_elements(p.norm_weight, [&](const auto* norm_weight) {
#pragma unroll 4
                for (std::int64_t c = lane; c < p.channels; c += kWarpSize) {
                    const float weight = to_float(weights[c]);
                    folded[c] = from_float<T>(weight * to_float(norm_weight[c]));
                    expand[c] = from_float<T>(weight);
                }
            });
            with_elements(p.norm_bias, [&](const auto* norm_bias) {
#pragma unroll 4
                for (std::int64_t c = lane; c < p.channels; c += kWarpSize) {
                    sum = fmaf(to_float(weights[c]), to_float(norm_bias[c]), sum);
                }
            });
        });
        sum = add_lanes(sum);
        if (lane == 0) {
            p.bias[number] = sum + (p.expand_bias.data == nullptr ? 0.0f : load_parameter(p.expand_bias, number));
        }
        return;
    }
    const std::int64_t begin = (number - p.hidden) * kStep;
    const std::int64_t end = p.outputs * p.hidden;
    with_elements(p.compress_weight, [&](const auto* weights) {
        T rounded[kVector];
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            const std::int64_t at = begin + i * kWarpSize + lane;
            if (at < end) rounded[i] = from_float<T>(to_float(weights[at]));
        }
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            const std::int64_t at = begin + i * kWarpSize + lane;
            if (at < end) static_cast<T*>(p.compress)[at] = rounded[i];
        }
    });
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
    float* partial;  // [runs, N * R]
};

template <typename T, bool Backward>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) activate(const __grid_constant__ HiddenParameters p) {
    const HiddenProblem& problem = p.problem;
    const auto runs = static_cast<unsigned>((problem.length + kRun - 1) / kRun);
    const unsigned run = warp_number() % runs;
    const std::int64_t row = warp_number() / runs;  // n * R + r
    const std::int64_t rows = problem.batch * problem.hidden;
    if (row >= rows) return;
    const float bias = problem.bias[row % problem.hidden];
    const std::int64_t first = std::int64_t{run} * kRun + threadIdx.x % kWarpSize * kVector;
    float sum = 0.0f;
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
                grads[i] *= gelu_with_slope<T, true>(values[i]);
                sum += to_float(from_float<T>(grads[i]));
            }
            write<T, true>(grad, kVector, grads);
        } else {
#pragma unroll
            for (int i = 0; i < kVector; ++i) values[i] = gelu<T, true>(values[i] + bias);
        }
        write<T, true>(hidden, kVector, values);
    }
    if constexpr (Backward) {
        sum = add_lanes(sum);
        if (threadIdx.x % kWarpSize == 0) p.partial[run * rows + row] = sum;
    }
}

// ---- the output ----

template <typename T, bool Aligned>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) add_rows(const __grid_constant__ OutputProblem p) {
    const std::int64_t voxels = p.size[0] * p.size[1] * p.size[2];
    const auto runs = static_cast<unsigned>((voxels + kRun - 1) / kRun);
    const std::int64_t row = warp_number() / runs;  // n * O + o
    if (row >= p.batch * p.channels) return;
    const float bias = p.bias.data == nullptr ? 0.0f : load_parameter(p.bias, row % p.channels);
    const std::int64_t first = std::int64_t{warp_number() % runs} * kRun + threadIdx.x % kWarpSize * kVector;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        const std::int64_t v = first + step * kStep;
        if (v >= voxels) break;
        const int count = elements_left(voxels, v);
        float values[kVector];
        read<T, Aligned>(static_cast<const T*>(p.product) + row * p.pitch + v, count, values);
        float added[kVector] = {};
        if (p.residual != nullptr) {
            read<T, Aligned>(static_cast<const T*>(p.residual) + row * voxels + v, count, added);
        }
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] = values[i] + bias + added[i];
        write<T, Aligned>(static_cast<T*>(p.output) + row * voxels + v, count, values);
    }
}

// A thread has eight elements of a row along W; rows along W are far too short for a warp each.
template <typename T, bool Aligned>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) place_rows(const __grid_constant__ OutputProblem p) {
    const auto width = static_cast<unsigned>(p.size[2] + p.front[2]);
    const auto height = static_cast<unsigned>(p.size[1] + p.front[1]);
    const auto depth = static_cast<unsigned>(p.size[0] + p.front[0]);
    const unsigned vectors = (width + kVector - 1) / kVector;
    const unsigned number = blockIdx.x * kThreads + threadIdx.x;
    const unsigned line = number / vectors;
    const unsigned layer = line / height;
    const std::int64_t row = layer / depth;  // n * O + o
    if (row >= p.batch * p.channels) return;
    const int d = static_cast<int>(layer % depth) - static_cast<int>(p.front[0]);
    const int h = static_cast<int>(line % height) - static_cast<int>(p.front[1]);
    const int begin = static_cast<int>(number % vectors) * kVector;
    const int w = begin - static_cast<int>(p.front[2]);  // of the first element, in the product

    float values[kVector] = {};
    if (d >= 0 && h >= 0) {
        const float bias = p.bias.data == nullptr ? 0.0f : load_parameter(p.bias, row % p.channels);
        const T* const product = static_cast<const T*>(p.product) + row * p.pitch + (d * p.size[1] + h) * p.size[2];
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            if (w + i >= 0 && w + i < p.size[2]) values[i] = to_float(product[w + i]) + bias;
        }
        const auto stride = [&](int axis) { return static_cast<int>(p.stride[axis]); };
        if (p.residual != nullptr && d % stride(0) == 0 && h % stride(1) == 0) {
            const auto extent = [&](int axis) { return (p.size[axis] + p.stride[axis] - 1) / p.stride[axis]; };
            const std::int64_t at = ((row * extent(0) + d / stride(0)) * extent(1) + h / stride(1)) * extent(2);
            const T* const residual = static_cast<const T*>(p.residual) + at;
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                const int x = w + i;
                if (x < 0 || x >= p.size[2] || x % stride(2) != 0) continue;
                values[i] += to_float(residual[x / stride(2)]);
            }
        }
    }
    write<T, Aligned>(static_cast<T*>(p.output) + std::int64_t{line} * width + begin, elements_left(width, begin),
                      values);
}

// ---- the output's gradient ----

constexpr int kLinesOfWarp = 4;
constexpr int kElementsOfLane = 4;

// A warp has some lines along W, its lanes neighbouring elements: what is written begins at any element.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) take_apart(const __grid_constant__ OutputGradientProblem p) {
    const auto depth = static_cast<unsigned>(p.size[0]);
    const auto height = static_cast<unsigned>(p.size[1]);
    const auto width = static_cast<int>(p.size[2]);
    const unsigned groups = (height + kLinesOfWarp - 1) / kLinesOfWarp;
    const unsigned layer = warp_number() / groups;
    const std::int64_t row = layer / depth;  // n * O + o
    if (row >= p.rows) return;
    const auto d = static_cast<int>(layer % depth);
    const int first = static_cast<int>(warp_number() % groups) * kLinesOfWarp;
    const int lane = threadIdx.x % kWarpSize;
    const std::int64_t whole_h = p.size[1] + p.front[1];
    const std::int64_t whole_w = p.size[2] + p.front[2];
    const T* const from = static_cast<const T*>(p.grad) +
                          ((row * (p.size[0] + p.front[0]) + d + p.front[0]) * whole_h + p.front[1]) * whole_w +
                          p.front[2];
    T* const interior = static_cast<T*>(p.interior) + (row * p.size[0] + d) * p.size[1] * p.size[2];
    const auto sparse_of = [&](int axis) { return (p.size[axis] + p.stride[axis] - 1) / p.stride[axis]; };
    const auto stride_d = static_cast<int>(p.stride[0]);
    const auto stride_h = static_cast<int>(p.stride[1]);
    const auto stride_w = static_cast<int>(p.stride[2]);
    T* const sparse =
        p.sparse == nullptr || d % stride_d != 0
            ? nullptr
            : static_cast<T*>(p.sparse) + (row * sparse_of(0) + d / stride_d) * sparse_of(1) * sparse_of(2);
    for (int begin = lane; begin < width; begin += kElementsOfLane * kWarpSize) {
        T values[kLinesOfWarp][kElementsOfLane];
#pragma unroll
        for (int line = 0; line < kLinesOfWarp; ++line) {
#pragma unroll
            for (int i = 0; i < kElementsOfLane; ++i) {
                const int w = begin + i * kWarpSize;
                if (first + line < p.size[1] && w < width) values[line][i] = from[(first + line) * whole_w + w];
            }
        }
#pragma unroll
        for (int line = 0; line < kLinesOfWarp; ++line) {
            const int h = first + line;
#pragma unroll
            for (int i = 0; i < kElementsOfLane; ++i) {
                const int w = begin + i * kWarpSize;
                if (h >= p.size[1] || w >= width) continue;
                interior[h * p.size[2] + w] = values[line][i];
                if (sparse != nullptr && h % stride_h == 0 && w % stride_w == 0) {
                    sparse[h / stride_h * sparse_of(2) + w / stride_w] = values[line][i];
                }
            }
        }
    }
}

// ---- what follows from the sums ----

constexpr int kSumThreads = 512;
constexpr int kColumns = 8;  // of a block: as many as share a sector of memory, so that many blocks share the sums
constexpr int kRowsAtOnce = kSumThreads / kColumns;

// A block owns eight channels of a sample, its threads share the hidden ones: blocks of columns. After them an element
// of the weights' gradients a thread.
__global__ void __launch_bounds__(kSumThreads, 2)
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
    return with_half_type(p.type, [&]<typename T>(const T*) {
        return launch_units<prepare_weights<T>>(p.hidden + ceil_div(p.outputs * p.hidden, kStep), kWarps, p, stream);
    });
}

cudaError_t launch_normalized(const NormalizedProblem& p, cudaStream_t stream) {
    return with_half_type(p.type, [&]<typename T>(const T*) {
        const std::int64_t warps = p.batch * p.channels * ceil_div(p.pitch, kRun);
        return p.voxels % kVector == 0 && is_aligned(p.input)
                   ? launch_units<normalize<T, true>>(warps, kWarps, p, stream)
                   : launch_units<normalize<T, false>>(warps, kWarps, p, stream);
    });
}

std::int64_t hidden_parts(const HiddenProblem& p) {
    return ceil_div(p.length, kRun);
}

cudaError_t launch_hidden(const HiddenProblem& p, cudaStream_t stream) {
    return with_half_type(p.type, [&]<typename T>(const T*) {
        const std::int64_t warps = p.batch * p.hidden * hidden_parts(p);
        return launch_units<activate<T, false>>(warps, kWarps, HiddenParameters{p, nullptr}, stream);
    });
}

cudaError_t launch_hidden_gradient(const HiddenProblem& p, float* workspace, float* sums, cudaStream_t stream) {
    const std::int64_t parts = hidden_parts(p);
    const std::int64_t rows = p.batch * p.hidden;
    const cudaError_t error = with_half_type(p.type, [&]<typename T>(const T*) {
        const HiddenParameters parameters{p, parts == 1 ? sums : workspace};
        return launch_units<activate<T, true>>(rows * parts, kWarps, parameters, stream);
    });
    if (error != cudaSuccess || parts == 1) return error;
    return depthwise_conv3d::launch_reduction(workspace, rows, parts, sums, stream);
}

cudaError_t launch_output(const OutputProblem& p, cudaStream_t stream) {
    bool plain = true;
    std::array<std::int64_t, 3> whole{};
    for (int axis = 0; axis < 3; ++axis) {
        plain = plain && p.front[axis] == 0 && p.stride[axis] == 1;
        whole[axis] = p.size[axis] + p.front[axis];
        if (p.size[axis] > INT_MAX / 2 || p.front[axis] > INT_MAX / 2) return cudaErrorInvalidConfiguration;
    }
    const std::int64_t rows = p.batch * p.channels;
    const std::int64_t voxels = p.size[0] * p.size[1] * p.size[2];
    return with_half_type(p.type, [&]<typename T>(const T*) {
        if (!plain) {
            const std::int64_t threads = rows * whole[0] * whole[1] * ceil_div(whole[2], kVector);
            return whole[2] % kVector == 0 && is_aligned(p.output)
                       ? launch_units<place_rows<T, true>>(threads, kThreads, p, stream)
                       : launch_units<place_rows<T, false>>(threads, kThreads, p, stream);
        }
        const bool aligned = voxels % kVector == 0 && p.pitch % kVector == 0 && is_aligned(p.product) &&
                             is_aligned(p.residual) && is_aligned(p.output);
        const std::int64_t warps = rows * ceil_div(voxels, kRun);
        return aligned ? launch_units<add_rows<T, true>>(warps, kWarps, p, stream)
                       : launch_units<add_rows<T, false>>(warps, kWarps, p, stream);
    });
}

cudaError_t launch_output_gradient(const OutputGradientProblem& p, cudaStream_t stream) {
    for (int axis = 0; axis < 3; ++axis) {
        if (p.size[axis] > INT_MAX / 2) return cudaErrorInvalidConfiguration;
    }
    return with_half_type(p.type, [&]<typename T>(const T*) {
        const std::int64_t warps = p.rows * p.size[0] * ceil_div(p.size[1], kLinesOfWarp);
        return launch_units<take_apart<T>>(p.size[2] == 0 ? 0 : warps, kWarps, p, stream);
    });
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
