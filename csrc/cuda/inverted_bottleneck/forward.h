// The fused forward of the inverted bottleneck on tensor cores. See forward.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::inverted_bottleneck {

// `gain` is GRN's 1 + gamma nx, float [N, H]; null without GRN.
cudaError_t launch_fused_forward(const ForwardProblem& problem, const ForwardPlan& plan, const float* gain,
                                 cudaStream_t stream);

}  // namespace mednext_ops::cuda::inverted_bottleneck
