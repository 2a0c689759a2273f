// A lane has eight neighbouring voxels of every row (a channel of a sample) that it reads, or writes:
//
//     from few to many    the few rows stay in registers, and a row of the result is made and written at a time
//     from many to few    the few rows of the result stay in registers, and a row is read at a time; where there are
//                         not voxels enough, the warps of a block share the rows and are added in the order of warps
//     weight              as many voxels of the few rows as registers hold; a row of the many at a time, whose products
//                         with the few are added over a warp's lanes, then over its block, then over blocks in double
#include "pointwise_conv3d.h"

#include <algorithm>
#include <climits>
#include <cstdint>

#include "../common/launch.h"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "../common/warp.h"
#include "../common/warp_sum.cuh"

namespace mednext_ops::cuda::pointwise_conv3d {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kVector = kVoxels;
constexpr int kWarpVoxels = kWarpSize * kVector;
constexpr int kBlockVoxels = kWarps * kWarpVoxels;

// Rows of the many whose weights, or sums, a block holds at a time.
constexpr int kRows = 64;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

template <typename T>
using Eight = Vector<T, kVector>;

template <typename T>
__device__ Eight<T> load(const void* base, std::int64_t row, std::int64_t voxels, std::int64_t v) {
    return *reinterpret_cast<const Eight<T>*>(static_cast<const T*>(base) + row * voxels + v);
}

template <typename T>
__device__ void store(void* base, std::int64_t row, std::int64_t voxels, std::int64_t v,
                      const float (&values)[kVector]) {
    Eight<T> vector;
#pragma unroll
    for (int i = 0; i < kVector; ++i) vector.element[i] = from_float<T>(values[i]);
    *reinterpret_cast<Eight<T>*>(static_cast<T*>(base) + row * voxels + v) = vector;
}

__device__ inline float weight_of(const ForwardProblem& p, std::int64_t output, std::int64_t input) {
    if (output >= p.shape.outputs || input >= p.shape.inputs) return 0.0f;
    return load_parameter(p.weight, p.transposed ? input * p.shape.outputs + output : output * p.shape.inputs + input);
}

__device__ inline float bias_of(const ForwardProblem& p, std::int64_t output) {
    return p.bias.data == nullptr || output >= p.shape.outputs ? 0.0f : load_parameter(p.bias, output);
}

// A block has kBlockVoxels of a sample.
template <typename T, int Few>
__global__ void __launch_bounds__(kThreads, 2) from_few(const __grid_constant__ ForwardProblem p, unsigned blocks) {
    MEDNEXT_OPS_SHARED(weights, float[kRows][Few + 1]);
    const std::int64_t sample = blockIdx.x / blocks;
    const std::int64_t v = std::int64_t{blockIdx.x % blocks} * kBlockVoxels + threadIdx.x * kVector;
    const bool there = v < p.shape.voxels;
    float few[Few][kVector] = {};
#pragma unroll
    for (int i = 0; i < Few; ++i) {
        if (!there || i >= p.shape.inputs) continue;
        const Eight<T> vector = load<T>(p.input, sample * p.shape.inputs + i, p.shape.voxels, v);
#pragma unroll
        for (int j = 0; j < kVector; ++j) few[i][j] = to_float(vector.element[j]);
    }
    for (std::int64_t first = 0; first < p.shape.outputs; first += kRows) {
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < kRows * (Few + 1); i += kThreads) {
            const int row = i / (Few + 1);
            const int column = i % (Few + 1);
            weights[row][column] = column < Few ? weight_of(p, first + row, column) : bias_of(p, first + row);
        }
        __syncthreads();
        if (!there) continue;
        const int rows = p.shape.outputs - first < kRows ? static_cast<int>(p.shape.outputs - first) : kRows;
#pragma unroll 4
        for (int row = 0; row < rows; ++row) {
            float values[kVector];
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                values[j] = weights[row][Few];
#pragma unroll
                for (int i = 0; i < Few; ++i) values[j] = fmaf(weights[row][i], few[i][j], values[j]);
            }
            store<T>(p.output, sample * p.shape.outputs + first + row, p.shape.voxels, v, values);
        }
    }
}

