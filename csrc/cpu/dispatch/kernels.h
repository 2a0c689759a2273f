// The kernels that are compiled once a capability: what each is, and the table of them that one capability offers.
//
// A source whose name ends in .simd.cpp is compiled with -DMEDNEXT_OPS_CAPABILITY=avx512, avx2 and portable, with the
// flags that belong to it, and defines its functions in the namespace of that name.
#pragma once

#include <cstdint>

#include "../depthwise_conv3d/convolution.h"
#include "../depthwise_conv3d/weight_gradient.h"

namespace mednext_ops::cpu {

struct Kernels {
    const char* capability;
    int lanes;
    // Each runs tasks begin <= i < end of a plan; `scratch` holds plan.scratch_floats floats, aligned to 64 bytes.
    void (*convolve)(const depthwise_conv3d::ConvolutionProblem&, const depthwise_conv3d::ConvolutionPlan&,
                     std::int64_t begin, std::int64_t end, float* scratch);
    // partial: plan.partial_floats() floats, those of a task at their place.
    void (*weight_gradient)(const depthwise_conv3d::WeightGradientProblem&, const depthwise_conv3d::WeightGradientPlan&,
                            std::int64_t begin, std::int64_t end, float* scratch, float* partial);
};

// The best that this machine can run, or what MEDNEXT_OPS_CPU_CAPABILITY names. Chosen once a process.
//
// Throws std::runtime_error, a sentence, where the variable names what is unknown or cannot run here.
const Kernels& kernels();

#if defined(MEDNEXT_OPS_CAPABILITY)
namespace MEDNEXT_OPS_CAPABILITY {

void convolve(const depthwise_conv3d::ConvolutionProblem&, const depthwise_conv3d::ConvolutionPlan&, std::int64_t begin,
              std::int64_t end, float* scratch);
void weight_gradient(const depthwise_conv3d::WeightGradientProblem&, const depthwise_conv3d::WeightGradientPlan&,
                     std::int64_t begin, std::int64_t end, float* scratch, float* partial);

}  // namespace MEDNEXT_OPS_CAPABILITY
#endif

}  // namespace mednext_ops::cpu
