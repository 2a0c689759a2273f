// What lies around the products of a bottleneck too wide for the fused kernels, where the products are a library's.
//
// A *row* is a channel of a sample. Rows of tensors that products read are `pitch` apart, a multiple of kAlignedVoxels,
// whatever V is: a library's kernels for rows that begin anywhere take several times as long.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

#include "../common/parameter.h"
#include "../common/scalar_type.h"

namespace mednext_ops::cuda::inverted_bottleneck {

constexpr std::int64_t kAlignedVoxels = 8;

// The weights as the products want them. GroupNorm's own weight and bias go into the expansion: they know nothing of
// the mean, so that nothing cancels, and weight times gamma is rounded once.
struct WeightsProblem {
    ScalarType type;  // of the matrices
    std::int64_t channels, hidden, outputs;
    Parameter norm_weight, norm_bias;      // [C]
    Parameter expand_weight, expand_bias;  // [R, C], [R] or null
    Parameter compress_weight;             // [O, R]
    void* folded;                          // [R, C]: expand_weight diag(norm_weight)
    float* bias;                           // [R]: expand_weight norm_bias + expand_bias
    void* expand;                          // [R, C]
    void* compress;                        // [O, R]
};

cudaError_t launch_weights(const WeightsProblem& problem, cudaStream_t stream);

// result[n, c, v] = (input[n, c, v] - mean) rstd, and zero from V to the pitch.
struct NormalizedProblem {
    ScalarType type;
    std::int64_t batch, channels, voxels, groups, pitch;
    const void* input;  // [N, C, V]
    const float* mean;  // [N, G], as is rstd
    const float* rstd;
    void* result;  // [N, C, pitch]
};

cudaError_t launch_normalized(const NormalizedProblem& problem, cudaStream_t stream);

// preactivation becomes h = gelu(preactivation + bias). With a gradient of h that becomes one of the preactivation, and
// the sums of it over its rows come out, [N, R]; behind them those of the output's gradient, [N, O], where it is given.
// Lengths of rows are multiples of kAlignedVoxels.
//
// GRN makes one of the first `voxels` of all voxels. Before it, in their place, come the sums of h squared over these;
// after it the gradient of h is grad + slope h for them, and zero behind them.
struct HiddenProblem {
    ScalarType type;
    std::int64_t batch, hidden, length, voxels;
    const float* bias;                                // [R]
    void* preactivation;                              // [N, R, length]
    void* grad;                                       // the same, or null
    const float* slope;                               // [N, R] beside `grad`, or null
    bool squares;                                     // without `grad`
    std::int64_t outputs, output_sample, output_row;  // O, or zero; how far apart samples and rows are
    const void* grad_output;                          // [N, O, length], or null
};

// How many sums there are, and of how many parts: `workspace` has room for that many times as many.
std::int64_t summed_rows(const HiddenProblem& problem);
std::int64_t hidden_parts(const HiddenProblem& problem);
cudaError_t launch_hidden(const HiddenProblem& problem, float* workspace, float* sums, cudaStream_t stream);

// output[front + v] = product[v] + bias + residual[v / stride], the last where every axis of v is a multiple of the
// stride, 1 or 2; zero in the `front` planes of each axis. The skip is added to all of it.
struct OutputProblem {
    ScalarType type;
    std::int64_t batch, channels, pitch;
    std::array<std::int64_t, 3> size, stride, front;  // D, H, W; `size` is the product's
    const void* product;                              // [N, O, pitch]
    Parameter bias;                                   // [O], or null
    const void* residual;                             // [N, O, ceil(size / stride)], or null
    const void* skip;                                 // [N, O, size + front], or null
    void* output;                                     // [N, O, size + front]
};

cudaError_t launch_output(const OutputProblem& problem, cudaStream_t stream);

// The voxels of a volume of any strides, dense; zero from V to the pitch.
struct PackedProblem {
    ScalarType type;
    std::int64_t batch, channels, pitch;
    std::array<std::int64_t, 3> size;    // D, H, W
    std::array<std::int64_t, 5> stride;  // N, C, D, H, W
    const void* input;
    void* result;  // [N, C, pitch]
};

cudaError_t launch_packed(const PackedProblem& problem, cudaStream_t stream);

// What follows from two sums over the voxels of the preactivation's gradient: alone, s [N, R], and times the normalised
// input, G [N, R, C].
struct ExpansionProblem {
    std::int64_t batch, channels, hidden;
    const float* hidden_sums;          // s
    const float* hidden_normalized;    // G
    Parameter norm_weight, norm_bias;  // gamma, beta [C]
    Parameter expand_weight;           // W [R, C]
    float* grad_sum;                   // [N, C]: W^T s
    float* grad_dot_normalized;        // [N, C]: diag(W^T G)
    float* grad_weight;                // [R, C]: sum over n of G diag(gamma) + s beta^T
    float* grad_bias;                  // [R]: sum over n of s
};

cudaError_t launch_expansion(const ExpansionProblem& problem, cudaStream_t stream);

}  // namespace mednext_ops::cuda::inverted_bottleneck
