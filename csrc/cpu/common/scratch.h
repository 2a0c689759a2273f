// Memory that a thread keeps from one call to the next, so that a kernel neither allocates nor touches fresh pages.
#pragma once

#include <cstdint>

namespace mednext_ops::cpu {

// At least `floats` floats of unspecified content, aligned to 64 bytes; valid until this thread asks again.
float* scratch(std::int64_t floats);

}  // namespace mednext_ops::cpu
