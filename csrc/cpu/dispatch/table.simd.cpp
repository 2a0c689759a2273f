#include "../simd/vector.h"
#include "kernels.h"

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {

#define MEDNEXT_OPS_NAME_OF(name) #name
#define MEDNEXT_OPS_NAME(name) MEDNEXT_OPS_NAME_OF(name)

extern const Kernels table;
const Kernels table{MEDNEXT_OPS_NAME(MEDNEXT_OPS_CAPABILITY), kLanes, convolve, weight_gradient};

}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
