// What architectures give a block, 10 * major + minor of the compute capability.
#pragma once

namespace mednext_ops::cuda {

// Shared memory that a block may ask for, in bytes (CUDA C++ Programming Guide, technical specifications per compute
// capability).
constexpr int most_shared_bytes(int architecture) {
    if (architecture < 80) return 64 * 1024;
    if (architecture == 80 || architecture == 87) return 163 * 1024;
    return architecture < 90 || architecture >= 120 ? 99 * 1024 : 227 * 1024;
}

}  // namespace mednext_ops::cuda
