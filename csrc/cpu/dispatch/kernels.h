// The kernels that are compiled once a capability: what each is, and the table of them that one capability offers.
//
// A source whose name ends in .simd.cpp is compiled with -DMEDNEXT_OPS_CAPABILITY=avx512, avx2 and portable, with the
// flags that belong to it, and defines its functions in the namespace of that name.
#pragma once

#include <cstdint>

#include "../depthwise_conv3d/convolution.h"
#include "../depthwise_conv3d/weight_gradient.h"
#include "../group_norm/affine.h"
#include "../inverted_bottleneck/bottleneck.h"

namespace mednext_ops::cpu {

// Each runs tasks begin <= i < end of a plan. `scratch` holds plan.scratch_floats floats, aligned to 64 bytes.
using Convolve = void(const depthwise_conv3d::ConvolutionProblem&, const depthwise_conv3d::ConvolutionPlan&,
                      std::int64_t begin, std::int64_t end, float* scratch);
// partial: plan.partial_floats() floats, those of a task at their place.
using WeightGradient = void(const depthwise_conv3d::WeightGradientProblem&, const depthwise_conv3d::WeightGradientPlan&,
                            std::int64_t begin, std::int64_t end, float* scratch, float* partial);
using GroupNormAffine = void(const group_norm::AffineProblem&, std::int64_t begin, std::int64_t end);
using GroupNormGradient = void(const group_norm::AffineGradientProblem&, std::int64_t begin, std::int64_t end);
// A task is a tile of a sample.
using Bottleneck = void(const inverted_bottleneck::ForwardProblem&, const inverted_bottleneck::Plan&,
                        std::int64_t begin, std::int64_t end, float* scratch);
// A task is a slot of a sample; `slots` holds them all.
using BottleneckResponse = void(const inverted_bottleneck::ResponseProblem&, const inverted_bottleneck::Plan&,
                                std::int64_t begin, std::int64_t end, float* scratch, float* slots);
using BottleneckBackward = void(const inverted_bottleneck::BackwardProblem&, const inverted_bottleneck::Plan&,
                                std::int64_t begin, std::int64_t end, float* scratch, float* slots);

struct Kernels {
    const char* capability;
    int lanes;
    Convolve* convolve;
    WeightGradient* weight_gradient;
    GroupNormAffine* group_norm_affine;
    GroupNormGradient* group_norm_gradient;
    Bottleneck* bottleneck;
    BottleneckResponse* bottleneck_response;
    BottleneckBackward* bottleneck_backward;
};

// The names of those that this machine can run, best first, separated by commas.
const char* capabilities();

// The best that this machine can run, or what MEDNEXT_OPS_CPU_CAPABILITY names. Chosen once a process.
//
// Throws std::runtime_error, a sentence, where the variable names what is unknown or cannot run here.
const Kernels& kernels();

#if defined(MEDNEXT_OPS_CAPABILITY)
namespace MEDNEXT_OPS_CAPABILITY {

Convolve convolve;
WeightGradient weight_gradient;
GroupNormAffine group_norm_affine;
GroupNormGradient group_norm_gradient;
Bottleneck bottleneck;
BottleneckResponse bottleneck_response;
BottleneckBackward bottleneck_backward;

}  // namespace MEDNEXT_OPS_CAPABILITY
#endif

}  // namespace mednext_ops::cpu
