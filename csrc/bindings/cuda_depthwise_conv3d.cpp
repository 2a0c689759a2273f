// The depthwise convolution, plain and transposed, and its gradients by the CUDA kernels.
#include <optional>
#include <tuple>
#include <vector>

#include "../cuda/depthwise_conv3d/launch.h"
#include "../cuda/group_norm/apply.h"
#include "../cuda/group_norm/statistics.h"
#include "convolution_arguments.h"
#include "cuda_context.h"

namespace mednext_ops::bindings {
namespace {

namespace kernels = mednext_ops::cuda::depthwise_conv3d;

using Integers = std::vector<std::int64_t>;
using MaybeTensor = std::optional<Tensor>;

kernels::Triple triple(const Sizes& sizes) {
    return {sizes[0], sizes[1], sizes[2]};
}

kernels::Geometry kernel_geometry(const ConvolutionGeometry& g) {
    return {triple(g.kernel), triple(g.stride), triple(g.padding), triple(g.dilation)};
}

kernels::Parameter parameter(const Tensor& tensor) {
    return {tensor.const_data_ptr(), cuda_scalar_type(tensor)};
}

kernels::Parameter parameter(const MaybeTensor& tensor) {
    return tensor ? parameter(*tensor) : kernels::Parameter{nullptr, cuda::ScalarType::float32};
}

// A gradient that may not be written out, in one format.
struct Gradient {
    Tensor grad;
    MaybeTensor output, scale, slope, offset;

    Gradient(const Tensor& grad, const MaybeTensor& output, const MaybeTensor& scale, const MaybeTensor& slope,
             const MaybeTensor& offset, bool channels_last)
        : grad(in_format(grad, channels_last)),
          output(in_format(output, channels_last)),
          scale(in_format(scale, false)),
          slope(in_format(slope, false)),
          offset(in_format(offset, false)) {}

    kernels::AffineGradient affine() const {
        if (!output) return {nullptr, nullptr, nullptr, nullptr};
        return {output->const_data_ptr(), floats(*scale), floats(*slope), floats(*offset)};
    }

