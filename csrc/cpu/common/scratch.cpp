#include "scratch.h"

#include <memory>
#include <new>

namespace mednext_ops::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Release {
    void operator()(float* memory) const { ::operator delete[](memory, kAlignment); }
};

}  // namespace

float* scratch(std::int64_t floats) {
    thread_local std::unique_ptr<float[], Release> memory;
    thread_local std::int64_t size = 0;
    if (floats > size) {
        size = 0;
        memory.reset();
        memory.reset(
            static_cast<float*>(::operator new[](static_cast<std::size_t>(floats) * sizeof(float), kAlignment)));
        size = floats;
    }
    return memory.get();
}

}  // namespace mednext_ops::cpu
