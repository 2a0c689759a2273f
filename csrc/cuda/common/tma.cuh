// Loads of boxes out of a tensor by the copy engine of sm_90 and newer (TMA), completing on an mbarrier.
//
// One thread issues a load for the whole block. The box lands densely, the fastest dimension first; what lies outside
// of the tensor (coordinates may be negative) is zero and counts as bytes like the rest.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "mbarrier.cuh"
#include "tensor_map.h"

namespace mednext_ops::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasCopyEngine = false;
#else
constexpr bool kHasCopyEngine = true;
#endif

#ifndef MEDNEXT_OPS_EMULATED

// `shared` at a multiple of 128 bytes; `map` a kernel parameter that is const __grid_constant__; `at`: where in the
// tensor the box begins, the fastest dimension first, which must be at a multiple of 16 bytes: an H200 answers
// anything else with "illegal instruction".
__device__ inline void load_box(void* shared, const CUtensorMap* map, const int (&at)[kTensorRank],
                                std::uint64_t* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const auto done = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
        "l"(map), "r"(done), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
        : "memory");
#else
    __trap();
#endif
}

// Fetches the map itself ahead of the first load.
__device__ inline void prefetch_tensor_map(const CUtensorMap* map) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#else
    __trap();
#endif
}

// Between the block's own last access of a piece of shared memory and a box that overwrites it: after the barrier that
// the block meets at, by the thread that issues the load.
__device__ inline void shared_memory_to_copy_engine() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    __trap();
#endif
}

#else

// Copies one box, row by row: a row of the fastest dimension is one run of bytes.
inline void copy_box(void* shared, const BoxedTensor& tensor, const std::array<std::int64_t, kTensorRank>& at) {
    const std::uint64_t element = bytes_of(tensor.type);
    const auto extent = [&](int i) { return static_cast<std::int64_t>(tensor.extent[i]); };
    const std::int64_t width = tensor.box[0];
    auto* row = static_cast<std::byte*>(shared);
    std::uint64_t rows = 1;
    for (int i = 1; i < kTensorRank; ++i) rows *= tensor.box[i];
    for (std::uint64_t number = 0; number < rows; ++number, row += width * element) {
        std::memset(row, 0, width * element);
        const auto* from = static_cast<const std::byte*>(tensor.data);
        bool inside = true;
        std::uint64_t rest = number;
        for (int i = 1; i < kTensorRank; ++i) {
            const std::int64_t position = at[i] + static_cast<std::int64_t>(rest % tensor.box[i]);
            rest /= tensor.box[i];
            inside = inside && position >= 0 && position < extent(i);
            if (inside) from += static_cast<std::uint64_t>(position) * tensor.stride_bytes[i - 1];
        }
        const std::int64_t first = at[0] < 0 ? 0 : at[0];
        const std::int64_t last = at[0] + width < extent(0) ? at[0] + width : extent(0);
        if (!inside || first >= last) continue;
        std::memcpy(row + (first - at[0]) * static_cast<std::int64_t>(element),
                    from + first * static_cast<std::int64_t>(element),
                    static_cast<std::size_t>(last - first) * element);
    }
}

inline void load_box(void* shared, const CUtensorMap* map, const int (&at)[kTensorRank], std::uint64_t* barrier,
                     emulation::CallSite where = emulation::CallSite::current()) {
    emulation::Block& block = emulation::Block::current();
    BoxedTensor tensor;
    std::memcpy(static_cast<void*>(&tensor), map, sizeof tensor);
    if (!tensor.loadable()) block.fail("load_box with a tensor map that was not encoded", where);
    if (at[0] * static_cast<std::int64_t>(bytes_of(tensor.type)) % 16 != 0) {
        block.fail("load_box of a box that begins at no multiple of 16 bytes", where);
    }
    const std::uint64_t bytes = tensor.box_bytes();
    block.require_shared("load_box", shared, bytes, 128, where);
    initialised_mbarrier("load_box", barrier, where);
    std::memset(shared, emulation::kPoison, bytes);
    const std::array<std::int64_t, kTensorRank> begin{at[0], at[1], at[2], at[3], at[4]};
    block.mbarriers().issue(barrier, static_cast<std::int64_t>(bytes),
                            [shared, tensor, begin] { copy_box(shared, tensor, begin); });
}

inline void prefetch_tensor_map(const CUtensorMap*) {}

inline void shared_memory_to_copy_engine() {}

#endif

}  // namespace mednext_ops::cuda
