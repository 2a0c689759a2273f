// Uninitialised tensors on the CPU whose memory comes from the pool.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>

#include "allocation.h"
#include "huge_pages.h"
#include "memory_pool.h"

#if defined(__linux__)
// In torch since 2.11. The package runs with 2.10 too, so the symbol may be missing: then it is null.
extern "C" __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, std::int64_t ndim, const std::int64_t* sizes, const std::int64_t* strides,
                std::int64_t storage_offset, std::int32_t dtype, std::int32_t device_type, std::int32_t device_index,
                AtenTensorHandle* result, std::int32_t layout, const std::uint8_t* opaque_metadata,
                std::int64_t opaque_metadata_size, void (*deleter)(void* data, void* context), void* context);
#endif

namespace mednext_ops::bindings {

using Sizes5 = std::array<std::int64_t, 5>;

inline Sizes5 dense_strides(const Sizes5& size, bool channels_last) {
    const std::array<int, 5> fastest_first =
        channels_last ? std::array<int, 5>{1, 4, 3, 2, 0} : std::array<int, 5>{4, 3, 2, 1, 0};
    Sizes5 strides{};
    std::int64_t stride = 1;
    for (const int dim : fastest_first) {
        strides[static_cast<std::size_t>(dim)] = stride;
        stride *= size[static_cast<std::size_t>(dim)];
    }
    return strides;
}

// Gives back the block of a tensor that is no more: a torch deleter.
inline void free_block(void* /*data*/, void* context) {
    const std::unique_ptr<PooledBlock> block(static_cast<PooledBlock*>(context));
    give_back_block(*block);
}

struct FreeBlock {
    void operator()(PooledBlock* block) const { free_block(nullptr, block); }
};

// A dense [N, C, D, H, W] of the type of `like`, of memory whose pages exist. Its storage cannot be resized.
inline torch::stable::Tensor new_pooled_tensor(const torch::stable::Tensor& like, const Sizes5& size,
                                               bool channels_last) {
#if defined(__linux__)
    std::int64_t bytes = static_cast<std::int64_t>(like.element_size());
    bool counted = true;  // an extent that overflows is left to torch, which says so
    for (const std::int64_t extent : size) counted = counted && !__builtin_mul_overflow(bytes, extent, &bytes);
    if (torch_from_blob != nullptr && counted) {
        if (const PooledBlock block = take_block(bytes); block.memory != nullptr) {
            std::unique_ptr<PooledBlock, FreeBlock> owner(new PooledBlock(block));
            if (block.fresh) advise_huge_pages(block.memory, block.bytes);
            const Sizes5 strides = dense_strides(size, channels_last);
            std::int32_t dtype = 0;
            AtenTensorHandle handle = nullptr;
            TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
            // The index of a CPU device is -1: "cpu", not "cpu:0".
            TORCH_ERROR_CODE_CHECK(torch_from_blob(block.memory, 5, size.data(), strides.data(), 0, dtype,
                                                   aoti_torch_device_type_cpu(), -1, &handle,
                                                   aoti_torch_layout_strided(), nullptr, 0, free_block, owner.get()));
            owner.release();
            return torch::stable::Tensor(handle);
        }
    }
#endif
    const torch::stable::Tensor tensor = allocate_volume(like, {size.begin(), size.end()}, channels_last);
    advise_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
    return tensor;
}

}  // namespace mednext_ops::bindings
