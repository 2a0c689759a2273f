// A tile of a volume, plane after plane along D, in shared memory ahead of its use: a ring of planes and three fills.
//
// A plane has `rows` rows of `octets` octets of 16-bit elements, the first at (h0, w0) of the volume, w0 a multiple of
// four; what lies outside of the volume is zero.
//
//     elements   each thread loads and stores element by element: any extent, any alignment
//     async      copies of 8 bytes that nobody waits for until the plane's turn: W a multiple of 4 (sm_80)
//     boxes      one thread asks the copy engine for the plane: W a multiple of 8 (sm_90)
//
// A gradient that is not written out (AffineGradient) is two tensors. `elements` computes it on the way; the others
// bring both into the ring and compute it, in float, rounded once, from there into one of two operand planes.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/copy.cuh"
#include "../common/opaque.cuh"
#include "../common/scalar_types.cuh"
#include "../common/shared_memory.cuh"
#include "../common/tma.cuh"
#include "plane_layout.h"
#include "problem.h"

namespace mednext_ops::cuda::depthwise_conv3d {

// Where planes come from; by value in a kernel's parameters.
struct PlaneSource {
    const void* data;  // [N * C, D, H, W]
    AffineGradient affine;
    Fill fill;
    int d, h, w;
    CUtensorMap box;  // of `data`, and of `affine.output`, where the fill is `boxes`
    CUtensorMap box_output;
};

// Four 16-bit elements, copied or computed at once.
constexpr int kChunk = 4;

// `Rings` of the block walk together: their planes are asked for and waited for in the same steps. `OnlyBoxes` is
// compiled for that fill alone: half of the instructions of a step.
template <typename T, int Rings = 1, bool OnlyBoxes = false>
class PlaneRing {
  public:
    static constexpr int kMaxStages = 4;

    // Planes from `z` on of volume `volume`, those from `z_begin` to `z_end` - 1 of which are wanted; `full` are
    // `stages` barriers of the block, used by `boxes`.
    __device__ PlaneRing(const PlaneSource& source, const PlaneLayout& layout, unsigned char* planes,
                         std::uint64_t* full, std::int64_t volume, int h0, int w0, int z, int z_begin, int z_end)
        : source_(source),
          layout_(layout),
          planes_(planes),
          full_(full),
          volume_(volume),
          h0_(h0),
          w0_(w0),
          z_(z),
          z_begin_(max(z_begin, 0)),
          z_count_(static_cast<unsigned>(max(min(z_end, source.d) - z_begin_, 0))) {}

    // Asks for the first planes. The block must pass a barrier before it goes on.
    __device__ void start() {
        initialise();
        for (int ahead = 0; ahead < layout_.stages - 1; ++ahead) fill(z_ + ahead, ahead);
    }

    // The same for rings that walk together: in the order in which they are waited for.
    __device__ static void start(PlaneRing& first, PlaneRing& second) {
        first.initialise();
        second.initialise();
        for (int ahead = 0; ahead < first.layout_.stages - 1; ++ahead) {
            first.fill(first.z_ + ahead, ahead);
            second.fill(second.z_ + ahead, ahead);
        }
    }

    // The next plane, ready for all threads until the next call; null where it is not wanted or outside of the volume.
    __device__ const unsigned char* next() {
        const bool inside = is_inside();
        arrive();
        __syncthreads();  // the plane is there, and nobody reads the one before it any more
        const unsigned char* plane = turn();
        return inside ? plane : nullptr;
    }

    // Whether the next plane is wanted and in the volume; if not, there is nothing in it.
    __device__ bool is_inside() const { return is_inside(z_); }

    // The two halves of `next`, for rings that share the barrier between them. First: this thread's part of the next
    // plane is there.
    __device__ void arrive() {
        const bool inside = is_inside(z_);
        if (fill_is(Fill::async)) {
            switch (layout_.stages) {
                case kMaxStages:
                    copy_async_wait<Rings*(kMaxStages - 2)>();
                    break;
                case kMaxStages - 1:
                    copy_async_wait<Rings*(kMaxStages - 3)>();
                    break;
                default:
                    copy_async_wait<0>();
            }
        } else if (fill_is(Fill::boxes) && inside) {
            mbarrier_wait(full_ + stage_, phases_ >> stage_ & 1);
            phases_ ^= 1u << stage_;
        }
        if (layout_.staged && inside) compute(stage_plane(stage_), operand_plane());
    }

    // Second, after the barrier: the plane before it makes room for one further on.
    __device__ const unsigned char* turn() {
        const unsigned char* plane = layout_.staged ? operand_plane() : stage_plane(stage_);
        const int free = stage_ == 0 ? layout_.stages - 1 : stage_ - 1;
        fill(z_ + layout_.stages - 1, free);
        stage_ = stage_ + 1 == layout_.stages ? 0 : stage_ + 1;
        ++z_;
        return plane;
    }

    // To be called after the last plane, whether or not it was used.
    __device__ void finish() {
        if (fill_is(Fill::async)) copy_async_wait<0>();
    }

  private:
    __device__ void initialise() {
        if (fill_is(Fill::boxes) && threadIdx.x == 0) {
            for (int stage = 0; stage < layout_.stages; ++stage) mbarrier_initialise(full_ + stage, 1);
            mbarrier_initialised();
        }
    }

    __device__ bool fill_is(Fill fill) const {
        if constexpr (OnlyBoxes) return fill == Fill::boxes;
        return source_.fill == fill;
    }

    __device__ bool is_inside(int z) const { return static_cast<unsigned>(z - z_begin_) < z_count_; }

    __device__ unsigned char* operand_plane() const {
        return planes_ + (layout_.ring_planes() + (z_ & 1)) * layout_.plane_bytes();
    }

