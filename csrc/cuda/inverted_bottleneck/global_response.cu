// Few numbers, in double: one of them stands for all voxels of a channel, so that its error does not average out. A
// launch takes as long as one thread's loads follow each other, which is why rows are shared by whole blocks.
#include "global_response.h"

#include <algorithm>
#include <climits>

#include "../common/launch.h"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "rows.cuh"

namespace mednext_ops::cuda::inverted_bottleneck {
namespace {

constexpr int kSampleThreads = 1024;  // of a block that has a sample

// The sum over the threads of a block, in a tree; the same in every thread.
template <int Threads>
__device__ double add_block(double (&of_thread)[Threads], double value) {
    of_thread[threadIdx.x] = value;
    __syncthreads();
    for (int distance = Threads / 2; distance > 0; distance /= 2) {
        if (static_cast<int>(threadIdx.x) < distance) of_thread[threadIdx.x] += of_thread[threadIdx.x + distance];
        __syncthreads();
    }
    const double sum = of_thread[0];
    __syncthreads();
    return sum;
}

// What the gradients add to the gains.
struct SlopeParameters {
    const double* dots;  // [N, R], as are the others; null without gradients
    float* slope;
    double* gamma_of_sample;
};

// A block is a sample.
__global__ void __launch_bounds__(kSampleThreads, 1)
    make_responses(const float* __restrict__ squares, const __grid_constant__ Parameter gamma, int hidden,
                   float* __restrict__ gain, const __grid_constant__ SlopeParameters slope) {
    constexpr double kEps = 1e-6;  // keeps the division finite (ConvNeXt V2, equation 2)
    MEDNEXT_OPS_SHARED(of_thread, double[kSampleThreads]);
    const std::int64_t row = std::int64_t{blockIdx.x} * hidden;
    const auto norm_of = [&](int r) { return sqrt(static_cast<double>(squares[row + r])); };

    double sum = 0.0;
    double dot_sum = 0.0;
    for (int r = threadIdx.x; r < hidden; r += kSampleThreads) {
        const double norm = norm_of(r);
        sum += norm;
        if (slope.dots != nullptr) dot_sum += load_parameter(gamma, r) * slope.dots[row + r] * norm;
    }
    const double denominator = add_block(of_thread, sum) / hidden + kEps;
    const double mean_part = add_block(of_thread, dot_sum) / hidden / (denominator * denominator);
    for (int r = threadIdx.x; r < hidden; r += kSampleThreads) {
        const double norm = norm_of(r);
        const double normalized = norm / denominator;
        const double scale = load_parameter(gamma, r);
        gain[row + r] = static_cast<float>(1.0 + scale * normalized);
        if (slope.dots == nullptr) continue;
        const double dot = slope.dots[row + r];
        const double grad_norm = scale * dot / denominator - mean_part;
        // The norm's gradient is h / norm, and zero where h is zero throughout.
        slope.slope[row + r] = norm > 0.0 ? static_cast<float>(grad_norm / norm) : 0.0f;
        slope.gamma_of_sample[row + r] = normalized * dot;
    }
}

// Blocks of the outputs, for the bias; then the weights, an element a thread. Samples are the grid's second dimension,
// as far as it goes.
template <typename T>
__global__ void __launch_bounds__(kThreads) scale_compression(const __grid_constant__ ResponseProblem p) {
    MEDNEXT_OPS_SHARED(of_thread, double[kThreads]);
    if (blockIdx.x < p.outputs) {
        if (blockIdx.y > 0) return;
        const std::int64_t row = blockIdx.x * p.hidden;
        double sum = 0.0;
        with_elements(p.compress_weight, [&](const auto* weights) {
#pragma unroll 4
            for (std::int64_t r = threadIdx.x; r < p.hidden; r += kThreads) {
                sum += static_cast<double>(to_float(weights[row + r])) * load_parameter(p.beta, r);
            }
        });
        sum = add_block(of_thread, sum);
        if (threadIdx.x > 0) return;
        if (p.compress_bias.data != nullptr) sum += load_parameter(p.compress_bias, blockIdx.x);
        p.bias[blockIdx.x] = static_cast<float>(sum);
        return;
    }
    const std::int64_t matrix = p.outputs * p.hidden;
    const std::int64_t i = (std::int64_t{blockIdx.x} - p.outputs) * kThreads + threadIdx.x;
    if (i >= matrix) return;
    const unsigned r = static_cast<unsigned>(i) % static_cast<unsigned>(p.hidden);
    const float weight = load_parameter(p.compress_weight, i);
    for (std::int64_t n = blockIdx.y; n < p.batch; n += gridDim.y) {
        static_cast<T*>(p.weights)[n * matrix + i] = from_float<T>(weight * p.gain[n * p.hidden + r]);
    }
}

__device__ inline double over_samples(const float* sums, std::int64_t batch, std::int64_t outputs, std::int64_t o) {
    double sum = 0.0;
    for (std::int64_t n = 0; n < batch; ++n) sum += sums[n * outputs + o];
    return sum;
}

// Left to itself ptxas saves registers and spills, on sm_80.
constexpr int kBlocksOfDots = 2;

// A block owns 32 hidden channels of a sample, one a lane; its warps share the outputs. The first sample's makes the
// gradient of beta on the way.
__global__ void __launch_bounds__(kThreads, kBlocksOfDots)
    hidden_dots(const __grid_constant__ ResponseGradientsProblem p) {
    MEDNEXT_OPS_SHARED(of_warp, double[2][kWarps][kWarpSize]);
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const auto blocks = static_cast<unsigned>(ceil_div(p.hidden, kWarpSize));
    const std::int64_t sample = blockIdx.x / blocks;
    const std::int64_t r = std::int64_t{blockIdx.x % blocks} * kWarpSize + lane;
    double dot = 0.0;
    double by_beta = 0.0;
    if (r < p.hidden) {
        const float* const products = p.output_hidden + sample * p.outputs * p.hidden;
        with_elements(p.compress_weight, [&](const auto* weights) {
#pragma unroll 4
            for (std::int64_t o = warp; o < p.outputs; o += kWarps) {
                const double weight = to_float(weights[o * p.hidden + r]);
                dot += weight * products[o * p.hidden + r];
                if (sample == 0) by_beta += weight * over_samples(p.output_sums, p.batch, p.outputs, o);
            }
        });
    }
    of_warp[0][warp][lane] = dot;
    of_warp[1][warp][lane] = by_beta;
    __syncthreads();
    if (warp > 0 || r >= p.hidden) return;
#pragma unroll
    for (int other = 1; other < kWarps; ++other) {
        dot += of_warp[0][other][lane];
        by_beta += of_warp[1][other][lane];
    }
    p.dots[sample * p.hidden + r] = dot;
    if (sample == 0) p.grad_beta[r] = static_cast<float>(by_beta);
}

// An element a thread: of the compression, then of its bias, then of gamma.
template <typename T>
__global__ void __launch_bounds__(kThreads) response_gradients(const __grid_constant__ ResponseGradientsProblem p) {
    const std::int64_t matrix = p.outputs * p.hidden;
    std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i < matrix) {
        const std::int64_t o = static_cast<unsigned>(i) / static_cast<unsigned>(p.hidden);
        const std::int64_t r = i - o * p.hidden;
        const float weight = load_parameter(p.compress_weight, i);
        double sum = load_parameter(p.beta, r) * over_samples(p.output_sums, p.batch, p.outputs, o);
        for (std::int64_t n = 0; n < p.batch; ++n) {
            const float gain = p.gain[n * p.hidden + r];
            static_cast<T*>(p.weights)[n * matrix + i] = from_float<T>(weight * gain);
            sum += static_cast<double>(p.output_hidden[n * matrix + i]) * gain;
        }
        p.grad_weight[i] = static_cast<float>(sum);
        return;
    }
    i -= matrix;
    if (i < p.outputs) {
        p.grad_bias[i] = static_cast<float>(over_samples(p.output_sums, p.batch, p.outputs, i));
        return;
    }
    i -= p.outputs;
    if (i >= p.hidden) return;
    double sum = 0.0;
    for (std::int64_t n = 0; n < p.batch; ++n) sum += p.gamma_of_sample[n * p.hidden + i];
    p.grad_gamma[i] = static_cast<float>(sum);
    if (p.batch == 0) p.grad_beta[i] = 0.0f;
}

constexpr std::int64_t kMostSamplesOfGrid = 65535;

// Blocks and elements of a matrix have numbers of 32 bits.
bool fits(std::int64_t samples, std::int64_t hidden, std::int64_t outputs) {
    constexpr std::int64_t kMost = INT_MAX / 2;
    return hidden < kMost && outputs < kMost && outputs * hidden < kMost &&
           samples * ceil_div(hidden, kWarpSize) < kMost;
}

}  // namespace

