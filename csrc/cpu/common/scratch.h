// Memory of the kernels: whole registers of floats, each in one line of the cache. A load that spans two is two.
#pragma once

#include <cstdint>
#include <memory>

namespace mednext_ops::cpu {

struct ReleaseFloats {
    void operator()(float* memory) const;
};

// Floats, aligned to 64 bytes.
using AlignedFloats = std::unique_ptr<float[], ReleaseFloats>;

// `floats` floats of unspecified content.
AlignedFloats aligned_floats(std::int64_t floats);

// At least `floats` floats of unspecified content, aligned to 64 bytes, which a thread keeps from one call to the next,
// so that a kernel neither allocates nor touches fresh pages; valid until this thread asks again.
float* scratch(std::int64_t floats);

}  // namespace mednext_ops::cpu