    __device__ unsigned char* stage_plane(int stage) const {
        return planes_ + stage * (layout_.staged ? 2 : 1) * layout_.plane_bytes();
    }

    // Calls function(offset in a plane, h, w) for each chunk of this thread, the same ones every time.
    template <typename Function>
    __device__ void for_each_chunk(Function&& function) const {
        const int chunks_per_row = 2 * layout_.octets;
        const int threads = static_cast<int>(blockDim.x);
        unsigned thread = threadIdx.x;
        make_opaque(thread);  // what follows from it is cheaper to compute again than to keep
        int row = static_cast<int>(thread) / chunks_per_row;
        int column = static_cast<int>(thread) % chunks_per_row;
        const int rows_further = threads / chunks_per_row;
        const int columns_further = threads % chunks_per_row;
#pragma unroll 1
        while (row < layout_.rows) {
            function(row * layout_.row_pitch * 16 + column * 8, h0_ + row, w0_ + column * kChunk);
            row += rows_further;
            column += columns_further;
            if (column >= chunks_per_row) {
                column -= chunks_per_row;
                ++row;
            }
        }
    }

    __device__ void fill(int z, int stage) {
        const bool inside = is_inside(z);
        unsigned char* plane = stage_plane(stage);
        const std::int64_t plane_at = (volume_ * source_.d + z) * source_.h * source_.w;
        if (fill_is(Fill::boxes)) {
            if (inside && threadIdx.x == 0) {
                const int at[kTensorRank] = {w0_, h0_, z, static_cast<int>(volume_), 0};
                const auto bytes = static_cast<unsigned>(layout_.rows * layout_.row_pitch * 16);
                shared_memory_to_copy_engine();
                mbarrier_arrive_and_expect(full_ + stage, layout_.staged ? 2 * bytes : bytes);
                load_box(plane, &source_.box, at, full_ + stage);
                if (layout_.staged) load_box(plane + layout_.plane_bytes(), &source_.box_output, at, full_ + stage);
            }
            return;
        }
        if (fill_is(Fill::async)) {
            if (inside) {
                const T* data = static_cast<const T*>(source_.data);
                const T* output = static_cast<const T*>(source_.affine.output);
                for_each_chunk([&](int offset, int h, int w) {
                    const bool valid = static_cast<unsigned>(h) < static_cast<unsigned>(source_.h) &&
                                       static_cast<unsigned>(w) < static_cast<unsigned>(source_.w);
                    const std::int64_t at = valid ? plane_at + static_cast<std::int64_t>(h) * source_.w + w : 0;
                    const int bytes = valid ? 8 : 0;
                    copy_async<8>(plane + offset, data + at, bytes);
                    if (layout_.staged) copy_async<8>(plane + layout_.plane_bytes() + offset, output + at, bytes);
                });
            }
            copy_async_commit();
            return;
        }
        if (inside) {
            for_each_chunk([&](int offset, int h, int w) { load_elements(plane + offset, plane_at, h, w); });
        }
    }

    __device__ void load_elements(unsigned char* to, std::int64_t plane_at, int h, int w) const {
        const T* data = static_cast<const T*>(source_.data);
        const T* output = static_cast<const T*>(source_.affine.output);
        Vector<T, kChunk> chunk;
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            const bool valid = static_cast<unsigned>(h) < static_cast<unsigned>(source_.h) &&
                               static_cast<unsigned>(w + i) < static_cast<unsigned>(source_.w);
            chunk.element[i] = from_float<T>(0.0f);
            if (!valid) continue;
            const std::int64_t at = plane_at + static_cast<std::int64_t>(h) * source_.w + w + i;
            chunk.element[i] = output == nullptr ? data[at] : map()(data[at], output[at]);
        }
        *reinterpret_cast<Vector<T, kChunk>*>(to) = chunk;
    }

    // The operand plane from the two that the ring brought, each thread its own chunks.
    __device__ void compute(const unsigned char* plane, unsigned char* operand) const {
        const unsigned char* output = plane + layout_.plane_bytes();
        const Map affine =
            map();  // once: what follows stores to shared memory, and might change it for all the compiler knows
        for_each_chunk([&](int offset, int h, int w) {
            const auto a = *reinterpret_cast<const Vector<T, kChunk>*>(plane + offset);
            const auto b = *reinterpret_cast<const Vector<T, kChunk>*>(output + offset);
            Vector<T, kChunk> chunk;
            const bool valid = static_cast<unsigned>(h) < static_cast<unsigned>(source_.h) &&
                               static_cast<unsigned>(w) < static_cast<unsigned>(source_.w);  // all four, or none
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
                chunk.element[i] = valid ? affine(a.element[i], b.element[i]) : from_float<T>(0.0f);
            }
            *reinterpret_cast<Vector<T, kChunk>*>(operand + offset) = chunk;
        });
    }

    // The affine map of this volume.
    struct Map {
        float scale, slope, offset;

        __device__ T operator()(T value, T output) const {
            return from_float<T>(fmaf(scale, to_float(value), fmaf(slope, to_float(output), offset)));
        }
    };

    __device__ Map map() const {
        const AffineGradient& map = source_.affine;
        return {map.scale[volume_], map.slope[volume_], map.offset[volume_]};
    }

    const PlaneSource& source_;
    PlaneLayout layout_;
    unsigned char* planes_;
    std::uint64_t* full_;
    std::int64_t volume_;
    int h0_, w0_;
    int z_, z_begin_;
    unsigned z_count_;
    int stage_ = 0;
    unsigned phases_ = 0;  // bit s: the parity that stage s ends next
};

}  // namespace mednext_ops::cuda::depthwise_conv3d
