// What lies around the products of a wide inverted bottleneck, by the CUDA kernels.
#include <optional>
#include <tuple>
#include <vector>

#include "../cuda/group_norm/input_gradient.h"
#include "../cuda/inverted_bottleneck/global_response.h"
#include "../cuda/inverted_bottleneck/products.h"
#include "convolution_arguments.h"
#include "cuda_context.h"

namespace mednext_ops::bindings {
namespace {

namespace kernels = mednext_ops::cuda::inverted_bottleneck;

using MaybeTensor = std::optional<Tensor>;

void require_shape(const char* op, const char* name, const Tensor& tensor, std::initializer_list<std::int64_t> sizes) {
    bool fits = tensor.dim() == static_cast<std::int64_t>(sizes.size());
    std::string expected;
    std::int64_t axis = 0;
    for (const std::int64_t size : sizes) {
        fits = fits && tensor.size(axis) == size;
        expected += text_of(axis > 0 ? ", " : "", size);
        ++axis;
    }
    require(fits, op, ": ", name, " must be [", expected, "], got ", shape_of(tensor));
}

// A tensor of sums or statistics.
void require_floats(const char* op, const char* name, const Tensor& tensor, std::initializer_list<std::int64_t> sizes,
                    const Tensor& beside) {
    require_shape(op, name, tensor, sizes);
    require(tensor.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32, got ",
            torch::headeronly::toString(tensor.scalar_type()));
    require_same_device(op, name, tensor, beside);
}

// A parameter of one of the three types, whatever the type of the volumes is.
void require_parameter(const char* op, const char* name, const Tensor& tensor,
                       std::initializer_list<std::int64_t> sizes, const Tensor& beside) {
    require_shape(op, name, tensor, sizes);
    require_floating_type(op, name, tensor);
    require_same_device(op, name, tensor, beside);
}

const float* floats(const Tensor& tensor) {
    return static_cast<const float*>(tensor.const_data_ptr());
}

float* floats(Tensor& tensor) {
    return static_cast<float*>(tensor.mutable_data_ptr());
}

// Where the next row begins.
std::int64_t aligned_voxels(std::int64_t voxels) {
    return (voxels + kernels::kAlignedVoxels - 1) / kernels::kAlignedVoxels * kernels::kAlignedVoxels;
}

// Rows that a kernel changes where they lie.
void require_rows(const char* op, const char* name, const Tensor& rows) {
    require(rows.dim() == 3, op, ": ", name, " must be [N, R, voxels], got ", shape_of(rows));
    require_floating_type(op, name, rows);
    require(rows.is_contiguous() && rows.size(2) % kernels::kAlignedVoxels == 0 &&
                reinterpret_cast<std::uintptr_t>(rows.const_data_ptr()) % 16 == 0,
            op, ": ", name, " must be contiguous, its rows multiples of ", kernels::kAlignedVoxels, " voxels, got ",
            shape_of(rows));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bottleneck_weights(const Tensor& input, const Tensor& norm_weight,
                                                              const Tensor& norm_bias, const Tensor& expand_weight,
                                                              const MaybeTensor& expand_bias,
                                                              const Tensor& compress_weight) {
    constexpr const char* op = "bottleneck_weights";
    require_floating_type(op, "input", input);
    require(expand_weight.dim() == 2, op, ": expand_weight must be [hidden, channels], got ", shape_of(expand_weight));
    require(compress_weight.dim() == 2, op, ": compress_weight must be [outputs, hidden], got ",
            shape_of(compress_weight));
    const std::int64_t hidden = expand_weight.size(0);
    const std::int64_t channels = expand_weight.size(1);
    const std::int64_t outputs = compress_weight.size(0);
    require_parameter(op, "expand_weight", expand_weight, {hidden, channels}, input);
    require_parameter(op, "norm_weight", norm_weight, {channels}, input);
    require_parameter(op, "norm_bias", norm_bias, {channels}, input);
    if (expand_bias) require_parameter(op, "expand_bias", *expand_bias, {hidden}, input);
    require_parameter(op, "compress_weight", compress_weight, {outputs, hidden}, input);
    const CudaContext context(input);
    const MaybeTensor dense[] = {in_format(norm_weight, false), in_format(norm_bias, false),
                                 in_format(expand_weight, false), in_format(expand_bias, false),
                                 in_format(compress_weight, false)};
    Tensor folded = context.empty(input, {hidden, channels}, input.scalar_type());
    Tensor bias = context.empty(input, {hidden}, ScalarType::Float);
    Tensor expand = context.empty(input, {hidden, channels}, input.scalar_type());
    Tensor compress = context.empty(input, {outputs, hidden}, input.scalar_type());
    const kernels::WeightsProblem problem{cuda_scalar_type(input),
                                          channels,
                                          hidden,
                                          outputs,
                                          parameter(dense[0]),
                                          parameter(dense[1]),
                                          parameter(dense[2]),
                                          parameter(dense[3]),
                                          parameter(dense[4]),
                                          folded.mutable_data_ptr(),
                                          floats(bias),
                                          expand.mutable_data_ptr(),
                                          compress.mutable_data_ptr()};
    require_launched(op, kernels::launch_weights(problem, context.stream()));
    return {folded, bias, expand, compress};
}

Tensor bottleneck_normalized(const Tensor& input, const Tensor& mean, const Tensor& rstd) {
    constexpr const char* op = "bottleneck_normalized";
    require_volume(op, "input", input);
    require_floating_type(op, "input", input);
    require(mean.dim() == 2, op, ": mean must be [", input.size(0), ", groups], got ", shape_of(mean));
    require_groups(op, mean.size(1), input.size(1));
    require_floats(op, "mean", mean, {input.size(0), mean.size(1)}, input);
    require_floats(op, "rstd", rstd, {input.size(0), mean.size(1)}, input);
    const CudaContext context(input);
    const Tensor dense = in_format(input, false);
    const Tensor means = in_format(mean, false);
    const Tensor rstds = in_format(rstd, false);
    const std::int64_t voxels = input.size(2) * input.size(3) * input.size(4);
    const std::int64_t pitch = aligned_voxels(voxels);
    Tensor result = context.empty(input, {input.size(0), input.size(1), pitch}, input.scalar_type());
    const kernels::NormalizedProblem problem{cuda_scalar_type(input),
                                             input.size(0),
                                             input.size(1),
                                             voxels,
                                             mean.size(1),
                                             pitch,
                                             dense.const_data_ptr(),
                                             floats(means),
                                             floats(rstds),
                                             result.mutable_data_ptr()};
    require_launched(op, kernels::launch_normalized(problem, context.stream()));
    return result;
}

// The problem of hidden rows, and of the output's gradient beside them where it is given; the first three are checked.
kernels::HiddenProblem hidden_problem(const char* op, const Tensor& preactivation, const Tensor& bias,
                                      const MaybeTensor& grad_output) {
    kernels::HiddenProblem problem{};
    problem.type = cuda_scalar_type(preactivation);
    problem.batch = preactivation.size(0);
    problem.hidden = preactivation.size(1);
    problem.length = preactivation.size(2);
    problem.bias = floats(bias);
    problem.preactivation = preactivation.mutable_data_ptr();
    if (!grad_output) return problem;
    require(grad_output->dim() == 3, op, ": grad_output must be [N, O, voxels], got ", shape_of(*grad_output));
    problem.outputs = grad_output->size(1);
    problem.output_sample = grad_output->stride(0);
    problem.output_row = grad_output->stride(1);
    problem.grad_output = grad_output->const_data_ptr();
    require_shape(op, "grad_output", *grad_output, {problem.batch, problem.outputs, problem.length});
    require(grad_output->scalar_type() == preactivation.scalar_type(), op,
            ": grad_output and preactivation must be of one type");
    require_same_device(op, "grad_output", *grad_output, preactivation);
    require((problem.length == 0 || grad_output->stride(2) == 1) &&
                problem.output_sample % kernels::kAlignedVoxels == 0 &&
                problem.output_row % kernels::kAlignedVoxels == 0 &&
                reinterpret_cast<std::uintptr_t>(problem.grad_output) % 16 == 0,
            op, ": rows of grad_output must be dense and begin at multiples of ", kernels::kAlignedVoxels, " voxels");
    return problem;
}

// The sums of the rows that the problem sums up: of the gradient of h where there is one, and of the output's.
Tensor launch_hidden(const char* op, const CudaContext& context, const kernels::HiddenProblem& problem,
                     const Tensor& like) {
    const std::int64_t rows = kernels::summed_rows(problem);
    Tensor sums = context.empty(like, {rows}, ScalarType::Float);
    Tensor workspace = context.empty(like, {kernels::hidden_parts(problem), rows}, ScalarType::Float);
    require_launched(op, kernels::launch_hidden(problem, floats(workspace), floats(sums), context.stream()));
    return sums;
}

void require_voxels(const char* op, std::int64_t voxels, const kernels::HiddenProblem& problem) {
    require(voxels >= 0 && voxels <= problem.length, op, ": voxels must be in 0 to ", problem.length, ", got ", voxels);
}

// Returns [N * O], the sums of the output's gradient; none without it. With `squared` voxels of each row, the sums of
// their squares come before them, [N * R].
Tensor bottleneck_hidden(const Tensor& preactivation, const Tensor& bias, const MaybeTensor& grad_output,
                         std::optional<std::int64_t> squared) {
    constexpr const char* op = "bottleneck_hidden_";
    require_rows(op, "preactivation", preactivation);
    require_floats(op, "bias", bias, {preactivation.size(1)}, preactivation);
    const CudaContext context(preactivation);
    const Tensor dense = in_format(bias, false);
    kernels::HiddenProblem problem = hidden_problem(op, preactivation, dense, grad_output);
    problem.squares = squared.has_value();
    problem.voxels = squared.value_or(problem.length);
    require_voxels(op, problem.voxels, problem);
    return launch_hidden(op, context, problem, preactivation);
}

// Returns [N * R], and behind them the same [N * O]. With a slope [N, R] of GRN the rows are `voxels` long.
Tensor bottleneck_hidden_gradient(const Tensor& preactivation, const Tensor& grad, const Tensor& bias,
                                  const MaybeTensor& grad_output, const MaybeTensor& slope,
                                  std::optional<std::int64_t> voxels) {
    constexpr const char* op = "bottleneck_hidden_gradient_";
    require_rows(op, "preactivation", preactivation);
    require_rows(op, "grad", grad);
    const std::int64_t hidden = preactivation.size(1);
    require_shape(op, "grad", grad, {preactivation.size(0), hidden, preactivation.size(2)});
    require(grad.scalar_type() == preactivation.scalar_type(), op, ": grad and preactivation must be of one type");
    require_same_device(op, "grad", grad, preactivation);
    require_floats(op, "bias", bias, {hidden}, preactivation);
    const CudaContext context(preactivation);
    const Tensor dense = in_format(bias, false);
    kernels::HiddenProblem problem = hidden_problem(op, preactivation, dense, grad_output);
    problem.grad = grad.mutable_data_ptr();
    problem.voxels = voxels.value_or(problem.length);
    require(slope.has_value() == voxels.has_value(), op, ": slope and voxels must both be given, or neither of them");
    require_voxels(op, problem.voxels, problem);
    if (slope) require_floats(op, "slope", *slope, {preactivation.size(0), hidden}, preactivation);
    const MaybeTensor dense_slope = in_format(slope, false);
    if (dense_slope) problem.slope = floats(*dense_slope);
    return launch_hidden(op, context, problem, preactivation);
}

// `product` is [N, O, pitch], of which the first D * H * W of each row are the volume of `size`.
Tensor bottleneck_output(const Tensor& product, const MaybeTensor& bias, const MaybeTensor& residual,
                         const MaybeTensor& skip, const std::vector<std::int64_t>& size,
                         const std::vector<std::int64_t>& stride, const std::vector<std::int64_t>& front) {
    constexpr const char* op = "bottleneck_output";
    require(product.dim() == 3, op, ": product must be [N, O, voxels], got ", shape_of(product));
    require_floating_type(op, "product", product);
    const Sizes sizes = require_three(op, "size", size, 0);
    const Sizes strides = require_three(op, "stride", stride, 1);
    for (const std::int64_t step : strides) require(step <= 2, op, ": stride must be 1 or 2, got ", text_of(strides));
    const Sizes planes = require_three(op, "front", front, 0);
    require(sizes[0] * sizes[1] * sizes[2] <= product.size(2), op, ": the rows of product, ", shape_of(product),
            ", are shorter than ", text_of(sizes));
    const std::int64_t batch = product.size(0);
    const std::int64_t channels = product.size(1);
    Sizes sparse{};
    Sizes whole{};
    for (int i = 0; i < 3; ++i) {
        sparse[i] = (sizes[i] + strides[i] - 1) / strides[i];
        whole[i] = sizes[i] + planes[i];
    }
    if (bias) require_parameter(op, "bias", *bias, {channels}, product);
    const auto require_added = [&](const char* name, const MaybeTensor& added, const Sizes& extents) {
        if (!added) return;
        require_shape(op, name, *added, {batch, channels, extents[0], extents[1], extents[2]});
        require(added->scalar_type() == product.scalar_type(), op, ": ", name, " must be ",
                torch::headeronly::toString(product.scalar_type()), " as product, got ",
                torch::headeronly::toString(added->scalar_type()));
        require_same_device(op, name, *added, product);
    };
    require_added("residual", residual, sparse);
    require_added("skip", skip, whole);
    const CudaContext context(product);
    const Tensor dense = in_format(product, false);
    const MaybeTensor dense_bias = in_format(bias, false);
    const MaybeTensor dense_residual = in_format(residual, false);
    const MaybeTensor dense_skip = in_format(skip, false);
    const auto address = [](const MaybeTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; };
    Tensor output = context.empty(product, {batch, channels, whole[0], whole[1], whole[2]}, product.scalar_type());
    const kernels::OutputProblem problem{cuda_scalar_type(product),
                                         batch,
                                         channels,
                                         product.size(2),
                                         sizes,
                                         strides,
                                         planes,
                                         dense.const_data_ptr(),
                                         parameter(dense_bias),
                                         address(dense_residual),
                                         address(dense_skip),
                                         output.mutable_data_ptr()};
    require_launched(op, kernels::launch_output(problem, context.stream()));
    return output;
}

// [N, C, V], or to the next multiple of kAlignedVoxels, of a volume [N, C, D, H, W] of any strides.
Tensor packed_voxels(const Tensor& input, bool aligned) {
    constexpr const char* op = "packed_voxels";
    require_volume(op, "input", input);
    require_floating_type(op, "input", input);
    const CudaContext context(input);
    const Sizes size = volume_size(input);
    const std::int64_t voxels = size[0] * size[1] * size[2];
    const std::int64_t pitch = aligned ? aligned_voxels(voxels) : voxels;
    Tensor result = context.empty(input, {input.size(0), input.size(1), pitch}, input.scalar_type());
    kernels::PackedProblem problem{
        cuda_scalar_type(input),  input.size(0), input.size(1), pitch, size, {}, input.const_data_ptr(),
        result.mutable_data_ptr()};
    for (int axis = 0; axis < 5; ++axis) problem.stride[axis] = input.stride(axis);
    require_launched(op, kernels::launch_packed(problem, context.stream()));
    return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bottleneck_expansion_gradients(const Tensor& hidden_sums,
                                                                          const Tensor& hidden_normalized,
                                                                          const Tensor& norm_weight,
                                                                          const Tensor& norm_bias,
                                                                          const Tensor& expand_weight) {
    constexpr const char* op = "bottleneck_expansion_gradients";
    require(hidden_normalized.dim() == 3, op, ": hidden_normalized must be [N, hidden, channels], got ",
            shape_of(hidden_normalized));
    const std::int64_t batch = hidden_normalized.size(0);
    const std::int64_t hidden = hidden_normalized.size(1);
    const std::int64_t channels = hidden_normalized.size(2);
    require_floats(op, "hidden_normalized", hidden_normalized, {batch, hidden, channels}, hidden_sums);
    require_floats(op, "hidden_sums", hidden_sums, {batch, hidden}, hidden_normalized);
    require_parameter(op, "norm_weight", norm_weight, {channels}, hidden_sums);
    require_parameter(op, "norm_bias", norm_bias, {channels}, hidden_sums);
    require_parameter(op, "expand_weight", expand_weight, {hidden, channels}, hidden_sums);
    const CudaContext context(hidden_sums);
    const Tensor dense[] = {in_format(hidden_sums, false), in_format(hidden_normalized, false)};
    const MaybeTensor parameters[] = {in_format(norm_weight, false), in_format(norm_bias, false),
                                      in_format(expand_weight, false)};
    const auto made = [&](std::initializer_list<std::int64_t> sizes) {
        return context.empty(hidden_sums, sizes, ScalarType::Float);
    };
    Tensor grad_sum = made({batch, channels});
    Tensor grad_dot_normalized = made({batch, channels});
    Tensor grad_weight = made({hidden, channels});
    Tensor grad_bias = made({hidden});
    const kernels::ExpansionProblem problem{batch,
                                            channels,
                                            hidden,
                                            floats(dense[0]),
                                            floats(dense[1]),
                                            parameter(parameters[0]),
                                            parameter(parameters[1]),
                                            parameter(parameters[2]),
                                            floats(grad_sum),
                                            floats(grad_dot_normalized),
                                            floats(grad_weight),
                                            floats(grad_bias)};
    require_launched(op, kernels::launch_expansion(problem, context.stream()));
    return {grad_sum, grad_dot_normalized, grad_weight, grad_bias};
}

// The sizes of a compression with GRN between it and `squares`: samples, hidden channels, outputs.
std::tuple<std::int64_t, std::int64_t, std::int64_t> response_sizes(const char* op, const Tensor& input,
                                                                    const Tensor& squares, const Tensor& gamma,
                                                                    const Tensor& beta, const Tensor& compress_weight) {
    require_floating_type(op, "input", input);
    require(compress_weight.dim() == 2, op, ": compress_weight must be [outputs, hidden], got ",
            shape_of(compress_weight));
    require(squares.dim() == 2, op, ": squares must be [N, hidden], got ", shape_of(squares));
    const std::int64_t batch = squares.size(0);
    const std::int64_t outputs = compress_weight.size(0);
    const std::int64_t hidden = compress_weight.size(1);
    require_parameter(op, "compress_weight", compress_weight, {outputs, hidden}, input);
    require_floats(op, "squares", squares, {batch, hidden}, input);
    require_parameter(op, "gamma", gamma, {hidden}, input);
    require_parameter(op, "beta", beta, {hidden}, input);
    return {batch, hidden, outputs};
}

// The compression with GRN's gain in it, a sample, in the input's type, and its bias.
std::tuple<Tensor, Tensor> bottleneck_response(const Tensor& input, const Tensor& squares, const Tensor& gamma,
                                               const Tensor& beta, const Tensor& compress_weight,
                                               const MaybeTensor& compress_bias) {
    constexpr const char* op = "bottleneck_response";
    const auto [batch, hidden, outputs] = response_sizes(op, input, squares, gamma, beta, compress_weight);
    if (compress_bias) require_parameter(op, "compress_bias", *compress_bias, {outputs}, input);
    const CudaContext context(input);
    const Tensor sums = in_format(squares, false);
    const MaybeTensor parameters[] = {in_format(gamma, false), in_format(beta, false),
                                      in_format(compress_weight, false), in_format(compress_bias, false)};
    Tensor gain = context.empty(input, {batch, hidden}, ScalarType::Float);
    Tensor weights = context.empty(input, {batch, outputs, hidden}, input.scalar_type());
    Tensor bias = context.empty(input, {outputs}, ScalarType::Float);
    const kernels::ResponseProblem problem{cuda_scalar_type(input),
                                           batch,
                                           hidden,
                                           outputs,
                                           floats(sums),
                                           parameter(parameters[0]),
                                           parameter(parameters[1]),
                                           parameter(parameters[2]),
                                           parameter(parameters[3]),
                                           floats(gain),
                                           weights.mutable_data_ptr(),
                                           floats(bias)};
    require_launched(op, kernels::launch_response(problem, context.stream()));
    return {weights, bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bottleneck_response_gradients(
    const Tensor& input, const Tensor& squares, const Tensor& output_sums, const Tensor& output_hidden,
    const Tensor& gamma, const Tensor& beta, const Tensor& compress_weight) {
    constexpr const char* op = "bottleneck_response_gradients";
    const auto [batch, hidden, outputs] = response_sizes(op, input, squares, gamma, beta, compress_weight);
    require_floats(op, "output_sums", output_sums, {batch, outputs}, input);
    require_floats(op, "output_hidden", output_hidden, {batch, outputs, hidden}, input);
    const CudaContext context(input);
    const Tensor dense[] = {in_format(squares, false), in_format(output_sums, false), in_format(output_hidden, false)};
    const MaybeTensor parameters[] = {in_format(gamma, false), in_format(beta, false),
                                      in_format(compress_weight, false)};
    const auto made = [&](std::initializer_list<std::int64_t> sizes, ScalarType type) {
        return context.empty(input, sizes, type);
    };
    Tensor dots = made({batch, hidden}, ScalarType::Double);
    Tensor gamma_of_sample = made({batch, hidden}, ScalarType::Double);
    Tensor gain = made({batch, hidden}, ScalarType::Float);
    Tensor slope = made({batch, hidden}, ScalarType::Float);
    Tensor weights = made({batch, outputs, hidden}, input.scalar_type());
    Tensor grad_weight = made({outputs, hidden}, ScalarType::Float);
    Tensor grad_bias = made({outputs}, ScalarType::Float);
    Tensor grad_gamma = made({hidden}, ScalarType::Float);
    Tensor grad_beta = made({hidden}, ScalarType::Float);
    const kernels::ResponseGradientsProblem problem{cuda_scalar_type(input),
                                                    batch,
                                                    hidden,
                                                    outputs,
                                                    floats(dense[0]),
                                                    floats(dense[1]),
                                                    floats(dense[2]),
                                                    parameter(parameters[0]),
                                                    parameter(parameters[1]),
                                                    parameter(parameters[2]),
                                                    static_cast<double*>(dots.mutable_data_ptr()),
                                                    static_cast<double*>(gamma_of_sample.mutable_data_ptr()),
                                                    floats(gain),
                                                    floats(slope),
                                                    weights.mutable_data_ptr(),
                                                    floats(grad_weight),
                                                    floats(grad_bias),
                                                    floats(grad_gamma),
                                                    floats(grad_beta)};
    require_launched(op, kernels::launch_response_gradients(problem, context.stream()));
    return {weights, slope, grad_weight, grad_bias, grad_gamma, grad_beta};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_input_gradient(const Tensor& grad_sum, const Tensor& grad_dot_normalized,
                                                             const Tensor& mean, const Tensor& rstd,
                                                             const Tensor& weight, std::int64_t voxels) {
    constexpr const char* op = "group_norm_input_gradient";
    require(grad_sum.dim() == 2 && mean.dim() == 2, op, ": grad_sum must be [N, C] and mean [N, groups], got ",
            shape_of(grad_sum), " and ", shape_of(mean));
    require(voxels > 0, op, ": voxels must be positive, got ", voxels);
    const std::int64_t batch = grad_sum.size(0);
    const std::int64_t channels = grad_sum.size(1);
    const std::int64_t groups = mean.size(1);
    require_groups(op, groups, channels);
    require_floats(op, "grad_sum", grad_sum, {batch, channels}, grad_sum);
    require_floats(op, "grad_dot_normalized", grad_dot_normalized, {batch, channels}, grad_sum);
    require_floats(op, "mean", mean, {batch, groups}, grad_sum);
    require_floats(op, "rstd", rstd, {batch, groups}, grad_sum);
    require_parameter(op, "weight", weight, {channels}, grad_sum);
    const CudaContext context(grad_sum);
    const Tensor dense[] = {in_format(grad_sum, false), in_format(grad_dot_normalized, false), in_format(mean, false),
                            in_format(rstd, false)};
    const MaybeTensor gamma = in_format(weight, false);
    Tensor scale = context.empty(grad_sum, {batch, channels}, ScalarType::Float);
    Tensor slope = context.empty(grad_sum, {batch, channels}, ScalarType::Float);
    Tensor offset = context.empty(grad_sum, {batch, channels}, ScalarType::Float);
    const cuda::group_norm::InputGradientProblem problem{batch,
                                                         channels,
                                                         voxels,
                                                         groups,
                                                         floats(dense[0]),
                                                         floats(dense[1]),
                                                         floats(dense[2]),
                                                         floats(dense[3]),
                                                         parameter(gamma),
                                                         floats(scale),
                                                         floats(slope),
                                                         floats(offset)};
    require_launched(op, cuda::group_norm::launch_input_gradient(problem, context.stream()));
    return {scale, slope, offset};
}

}  // namespace
}  // namespace mednext_ops::bindings

MEDNEXT_OPS_CUDA_LIBRARY(library) {
    namespace bindings = mednext_ops::bindings;
    library.impl("bottleneck_weights", TORCH_BOX(&bindings::bottleneck_weights));
    library.impl("bottleneck_normalized", TORCH_BOX(&bindings::bottleneck_normalized));
    library.impl("bottleneck_hidden_", TORCH_BOX(&bindings::bottleneck_hidden));
    library.impl("bottleneck_hidden_gradient_", TORCH_BOX(&bindings::bottleneck_hidden_gradient));
    library.impl("bottleneck_output", TORCH_BOX(&bindings::bottleneck_output));
    library.impl("packed_voxels", TORCH_BOX(&bindings::packed_voxels));
    library.impl("bottleneck_expansion_gradients", TORCH_BOX(&bindings::bottleneck_expansion_gradients));
    library.impl("bottleneck_response", TORCH_BOX(&bindings::bottleneck_response));
    library.impl("bottleneck_response_gradients", TORCH_BOX(&bindings::bottleneck_response_gradients));
    library.impl("group_norm_input_gradient", TORCH_BOX(&bindings::group_norm_input_gradient));
}
