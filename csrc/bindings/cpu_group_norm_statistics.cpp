// mednext_ops_native::group_norm_statistics on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../cpu/group_norm/statistics.h"
#include "arguments.h"
#include "cpu_scalar_type.h"
#include "volume.h"

namespace mednext_ops::bindings {
namespace {

namespace kernels = mednext_ops::cpu::group_norm;

// Fewer elements than this are not worth a second thread.
constexpr std::int64_t kElementsPerThread = 32768;

std::tuple<Tensor, Tensor> group_norm_statistics(const Tensor& input, std::int64_t num_groups, double eps) {
    constexpr const char* op = "group_norm_statistics";
    require_volume(op, "input", input);
    require_floating_type(op, "input", input);
    require_groups(op, num_groups, input.size(1));

    const Volume volume = dense_volume(input);
    Tensor mean = allocate(input, {volume.batch, num_groups}, ScalarType::Float);
    Tensor rstd = allocate(input, {volume.batch, num_groups}, ScalarType::Float);
    const kernels::StatisticsProblem problem{volume.tensor.const_data_ptr(),
                                             cpu_scalar_type(input),
                                             volume.channels_last,
                                             volume.batch,
                                             volume.channels,
                                             volume.voxels,
                                             num_groups};
    std::vector<cpu::Moments> moments(static_cast<std::size_t>(kernels::moments_count(problem)));
    const std::int64_t grain = std::max<std::int64_t>(1, kElementsPerThread / kernels::elements_per_block(problem));
    torch::stable::parallel_for(0, kernels::block_count(problem), grain, [&](std::int64_t begin, std::int64_t end) {
        kernels::compute_blocks(problem, begin, end, moments.data());
    });
    const std::int64_t groups = volume.batch * num_groups;
    kernels::finalize(moments.data(), groups, groups == 0 ? 0 : kernels::moments_count(problem) / groups, eps,
                      static_cast<float*>(mean.mutable_data_ptr()), static_cast<float*>(rstd.mutable_data_ptr()));
    return {mean, rstd};
}

}  // namespace
}  // namespace mednext_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(mednext_ops_native, CPU, library) {
    library.impl("group_norm_statistics", TORCH_BOX(&mednext_ops::bindings::group_norm_statistics));
}
