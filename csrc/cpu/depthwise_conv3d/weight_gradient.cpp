#include "weight_gradient.h"

#include "row_tile.h"

namespace mednext_ops::cpu::depthwise_conv3d {

WeightGradientPlan plan(const WeightGradientProblem& p, int lanes) {
    const auto& [depth, height, width] = p.axes;
    WeightGradientPlan plan{};
    plan.lanes = lanes;
    plan.channel_blocks = ceil_div(p.anchor.values.channels, lanes);
    plan.taps = depth.kernel * height.kernel * width.kernel;

    plan.anchor_width = whole_blocks(width.output);
    const std::int64_t last =
        (plan.anchor_width - 1) * width.stride - width.padding + (width.kernel - 1) * width.dilation;
    plan.ring_front = width.padding;
    plan.ring_width = std::max(width.input - 1, last) + width.padding + 1;

    plan.slots = plane_span(depth);
    plan.rows_per_task = rows_per_task(height, plan.slots, plan.ring_width * lanes);
    plan.row_tasks = ceil_div(height.output, plan.rows_per_task);
    plan.ring_rows = input_rows(height, plan.rows_per_task);
    plan.planes_per_task = planes_per_task(depth, p.batch * plan.channel_blocks * plan.row_tasks);
    plan.plane_tasks = ceil_div(depth.output, plan.planes_per_task);
    plan.tasks = p.batch * plan.channel_blocks * plan.row_tasks * plan.plane_tasks;

    const std::int64_t zero_row = plan.ring_width;
    const std::int64_t pointers = 2 * plan.rows_per_task * (2 + height.kernel);  // two floats each
    plan.scratch_floats = lanes * (plan.slots * plan.ring_rows * plan.ring_width + zero_row +
                                   plan.rows_per_task * plan.anchor_width + plan.taps) +
                          pointers;
    return plan;
}

std::int64_t operations_per_task(const WeightGradientProblem& p, const WeightGradientPlan& plan) {
    const std::int64_t operations = p.batch * p.anchor.values.channels * p.anchor.values.voxels * plan.taps;
    return plan.tasks == 0 ? 1 : std::max<std::int64_t>(1, operations / plan.tasks);
}

void finalize(const WeightGradientProblem& p, const WeightGradientPlan& plan, const float* partial, std::int64_t begin,
              std::int64_t end, float* grad_weight) {
    const std::int64_t tiles = plan.row_tasks * plan.plane_tasks;
    for (std::int64_t channel = begin; channel < end; ++channel) {
        for (std::int64_t tap = 0; tap < plan.taps; ++tap) {
            double sum = 0;
            for (std::int64_t sample = 0; sample < p.batch; ++sample) {
                const std::int64_t block = sample * plan.channel_blocks + channel / plan.lanes;
                for (std::int64_t task = block * tiles; task < (block + 1) * tiles; ++task) {
                    sum += partial[(task * plan.taps + tap) * plan.lanes + channel % plan.lanes];
                }
            }
            grad_weight[channel * plan.taps + tap] = static_cast<float>(sum);
        }
    }
}

}  // namespace mednext_ops::cpu::depthwise_conv3d
