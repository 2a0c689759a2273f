// group_norm_statistics by the CUDA kernels.
#include <tuple>

#include "../cuda/group_norm/statistics.h"
#include "arguments.h"
#include "cuda_context.h"
#include "volume.h"

namespace mednext_ops::bindings {
namespace {

namespace kernels = mednext_ops::cuda::group_norm;

std::tuple<Tensor, Tensor> group_norm_statistics(const Tensor& input, std::int64_t num_groups, double eps) {
    constexpr const char* op = "group_norm_statistics";
    require_volume(op, "input", input);
    require_floating_type(op, "input", input);
    require_groups(op, num_groups, input.size(1));

    const CudaContext context(input);
    const Volume volume = dense_volume(input);
    Tensor mean = context.empty(input, {volume.batch, num_groups}, ScalarType::Float);
    Tensor rstd = context.empty(input, {volume.batch, num_groups}, ScalarType::Float);
    const kernels::StatisticsProblem problem{volume.tensor.const_data_ptr(),
                                             cuda_scalar_type(input),
                                             volume.channels_last,
                                             volume.batch,
                                             volume.channels,
                                             volume.voxels,
                                             num_groups,
                                             eps};
    Tensor workspace = context.empty(input, {kernels::statistics_workspace_bytes(problem)}, ScalarType::Byte);
    require_launched(op, kernels::launch_statistics(problem, workspace.mutable_data_ptr(),
                                                    static_cast<float*>(mean.mutable_data_ptr()),
                                                    static_cast<float*>(rstd.mutable_data_ptr()), context.stream()));
    return {mean, rstd};
}

}  // namespace
}  // namespace mednext_ops::bindings

MEDNEXT_OPS_CUDA_LIBRARY(library) {
    library.impl("group_norm_statistics", TORCH_BOX(&mednext_ops::bindings::group_norm_statistics));
}
