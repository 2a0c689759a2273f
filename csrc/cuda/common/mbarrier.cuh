// Barriers in shared memory that count arriving threads and arriving bytes: what bulk copies complete on, for which it
// takes sm_90. Threads, and their own copies (cp.async), from sm_80 on.
//
//     if (threadIdx.x == 0) mbarrier_initialise(&full[stage], 1);        // one arrival a phase
//     mbarrier_initialised();  __syncthreads();                          // before anybody uses them
//     ...
//     if (threadIdx.x == 0) {
//         mbarrier_arrive_and_expect(&full[stage], bytes);               // the arrival, and what is to come
//         load_box(...);
//     }
//     mbarrier_wait(&full[stage], phase);                                // phase: 0, 1, 0, ... for the same barrier
//
// Initialised for all threads of a block, each of which copies its share:
//
//     copy_async<16>(...);
//     mbarrier_arrive_when_copied(&full[stage]);                         // once what this thread asked for has landed
#pragma once

#include <cstdint>

namespace mednext_ops::cuda {

#ifndef MEDNEXT_OPS_EMULATED

// One thread initialises; `arrivals` threads end a phase.
__device__ inline void mbarrier_initialise(std::uint64_t* barrier, unsigned arrivals) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
#else
    __trap();
#endif
}

// Makes the initialised barriers known to the copy engine; by the thread that initialised them.
__device__ inline void mbarrier_initialised() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    __trap();
#endif
}

__device__ inline void mbarrier_arrive(std::uint64_t* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(address) : "memory");
#else
    __trap();
#endif
}

// Arrives as soon as all copies (cp.async) that the thread has asked for have landed; at once where there are none.
__device__ inline void mbarrier_arrive_when_copied(std::uint64_t* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(address) : "memory");
#else
    __trap();
#endif
}

// Arrives, and makes the phase wait for `bytes` of bulk copies as well.
__device__ inline void mbarrier_arrive_and_expect(std::uint64_t* barrier, unsigned bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
#else
    __trap();
#endif
}

// Waits until the phase of this parity has ended; the first phase has parity 0.
__device__ inline void mbarrier_wait(std::uint64_t* barrier, unsigned parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define MEDNEXT_OPS_MBARRIER_WAIT "mbarrier.try_wait"  // suspends the thread for a while
#else
#define MEDNEXT_OPS_MBARRIER_WAIT "mbarrier.test_wait"
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
    unsigned ended = 0;
    while (ended == 0) {
        asm volatile(
            "{\n"
            ".reg .pred ended;\n" MEDNEXT_OPS_MBARRIER_WAIT
            ".parity.shared.b64 ended, [%1], %2;\n"
            "selp.u32 %0, 1, 0, ended;\n"
            "}"
            : "=r"(ended)
            : "r"(address), "r"(parity)
            : "memory");
    }
#else
    __trap();
#endif
#undef MEDNEXT_OPS_MBARRIER_WAIT
}

#else

inline emulation::Mbarrier& initialised_mbarrier(const char* name, const void* barrier,
                                                 const emulation::CallSite& where) {
    emulation::Block& block = emulation::Block::current();
    emulation::Mbarrier* found = block.mbarriers().find(barrier);
    if (found == nullptr) block.fail(std::string(name) + " on an mbarrier that nobody initialised", where);
    return *found;
}

inline void mbarrier_initialise(std::uint64_t* barrier, unsigned arrivals,
                                emulation::CallSite where = emulation::CallSite::current()) {
    emulation::Block& block = emulation::Block::current();
    block.require_shared("mbarrier_initialise", barrier, sizeof *barrier, sizeof *barrier, where);
    if (arrivals == 0) block.fail("mbarrier_initialise for no arrivals", where);
    block.mbarriers().initialise(barrier, arrivals);
}

inline void mbarrier_initialised() {}

inline void mbarrier_arrive_and_expect(std::uint64_t* barrier, unsigned bytes,
                                       emulation::CallSite where = emulation::CallSite::current()) {
    emulation::Mbarrier& found = initialised_mbarrier("mbarrier_arrive_and_expect", barrier, where);
    if (found.missing_arrivals == 0) {
        emulation::Block::current().fail("more threads arrive in a phase of an mbarrier than it was initialised for",
                                         where);
    }
    found.missing_bytes += bytes;
    --found.missing_arrivals;
    found.advance();
}

inline void mbarrier_arrive(std::uint64_t* barrier, emulation::CallSite where = emulation::CallSite::current()) {
    mbarrier_arrive_and_expect(barrier, 0, where);
}

inline void mbarrier_arrive_when_copied(std::uint64_t* barrier,
                                        emulation::CallSite where = emulation::CallSite::current()) {
    initialised_mbarrier("mbarrier_arrive_when_copied", barrier, where);
    emulation::Block& block = emulation::Block::current();
    block.mbarriers().issue_arrival(barrier, block.thread().copies.take());
}

inline void mbarrier_wait(std::uint64_t* barrier, unsigned parity,
                          emulation::CallSite where = emulation::CallSite::current()) {
    initialised_mbarrier("mbarrier_wait", barrier, where);
    struct Phase {
        const void* barrier;
        unsigned parity;
    };
    Phase phase{barrier, parity & 1};
    emulation::Block::current().wait_until(
        "mbarrier_wait",
        [](void* argument) {
            const auto* asked = static_cast<const Phase*>(argument);
            emulation::Mbarriers& all = emulation::Block::current().mbarriers();
            emulation::Mbarrier& found = *all.find(asked->barrier);
            all.land(found);
            return found.phase != asked->parity;
        },
        &phase, where);
}

#endif

}  // namespace mednext_ops::cuda
