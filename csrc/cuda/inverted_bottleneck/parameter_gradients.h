// The last steps of the backward: partial sums are added up and become the gradients of the parameters and of the norm.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"
#include "problem.h"

namespace mednext_ops::cuda::inverted_bottleneck {

// Enqueues sums[n, i] = sum over the parts of partial[n, part, i], in double and in ascending order, for the sums from
// `begin` to `end`. `partial` is [N, parts * splits, plan.sums()], `sums` is [N, plan.sums()].
cudaError_t launch_add_parts(const BackwardPlan& plan, std::int64_t batch, std::int64_t begin, std::int64_t end,
                             const float* partial, float* sums, cudaStream_t stream);

// Global Response Normalisation of a sample, from its sums: float [N, H] each.
struct GlobalResponse {
    float* gain;      // 1 + gamma nx
    float* slope;     // what the norm's gradient adds to that of h: slope * h
    float* by_gamma;  // the gradient of gamma
};

// Enqueues the response from plan.squares() of `sums`; with `gradients` also slope and by_gamma, from plan.compress().
cudaError_t launch_global_response(const Bottleneck& bottleneck, const BackwardPlan& plan, bool gradients,
                                   const float* sums, const GlobalResponse& response, cudaStream_t stream);

// Enqueues every gradient of `problem` but `grad`. `response` is not looked at without GRN.
cudaError_t launch_parameter_gradients(const BackwardProblem& problem, const BackwardPlan& plan, const float* sums,
                                       const GlobalResponse& response, cudaStream_t stream);

}  // namespace mednext_ops::cuda::inverted_bottleneck
