#include "convolution.h"

#include "row_tile.h"

namespace mednext_ops::cpu::depthwise_conv3d {

ConvolutionPlan plan(const ConvolutionProblem& p, int lanes) {
    const auto& [depth, height, width] = p.axes;
    ConvolutionPlan plan{};
    plan.phases = phases_of(width);
    plan.channel_blocks = ceil_div(p.output.channels, lanes);

    std::int64_t first = 0, last = width.input - 1;
    plan.output_width = 1;
    for (const Phase& phase : plan.phases) {
        const std::int64_t outputs = whole_blocks(phase.count);
        plan.output_width = std::max(plan.output_width, phase.first + (outputs - 1) * phase.step + 1);
        if (phase.taps == 0) continue;
        first = std::min(first, phase.first_input);
        last = std::max(last,
                        phase.first_input + (outputs - 1) * phase.input_step + (phase.taps - 1) * phase.input_tap_step);
    }
    plan.ring_front = -first;
    plan.ring_width = last - first + 1;

    plan.slots = plane_span(depth);
    plan.rows_per_task = rows_per_task(height, plan.slots, plan.ring_width * lanes);
    plan.row_tasks = ceil_div(height.output, plan.rows_per_task);
    plan.ring_rows = input_rows(height, plan.rows_per_task);
    plan.planes_per_task = planes_per_task(depth, p.batch * plan.channel_blocks * plan.row_tasks);
    plan.plane_tasks = ceil_div(depth.output, plan.planes_per_task);
    plan.tasks = p.batch * plan.channel_blocks * plan.row_tasks * plan.plane_tasks;

    const std::int64_t taps = depth.kernel * height.kernel;
    const std::int64_t pointers = 2 * (plan.rows_per_task * (2 * taps + 1) + 1);  // two floats each
    plan.scratch_floats = lanes * (plan.slots * plan.ring_rows * plan.ring_width +
                                   plan.rows_per_task * plan.output_width + taps * width.kernel) +
                          pointers;
    return plan;
}

std::int64_t operations_per_task(const ConvolutionProblem& p, const ConvolutionPlan& plan) {
    std::int64_t operations = p.batch * p.output.channels * p.output.voxels;
    for (const Axis& axis : p.axes) operations *= axis.kernel;
    return plan.tasks == 0 ? 1 : std::max<std::int64_t>(1, operations / plan.tasks);
}

}  // namespace mednext_ops::cpu::depthwise_conv3d
