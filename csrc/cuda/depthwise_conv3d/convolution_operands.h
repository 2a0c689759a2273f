// What a convolution at stride 1 on tensor cores is given beside its input, a gather or the scatter that is its mirror
// image.
#pragma once

#include <cstdint>

#include "../common/moments.h"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

struct ConvolutionOperands {
    Parameter weight, bias;
    bool mirrored;  // the weight's taps in reverse: a scatter
    int kernel_w;
    int pad_d, pad_h;
    int out_d, out_h, out_w;
    std::int64_t channels;
    const void* add;
    void* output;
    Moments<double>* moments;

    ConvolutionOperands() = default;
    ConvolutionOperands(const ConvolutionProblem& p, Moments<double>* moments)
        : weight(p.weight),
          bias(p.bias),
          mirrored(p.scatter),
          kernel_w(static_cast<int>(p.geometry.kernel.w)),
          pad_d(padding(p, p.geometry.kernel.d, p.geometry.padding.d)),
          pad_h(padding(p, p.geometry.kernel.h, p.geometry.padding.h)),
          out_d(static_cast<int>(p.output_size.d)),
          out_h(static_cast<int>(p.output_size.h)),
          out_w(static_cast<int>(p.output_size.w)),
          channels(p.channels),
          add(p.add),
          output(p.output),
          moments(moments) {}

  private:
    // A scatter is a gather with the mirrored kernel: output o takes tap k of input o + padding - k.
    static int padding(const ConvolutionProblem& p, std::int64_t taps, std::int64_t given) {
        return static_cast<int>(p.scatter ? taps - 1 - given : given);
    }
};

}  // namespace mednext_ops::cuda::depthwise_conv3d
