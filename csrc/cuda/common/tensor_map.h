// Describes a five-dimensional tensor to the copy engine of sm_90 and newer (TMA): the host's part of a box load.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "scalar_type.h"

namespace mednext_ops::cuda {

constexpr int kTensorRank = 5;

constexpr unsigned bytes_of(ScalarType type) {
    return type == ScalarType::float32 ? 4 : 2;
}

// A tensor and the box that one load takes of it, the fastest dimension first. Elements of a box outside of the tensor
// are zero.
struct BoxedTensor {
    const void* data;  // at a multiple of 16 bytes
    ScalarType type;
    std::array<std::uint64_t, kTensorRank> extent;
    std::array<std::uint64_t, kTensorRank - 1> stride_bytes;  // of dimensions 1 to 4: multiples of 16
    std::array<std::uint32_t, kTensorRank> box;               // at most 256 each; the first a multiple of 16 bytes

    std::uint64_t box_bytes() const {
        std::uint64_t bytes = bytes_of(type);
        for (const std::uint32_t extent_of_box : box) bytes *= extent_of_box;
        return bytes;
    }

    // What the copy engine can take; a launcher asks this when it plans, and chooses another fill if not.
    bool loadable() const {
        if (reinterpret_cast<std::uintptr_t>(data) % 16 != 0 || box[0] * bytes_of(type) % 16 != 0) return false;
        for (const std::uint64_t bytes : stride_bytes) {
            if (bytes % 16 != 0 || bytes >= 1ULL << 40) return false;
        }
        for (int i = 0; i < kTensorRank; ++i) {
            if (extent[i] == 0 || extent[i] > 1ULL << 32 || box[i] == 0 || box[i] > 256) return false;
        }
        return true;
    }
};

#ifndef MEDNEXT_OPS_EMULATED

// Fails with cudaErrorInvalidValue where the tensor is not loadable, and with cudaErrorNotSupported where the driver
// knows no such copies. Pass the map to the kernel as `const __grid_constant__ CUtensorMap`.
inline cudaError_t encode(const BoxedTensor& tensor, CUtensorMap* map) {
    if (!tensor.loadable()) return cudaErrorInvalidValue;
    using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    // From the driver that is there, not from a libcuda that this library would need to be linked to; asked for once.
    static const auto [function, error] = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
        cudaError_t status =
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
        cudaError_t status = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
        if (status == cudaSuccess && (result != cudaDriverEntryPointSuccess || found == nullptr)) {
            status = cudaErrorNotSupported;
        }
        return std::pair(found, status);
    }();
    if (error != cudaSuccess) return error;

    const CUtensorMapDataType type = tensor.type == ScalarType::float32   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                     : tensor.type == ScalarType::float16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                          : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    cuuint64_t extent[kTensorRank];
    cuuint64_t stride_bytes[kTensorRank - 1];
    cuuint32_t box[kTensorRank];
    cuuint32_t every[kTensorRank];
    for (int i = 0; i < kTensorRank; ++i) {
        extent[i] = tensor.extent[i];
        box[i] = tensor.box[i];
        every[i] = 1;
    }
    for (int i = 0; i < kTensorRank - 1; ++i) stride_bytes[i] = tensor.stride_bytes[i];
    const CUresult result =
        reinterpret_cast<Encode>(function)(map, type, kTensorRank, const_cast<void*>(tensor.data), extent, stride_bytes,
                                           box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                                           CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

#else

// The map of the emulation is the description itself, in the bytes that are opaque on the device too.
inline cudaError_t encode(const BoxedTensor& tensor, CUtensorMap* map) {
    static_assert(sizeof(BoxedTensor) <= sizeof(CUtensorMap));
    if (!tensor.loadable()) return cudaErrorInvalidValue;
    std::memset(map, 0, sizeof *map);
    std::memcpy(static_cast<void*>(map), &tensor, sizeof tensor);
    return cudaSuccess;
}

#endif

}  // namespace mednext_ops::cuda
