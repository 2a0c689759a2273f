// AddressSanitizer's interface; nothing where the build has none.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define MEDNEXT_OPS_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MEDNEXT_OPS_ADDRESS_SANITIZER
#endif
#endif

#ifdef MEDNEXT_OPS_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace mednext_ops::emulation {

#ifdef MEDNEXT_OPS_ADDRESS_SANITIZER
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif

// From here on, touching these bytes is reported.
inline void forbid([[maybe_unused]] const void* begin, [[maybe_unused]] std::size_t bytes) {
#ifdef MEDNEXT_OPS_ADDRESS_SANITIZER
    __asan_poison_memory_region(begin, bytes);
#endif
}

inline void allow([[maybe_unused]] const void* begin, [[maybe_unused]] std::size_t bytes) {
#ifdef MEDNEXT_OPS_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(begin, bytes);
#endif
}

inline void before_switch([[maybe_unused]] void** state, [[maybe_unused]] const void* stack,
                          [[maybe_unused]] std::size_t bytes) {
#ifdef MEDNEXT_OPS_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(state, stack, bytes);
#endif
}

inline void after_switch([[maybe_unused]] void* state, [[maybe_unused]] const void** stack,
                         [[maybe_unused]] std::size_t* bytes) {
#ifdef MEDNEXT_OPS_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(state, stack, bytes);
#endif
}

}  // namespace mednext_ops::emulation
