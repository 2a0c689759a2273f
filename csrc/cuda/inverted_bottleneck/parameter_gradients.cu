// Small sums over what the blocks of the fused backward have left: [N, sums], a few thousand of them a sample.
//
// With G = sum_v dpre yhat^T [H, C] and s = sum_v dpre [H] of a sample (facts of GroupNorm, all exact):
//
//     expand_weight = sum_n G diag(gamma) + s beta^T       grad_sum            = W1^T s
//     expand_bias   = sum_n s                              grad_dot_normalized = diag(W1^T G)
//
// and with GRN the compression sees h (1 + gamma nx) + beta, so that its gradient is made of that of h.
#include "parameter_gradients.h"

#include <climits>

#include "../common/launch.h"
#include "../common/parameter.cuh"
#include "../common/shared_memory.cuh"
#include "../common/warp.h"

namespace mednext_ops::cuda::inverted_bottleneck {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

// Two blocks a multiprocessor leave 128 registers a thread; left to itself ptxas saves registers and spills (on sm_80).
constexpr int kBlocksPerProcessor = 2;

// A block owns 32 adjacent sums of a sample, one a lane; its warps, as many as a block can have, share the parts: there
// are some hundreds of them, and a launch takes as long as one warp's follow each other.
constexpr int kWarpsOfParts = 32;

__global__ void __launch_bounds__(kWarpsOfParts* kWarpSize, 1)
    add_parts(const float* __restrict__ partial, std::int64_t parts, std::int64_t stride, std::int64_t begin,
              std::int64_t count, float* __restrict__ sums) {
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const std::int64_t mine = static_cast<std::int64_t>(blockIdx.x) * kWarpSize + lane;
    const std::int64_t sample = blockIdx.y;
    double sum = 0.0;
    if (mine < count) {
#pragma unroll 4
        for (std::int64_t part = warp; part < parts; part += kWarpsOfParts) {
            sum += partial[(sample * parts + part) * stride + begin + mine];
        }
    }
    MEDNEXT_OPS_SHARED(of_warp, double[kWarpsOfParts][kWarpSize]);
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || mine >= count) return;
#pragma unroll
    for (int other = 1; other < kWarpsOfParts; ++other) sum += of_warp[other][lane];
    sums[sample * stride + begin + mine] = static_cast<float>(sum);
}

// Sum over the threads of a block, in a tree; the same in every thread.
__device__ inline float add_threads(float (&of_thread)[kThreads], float value) {
    of_thread[threadIdx.x] = value;
    __syncthreads();
    for (int distance = kThreads / 2; distance > 0; distance /= 2) {
        if (static_cast<int>(threadIdx.x) < distance) of_thread[threadIdx.x] += of_thread[threadIdx.x + distance];
        __syncthreads();
    }
    const float sum = of_thread[0];
    __syncthreads();
    return sum;
}

// A block is a sample, a thread a hidden channel.
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    global_response(const __grid_constant__ Bottleneck p, const __grid_constant__ BackwardPlan plan, bool gradients,
                    const float* __restrict__ sums, const __grid_constant__ GlobalResponse response) {
    constexpr float kEps = 1e-6f;  // keeps the division finite (ConvNeXt V2, equation 2)
    const int h = threadIdx.x;
    const auto hidden = static_cast<int>(p.extents.hidden);
    const bool inside = h < hidden;
    const float* const of_sample = sums + blockIdx.x * plan.sums();
    const std::int64_t to = static_cast<std::int64_t>(blockIdx.x) * hidden + h;
    MEDNEXT_OPS_SHARED(of_thread, float[kThreads]);

    const float norm = inside ? sqrtf(of_sample[plan.squares() + h]) : 0.0f;
    const float mean = add_threads(of_thread, norm) / static_cast<float>(hidden);
    const float denominator = mean + kEps;
    const float normalized = norm / denominator;
    const float gamma = inside ? load_parameter(p.grn_gamma, h) : 0.0f;
    if (inside) response.gain[to] = fmaf(gamma, normalized, 1.0f);
    if (!gradients) return;

    // The sum over the voxels of the hidden gradient times h, without a pass over them: the compression is linear.
    float dot = 0.0f;
    for (int o = 0; inside && o < p.extents.outputs; ++o) {
        const float weight = load_parameter(p.compress_weight, static_cast<std::int64_t>(o) * hidden + h);
        dot = fmaf(of_sample[plan.compress() + h * plan.outputs + o], weight, dot);
    }
    const float by_normalized = gamma * dot;
    const float mean_product = add_threads(of_thread, by_normalized * norm) / static_cast<float>(hidden);
    const float by_norm = by_normalized / denominator - mean_product / (denominator * denominator);
    if (!inside) return;
    response.slope[to] = norm > 0.0f ? by_norm / norm : 0.0f;  // the norm has no slope where h is zero throughout
    response.by_gamma[to] = normalized * dot;
}

