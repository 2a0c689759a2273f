// How the planes of a tile lie in shared memory: the same to the plan, the launch and the kernel. Plain C++.
#pragma once

namespace mednext_ops::cuda::depthwise_conv3d {

// How planes come into shared memory: element by element; by asynchronous copies of 8 bytes (sm_80); by the copy engine
// (sm_90).
enum class Fill { elements, async, boxes };

// A ring of `stages` planes of `rows` rows of `octets` octets of 16-bit elements. Where the operand is computed from
// two tensors (a gradient that is not written out, brought by copies), a stage is two planes, and two planes more take
// the operand: one in use, one in the making.
struct PlaneLayout {
    int rows, octets;
    int row_pitch;  // octets from one row to the next
    int stages;
    int chunk_share;
    bool staged;

    constexpr PlaneLayout(int rows, int octets, int row_pitch, int stages, bool affine, Fill fill)
        : rows(rows),
          octets(octets),
          row_pitch(row_pitch),
          stages(stages),
          chunk_share(65536 / (2 * octets) + 1),
          staged(affine && fill != Fill::elements) {}

    constexpr int row_chunks() const { return 2 * octets; }  // of four elements
    constexpr int chunks() const { return rows * row_chunks(); }
    // How many rows so many chunks fill: a division, by a product that is exact below 65536 / row_chunks().
    constexpr int rows_of(int chunks) const { return chunks * chunk_share >> 16; }
    constexpr int plane_bytes() const { return (rows * row_pitch * 16 + 127) / 128 * 128; }
    constexpr int ring_planes() const { return staged ? 2 * stages : stages; }
    constexpr int bytes() const { return (ring_planes() + (staged ? 2 : 0)) * plane_bytes(); }
};

}  // namespace mednext_ops::cuda::depthwise_conv3d
