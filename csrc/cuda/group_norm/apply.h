// GroupNorm's affine map with an optional GELU, and its gradient, for statistics that are already there.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/parameter.h"
#include "../common/scalar_type.h"

namespace mednext_ops::cuda::group_norm {

struct ApplyProblem {
    const void* input;  // [N, C, V], or [N, V, C] where channels_last; dense
    ScalarType type;
    bool channels_last;
    std::int64_t batch, channels, voxels;
    std::int64_t num_groups;  // G, divides C
    const float* mean;        // [N, G]
    const float* rstd;        // [N, G]
    Parameter weight, bias;   // [C]
    bool gelu;
};

// output = activation(weight * (input - mean) * rstd + bias), computed in float; GELU is exact for float32, and within
// an eighth of the rounding for the 16-bit types (common/gelu.cuh).
cudaError_t launch_apply(const ApplyProblem& problem, void* output, cudaStream_t stream);

// Partial sums a sample and channel that the gradient leaves.
std::int64_t gradient_parts(const ApplyProblem& problem);

// With GELU: grad = grad_output * gelu'(...), in the tensor's type; without, `grad` is not written and may be null. The
// sums over the voxels of that gradient, and of it times (input - mean) * rstd, are [N, C]. `workspace` has room for 2
// * gradient_parts * N * C floats.
cudaError_t launch_apply_gradient(const ApplyProblem& problem, const void* grad_output, void* grad, float* workspace,
                                  float* grad_sum, float* grad_dot_normalized, cudaStream_t stream);

// scale * grad + slope * output + offset: the gradient of what GroupNorm normalised, written out. `grad`, `output` and
// `result` as ApplyProblem::input, the map's three [N, C].
struct GradientProblem {
    const void* grad;
    const void* output;
    ScalarType type;
    bool channels_last;
    std::int64_t batch, channels, voxels;
    const float* scale;
    const float* slope;
    const float* offset;
};

cudaError_t launch_gradient(const GradientProblem& problem, void* result, cudaStream_t stream);

}  // namespace mednext_ops::cuda::group_norm
