#include "plan.h"

#include <algorithm>

#include "../common/architecture.h"

namespace mednext_ops::cuda::inverted_bottleneck {
namespace {

// The GPU that plans are made for. Fixed, so that sums have the same bits on every one.
constexpr std::int64_t kProcessors = 132;

// What a block of these kernels may have: they need the tensor cores of sm_80.
std::int64_t bytes_of_block(int architecture) {
    return architecture < 80 ? 0 : most_shared_bytes(architecture);
}

// The channels and outputs that an instance is compiled for. False where there is none so large.
bool choose_instance(const Extents& extents, int& channels, int& outputs) {
    const std::int64_t larger = std::max(extents.channels, extents.outputs);
    if (extents.channels < 1 || extents.outputs < 1 || extents.hidden < 1 || larger > 128) return false;
    const auto filled = [](std::int64_t count) { return count <= 32 ? 32 : count <= 64 ? 64 : 128; };
    channels = std::max(filled(extents.channels), filled(extents.outputs) / 2);
    outputs = std::max(filled(extents.outputs), filled(extents.channels) / 2);
    return true;
}

}  // namespace

std::int64_t shared_bytes(const ForwardPlan& plan) {
    const std::int64_t c = plan.channels;
    const std::int64_t o = plan.outputs;
    const std::int64_t h = plan.hidden;
    const std::int64_t elements =
        h * pitch_of(plan.channels) + o * pitch_of(plan.hidden) +
        plan.warps * (c + o) * pitch_of(ForwardPlan::voxels(plan.outputs));  // channels_last: less
    return 2 * elements + 4 * (2 * c + o + h);
}

std::int64_t shared_bytes(const BackwardPlan& plan) {
    const std::int64_t c = plan.channels;
    const std::int64_t o = plan.outputs;
    const std::int64_t h = plan.hidden;
    constexpr int kVoxels = BackwardPlan::kVoxels;
    const auto tile = [](int channels) {  // in the memory format that takes more
        return std::int64_t{std::max(channels * pitch_of(kVoxels), kVoxels * pitch_of(channels))};
    };
    const std::int64_t elements = h * pitch_of(plan.channels) + o * pitch_of(plan.hidden) + 4 * tile(plan.channels) +
                                  2 * tile(plan.outputs) + h * pitch_of(kVoxels);
    return 2 * elements + 4 * (4 * c + 3 * h);
}

std::optional<ForwardPlan> plan_forward(const Extents& extents, bool channels_last, int architecture) {
    ForwardPlan plan{};
    // Of more contiguous channels a library's products are faster (measured on an H200): products.h.
    if (!channels_last && std::max(extents.channels, extents.outputs) > ForwardPlan::kMostContiguousChannels) {
        return std::nullopt;
    }
    if (architecture < 80 || extents.hidden > 4096) return std::nullopt;
    if (!choose_instance(extents, plan.channels, plan.outputs)) return std::nullopt;
    plan.hidden = static_cast<int>(round_up(extents.hidden, 16));
    const std::int64_t most = bytes_of_block(architecture);
    plan.warps = ForwardPlan::max_warps(plan.channels, plan.outputs);
    while (plan.warps > 0 && shared_bytes(plan) > most) plan.warps -= 2;
    if (plan.warps < 2) return std::nullopt;

    plan.tiles = ceil_div(extents.voxels, ForwardPlan::voxels(plan.outputs));
    const std::int64_t blocks = kProcessors * ForwardPlan::blocks_per_processor(plan.channels, plan.outputs);
    const std::int64_t wanted = ceil_div(blocks, std::max<std::int64_t>(extents.batch, 1));
    plan.parts = static_cast<int>(std::clamp<std::int64_t>(ceil_div(plan.tiles, plan.warps), 1, wanted));
    return plan;
}

std::optional<BackwardPlan> plan_backward(const Extents& extents, int architecture) {
    BackwardPlan plan{};
    if (architecture < 80 || extents.hidden > BackwardPlan::kMostHidden) return std::nullopt;
    // The accumulators of larger ones fill more registers than there are.
    if (!choose_instance(extents, plan.channels, plan.outputs)) return std::nullopt;
    if (plan.channels > 64 || plan.outputs > 64) return std::nullopt;
    plan.rows = BackwardPlan::rows_of_warp(plan.channels, architecture);
    plan.hidden = static_cast<int>(round_up(extents.hidden, BackwardPlan::kHiddenStep));
    const int resident = BackwardPlan::resident_warps(plan.channels, plan.outputs, plan.rows);
    plan.splits = 4;
    while (plan.splits > 1 && plan.warps() > resident / 2) plan.splits /= 2;  // two blocks a multiprocessor, or more
    const std::int64_t most = bytes_of_block(architecture);
    if (shared_bytes(plan) > most) return std::nullopt;

    plan.tiles = ceil_div(extents.voxels, BackwardPlan::kVoxels);
    constexpr std::int64_t kReserved = 1024;  // of each block's shared memory, by the system
    const std::int64_t by_memory = (most + kReserved) / (shared_bytes(plan) + kReserved);
    const std::int64_t by_registers = std::max(resident / plan.warps(), 1);
    const std::int64_t blocks = kProcessors * std::min(by_memory, by_registers);
    const std::int64_t wanted = ceil_div(blocks, std::max<std::int64_t>(extents.batch, 1));
    plan.parts = static_cast<int>(std::clamp<std::int64_t>(plan.tiles, 1, wanted));
    return plan;
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
