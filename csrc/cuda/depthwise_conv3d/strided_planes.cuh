// The planes of a tile of a large tensor, one after the other along D, in shared memory ahead of their use: any rows.
//
// A plane has rows of octets of 16-bit elements, the first at (h0, w0) of the volume, w0 a multiple of four; what lies
// outside of the volume is zero. It is moved in chunks of four elements by asynchronous copies of 8 bytes, two a
// thread, half a row apart, so that neighbours copy neighbours.
//
//     direct   rows are whole chunks: they are copied to where the products read them
//     staged   rows begin anywhere (those of a transposed convolution are odd), or the tensor is a gradient that is not
//              written out, and two: what is copied are the aligned 8 bytes in which a chunk begins, as they lie. From
//              these and the next ones a thread picks the chunk's four elements, and computes the gradient, in float,
//              rounded once, for the plane after the one that is multiplied: there is one barrier a plane either way
//
// A thread moves the same columns in every plane, some rows apart. What it needs to know of them waits in
// shared memory, where it costs the products no registers.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/copy.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_load.cuh"
#include "plan.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Where planes come from.
struct StridedSource {
    const void* data;  // [volumes, D, H, W]
    AffineGradient affine;
    std::int64_t volumes;
    int d, h, w;

    StridedSource() = default;
    explicit StridedSource(const ConvolutionProblem& p)
        : data(p.input),
          affine(p.affine),
          volumes(p.batch * p.channels),
          d(static_cast<int>(p.input_size.d)),
          h(static_cast<int>(p.input_size.h)),
          w(static_cast<int>(p.input_size.w)) {}
};

// How they come in, as above.
enum class StridedFill { direct, staged, mapped };

// A thread asks for `AtOnce` rows without a look at how many it has.
template <typename T, bool Staged, bool Mapped, int AtOnce>
class StridedPlanes {
  public:
    static_assert(Staged || !Mapped);
    static constexpr int kChunk = 4;
    static constexpr int kStages = StridedTile::stages(Staged, Mapped);
    static constexpr int kTensors = Mapped ? 2 : 1;

    // Numbers that a thread keeps in shared memory.
    static constexpr int kKept = 12;

    // Planes from `z` on of volume `volume`, those below `z_end` of which are wanted; `kept` takes kKept a thread.
    template <typename Layout>
    __device__ StridedPlanes(const StridedSource& source, const Layout& layout, unsigned char* planes, int* kept,
                             std::int64_t volume, int h0, int w0, int z, int z_end)
        : source_(source),
          planes_(planes),
          kept_(kept + 4 * threadIdx.x),
          plane_bytes_(layout.plane_bytes()),
          volume_at_(volume * source.d),
          plane_size_(source.h * source.w),
          z_(z),
          z_begin_(max(z, 0)),
          z_count_(static_cast<unsigned>(max(min(z_end, source.d) - z_begin_, 0))) {
        // The elements of a staged octet may lie in the 8 bytes behind it.
        const int columns = layout.octets() + (Staged ? 1 : 0);
        const int column = static_cast<int>(threadIdx.x) % columns;
        const int rows_at_once = static_cast<int>(blockDim.x) / columns;
        int row = static_cast<int>(threadIdx.x) / columns;
        const bool works = row < rows_at_once;
        if (h0 + row < 0) row += (-h0 - row + rows_at_once - 1) / rows_at_once * rows_at_once;
        const int end = min(layout.rows, source.h - h0);
        const int rows = works ? max(end - row + rows_at_once - 1, 0) / rows_at_once : 0;
        const int w = w0 + 2 * kChunk * column;
        const int chunk_w = w0 + kChunk * column;
        const auto rows_of_chunk = [&](int begin) {
            return begin >= 0 && begin < source.w + (Staged ? 3 : 0) ? rows : 0;
        };
        keep({rows_of_chunk(chunk_w), rows_of_chunk(chunk_w + kChunk * columns), (h0 + row) * source.w + chunk_w,
              row * layout.row_bytes() + 8 * column, column < layout.octets() && w < source.w ? rows : 0, w,
              row * layout.row_bytes() + 16 * column, (h0 + row) * source.w});
        half_row_ = 8 * columns;
        from_step_ = rows_at_once * source.w;
        to_step_ = rows_at_once * layout.row_bytes();
    }

