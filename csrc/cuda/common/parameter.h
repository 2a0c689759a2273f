// A weight or a bias, which may be wider than the tensor that it belongs to.
#pragma once

#include "scalar_type.h"

namespace mednext_ops::cuda {

// In the tensor's type, or float32. Null where there is none.
struct Parameter {
    const void* data;
    ScalarType type;
};

}  // namespace mednext_ops::cuda
