// One axis of a convolution: which input voxel an output voxel takes through which tap.
#pragma once

#include <cstdint>
#include <vector>

namespace mednext_ops::cpu::depthwise_conv3d {

// gather: output o takes input o * stride - padding + k * dilation through tap k, as a convolution does.
// scatter: input i goes to output i * stride - padding + k * dilation, as in a transposed convolution and in the
// gradient of a convolution's input.
struct Axis {
    bool scatter;
    std::int64_t input, output, kernel, stride, padding, dilation;
};

// Outputs first, first + step, ... (count of them) that share their taps: output number t takes, through tap
// first_tap + m * tap_step (0 <= m < taps), input first_input + t * input_step + m * input_tap_step, if it exists.
struct Phase {
    std::int64_t first, step, count;
    std::int64_t taps, first_tap, tap_step;
    std::int64_t first_input, input_step, input_tap_step;
};

// A gathering axis has one phase, a scattering one `stride` of them.
std::vector<Phase> phases_of(const Axis& axis);

// The input that output `o` takes through tap `k`, or -1. Internal linkage: see simd/vector.h.
static inline std::int64_t input_of(const Axis& axis, std::int64_t o, std::int64_t k) {
    std::int64_t i =
        axis.scatter ? o + axis.padding - k * axis.dilation : o * axis.stride - axis.padding + k * axis.dilation;
    if (axis.scatter) {
        if (i < 0 || i % axis.stride != 0) return -1;
        i /= axis.stride;
    }
    return i >= 0 && i < axis.input ? i : -1;
}

struct Range {
    std::int64_t begin, end;  // empty where begin >= end
};

// A range that holds every input that outputs [begin, end) take. Neither end of it decreases with theirs, as the first
// and the last input taken would where a dilated kernel hangs over the edge.
static inline Range inputs_of(const Axis& axis, std::int64_t begin, std::int64_t end) {
    const std::int64_t reach = (axis.kernel - 1) * axis.dilation;
    Range range{begin * axis.stride - axis.padding, (end - 1) * axis.stride - axis.padding + reach + 1};
    if (axis.scatter) {
        const std::int64_t first = begin + axis.padding - reach;
        range = {first <= 0 ? 0 : (first + axis.stride - 1) / axis.stride, (end - 1 + axis.padding) / axis.stride + 1};
    }
    if (range.begin < 0) range.begin = 0;
    if (range.end > axis.input) range.end = axis.input;
    return range;
}

}  // namespace mednext_ops::cpu::depthwise_conv3d
