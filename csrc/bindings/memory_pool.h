// Memory of results that were freed, kept for the next ones: fresh memory is zeroed by the system, page by page, at
// first touch, which takes about as long as a small kernel's arithmetic.
#pragma once

#include <cstdint>

namespace mednext_ops::bindings {

// Large pages of the common machines.
inline constexpr std::int64_t kLargePage = 2 << 20;

struct PooledBlock {
    void* memory = nullptr;  // at a multiple of kLargePage; null: none was to be had
    std::int64_t bytes = 0;  // a multiple of kLargePage, at least what was asked for
    bool fresh = true;       // never written: its pages are still to be made
};

// A block from the pool or from the system. Null where the pool is off (MEDNEXT_OPS_CPU_POOL=0), where the system gives
// no memory or is no Linux, and for less than a large page.
// Throws std::runtime_error if MEDNEXT_OPS_CPU_POOL is not a whole number of MiB.
PooledBlock take_block(std::int64_t bytes);

// Gives a block back, from any thread. What is kept beyond MEDNEXT_OPS_CPU_POOL (in MiB, 1024 by default) goes back to
// the system, the oldest first; of what is kept the system may take the pages when it runs short.
void give_back_block(const PooledBlock& block);

}  // namespace mednext_ops::bindings
