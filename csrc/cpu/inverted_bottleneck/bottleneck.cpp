#include "bottleneck.h"

#include <algorithm>

namespace mednext_ops::cpu::inverted_bottleneck {
namespace {

// Floats of a tile's buffers: half a second-level cache, the weights have the other half.
constexpr std::int64_t kTileFloats = 96 * 1024;

// At most this many voxels, since so many products one register adds up in sequence; at least enough to reuse weights.
constexpr std::int64_t kMostVoxels = 128;
constexpr std::int64_t kFewestVoxels = 32;

// Slots of a sample: enough for many threads, as long as they are small.
constexpr std::int64_t kMostSlots = 64;
constexpr std::int64_t kSlotsFloats = 4 * 1024 * 1024;

constexpr std::int64_t round_up(std::int64_t value, std::int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

}  // namespace

Plan plan(const Shape& shape, int lanes) {
    const std::int64_t unit = 2 * lanes;  // the width of a panel; the height of a block of results divides it
    Plan plan{};
    plan.channels = round_up(shape.channels, unit);
    plan.hidden = round_up(shape.hidden, unit);
    plan.outputs = round_up(shape.outputs, unit);
    const std::int64_t floats_per_voxel = 2 * plan.channels + 2 * plan.outputs + 3 * plan.hidden;
    plan.tile_voxels = std::clamp(kTileFloats / floats_per_voxel / 8 * 8, kFewestVoxels, kMostVoxels);
    plan.tiles = (shape.voxels + plan.tile_voxels - 1) / plan.tile_voxels;
    const std::int64_t wanted =
        std::clamp<std::int64_t>(kSlotsFloats / std::max<std::int64_t>(1, plan.slot_floats()), 2, kMostSlots);
    plan.tiles_per_slot = std::max<std::int64_t>(1, (plan.tiles + wanted - 1) / wanted);
    plan.slots = (plan.tiles + plan.tiles_per_slot - 1) / plan.tiles_per_slot;
    plan.scratch_floats = plan.tile_voxels * floats_per_voxel;
    return plan;
}

void pack(const float* source, std::int64_t rows, std::int64_t columns, std::int64_t row, std::int64_t column,
          std::int64_t panel, std::int64_t begin, std::int64_t end, float* packed) {
    for (std::int64_t p = begin; p < end; ++p) {
        const std::int64_t width = std::clamp<std::int64_t>(columns - p * panel, 0, panel);
        for (std::int64_t k = 0; k < rows; ++k) {
            float* to = packed + (p * rows + k) * panel;
            const float* from = source + k * row + p * panel * column;
            for (std::int64_t n = 0; n < width; ++n) to[n] = from[n * column];
            for (std::int64_t n = width; n < panel; ++n) to[n] = 0.0f;
        }
    }
}

void add_slots(const Plan& plan, const float* slots, std::int64_t sample, std::int64_t offset, std::int64_t rows,
               std::int64_t columns, std::int64_t padded_columns, float* to) {
    const float* first = slots + sample * plan.slots * plan.slot_floats() + offset;
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t column = 0; column < columns; ++column) {
            const float* from = first + row * padded_columns + column;
            double sum = 0;
            for (std::int64_t slot = 0; slot < plan.slots; ++slot) sum += from[slot * plan.slot_floats()];
            to[row * columns + column] = static_cast<float>(sum);
        }
    }
}

}  // namespace mednext_ops::cpu::inverted_bottleneck
