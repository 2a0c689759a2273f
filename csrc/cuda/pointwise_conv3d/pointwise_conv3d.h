// 1x1x1 convolutions with few channels on one side, as a network's stem and its heads are: memory is all they cost.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/parameter.h"
#include "../common/scalar_type.h"

namespace mednext_ops::cuda::pointwise_conv3d {

// The smaller of the two numbers of channels that a kernel takes, and what numbers of voxels must be multiples of.
constexpr std::int64_t kMostFew = 8;
constexpr std::int64_t kVoxels = 8;

// Volumes are dense, [N, channels, V], and begin at multiples of 32 bytes or, for 16 bits, of 16.
struct Shape {
    ScalarType type;
    std::int64_t batch, inputs, outputs, voxels;
};

bool takes(const Shape& shape);

// output = weight input + bias. With `transposed` the weight is [inputs, outputs]: that is the gradient of the input.
struct ForwardProblem {
    Shape shape;
    const void* input;  // [N, inputs, V]
    Parameter weight;   // [outputs, inputs]
    bool transposed;
    Parameter bias;  // [outputs], or null
    void* output;    // [N, outputs, V]
};

cudaError_t launch_forward(const ForwardProblem& problem, cudaStream_t stream);

struct WeightProblem {
    Shape shape;
    const void* grad_output;  // [N, outputs, V]
    const void* input;        // [N, inputs, V]
    float* grad_weight;       // [outputs, inputs]
    float* grad_bias;         // [outputs]
};

// Floats of workspace.
std::int64_t weight_workspace(const WeightProblem& problem);
cudaError_t launch_weight_gradient(const WeightProblem& problem, float* workspace, cudaStream_t stream);

}  // namespace mednext_ops::cuda::pointwise_conv3d
