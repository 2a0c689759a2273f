// The fused backward of the inverted bottleneck on tensor cores. See backward.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::inverted_bottleneck {

// What a pass over the tensors makes. Each sum has its place in the workspace; the others there are left alone.
struct BackwardPass {
    // Without GRN there is one pass, and with it two: the second one needs the sums of the first.
    enum class Kind {
        complete,  // the sums of the hidden gradient and of the compression
        squares,   // those of the compression and of h squared
        adjusted,  // those of the hidden gradient, which is gain * g + slope * h
    };
    Kind kind;
    const void* grad_output;  // null: only the sums of squares
    void* grad;               // null: not made
    const float* gain;        // of GRN, float [N, H]
    const float* slope;
    float* partial;  // [N, parts * splits, plan.sums()]
};

cudaError_t launch_fused_backward(const Bottleneck& bottleneck, const BackwardPlan& plan, const BackwardPass& pass,
                                  cudaStream_t stream);

}  // namespace mednext_ops::cuda::inverted_bottleneck
