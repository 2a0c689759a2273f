// What the bindings of the depthwise convolution ask of their arguments, before anything is allocated.
//
// torch's operators above have checked what users pass; these checks are for whoever calls a native operator directly,
// and for mistakes of ours: a kernel gets pointers and believes them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "volume.h"

namespace mednext_ops::bindings {

using Sizes = std::array<std::int64_t, 3>;  // D, H, W

inline std::string text_of(const Sizes& sizes) {
    return "[" + std::to_string(sizes[0]) + ", " + std::to_string(sizes[1]) + ", " + std::to_string(sizes[2]) + "]";
}

// The geometry that every native convolution takes.
struct ConvolutionGeometry {
    Sizes kernel, stride, padding, dilation, output_padding;
    bool transposed;

    // The extents that Conv3d or ConvTranspose3d makes of `input`. A view may repeat a voxel so often that strides
    // times extents do not fit 64 bits.
    Sizes output_of(const Sizes& input) const {
        constexpr std::int64_t most = std::int64_t{1} << 62;
        Sizes output{};
        for (int i = 0; i < 3; ++i) {
            require(input[i] <= most / stride[i], "an input of ", text_of(input), " is too large for a stride of ",
                    text_of(stride));
            const std::int64_t reach = dilation[i] * (kernel[i] - 1) + 1;
            output[i] = transposed ? (input[i] - 1) * stride[i] - 2 * padding[i] + reach + output_padding[i]
                                   : (input[i] + 2 * padding[i] - reach) / stride[i] + 1;
        }
        return output;
    }
};

inline Sizes volume_size(const Tensor& tensor) {
    return {tensor.size(2), tensor.size(3), tensor.size(4)};
}

inline Sizes require_three(const char* op, const char* name, const std::vector<std::int64_t>& values,
                           std::int64_t least) {
    require(values.size() == 3, op, ": ", name, " must be three numbers (D, H, W), got ", values.size());
    const Sizes sizes{values[0], values[1], values[2]};
    // Products of two such numbers fit 64 bits.
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
    for (const std::int64_t value : sizes) {
        require(value >= least && value <= most, op, ": ", name, " must be between ", least, " and ", most, ", got ",
                text_of(sizes));
    }
    return sizes;
}

inline ConvolutionGeometry require_geometry(const char* op, const Sizes& kernel,
                                            const std::vector<std::int64_t>& stride,
                                            const std::vector<std::int64_t>& padding,
                                            const std::vector<std::int64_t>& dilation,
                                            const std::vector<std::int64_t>& output_padding, bool transposed) {
    return {kernel,
            require_three(op, "stride", stride, 1),
            require_three(op, "padding", padding, 0),
            require_three(op, "dilation", dilation, 1),
            require_three(op, "output_padding", output_padding, 0),
            transposed};
}

inline void require_same_device(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
    require(tensor.device() == input.device(), op, ": ", name, " is on another device than the tensor it belongs to");
}

// A tensor [N, C, D, H, W] of the same type and device as `like`.
inline void require_like(const char* op, const char* name, const Tensor& tensor, const Tensor& like,
                         const Sizes& sizes) {
    require_volume(op, name, tensor);
    require(tensor.size(0) == like.size(0) && tensor.size(1) == like.size(1) && volume_size(tensor) == sizes, op, ": ",
            name, " must be [", like.size(0), ", ", like.size(1), ", ", sizes[0], ", ", sizes[1], ", ", sizes[2],
            "], got ", shape_of(tensor));
    require(tensor.scalar_type() == like.scalar_type(), op, ": ", name, " must be ",
            torch::headeronly::toString(like.scalar_type()), " as the tensor it belongs to, got ",
            torch::headeronly::toString(tensor.scalar_type()));
    require_same_device(op, name, tensor, like);
}

// A weight or a bias: float32, or the type of `input`.
inline void require_parameter_type(const char* op, const char* name, const Tensor& parameter, const Tensor& input) {
    require(parameter.scalar_type() == ScalarType::Float || parameter.scalar_type() == input.scalar_type(), op, ": ",
            name, " must be float32 or ", torch::headeronly::toString(input.scalar_type()), " as the input, got ",
            torch::headeronly::toString(parameter.scalar_type()));
    require_same_device(op, name, parameter, input);
}

// The kernel's extents.
inline Sizes require_weight(const char* op, const Tensor& weight, const Tensor& input) {
    require(weight.dim() == 5 && weight.size(0) == input.size(1) && weight.size(1) == 1, op, ": weight must be [",
            input.size(1), ", 1, kd, kh, kw], got ", shape_of(weight));
    require_parameter_type(op, "weight", weight, input);
    return require_three(op, "the kernel", {weight.size(2), weight.size(3), weight.size(4)}, 1);
}

inline void require_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& input) {
    if (!bias) return;
    require(bias->dim() == 1 && bias->size(0) == input.size(1), op, ": bias must be [", input.size(1), "], got ",
            shape_of(*bias));
    require_parameter_type(op, "bias", *bias, input);
}

// The four tensors of a gradient that is not written out: all of them, or none. Whether they are there.
inline bool require_affine(const char* op, const Tensor& grad_output, const std::optional<Tensor>& output,
                           const std::optional<Tensor>& scale, const std::optional<Tensor>& slope,
                           const std::optional<Tensor>& offset) {
    const bool given = output.has_value();
    require(scale.has_value() == given && slope.has_value() == given && offset.has_value() == given, op,
            ": output, scale, slope and offset must all be given, or none of them");
    if (!given) return false;
    require_like(op, "output", *output, grad_output, volume_size(grad_output));
    const Tensor* const maps[] = {&*scale, &*slope, &*offset};
    const char* const names[] = {"scale", "slope", "offset"};
    for (int i = 0; i < 3; ++i) {
        const Tensor& map = *maps[i];
        require(map.dim() == 2 && map.size(0) == grad_output.size(0) && map.size(1) == grad_output.size(1), op, ": ",
                names[i], " must be [", grad_output.size(0), ", ", grad_output.size(1), "], got ", shape_of(map));
        require(map.scalar_type() == ScalarType::Float, op, ": ", names[i], " must be float32, got ",
                torch::headeronly::toString(map.scalar_type()));
        require_same_device(op, names[i], map, grad_output);
    }
    return true;
}

// What the geometry makes of `input` must be what is there.
inline void require_output_size(const char* op, const ConvolutionGeometry& geometry, const Sizes& input,
                                const Sizes& output) {
    const Sizes expected = geometry.output_of(input);
    require(expected == output, op, ": this geometry makes ", text_of(expected), " of an input of ", text_of(input),
            ", got ", text_of(output));
}

// The tensor itself where it is dense in the format, or a copy.
inline Tensor in_format(const Tensor& tensor, bool channels_last) {
    const bool fits = channels_last ? is_channels_last_3d(tensor) : tensor.is_contiguous();
    if (fits) return tensor;
    using torch::headeronly::MemoryFormat;
    return copied(tensor, channels_last ? MemoryFormat::ChannelsLast3d : MemoryFormat::Contiguous);
}

inline std::optional<Tensor> in_format(const std::optional<Tensor>& tensor, bool channels_last) {
    return tensor ? std::optional<Tensor>(in_format(*tensor, channels_last)) : std::nullopt;
}

// channels_last_3d where it is that and not contiguous as well, as the operators above decide.
inline bool prefers_channels_last(const Tensor& tensor) {
    return !tensor.is_contiguous() && is_channels_last_3d(tensor);
}

}  // namespace mednext_ops::bindings
