// What every binding asks of its arguments, and says when it does not get it.
//
// A check that fails throws std::runtime_error (a RuntimeError in Python) whose text is a sentence to the caller:
// which argument, what it was, what was expected. Checks come before any allocation and any launch.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

namespace mednext_ops::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
void require(bool condition, const Parts&... sentence) {
    if (condition) return;
    std::ostringstream text;
    (text << ... << sentence);
    throw std::runtime_error(text.str());
}

inline std::string shape_of(const Tensor& tensor) {
    std::ostringstream text;
    text << '[';
    for (std::int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
    text << ']';
    return text.str();
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
