#include "launch_plans.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "../cuda/depthwise_conv3d/plan.h"
#include "../cuda/inverted_bottleneck/plan.h"

namespace {

namespace py = pybind11;
using namespace mednext_ops::cuda::depthwise_conv3d;
using mednext_ops::cuda::ScalarType;

using Three = std::array<std::int64_t, 3>;

Triple triple(const Three& values) {
    return {values[0], values[1], values[2]};
}

ScalarType scalar_type(const std::string& name) {
    if (name == "float32") return ScalarType::float32;
    if (name == "float16") return ScalarType::float16;
    if (name == "bfloat16") return ScalarType::bfloat16;
    throw std::invalid_argument("dtype is '" + name + "'; kernels exist for float32, float16 and bfloat16");
}

const char* name_of(Fill fill) {
    switch (fill) {
        case Fill::boxes:
            return "boxes";
        case Fill::async:
            return "async";
        default:
            return "elements";
    }
}

// `each`: outputs of a plane, of a row and of a thread's columns, as the tile counts them.
void describe(const StreamingTile& tile, const Triple& each, py::dict& result) {
    result["core"] = "streaming";
    result["tile"] = Three{each.d * tile.depth, each.h * tile.rows * tile.lanes_h, each.w * tile.lanes_w};
    result["tiles"] = Three{tile.tiles_d, tile.tiles_h, tile.tiles_w};
    result["channels_a_warp"] = tile.lanes_c;
}

// An address at a multiple of `alignment`, a power of two, and of nothing beyond it: plans look at that alone, and at
// whether there is one.
const void* address(bool given, std::uintptr_t alignment) {
    return given ? reinterpret_cast<const void*>((std::uintptr_t{1} << 20) + alignment) : nullptr;
}

py::dict convolution(bool scatter, const std::string& dtype, bool channels_last, std::int64_t batch,
                     std::int64_t channels, const Three& input_size, const Three& output_size, const Three& kernel,
                     const Three& stride, const Three& padding, const Three& dilation, bool affine,
                     std::uintptr_t alignment, int architecture) {
    ConvolutionProblem problem{};
    problem.scatter = scatter;
    problem.type = scalar_type(dtype);
    problem.channels_last = channels_last;
    problem.batch = batch;
    problem.channels = channels;
    problem.input_size = triple(input_size);
    problem.output_size = triple(output_size);
    problem.geometry = {triple(kernel), triple(stride), triple(padding), triple(dilation)};
    problem.input = address(true, alignment);
    problem.affine.output = address(affine, alignment);
    const ConvolutionPlan plan = plan_convolution(problem, architecture);
    py::dict result;
    result["moments_per_channel"] = plan.moments_per_channel;
    switch (plan.core) {
        case ConvolutionCore::general:
            result["core"] = "general";
            break;
        case ConvolutionCore::streaming:
            describe(plan.streaming,
                     is_streaming_scatter(problem) ? Triple{problem.geometry.stride.d, 2, 2 * StreamingTile::kPairs}
                                                   : Triple{1, 1, StreamingTile::kColumns},
                     result);
            result["threads"] = 32 * StreamingTile::kWarps;
            result["blocks"] =
                batch * plan.streaming.channel_tiles * ceil_div(plan.streaming.tiles(), StreamingTile::kWarps);
            break;
        case ConvolutionCore::banded: {
            const BandedTile& tile = plan.banded;
            result["core"] = "banded";
            result["fill"] = name_of(tile.fill);
            result["full_rows"] = tile.full_rows;
            result["threads"] = 32 * tile.warps;
            result["blocks"] = batch * channels * tile.tiles();
            result["tile"] = Three{tile.depth, tile.rows, 8 * tile.octets};
            result["tiles"] = Three{tile.tiles_d, tile.tiles_h, tile.tiles_w};
            result["stages"] = tile.stages;
            result["plane_bytes"] = tile.planes(static_cast<int>(kernel[1]), affine).plane_bytes();
            result["ring_bytes"] = tile.planes(static_cast<int>(kernel[1]), affine).bytes();
            break;
        }
        case ConvolutionCore::planar: {
            const PlanarTile& tile = plan.planar;
            const auto kernel_h = static_cast<int>(kernel[1]);
            result["core"] = "planar";
            result["fill"] = name_of(tile.fill);
            result["fragments"] = tile.fragments;
            result["threads"] = 32 * tile.warps;
            result["blocks"] = batch * channels * tile.tiles();
            result["tile"] = Three{tile.depth, tile.rows(kernel_h), 4 * tile.quads};
            result["tiles"] = Three{tile.tiles_d, tile.tiles_h, tile.tiles_w};
            result["stages"] = tile.stages;
            result["plane_bytes"] = tile.plane_bytes(kernel_h);
            result["ring_bytes"] = tile.planes_bytes(kernel_h, affine);
            break;
        }
        case ConvolutionCore::strided: {
            const StridedTile& tile = plan.strided;
            result["core"] = "strided";
            result["direct"] = tile.direct;
            result["threads"] = 32 * tile.warps;
            result["blocks"] = batch * channels * tile.tiles();
            result["tile"] = Three{tile.depth, 2 * tile.pairs, 4 * tile.quads};
            result["tiles"] = Three{tile.tiles_d, tile.tiles_h, tile.tiles_w};
            result["ring_bytes"] =
                StridedTile::planes(!tile.direct, affine) * tile.layout(static_cast<int>(kernel[0])).plane_bytes();
            break;
        }
        case ConvolutionCore::strided_scatter: {
            const ScatterTile& tile = plan.strided_scatter;
            result["core"] = "strided_scatter";
            result["direct"] = tile.direct;
            result["threads"] = 32 * tile.warps;
            result["blocks"] = batch * channels * tile.tiles();
            result["tile"] = Three{2 * tile.depth, 2 * tile.pairs, 8 * tile.windows};
            result["tiles"] = Three{tile.tiles_d, tile.tiles_h, tile.tiles_w};
            result["ring_bytes"] =
                StridedTile::planes(!tile.direct, affine) * tile.layout(static_cast<int>(kernel[0])).plane_bytes();
            break;
        }
    }
    return result;
}

py::dict weight_gradient(const std::string& dtype, bool channels_last, std::int64_t batch, std::int64_t channels,
                         const Three& small_size, const Three& large_size, const Three& kernel, const Three& stride,
                         const Three& padding, const Three& dilation, bool affine, bool large_is_gradient,
                         std::uintptr_t alignment, int architecture) {
    WeightGradientProblem problem{};
    problem.type = scalar_type(dtype);
    problem.channels_last = channels_last;
    problem.batch = batch;
    problem.channels = channels;
    problem.small_size = triple(small_size);
    problem.large_size = triple(large_size);
    problem.geometry = {triple(kernel), triple(stride), triple(padding), triple(dilation)};
    problem.small = address(true, alignment);
    problem.large = address(true, alignment);
    problem.large_is_gradient = large_is_gradient;
    problem.affine.output = address(affine, alignment);
    const WeightGradientPlan plan = plan_weight_gradient(problem, architecture);
    py::dict result;
    result["parts"] = plan.parts;
    result["workspace_bytes"] = plan.workspace_bytes;
    switch (plan.core) {
        case WeightGradientCore::general:
            result["core"] = "general";
            break;
        case WeightGradientCore::streaming: {
            const WeightGradientGroups groups = weight_gradient_groups(kernel[0], stride[0], channels_last);
            const int warps = weight_gradient_warps(groups);
            result["planes_of_taps_a_warp"] = groups.planes;
            describe(plan.streaming.each, {1, 1, StreamingTile::kColumns}, result);
            result["tiles_a_warp"] = plan.streaming.turns;
            result["threads"] = 32 * warps;
            result["blocks"] =
                batch * plan.streaming.each.channel_tiles * ceil_div(plan.streaming.parts(), warps / groups.groups);
            break;
        }
        case WeightGradientCore::strided: {
            const StridedWeightTile& tile = plan.strided;
            result["core"] = "strided";
            result["large_aligned"] = tile.large_aligned;
            result["small_aligned"] = tile.small_aligned;
            result["threads"] = 32 * tile.warps;
            result["patches"] = std::array<std::int64_t, 2>{tile.patches_h, tile.patches_w};
            result["blocks"] = batch * channels * tile.tiles();
            result["steps"] = tile.steps;
            result["steps_a_block"] = tile.depth;
            result["tiles"] = std::array<std::int64_t, 2>{tile.tiles_d, tile.tiles_hw};
            break;
        }
        case WeightGradientCore::banded: {
            const WeightGradientTile& tile = plan.banded;
            const int k = static_cast<int>(kernel[1]);
            result["core"] = "banded";
            result["fill"] = name_of(tile.fill);
            result["threads"] = 32 * tile.warps();
            result["patches_a_warp"] = tile.patches;
            result["blocks"] = batch * channels * tile.tiles();
            result["tile"] = Three{tile.depth, tile.rows(k), tile.columns()};
            result["tiles"] = Three{tile.tiles_d, tile.tiles_h, tile.tiles_w};
            result["stages"] = tile.stages;
            result["ring_bytes"] = tile.large_planes(k, affine && large_is_gradient).bytes() +
                                   tile.small_planes(k, affine && !large_is_gradient).bytes();
            break;
        }
    }
    return result;
}

namespace bottleneck = mednext_ops::cuda::inverted_bottleneck;

// What both passes say; core "none" where no fused kernel takes the shape.
template <typename Plan>
py::dict describe(const std::optional<Plan>& plan, std::int64_t batch, int warps, int voxels) {
    py::dict result;
    result["core"] = plan ? "fused" : "none";
    if (!plan) return result;
    result["instance_channels"] = plan->channels;
    result["instance_hidden"] = plan->hidden;
    result["instance_outputs"] = plan->outputs;
    result["threads"] = 32 * warps;
    result["blocks"] = batch * plan->parts;
    result["voxels_a_tile"] = voxels;
    result["tiles"] = plan->tiles;
    result["shared_bytes_at_most"] = bottleneck::shared_bytes(*plan);
    return result;
}

// The passes of an inverted bottleneck. With GRN the backward's kernel makes the forward's sums too.
py::dict inverted_bottleneck(const std::string& dtype, std::int64_t batch, std::int64_t channels, std::int64_t hidden,
                             std::int64_t outputs, std::int64_t voxels, bool grn, bool channels_last,
                             int architecture) {
    const bottleneck::Extents extents{batch, channels, hidden, outputs, voxels};
    std::optional<bottleneck::ForwardPlan> forward;
    std::optional<bottleneck::BackwardPlan> backward;
    if (scalar_type(dtype) != ScalarType::float32) {
        backward = bottleneck::plan_backward(extents, architecture);
        if (backward || !grn) forward = bottleneck::plan_forward(extents, channels_last, architecture);
    }
    py::dict result;
    result["bottleneck_forward"] = describe(forward, batch, forward ? forward->warps : 0,
                                            forward ? bottleneck::ForwardPlan::voxels(forward->outputs) : 0);
    result["bottleneck_backward"] =
        describe(backward, batch, backward ? backward->warps() : 0, bottleneck::BackwardPlan::kVoxels);
    return result;
}

}  // namespace

void add_launch_plans(py::module_& module) {
    using namespace pybind11::literals;
    module.def("plan_convolution", &convolution, py::kw_only(), "scatter"_a, "dtype"_a, "channels_last"_a, "batch"_a,
               "channels"_a, "input_size"_a, "output_size"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a,
               "affine"_a, "alignment"_a, "architecture"_a,
               "Core, tile, fill and grid of a convolution, or of a data gradient, on an architecture (90: sm_90).");
    module.def("plan_weight_gradient", &weight_gradient, py::kw_only(), "dtype"_a, "channels_last"_a, "batch"_a,
               "channels"_a, "small_size"_a, "large_size"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a,
               "affine"_a, "large_is_gradient"_a, "alignment"_a, "architecture"_a,
               "Core, tile and workspace of a weight gradient on an architecture (90: sm_90).");
    module.def("plan_inverted_bottleneck", &inverted_bottleneck, py::kw_only(), "dtype"_a, "batch"_a, "channels"_a,
               "hidden"_a, "outputs"_a, "voxels"_a, "grn"_a, "channels_last"_a, "architecture"_a,
               "Tiles and grid of an inverted bottleneck's passes; core \"none\" where no fused kernel takes them.");
}
