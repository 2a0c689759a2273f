// Asynchronous copies from global to shared memory (cp.async), for which each thread waits itself.
//
//     copy_async<16>(shared, global, valid_bytes);   // both at multiples of 16 bytes; what is not valid becomes zero
//     copy_async_commit();                           // all since the last commit: one group
//     copy_async_wait<1>();                          // all groups but the newest one have landed
//     __syncthreads();                               // ... and those of the other threads
//
// sm_80 and newer; before that the same calls copy at once.
#pragma once

#include <cstring>

namespace mednext_ops::cuda {

template <int Bytes>
constexpr bool kCopyable = Bytes == 4 || Bytes == 8 || Bytes == 16;

#ifndef MEDNEXT_OPS_EMULATED

// Copies `valid` of `Bytes` bytes and fills the others with zero; nothing is read where `valid` is 0.
template <int Bytes>
__device__ inline void copy_async(void* shared, const void* global, int valid = Bytes) {
    static_assert(kCopyable<Bytes>, "cp.async copies 4, 8 or 16 bytes");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const auto from = __cvta_generic_to_global(global);
    if constexpr (Bytes == 16) {  // past the first-level cache: what is staged in shared memory is read once
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(Bytes), "r"(valid)
                     : "memory");
    }
#else
    union {
        unsigned words[Bytes / 4];
        unsigned char bytes[Bytes];
    } staged;
#pragma unroll
    for (int i = 0; i < Bytes / 4; ++i) staged.words[i] = 0;
    if (valid == Bytes) {
#pragma unroll
        for (int i = 0; i < Bytes / 4; ++i) staged.words[i] = static_cast<const unsigned*>(global)[i];
    } else {
#pragma unroll
        for (int i = 0; i < Bytes; ++i) {
            if (i < valid) staged.bytes[i] = static_cast<const unsigned char*>(global)[i];
        }
    }
#pragma unroll
    for (int i = 0; i < Bytes / 4; ++i) static_cast<unsigned*>(shared)[i] = staged.words[i];
#endif
}

// The same, all of it or, where `wanted` is false, nothing: no branch.
template <int Bytes>
__device__ inline void copy_async_if(bool wanted, void* shared, const void* global) {
    static_assert(Bytes == 8, "of 8 bytes");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile(
        "{\n"
        ".reg .pred wanted;\n"
        "setp.ne.b32 wanted, %3, 0;\n"
        "@wanted cp.async.ca.shared.global [%0], [%1], %2;\n"
        "}" ::"r"(to),
        "l"(__cvta_generic_to_global(global)), "n"(Bytes), "r"(static_cast<int>(wanted))
        : "memory");
#else
    if (wanted) copy_async<Bytes>(shared, global);
#endif
}

__device__ inline void copy_async_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int Newest>
__device__ inline void copy_async_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(Newest) : "memory");
#endif
}

#else

template <int Bytes>
void copy_async(void* shared, const void* global, int valid = Bytes,
                emulation::CallSite where = emulation::CallSite::current()) {
    static_assert(kCopyable<Bytes>, "cp.async copies 4, 8 or 16 bytes");
    emulation::Block& block = emulation::Block::current();
    if (valid < 0 || valid > Bytes) {
        block.fail("copy_async: " + std::to_string(valid) + " of " + std::to_string(Bytes) + " bytes", where);
    }
    block.require_shared("copy_async", shared, Bytes, Bytes, where);
    block.require_aligned("copy_async", global, Bytes, where);
    // Read here as well, so that a sanitizer's report of a bad address shows who asked.
    unsigned char looked_at[Bytes];
    if (valid > 0) std::memcpy(looked_at, global, static_cast<std::size_t>(valid));
    asm volatile("" ::"r"(looked_at) : "memory");  // or the compiler would drop it
    block.thread().copies.issue(shared, global, Bytes, static_cast<std::size_t>(valid));
}

template <int Bytes>
void copy_async_if(bool wanted, void* shared, const void* global,
                   emulation::CallSite where = emulation::CallSite::current()) {
    if (wanted) copy_async<Bytes>(shared, global, Bytes, where);
}

inline void copy_async_commit() {
    emulation::Block::current().thread().copies.commit();
}

template <int Newest>
void copy_async_wait() {
    static_assert(Newest >= 0, "how many groups may still be on their way");
    emulation::Block::current().thread().copies.wait(Newest);
}

#endif

}  // namespace mednext_ops::cuda
