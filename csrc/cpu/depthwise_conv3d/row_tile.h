// What the plans of both convolution kernels share: how many rows a task takes, and how wide their rows are.
#pragma once

#include <algorithm>
#include <cstdint>

#include "axis.h"

namespace mednext_ops::cpu::depthwise_conv3d {

// Outputs that a kernel computes at a time along W: with up to seven taps and an input they fill sixteen registers.
constexpr std::int64_t kOutputs = 8;

// The ring of input planes stays in a second-level cache of 1 MiB beside what else a task touches.
constexpr std::int64_t kRingFloats = 160 * 1024;

// Tasks that a call should have at least, so that threads share them evenly.
constexpr std::int64_t kTasks = 16;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

constexpr std::int64_t whole_blocks(std::int64_t outputs) {
    return ceil_div(outputs, kOutputs) * kOutputs;
}

// The most planes that one output plane takes, from the first to the last.
inline std::int64_t plane_span(const Axis& axis) {
    const std::int64_t reach = (axis.kernel - 1) * axis.dilation;
    return (axis.scatter ? reach / axis.stride : reach) + 1;
}

// The rows of the largest tile of `rows` output rows.
inline std::int64_t input_rows(const Axis& axis, std::int64_t rows) {
    std::int64_t most = 1;
    for (std::int64_t begin = 0; begin < axis.output; begin += rows) {
        const Range range = inputs_of(axis, begin, std::min(begin + rows, axis.output));
        most = std::max(most, range.end - range.begin);
    }
    return most;
}

// Output rows a task: all, or as many as keep `planes` planes of their inputs in the cache, in tiles of equal size.
inline std::int64_t rows_per_task(const Axis& axis, std::int64_t planes, std::int64_t floats_per_row) {
    std::int64_t tiles = 1;
    while (true) {
        const std::int64_t rows = ceil_div(axis.output, tiles);
        if (rows <= 4 || planes * input_rows(axis, rows) * floats_per_row <= kRingFloats) return rows;
        ++tiles;
    }
}

// Output planes a task: all, or fewer if there would be too few tasks; never so few that the ring is mostly refilled.
inline std::int64_t planes_per_task(const Axis& axis, std::int64_t other_tasks) {
    const std::int64_t wanted = ceil_div(kTasks, std::max<std::int64_t>(other_tasks, 1));
    const std::int64_t fewest = std::max<std::int64_t>(4, 2 * plane_span(axis));
    const std::int64_t parts = std::clamp<std::int64_t>(axis.output / fewest, 1, wanted);
    return ceil_div(axis.output, parts);
}

}  // namespace mednext_ops::cpu::depthwise_conv3d
