// A tile's way between a tensor and its buffer [voxel][channel], and sums over its voxels.
#pragma once

#include "../simd/block.h"
#include "bottleneck.h"

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {
namespace {

struct Span {
    std::int64_t sample, first, count;  // voxels first <= v < first + count of a sample
};

// function(block, channel) may change what was read. Rows from `count` up to `rows`, and channels that the tensor does
// not have, become zero.
template <typename T, typename Function>
MEDNEXT_OPS_INLINE void read_tile(const Volume& volume, const Span& span, std::int64_t rows, std::int64_t width,
                                  float* to, Function&& function) {
    for (std::int64_t channel = 0; channel < width; channel += kLanes) {
        if (channel >= volume.channels) {
            for (std::int64_t v = 0; v < span.count; ++v) store(to + v * width + channel, Vector{});
        } else {
            for_each_block(span.count, [&](std::int64_t voxel, std::int64_t count, std::int64_t) {
                Vector block[kLanes];
                load_block<T>(volume, span.sample, channel, span.first + voxel, count, block);
                function(block, channel);
                for (std::int64_t i = 0; i < count; ++i) store(to + (voxel + i) * width + channel, block[i]);
            });
        }
        for (std::int64_t v = span.count; v < rows; ++v) store(to + v * width + channel, Vector{});
    }
}

// Writes a tile, or the sum of it and of `add`, if there is one.
template <typename T>
MEDNEXT_OPS_INLINE void write_tile(const Volume& volume, const Volume& add, const Span& span, std::int64_t width,
                                   const float* from) {
    for (std::int64_t channel = 0; channel < volume.channels; channel += kLanes) {
        for_each_block(span.count, [&](std::int64_t voxel, std::int64_t count, std::int64_t) {
            Vector block[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                block[i] = i < count ? load(from + (voxel + i) * width + channel) : Vector{};
            }
            if (add.data == nullptr) {
                store_block<T>(volume, span.sample, channel, span.first + voxel, count, block);
            } else {
                store_sum<T>(volume, add, span.sample, channel, span.first + voxel, count, block);
            }
        });
    }
}

// to[channel] += the sum over the tile's voxels of value(load(from)), for every channel. Eight sums that are then added
// in pairs: a sequence of 128 would have three times the error of PyTorch's sum.
template <typename Function>
MEDNEXT_OPS_INLINE void add_over_voxels(const float* from, std::int64_t count, std::int64_t width, float* to,
                                        Function&& value) {
    constexpr int kSums = 8;
    for (std::int64_t channel = 0; channel < width; channel += kLanes) {
        Vector sums[kSums] = {};
        std::int64_t v = 0;
        for (; v + kSums <= count; v += kSums) {
#pragma GCC unroll 8
            for (int i = 0; i < kSums; ++i) sums[i] += value(load(from + (v + i) * width + channel));
        }
        for (int i = 0; v + i < count; ++i) sums[i] += value(load(from + (v + i) * width + channel));
#pragma GCC unroll 3
        for (int half = kSums / 2; half > 0; half /= 2) {
            for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
        }
        store(to + channel, load(to + channel) + sums[0]);
    }
}

}  // namespace
}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
