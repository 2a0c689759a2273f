// How many threads make a warp, and the mask of all of them.
#pragma once

namespace mednext_ops::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

}  // namespace mednext_ops::cuda