// Sharing: the warps of a block have the same voxels and share the rows. Else each has its own voxels and all rows.
template <typename T, int Few, bool Sharing>
__global__ void __launch_bounds__(kThreads, Few == 8 ? 1 : 2)
    to_few(const __grid_constant__ ForwardProblem p, unsigned blocks) {
    MEDNEXT_OPS_SHARED(weights, float[kRows][Few]);
    const int warp = threadIdx.x / kWarpSize;
    const int lane = threadIdx.x % kWarpSize;
    const std::int64_t sample = blockIdx.x / blocks;
    const std::int64_t v = Sharing ? std::int64_t{blockIdx.x % blocks} * kWarpVoxels + lane * kVector
                                   : std::int64_t{blockIdx.x % blocks} * kBlockVoxels + threadIdx.x * kVector;
    const bool there = v < p.shape.voxels;
    float sums[Few][kVector] = {};
    for (std::int64_t first = 0; first < p.shape.inputs; first += kRows) {
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < kRows * Few; i += kThreads) {
            weights[i / Few][i % Few] = weight_of(p, i % Few, first + i / Few);
        }
        __syncthreads();
        if (!there) continue;
        const int rows = p.shape.inputs - first < kRows ? static_cast<int>(p.shape.inputs - first) : kRows;
#pragma unroll 4
        for (int row = Sharing ? warp : 0; row < rows; row += Sharing ? kWarps : 1) {
            const Eight<T> vector = load<T>(p.input, sample * p.shape.inputs + first + row, p.shape.voxels, v);
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                const float value = to_float(vector.element[j]);
#pragma unroll
                for (int i = 0; i < Few; ++i) sums[i][j] = fmaf(weights[row][i], value, sums[i][j]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < Few; ++i) {
        if constexpr (Sharing) {
            MEDNEXT_OPS_SHARED(of_warp, float[kWarps][kVector][kWarpSize]);
            __syncthreads();
#pragma unroll
            for (int j = 0; j < kVector; ++j) of_warp[warp][j][lane] = sums[i][j];
            __syncthreads();
            if (warp != i) continue;  // each warp writes a row: there are at least as many
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                float sum = 0.0f;
                for (int other = 0; other < kWarps; ++other) sum += of_warp[other][j][lane];
                sums[i][j] = sum;
            }
        }
        if (!there || i >= p.shape.outputs) continue;
        const float bias = bias_of(p, i);
#pragma unroll
        for (int j = 0; j < kVector; ++j) sums[i][j] += bias;
        store<T>(p.output, sample * p.shape.outputs + i, p.shape.voxels, v, sums[i]);
    }
}

// ---- the weight's gradient ----

// Vectors of a few row that a lane keeps: 32 registers of floats, or 64.
constexpr int steps_of(int few) {
    return few >= 4 ? 1 : 4 / few;
}

constexpr int part_voxels(int few) {
    return steps_of(few) * kBlockVoxels;
}

int filled(std::int64_t few) {
    return few <= 1 ? 1 : few <= 2 ? 2 : few <= 4 ? 4 : 8;
}

// Sums of a part: of many times few [many][Few], of many [many], of few [Few].
constexpr std::int64_t sums_of(std::int64_t many, int few) {
    return many * (few + 1) + few;
}

struct WeightParameters {
    std::int64_t many_rows, few_rows, voxels;
    const void* many;
    const void* few;
    float* partial;   // [parts, sums]
    unsigned parts;   // of a sample
    unsigned shares;  // blocks that share the rows of a part
    int rows;         // of each, at most kRows
};

template <typename T, int Few>
__global__ void __launch_bounds__(kThreads, Few == 8 ? 1 : 2) weight_sums(const __grid_constant__ WeightParameters p) {
    constexpr int kSteps = steps_of(Few);
    MEDNEXT_OPS_SHARED(of_warp, float[kWarps][kRows][Few + 1]);
    const int warp = threadIdx.x / kWarpSize;
    const int lane = threadIdx.x % kWarpSize;
    const unsigned share = blockIdx.x % p.shares;
    const std::int64_t part = blockIdx.x / p.shares;
    const std::int64_t sample = part / p.parts;
    const std::int64_t begin = part % p.parts * part_voxels(Few) + warp * kWarpVoxels;
    const std::int64_t first = std::int64_t{share} * p.rows;
    const int rows = p.many_rows - first < p.rows ? static_cast<int>(p.many_rows - first) : p.rows;
    float* const partial = p.partial + part * sums_of(p.many_rows, Few);
    const auto place = [&](int step) { return begin + step * kBlockVoxels + lane * kVector; };

    Eight<T> few[kSteps][Few] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < Few; ++i) {
            if (i >= p.few_rows || place(step) >= p.voxels) continue;
            few[step][i] = load<T>(p.few, sample * p.few_rows + i, p.voxels, place(step));
        }
    }
