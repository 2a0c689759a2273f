// The planes of an input that a task is reading: floats, voxel by voxel, kLanes channels each, rows padded with zeros.
#pragma once

#include "../simd/block.h"
#include "axis.h"

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {
namespace {

// Walks the voxels of rows that lie one after another in a tensor and `width` apart from each other in a buffer.
struct RowWalk {
    std::int64_t length;  // voxels of a row of the tensor
    std::int64_t width;   // voxels of a row of the buffer

    // Calls function(i, offset in the buffer) for voxels begin + i, 0 <= i < count.
    template <typename Function>
    MEDNEXT_OPS_INLINE void operator()(std::int64_t begin, std::int64_t count, Function&& function) const {
        std::int64_t row = begin / length;
        std::int64_t column = begin % length;
        if (count == kLanes && column + kLanes <= length) {
            const std::int64_t offset = row * width + column;
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) function(i, (offset + i) * kLanes);
            return;
        }
        for (int i = 0; i < count; ++i) {
            function(i, (row * width + column) * kLanes);
            if (++column == length) {
                column = 0;
                ++row;
            }
        }
    }
};

class Ring {
  public:
    // `rows` rows of `width` voxels in each of `slots` planes, of which `front` voxels of zeros come first.
    Ring(float* planes, std::int64_t slots, std::int64_t rows, std::int64_t front, std::int64_t width,
         std::int64_t row_length)
        : planes_(planes), slots_(slots), rows_(rows), front_(front), width_(width), row_length_(row_length) {
        const std::int64_t back = width - front - row_length;
        for (std::int64_t row = 0; row < slots * rows; ++row) {
            float* begin = planes + row * width * kLanes;
            for (std::int64_t i = 0; i < front; ++i) store(begin + i * kLanes, Vector{});
            float* end = begin + (front + row_length) * kLanes;
            for (std::int64_t i = 0; i < back; ++i) store(end + i * kLanes, Vector{});
        }
    }

    // Starts anew with rows [first, first + count) of a plane of `height` rows.
    void restart(std::int64_t first, std::int64_t count, std::int64_t height) {
        first_row_ = first;
        row_count_ = count;
        height_ = height;
        next_ = 0;
    }

    // Reads those of planes [begin, end) that are not there yet; `begin` never decreases.
    template <typename T>
    MEDNEXT_OPS_INLINE void require(const Reader<T>& reader, std::int64_t begin, std::int64_t end) {
        if (next_ < begin) next_ = begin;
        for (; next_ < end; ++next_) read_plane(reader, next_);
    }

    // The first voxel of an input row; the zeros lie before it.
    MEDNEXT_OPS_INLINE const float* row(std::int64_t plane, std::int64_t row) const {
        return planes_ + ((plane % slots_ * rows_ + row - first_row_) * width_ + front_) * kLanes;
    }

  private:
    template <typename T>
    MEDNEXT_OPS_INLINE void read_plane(const Reader<T>& reader, std::int64_t plane) {
        float* to = planes_ + (plane % slots_ * rows_ * width_ + front_) * kLanes;
        const std::int64_t first = (plane * height_ + first_row_) * row_length_;
        const RowWalk walk{row_length_, width_};
        for_each_block(row_count_ * row_length_, [&](std::int64_t voxel, std::int64_t count, std::int64_t) {
            Vector block[kLanes];
            reader.read(first + voxel, count, block);
            walk(voxel, count, [&](int i, std::int64_t offset) { store(to + offset, block[i]); });
        });
    }

    float* planes_;
    std::int64_t slots_, rows_, front_, width_, row_length_;
    std::int64_t first_row_ = 0, row_count_ = 0, height_ = 0, next_ = 0;
};

}  // namespace
}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
