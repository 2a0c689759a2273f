// Rings whose places are named by constants, so that what lies in them is in registers; and of stages in shared memory.
#pragma once

namespace mednext_ops::cuda::depthwise_conv3d {

// Calls function<place>() for one of the places.
template <int Places, int Place = 0, typename Function>
__device__ inline void at_place(int place, Function&& function) {
    if constexpr (Place + 1 == Places) {
        function.template operator()<Place>();
    } else if (place == Place) {
        function.template operator()<Place>();
    } else {
        at_place<Places, Place + 1>(place, function);
    }
}

// Calls function<place>() for places 0, 1, ... Places - 1, 0, 1, ... until it says that this was the last: without a
// meeting of ways, at which registers would have to be moved, but with what the function does Places times in the
// kernel.
template <int Places, int Place = 0, typename Function>
__device__ inline bool walk_along_places_once(Function&& function) {
    if (!function.template operator()<Place>()) return false;
    if constexpr (Place + 1 < Places) return walk_along_places_once<Places, Place + 1>(function);
    return true;
}

template <int Places, typename Function>
__device__ inline void walk_along_places(Function&& function) {
#pragma unroll 1
    while (walk_along_places_once<Places>(function)) {
    }
}

// Which of `stages` stages is the next, and which parity the phase of its barrier has.
struct StageCounter {
    int stages;
    int index = 0;
    unsigned parity = 0;

    __device__ explicit StageCounter(int stages) : stages(stages) {}

    __device__ void advance() {
        index = index + 1 == stages ? 0 : index + 1;
        if (index == 0) parity ^= 1;
    }

    __device__ StageCounter before() const {
        StageCounter result(*this);
        result.index = index == 0 ? stages - 1 : index - 1;
        if (index == 0) result.parity ^= 1;
        return result;
    }
};

}  // namespace mednext_ops::cuda::depthwise_conv3d
