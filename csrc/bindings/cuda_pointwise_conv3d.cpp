// 1x1x1 convolutions with few channels on one side by the CUDA kernels.
#include <cstdint>
#include <optional>
#include <tuple>

#include "../cuda/pointwise_conv3d/pointwise_conv3d.h"
#include "convolution_arguments.h"
#include "cuda_context.h"

namespace mednext_ops::bindings {
namespace {

namespace kernels = mednext_ops::cuda::pointwise_conv3d;

using MaybeTensor = std::optional<Tensor>;

// The tensor itself, or a copy where it is not dense or does not begin where vectors do.
Tensor aligned(const Tensor& tensor) {
    const Tensor dense = in_format(tensor, false);
    const bool begins = reinterpret_cast<std::uintptr_t>(dense.const_data_ptr()) % 32 == 0;
    return begins || dense.numel() == 0 ? dense : cloned(dense);
}

// What every function here asks of a volume and its weight.
kernels::Shape require_shape(const char* op, const Tensor& input, const Tensor& weight) {
    require_volume(op, "input", input);
    require_floating_type(op, "input", input);
    require(weight.dim() == 2 && weight.size(1) == input.size(1), op, ": weight must be [outputs, ", input.size(1),
            "], got ", shape_of(weight));
    require_parameter_type(op, "weight", weight, input);
    const kernels::Shape shape{cuda_scalar_type(input), input.size(0), input.size(1), weight.size(0),
                               input.size(2) * input.size(3) * input.size(4)};
    require(kernels::takes(shape), op, ": it takes at most ", kernels::kMostFew,
            " channels on one side and voxels in multiples of ", kernels::kVoxels, ", got weight ", shape_of(weight),
            " and input ", shape_of(input));
    return shape;
}

Tensor pointwise_conv3d(const Tensor& input, const Tensor& weight, const MaybeTensor& bias) {
    constexpr const char* op = "pointwise_conv3d";
    const kernels::Shape shape = require_shape(op, input, weight);
    if (bias) {
        require(bias->dim() == 1 && bias->size(0) == shape.outputs, op, ": bias must be [", shape.outputs, "], got ",
                shape_of(*bias));
        require_parameter_type(op, "bias", *bias, input);
    }
    const CudaContext context(input);
    const Tensor dense = aligned(input);
    const MaybeTensor weights = in_format(weight, false);
    const MaybeTensor biases = in_format(bias, false);
    const Sizes size = volume_size(input);
    Tensor output = context.empty(input, {shape.batch, shape.outputs, size[0], size[1], size[2]}, input.scalar_type());
    const kernels::ForwardProblem problem{shape, dense.const_data_ptr(), parameter(weights),
                                          false, parameter(biases),      output.mutable_data_ptr()};
    require_launched(op, kernels::launch_forward(problem, context.stream()));
    return output;
}

// The gradients of the input, the weight and the bias, the last two in float32; what nobody asked for is empty.
std::tuple<Tensor, Tensor, Tensor> pointwise_conv3d_backward(const Tensor& grad_output, const Tensor& input,
                                                             const Tensor& weight, bool needs_input,
                                                             bool needs_parameters) {
    constexpr const char* op = "pointwise_conv3d_backward";
    const kernels::Shape shape = require_shape(op, input, weight);
    const Sizes size = volume_size(input);
    require_volume(op, "grad_output", grad_output);
    require(
        grad_output.size(0) == shape.batch && grad_output.size(1) == shape.outputs && volume_size(grad_output) == size,
        op, ": grad_output must be [", shape.batch, ", ", shape.outputs, ", ", size[0], ", ", size[1], ", ", size[2],
        "], got ", shape_of(grad_output));
    require(grad_output.scalar_type() == input.scalar_type(), op, ": grad_output must be ",
            torch::headeronly::toString(input.scalar_type()), " as the input, got ",
            torch::headeronly::toString(grad_output.scalar_type()));
    require_same_device(op, "grad_output", grad_output, input);
    const CudaContext context(input);
    const Tensor grads = aligned(grad_output);
    Tensor grad_input = context.empty(input, {0}, input.scalar_type());
    if (needs_input) {
        const MaybeTensor weights = in_format(weight, false);
        grad_input = context.empty(input, {shape.batch, shape.inputs, size[0], size[1], size[2]}, input.scalar_type());
        const kernels::Shape turned{shape.type, shape.batch, shape.outputs, shape.inputs, shape.voxels};
        const kernels::ForwardProblem problem{turned, grads.const_data_ptr(), parameter(weights),
                                              true,   parameter({}),          grad_input.mutable_data_ptr()};
        require_launched(op, kernels::launch_forward(problem, context.stream()));
    }
    Tensor grad_weight = context.empty(input, {needs_parameters ? shape.outputs : 0, shape.inputs}, ScalarType::Float);
    Tensor grad_bias = context.empty(input, {needs_parameters ? shape.outputs : 0}, ScalarType::Float);
    if (needs_parameters) {
        const Tensor dense = aligned(input);
        const kernels::WeightProblem problem{shape, grads.const_data_ptr(), dense.const_data_ptr(),
                                             static_cast<float*>(grad_weight.mutable_data_ptr()),
                                             static_cast<float*>(grad_bias.mutable_data_ptr())};
        Tensor workspace = context.empty(input, {kernels::weight_workspace(problem)}, ScalarType::Float);
        require_launched(op, kernels::launch_weight_gradient(problem, static_cast<float*>(workspace.mutable_data_ptr()),
                                                             context.stream()));
    }
    return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace mednext_ops::bindings

MEDNEXT_OPS_CUDA_LIBRARY(library) {
    library.impl("pointwise_conv3d", TORCH_BOX(&mednext_ops::bindings::pointwise_conv3d));
    library.impl("pointwise_conv3d_backward", TORCH_BOX(&mednext_ops::bindings::pointwise_conv3d_backward));
}
