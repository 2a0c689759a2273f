// Takes bits of two registers by one instruction, where a compiler makes two of it.
#pragma once

namespace mednext_ops::cuda {

// The bits of `ones` where the mask is set, and those of `zeros` elsewhere.
__device__ inline unsigned select_bits(unsigned mask, unsigned ones, unsigned zeros) {
#ifndef MEDNEXT_OPS_EMULATED
    unsigned result;
    asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(result) : "r"(mask), "r"(ones), "r"(zeros));
    return result;
#else
    return (ones & mask) | (zeros & ~mask);
#endif
}

}  // namespace mednext_ops::cuda
