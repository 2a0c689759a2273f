// The shared memory of one block at a time.
//
// At the start of a block every byte is 0xff: NaN in every floating-point type, -1 as an integer. Under
// AddressSanitizer only what the kernel has declared may be touched; between two declared pieces there is room that
// belongs to nobody.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace mednext_ops::emulation {

// Bytes of NaN in float, double, __half and __nv_bfloat16.
inline constexpr int kPoison = 0xff;

class SharedMemory {
  public:
    // Room between two static variables, and around the dynamic part.
    static constexpr std::size_t kGap = 128;
    static constexpr std::size_t kStaticBytes = 48 * 1024;

    SharedMemory();
    ~SharedMemory();

    // Poisons everything. `dynamic_bytes` is what the launch asked for.
    void begin_block(std::size_t dynamic_bytes);

    // The variable that `tag` stands for: the same one for each thread of a block. Null where the device has no room.
    void* variable(const void* tag, std::size_t bytes, std::size_t alignment);

    // A piece of the dynamic part that the kernel declares. Null if it is not inside what the launch asked for.
    void* piece(std::size_t offset, std::size_t bytes);

    // Whether these bytes lie in shared memory.
    bool contains(const void* begin, std::size_t bytes) const;

  private:
    struct Variable {
        const void* tag;
        std::size_t offset;
        std::size_t bytes;
    };

    std::byte* static_part() const { return storage_; }
    std::byte* dynamic_part() const { return storage_ + kStaticSpan; }

    static constexpr std::size_t kStaticSpan = 2 * kStaticBytes;

    std::byte* storage_ = nullptr;
    std::size_t capacity_ = 0;  // of the dynamic part, gaps included
    std::size_t dynamic_bytes_ = 0;
    std::size_t static_bytes_ = 0;  // without gaps: what the device would count
    std::size_t static_end_ = 0;
    std::vector<Variable> variables_;
};

}  // namespace mednext_ops::emulation
