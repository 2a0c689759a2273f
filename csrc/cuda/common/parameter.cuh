// Reads an element of a weight or a bias, which may be wider than the tensor that it belongs to.
#pragma once

#include <cstdint>

#include "parameter.h"
#include "scalar_types.cuh"

namespace mednext_ops::cuda {

__device__ inline float load_parameter(const Parameter& parameter, std::int64_t index) {
    switch (parameter.type) {
        case ScalarType::float16:
            return to_float(static_cast<const __half*>(parameter.data)[index]);
        case ScalarType::bfloat16:
            return to_float(static_cast<const __nv_bfloat16*>(parameter.data)[index]);
        default:
            return static_cast<const float*>(parameter.data)[index];
    }
}

// Calls function(pointer to the elements, of their type): where many are read, and the loads should not wait for each
// other's type.
template <typename Function>
__device__ inline void with_elements(const Parameter& parameter, Function&& function) {
    switch (parameter.type) {
        case ScalarType::float16:
            return function(static_cast<const __half*>(parameter.data));
        case ScalarType::bfloat16:
            return function(static_cast<const __nv_bfloat16*>(parameter.data));
        default:
            return function(static_cast<const float*>(parameter.data));
    }
}

}  // namespace mednext_ops::cuda
