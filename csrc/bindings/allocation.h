// New tensors, and what a caller is told where there is no memory for one: its size and the device.
//
// torch's C interface answers with a bare error code, and an exception of the headers names the failed call only.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "text.h"

#if defined(__linux__)
// What went wrong, in torch's words. In torch since 2.13; where the symbol is missing it is null.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();
#endif

namespace mednext_ops::bindings {

// What `make` makes. If that fails, `sizes` and the device of `like` are told. mednext_ops/backends/failures.py knows
// the words "could not be allocated".
template <typename Make>
torch::stable::Tensor allocated(const std::vector<std::int64_t>& sizes, const torch::stable::Tensor& like,
                                Make&& make) {
    try {
        return make();
    } catch (const std::exception&) {
        std::string text = "a tensor of [";
        for (std::size_t i = 0; i < sizes.size(); ++i) text += text_of(i > 0 ? ", " : "", sizes[i]);
        text += text_of("] could not be allocated on ", like.is_cpu() ? "the CPU" : "the GPU");
#if defined(__linux__)
        if (torch_exception_get_what_without_backtrace != nullptr) {
            text += text_of(": ", torch_exception_get_what_without_backtrace());
        }
#endif
        throw std::runtime_error(text);
    }
}

inline torch::stable::Tensor allocate(const torch::stable::Tensor& like, const std::vector<std::int64_t>& sizes,
                                      torch::headeronly::ScalarType type) {
    return allocated(sizes, like, [&] { return torch::stable::new_empty(like, sizes, type); });
}

// A dense [N, C, D, H, W] of the type of `like`.
inline torch::stable::Tensor allocate_volume(const torch::stable::Tensor& like, const std::vector<std::int64_t>& sizes,
                                             bool channels_last) {
    using torch::headeronly::MemoryFormat;
    return allocated(sizes, like, [&] {
        return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                                    channels_last ? MemoryFormat::ChannelsLast3d : MemoryFormat::Contiguous);
    });
}

// The tensor's values in another layout.
inline torch::stable::Tensor copied(const torch::stable::Tensor& tensor, torch::headeronly::MemoryFormat format) {
    std::vector<std::int64_t> sizes;
    for (std::int64_t i = 0; i < tensor.dim(); ++i) sizes.push_back(tensor.size(i));
    return allocated(sizes, tensor, [&] { return torch::stable::contiguous(tensor, format); });
}

// The tensor's values in the same layout, in memory of its own: where an allocator lets tensors begin.
inline torch::stable::Tensor cloned(const torch::stable::Tensor& tensor) {
    std::vector<std::int64_t> sizes;
    for (std::int64_t i = 0; i < tensor.dim(); ++i) sizes.push_back(tensor.size(i));
    return allocated(sizes, tensor, [&] { return torch::stable::clone(tensor); });
}

}  // namespace mednext_ops::bindings
