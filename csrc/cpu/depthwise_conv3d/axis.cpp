#include "axis.h"

#include <numeric>

namespace mednext_ops::cpu::depthwise_conv3d {

std::vector<Phase> phases_of(const Axis& axis) {
    if (!axis.scatter) {
        return {{0, 1, axis.output, axis.kernel, 0, 1, -axis.padding, axis.stride, axis.dilation}};
    }
    std::vector<Phase> phases;
    const std::int64_t common = std::gcd(axis.stride, axis.dilation);
    for (std::int64_t first = 0; first < axis.stride && first < axis.output; ++first) {
        Phase phase{first, axis.stride, (axis.output - first + axis.stride - 1) / axis.stride, 0, 0, 0, 0, 1, 1};
        // Taps of this phase are stride / common apart; the last one takes the lowest input.
        for (std::int64_t k = 0; k < axis.kernel; ++k) {
            if ((first + axis.padding - k * axis.dilation) % axis.stride != 0) continue;
            ++phase.taps;
            phase.first_tap = k;
            phase.first_input = (first + axis.padding - k * axis.dilation) / axis.stride;
        }
        phase.tap_step = -(axis.stride / common);
        phase.input_tap_step = axis.dilation / common;
        phases.push_back(phase);
    }
    return phases;
}

}  // namespace mednext_ops::cpu::depthwise_conv3d
