#include "scratch.h"

#include <new>

namespace mednext_ops::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

}  // namespace

void ReleaseFloats::operator()(float* memory) const {
    ::operator delete[](memory, kAlignment);
}

AlignedFloats aligned_floats(std::int64_t floats) {
    const std::size_t bytes = static_cast<std::size_t>(floats) * sizeof(float);
    return AlignedFloats(static_cast<float*>(::operator new[](bytes, kAlignment)));
}

float* scratch(std::int64_t floats) {
    thread_local AlignedFloats memory;
    thread_local std::int64_t size = 0;
    if (floats > size) {
        size = 0;
        memory.reset();
        memory = aligned_floats(floats);
        size = floats;
    }
    return memory.get();
}

}  // namespace mednext_ops::cpu
