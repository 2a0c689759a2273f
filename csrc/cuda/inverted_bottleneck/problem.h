// What an inverted bottleneck asks of the GPU, in plain C++: no CUDA header, no torch.
//
//     n = norm_weight (x - mean) rstd + norm_bias        [C, V]   a sample, V voxels
//     h = gelu(expand_weight n + expand_bias)            [H, V]
//     h = h (1 + gamma nx) + beta                        only with GRN: nx from the norms of h over the voxels
//     output = compress_weight h + compress_bias + residual
#pragma once

#include <cstdint>

#include "../common/parameter.h"
#include "../common/scalar_type.h"

namespace mednext_ops::cuda::inverted_bottleneck {

struct Extents {
    std::int64_t batch, channels, hidden, outputs, voxels;
};

// What makes the hidden tensor. Every volume is dense [N, channels, V].
struct Bottleneck {
    ScalarType type;
    Extents extents;
    std::int64_t groups;
    const void* input;
    const float* mean;  // [N, groups], as is rstd
    const float* rstd;
    Parameter norm_weight, norm_bias;          // [C]
    Parameter expand_weight, expand_bias;      // [H, C], [H]; a bias may be null
    Parameter compress_weight, compress_bias;  // [O, H], [O]
    Parameter grn_gamma, grn_beta;             // [H]; null: no GRN
};

struct ForwardProblem {
    Bottleneck bottleneck;
    const void* residual;  // [N, O, V]; null: none
    void* output;          // [N, O, V]
};

}  // namespace mednext_ops::cuda::inverted_bottleneck
