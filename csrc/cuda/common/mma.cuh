// Tensor-core products of 16-bit matrices, and the loads that feed them.
//
// mma.m16n8k16: D[16, 8] += A[16, 16] B[16, 8], A and B in bf16 or fp16, D in fp32. Each lane holds, with
// g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//
//              A   2t 2t+1   2t+8 2t+9          B    g               D   2t 2t+1
//            g    [ a[0]  ]  [ a[2]  ]      2t    |b[0]|           g    d[0] d[1]
//            g+8  [ a[1]  ]  [ a[3]  ]      2t+1  |b[0]|           g+8  d[2] d[3]
//                                           2t+8  |b[1]|
//                                           2t+9  |b[1]|
//
// A register holds two elements, the one of the lower index (column of A, row of B) in its lower half.
//
// mma.m16n8k8: the same with the first eight columns of A and rows of B alone: a[0], a[1] and b[0].
//
// ldmatrix: lane 8 j + r names row r of matrix j: 8 elements, 16 bytes, at a multiple of 16 bytes in shared memory.
// From matrix j every lane gets one register: elements [g, 2t] and [g, 2t+1], or [2t, g] and [2t+1, g] with Transposed.
// So A is four matrices (rows 0-7, rows 8-15, then the same at columns 8-15), and B two: of B^T without, of B with
// Transposed.
//
// movmatrix: an 8x8 matrix as a lane's register [g, 2t], [g, 2t+1] becomes its transpose in the same places.
//
// Tensor cores of this shape start with sm_80, ldmatrix and movmatrix with sm_75. A kernel must not come here on less:
// it stops.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "warp.h"

namespace mednext_ops::cuda {

#ifndef MEDNEXT_OPS_EMULATED

template <int Count, bool Transposed = false>
__device__ inline void ldmatrix(unsigned (&fragment)[Count], const void* row) {
    static_assert(Count == 1 || Count == 2 || Count == 4, "ldmatrix loads 1, 2 or 4 matrices");
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (Count == 1 && !Transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                     : "=r"(fragment[0])
                     : "r"(address)
                     : "memory");
    } else if constexpr (Count == 1) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                     : "=r"(fragment[0])
                     : "r"(address)
                     : "memory");
    } else if constexpr (Count == 2 && !Transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(fragment[0]), "=r"(fragment[1])
                     : "r"(address)
                     : "memory");
    } else if constexpr (Count == 2) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(fragment[0]), "=r"(fragment[1])
                     : "r"(address)
                     : "memory");
    } else if constexpr (!Transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                     : "r"(address)
                     : "memory");
    }
}

// d = a b + c
template <typename T>
__device__ inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                    const float (&c)[4]) {
    static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>, "the operands are fp16 or bf16");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (std::is_same_v<T, __half>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%10, %11, %12, %13};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
              "f"(c[3]));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%10, %11, %12, %13};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
              "f"(c[3]));
    }
#else
    __trap();
#endif
}

// d += a b
template <typename T>
__device__ inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma_m16n8k16<T>(d, a, b, d);
}

// d = a b + c, of eight columns of A.
template <typename T>
__device__ inline void mma_m16n8k8(float (&d)[4], const unsigned (&a)[2], unsigned b, const float (&c)[4]) {
    static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>, "the operands are fp16 or bf16");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (std::is_same_v<T, __half>) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    } else {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    }
#else
    __trap();
#endif
}

// The transpose of a matrix of 8x8 elements.
__device__ inline unsigned transposed(unsigned fragment) {
    unsigned result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(fragment));
    return result;
}

#else

template <int Count, bool Transposed = false>
void ldmatrix(unsigned (&fragment)[Count], const void* row,
              emulation::CallSite where = emulation::CallSite::current()) {
    static_assert(Count == 1 || Count == 2 || Count == 4, "ldmatrix loads 1, 2 or 4 matrices");
    struct Load {
        const void* row;
        unsigned fragment[Count];
    };
    Load mine{row, {}};
    if (emulation::lane_id() < 8 * Count) emulation::Block::current().require_shared("ldmatrix", row, 16, 16, where);
    emulation::warp_collective(
        "ldmatrix", kFullWarp, mine,
        [](Load* const* lanes, unsigned) {
            for (int matrix = 0; matrix < Count; ++matrix) {
                std::uint16_t elements[8][8];
                for (int r = 0; r < 8; ++r) std::memcpy(elements[r], lanes[8 * matrix + r]->row, 16);
                for (int lane = 0; lane < kWarpSize; ++lane) {
                    const int g = lane / 4;
                    const int t = lane % 4;
                    const unsigned low = Transposed ? elements[2 * t][g] : elements[g][2 * t];
                    const unsigned high = Transposed ? elements[2 * t + 1][g] : elements[g][2 * t + 1];
                    lanes[lane]->fragment[matrix] = high << 16 | low;
                }
            }
        },
        where);
    for (int matrix = 0; matrix < Count; ++matrix) fragment[matrix] = mine.fragment[matrix];
}

