// One register of floats, as wide as the capability that this is compiled for: every vectorised source is compiled once
// for each (build_tools/artefacts.py), with MEDNEXT_OPS_CAPABILITY naming it.
//
// Everything here has internal linkage: the linker keeps one copy of an inline function of external linkage, and it
// could be the one with instructions that the machine lacks.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "../common/scalar_types.h"

#ifndef MEDNEXT_OPS_CAPABILITY
#error "a vectorised source is compiled with -DMEDNEXT_OPS_CAPABILITY=<name>"
#endif

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE2, NEON
#endif

namespace {

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef std::uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef std::uint16_t Halves __attribute__((vector_size(kLanes * 2)));

#define MEDNEXT_OPS_INLINE inline __attribute__((always_inline))

MEDNEXT_OPS_INLINE std::int64_t at_most(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
}

MEDNEXT_OPS_INLINE Vector broadcast(float value) {
    // Nothing subtracted is nothing done. Added to zero it would be: -0 becomes 0, and the compiler must add.
    return value - Vector{};
}

MEDNEXT_OPS_INLINE Vector load(const float* from) {
    Vector value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

MEDNEXT_OPS_INLINE void store(float* to, Vector value) {
    __builtin_memcpy(to, &value, sizeof value);
}

// a * b + c, rounded once where the machine can.
MEDNEXT_OPS_INLINE Vector fma(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

MEDNEXT_OPS_INLINE Vector select(Ints condition, Vector a, Vector b) {
    return condition ? a : b;
}

MEDNEXT_OPS_INLINE Vector absolute(Vector value) {
    return (Vector)((Words)value & 0x7fffffffu);
}

// The nearest number to it between -limit and limit; NaN stays NaN.
MEDNEXT_OPS_INLINE Vector within(Vector value, float limit) {
    const Vector low = broadcast(-limit), high = broadcast(limit);
#if defined(__AVX512F__)
    // These instructions give the second operand where one is NaN.
    return (Vector)_mm512_maskz_max_ps(0xffff, (__m512)low, _mm512_maskz_min_ps(0xffff, (__m512)high, (__m512)value));
#elif defined(__AVX2__)
    return (Vector)_mm256_max_ps((__m256)low, _mm256_min_ps((__m256)high, (__m256)value));
#else
    const Vector below = high < value ? high : value;
    return low > below ? low : below;
#endif
}

struct Square {
    Vector rounded, rest;
};

// value^2 = rounded + rest, to twice a float's digits.
MEDNEXT_OPS_INLINE Square exact_square(Vector value) {
#if defined(__AVX2__)
    const Vector rounded = value * value;
    return {rounded, fma(value, value, -rounded)};
#else
    const Vector high = (Vector)((Words)value & 0xfffff000u);  // few enough digits for an exact square
    return {high * high, (value - high) * (value + high)};
#endif
}

// numerator / denominator to one unit in the last place, for denominators between 1 and 2^100.
MEDNEXT_OPS_INLINE Vector quotient(Vector numerator, Vector denominator) {
#if defined(__AVX512F__)
    // 14 bits of the reciprocal and a correction: a division keeps a port for the whole of its latency.
    const Vector reciprocal = (Vector)_mm512_maskz_rcp14_ps(0xffff, (__m512)denominator);
    const Vector near = numerator * reciprocal;
    return fma(fma(-denominator, near, numerator), reciprocal, near);
#else
    return numerator / denominator;
#endif
}

// value * 2^exponent, rounded to a subnormal number or zero where it is that small; -200 <= exponent <= 0 is whole.
MEDNEXT_OPS_INLINE Vector times_power_of_two(Vector value, Vector exponent) {
#if defined(__AVX512F__)
    return (Vector)_mm512_maskz_scalef_ps(0xffff, (__m512)value, (__m512)exponent);
#else
    // In two steps, each of them a power that is a normal number.
    const Ints whole = __builtin_convertvector(exponent, Ints);
    const Ints half = whole >> 1;
    return value * (Vector)((half + 127) << 23) * (Vector)((whole - half + 127) << 23);
#endif
}

// Sixteen bits a lane, to floats and back: exact, and rounded to nearest even.

MEDNEXT_OPS_INLINE Vector load(const BFloat16* from) {
    Halves bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return (Vector)(__builtin_convertvector(bits, Words) << 16);
}

MEDNEXT_OPS_INLINE Halves to_bfloat16(Vector value) {
    const Words bits = (Words)value;
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words quiet = (bits >> 16) | 0x0040u;
    const Words result = (bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
    return __builtin_convertvector(result, Halves);
}

MEDNEXT_OPS_INLINE void store(BFloat16* to, Vector value) {
    const Halves bits = to_bfloat16(value);
    __builtin_memcpy(to, &bits, sizeof bits);
}

#if defined(__AVX512F__)
MEDNEXT_OPS_INLINE Vector load(const Float16* from) {
    // All lanes: the form without a mask makes GCC 12 warn of what it leaves undefined.
    return (Vector)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

MEDNEXT_OPS_INLINE void store(Float16* to, Vector value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
MEDNEXT_OPS_INLINE Vector load(const Float16* from) {
    return (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

MEDNEXT_OPS_INLINE void store(Float16* to, Vector value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
}
#else
MEDNEXT_OPS_INLINE Vector load(const Float16* from) {
    Vector value;
    for (int lane = 0; lane < kLanes; ++lane) value[lane] = to_float(from[lane]);
    return value;
}

MEDNEXT_OPS_INLINE void store(Float16* to, Vector value) {
    const Words bits = (Words)value;
    const Words magnitude = bits & 0x7fffffffu;
    const Words normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding one half, whose last place is float16's smallest number, rounds to a multiple of it.
    const Words subnormal = (Words)((Vector)magnitude + 0.5f) - 0x3f000000u;
    const Words infinite = magnitude > 0x7f800000u ? Words{} + 0x7e00u : Words{} + 0x7c00u;
    const Words finite = magnitude < 0x38800000u ? subnormal : normal;
    const Words result = (magnitude >= 0x47800000u ? infinite : finite) | ((bits >> 16) & 0x8000u);
    const Halves halves = __builtin_convertvector(result, Halves);
    __builtin_memcpy(to, &halves, sizeof halves);
}
#endif

// The value as it comes back from a tensor of T.
template <typename T>
MEDNEXT_OPS_INLINE Vector rounded_to(Vector value) {
    T stored[kLanes];
    store(stored, value);
    return load(stored);
}

template <>
MEDNEXT_OPS_INLINE Vector rounded_to<float>(Vector value) {
    return value;
}

// Rows become columns: log2(kLanes) rounds, each interleaving the lower half of the rows with the upper half.
MEDNEXT_OPS_INLINE void transpose(Vector (&rows)[kLanes]) {
    Ints low, high;
    for (int i = 0; i < kLanes; ++i) {
        low[i] = i / 2 + i % 2 * kLanes;
        high[i] = low[i] + kLanes / 2;
    }
#pragma GCC unroll 4
    for (int round = 1; round < kLanes; round *= 2) {
        Vector next[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) {
            next[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
            next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
    }
}

}  // namespace
}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
