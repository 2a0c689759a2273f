// Hides from the compiler that a value does not change, where knowing it makes it worse.
#pragma once

#include <cstdint>

namespace mednext_ops::cuda {

// Inside a loop: what is computed from `value` is computed again each time, not kept in registers from outside.
__device__ inline void make_opaque(unsigned& value) {
    asm volatile("" : "+r"(value));
}

__device__ inline void make_opaque(int& value) {
    asm volatile("" : "+r"(value));
}

__device__ inline void make_opaque(float& value) {
#ifndef MEDNEXT_OPS_EMULATED
    asm volatile("" : "+f"(value));
#else
    asm volatile("" : "+m"(value));
#endif
}

__device__ inline void make_opaque(std::int64_t& value) {
#ifndef MEDNEXT_OPS_EMULATED
    asm volatile("" : "+l"(value));
#else
    asm volatile("" : "+r"(value));
#endif
}

}  // namespace mednext_ops::cuda
