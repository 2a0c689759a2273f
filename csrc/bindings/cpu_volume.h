// Tensors in the words of csrc/cpu, and results to write into.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../cpu/common/volume.h"
#include "arguments.h"
#include "cpu_scalar_type.h"
#include "huge_pages.h"
#include "volume.h"

namespace mednext_ops::bindings {

using torch::headeronly::MemoryFormat;

inline std::int64_t voxels_of(const Tensor& tensor) {
    return tensor.size(2) * tensor.size(3) * tensor.size(4);
}

// A tensor as a kernel reads it: `tensor` keeps the memory alive that `volume` points to.
struct DenseVolume {
    Tensor tensor;
    cpu::Volume volume;
};

inline DenseVolume dense(const Tensor& tensor) {
    const Volume found = dense_volume(tensor);
    return {found.tensor,
            {const_cast<void*>(found.tensor.const_data_ptr()), cpu_scalar_type(found.tensor), found.channels_last,
             found.channels, found.voxels}};
}

// The same in the layout that is asked for: a second operand of a kernel that reads both alike.
inline DenseVolume dense_in(const Tensor& tensor, bool channels_last) {
    const DenseVolume found = dense(tensor);
    if (found.volume.channels_last == channels_last) return found;
    const MemoryFormat format = channels_last ? MemoryFormat::ChannelsLast3d : MemoryFormat::Contiguous;
    const Tensor copy = torch::stable::contiguous(tensor, format);
    return {copy,
            {const_cast<void*>(copy.const_data_ptr()), cpu_scalar_type(copy), channels_last, found.volume.channels,
             found.volume.voxels}};
}

// An uninitialised [N, C, D, H, W] of the type of `like`.
inline DenseVolume new_volume(const Tensor& like, std::int64_t batch, std::int64_t channels, const std::int64_t* extent,
                              bool channels_last) {
    const Tensor tensor = torch::stable::empty({batch, channels, extent[0], extent[1], extent[2]}, like.scalar_type(),
                                               std::nullopt, like.device(), std::nullopt,
                                               channels_last ? MemoryFormat::ChannelsLast3d : MemoryFormat::Contiguous);
    advise_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
    return {tensor,
            {tensor.mutable_data_ptr(), cpu_scalar_type(tensor), channels_last, channels,
             extent[0] * extent[1] * extent[2]}};
}

// A parameter as contiguous floats; `tensor` keeps the memory alive.
struct Floats {
    Tensor tensor;
    const float* data() const { return static_cast<const float*>(tensor.const_data_ptr()); }
};

inline Floats floats(const Tensor& tensor) {
    return {torch::stable::contiguous(
        tensor.scalar_type() == ScalarType::Float ? tensor : torch::stable::to(tensor, ScalarType::Float))};
}

inline std::optional<Floats> floats(const std::optional<Tensor>& tensor) {
    return tensor.has_value() ? std::optional<Floats>(floats(*tensor)) : std::nullopt;
}

inline const float* data_of(const std::optional<Floats>& floats) {
    return floats.has_value() ? floats->data() : nullptr;
}

}  // namespace mednext_ops::bindings
