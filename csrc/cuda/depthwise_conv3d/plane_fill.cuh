// A tile of a volume, plane after plane along D, in shared memory ahead of its use: a ring of planes and three fills.
//
// A plane has `rows` rows of `octets` octets of 16-bit elements, the first at (h0, w0) of the volume, w0 a multiple of
// four; what lies outside of the volume is zero.
//
//     elements   each thread loads and stores element by element: any extent, any alignment
//     async      copies of 8 bytes that nobody waits for until the plane's turn: W a multiple of 4 (sm_80)
//     boxes      one thread asks the copy engine for the plane: W and w0 multiples of 8 (sm_90)
//
// A gradient that is not written out (AffineGradient) is two tensors. `elements` computes it on the way; the others
// bring both into the ring and compute it, in float, rounded once, from there into one of two operand planes.
//
// A plane is moved in chunks of four elements. Which ones a thread moves, and from where to where, is the same for all
// planes; a table in shared memory can say it. Chunks outside of the volume are made zero once, and left alone then.
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

// Which fills a ring is compiled for: what is left out costs no instructions in a step. `copies` are `async` and
// `elements`; there planes outside of the volume come too, and are zero.
enum class Fills { all, boxes, copies };

// `Rings` of the block walk together: their planes are asked for and waited for in the same steps.
template <typename T, Fills Compiled, int Rings = 1>
class PlaneRing {
  public:
    static constexpr int kMaxStages = 4;
    // The table holds Chunk::from where nothing lies between the rows of a plane, so that Chunk::to is known, and
    // Chunk::to where boxes bring what is computed from.
    static constexpr bool kTable = Compiled != Fills::all;
    static constexpr bool kTableOfFrom = Compiled == Fills::copies;
    static constexpr int kAtOnce = 5;  // chunks of a thread that are looked up before the first is moved

    // How long the table is for a block of so many threads: whoever looks beyond the last chunk finds nothing there.
    __host__ __device__ static constexpr int table_length(const PlaneLayout& layout, int threads) {
        return kTable && (kTableOfFrom || layout.staged) ? layout.chunks() + kAtOnce * threads : 0;
    }

    // Planes from `z` on of volume `volume`, those from `z_begin` to `z_end` - 1 of which are wanted; `full` are
    // `stages` barriers of the block, used by `boxes`; `table` takes table_length() numbers.
    __device__ PlaneRing(const PlaneSource& source, const PlaneLayout& layout, unsigned char* planes,
                         std::uint64_t* full, int* table, std::int64_t volume, int h0, int w0, int z, int z_begin,
                         int z_end)
        : source_(source),
          layout_(layout),
          planes_(planes),
          full_(full),
          table_(table),
          volume_(volume),
          h0_(h0),
          w0_(w0),
          z_(z),
          z_begin_(max(z_begin, 0)),
          z_count_(static_cast<unsigned>(max(min(z_end, source.d) - z_begin_, 0))) {
        // What is outside of the volume is zero in every plane; the copy engine sees to that itself.
        if (fill_is(Fill::boxes) && !layout_.staged) return;
        // A thread writes and reads its own entries of the table: no barrier between.
        if constexpr (kTable) {
            const int entries = table_length(layout_, static_cast<int>(blockDim.x));
            for (int i = static_cast<int>(threadIdx.x); i < entries; i += static_cast<int>(blockDim.x)) {
                table_[i] = kOutside;
            }
        }
        const int first = layout_.staged ? layout_.ring_planes() : 0;
        const int last = layout_.staged ? layout_.ring_planes() + 2 : layout_.stages;
        int entry = static_cast<int>(threadIdx.x);
#pragma unroll 1
        for (Walk walk(*this); walk.row < layout_.rows; walk.next(), entry += static_cast<int>(blockDim.x)) {
            const Chunk chunk = walk.chunk();
            if constexpr (kTable) table_[entry] = kTableOfFrom || chunk.from == kOutside ? chunk.from : chunk.to;
            if (chunk.from != kOutside) continue;
            for (int plane = first; plane < last; ++plane) {
                *reinterpret_cast<Vector<unsigned, 2>*>(planes_ + plane * layout_.plane_bytes() + chunk.to) =
                    Vector<unsigned, 2>{};
            }
        }
    }

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

