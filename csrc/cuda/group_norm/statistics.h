// Mean and reciprocal standard deviation of each group of channels on the GPU.
//
// Two kernels: every block of threads writes the moments of its share of the tensor to a workspace, then one warp a
// group merges them in a fixed order. No atomics; the shares depend on the shape alone: the same input gives the same
// bits on every GPU, every time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/moments.h"
#include "../common/scalar_type.h"

namespace mednext_ops::cuda::group_norm {

struct StatisticsProblem {
    const void* input;  // [N, C, V], or [N, V, C] where channels_last; dense
    ScalarType type;
    bool channels_last;
    std::int64_t batch;       // N
    std::int64_t channels;    // C
    std::int64_t voxels;      // V = D * H * W
    std::int64_t num_groups;  // G, divides C
    double eps;
};

// Bytes of scratch memory that `launch_statistics` needs.
std::int64_t statistics_workspace_bytes(const StatisticsProblem& problem);

// Enqueues the work on `stream` and returns at once. mean and rstd are [N, G]; nothing is launched where N is 0. An
// empty group has no mean: both are NaN, as in torch.var_mean.
cudaError_t launch_statistics(const StatisticsProblem& problem, void* workspace, float* mean, float* rstd,
                              cudaStream_t stream);

// The second kernel alone, for moments that another op left: [groups, moments_per_group], in the order of the merge.
cudaError_t launch_finalize(const Moments<double>* moments, std::int64_t groups, std::int64_t moments_per_group,
                            double eps, float* mean, float* rstd, cudaStream_t stream);

}  // namespace mednext_ops::cuda::group_norm
