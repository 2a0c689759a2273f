// Division by a number that the host knows: a product and a shift, where the device would take some twenty
// instructions.
//
// Granlund and Montgomery, "Division by invariant integers using multiplication", PLDI 1994.
#pragma once

#include <cstdint>

namespace mednext_ops::cuda {

struct Division {
    unsigned quotient, remainder;
};

// Divides numbers below 2^31 by 1 to 2^31.
class Divisor {
  public:
    explicit Divisor(unsigned divisor) : divisor_(divisor) {
        while ((std::uint64_t{1} << shift_) < divisor) ++shift_;
        const std::uint64_t excess = (std::uint64_t{1} << shift_) - divisor;
        multiplier_ = static_cast<unsigned>((excess << 32) / divisor + 1);
    }

    __device__ Division divide(unsigned number) const {
        const auto high = static_cast<unsigned>(std::uint64_t{number} * multiplier_ >> 32);
        const unsigned quotient = (high + number) >> shift_;
        return {quotient, number - quotient * divisor_};
    }

  private:
    unsigned divisor_, multiplier_, shift_ = 0;
};

}  // namespace mednext_ops::cuda
