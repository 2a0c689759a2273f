// What nvcc gives every kernel without an include: put before each source of csrc/cuda by the compiler's command line.
//
// Left out on purpose: atomics (the library has none) and what depends on how lanes happen to be scheduled
// (__activemask, clock64).
#pragma once

#ifndef MEDNEXT_OPS_EMULATED
#error "compile with -DMEDNEXT_OPS_EMULATED: the kernels choose their emulated bodies by it"
#endif

#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cmath>

// To a host compiler these would be variables and attributes of its own.
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline
#undef __shared__
#define __shared__ static_assert(false, "declare shared memory by MEDNEXT_OPS_SHARED or SharedLayout");

#include "block.h"
#include "builtins.h"
#include "math_functions.h"
#include "warp_functions.h"

inline void __syncthreads(MednextOpsCallSite where = MednextOpsCallSite::current()) {
    mednext_ops::emulation::Block& block = mednext_ops::emulation::Block::current();
    block.barrier("__syncthreads", 0, block.thread_count(), true, where);
}

// Threads run one at a time: every write is seen by the next thread that runs.
inline void __threadfence_block() {}
inline void __threadfence() {}

[[noreturn]] inline void __trap(MednextOpsCallSite where = MednextOpsCallSite::current()) {
    mednext_ops::emulation::Block::current().fail("__trap", where);
}
