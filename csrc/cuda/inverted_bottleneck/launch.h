// Launches the inverted bottleneck and its gradients.
//
// No atomics and no host synchronisation; every sum has an order that follows from the shape alone.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::inverted_bottleneck {

// Bytes of scratch memory, at a multiple of 16 bytes. The forward needs some only with GRN.
std::int64_t forward_workspace_bytes(const Bottleneck& bottleneck, int architecture);
std::int64_t backward_workspace_bytes(const Bottleneck& bottleneck, int architecture);

// Enqueues the forward. The shape has a plan: plan_forward, and with GRN plan_backward too.
cudaError_t launch_forward(const ForwardProblem& problem, int architecture, void* workspace, cudaStream_t stream);

// Enqueues the gradients that `problem` wants. The shape has a plan_backward.
cudaError_t launch_backward(const BackwardProblem& problem, int architecture, void* workspace, cudaStream_t stream);

}  // namespace mednext_ops::cuda::inverted_bottleneck
