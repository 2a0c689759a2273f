// Count, mean and sum of squared deviations of a set of numbers, and how those of two sets combine.
//
// Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances (1979). Sums of
// squares are never subtracted from each other at full size, so a mean far larger than the deviation costs no digits.
#pragma once

namespace mednext_ops::cpu {

struct Moments {
    double count = 0;
    double mean = 0;
    double sum_squared_deviations = 0;
};

inline Moments merge(const Moments& a, const Moments& b) {
    const double count = a.count + b.count;
    if (count == 0) return a;
    const double share = b.count / count;
    const double difference = b.mean - a.mean;
    return {count, a.mean + difference * share,
            a.sum_squared_deviations + b.sum_squared_deviations + difference * difference * a.count * share};
}

// From sums over x - shift and (x - shift)^2, where `shift` is any value of the set's own magnitude.
inline Moments moments_from_shifted_sums(double count, double shift, double sum, double sum_squares) {
    const double offset = sum / count;
    const double deviations = sum_squares - sum * offset;
    return {count, shift + offset, deviations < 0 ? 0.0 : deviations};  // NaN stays NaN
}

}  // namespace mednext_ops::cpu
