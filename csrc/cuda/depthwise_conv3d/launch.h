// Launches the depthwise convolution and its gradients on the core that the plan names.
//
// No atomics and no host synchronisation; every sum has an order that follows from the shape alone.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/moments.h"
#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Enqueues the convolution. Where `moments` is not null, it also gets the moments of the output as it was stored (after
// the rounding to its type): [N, C, plan.moments_per_channel], for group_norm::launch_finalize.
cudaError_t launch_convolution(const ConvolutionProblem& problem, const ConvolutionPlan& plan, Moments<double>* moments,
                               cudaStream_t stream);

// Enqueues the weight gradient; `workspace` has plan.workspace_bytes, at a multiple of 16 bytes.
cudaError_t launch_weight_gradient(const WeightGradientProblem& problem, const WeightGradientPlan& plan,
                                   void* workspace, cudaStream_t stream);

}  // namespace mednext_ops::cuda::depthwise_conv3d
