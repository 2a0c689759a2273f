// Tensors as kernels see them: dense, contiguous or channels-last, and a gradient that is computed while it is read.
#pragma once

#include <cstdint>

#include "scalar_types.h"

namespace mednext_ops::cpu {

// [N, C, V], or [N, V, C] where channels_last; V = D * H * W.
struct Volume {
    void* data = nullptr;  // null: there is none
    ScalarType type = ScalarType::float32;
    bool channels_last = false;
    std::int64_t channels = 0;
    std::int64_t voxels = 0;
};

// `values`, or scale * values + slope * output + offset where `scale` is given: the gradient of a normalised tensor's
// input. The three are [N, C]; `output` has the type of `values`.
struct Source {
    Volume values;
    Volume output = {};
    const float* scale = nullptr;
    const float* slope = nullptr;
    const float* offset = nullptr;
};

}  // namespace mednext_ops::cpu
