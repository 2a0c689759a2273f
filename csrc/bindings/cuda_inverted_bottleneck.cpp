// The inverted bottleneck and its gradients by the CUDA kernels.
#include <optional>

#include "../cuda/inverted_bottleneck/forward.h"
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

    Arguments dense() const {
        return {in_format(input, false),           in_format(mean, false),        in_format(rstd, false),
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

    static cuda::Parameter parameter(const MaybeTensor& tensor) {
        if (!tensor) return {nullptr, cuda::ScalarType::float32};
        return {tensor->const_data_ptr(), cuda_scalar_type(*tensor)};
    }
};

std::string text_of(const kernels::Extents& e) {
    std::ostringstream text;
    text << e.channels << " channels, " << e.hidden << " hidden and " << e.outputs << " output channels";
    return text.str();
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
    if (residual) {
        require_volume(op, "residual", *residual);
        require(residual->size(0) == extents.batch && residual->size(1) == extents.outputs &&
                    volume_size(*residual) == size,
                op, ": residual must be [", extents.batch, ", ", extents.outputs, ", ", size[0], ", ", size[1], ", ",
                size[2], "], got ", shape_of(*residual));
        require(residual->scalar_type() == input.scalar_type(), op, ": residual must be ",
                torch::headeronly::toString(input.scalar_type()), " as the input, got ",
                torch::headeronly::toString(residual->scalar_type()));
        require_same_device(op, "residual", *residual, input);
    }
    const CudaContext context(input);
    const auto plan = kernels::plan_forward(extents, context.architecture());
    require(plan.has_value(), op, ": no kernel takes ", text_of(extents), " on sm_", context.architecture());

    const Arguments arguments = given.dense();
    const MaybeTensor added = in_format(residual, false);
    Tensor output = context.empty_volume(input, {extents.batch, extents.outputs, size[0], size[1], size[2]}, false);
    if (output.numel() == 0) return output;
    const kernels::ForwardProblem problem{arguments.bottleneck(), added ? added->const_data_ptr() : nullptr,
                                          output.mutable_data_ptr()};
    require_launched(op, kernels::launch_fused_forward(problem, *plan, nullptr, context.stream()));
    return output;
}

}  // namespace
}  // namespace mednext_ops::bindings

// Whether a kernel takes the shape on an architecture (10 * major + minor): the plan knows, and the backend asks.
extern "C" __attribute__((visibility("default"))) int mednext_ops_inverted_bottleneck_fits(std::int64_t channels,
                                                                                           std::int64_t hidden,
                                                                                           std::int64_t outputs,
                                                                                           int architecture) {
    namespace kernels = mednext_ops::cuda::inverted_bottleneck;
    return kernels::plan_forward({1, channels, hidden, outputs, 1}, architecture).has_value() ? 1 : 0;
}

MEDNEXT_OPS_CUDA_LIBRARY(library) {
    namespace bindings = mednext_ops::bindings;
    library.impl("inverted_bottleneck", TORCH_BOX(&bindings::inverted_bottleneck));
}