// Sums of the gradient of the normalised tensor: a block owns eight channels of a sample, as many as share a sector of
// memory, its threads share the hidden ones. All loads of a thread are on their way at once, up to 256 of them.
constexpr int kColumns = 8;
constexpr int kRowsAtOnce = kThreads / kColumns;
constexpr int kRowsOfThread = BackwardPlan::kMostHidden / kRowsAtOnce;

__device__ void norm_sums(const BackwardProblem& p, const BackwardPlan& plan, const float* sums, unsigned block) {
    MEDNEXT_OPS_SHARED(of_row, double[2][kRowsAtOnce][kColumns]);
    const std::int64_t channels = p.bottleneck.extents.channels;
    const std::int64_t hidden = p.bottleneck.extents.hidden;
    const auto blocks = static_cast<unsigned>(ceil_div(channels, kColumns));
    const std::int64_t sample = block / blocks;
    const int column = threadIdx.x % kColumns;
    const int row = threadIdx.x / kColumns;
    const std::int64_t c = std::int64_t{block % blocks} * kColumns + column;
    const float* const of_sample = sums + sample * plan.sums();
    double sum = 0.0;
    double dot = 0.0;
    if (c < channels) {
        with_elements(p.bottleneck.expand_weight, [&](const auto* weights) {
#pragma unroll kRowsOfThread
            for (std::int64_t h = row; h < hidden; h += kRowsAtOnce) {
                const double weight = to_float(weights[h * channels + c]);
                sum += weight * of_sample[plan.hidden_sums() + h];
                dot += weight * of_sample[plan.normalized() + h * plan.channels + c];
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
    if (row != 0 || c >= channels) return;
    p.grad_sum[sample * channels + c] = static_cast<float>(of_row[0][0][column]);
    p.grad_dot_normalized[sample * channels + c] = static_cast<float>(of_row[1][0][column]);
}

// Blocks of columns, for the sums above; after them gradients of the parameters, an element a thread, those of all
// tensors one after another.
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    parameter_gradients(const __grid_constant__ BackwardProblem p, const __grid_constant__ BackwardPlan plan,
                        const float* __restrict__ sums, const __grid_constant__ GlobalResponse response,
                        unsigned blocks_of_columns) {
    if (blockIdx.x < blocks_of_columns) return norm_sums(p, plan, sums, blockIdx.x);
    const Extents& extents = p.bottleneck.extents;
    const std::int64_t channels = extents.channels;
    const std::int64_t hidden = extents.hidden;
    const std::int64_t outputs = extents.outputs;
    const bool grn = p.bottleneck.grn_gamma.data != nullptr;
    std::int64_t i = std::int64_t{blockIdx.x - blocks_of_columns} * kThreads + threadIdx.x;
    const auto add_samples = [&](auto&& of_sample) {
        double sum = 0.0;
        for (std::int64_t n = 0; n < extents.batch; ++n) sum += of_sample(sums + n * plan.sums(), n);
        return static_cast<float>(sum);
    };
    if (p.wants_hidden) {
        if (i < hidden * channels) {
            const std::int64_t h = i / channels;
            const std::int64_t c = i % channels;
            const double scale = load_parameter(p.bottleneck.norm_weight, c);
            const double shift = load_parameter(p.bottleneck.norm_bias, c);
            p.expand_weight[i] = add_samples([&](const float* of_sample, std::int64_t) {
                return scale * of_sample[plan.normalized() + h * plan.channels + c] +
                       shift * of_sample[plan.hidden_sums() + h];
            });
            return;
        }
        i -= hidden * channels;
        if (i < hidden) {
            p.expand_bias[i] = add_samples([&](const float* of_sample, std::int64_t) {
                return static_cast<double>(of_sample[plan.hidden_sums() + i]);
            });
            return;
        }
        i -= hidden;
    }
    if (!p.wants_compress) return;
    if (i < outputs * hidden) {
        const std::int64_t o = i / hidden;
        const std::int64_t h = i % hidden;
        const double beta = grn ? load_parameter(p.bottleneck.grn_beta, h) : 0.0;
        p.compress_weight[i] = add_samples([&](const float* of_sample, std::int64_t n) {
            const double product = of_sample[plan.compress() + h * plan.outputs + o];
            return grn ? product * response.gain[n * hidden + h] + beta * of_sample[plan.output_sums() + o] : product;
        });
        return;
    }
    i -= outputs * hidden;
    if (i < outputs) {
        p.compress_bias[i] = add_samples([&](const float* of_sample, std::int64_t) {
            return static_cast<double>(of_sample[plan.output_sums() + i]);
        });
        return;
    }
    i -= outputs;
    if (!grn || i >= hidden) return;
    p.grn_gamma[i] = add_samples(
        [&](const float*, std::int64_t n) { return static_cast<double>(response.by_gamma[n * hidden + i]); });
    p.grn_beta[i] = add_samples([&](const float* of_sample, std::int64_t) {
        double sum = 0.0;
        for (std::int64_t o = 0; o < outputs; ++o) {
            const double weight = load_parameter(p.bottleneck.compress_weight, o * hidden + i);
            sum += weight * of_sample[plan.output_sums() + o];
        }
        return sum;
    });
}

// Samples are the grid's second dimension.
constexpr std::int64_t kMaxSamples = 65535;

}  // namespace

cudaError_t launch_add_parts(const BackwardPlan& plan, std::int64_t batch, std::int64_t begin, std::int64_t end,
                             const float* partial, float* sums, cudaStream_t stream) {
    const std::int64_t count = end - begin;
    if (batch == 0 || count == 0) return cudaSuccess;
    if (batch > kMaxSamples) return cudaErrorInvalidConfiguration;
    const dim3 grid(static_cast<unsigned>(ceil_div(count, kWarpSize)), static_cast<unsigned>(batch));
    const std::int64_t parts = std::int64_t{plan.parts} * plan.splits;
    return launch<add_parts>({grid, kWarpsOfParts * kWarpSize, 0, stream}, partial, parts, plan.sums(), begin, count,
                             sums);
}

cudaError_t launch_global_response(const Bottleneck& bottleneck, const BackwardPlan& plan, bool gradients,
                                   const float* sums, const GlobalResponse& response, cudaStream_t stream) {
    static_assert(BackwardPlan::kMostHidden <= kThreads, "a thread a hidden channel");
    const auto samples = static_cast<unsigned>(bottleneck.extents.batch);
    if (samples == 0) return cudaSuccess;
    return launch<global_response>({samples, kThreads, 0, stream}, bottleneck, plan, gradients, sums, response);
}

cudaError_t launch_parameter_gradients(const BackwardProblem& problem, const BackwardPlan& plan, const float* sums,
                                       const GlobalResponse& response, cudaStream_t stream) {
    const Extents& e = problem.bottleneck.extents;
    if (e.batch > kMaxSamples) return cudaErrorInvalidConfiguration;
    const std::int64_t columns = problem.wants_hidden ? e.batch * ceil_div(e.channels, kColumns) : 0;
    const std::int64_t elements = e.hidden * (e.channels + e.outputs + 2) + e.outputs;
    const std::int64_t blocks = columns + ceil_div(elements, kThreads);
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    return launch<parameter_gradients>({static_cast<unsigned>(blocks), kThreads, 0, stream}, problem, plan, sums,
                                       response, static_cast<unsigned>(columns));
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