    // What lies outside of the volume, for good. A barrier for the whole block must follow.
    __device__ void clear(std::int64_t volume) const {
        if constexpr (Mapped) {
            const AffineGradient& affine = source_.affine;
            const float map[3] = {affine.scale[volume], affine.slope[volume], affine.offset[volume]};
            for (int i = 0; i < 3; ++i) kept_map()[i] = map[i];
            kept_map()[3] = 0.0f;
        }
        const int bytes = plane_bytes_ * (Staged ? 2 : kStages);
        for (int at = static_cast<int>(threadIdx.x) * 16; at < bytes; at += static_cast<int>(blockDim.x) * 16) {
            *reinterpret_cast<Vector<unsigned, 4>*>(planes_ + at) = Vector<unsigned, 4>{};
        }
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
    // The rows of a thread: in how many it copies its first and its second chunk, where the first row's first chunk
    // lies in a plane of the tensor, in elements, and in one of the tile, in bytes; in how many it computes an octet,
    // that octet's column, where it lies in a plane of the tile, and where its first row begins in one of the tensor.
    struct Rows {
        int first, second, from, to;
        int octets, column, octet_to, row_from;
    };

    __device__ int* kept(int which) const { return kept_ + 4 * which * static_cast<int>(blockDim.x); }
    __device__ float* kept_map() const { return reinterpret_cast<float*>(kept(2)); }

    __device__ void keep(const Rows& rows) const {
        const int values[8] = {rows.first,  rows.second, rows.from,     rows.to,
                               rows.octets, rows.column, rows.octet_to, rows.row_from};
        for (int i = 0; i < 8; ++i) kept(i / 4)[i % 4] = values[i];
    }

    // The planes that products read, and those that copies go to: the same, or behind them.
    __device__ unsigned char* operand(int plane) const { return planes_ + plane * plane_bytes_; }
    __device__ unsigned char* copied(int stage, int tensor) const {
        return operand(Staged ? 2 + stage * kTensors + tensor : stage);
    }

    __device__ const T* tensor(int which) const {
        return static_cast<const T*>(which == 0 ? source_.data : source_.affine.output);
    }

    __device__ std::int64_t plane_at(int z) const { return (volume_at_ + z) * plane_size_; }

    __device__ void fill(int z, int stage) const {
        if (has(z)) {
            const std::int64_t at = plane_at(z);
            int rows[4];  // as struct Rows begins
            load_shared_again(rows, kept(0));
#pragma unroll
            for (int which = 0; which < kTensors; ++which) {
                unsigned char* const to = copied(stage, which) + rows[3];
                if (!Staged || (at >= kChunk && at + plane_size_ + 2 * kChunk <= elements())) {
                    copy(reinterpret_cast<std::uintptr_t>(tensor(which) + (at + rows[2])), to, rows[0], rows[1]);
                } else {
                    copy_at_the_end(which, at + rows[2], to, rows[0]);
                    copy_at_the_end(which, at + rows[2] + half_row_ / 2, to + half_row_, rows[1]);
                }
            }
        }
        copy_async_commit();
    }

    __device__ void copy(std::uintptr_t from, unsigned char* to, int rows_of_first, int rows_of_second) const {
        const auto step = static_cast<unsigned>(from_step_) * static_cast<unsigned>(sizeof(T));
        const int rows = max(rows_of_first, rows_of_second);
#pragma unroll 1
        for (int row = 0; row < rows; row += AtOnce) {
#pragma unroll
            for (int i = 0; i < AtOnce; ++i, from += step, to += to_step_) {
                const auto* const begin =
                    reinterpret_cast<const unsigned char*>(Staged ? from & ~std::uintptr_t{7} : from);
                copy_async_if<8>(row + i < rows_of_first, to, begin);
                copy_async_if<8>(row + i < rows_of_second, to + half_row_, begin + half_row_);
            }
        }
    }

    // The same at the ends of the tensor, where the aligned 8 bytes may reach out of it: element by element.
    __device__ void copy_at_the_end(int which, std::int64_t at, unsigned char* to, int rows) const {
#pragma unroll 1
        for (int i = 0; i < rows; ++i, at += from_step_, to += to_step_) {
            const std::int64_t begin = at - shift(which, at);
            Vector<T, kChunk> chunk{};
#pragma unroll
            for (int j = 0; j < kChunk; ++j) {
                if (begin + j >= 0 && begin + j < elements()) chunk.element[j] = tensor(which)[begin + j];
            }
            *reinterpret_cast<Vector<T, kChunk>*>(to) = chunk;
        }
    }

    __device__ std::int64_t elements() const { return source_.volumes * source_.d * plane_size_; }

    // How many elements of the aligned 8 bytes in which a chunk at element `at` begins lie before it.
    __device__ int shift(int which, std::int64_t at) const {
        const auto base = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(tensor(which)) / sizeof(T));
        return static_cast<int>((base + static_cast<unsigned>(at)) % kChunk);
    }