    // The next plane, ready for all threads until the next call.
    __device__ const unsigned char* next() {
        arrive();
        __syncthreads();  // the plane is there, and nobody reads the one before it any more
        return turn();
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
            if constexpr (kHasCopyEngine) {
                mbarrier_wait(full_ + stage_, phases_ >> stage_ & 1);
            } else {
                __trap();  // the planner does not come here
            }
            phases_ ^= 1u << stage_;
        }
        if (layout_.staged && inside) {
            compute(stage_plane(stage_), operand_plane());
        } else if (Compiled == Fills::copies && layout_.staged) {
            clear(operand_plane());
        }
    }

    // Second, after the barrier: the plane before it makes room for one further on.
    __device__ const unsigned char* turn() {
        const unsigned char* plane = layout_.staged ? operand_plane() : stage_plane(stage_);
        fill(z_ + layout_.stages - 1, stage_ == 0 ? layout_.stages - 1 : stage_ - 1);
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
            for (int stage = 0; stage < layout_.stages; ++stage) {
                if constexpr (kHasCopyEngine) {
                    mbarrier_initialise(full_ + stage, 1);
                } else {
                    __trap();
                }
            }
            mbarrier_initialised();
        }
    }

    __device__ bool fill_is(Fill fill) const {
        if constexpr (Compiled == Fills::boxes) return fill == Fill::boxes;
        if constexpr (Compiled == Fills::copies) {
            if (fill == Fill::boxes) return false;
        }
        return source_.fill == fill;
    }

    __device__ bool is_inside(int z) const { return static_cast<unsigned>(z - z_begin_) < z_count_; }

    __device__ unsigned char* operand_plane() const {
        return planes_ + (layout_.ring_planes() + (z_ & 1)) * layout_.plane_bytes();
    }

    __device__ unsigned char* stage_plane(int stage) const {
        return planes_ + stage * (layout_.staged ? 2 : 1) * layout_.plane_bytes();
    }

    // Elements (h, w) to (h, w + 3): the first is number `from` of the volume's plane, or all are outside of it. They
    // go to byte `to` of the ring's plane. Where W is no multiple of four the last ones of a row may be outside.
    static constexpr int kOutside = -1;

    struct Chunk {
        int from, to;
    };

    // The chunks of this thread, one after the other: as many further each time as the block has threads.
    struct Walk {
        const PlaneRing& ring;
        int row, column;

        __device__ explicit Walk(const PlaneRing& ring) : ring(ring) {
            row = ring.layout_.rows_of(static_cast<int>(threadIdx.x));
            column = static_cast<int>(threadIdx.x) - row * ring.layout_.row_chunks();
        }

        __device__ void next() {
            const int per_row = ring.layout_.row_chunks();
            const int rows_further = ring.layout_.rows_of(static_cast<int>(blockDim.x));
            row += rows_further;
            column += static_cast<int>(blockDim.x) - rows_further * per_row;
            if (column >= per_row) {
                column -= per_row;
                ++row;
            }
        }

        __device__ Chunk chunk() const {
            const int h = ring.h0_ + row;
            const int w = ring.w0_ + column * kChunk;  // a multiple of four: never only partly left of the volume
            const bool some = row < ring.layout_.rows &&
                              static_cast<unsigned>(h) < static_cast<unsigned>(ring.source_.h) &&
                              static_cast<unsigned>(w) < static_cast<unsigned>(ring.source_.w);
            return {some ? h * ring.source_.w + w : kOutside, row * ring.layout_.row_pitch * 16 + column * 8};
        }
    };

    // Calls function(chunk, whether it is at least partly in the volume) for each chunk of this thread.
    template <typename Function>
    __device__ void for_each_chunk(Function&& function) const {
        if constexpr (kTable) {
            const auto threads = static_cast<int>(blockDim.x);
            const int chunks = layout_.chunks();
#pragma unroll 1
            for (int first = static_cast<int>(threadIdx.x); first < chunks; first += kAtOnce * threads) {
                int found[kAtOnce];
#pragma unroll
                for (int i = 0; i < kAtOnce; ++i) found[i] = table_[first + i * threads];
#pragma unroll
                for (int i = 0; i < kAtOnce; ++i) {
                    const Chunk chunk{found[i], kTableOfFrom ? (first + i * threads) * 8 : found[i]};
                    function(chunk, found[i] != kOutside);
                }
            }
        } else {
#pragma unroll 1
            for (Walk walk(*this); walk.row < layout_.rows; walk.next()) {
                const Chunk chunk = walk.chunk();
                function(chunk, chunk.from != kOutside);
            }
        }
    }

    __device__ void fill(int z, int stage) {
        const bool inside = is_inside(z);
        unsigned char* plane = stage_plane(stage);
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
        if (Compiled == Fills::copies && !inside && !layout_.staged) clear(plane);
        const std::int64_t plane_at = (volume_ * source_.d + z) * source_.h * source_.w;
        if (fill_is(Fill::async)) {
            if (inside) {
                const T* data = static_cast<const T*>(source_.data) + plane_at;
                if (layout_.staged) {
                    const T* output = static_cast<const T*>(source_.affine.output) + plane_at;
                    unsigned char* second = plane + layout_.plane_bytes();
                    for_each_chunk([&](const Chunk& chunk, bool some) {
                        copy_async_if<8>(some, plane + chunk.to, data + chunk.from);
                        copy_async_if<8>(some, second + chunk.to, output + chunk.from);
                    });
                } else {
                    for_each_chunk([&](const Chunk& chunk, bool some) {
                        copy_async_if<8>(some, plane + chunk.to, data + chunk.from);
                    });
                }
            }
            copy_async_commit();
            return;
        }
        if (inside) {
            for_each_chunk([&](const Chunk& chunk, bool some) {
                if (some) load_elements(plane, plane_at + chunk.from, chunk);
            });
        }
    }

    // A plane outside of the volume.
    __device__ void clear(unsigned char* plane) const {
        for_each_chunk([&](const Chunk& chunk, bool some) {
            if (some) *reinterpret_cast<Vector<unsigned, 2>*>(plane + chunk.to) = Vector<unsigned, 2>{};
        });
    }

    // Element by element; `at` is where the first one lies in the tensor.
    __device__ void load_elements(unsigned char* plane, std::int64_t at, const Chunk& chunk) const {
        const T* data = static_cast<const T*>(source_.data) + at;
        const T* output = static_cast<const T*>(source_.affine.output);
        const int count = source_.w - chunk.from % source_.w;
        Vector<T, kChunk> elements{};
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            if (i < count) elements.element[i] = output == nullptr ? data[i] : map()(data[i], output[at + i]);
        }
        *reinterpret_cast<Vector<T, kChunk>*>(plane + chunk.to) = elements;
    }

    // The operand plane from the two that the ring brought, each thread its own chunks.
    __device__ void compute(const unsigned char* plane, unsigned char* operand) const {
        const unsigned char* output = plane + layout_.plane_bytes();
        const Map affine =
            map();  // once: what follows stores to shared memory, and might change it for all the compiler knows
        for_each_chunk([&](const Chunk& chunk, bool some) {
            if (!some) return;
            const auto a = *reinterpret_cast<const Vector<unsigned, 2>*>(plane + chunk.to);
            const auto b = *reinterpret_cast<const Vector<unsigned, 2>*>(output + chunk.to);
            Vector<unsigned, 2> both;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float grad[2];
                float value[2];
                unpack<T>(a.element[i], grad[0], grad[1]);
                unpack<T>(b.element[i], value[0], value[1]);
                both.element[i] = round_pair<T>(affine(grad[0], value[0]), affine(grad[1], value[1]));
            }
            *reinterpret_cast<Vector<unsigned, 2>*>(operand + chunk.to) = both;
        });
    }

    // The affine map of this volume.
    struct Map {
        float scale, slope, offset;

        __device__ float operator()(float value, float output) const {
            return fmaf(scale, value, fmaf(slope, output, offset));
        }
        __device__ T operator()(T value, T output) const {
            return from_float<T>((*this)(to_float(value), to_float(output)));
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
    int* table_;
    std::int64_t volume_;
    int h0_, w0_;
    int z_, z_begin_;
    unsigned z_count_;
    int stage_ = 0;
    unsigned phases_ = 0;  // bit s: the parity that stage s ends next
};

}  // namespace mednext_ops::cuda::depthwise_conv3d
