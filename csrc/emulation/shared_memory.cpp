#include "shared_memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "sanitizer.h"

namespace mednext_ops::emulation {
namespace {

constexpr std::size_t kAlignment = 1024;  // the most that any copy engine asks for

std::size_t round_up(std::size_t value, std::size_t to) {
    return (value + to - 1) / to * to;
}

}  // namespace

SharedMemory::SharedMemory() = default;

SharedMemory::~SharedMemory() {
    if (storage_ == nullptr) return;
    allow(storage_, kStaticSpan + capacity_);
    std::free(storage_);
}

void SharedMemory::begin_block(std::size_t dynamic_bytes) {
    const std::size_t wanted = round_up(dynamic_bytes + kGap, kAlignment);
    if (storage_ == nullptr || wanted > capacity_) {
        if (storage_ != nullptr) {
            allow(storage_, kStaticSpan + capacity_);
            std::free(storage_);
        }
        storage_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, kStaticSpan + wanted));
        if (storage_ == nullptr) throw std::bad_alloc();
        capacity_ = wanted;
    }
    dynamic_bytes_ = dynamic_bytes;
    allow(storage_, kStaticSpan + capacity_);
    std::memset(static_part(), kPoison, static_end_ > 0 ? static_end_ : kStaticSpan);
    std::memset(dynamic_part(), kPoison, dynamic_bytes_);
    forbid(storage_, kStaticSpan + capacity_);
    for (const Variable& variable : variables_) allow(static_part() + variable.offset, variable.bytes);
}

void* SharedMemory::variable(const void* tag, std::size_t bytes, std::size_t alignment) {
    for (const Variable& known : variables_) {
        if (known.tag == tag) return static_part() + known.offset;
    }
    if (static_bytes_ + bytes > kStaticBytes) return nullptr;
    const std::size_t offset = round_up(static_end_ + kGap, alignment > 16 ? alignment : 16);
    if (offset + bytes + kGap > kStaticSpan) return nullptr;
    allow(static_part() + offset, bytes);
    std::memset(static_part() + offset, kPoison, bytes);
    variables_.push_back({tag, offset, bytes});
    static_bytes_ += bytes;
    static_end_ = offset + bytes;
    return static_part() + offset;
}

void* SharedMemory::piece(std::size_t offset, std::size_t bytes) {
    if (offset > dynamic_bytes_ || bytes > dynamic_bytes_ - offset) return nullptr;
    allow(dynamic_part() + offset, bytes);
    return dynamic_part() + offset;
}

bool SharedMemory::contains(const void* begin, std::size_t bytes) const {
    const auto* first = static_cast<const std::byte*>(begin);
    const std::byte* last = first + bytes;
    return (first >= static_part() && last <= static_part() + static_end_) ||
           (first >= dynamic_part() && last <= dynamic_part() + dynamic_bytes_);
}

}  // namespace mednext_ops::emulation