    // Eight elements from the `shift` % 4th on.
    __device__ static void pick(const unsigned char* copied, int shift, unsigned (&words)[4]) {
        const auto first = *reinterpret_cast<const Vector<unsigned, 4>*>(copied);
        const auto last = *reinterpret_cast<const Vector<unsigned, 2>*>(copied + 16);
        const unsigned selector = (shift & 1) != 0 ? 0x5432 : 0x3210;
        const bool further = (shift & 2) != 0;
        const auto word = [&](int i) { return i < 4 ? first.element[i < 4 ? i : 0] : last.element[i < 4 ? 0 : i - 4]; };
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words[i] = __byte_perm(further ? word(i + 1) : word(i), further ? word(i + 2) : word(i + 1), selector);
        }
    }

    // The plane z that products read, from what was copied: octets, each by one thread.
    __device__ void compute(int z, int stage) const {
        if (!has(z)) return;
        int rows[4];  // as struct Rows ends
        load_shared_again(rows, kept(1));
        float map[4];  // scale, slope and offset
        if constexpr (Mapped) load_shared_again(map, kept_map());
        unsigned whole[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const auto in = [&](int column) {
                return static_cast<unsigned>(column) < static_cast<unsigned>(source_.w);
            };
            whole[i] = (in(rows[1] + 2 * i) ? 0xffffu : 0u) | (in(rows[1] + 2 * i + 1) ? 0xffff0000u : 0u);
        }
        const unsigned char* from = copied(stage, 0) + rows[2];
        unsigned char* to = operand(z & 1) + rows[2];
        int shifts[kTensors];
#pragma unroll
        for (int which = 0; which < kTensors; ++which) shifts[which] = shift(which, plane_at(z) + rows[3]);
#pragma unroll 1
        for (int i = 0; i < rows[0]; ++i) {
            unsigned words[4];
            pick(from, shifts[0], words);
            if constexpr (Mapped) {
                unsigned outputs[4];
                pick(from + plane_bytes_, shifts[kTensors - 1], outputs);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float values[2];
                    float others[2];
                    unpack<T>(words[j], values[0], values[1]);
                    unpack<T>(outputs[j], others[0], others[1]);
                    words[j] = round_pair<T>(fmaf(map[0], values[0], fmaf(map[1], others[0], map[2])),
                                             fmaf(map[0], values[1], fmaf(map[1], others[1], map[2])));
                }
            }
            *reinterpret_cast<Vector<unsigned, 4>*>(to) = {words[0] & whole[0], words[1] & whole[1],
                                                           words[2] & whole[2], words[3] & whole[3]};
            from += to_step_;
            to += to_step_;
#pragma unroll
            for (int which = 0; which < kTensors; ++which) shifts[which] += from_step_;
        }
    }

    const StridedSource& source_;
    unsigned char* planes_;
    int* kept_;
    int plane_bytes_;
    std::int64_t volume_at_;  // planes before this volume
    int plane_size_;
    int z_, z_begin_;
    unsigned z_count_;
    int half_row_;             // bytes from a chunk of this thread to its other one
    int from_step_, to_step_;  // from a row of this thread to the next one, in elements and bytes
    int stage_ = 0;
};

}  // namespace mednext_ops::cuda::depthwise_conv3d
