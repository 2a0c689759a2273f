// Depthwise convolution on the CPU: forward and backward data, plain and transposed, as one problem.
//
// A task is a block of channels (one a vector lane) of a tile of output rows through some output planes. It reads each
// input plane once into a ring of planes of floats, voxel by voxel, where the row's padding is written out as zeros;
// all arithmetic is on that ring. The cut into tasks depends on the shape and the vector's width alone.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/moments.h"
#include "../common/volume.h"
#include "axis.h"

namespace mednext_ops::cpu::depthwise_conv3d {

struct ConvolutionProblem {
    Source input;  // [N, C, D, H, W]
    std::int64_t batch;
    Axis axes[3];         // D, H, W
    const float* weight;  // [C, kd, kh, kw]
    const float* bias;    // [C] or null
    Volume output;        // [N, C, D', H', W']
    Volume add;           // of the output's shape and type; data is null if there is none
    // Where given, the moments of the output as it is stored: [N, C, moments_per_channel()]. Not with `add`.
    Moments* moments;
};

struct ConvolutionPlan {
    std::vector<Phase> phases;  // of the W axis
    std::int64_t channel_blocks;
    std::int64_t rows_per_task, row_tasks;                  // output rows
    std::int64_t planes_per_task, plane_tasks;              // output planes
    std::int64_t slots, ring_rows, ring_front, ring_width;  // the ring's planes, their rows, and zeros before each row
    std::int64_t output_width;                              // of a row of results, whole blocks of outputs
    std::int64_t tasks;
    std::int64_t scratch_floats;

    std::int64_t moments_per_channel() const { return row_tasks * plane_tasks; }
};

ConvolutionPlan plan(const ConvolutionProblem& problem, int lanes);

// Multiplications and additions of a task, about.
std::int64_t operations_per_task(const ConvolutionProblem& problem, const ConvolutionPlan& plan);

}  // namespace mednext_ops::cpu::depthwise_conv3d
