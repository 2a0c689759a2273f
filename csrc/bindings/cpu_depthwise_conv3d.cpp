// mednext_ops_native::depthwise_conv3d, its fused form with statistics, and its two gradients on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "../cpu/common/scratch.h"
#include "../cpu/dispatch/kernels.h"
#include "../cpu/group_norm/statistics.h"
#include "cpu_volume.h"

namespace mednext_ops::bindings {
namespace {

namespace kernels = mednext_ops::cpu::depthwise_conv3d;
using Integers = std::vector<std::int64_t>;

// Fewer multiplications than this are not worth a second thread.
constexpr std::int64_t kOperationsPerThread = 1 << 18;

struct Geometry {
    Integers kernel, stride, padding, dilation, output_padding;
    bool transposed;

    std::int64_t output(int axis, std::int64_t input) const {
        const std::int64_t reach = dilation[axis] * (kernel[axis] - 1) + 1;
        if (transposed) return (input - 1) * stride[axis] - 2 * padding[axis] + reach + output_padding[axis];
        const std::int64_t room = input + 2 * padding[axis] - reach;
        return room < 0 ? 0 : room / stride[axis] + 1;
    }
};

void require_geometry(const char* op, const Geometry& geometry) {
    const auto require_triple = [&](const char* name, const Integers& values, std::int64_t least) {
        require(values.size() == 3 && *std::min_element(values.begin(), values.end()) >= least, op, ": ", name,
                " must be three integers (D, H, W) of at least ", least);
    };
    require_triple("kernel_size", geometry.kernel, 1);
    require_triple("stride", geometry.stride, 1);
    require_triple("padding", geometry.padding, 0);
    require_triple("dilation", geometry.dilation, 1);
    require_triple("output_padding", geometry.output_padding, 0);
}

Integers kernel_size_of(const char* op, const Tensor& weight) {
    require(weight.dim() == 5 && weight.size(1) == 1, op, ": weight must be [C, 1, kd, kh, kw], got ",
            shape_of(weight));
    require_floating_type(op, "weight", weight);
    return {weight.size(2), weight.size(3), weight.size(4)};
}

std::array<std::int64_t, 3> extent_of(const Tensor& tensor) {
    return {tensor.size(2), tensor.size(3), tensor.size(4)};
}

// The map from `input` to `output`: along a convolution, or back along one (which scatters where that gathers).
void set_axes(kernels::Axis* axes, const Geometry& g, bool scatter, const std::array<std::int64_t, 3>& input,
              const std::array<std::int64_t, 3>& output) {
    for (int i = 0; i < 3; ++i) {
        axes[i] = {scatter, input[i], output[i], g.kernel[i], g.stride[i], g.padding[i], g.dilation[i]};
    }
}

template <typename Problem, typename Plan, typename Kernel>
void run_tasks(const Problem& problem, const Plan& plan, const Kernel& kernel) {
    const std::int64_t grain =
        std::max<std::int64_t>(1, kOperationsPerThread / kernels::operations_per_task(problem, plan));
    torch::stable::parallel_for(0, plan.tasks, grain, [&](std::int64_t begin, std::int64_t end) {
        kernel(begin, end, cpu::scratch(plan.scratch_floats));
    });
}

void convolve(const kernels::ConvolutionProblem& problem, const kernels::ConvolutionPlan& plan) {
    run_tasks(problem, plan, [&](std::int64_t begin, std::int64_t end, float* scratch) {
        cpu::kernels().convolve(problem, plan, begin, end, scratch);
    });
}

struct Forward {
    DenseVolume input, output;
    Floats weight;
    std::optional<Floats> bias;
    kernels::ConvolutionProblem problem;
};

Forward forward_of(const char* op, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   const Geometry& geometry) {
    require_volume(op, "input", input);
    require_floating_type(op, "input", input);
    require_geometry(op, geometry);
    const std::int64_t channels = input.size(1);
    require(weight.size(0) == channels, op, ": weight must be for the ", channels, " channels of the input, got ",
            shape_of(weight));
    if (bias.has_value()) {
        require_floating_type(op, "bias", *bias);
        require(bias->dim() == 1 && bias->size(0) == channels, op, ": bias must be [", channels, "], got ",
                shape_of(*bias));
    }
    std::array<std::int64_t, 3> extent = extent_of(input);
    std::array<std::int64_t, 3> result;
    for (int i = 0; i < 3; ++i) result[i] = geometry.output(i, extent[i]);
    require(*std::min_element(result.begin(), result.end()) >= 1, op, ": the output would have extent [", result[0],
            ", ", result[1], ", ", result[2], "]: the input ", shape_of(input), " is too small for this kernel");

    const DenseVolume read = dense(input);
    Forward forward{read,
                    new_volume(input, input.size(0), channels, result.data(), read.volume.channels_last),
                    floats(weight),
                    floats(bias),
                    {}};
    forward.problem.input = {forward.input.volume};
    forward.problem.batch = input.size(0);
    set_axes(forward.problem.axes, geometry, geometry.transposed, extent, result);
    forward.problem.weight = forward.weight.data();
    forward.problem.bias = data_of(forward.bias);
    forward.problem.output = forward.output.volume;
    return forward;
}

Tensor depthwise_conv3d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const Integers& stride, const Integers& padding, const Integers& dilation,
                        const Integers& output_padding, bool transposed) {
    constexpr const char* op = "depthwise_conv3d";
    const Geometry geometry{kernel_size_of(op, weight), stride, padding, dilation, output_padding, transposed};
    const Forward forward = forward_of(op, input, weight, bias, geometry);
    convolve(forward.problem, kernels::plan(forward.problem, cpu::kernels().lanes));
    return forward.output.tensor;
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv3d_statistics(const Tensor& input, const Tensor& weight,
                                                               const std::optional<Tensor>& bias,
                                                               const Integers& stride, const Integers& padding,
                                                               const Integers& dilation, const Integers& output_padding,
                                                               bool transposed, std::int64_t num_groups, double eps) {
    constexpr const char* op = "depthwise_conv3d_statistics";
    const Geometry geometry{kernel_size_of(op, weight), stride, padding, dilation, output_padding, transposed};
    Forward forward = forward_of(op, input, weight, bias, geometry);
    require_groups(op, num_groups, input.size(1));
    kernels::ConvolutionProblem& problem = forward.problem;
    const kernels::ConvolutionPlan plan = kernels::plan(problem, cpu::kernels().lanes);
    const std::int64_t channels = input.size(1);
    std::vector<cpu::Moments> moments(static_cast<std::size_t>(problem.batch * channels * plan.moments_per_channel()));
    problem.moments = moments.data();
    convolve(problem, plan);

    Tensor mean = allocate(input, {problem.batch, num_groups}, ScalarType::Float);
    Tensor rstd = allocate(input, {problem.batch, num_groups}, ScalarType::Float);
    cpu::group_norm::finalize(
        moments.data(), problem.batch * num_groups, channels / num_groups * plan.moments_per_channel(), eps,
        static_cast<float*>(mean.mutable_data_ptr()), static_cast<float*>(rstd.mutable_data_ptr()));
    return {forward.output.tensor, mean, rstd};
}

// A gradient as it is read, and the tensors that it is read from.
struct Gradient {
    DenseVolume values;
    std::optional<DenseVolume> output;
    std::optional<Floats> scale, slope, offset;
    cpu::Source source;
};

Gradient gradient_of(const char* op, const Tensor& grad_output, const std::optional<Tensor>& output,
                     const std::optional<Tensor>& scale, const std::optional<Tensor>& slope,
                     const std::optional<Tensor>& offset) {
    require_volume(op, "grad_output", grad_output);
    require_floating_type(op, "grad_output", grad_output);
    require(output.has_value() == scale.has_value() && scale.has_value() == slope.has_value() &&
                slope.has_value() == offset.has_value(),
            op, ": output, scale, slope and offset belong together: give all of them or none");
    Gradient gradient{dense(grad_output), std::nullopt, floats(scale), floats(slope), floats(offset), {}};
    if (output.has_value()) {
        require_same(op, "output", *output, "grad_output", grad_output);
        require_per_channel(op, "scale", *scale, grad_output);
        require_per_channel(op, "slope", *slope, grad_output);
        require_per_channel(op, "offset", *offset, grad_output);
        gradient.output = dense(*output);
        gradient.source.output = gradient.output->volume;
    }
    gradient.source.values = gradient.values.volume;
    gradient.source.scale = data_of(gradient.scale);
    gradient.source.slope = data_of(gradient.slope);
    gradient.source.offset = data_of(gradient.offset);
    return gradient;
}

Tensor depthwise_conv3d_backward_data(const Tensor& grad_output, const std::optional<Tensor>& output,
                                      const std::optional<Tensor>& scale, const std::optional<Tensor>& slope,
                                      const std::optional<Tensor>& offset, const Tensor& weight,
                                      const Integers& input_size, const Integers& stride, const Integers& padding,
                                      const Integers& dilation, const Integers& output_padding, bool transposed,
                                      const std::optional<Tensor>& add) {
    constexpr const char* op = "depthwise_conv3d_backward_data";
    const Geometry geometry{kernel_size_of(op, weight), stride, padding, dilation, output_padding, transposed};
    require_geometry(op, geometry);
    const Gradient gradient = gradient_of(op, grad_output, output, scale, slope, offset);
    const std::int64_t channels = grad_output.size(1);
    require(weight.size(0) == channels, op, ": weight must be for the ", channels, " channels of grad_output, got ",
            shape_of(weight));
    require(input_size.size() == 3, op, ": input_size must be three integers (D, H, W)");
    const std::array<std::int64_t, 3> extent = extent_of(grad_output);
    for (int i = 0; i < 3; ++i) {
        require(geometry.output(i, input_size[i]) == extent[i], op, ": an input of extent [", input_size[0], ", ",
                input_size[1], ", ", input_size[2], "] does not give grad_output ", shape_of(grad_output));
    }
    const DenseVolume result =
        new_volume(grad_output, grad_output.size(0), channels, input_size.data(), gradient.values.volume.channels_last);
    std::optional<DenseVolume> added;
    if (add.has_value()) {
        require_same(op, "add", *add, "the gradient", result.tensor);
        added = dense(*add);
    }
    const Floats taps = floats(weight);
    kernels::ConvolutionProblem problem{};
    problem.input = gradient.source;
    problem.batch = grad_output.size(0);
    set_axes(problem.axes, geometry, !transposed, extent, {input_size[0], input_size[1], input_size[2]});
    problem.weight = taps.data();
    problem.output = result.volume;
    if (added.has_value()) problem.add = added->volume;
    convolve(problem, kernels::plan(problem, cpu::kernels().lanes));
    return result.tensor;
}

Tensor depthwise_conv3d_backward_weight(const Tensor& grad_output, const std::optional<Tensor>& output,
                                        const std::optional<Tensor>& scale, const std::optional<Tensor>& slope,
                                        const std::optional<Tensor>& offset, const Tensor& input,
                                        const Integers& kernel_size, const Integers& stride, const Integers& padding,
                                        const Integers& dilation, const Integers& output_padding, bool transposed) {
    constexpr const char* op = "depthwise_conv3d_backward_weight";
    const Geometry geometry{kernel_size, stride, padding, dilation, output_padding, transposed};
    require_geometry(op, geometry);
    const Gradient gradient = gradient_of(op, grad_output, output, scale, slope, offset);
    require_volume(op, "input", input);
    require(input.scalar_type() == grad_output.scalar_type(), op, ": input must have the type of grad_output, ",
            torch::headeronly::toString(grad_output.scalar_type()), ", got ",
            torch::headeronly::toString(input.scalar_type()));
    require(input.size(0) == grad_output.size(0) && input.size(1) == grad_output.size(1), op,
            ": input must have the batch and channels of grad_output ", shape_of(grad_output), ", got ",
            shape_of(input));
    const std::array<std::int64_t, 3> extent = extent_of(input), result = extent_of(grad_output);
    for (int i = 0; i < 3; ++i) {
        require(geometry.output(i, extent[i]) == result[i], op, ": an input ", shape_of(input),
                " does not give grad_output ", shape_of(grad_output));
    }
    const DenseVolume read = dense(input);
    kernels::WeightGradientProblem problem{};
    problem.anchor = transposed ? cpu::Source{read.volume} : gradient.source;
    problem.moved = transposed ? gradient.source : cpu::Source{read.volume};
    problem.batch = input.size(0);
    set_axes(problem.axes, geometry, false, transposed ? result : extent, transposed ? extent : result);

    const std::int64_t channels = input.size(1);
    const kernels::WeightGradientPlan plan = kernels::plan(problem, cpu::kernels().lanes);
    Tensor grad_weight =
        allocate(input, {channels, 1, kernel_size[0], kernel_size[1], kernel_size[2]}, ScalarType::Float);
    const cpu::AlignedFloats partial = cpu::aligned_floats(plan.partial_floats());
    run_tasks(problem, plan, [&](std::int64_t begin, std::int64_t end, float* scratch) {
        cpu::kernels().weight_gradient(problem, plan, begin, end, scratch, partial.get());
    });
    torch::stable::parallel_for(0, channels, 64, [&](std::int64_t begin, std::int64_t end) {
        kernels::finalize(problem, plan, partial.get(), begin, end,
                          static_cast<float*>(grad_weight.mutable_data_ptr()));
    });
    return grad_weight;
}

}  // namespace
}  // namespace mednext_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(mednext_ops_native, CPU, library) {
    library.impl("depthwise_conv3d", TORCH_BOX(&mednext_ops::bindings::depthwise_conv3d));
    library.impl("depthwise_conv3d_statistics", TORCH_BOX(&mednext_ops::bindings::depthwise_conv3d_statistics));
    library.impl("depthwise_conv3d_backward_data", TORCH_BOX(&mednext_ops::bindings::depthwise_conv3d_backward_data));
    library.impl("depthwise_conv3d_backward_weight",
                 TORCH_BOX(&mednext_ops::bindings::depthwise_conv3d_backward_weight));
}
