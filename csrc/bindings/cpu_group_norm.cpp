// mednext_ops_native::group_norm and group_norm_backward on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../cpu/dispatch/kernels.h"
#include "cpu_volume.h"

namespace mednext_ops::bindings {
namespace {

namespace kernels = mednext_ops::cpu::group_norm;

// Tasks that are worth a thread of their own.
constexpr std::int64_t kTasksPerThread = 2;

void require_vector(const char* op, const char* name, const Tensor& tensor, std::int64_t extent) {
    require_floating_type(op, name, tensor);
    require(tensor.dim() == 1 && tensor.size(0) == extent, op, ": ", name, " must be [", extent, "], got ",
            shape_of(tensor));
}

struct Affine {
    DenseVolume input;
    Floats mean, rstd, weight, bias;
    kernels::AffineProblem problem;
};

// mean and rstd are [N, C]: those of a group are repeated for its channels.
Affine affine_of(const char* op, const Tensor& input, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                 const Tensor& bias, bool gelu) {
    require_volume(op, "input", input);
    require_floating_type(op, "input", input);
    require_per_channel(op, "mean", mean, input);
    require_per_channel(op, "rstd", rstd, input);
    require_vector(op, "weight", weight, input.size(1));
    require_vector(op, "bias", bias, input.size(1));
    Affine affine{dense(input), floats(mean), floats(rstd), floats(weight), floats(bias), {}};
    affine.problem = {affine.input.volume,
                      input.size(0),
                      affine.mean.data(),
                      affine.rstd.data(),
                      affine.weight.data(),
                      affine.bias.data(),
                      gelu,
                      {}};
    return affine;
}

Tensor group_norm(const Tensor& input, const Tensor& mean, const Tensor& rstd, const Tensor& weight, const Tensor& bias,
                  bool gelu) {
    Affine affine = affine_of("group_norm", input, mean, rstd, weight, bias, gelu);
    const DenseVolume output = new_volume_like(input, affine.input.volume.channels_last);
    affine.problem.output = output.volume;
    const std::int64_t tasks = kernels::tasks_of(affine.problem, cpu::kernels().lanes);
    torch::stable::parallel_for(0, tasks, kTasksPerThread, [&](std::int64_t begin, std::int64_t end) {
        cpu::kernels().group_norm_affine(affine.problem, begin, end);
    });
    return output.tensor;
}

std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor& grad_output, const Tensor& input,
                                                       const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                                                       const Tensor& bias, bool gelu) {
    constexpr const char* op = "group_norm_backward";
    const Affine affine = affine_of(op, input, mean, rstd, weight, bias, gelu);
    require_same(op, "grad_output", grad_output, "input", input);
    const bool channels_last = affine.input.volume.channels_last;
    const DenseVolume read = dense(grad_output);
    std::optional<DenseVolume> grad;
    if (gelu) grad = new_volume_like(input, channels_last);

    const std::int64_t batch = input.size(0), channels = input.size(1), parts = kernels::parts_of(affine.problem);
    std::vector<double> sums(static_cast<std::size_t>(batch * channels * parts * 2));
    const kernels::AffineGradientProblem problem{affine.problem, read.volume, gelu ? grad->volume : cpu::Volume{},
                                                 sums.data()};
    const std::int64_t tasks = kernels::tasks_of(affine.problem, cpu::kernels().lanes);
    torch::stable::parallel_for(0, tasks, kTasksPerThread, [&](std::int64_t begin, std::int64_t end) {
        cpu::kernels().group_norm_gradient(problem, begin, end);
    });
    Tensor grad_sum = allocate(input, {batch, channels}, ScalarType::Float);
    Tensor grad_dot = allocate(input, {batch, channels}, ScalarType::Float);
    kernels::add_parts(problem, static_cast<float*>(grad_sum.mutable_data_ptr()),
                       static_cast<float*>(grad_dot.mutable_data_ptr()));
    return {gelu ? grad->tensor : torch::stable::new_empty(input, {0}), grad_sum, grad_dot};
}

}  // namespace
}  // namespace mednext_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(mednext_ops_native, CPU, library) {
    library.impl("group_norm", TORCH_BOX(&mednext_ops::bindings::group_norm));
    library.impl("group_norm_backward", TORCH_BOX(&mednext_ops::bindings::group_norm_backward));
}
