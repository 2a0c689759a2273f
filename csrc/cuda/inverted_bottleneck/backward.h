// The fused backward of the inverted bottleneck on tensor cores. See backward.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::inverted_bottleneck {

// What a pass over the tensors makes. Each sum has its place in the workspace; the others there are left alone.
struct BackwardPass {
    const void* grad_output;  // null: only `squares`
    void* grad;               // null: not made
    bool hidden;              // the hidden gradient's sums
    bool compress;            // the compression's
    bool squares;             // of h, for GRN; not together with `hidden`
    const float* gain;        // of GRN, float [N, H]: the hidden gradient is gain * g + slope * h; null: g
    const float* slope;
    float* partial;  // [N, parts * splits, plan.sums()]
};

cudaError_t launch_fused_backward(const Bottleneck& bottleneck, const BackwardPlan& plan, const BackwardPass& pass,
                                  cudaStream_t stream);

}  // namespace mednext_ops::cuda::inverted_bottleneck
