// The planes of a tile of a large tensor, one after the other along D, in shared memory ahead of their use: any rows.
//
// A plane has rows of octets of 16-bit elements, the first at (h0, w0) of the volume, w0 four less than a multiple of
// eight; what lies outside of the volume is zero. It is moved in chunks of four elements by asynchronous copies of 8
// bytes.
//
//     direct   rows are whole chunks: they are copied to where the products read them
//     staged   rows begin anywhere (those of a transposed convolution are odd), or the tensor is a gradient that is not
//              written out, and two: what is copied are the aligned 8 bytes in which a chunk begins, as they lie. From
//              these and the next ones a thread picks the chunk's four elements, and computes the gradient, in float,
//              rounded once, for the plane after the one that is multiplied: there is one barrier a plane either way
//
// Which chunks a thread moves is the same for all planes; a table in shared memory says where they come from.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/copy.cuh"
#include "../common/scalar_types.cuh"
#include "plan.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Where planes come from.
struct StridedSource {
    const void* data;  // [volumes, D, H, W]
    AffineGradient affine;
    std::int64_t volumes;
    int d, h, w;
};

template <typename T, bool Staged, bool Mapped>
class StridedPlanes {
  public:
    static_assert(Staged || !Mapped);
    static constexpr int kChunk = 4;
    static constexpr int kStages = StridedTile::stages(Staged);
    static constexpr int kTensors = Mapped ? 2 : 1;

    // Planes from `z` on of volume `volume`, those below `z_end` of which are wanted; `table` takes layout.chunks()
    // numbers.
    __device__ StridedPlanes(const StridedSource& source, const StridedLayout& layout, unsigned char* planes,
                             int* table, std::int64_t volume, int h0, int w0, int z, int z_end)
        : source_(source),
          layout_(layout),
          planes_(planes),
          table_(table),
          volume_at_(volume * source.d),
          plane_size_(source.h * source.w),
          z_(z),
          z_begin_(max(z, 0)),
          z_count_(static_cast<unsigned>(max(min(z_end, source.d) - z_begin_, 0))) {
        if constexpr (Mapped) {
            scale_ = source.affine.scale[volume];
            slope_ = source.affine.slope[volume];
            offset_ = source.affine.offset[volume];
        }
        // A thread writes and reads its own entries of the table: no barrier between.
        for_each_chunk([&](int chunk) {
            const int row = chunk / layout_.row_chunks();
            const int column = chunk - row * layout_.row_chunks();
            const int h = h0 + row;
            const int w = w0 + kChunk * column;
            const int count = column < layout_.used_chunks() ? min(max(source_.w - w, 0), kChunk) : 0;
            // A chunk of a staged plane may lie in the 8 bytes behind those in which it begins.
            const bool some = column < layout_.used_chunks() + (Staged ? 1 : 0) &&
                              static_cast<unsigned>(h) < static_cast<unsigned>(source_.h) && w >= 0 &&
                              w < source_.w + (Staged ? 3 : 0);
            table_[chunk] = some ? h * source_.w + w + (count << kCountBit) : kOutside;
            if (some && count > 0) return;
            for (int plane = 0; plane < (Staged ? 2 : kStages); ++plane) {
                *reinterpret_cast<Vector<unsigned, 2>*>(operand(plane) + 8 * chunk) = Vector<unsigned, 2>{};
            }
        });
    }

    // Asks for the first planes; a barrier for the whole block where they are staged.
    __device__ void start() {
        for (int ahead = 0; ahead < kStages - (Staged ? 0 : 1); ++ahead) fill(z_ + ahead, ahead);
        if constexpr (Staged) {
            copy_async_wait<kStages - 1>();
            __syncthreads();
            compute(z_, 0);
        }
    }

    // The next plane, ready for all threads until the next call.
    __device__ const unsigned char* next() {
        copy_async_wait<kStages - 2>();
        __syncthreads();  // the plane is there, and nobody reads the one before it any more
        const int behind = stage_ + 1 == kStages ? 0 : stage_ + 1;
        const unsigned char* plane;
        if constexpr (Staged) {
            fill(z_ + kStages, stage_);
            compute(z_ + 1, behind);
            plane = operand(z_ & 1);
        } else {
            fill(z_ + kStages - 1, stage_ == 0 ? kStages - 1 : stage_ - 1);
            plane = operand(stage_);
        }
        stage_ = behind;
        ++z_;
        return plane;
    }

    // To be called after the last plane.
    __device__ void finish() { copy_async_wait<0>(); }

    // Whether plane z is wanted and in the volume; if not, there is nothing in it.
    __device__ bool has(int z) const { return static_cast<unsigned>(z - z_begin_) < z_count_; }

  private:
    static constexpr int kOutside = -1;
    static constexpr int kCountBit = 28;  // of an entry: how many elements of the chunk are in the row

    template <typename Function>
    __device__ void for_each_chunk(Function&& function) const {
        const int chunks = layout_.chunks();
#pragma unroll 1
        for (int chunk = static_cast<int>(threadIdx.x); chunk < chunks; chunk += static_cast<int>(blockDim.x)) {
            function(chunk);
        }
    }

    // The same, so many at once.
    template <int AtOnce, typename Function>
    __device__ void for_each_entry(Function&& function) const {
        const int chunks = layout_.chunks();
        const auto threads = static_cast<int>(blockDim.x);
#pragma unroll 1
        for (int first = static_cast<int>(threadIdx.x); first < chunks; first += AtOnce * threads) {
            int entries[AtOnce];
#pragma unroll
            for (int i = 0; i < AtOnce; ++i) {
                entries[i] = first + i * threads < chunks ? table_[first + i * threads] : kOutside;
            }
#pragma unroll
            for (int i = 0; i < AtOnce; ++i) {
                if (entries[i] != kOutside) function(first + i * threads, entries[i]);
            }
        }
    }

