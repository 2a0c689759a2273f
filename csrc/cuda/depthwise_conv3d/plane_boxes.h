// Planes of a tensor [N * C, D, H, W] of 16 bits as the copy engine takes them: a box is a plane of a tile.
#pragma once

#include <cstdint>

#include "../common/tensor_map.h"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

struct PlaneBoxes {
    ScalarType type;
    std::int64_t volumes;
    Triple size;
    int columns, rows;  // of a box; columns are a multiple of 8
};

inline cudaError_t encode_planes(const PlaneBoxes& boxes, const void* data, CUtensorMap* map) {
    const auto row = static_cast<std::uint64_t>(boxes.size.w) * 2;
    const auto plane = row * static_cast<std::uint64_t>(boxes.size.h);
    const auto volume = plane * static_cast<std::uint64_t>(boxes.size.d);
    const auto volumes = static_cast<std::uint64_t>(boxes.volumes);
    const BoxedTensor tensor{
        data,
        boxes.type,
        {static_cast<std::uint64_t>(boxes.size.w), static_cast<std::uint64_t>(boxes.size.h),
         static_cast<std::uint64_t>(boxes.size.d), volumes, 1},
        {row, plane, volume, volume * volumes},
        {static_cast<std::uint32_t>(boxes.columns), static_cast<std::uint32_t>(boxes.rows), 1, 1, 1},
    };
    return encode(tensor, map);
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
