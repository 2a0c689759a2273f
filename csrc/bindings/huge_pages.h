// Fresh memory in large pages: a result of 32 MiB costs 8192 page faults otherwise, more time than its arithmetic.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mednext_ops::bindings {

// Asks for large pages within [memory, memory + bytes), before it is first written. Advice: nothing depends on it.
inline void advise_huge_pages(void* memory, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t kPage = 2 << 20;
    const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(memory) + kPage - 1) / kPage * kPage;
    const std::uintptr_t last =
        (reinterpret_cast<std::uintptr_t>(memory) + static_cast<std::uintptr_t>(bytes)) / kPage * kPage;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)bytes;
#endif
}

}  // namespace mednext_ops::bindings
