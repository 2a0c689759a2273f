// A block owns 32 adjacent sums, one a lane, so that a warp reads whole lines of a part; its warps share the parts.
//
//     partial:  part 0    |....|<- 32 ->|....|      warp 0
//               part 1    |....|        |....|      warp 1
//               ...
//               part 8    |....|        |....|      warp 0 again
//
// Each lane adds its parts in ascending order, then warp 0 adds the warps' sums in ascending order.
#include "weight_gradient_reduction.h"

#include <climits>

#include "../common/launch.h"
#include "../common/shared_memory.cuh"
#include "../common/warp.h"

namespace mednext_ops::cuda::depthwise_conv3d {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

__global__ void __launch_bounds__(kThreads) add_parts(const float* __restrict__ partial, std::int64_t sums,
                                                      std::int64_t parts, float* __restrict__ grad_weight) {
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const std::int64_t mine = static_cast<std::int64_t>(blockIdx.x) * kWarpSize + lane;

    double sum = 0.0;
    if (mine < sums) {
#pragma unroll 4
        for (std::int64_t part = warp; part < parts; part += kWarps) sum += partial[part * sums + mine];
    }
    MEDNEXT_OPS_SHARED(of_warp, double[kWarps][kWarpSize]);
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && mine < sums) {
        for (int other = 1; other < kWarps; ++other) sum += of_warp[other][lane];
        grad_weight[mine] = static_cast<float>(sum);
    }
}

}  // namespace

cudaError_t launch_reduction(const float* partial, std::int64_t sums, std::int64_t parts, float* grad_weight,
                             cudaStream_t stream) {
    const std::int64_t blocks = (sums + kWarpSize - 1) / kWarpSize;
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    return launch<add_parts>({static_cast<unsigned>(blocks), kThreads, 0, stream}, partial, sums, parts, grad_weight);
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
