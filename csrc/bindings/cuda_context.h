// Where a CUDA binding runs: the tensor's device, torch's current stream on it, and what a failed launch says.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "../cuda/common/scalar_type.h"
#include "arguments.h"

namespace mednext_ops::bindings {

// Makes the tensor's device current as long as it lives.
class CudaContext {
  public:
    explicit CudaContext(const Tensor& tensor) : guard_(tensor.get_device_index()) {
        void* stream = nullptr;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
        stream_ = static_cast<cudaStream_t>(stream);
    }

    cudaStream_t stream() const { return stream_; }

  private:
    torch::stable::accelerator::DeviceGuard guard_;
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

}  // namespace mednext_ops::bindings