    // The planes that products read, and those that copies go to: the same, or behind them.
    __device__ unsigned char* operand(int plane) const { return planes_ + plane * layout_.plane_bytes(); }
    __device__ unsigned char* copied(int stage, int tensor) const {
        return operand(Staged ? 2 + stage * kTensors + tensor : stage);
    }

    __device__ const T* tensor(int which) const {
        return static_cast<const T*>(which == 0 ? source_.data : source_.affine.output);
    }

    __device__ std::int64_t plane_at(int z) const { return (volume_at_ + z) * plane_size_; }

    static __device__ int from(int entry) { return entry & ((1 << kCountBit) - 1); }

    __device__ void fill(int z, int stage) const {
        if (has(z)) {
            const std::int64_t at = plane_at(z);
#pragma unroll
            for (int which = 0; which < kTensors; ++which) {
                const T* const data = tensor(which) + at;
                unsigned char* const to = copied(stage, which);
                if (!Staged) {
                    for_each_entry<4>([&](int chunk, int entry) { copy_async<8>(to + 8 * chunk, data + from(entry)); });
                } else if (at >= kChunk && at + plane_size_ + 2 * kChunk <= source_.volumes * source_.d * plane_size_) {
                    for_each_entry<4>([&](int chunk, int entry) {
                        const auto address = reinterpret_cast<std::uintptr_t>(data + from(entry)) & ~std::uintptr_t{7};
                        copy_async<8>(to + 8 * chunk, reinterpret_cast<const void*>(address));
                    });
                } else {
                    fill_at_the_end(which, at, to);
                }
            }
        }
        copy_async_commit();
    }

    // The same at the ends of the tensor, where the aligned 8 bytes may reach out of it: element by element.
    __device__ void fill_at_the_end(int which, std::int64_t at, unsigned char* to) const {
        for_each_chunk([&](int chunk) {
            if (table_[chunk] == kOutside) return;
            const std::int64_t begin = at + from(table_[chunk]) - shift(which, at, table_[chunk]);
            Vector<T, kChunk> elements{};
            for (int i = 0; i < kChunk; ++i) {
                const bool in = begin + i >= 0 && begin + i < source_.volumes * source_.d * plane_size_;
                if (in) elements.element[i] = tensor(which)[begin + i];
            }
            *reinterpret_cast<Vector<T, kChunk>*>(to + 8 * chunk) = elements;
        });
    }

    // How many elements of the aligned 8 bytes in which a chunk begins lie before it.
    __device__ int shift(int which, std::int64_t at, int entry) const {
        const auto base = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(tensor(which)) / sizeof(T));
        return static_cast<int>((base + static_cast<unsigned>(at) + static_cast<unsigned>(entry)) % kChunk);
    }

    __device__ static void pick(const unsigned char* copied, int shift, unsigned (&words)[2]) {
        const auto low = *reinterpret_cast<const Vector<unsigned, 2>*>(copied);
        const auto high = *reinterpret_cast<const Vector<unsigned, 2>*>(copied + 8);
        const bool further = shift >= 2;
        const unsigned first = further ? low.element[1] : low.element[0];
        const unsigned second = further ? high.element[0] : low.element[1];
        const unsigned third = further ? high.element[1] : high.element[0];
        const unsigned selector = shift % 2 == 1 ? 0x5432 : 0x3210;
        words[0] = __byte_perm(first, second, selector);
        words[1] = __byte_perm(second, third, selector);
    }

    // The plane z that products read, from what was copied.
    __device__ void compute(int z, int stage) const {
        if (!has(z)) return;
        const std::int64_t at = plane_at(z);
        unsigned char* const to = operand(z & 1);
        for_each_entry<2>([&](int chunk, int entry) {
            const int count = entry >> kCountBit;
            if (count == 0) return;
            unsigned words[2];
            pick(copied(stage, 0) + 8 * chunk, shift(0, at, entry), words);
            if constexpr (Mapped) {
                unsigned outputs[2];
                pick(copied(stage, 1) + 8 * chunk, shift(1, at, entry), outputs);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float values[2];
                    float others[2];
                    unpack<T>(words[i], values[0], values[1]);
                    unpack<T>(outputs[i], others[0], others[1]);
                    words[i] = round_pair<T>(fmaf(scale_, values[0], fmaf(slope_, others[0], offset_)),
                                             fmaf(scale_, values[1], fmaf(slope_, others[1], offset_)));
                }
            }
            if (count < kChunk) {  // the row ends here
                if (count == 1) words[0] &= 0xffffu;
                words[1] = count == 3 ? words[1] & 0xffffu : 0;
            }
            *reinterpret_cast<Vector<unsigned, 2>*>(to + 8 * chunk) = {words[0], words[1]};
        });
    }

    const StridedSource& source_;
    StridedLayout layout_;
    unsigned char* planes_;
    int* table_;
    std::int64_t volume_at_;  // planes before this volume
    int plane_size_;
    int z_, z_begin_;
    unsigned z_count_;
    int stage_ = 0;
    float scale_ = 0.0f;
    float slope_ = 0.0f;
    float offset_ = 0.0f;
};

}  // namespace mednext_ops::cuda::depthwise_conv3d
