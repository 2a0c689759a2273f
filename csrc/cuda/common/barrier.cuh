// Barriers of a part of a block: bar.sync and bar.arrive on the barriers 1 to 15 (0 is __syncthreads).
//
// `threads` is a multiple of 32 and counts those that wait and those that only arrive: a producer warp arrives where
// consumers wait, and goes on.
#pragma once

namespace mednext_ops::cuda {

#ifndef MEDNEXT_OPS_EMULATED

__device__ inline void named_barrier_wait(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ inline void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#else

inline void named_barrier_wait(int id, int threads, emulation::CallSite where = emulation::CallSite::current()) {
    emulation::Block::current().barrier("named_barrier_wait", static_cast<unsigned>(id), static_cast<unsigned>(threads),
                                        true, where);
}

inline void named_barrier_arrive(int id, int threads, emulation::CallSite where = emulation::CallSite::current()) {
    emulation::Block::current().barrier("named_barrier_arrive", static_cast<unsigned>(id),
                                        static_cast<unsigned>(threads), false, where);
}

#endif

}  // namespace mednext_ops::cuda