#pragma unroll 2
    for (int row = 0; row < rows; ++row) {
        Eight<T> many[kSteps] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            if (place(step) >= p.voxels) continue;
            many[step] = load<T>(p.many, sample * p.many_rows + first + row, p.voxels, place(step));
        }
        float sums[Few + 1] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                const float value = to_float(many[step].element[j]);
                sums[Few] += value;
#pragma unroll
                for (int i = 0; i < Few; ++i) sums[i] = fmaf(value, to_float(few[step][i].element[j]), sums[i]);
            }
        }
#pragma unroll
        for (int i = 0; i <= Few; ++i) {
            sums[i] = add_lanes(sums[i]);
            if (lane == 0) of_warp[warp][row][i] = sums[i];
        }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < rows * (Few + 1); i += kThreads) {
        const int row = i / (Few + 1);
        const int column = i % (Few + 1);
        float sum = 0.0f;
        for (int other = 0; other < kWarps; ++other) sum += of_warp[other][row][column];
        partial[column < Few ? (first + row) * Few + column : p.many_rows * Few + first + row] = sum;
    }
    if (share != 0) return;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Few; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int j = 0; j < kVector; ++j) sum += to_float(few[step][i].element[j]);
        }
        sum = add_lanes(sum);
        if (lane == 0) of_warp[warp][0][i] = sum;
    }
    __syncthreads();
    if (threadIdx.x < Few) {
        float sum = 0.0f;
        for (int other = 0; other < kWarps; ++other) sum += of_warp[other][0][threadIdx.x];
        partial[p.many_rows * (Few + 1) + threadIdx.x] = sum;
    }
}

// The parts added in double, each sum where its gradient belongs: a block has 32 sums, its warps share the parts.
template <int Few>
__global__ void __launch_bounds__(kThreads)
    add_parts(const __grid_constant__ WeightProblem p, const float* partial, std::int64_t parts) {
    MEDNEXT_OPS_SHARED(of_warp, double[kWarps][kWarpSize]);
    const bool few_inputs = p.shape.inputs <= p.shape.outputs;
    const std::int64_t many = few_inputs ? p.shape.outputs : p.shape.inputs;
    const std::int64_t few = few_inputs ? p.shape.inputs : p.shape.outputs;
    const std::int64_t sums = sums_of(many, Few);
    const std::int64_t mine = static_cast<std::int64_t>(blockIdx.x) * kWarpSize + threadIdx.x % kWarpSize;
    double sum = 0.0;
    if (mine < sums) {
#pragma unroll 8
        for (std::int64_t part = threadIdx.x / kWarpSize; part < parts; part += kWarps) {
            sum += partial[part * sums + mine];
        }
    }
    of_warp[threadIdx.x / kWarpSize][threadIdx.x % kWarpSize] = sum;
    __syncthreads();
    if (threadIdx.x >= kWarpSize || mine >= sums) return;
    for (int other = 1; other < kWarps; ++other) sum += of_warp[other][threadIdx.x];
    if (mine < many * Few) {
        const std::int64_t row = mine / Few;
        const std::int64_t column = mine % Few;
        if (column >= few) return;
        const std::int64_t at = few_inputs ? row * p.shape.inputs + column : column * p.shape.inputs + row;
        p.grad_weight[at] = static_cast<float>(sum);
        return;
    }
    const bool of_many = mine < many * (Few + 1);
    const std::int64_t row = mine - many * (of_many ? Few : Few + 1);
    if (of_many == few_inputs && row < p.shape.outputs) p.grad_bias[row] = static_cast<float>(sum);
}

template <typename Function>
cudaError_t with_few(std::int64_t few, Function&& function) {
    switch (filled(few)) {
        case 1:
            return function.template operator()<1>();
        case 2:
            return function.template operator()<2>();
        case 4:
            return function.template operator()<4>();
        default:
            return function.template operator()<8>();
    }
}

