// Matrix products of tiles that stay in the cache: result[m, n] (+)= sum over k of left[m, k] * right[k, n].
//
// kProductRows x kProductColumns results are held in registers; a step in k loads two registers of `right` and
// broadcasts kProductRows numbers of `left`, whose two strides make the same kernel serve left and its transpose. All
// sizes but K are whole numbers of those, so there are no edges: tiles are padded. What the next tile reads is fetched
// meanwhile.
#pragma once

#include "fetch.h"

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {
namespace {

#if defined(__AVX512F__)
constexpr int kProductRows = 8;
#else
constexpr int kProductRows = 4;  // sixteen registers
#endif
constexpr int kProductColumns = 2 * kLanes;

struct Left {
    const float* data;
    std::int64_t row, depth;  // distance of neighbours in m and in k
};

struct Right {
    const float* data;
    std::int64_t depth, panel;  // distance of neighbours in k, and of neighbouring panels of kProductColumns
};

struct Result {
    float* data;
    std::int64_t row;
};

enum class Start { zero, bias, sum };  // what the products are added to: nothing, bias[n], what is there

// Neighbours in k that are multiplied at a time: as much of a panel of `right` as stays in a first-level cache of 32
// KiB beside the rows of `left`.
constexpr std::int64_t kProductDepth = 128;

template <Start kStart>
MEDNEXT_OPS_INLINE void multiply_panel(std::int64_t rows, std::int64_t n, std::int64_t depth, Left left,
                                       const float* panel, std::int64_t right_depth, const float* bias, Result result,
                                       Fetch& fetch) {
    for (std::int64_t m = 0; m < rows; m += kProductRows) {
        fetch.some(depth / 4);  // a line in the time of 64 multiplications
        float* to = result.data + m * result.row + n;
        Vector sums[kProductRows][2];
#pragma GCC unroll 8
        for (int i = 0; i < kProductRows; ++i) {
            sums[i][0] = sums[i][1] = Vector{};
            if (kStart == Start::bias) {
                sums[i][0] = load(bias + n);
                sums[i][1] = load(bias + n + kLanes);
            }
        }
        const float* a = left.data + m * left.row;
        const float* b = panel;
        for (std::int64_t k = 0; k < depth; ++k, a += left.depth, b += right_depth) {
            const Vector first = load(b), second = load(b + kLanes);
#pragma GCC unroll 8
            for (int i = 0; i < kProductRows; ++i) {
                const Vector value = broadcast(a[i * left.row]);
                sums[i][0] = fma(value, first, sums[i][0]);
                sums[i][1] = fma(value, second, sums[i][1]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < kProductRows; ++i) {
            float* at = to + i * result.row;
            if (kStart == Start::sum) {
                sums[i][0] += load(at);
                sums[i][1] += load(at + kLanes);
            }
            store(at, sums[i][0]);
            store(at + kLanes, sums[i][1]);
        }
    }
}

template <Start kStart>
void multiply(std::int64_t rows, std::int64_t columns, std::int64_t depth, Left left, Right right, const float* bias,
              Result result, Fetch& fetch) {
    for (std::int64_t n = 0; n < columns; n += kProductColumns) {
        const float* panel = right.data + n / kProductColumns * right.panel;
        multiply_panel<kStart>(rows, n, at_most(depth, kProductDepth), left, panel, right.depth, bias, result, fetch);
        for (std::int64_t k = kProductDepth; k < depth; k += kProductDepth) {
            const Left rest{left.data + k * left.depth, left.row, left.depth};
            multiply_panel<Start::sum>(rows, n, at_most(depth - k, kProductDepth), rest, panel + k * right.depth,
                                       right.depth, nullptr, result, fetch);
        }
    }
}

}  // namespace
}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
