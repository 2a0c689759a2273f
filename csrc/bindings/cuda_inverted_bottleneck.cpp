// The inverted bottleneck and its gradients by the CUDA kernels.
#include <optional>
#include <tuple>

#include "../cuda/inverted_bottleneck/launch.h"
#include "../cuda/inverted_bottleneck/plan.h"
#include "convolution_arguments.h"
#include "cuda_context.h"

namespace mednext_ops::bindings {
namespace {

namespace kernels = mednext_ops::cuda::inverted_bottleneck;

using MaybeTensor = std::optional<Tensor>;

void require_statistic(const char* op, const char* name, const Tensor& statistic, const Tensor& input,
                       std::int64_t groups) {
    require(statistic.dim() == 2 && statistic.size(0) == input.size(0) && statistic.size(1) == groups, op, ": ", name,
            " must be [", input.size(0), ", ", groups, "] as mean, got ", shape_of(statistic));
    require(statistic.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32, got ",
            torch::headeronly::toString(statistic.scalar_type()));
    require_same_device(op, name, statistic, input);
}

void require_matrix(const char* op, const char* name, const Tensor& matrix, std::int64_t rows, std::int64_t columns,
                    const Tensor& input) {
    require(matrix.dim() == 2 && matrix.size(0) == rows && matrix.size(1) == columns, op, ": ", name, " must be [",
            rows, ", ", columns, "], got ", shape_of(matrix));
    require_parameter_type(op, name, matrix, input);
}

void require_vector(const char* op, const char* name, const MaybeTensor& vector, std::int64_t count,
                    const Tensor& input) {
    if (!vector) return;
    require(vector->dim() == 1 && vector->size(0) == count, op, ": ", name, " must be [", count, "], got ",
            shape_of(*vector));
    require_parameter_type(op, name, *vector, input);
}

// The tensors that make the hidden tensor: checked, then dense.
struct Arguments {
    Tensor input, mean, rstd, norm_weight, norm_bias, expand_weight, compress_weight;
    MaybeTensor expand_bias, compress_bias, grn_gamma, grn_beta;

    void require_all(const char* op) const {
        require_volume(op, "input", input);
        const ScalarType type = input.scalar_type();
        require(type == ScalarType::Half || type == ScalarType::BFloat16, op,
                ": input must be float16 or bfloat16, got ", torch::headeronly::toString(type));
        require(mean.dim() == 2, op, ": mean must be [", input.size(0), ", groups], got ", shape_of(mean));
        require_groups(op, mean.size(1), input.size(1));
        require_statistic(op, "mean", mean, input, mean.size(1));
        require_statistic(op, "rstd", rstd, input, mean.size(1));
        require_vector(op, "norm_weight", norm_weight, input.size(1), input);
        require_vector(op, "norm_bias", norm_bias, input.size(1), input);
        require(expand_weight.dim() == 2, op, ": expand_weight must be [hidden, ", input.size(1), "], got ",
                shape_of(expand_weight));
        const std::int64_t hidden = expand_weight.size(0);
        require_matrix(op, "expand_weight", expand_weight, hidden, input.size(1), input);
        require(compress_weight.dim() == 2, op, ": compress_weight must be [outputs, ", hidden, "], got ",
                shape_of(compress_weight));
        require_matrix(op, "compress_weight", compress_weight, compress_weight.size(0), hidden, input);
        require_vector(op, "expand_bias", expand_bias, hidden, input);
        require_vector(op, "compress_bias", compress_bias, compress_weight.size(0), input);
        require(grn_gamma.has_value() == grn_beta.has_value(), op,
                ": grn_gamma and grn_beta must both be given, or neither of them");
        require_vector(op, "grn_gamma", grn_gamma, hidden, input);
        require_vector(op, "grn_beta", grn_beta, hidden, input);
    }

    bool channels_last() const { return prefers_channels_last(input); }

    Arguments dense() const {
        return {in_format(input, channels_last()), in_format(mean, false),        in_format(rstd, false),
                in_format(norm_weight, false),     in_format(norm_bias, false),   in_format(expand_weight, false),
                in_format(compress_weight, false), in_format(expand_bias, false), in_format(compress_bias, false),
                in_format(grn_gamma, false),       in_format(grn_beta, false)};
    }

    kernels::Extents extents() const {
        return {input.size(0), input.size(1), expand_weight.size(0), compress_weight.size(0),
                input.size(2) * input.size(3) * input.size(4)};
    }

