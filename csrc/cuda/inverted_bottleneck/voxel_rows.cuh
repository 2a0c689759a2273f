// A tile of rows of voxels in shared memory, [row][pitch_of(Voxels)], and how it comes from an NCDHW volume and
// returns.
//
// Rows move by whole 16-byte pieces wherever they begin. Where V is a multiple of 8, a piece lies in the tile as in the
// volume. Elsewhere every row has its own shift, the elements before it in the piece where it begins: what arrives are
// the Voxels / 8 + 1 pieces that hold the row, one more fits the pitch, and it is moved to its place there:
//
//     volume    | . . . 0 1 2 3 4 | 5 6 7 ...          shift 3; the pieces | are multiples of 16 bytes in memory
//     arrived   | . . . 0 1 2 3 4 | 5 6 7 ...          by cp.async
//     aligned   | 0 1 2 3 4 5 6 7 | 8 9 ...            five words of 32 bits a piece, and halves of neighbours together
//
// On the way back the pieces between are read from the tile the same way, and the eight elements at both ends, which
// other tiles share pieces with, go alone.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/copy.cuh"
#include "../common/opaque.cuh"
#include "../common/scalar_types.cuh"
#include "../common/warp.h"
#include "plan.h"

namespace mednext_ops::cuda::inverted_bottleneck {

template <typename T, int Voxels>
struct VoxelRows {
    static constexpr int kPieces = Voxels / 8;
    static constexpr int kPitch = pitch_of(Voxels);
    static constexpr int kRowsOfWarp = kWarpSize / kPieces;
    static_assert(kPitch >= Voxels + 8, "a row that is not at its place yet has one piece more");

    int first, column, step;  // this thread has eight voxels from `column` on of rows first, first + step, ...
    std::int64_t voxels;      // V
    std::int64_t first_row;   // where the first of them begins in a volume of one sample, and
    std::int64_t row_step;    // how far the next one is: opaque, or 64-bit products are made again for each tile

    // All threads of whole warps take part; the rows of a warp are its own.
    __device__ VoxelRows(int thread, int threads, std::int64_t voxels)
        : first(thread / kPieces),
          column(thread % kPieces * 8),
          step(threads / kPieces),
          voxels(voxels),
          first_row(first * voxels),
          row_step(step * voxels) {
        make_opaque(first_row);
        make_opaque(row_step);
    }

    // Elements of the row in its first piece that are before it.
    __device__ static int shift_of(const T* row) {
        return static_cast<int>(reinterpret_cast<std::uintptr_t>(row) / sizeof(T) % 8);
    }

    // That piece.
    __device__ static const T* piece_of(const T* row) {
        return reinterpret_cast<const T*>(reinterpret_cast<std::uintptr_t>(row) / 16 * 16);
    }

    // How many of the voxels from `begin` on a tile has; not more than it takes.
    __device__ int inside(std::int64_t begin) const {
        return static_cast<int>(min(voxels - begin, std::int64_t{Voxels}));
    }

    // Starts to load a tile of a volume of one sample, zeros beyond its end. `even`: the shift of every row is zero.
    __device__ void fetch(const T* volume, int rows, std::int64_t begin, bool even, T* tile) const {
        const int left = inside(begin) - column;
        const T* from = volume + (first_row + begin);
        T* to = tile + first * kPitch + column;
        if (even) {
            from += left > 0 ? column : 0;
            const int valid = left > 0 ? 16 : 0;
#pragma unroll 1
            for (int row = first; row < rows; row += step) {
                copy_async<16>(to, from, valid);
                from += row_step;
                to += step * kPitch;
            }
            return;
        }
        if (voxels - begin >= Voxels + 8) {  // nearly always: every piece is in the row
            from += column;
#pragma unroll 1
            for (int row = first; row < rows; row += step) {
                const T* const piece = piece_of(from);
                copy_async<16>(to, piece);
                if (column == Voxels - 8) copy_async<16>(to + 8, piece + 8);
                from += row_step;
                to += step * kPitch;
            }
            return;
        }
#pragma unroll 1
        for (int row = first; row < rows; row += step) {
            const int shift = shift_of(from);
            const T* const piece = piece_of(from);
            copy_valid(to, piece, column, left + shift);
            if (column == Voxels - 8) copy_valid(to + 8, piece, Voxels, left + shift - 8);
            from += row_step;
            to += step * kPitch;
        }
    }

