// GroupNorm's affine map and its gradient by the CUDA kernels.
#include <tuple>

#include "../cuda/group_norm/apply.h"
#include "convolution_arguments.h"
#include "cuda_context.h"

namespace mednext_ops::bindings {
namespace {

namespace kernels = mednext_ops::cuda::group_norm;

// The tensors of a norm: checked, then dense.
struct Norm {
    Tensor input, mean, rstd, weight, bias;
    bool channels_last;

    Norm(const char* op, const Tensor& input, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
         const Tensor& bias)
        : channels_last(prefers_channels_last(checked(op, input, mean, rstd, weight, bias))) {
        this->input = in_format(input, channels_last);
        this->mean = in_format(mean, false);
        this->rstd = in_format(rstd, false);
        this->weight = in_format(weight, false);
        this->bias = in_format(bias, false);
    }

    kernels::ApplyProblem problem(bool gelu) const {
        return {input.const_data_ptr(),
                cuda_scalar_type(input),
                channels_last,
                input.size(0),
                input.size(1),
                input.size(2) * input.size(3) * input.size(4),
                mean.size(1),
                static_cast<const float*>(mean.const_data_ptr()),
                static_cast<const float*>(rstd.const_data_ptr()),
                {weight.const_data_ptr(), cuda_scalar_type(weight)},
                {bias.const_data_ptr(), cuda_scalar_type(bias)},
                gelu};
    }

  private:
    static const Tensor& checked(const char* op, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                                 const Tensor& weight, const Tensor& bias) {
        require_volume(op, "input", input);
        require_floating_type(op, "input", input);
        const Tensor* const statistics[] = {&mean, &rstd};
        const char* const names[] = {"mean", "rstd"};
        for (int i = 0; i < 2; ++i) {
            const Tensor& statistic = *statistics[i];
            require(statistic.dim() == 2 && statistic.size(0) == input.size(0), op, ": ", names[i], " must be [",
                    input.size(0), ", groups], got ", shape_of(statistic));
            require(statistic.size(1) == mean.size(1), op, ": rstd must be ", shape_of(mean), " as mean, got ",
                    shape_of(statistic));
            require(statistic.scalar_type() == ScalarType::Float, op, ": ", names[i], " must be float32, got ",
                    torch::headeronly::toString(statistic.scalar_type()));
            require_same_device(op, names[i], statistic, input);
        }
        require_groups(op, mean.size(1), input.size(1));
        const Tensor* const parameters[] = {&weight, &bias};
        const char* const parameter_names[] = {"weight", "bias"};
        for (int i = 0; i < 2; ++i) {
            const Tensor& parameter = *parameters[i];
            require(parameter.dim() == 1 && parameter.size(0) == input.size(1), op, ": ", parameter_names[i],
                    " must be [", input.size(1), "], got ", shape_of(parameter));
            require_parameter_type(op, parameter_names[i], parameter, input);
        }
        return input;
    }
};

Tensor group_norm(const Tensor& input, const Tensor& mean, const Tensor& rstd, const Tensor& weight, const Tensor& bias,
                  bool gelu) {
    constexpr const char* op = "group_norm";
    const Norm norm(op, input, mean, rstd, weight, bias);
    const CudaContext context(input);
    const Sizes size = volume_size(input);
    Tensor output =
        context.empty_volume(input, {input.size(0), input.size(1), size[0], size[1], size[2]}, norm.channels_last);
    require_launched(op, kernels::launch_apply(norm.problem(gelu), output.mutable_data_ptr(), context.stream()));
    return output;
}

// Without GELU the first result is empty: the gradient is grad_output itself.
std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor& grad_output, const Tensor& input,
                                                       const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                                                       const Tensor& bias, bool gelu) {
    constexpr const char* op = "group_norm_backward";
    const Norm norm(op, input, mean, rstd, weight, bias);
    require_like(op, "grad_output", grad_output, input, volume_size(input));
    const CudaContext context(input);
    const Tensor dense = in_format(grad_output, norm.channels_last);
    const Sizes size = volume_size(input);
    const std::int64_t batch = input.size(0);
    const std::int64_t channels = input.size(1);
    Tensor grad = gelu ? context.empty_volume(input, {batch, channels, size[0], size[1], size[2]}, norm.channels_last)
                       : context.empty(input, {0}, input.scalar_type());
    Tensor sum = context.empty(input, {batch, channels}, ScalarType::Float);
    Tensor dot = context.empty(input, {batch, channels}, ScalarType::Float);
    const kernels::ApplyProblem problem = norm.problem(gelu);
    Tensor workspace =
        context.empty(input, {2 * kernels::gradient_parts(problem) * batch * channels}, ScalarType::Float);
    require_launched(op, kernels::launch_apply_gradient(problem, dense.const_data_ptr(), grad.mutable_data_ptr(),
                                                        static_cast<float*>(workspace.mutable_data_ptr()),
                                                        static_cast<float*>(sum.mutable_data_ptr()),
                                                        static_cast<float*>(dot.mutable_data_ptr()), context.stream()));
    return {grad, sum, dot};
}

}  // namespace
}  // namespace mednext_ops::bindings

MEDNEXT_OPS_CUDA_LIBRARY(library) {
    library.impl("group_norm", TORCH_BOX(&mednext_ops::bindings::group_norm));
    library.impl("group_norm_backward", TORCH_BOX(&mednext_ops::bindings::group_norm_backward));
}
