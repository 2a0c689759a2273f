// A five-dimensional tensor as kernels want it: dense, its memory layout known.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "allocation.h"

namespace mednext_ops::bindings {

// Dense with channels fastest, as torch.channels_last_3d. Strides of extents of one say nothing and are not looked at.
inline bool is_channels_last_3d(const torch::stable::Tensor& tensor) {
    std::int64_t expected = 1;
    for (const int dim : {1, 4, 3, 2, 0}) {
        if (tensor.size(dim) == 1) continue;
        if (tensor.stride(dim) != expected) return false;
        expected *= tensor.size(dim);
    }
    return true;
}

struct Volume {
    torch::stable::Tensor tensor;  // the caller's own, or a contiguous copy of it
    bool channels_last;
    std::int64_t batch, channels, voxels;
};

// Contiguous and channels_last_3d tensors are taken as they are; anything else (a slice, a permutation) is copied.
inline Volume dense_volume(const torch::stable::Tensor& input) {
    const std::int64_t batch = input.size(0);
    const std::int64_t channels = input.size(1);
    const std::int64_t voxels = input.size(2) * input.size(3) * input.size(4);
    if (input.is_contiguous()) return {input, false, batch, channels, voxels};
    if (is_channels_last_3d(input)) return {input, true, batch, channels, voxels};
    return {copied(input, torch::headeronly::MemoryFormat::Contiguous), false, batch, channels, voxels};
}

}  // namespace mednext_ops::bindings
