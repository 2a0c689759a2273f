// Loads from shared memory that stay where they are written.
//
// A compiler takes loads of constants out of loops and keeps what it has loaded once; where hundreds of values are read
// again and again, that costs more registers than there are.
#pragma once

namespace mednext_ops::cuda {

// Four at a multiple of 16 bytes.
__device__ inline void load_shared_again(float (&values)[4], const float* shared) {
#ifndef MEDNEXT_OPS_EMULATED
    const auto from = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(values[0]), "=f"(values[1]), "=f"(values[2]), "=f"(values[3])
                 : "r"(from));
#else
    for (int i = 0; i < 4; ++i) values[i] = shared[i];
#endif
}

__device__ inline void load_shared_again(int (&values)[4], const int* shared) {
#ifndef MEDNEXT_OPS_EMULATED
    const auto from = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("ld.shared.v4.s32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
                 : "r"(from));
#else
    for (int i = 0; i < 4; ++i) values[i] = shared[i];
#endif
}

}  // namespace mednext_ops::cuda