    // Of a piece `valid` elements are in the row; the row itself begins in the piece `row`.
    __device__ static void copy_valid(T* to, const T* row, int offset, int valid) {
        copy_async<16>(to, row + (valid > 0 ? offset : 0), 2 * max(0, min(valid, 8)));
    }

    // Eight elements from `place` on; any element may be the first.
    __device__ static Vector<T, 8> eight(const T* row, int place) {
        const auto* const words = reinterpret_cast<const unsigned*>(row) + (place >> 1);
        const unsigned selector = place & 1 ? 0x5432 : 0x3210;
        unsigned found[5];
#pragma unroll
        for (int i = 0; i < 5; ++i) found[i] = words[i];
        unsigned pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) pairs[i] = __byte_perm(found[i], found[i + 1], selector);
        Vector<T, 8> result;
        std::memcpy(&result, pairs, sizeof(result));
        return result;
    }

    // Moves the rows that have arrived to their places, AtOnce of a thread together. The copies of the warp must have
    // landed.
    template <int AtOnce>
    __device__ void align(const T* volume, int rows, T* tile) const {
        const T* from = volume + first_row;
        T* place = tile + first * kPitch + column;
#pragma unroll 1
        for (int row = first; row / kRowsOfWarp * kRowsOfWarp < rows; row += AtOnce * step) {
            Vector<T, 8> found[AtOnce];
#pragma unroll
            for (int i = 0; i < AtOnce; ++i) {
                if (row + i * step < rows) found[i] = eight(place + i * step * kPitch, shift_of(from));
                from += row_step;
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < AtOnce; ++i) {
                if (row + i * step < rows) *reinterpret_cast<Vector<T, 8>*>(place + i * step * kPitch) = found[i];
            }
            place += AtOnce * step * kPitch;
        }
    }

    // Stores what there is of a tile, whose rows are at their places.
    __device__ void store(const T* tile, int rows, std::int64_t begin, bool even, T* volume) const {
        const int left = inside(begin);
        T* to = volume + (first_row + begin);
        const T* from = tile + first * kPitch;
        if (even) {
            if (column >= left) return;
            to += column;
            from += column;
#pragma unroll 2
            for (int row = first; row < rows; row += step) {
                *reinterpret_cast<Vector<T, 8>*>(to) = *reinterpret_cast<const Vector<T, 8>*>(from);
                from += step * kPitch;
                to += row_step;
            }
            return;
        }
#pragma unroll 1
        for (int row = first; row < rows; row += step) {
            if (left == Voxels) {
                store_row(from, to);
            } else {
#pragma unroll 1
                for (int i = column / 8; i < left; i += kPieces) to[i] = from[i];
            }
            from += step * kPitch;
            to += row_step;
        }
    }

  private:
    __device__ void store_row(const T* from, T* to) const {
        const int shift = shift_of(to);
        const int place = column + (shift > 0 ? 8 - shift : 0);
        if (place + 8 <= Voxels) *reinterpret_cast<Vector<T, 8>*>(to + place) = eight(from, place);
        if (shift == 0) return;
#pragma unroll
        for (int i = 0; i < 8; i += kPieces) {  // both ends together have eight
            const int end = i + column / 8;
            const int element = end < 8 - shift ? end : Voxels - 8 + end;
            to[element] = from[element];
        }
    }
};

}  // namespace mednext_ops::cuda::inverted_bottleneck