cudaError_t launch_response(const ResponseProblem& p, cudaStream_t stream) {
    if (!fits(p.batch, p.hidden, p.outputs)) return cudaErrorInvalidConfiguration;
    if (p.batch > 0 && p.hidden > 0) {
        const cudaError_t error =
            launch<make_responses>({static_cast<unsigned>(p.batch), kSampleThreads, 0, stream}, p.squares, p.gamma,
                                   static_cast<int>(p.hidden), p.gain, SlopeParameters{});
        if (error != cudaSuccess) return error;
    }
    if (p.outputs == 0) return cudaSuccess;
    const std::int64_t samples = std::clamp<std::int64_t>(p.batch, 1, kMostSamplesOfGrid);
    const dim3 grid(static_cast<unsigned>(p.outputs + ceil_div(p.outputs * p.hidden, kThreads)),
                    static_cast<unsigned>(samples));
    return with_scalar_type(
        p.type, [&]<typename T>(const T*) { return launch<scale_compression<T>>({grid, kThreads, 0, stream}, p); });
}

cudaError_t launch_response_gradients(const ResponseGradientsProblem& p, cudaStream_t stream) {
    if (!fits(p.batch, p.hidden, p.outputs)) return cudaErrorInvalidConfiguration;
    const std::int64_t dot_blocks = p.batch * ceil_div(p.hidden, kWarpSize);
    const std::int64_t blocks = ceil_div(p.outputs * p.hidden + p.outputs + p.hidden, kThreads);
    if (dot_blocks > 0) {
        cudaError_t error = launch<hidden_dots>({static_cast<unsigned>(dot_blocks), kThreads, 0, stream}, p);
        if (error != cudaSuccess) return error;
        error = launch<make_responses>({static_cast<unsigned>(p.batch), kSampleThreads, 0, stream}, p.squares, p.gamma,
                                       static_cast<int>(p.hidden), p.gain,
                                       SlopeParameters{p.dots, p.slope, p.gamma_of_sample});
        if (error != cudaSuccess) return error;
    }
    if (blocks == 0) return cudaSuccess;
    return with_scalar_type(p.type, [&]<typename T>(const T*) {
        return launch<response_gradients<T>>({static_cast<unsigned>(blocks), kThreads, 0, stream}, p);
    });
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
