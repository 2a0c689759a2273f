// Shared memory, declared in a way that both a GPU and the emulation understand.
//
// Static: a variable of one block, uninitialised.
//
//     MEDNEXT_OPS_SHARED(of_warp, Moments<float>[kWarps]);
//
// Dynamic: a layout that host and kernel compute alike; the host launches with layout.bytes(), the kernel takes its
// pieces.
//
//     struct Tile {
//         SharedLayout layout;
//         SharedArray<__half> planes = layout.array<__half>(kStages * kPlane);
//         SharedArray<std::uint64_t> arrived = layout.array<std::uint64_t>(kStages);
//     };
//     constexpr Tile tile;
//     __half* planes = shared_array(tile.planes);
#pragma once

#include <cstddef>
#include <type_traits>

namespace mednext_ops::cuda {

// `count` elements, `offset` bytes into the dynamic shared memory.
template <typename T>
struct SharedArray {
    std::size_t offset;
    std::size_t count;
};

#ifdef MEDNEXT_OPS_EMULATED
// The emulation leaves room between arrays, of which a device knows nothing.
struct SharedBytes {
    std::size_t with_gaps, on_device;
    constexpr SharedBytes(std::size_t bytes) : with_gaps(bytes), on_device(bytes) {}
    constexpr SharedBytes(std::size_t with_gaps, std::size_t on_device) : with_gaps(with_gaps), on_device(on_device) {}
};
#else
using SharedBytes = std::size_t;
#endif

class SharedLayout {
  public:
    // Places an array behind those before it. ldmatrix and cp.async want rows at multiples of 16 bytes, TMA boxes at
    // multiples of 128.
    template <typename T>
    constexpr SharedArray<T> array(std::size_t count, std::size_t alignment = alignof(T) > 16 ? alignof(T) : 16) {
        const std::size_t begin = (bytes_ + kGap + alignment - 1) / alignment * alignment;
        bytes_ = begin + count * sizeof(T);
#ifdef MEDNEXT_OPS_EMULATED
        on_device_ = (on_device_ + alignment - 1) / alignment * alignment + count * sizeof(T);
#endif
        return {begin, count};
    }

#ifdef MEDNEXT_OPS_EMULATED
    constexpr SharedBytes bytes() const { return {bytes_, on_device_}; }

  private:
    static constexpr std::size_t kGap = 64;  // belongs to nobody: AddressSanitizer reports who touches it
    std::size_t on_device_ = 0;
#else
    constexpr SharedBytes bytes() const { return bytes_; }

  private:
    static constexpr std::size_t kGap = 0;
#endif
    std::size_t bytes_ = 0;
};

#ifndef MEDNEXT_OPS_EMULATED

#define MEDNEXT_OPS_SHARED(name, ...) __shared__::std::type_identity_t<__VA_ARGS__> name

template <typename T>
__device__ inline T* shared_array(const SharedArray<T>& piece) {
    extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
    return reinterpret_cast<T*>(dynamic_shared_memory + piece.offset);
}

#else

#define MEDNEXT_OPS_SHARED(name, ...)                                              \
    static constexpr char tag_of_##name = 0;                                       \
    auto& name = ::mednext_ops::cuda::shared_variable<__VA_ARGS__>(&tag_of_##name, \
                                                                   ::mednext_ops::emulation::CallSite::current())

template <typename T>
T& shared_variable(const void* tag, const emulation::CallSite& where) {
    emulation::Block& block = emulation::Block::current();
    void* address = block.shared().variable(tag, sizeof(T), alignof(T));
    if (address == nullptr) block.fail("more than 48 KiB of static shared memory", where);
    return *static_cast<T*>(address);
}

template <typename T>
T* shared_array(const SharedArray<T>& piece, emulation::CallSite where = emulation::CallSite::current()) {
    emulation::Block& block = emulation::Block::current();
    void* address = block.shared().piece(piece.offset, piece.count * sizeof(T));
    if (address == nullptr) block.fail("an array lies outside of the shared memory that the launch asked for", where);
    return static_cast<T*>(address);
}

#endif

}  // namespace mednext_ops::cuda