// One half of a register as float. CUDA's own conversions on the host take most of a product's time.
template <typename T>
float operand(unsigned bits) {
    bits &= 0xffff;
    if constexpr (std::is_same_v<T, __nv_bfloat16>) return __uint_as_float(bits << 16);
    const unsigned sign = (bits & 0x8000) << 16;
    if ((bits & 0x7c00) == 0x7c00) return __uint_as_float(sign | 0x7f800000 | (bits & 0x3ff) << 13);
    return __uint_as_float(sign | __float_as_uint(__uint_as_float((bits & 0x7fff) << 13) * 0x1p112f));
}

// d = a b + c. Products are exact and summed in double, then rounded once: closer than any tensor core.
template <typename T>
void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4],
                  emulation::CallSite where = emulation::CallSite::current()) {
    static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>, "the operands are fp16 or bf16");
    struct Product {
        const unsigned* a;
        const unsigned* b;
        float* d;
    };
    for (int i = 0; i < 4; ++i) d[i] = c[i];
    Product mine{a, b, d};
    emulation::warp_collective(
        "mma_m16n8k16", kFullWarp, mine,
        [](Product* const* lanes, unsigned) {
            float left[16][16];
            float right[16][8];
            for (int lane = 0; lane < kWarpSize; ++lane) {
                const int g = lane / 4;
                const int t = lane % 4;
                for (int half = 0; half < 2; ++half) {
                    for (int i = 0; i < 4; ++i) {
                        left[g + i % 2 * 8][2 * t + half + i / 2 * 8] = operand<T>(lanes[lane]->a[i] >> 16 * half);
                    }
                    for (int i = 0; i < 2; ++i) {
                        right[2 * t + half + 8 * i][g] = operand<T>(lanes[lane]->b[i] >> 16 * half);
                    }
                }
            }
            for (int row = 0; row < 16; ++row) {
                double sums[8] = {};
                for (int k = 0; k < 16; ++k) {
                    for (int column = 0; column < 8; ++column) {
                        sums[column] += static_cast<double>(left[row][k]) * static_cast<double>(right[k][column]);
                    }
                }
                for (int column = 0; column < 8; ++column) {
                    float& result = lanes[row % 8 * 4 + column / 2]->d[row / 8 * 2 + column % 2];
                    result = static_cast<float>(static_cast<double>(result) + sums[column]);
                }
            }
        },
        where);
}

// d += a b
template <typename T>
void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                  emulation::CallSite where = emulation::CallSite::current()) {
    mma_m16n8k16<T>(d, a, b, d, where);
}

// d = a b + c, of eight columns of A.
template <typename T>
void mma_m16n8k8(float (&d)[4], const unsigned (&a)[2], unsigned b, const float (&c)[4],
                 emulation::CallSite where = emulation::CallSite::current()) {
    mma_m16n8k16<T>(d, {a[0], a[1], 0, 0}, {b, 0}, c, where);
}

inline unsigned transposed(unsigned fragment, emulation::CallSite where = emulation::CallSite::current()) {
    struct Matrix {
        unsigned given;
        unsigned result;
    };
    Matrix mine{fragment, 0};
    emulation::warp_collective(
        "transposed", kFullWarp, mine,
        [](Matrix* const* lanes, unsigned) {
            for (int lane = 0; lane < kWarpSize; ++lane) {
                const int g = lane / 4;
                const int t = lane % 4;
                const auto element = [&](int row) { return lanes[4 * row + g / 2]->given >> 16 * (g % 2) & 0xffff; };
                lanes[lane]->result = element(2 * t + 1) << 16 | element(2 * t);
            }
        },
        where);
    return mine.result;
}

#endif

}  // namespace mednext_ops::cuda
