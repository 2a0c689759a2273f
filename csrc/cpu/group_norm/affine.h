// GroupNorm's affine map with an optional GELU, and the gradient of what comes before it, on the CPU.
//
// A task is kVoxelsPerTask voxels of a block of channels, a channel a lane; the cut depends on the shape and the
// vector's width alone.
#pragma once

#include <cstdint>

#include "../common/volume.h"

namespace mednext_ops::cpu::group_norm {

constexpr std::int64_t kVoxelsPerTask = 2048;

struct AffineProblem {
    Volume input;
    std::int64_t batch;
    const float* mean;    // [N, C]
    const float* rstd;    // [N, C]
    const float* weight;  // [C]
    const float* bias;    // [C]
    bool gelu;
    Volume output;  // activation(weight * (input - mean) * rstd + bias)
};

struct AffineGradientProblem {
    AffineProblem forward;  // its output is not looked at
    Volume grad_output;
    Volume grad;   // of the normalised tensor before the activation; data is null if it is grad_output itself
    double* sums;  // [N, C, parts, 2]: of that gradient, and of it times (input - mean) * rstd
};

static inline std::int64_t parts_of(const AffineProblem& p) {
    return (p.input.voxels + kVoxelsPerTask - 1) / kVoxelsPerTask;
}

static inline std::int64_t tasks_of(const AffineProblem& p, int lanes) {
    return p.batch * ((p.input.channels + lanes - 1) / lanes) * parts_of(p);
}

// The parts of each channel added up, in order: two [N, C].
void add_parts(const AffineGradientProblem& problem, float* grad_sum, float* grad_dot_normalized);

}  // namespace mednext_ops::cpu::group_norm
