// Tensors in the words of csrc/cpu, and results to write into.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../cpu/common/volume.h"
#include "arguments.h"
#include "cpu_scalar_type.h"
#include "pooled_tensor.h"
#include "volume.h"

namespace mednext_ops::bindings {

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

// An uninitialised [N, C, D, H, W] of the type of `like`.
inline DenseVolume new_volume(const Tensor& like, std::int64_t batch, std::int64_t channels, const std::int64_t* extent,
                              bool channels_last) {
    const Tensor tensor = new_pooled_tensor(like, {batch, channels, extent[0], extent[1], extent[2]}, channels_last);
    return {tensor,
            {tensor.mutable_data_ptr(), cpu_scalar_type(tensor), channels_last, channels,
             extent[0] * extent[1] * extent[2]}};
}

inline DenseVolume new_volume_like(const Tensor& like, bool channels_last) {
    const std::int64_t extent[] = {like.size(2), like.size(3), like.size(4)};
    return new_volume(like, like.size(0), like.size(1), extent, channels_last);
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

// A second volume that a kernel reads or adds beside `other`.
inline void require_same(const char* op, const char* name, const Tensor& tensor, const char* other_name,
                         const Tensor& other) {
    require(tensor.dim() == 5 && shape_of(tensor) == shape_of(other), op, ": ", name, " must have the shape of ",
            other_name, ", ", shape_of(other), ", got ", shape_of(tensor));
    require(tensor.scalar_type() == other.scalar_type(), op, ": ", name, " must have the type of ", other_name, ", ",
            torch::headeronly::toString(other.scalar_type()), ", got ",
            torch::headeronly::toString(tensor.scalar_type()));
}

inline void require_per_channel(const char* op, const char* name, const Tensor& tensor, const Tensor& volume) {
    require_floating_type(op, name, tensor);
    require(tensor.dim() == 2 && tensor.size(0) == volume.size(0) && tensor.size(1) == volume.size(1), op, ": ", name,
            " must be [N, C] = [", volume.size(0), ", ", volume.size(1), "], got ", shape_of(tensor));
}

}  // namespace mednext_ops::bindings
