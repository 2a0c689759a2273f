// The sum over a warp's lanes, in a tree.
#pragma once

#include "warp.h"

namespace mednext_ops::cuda {

// The same in every lane.
__device__ inline float add_lanes(float value) {
#pragma unroll
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(kFullWarp, value, distance);
    }
    return value;
}

}  // namespace mednext_ops::cuda
