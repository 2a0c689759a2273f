// Gradient of a depthwise convolution's weight on the CPU, plain and transposed.
//
// grad_weight[c, k] is the sum over all voxels o of anchor[o] * moved[o * stride - padding + k * dilation]. In a plain
// convolution the anchor is the output's gradient and the input is moved; in a transposed one it is the other way.
//
// A task sums a tile of rows through some planes for a block of channels, a channel a lane: sums of at most
// kOutputsPerSum voxels in registers, those of a plane in floats, then the planes. `finalize` adds the tasks in double,
// in their order. The cut depends on the shape and the vector's width alone, so the result is the same, to the bit,
// whatever the number of threads.
#pragma once

#include <cstdint>

#include "../common/volume.h"
#include "axis.h"

namespace mednext_ops::cpu::depthwise_conv3d {

struct WeightGradientProblem {
    Source anchor;
    Source moved;
    std::int64_t batch;
    Axis axes[3];  // gathering; `output` is the anchor's extent, `input` the moved tensor's
};

struct WeightGradientPlan {
    std::int64_t channel_blocks;
    std::int64_t rows_per_task, row_tasks;
    std::int64_t planes_per_task, plane_tasks;
    std::int64_t slots, ring_rows, ring_front, ring_width;
    std::int64_t anchor_width;
    std::int64_t taps;
    std::int64_t tasks;
    std::int64_t scratch_floats;
    std::int64_t lanes;

    // Floats that the tasks write in all.
    std::int64_t partial_floats() const { return tasks * taps * lanes; }
};

WeightGradientPlan plan(const WeightGradientProblem& problem, int lanes);

std::int64_t operations_per_task(const WeightGradientProblem& problem, const WeightGradientPlan& plan);

// Adds the partial sums of all tasks into grad_weight [C, kd, kh, kw], for channels begin <= c < end.
void finalize(const WeightGradientProblem& problem, const WeightGradientPlan& plan, const float* partial,
              std::int64_t begin, std::int64_t end, float* grad_weight);

}  // namespace mednext_ops::cpu::depthwise_conv3d
