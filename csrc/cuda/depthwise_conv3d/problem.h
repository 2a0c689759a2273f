// What a depthwise convolution and its gradients ask of the GPU, in plain C++: no CUDA header, no torch.
//
// Four operations are two: a convolution *gathers* (an output reads the inputs under its kernel) or *scatters* (an
// input spreads over the outputs under its kernel, strides apart).
//
//     Conv3d           forward gathers     data gradient scatters
//     ConvTranspose3d  forward scatters    data gradient gathers
//
// At stride 1 a scatter is a gather with the mirrored kernel. The weight gradient of both is one operation: it
// multiplies a small tensor (one value a kernel position) with a large one (the values under the kernel).
#pragma once

#include <cstdint>

#include "../common/parameter.h"
#include "../common/scalar_type.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Depth, height, width.
struct Triple {
    std::int64_t d, h, w;

    constexpr std::int64_t product() const { return d * h * w; }
};

struct Geometry {
    Triple kernel, stride, padding, dilation;
};

// A tensor to be read as `scale * value + slope * output + offset`, a sample and channel: the gradient of a convolution
// that GroupNorm follows. Without `output` it is read as it is. What lies outside of the tensor is zero, not `offset`.
struct AffineGradient {
    const void* output;  // of the shape, type and format of the tensor
    const float* scale;  // [N, C], as are the next two
    const float* slope;
    const float* offset;

    constexpr bool given() const { return output != nullptr; }
};

using cuda::Parameter;

// output[n, c, o] = bias[c] + add[n, c, o] + sum over the taps k of weight[c, k] * input[n, c, i], with
//     gather:   i = o * stride + k * dilation - padding
//     scatter:  i = (o + padding - k * dilation) / stride, for the taps for which that is whole
struct ConvolutionProblem {
    bool scatter;
    ScalarType type;
    bool channels_last;  // input, output, add and affine.output: dense NDHWC, or dense NCDHW
    std::int64_t batch, channels;
    Triple input_size, output_size;
    Geometry geometry;
    const void* input;
    AffineGradient affine;  // how the input is read
    Parameter weight;       // [C, kernel]
    Parameter bias;         // [C]; null: none
    const void* add;        // null: none
    void* output;
};

// grad_weight[c, k] = sum over n and o of small[n, c, o] * large[n, c, o * stride + k * dilation - padding]
//     Conv3d:           small is the gradient of the output, large the input
//     ConvTranspose3d:  small is the input, large the gradient of the output
struct WeightGradientProblem {
    ScalarType type;
    bool channels_last;
    std::int64_t batch, channels;
    Triple small_size, large_size;
    Geometry geometry;
    const void* small;
    const void* large;
    bool large_is_gradient;  // which of the two `affine` belongs to
    AffineGradient affine;
    float* grad_weight;  // [C, kernel]
};

}  // namespace mednext_ops::cuda::depthwise_conv3d
