// torch's name of an element type in the words of csrc/cpu.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "../cpu/common/scalar_types.h"

namespace mednext_ops::bindings {

// `tensor` has passed require_floating_type.
inline cpu::ScalarType cpu_scalar_type(const torch::stable::Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case torch::headeronly::ScalarType::Half:
            return cpu::ScalarType::float16;
        case torch::headeronly::ScalarType::BFloat16:
            return cpu::ScalarType::bfloat16;
        default:
            return cpu::ScalarType::float32;
    }
}

}  // namespace mednext_ops::bindings