    static const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }
};

struct Convolved {
    Tensor output;
    Tensor moments;  // undefined where nobody asked for them
    std::int64_t moments_per_channel;
};

// Runs a convolution in the format of `source`; whether it gathers or scatters is said by `scatter`.
Convolved convolve(const char* op, const CudaContext& context, const Gradient& source, bool channels_last,
                   const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& add,
                   const ConvolutionGeometry& geometry, bool scatter, const Sizes& output_size, bool with_moments) {
    const Tensor& input = source.grad;
    const std::int64_t batch = input.size(0);
    const std::int64_t channels = input.size(1);
    Tensor output =
        context.empty_volume(input, {batch, channels, output_size[0], output_size[1], output_size[2]}, channels_last);
    const Tensor dense_weight = in_format(weight, false);
    const MaybeTensor dense_bias = in_format(bias, false);
    const MaybeTensor dense_add = in_format(add, channels_last);
    const kernels::ConvolutionProblem problem{scatter,
                                              cuda_scalar_type(input),
                                              channels_last,
                                              batch,
                                              channels,
                                              triple(volume_size(input)),
                                              triple(output_size),
                                              kernel_geometry(geometry),
                                              input.const_data_ptr(),
                                              source.affine(),
                                              parameter(dense_weight),
                                              parameter(dense_bias),
                                              dense_add ? dense_add->const_data_ptr() : nullptr,
                                              output.mutable_data_ptr()};
    const kernels::ConvolutionPlan plan = kernels::plan_convolution(problem, context.architecture());
    Tensor moments;
    if (with_moments) {
        const std::int64_t bytes = batch * channels * plan.moments_per_channel * sizeof(cuda::Moments<double>);
        moments = context.empty(input, {bytes}, ScalarType::Byte);
    }
    if (output.numel() > 0) {
        auto* to = with_moments ? static_cast<cuda::Moments<double>*>(moments.mutable_data_ptr()) : nullptr;
        require_launched(op, kernels::launch_convolution(problem, plan, to, context.stream()));
    }
    return {output, moments, plan.moments_per_channel};
}

ConvolutionGeometry forward_geometry(const char* op, const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
                                     const Integers& stride, const Integers& padding, const Integers& dilation,
                                     const Integers& output_padding, bool transposed) {
    require_volume(op, "input", input);
    require_floating_type(op, "input", input);
    const Sizes kernel = require_weight(op, weight, input);
    require_bias(op, bias, input);
    const auto geometry = require_geometry(op, kernel, stride, padding, dilation, output_padding, transposed);
    const Sizes output = geometry.output_of(volume_size(input));
    for (const std::int64_t extent : output) {
        require(extent > 0, op, ": an input of ", text_of(volume_size(input)), " is too small for a kernel of ",
                text_of(kernel), ": the output would be ", text_of(output));
    }
    return geometry;
}

Tensor depthwise_conv3d(const Tensor& input, const Tensor& weight, const MaybeTensor& bias, const Integers& stride,
                        const Integers& padding, const Integers& dilation, const Integers& output_padding,
                        bool transposed) {
    constexpr const char* op = "depthwise_conv3d";
    const auto geometry =
        forward_geometry(op, input, weight, bias, stride, padding, dilation, output_padding, transposed);
    const CudaContext context(input);
    const bool channels_last = prefers_channels_last(input);
    const Gradient source(input, {}, {}, {}, {}, channels_last);
    return convolve(op, context, source, channels_last, weight, bias, {}, geometry, transposed,
                    geometry.output_of(volume_size(input)), false)
        .output;
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv3d_statistics(const Tensor& input, const Tensor& weight,
                                                               const MaybeTensor& bias, const Integers& stride,
                                                               const Integers& padding, const Integers& dilation,
                                                               const Integers& output_padding, bool transposed,
                                                               std::int64_t num_groups, double eps) {
    constexpr const char* op = "depthwise_conv3d_statistics";
    const auto geometry =
        forward_geometry(op, input, weight, bias, stride, padding, dilation, output_padding, transposed);
    require_groups(op, num_groups, input.size(1));
    const CudaContext context(input);
    const bool channels_last = prefers_channels_last(input);
    const Gradient source(input, {}, {}, {}, {}, channels_last);
    const Convolved made = convolve(op, context, source, channels_last, weight, bias, {}, geometry, transposed,
                                    geometry.output_of(volume_size(input)), true);
    const std::int64_t groups = input.size(0) * num_groups;
    Tensor mean = context.empty(input, {input.size(0), num_groups}, ScalarType::Float);
    Tensor rstd = context.empty(input, {input.size(0), num_groups}, ScalarType::Float);
    require_launched(
        op, cuda::group_norm::launch_finalize(static_cast<const cuda::Moments<double>*>(made.moments.const_data_ptr()),
                                              groups, input.size(1) / num_groups * made.moments_per_channel, eps,
                                              static_cast<float*>(mean.mutable_data_ptr()),
                                              static_cast<float*>(rstd.mutable_data_ptr()), context.stream()));
    return {made.output, mean, rstd};
}

// The gradient of what GroupNorm normalised, written out.
Tensor group_norm_gradient(const Tensor& grad, const Tensor& output, const Tensor& scale, const Tensor& slope,
                           const Tensor& offset) {
    constexpr const char* op = "group_norm_gradient";
    require_volume(op, "grad", grad);
    require_floating_type(op, "grad", grad);
    require_affine(op, grad, output, scale, slope, offset);
    const CudaContext context(grad);
    const bool channels_last = prefers_channels_last(grad);
    const Gradient source(grad, output, scale, slope, offset, channels_last);
    const Sizes size = volume_size(grad);
    Tensor result = context.empty_volume(grad, {grad.size(0), grad.size(1), size[0], size[1], size[2]}, channels_last);
    const kernels::AffineGradient map = source.affine();
    require_launched(op,
                     cuda::group_norm::launch_gradient(
                         {source.grad.const_data_ptr(), map.output, cuda_scalar_type(grad), channels_last, grad.size(0),
                          grad.size(1), size[0] * size[1] * size[2], map.scale, map.slope, map.offset},
                         result.mutable_data_ptr(), context.stream()));
    return result;
}

Tensor depthwise_conv3d_backward_data(const Tensor& grad_output, const MaybeTensor& output, const MaybeTensor& scale,
                                      const MaybeTensor& slope, const MaybeTensor& offset, const Tensor& weight,
                                      const Integers& input_size, const Integers& stride, const Integers& padding,
                                      const Integers& dilation, const Integers& output_padding, bool transposed,
                                      const MaybeTensor& add) {
    constexpr const char* op = "depthwise_conv3d_backward_data";
    require_volume(op, "grad_output", grad_output);
    require_floating_type(op, "grad_output", grad_output);
    require_affine(op, grad_output, output, scale, slope, offset);
    const Sizes kernel = require_weight(op, weight, grad_output);
    const auto geometry = require_geometry(op, kernel, stride, padding, dilation, output_padding, transposed);
    const Sizes size = require_three(op, "input_size", input_size, 0);
    require_output_size(op, geometry, size, volume_size(grad_output));
    if (add) require_like(op, "add", *add, grad_output, size);

    const CudaContext context(grad_output);
    const bool channels_last = prefers_channels_last(grad_output);
    const Gradient source(grad_output, output, scale, slope, offset, channels_last);
    return convolve(op, context, source, channels_last, weight, {}, add, geometry, !transposed, size, false).output;
}

Tensor depthwise_conv3d_backward_weight(const Tensor& grad_output, const MaybeTensor& output, const MaybeTensor& scale,
                                        const MaybeTensor& slope, const MaybeTensor& offset, const Tensor& input,
                                        const Integers& kernel_size, const Integers& stride, const Integers& padding,
                                        const Integers& dilation, const Integers& output_padding, bool transposed) {
    constexpr const char* op = "depthwise_conv3d_backward_weight";
    require_volume(op, "grad_output", grad_output);
    require_floating_type(op, "grad_output", grad_output);
    require_volume(op, "input", input);
    require_affine(op, grad_output, output, scale, slope, offset);
    require_like(op, "input", input, grad_output, volume_size(input));
    const Sizes kernel = require_three(op, "kernel_size", kernel_size, 1);
    const auto geometry = require_geometry(op, kernel, stride, padding, dilation, output_padding, transposed);
    require_output_size(op, geometry, volume_size(input), volume_size(grad_output));

    const CudaContext context(input);
    const bool channels_last = prefers_channels_last(input);
    const Gradient gradient(grad_output, output, scale, slope, offset, channels_last);
    const Tensor values = in_format(input, channels_last);
    Tensor grad_weight = context.empty(input, {input.size(1), 1, kernel[0], kernel[1], kernel[2]}, ScalarType::Float);
    const Tensor& small = transposed ? values : gradient.grad;
    const Tensor& large = transposed ? gradient.grad : values;
    const kernels::WeightGradientProblem problem{cuda_scalar_type(input),
                                                 channels_last,
                                                 input.size(0),
                                                 input.size(1),
                                                 triple(volume_size(small)),
                                                 triple(volume_size(large)),
                                                 kernel_geometry(geometry),
                                                 small.const_data_ptr(),
                                                 large.const_data_ptr(),
                                                 transposed,
                                                 gradient.affine(),
                                                 static_cast<float*>(grad_weight.mutable_data_ptr())};
    const kernels::WeightGradientPlan plan = kernels::plan_weight_gradient(problem, context.architecture());
    Tensor workspace = context.empty(input, {plan.workspace_bytes}, ScalarType::Byte);
    require_launched(op,
                     kernels::launch_weight_gradient(problem, plan, workspace.mutable_data_ptr(), context.stream()));
    return grad_weight;
}

}  // namespace
}  // namespace mednext_ops::bindings

MEDNEXT_OPS_CUDA_LIBRARY(library) {
    namespace bindings = mednext_ops::bindings;
    library.impl("depthwise_conv3d", TORCH_BOX(&bindings::depthwise_conv3d));
    library.impl("depthwise_conv3d_statistics", TORCH_BOX(&bindings::depthwise_conv3d_statistics));
    library.impl("group_norm_gradient", TORCH_BOX(&bindings::group_norm_gradient));
    library.impl("depthwise_conv3d_backward_data", TORCH_BOX(&bindings::depthwise_conv3d_backward_data));
    library.impl("depthwise_conv3d_backward_weight", TORCH_BOX(&bindings::depthwise_conv3d_backward_weight));
}
