// A warp owns a group of a sample: its lanes add the group's channels in a fixed order, then write their own channels.
// Where a group is one channel, a thread owns it.
#include "input_gradient.h"

#include <climits>

#include "../common/launch.h"
#include "../common/parameter.cuh"
#include "../common/warp.h"

namespace mednext_ops::cuda::group_norm {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;

__global__ void __launch_bounds__(kThreads) input_gradient(const __grid_constant__ InputGradientProblem p) {
    const std::int64_t width = p.channels / p.groups;
    const int lanes = width == 1 ? 1 : kWarpSize;  // of a group
    const int lane = threadIdx.x % lanes;
    const std::int64_t group = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / lanes;  // n * G + g
    if (group >= p.batch * p.groups) return;
    const std::int64_t begin = group % p.groups * width;
    const std::int64_t row = group / p.groups * p.channels + begin;

    double first = 0.0;
    double second = 0.0;
    for (std::int64_t c = lane; c < width; c += lanes) {
        const double gamma = load_parameter(p.weight, begin + c);
        first += gamma * p.grad_sum[row + c];
        second += gamma * p.grad_dot_normalized[row + c];
    }
    if (lanes > 1) {  // a whole warp
#pragma unroll
        for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
            first += __shfl_xor_sync(kFullWarp, first, distance);
            second += __shfl_xor_sync(kFullWarp, second, distance);
        }
    }
    const double mean = p.mean[group];
    const double rstd = p.rstd[group];
    const double share = -rstd / (static_cast<double>(width) * static_cast<double>(p.voxels));
    const double slope = share * rstd * second;
    const double offset = share * first - mean * slope;
    for (std::int64_t c = lane; c < width; c += lanes) {
        p.scale[row + c] = load_parameter(p.weight, begin + c) * p.rstd[group];
        p.slope[row + c] = static_cast<float>(slope);
        p.offset[row + c] = static_cast<float>(offset);
    }
}

}  // namespace

cudaError_t launch_input_gradient(const InputGradientProblem& p, cudaStream_t stream) {
    const std::int64_t threads = p.batch * p.groups * (p.channels == p.groups ? 1 : kWarpSize);
    const std::int64_t blocks = (threads + kThreads - 1) / kThreads;
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    return launch<input_gradient>({static_cast<unsigned>(blocks), kThreads, 0, stream}, p);
}

}  // namespace mednext_ops::cuda::group_norm