    kernels::Bottleneck bottleneck() const {
        return {cuda_scalar_type(input),
                channels_last(),
                extents(),
                mean.size(1),
                input.const_data_ptr(),
                static_cast<const float*>(mean.const_data_ptr()),
                static_cast<const float*>(rstd.const_data_ptr()),
                parameter(norm_weight),
                parameter(norm_bias),
                parameter(expand_weight),
                parameter(expand_bias),
                parameter(compress_weight),
                parameter(compress_bias),
                parameter(grn_gamma),
                parameter(grn_beta)};
    }
};

std::string described(const kernels::Extents& e) {
    return text_of(e.channels, " channels, ", e.hidden, " hidden and ", e.outputs, " output channels");
}

// A volume [N, O, D, H, W] beside the input.
void require_same_volume(const char* op, const char* name, const Tensor& volume, const Tensor& input,
                         std::int64_t channels) {
    const Sizes size = volume_size(input);
    require_volume(op, name, volume);
    require(volume.size(0) == input.size(0) && volume.size(1) == channels && volume_size(volume) == size, op, ": ",
            name, " must be [", input.size(0), ", ", channels, ", ", size[0], ", ", size[1], ", ", size[2], "], got ",
            shape_of(volume));
    require(volume.scalar_type() == input.scalar_type(), op, ": ", name, " must be ",
            torch::headeronly::toString(input.scalar_type()), " as the input, got ",
            torch::headeronly::toString(volume.scalar_type()));
    require_same_device(op, name, volume, input);
}

// Whether a kernel takes the shape. The forward's sums for GRN are made by the backward's kernel.
bool has_plan(const kernels::Extents& extents, bool channels_last, bool grn, bool backward, int architecture) {
    return (backward || kernels::plan_forward(extents, channels_last, architecture)) &&
           (!(backward || grn) || kernels::plan_backward(extents, architecture));
}

void require_plan(const char* op, const kernels::Extents& extents, bool channels_last, bool grn, bool backward,
                  int architecture) {
    require(has_plan(extents, channels_last, grn, backward, architecture), op, ": no kernel takes ", described(extents),
            grn ? " with GRN" : "", " on sm_", architecture);
}

Tensor inverted_bottleneck(const Tensor& input, const Tensor& mean, const Tensor& rstd, const Tensor& norm_weight,
                           const Tensor& norm_bias, const Tensor& expand_weight, const MaybeTensor& expand_bias,
                           const Tensor& compress_weight, const MaybeTensor& compress_bias,
                           const MaybeTensor& grn_gamma, const MaybeTensor& grn_beta, const MaybeTensor& residual) {
    constexpr const char* op = "inverted_bottleneck";
    const Arguments given{input,           mean,        rstd,          norm_weight, norm_bias, expand_weight,
                          compress_weight, expand_bias, compress_bias, grn_gamma,   grn_beta};
    given.require_all(op);
    const kernels::Extents extents = given.extents();
    const Sizes size = volume_size(input);
    if (residual) require_same_volume(op, "residual", *residual, input, extents.outputs);
    const CudaContext context(input);
    require_plan(op, extents, given.channels_last(), grn_gamma.has_value(), false, context.architecture());

    const Arguments arguments = given.dense();
    const bool last = given.channels_last();
    const MaybeTensor added = in_format(residual, last);
    Tensor output = context.empty_volume(input, {extents.batch, extents.outputs, size[0], size[1], size[2]}, last);
    if (output.numel() == 0) return output;
    const kernels::ForwardProblem problem{arguments.bottleneck(), added ? added->const_data_ptr() : nullptr,
                                          output.mutable_data_ptr()};
    const std::int64_t bytes = kernels::forward_workspace_bytes(problem.bottleneck, context.architecture());
    Tensor workspace = context.empty(input, {bytes}, ScalarType::Byte);
    require_launched(
        op, kernels::launch_forward(problem, context.architecture(), workspace.mutable_data_ptr(), context.stream()));
    return output;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The fields of backends.problem.InvertedBottleneckGradients, in order; what nobody asked for is empty.
Gradients inverted_bottleneck_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                       const Tensor& rstd, const Tensor& norm_weight, const Tensor& norm_bias,
                                       const Tensor& expand_weight, const MaybeTensor& expand_bias,
                                       const Tensor& compress_weight, const MaybeTensor& grn_gamma,
                                       const MaybeTensor& grn_beta, bool needs_input, bool needs_norm,
                                       bool needs_expand, bool needs_compress, bool) {
    constexpr const char* op = "inverted_bottleneck_backward";
    const Arguments given{input,           mean,        rstd, norm_weight, norm_bias, expand_weight,
                          compress_weight, expand_bias, {},   grn_gamma,   grn_beta};
    given.require_all(op);
    const kernels::Extents extents = given.extents();
    require_same_volume(op, "grad_output", grad_output, input, extents.outputs);
    const CudaContext context(input);
    require_plan(op, extents, given.channels_last(), grn_gamma.has_value(), true, context.architecture());

    const Arguments arguments = given.dense();
    const bool last = given.channels_last();
    const Tensor grads = in_format(grad_output, last);
    const bool wants_hidden = needs_input || needs_norm || needs_expand;
    // With GRN the hidden gradient is made of the compression's, and GRN's own fall out of them.
    const bool wants_compress = needs_compress || grn_gamma.has_value();
    const bool wants_grn = grn_gamma.has_value();
    const auto floats = [&](bool wanted, std::initializer_list<std::int64_t> sizes) {
        return wanted ? context.empty(input, sizes, ScalarType::Float) : context.empty(input, {0}, ScalarType::Float);
    };
    const auto address = [](bool wanted, Tensor& tensor) {
        return wanted ? static_cast<float*>(tensor.mutable_data_ptr()) : nullptr;
    };
    Tensor grad = needs_input
                      ? context.empty_volume(
                            input, {extents.batch, extents.channels, input.size(2), input.size(3), input.size(4)}, last)
                      : context.empty(input, {0}, input.scalar_type());
    Tensor grad_sum = floats(wants_hidden, {extents.batch, extents.channels});
    Tensor grad_dot_normalized = floats(wants_hidden, {extents.batch, extents.channels});
    Tensor grad_expand = floats(wants_hidden, {extents.hidden, extents.channels});
    Tensor grad_expand_bias = floats(wants_hidden, {extents.hidden});
    Tensor grad_compress = floats(wants_compress, {extents.outputs, extents.hidden});
    Tensor grad_compress_bias = floats(wants_compress, {extents.outputs});
    Tensor grad_gamma = floats(wants_grn, {extents.hidden});
    Tensor grad_beta = floats(wants_grn, {extents.hidden});
    if (wants_hidden || wants_compress) {
        const kernels::BackwardProblem problem{arguments.bottleneck(),
                                               grads.const_data_ptr(),
                                               needs_input ? grad.mutable_data_ptr() : nullptr,
                                               wants_hidden,
                                               wants_compress,
                                               address(wants_hidden, grad_sum),
                                               address(wants_hidden, grad_dot_normalized),
                                               address(wants_hidden, grad_expand),
                                               address(wants_hidden, grad_expand_bias),
                                               address(wants_compress, grad_compress),
                                               address(wants_compress, grad_compress_bias),
                                               address(wants_grn, grad_gamma),
                                               address(wants_grn, grad_beta)};
        const std::int64_t bytes = kernels::backward_workspace_bytes(problem.bottleneck, context.architecture());
        Tensor workspace = context.empty(input, {bytes}, ScalarType::Byte);
        require_launched(op, kernels::launch_backward(problem, context.architecture(), workspace.mutable_data_ptr(),
                                                      context.stream()));
    }
    return {grad,          grad_sum,           grad_dot_normalized, grad_expand, grad_expand_bias,
            grad_compress, grad_compress_bias, grad_gamma,          grad_beta};
}

}  // namespace
}  // namespace mednext_ops::bindings

// Whether a kernel takes the shape on an architecture (10 * major + minor): the plan knows, and the backend asks.
extern "C" __attribute__((visibility("default"))) int mednext_ops_inverted_bottleneck_fits(
    std::int64_t channels, std::int64_t hidden, std::int64_t outputs, int channels_last, int grn, int backward,
    int architecture) {
    const auto has_plan = mednext_ops::bindings::has_plan;
    return has_plan({1, channels, hidden, outputs, 1}, channels_last != 0, grn != 0, backward != 0, architecture) ? 1
                                                                                                                  : 0;
}

MEDNEXT_OPS_CUDA_LIBRARY(library) {
    namespace bindings = mednext_ops::bindings;
    library.impl("inverted_bottleneck", TORCH_BOX(&bindings::inverted_bottleneck));
    library.impl("inverted_bottleneck_backward", TORCH_BOX(&bindings::inverted_bottleneck_backward));
}
