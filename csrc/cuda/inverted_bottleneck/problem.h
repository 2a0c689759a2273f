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

// What makes the hidden tensor. Every volume is dense, [N, channels, V] or with channels_last [N, V, channels].
struct Bottleneck {
    ScalarType type;
    bool channels_last;
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
    const void* residual;  // [N, O, V], as the input lies; null: none
    void* output;          // [N, O, V], the same
};

// The gradients that are made; null where one is not. Of those of the hidden tensor and of the compression each all are
// wanted or none, but for `grad`.
struct BackwardProblem {
    Bottleneck bottleneck;
    const void* grad_output;  // [N, O, V]
    void* grad;               // [N, C, V], of the normalised tensor, as are the first two of the hidden
    bool wants_hidden;
    bool wants_compress;         // always with GRN
    float* grad_sum;             // [N, C]
    float* grad_dot_normalized;  // [N, C]
    float* expand_weight;        // [H, C]
    float* expand_bias;          // [H]
    float* compress_weight;      // [O, H]
    float* compress_bias;        // [O]
    float* grn_gamma;            // [H]
    float* grn_beta;             // [H]
};

}  // namespace mednext_ops::cuda::inverted_bottleneck
