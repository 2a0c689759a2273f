// CUDA's arithmetic intrinsics that a host compiler does not have. Approximate ones are exact here.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

inline float __int_as_float(int bits) {
    return std::bit_cast<float>(bits);
}
inline int __float_as_int(float value) {
    return std::bit_cast<int>(value);
}
inline float __uint_as_float(unsigned bits) {
    return std::bit_cast<float>(bits);
}
inline unsigned __float_as_uint(float value) {
    return std::bit_cast<unsigned>(value);
}
inline double __longlong_as_double(long long bits) {
    return std::bit_cast<double>(bits);
}
inline long long __double_as_longlong(double value) {
    return std::bit_cast<long long>(value);
}

inline int __popc(unsigned value) {
    return std::popcount(value);
}
inline int __popcll(unsigned long long value) {
    return std::popcount(value);
}
inline int __clz(int value) {
    return std::countl_zero(static_cast<unsigned>(value));
}
inline int __ffs(int value) {
    return value == 0 ? 0 : std::countr_zero(static_cast<unsigned>(value)) + 1;
}

inline float __fmaf_rn(float a, float b, float c) {
    return std::fma(a, b, c);
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float __expf(float value) {
    return std::exp(value);
}
inline float __logf(float value) {
    return std::log(value);
}
inline float rsqrtf(float value) {
    return 1.0f / std::sqrt(value);
}
inline double rsqrt(double value) {
    return 1.0 / std::sqrt(value);
}

// Selects four of the eight bytes of (high, low), a nibble of `selector` each.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const std::uint64_t bytes = static_cast<std::uint64_t>(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned nibble = selector >> (4 * i) & 15;
        unsigned byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7))) & 0xff;
        if ((nibble & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
        result |= byte << (8 * i);
    }
    return result;
}

// (high, low) shifted, its upper or lower 32 bits.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>(((static_cast<std::uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}

inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) >> (shift & 31));
}

template <typename T>
T __ldg(const T* address) {
    return *address;
}

template <typename T>
constexpr T min(T a, T b) {
    return b < a ? b : a;
}

template <typename T>
constexpr T max(T a, T b) {
    return a < b ? b : a;
}
