// Fresh memory in large pages: a result of 32 MiB costs 8192 page faults otherwise, more time than its arithmetic.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "memory_pool.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mednext_ops::bindings {

// Asks for large pages within [memory, memory + bytes), before it is first written, and for all of them at once:
// threads that write to the channels of a contiguous volume would meet in the same pages. Advice: nothing depends on
// it.
inline void advise_huge_pages(void* memory, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t kPage = kLargePage;
    const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(memory) + kPage - 1) / kPage * kPage;
    const std::uintptr_t last =
        (reinterpret_cast<std::uintptr_t>(memory) + static_cast<std::uintptr_t>(bytes)) / kPage * kPage;
    if (last <= first) return;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#if defined(MADV_POPULATE_WRITE)
    const std::int64_t pages = static_cast<std::int64_t>((last - first) / kPage);
    torch::stable::parallel_for(0, pages, 2, [&](std::int64_t begin, std::int64_t end) {
        const std::uintptr_t from = first + static_cast<std::uintptr_t>(begin) * kPage;
        madvise(reinterpret_cast<void*>(from), static_cast<std::size_t>(end - begin) * kPage, MADV_POPULATE_WRITE);
    });
#endif
#else
    (void)memory;
    (void)bytes;
#endif
}

}  // namespace mednext_ops::bindings
