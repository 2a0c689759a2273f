// Where a CUDA binding runs: the tensor's device, torch's current stream on it, and what a failed launch says.
//
// The same bindings serve the emulated kernels on CPU tensors: there is no device to choose then, and no stream.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <initializer_list>
#include <optional>
#include <vector>

#include "../cuda/common/parameter.h"
#include "../cuda/common/scalar_type.h"
#include "allocation.h"
#include "arguments.h"

// Opens the registration of an op's CUDA implementation.
#ifdef MEDNEXT_OPS_EMULATED
#define MEDNEXT_OPS_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(mednext_ops_emulated, CPU, library)
#else
#define MEDNEXT_OPS_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(mednext_ops_native, CUDA, library)
#endif

namespace mednext_ops::bindings {

// Makes the tensor's device current as long as it lives.
class CudaContext {
  public:
#ifdef MEDNEXT_OPS_EMULATED
    explicit CudaContext(const Tensor&) {}
#else
    explicit CudaContext(const Tensor& tensor) : guard_(tensor.get_device_index()) {
        void* stream = nullptr;
        require(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == AOTI_TORCH_SUCCESS,
                "torch does not tell its current CUDA stream");
        stream_ = static_cast<cudaStream_t>(stream);
    }
#endif

    cudaStream_t stream() const { return stream_; }

    // 10 * major + minor of the device's compute capability.
    int architecture() const {
        int device = 0;
        int major = 0;
        int minor = 0;
        require(cudaGetDevice(&device) == cudaSuccess &&
                    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess,
                "CUDA does not tell the device's compute capability");
        return 10 * major + minor;
    }

    // An uninitialised tensor on the device of `like`. Under emulation every byte is 0xff, which is NaN: what a kernel
    // does not write, or reads before it is written, shows.
    Tensor empty(const Tensor& like, std::initializer_list<std::int64_t> sizes, ScalarType type) const {
        return made([&] { return allocate(like, sizes, type); });
    }

    // The same for a volume [N, C, D, H, W] of the type of `like`, contiguous or channels_last_3d.
    Tensor empty_volume(const Tensor& like, const std::vector<std::int64_t>& sizes, bool channels_last) const {
        return made([&] { return allocate_volume(like, sizes, channels_last); });
    }

  private:
    // Torch before 2.13 does not say why an allocation failed. An earlier kernel's error is not the want of memory.
    template <typename Make>
    static Tensor made(Make&& make) {
        try {
            return poisoned(make());
        } catch (const std::runtime_error& failure) {
#ifndef MEDNEXT_OPS_EMULATED
            const cudaError_t error = cudaPeekAtLastError();
            if (error != cudaSuccess && error != cudaErrorMemoryAllocation) {
                throw std::runtime_error(text_of(failure.what(), ": ", cudaGetErrorString(error)));
            }
#endif
            throw std::runtime_error(failure.what());
        }
    }

    static Tensor poisoned(Tensor fresh) {
#ifdef MEDNEXT_OPS_EMULATED
        const auto bytes = static_cast<std::size_t>(fresh.numel()) * static_cast<std::size_t>(fresh.element_size());
        if (bytes > 0) std::memset(fresh.mutable_data_ptr(), 0xff, bytes);
#endif
        return fresh;
    }

#ifndef MEDNEXT_OPS_EMULATED
    torch::stable::accelerator::DeviceGuard guard_;
#endif
    cudaStream_t stream_ = nullptr;
};

inline void require_launched(const char* op, cudaError_t error) {
    const bool no_kernel = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
    require(
        error == cudaSuccess, op, ": the CUDA kernel was not launched: ", cudaGetErrorString(error),
        no_kernel ? "; this build has no kernels for this GPU, python -m mednext_ops.info says for which it has" : "");
}

// `tensor` has passed require_floating_type.
inline cuda::ScalarType cuda_scalar_type(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case ScalarType::Half:
            return cuda::ScalarType::float16;
        case ScalarType::BFloat16:
            return cuda::ScalarType::bfloat16;
        default:
            return cuda::ScalarType::float32;
    }
}

// A weight or a bias as kernels take it; null where there is none.
inline cuda::Parameter parameter(const std::optional<Tensor>& tensor) {
    if (!tensor) return {nullptr, cuda::ScalarType::float32};
    return {tensor->const_data_ptr(), cuda_scalar_type(*tensor)};
}

}  // namespace mednext_ops::bindings
