// The inverted bottleneck on the CPU: expand, GELU, scale (GRN), compress, add, and its gradients.
//
//   x[v, c] = (input - mean) * rstd
//   n[v, c] = norm_weight * x + norm_bias
//   h[v, r] = gelu(expand n + expand_bias)
//   out[v]  = compress (gain * h) + compress_bias + residual
//
// The work goes through tiles of voxels: floats, voxel by voxel, channels next to each other and padded with zeros to
// whole registers, in the cache. No hidden tensor exists as a whole; the backward pass makes it again.
#pragma once

#include <cstdint>

#include "../common/volume.h"

namespace mednext_ops::cpu::inverted_bottleneck {

struct Shape {
    std::int64_t batch, voxels, channels, hidden, outputs;
};

// The cut into tiles and slots; it depends on the shape and the vector's width alone.
struct Plan {
    std::int64_t channels, hidden, outputs;  // padded
    std::int64_t tile_voxels, tiles;         // of a sample
    // Sums over voxels are collected in slots, each of some neighbouring tiles of a sample, and then added up.
    std::int64_t tiles_per_slot, slots;  // of a sample
    std::int64_t scratch_floats;

    // A slot: four vectors and two matrices of sums.
    std::int64_t square_sums() const { return 0; }                              // h^2 [hidden]
    std::int64_t hidden_sums() const { return hidden; }                         // d pre [hidden]
    std::int64_t output_sums() const { return 2 * hidden; }                     // grad_output [outputs]
    std::int64_t hidden_normalized() const { return output_sums() + outputs; }  // x (x) d pre [channels, hidden]
    std::int64_t output_hidden() const {
        return hidden_normalized() + channels * hidden;
    }  // grad (x) h [outputs, hidden]
    std::int64_t slot_floats() const { return output_hidden() + outputs * hidden; }
};

Plan plan(const Shape& shape, int lanes);

// A matrix as the right operand of a product: [columns / panel][rows][panel], padded with zeros.
//
// Writes panels begin <= p < end of source(k, n) = source[k * row + n * column], k < rows, n < columns.
void pack(const float* source, std::int64_t rows, std::int64_t columns, std::int64_t row, std::int64_t column,
          std::int64_t panel, std::int64_t begin, std::int64_t end, float* packed);

// What both directions read. Weights are packed, biases padded with zeros.
struct Operands {
    Shape shape;
    Volume input;
    const float* mean;         // [N, C]
    const float* rstd;         // [N, C]
    const float* norm_weight;  // [C]
    const float* norm_bias;    // [C]
    const float* expand;       // [C, R] packed
    const float* expand_bias;  // [R]
    const float* gain;         // [N, R] padded, or null
};

struct ForwardProblem {
    Operands operands;
    const float* compress;       // [R, O] packed
    const float* compress_bias;  // [O]
    Volume residual;             // data is null if there is none
    Volume output;
};

// Sums of h^2 always; those of the compression where grad_output is given.
struct ResponseProblem {
    Operands operands;
    Volume grad_output;  // data is null if there is none
};

struct BackwardProblem {
    Operands operands;
    Volume grad_output;
    const float* expand_back;    // [R, C] packed
    const float* compress_back;  // [O, R] packed
    const float* slope;   // [N, R] padded, with gain: the hidden gradient is gain * (compress^T grad) + slope * h
    bool needs_hidden;    // hidden_sums and hidden_normalized, and the gradient of n if `grad` is there
    bool needs_compress;  // output_sums and output_hidden
    Volume grad;          // of n; data is null if it is not asked for
};

// Adds `count` floats at `offset` of all slots of a sample, in double and in order, row by row of the padded matrix.
void add_slots(const Plan& plan, const float* slots, std::int64_t sample, std::int64_t offset, std::int64_t rows,
               std::int64_t columns, std::int64_t padded_columns, float* to);

}  // namespace mednext_ops::cpu::inverted_bottleneck