std::int64_t few_of(const Shape& shape) {
    return std::min(shape.inputs, shape.outputs);
}

std::int64_t many_of(const Shape& shape) {
    return std::max(shape.inputs, shape.outputs);
}

std::int64_t parts_of(const Shape& shape) {
    return ceil_div(shape.voxels, part_voxels(filled(few_of(shape))));
}

// Blocks that fill a GPU, and voxels that make as many.
constexpr std::int64_t kEnoughBlocks = 2 * 132;
constexpr std::int64_t kEnoughVoxels = kEnoughBlocks * kBlockVoxels;

}  // namespace

bool takes(const Shape& shape) {
    return shape.inputs > 0 && shape.outputs > 0 && few_of(shape) <= kMostFew && shape.voxels % kVoxels == 0;
}

cudaError_t launch_forward(const ForwardProblem& p, cudaStream_t stream) {
    if (!takes(p.shape)) return cudaErrorInvalidValue;
    const bool few_inputs = p.shape.inputs <= p.shape.outputs;
    const bool sharing = !few_inputs && p.shape.batch * p.shape.voxels < kEnoughVoxels;
    const std::int64_t blocks = ceil_div(p.shape.voxels, sharing ? kWarpVoxels : kBlockVoxels);
    const std::int64_t grid = p.shape.batch * blocks;
    if (grid == 0) return cudaSuccess;
    if (grid > INT_MAX) return cudaErrorInvalidConfiguration;
    const LaunchShape shape{static_cast<unsigned>(grid), kThreads, 0, stream};
    const auto count = static_cast<unsigned>(blocks);
    return with_scalar_type(p.shape.type, [&]<typename T>(const T*) {
        return with_few(few_of(p.shape), [&]<int Few>() {
            if (few_inputs) return launch<from_few<T, Few>>(shape, p, count);
            return sharing ? launch<to_few<T, Few, true>>(shape, p, count)
                           : launch<to_few<T, Few, false>>(shape, p, count);
        });
    });
}

std::int64_t weight_workspace(const WeightProblem& p) {
    return p.shape.batch * parts_of(p.shape) * sums_of(many_of(p.shape), filled(few_of(p.shape)));
}

cudaError_t launch_weight_gradient(const WeightProblem& p, float* workspace, cudaStream_t stream) {
    if (!takes(p.shape)) return cudaErrorInvalidValue;
    const bool few_inputs = p.shape.inputs <= p.shape.outputs;
    const std::int64_t many = many_of(p.shape);
    const std::int64_t parts = p.shape.batch * parts_of(p.shape);
    // In a block one row follows the other: where there are few voxels, many blocks have a few rows each.
    const std::int64_t fewest = ceil_div(many, kRows);
    const std::int64_t wanted = std::min(ceil_div(kEnoughBlocks, std::max<std::int64_t>(parts, 1)), ceil_div(many, 4));
    const auto rows = static_cast<int>(ceil_div(many, std::max(fewest, wanted)));
    const std::int64_t shares = ceil_div(many, rows);
    const std::int64_t grid = parts * shares;
    if (grid > INT_MAX) return cudaErrorInvalidConfiguration;
    const WeightParameters parameters{many,
                                      few_of(p.shape),
                                      p.shape.voxels,
                                      few_inputs ? p.grad_output : p.input,
                                      few_inputs ? p.input : p.grad_output,
                                      workspace,
                                      static_cast<unsigned>(parts_of(p.shape)),
                                      static_cast<unsigned>(shares),
                                      rows};
    return with_scalar_type(p.shape.type, [&]<typename T>(const T*) {
        return with_few(few_of(p.shape), [&]<int Few>() {
            const LaunchShape shape{static_cast<unsigned>(grid), kThreads, 0, stream};
            const cudaError_t error = grid == 0 ? cudaSuccess : launch<weight_sums<T, Few>>(shape, parameters);
            if (error != cudaSuccess) return error;
            const std::int64_t sums = sums_of(many, Few);
            const LaunchShape rest{static_cast<unsigned>(ceil_div(sums, kWarpSize)), kThreads, 0, stream};
            return launch<add_parts<Few>>(rest, p, static_cast<const float*>(workspace), parts);
        });
    });
}

}  // namespace mednext_ops::cuda::pointwise_conv3d
