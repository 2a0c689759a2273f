// A block is kLanes voxels of kLanes channels, in registers: block[voxel] holds one channel a lane, as all arithmetic
// here wants it. Reading and writing one hides element type, memory format, and the ends of channels and voxels.
#pragma once

#include "../common/volume.h"
#include "vector.h"

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {
namespace {

// Voxels ahead of a block whose lines are fetched while it is worked on. The channels of a contiguous volume are as
// many streams, often a power of two apart: more than the machine follows by itself.
constexpr std::int64_t kAhead = 2 * kLanes;

// The first `count` lanes; the others are zero.
template <typename T>
MEDNEXT_OPS_INLINE Vector load_first(const T* from, std::int64_t count) {
    if (count == kLanes) return load(from);
    T values[kLanes] = {};
    for (std::int64_t lane = 0; lane < count; ++lane) values[lane] = from[lane];
    return load(values);
}

template <typename T>
MEDNEXT_OPS_INLINE void store_first(T* to, Vector value, std::int64_t count) {
    if (count == kLanes) return store(to, value);
    T values[kLanes];
    store(values, value);
    for (std::int64_t lane = 0; lane < count; ++lane) to[lane] = values[lane];
}

// Voxels [voxel, voxel + count) of channels [channel, channel + kLanes); zero where there is no such channel or voxel.
template <typename T>
MEDNEXT_OPS_INLINE void load_block(const Volume& volume, std::int64_t sample, std::int64_t channel, std::int64_t voxel,
                                   std::int64_t count, Vector (&block)[kLanes]) {
    const T* data = static_cast<const T*>(volume.data);
    const std::int64_t channels = at_most(kLanes, volume.channels - channel);
    if (volume.channels_last) {
        const T* from = data + (sample * volume.voxels + voxel) * volume.channels + channel;
        if (channels == kLanes && count == kLanes) {
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) block[i] = load(from + i * volume.channels);
            return;
        }
        for (int i = 0; i < kLanes; ++i) {
            block[i] = i < count ? load_first(from + i * volume.channels, channels) : Vector{};
        }
        return;
    }
    const T* from = data + (sample * volume.channels + channel) * volume.voxels + voxel;
    if (channels == kLanes && count == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
            block[i] = load(from + i * volume.voxels);
            __builtin_prefetch(from + i * volume.voxels + kAhead);
        }
    } else {
        for (int i = 0; i < kLanes; ++i) {
            block[i] = i < channels ? load_first(from + i * volume.voxels, count) : Vector{};
        }
    }
    transpose(block);
}

template <typename T>
MEDNEXT_OPS_INLINE void store_block(const Volume& volume, std::int64_t sample, std::int64_t channel, std::int64_t voxel,
                                    std::int64_t count, Vector (&block)[kLanes]) {
    T* data = static_cast<T*>(volume.data);
    const std::int64_t channels = at_most(kLanes, volume.channels - channel);
    if (volume.channels_last) {
        T* to = data + (sample * volume.voxels + voxel) * volume.channels + channel;
        if (channels == kLanes && count == kLanes) {
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) store(to + i * volume.channels, block[i]);
            return;
        }
        for (int i = 0; i < count; ++i) store_first(to + i * volume.channels, block[i], channels);
        return;
    }
    transpose(block);
    T* to = data + (sample * volume.channels + channel) * volume.voxels + voxel;
    if (channels == kLanes && count == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
            store(to + i * volume.voxels, block[i]);
            __builtin_prefetch(to + i * volume.voxels + kAhead, 1);
        }
        return;
    }
    for (int i = 0; i < channels; ++i) store_first(to + i * volume.voxels, block[i], count);
}

// The sum of a block and the same block of `add`, which is added as it lies: where both volumes are contiguous, after
// the transposition.
template <typename T>
MEDNEXT_OPS_INLINE void store_sum(const Volume& volume, const Volume& add, std::int64_t sample, std::int64_t channel,
                                  std::int64_t voxel, std::int64_t count, Vector (&block)[kLanes]) {
    if (volume.channels_last || add.channels_last || count < kLanes || volume.channels - channel < kLanes) {
        Vector other[kLanes];
        load_block<T>(add, sample, channel, voxel, count, other);
        for (int i = 0; i < kLanes; ++i) block[i] += other[i];
        return store_block<T>(volume, sample, channel, voxel, count, block);
    }
    transpose(block);
    const std::int64_t first = (sample * volume.channels + channel) * volume.voxels + voxel;
    const T* from = static_cast<const T*>(add.data) + first;
    T* to = static_cast<T*>(volume.data) + first;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
        store(to + i * volume.voxels, block[i] + load(from + i * volume.voxels));
        __builtin_prefetch(from + i * volume.voxels + kAhead);
        __builtin_prefetch(to + i * volume.voxels + kAhead, 1);
    }
}

// Reads blocks of one sample and one block of channels of a Source, its affine map applied.
template <typename T>
class Reader {
  public:
    MEDNEXT_OPS_INLINE Reader(const Source& source, std::int64_t sample, std::int64_t channel)
        : source_(source), sample_(sample), channel_(channel) {
        if (source.scale == nullptr) return;
        const std::int64_t first = sample * source.values.channels + channel;
        const std::int64_t channels = at_most(kLanes, source.values.channels - channel);
        scale_ = load_first(source.scale + first, channels);
        slope_ = load_first(source.slope + first, channels);
        offset_ = load_first(source.offset + first, channels);
    }

    MEDNEXT_OPS_INLINE void read(std::int64_t voxel, std::int64_t count, Vector (&block)[kLanes]) const {
        load_block<T>(source_.values, sample_, channel_, voxel, count, block);
        if (source_.scale == nullptr) return;
        Vector output[kLanes];
        load_block<T>(source_.output, sample_, channel_, voxel, count, output);
        for (int i = 0; i < kLanes; ++i) block[i] = fma(scale_, block[i], fma(slope_, output[i], offset_));
    }

  private:
    const Source& source_;
    std::int64_t sample_;
    std::int64_t channel_;
    Vector scale_ = {};
    Vector slope_ = {};
    Vector offset_ = {};
};

// Cuts `voxels` into blocks and calls function(first voxel, how many, how many of them came before). The last block of
// a run that is long enough reaches back, so that it is full as well: repeated voxels are only read or written again.
template <typename Function>
MEDNEXT_OPS_INLINE void for_each_block(std::int64_t voxels, Function&& function) {
    for (std::int64_t voxel = 0; voxel < voxels; voxel += kLanes) {
        const std::int64_t begin = voxel + kLanes <= voxels || voxels < kLanes ? voxel : voxels - kLanes;
        function(begin, at_most(kLanes, voxels - begin), voxel - begin);
    }
}

}  // namespace
}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
