// What every binding asks of its arguments, and says when it does not get it.
//
// A check that fails throws std::runtime_error (a RuntimeError in Python) whose text is a sentence to the caller:
// which argument, what it was, what was expected. Checks come before any allocation and any launch.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>

#include "text.h"

namespace mednext_ops::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
void require(bool condition, const Parts&... sentence) {
    if (!condition) throw std::runtime_error(text_of(sentence...));
}

inline std::string shape_of(const Tensor& tensor) {
    std::string text = "[";
    for (std::int64_t i = 0; i < tensor.dim(); ++i) text += text_of(i > 0 ? ", " : "", tensor.size(i));
    return text + "]";
}

inline void require_volume(const char* op, const char* name, const Tensor& tensor) {
    require(tensor.dim() == 5, op, ": ", name, " must be [N, C, D, H, W], got ", tensor.dim(),
            " dimensions: ", shape_of(tensor));
}

inline void require_floating_type(const char* op, const char* name, const Tensor& tensor) {
    const ScalarType type = tensor.scalar_type();
    require(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16, op, ": ", name,
            " must be float32, float16 or bfloat16, got ", torch::headeronly::toString(type));
}

inline void require_groups(const char* op, std::int64_t num_groups, std::int64_t channels) {
    require(num_groups > 0 && channels % num_groups == 0, op, ": num_groups must be a divisor of the ", channels,
            " channels, got ", num_groups);
}

}  // namespace mednext_ops::bindings
