// The element types of a tensor on the CPU, and their conversion to float. Storage only: all arithmetic is wider.
#pragma once

#include <bit>
#include <cstdint>
#include <utility>

namespace mednext_ops::cpu {

enum class ScalarType { float32, float16, bfloat16 };

struct Float16 {
    std::uint16_t bits;
};

struct BFloat16 {
    std::uint16_t bits;
};

inline float to_float(float value) {
    return value;
}

inline float to_float(BFloat16 value) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

// Selects instead of branches, so that a loop over it vectorises without half-precision instructions. Subnormals are
// converted from their integer mantissa: the result does not depend on whether the thread flushes denormals.
inline float to_float(Float16 value) {
    const std::uint32_t bits = value.bits;
    const std::uint32_t sign = (bits & 0x8000u) << 16;
    const std::uint32_t magnitude = bits & 0x7fffu;
    const std::uint32_t normal = (magnitude << 13) + (112u << 23);  // exponent bias 15 -> 127
    const std::uint32_t infinite = (magnitude << 13) | 0x7f800000u;
    const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24f);
    const std::uint32_t finite = magnitude < 0x0400u ? subnormal : normal;
    return std::bit_cast<float>(sign | (magnitude < 0x7c00u ? finite : infinite));
}

// Calls `function` with a null pointer to the element type that `type` names.
template <typename Function>
decltype(auto) with_scalar_type(ScalarType type, Function&& function) {
    switch (type) {
        case ScalarType::float16:
            return std::forward<Function>(function)(static_cast<const Float16*>(nullptr));
        case ScalarType::bfloat16:
            return std::forward<Function>(function)(static_cast<const BFloat16*>(nullptr));
        case ScalarType::float32:
            break;
    }
    return std::forward<Function>(function)(static_cast<const float*>(nullptr));
}

}  // namespace mednext_ops::cpu
