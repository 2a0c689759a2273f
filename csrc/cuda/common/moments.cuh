// How the moments of values are taken and merged on the device.
//
// Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances (1979). Sums of
// squares are never subtracted from each other at full size, so a mean far larger than the deviation costs no digits.
// Every merge here has a fixed order: the same input gives the same bits.
#pragma once

#include <cstdint>

#include "moments.h"
#include "warp.h"

namespace mednext_ops::cuda {

template <typename Real>
__device__ inline Moments<Real> merge(const Moments<Real>& a, const Moments<Real>& b) {
    const Real count = a.count + b.count;
    const Real share = count > Real(0) ? b.count / count : Real(0);
    const Real difference = b.mean - a.mean;
    return {count, a.mean + difference * share,
            a.sum_squared_deviations + b.sum_squared_deviations + difference * difference * a.count * share};
}

// The moments of the first `count` of N values in registers, in two passes; count may be 0. `missing` is what their
// mean, as a float, is too small by.
template <int N>
__device__ inline Moments<float> moments_of(const float (&values)[N], int count, float& missing) {
    const float inverse = count > 0 ? 1.0f / static_cast<float>(count) : 0.0f;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += i < count ? values[i] : 0.0f;
    const float mean = sum * inverse;
    // The mean was rounded: the sum of the deviations from it is what it lacks.
    float deviations = 0.0f;
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float deviation = i < count ? values[i] - mean : 0.0f;
        deviations += deviation;
        squares = fmaf(deviation, deviation, squares);
    }
    missing = deviations * inverse;
    const float centred = fmaf(-deviations, missing, squares);
    return {static_cast<float>(count), mean, centred < 0.0f ? 0.0f : centred};  // NaN stays NaN
}

// Moments of the values that a mask names, less the pivot, in two passes.
template <int N>
__device__ inline Moments<float> masked_moments(const float (&values)[N], unsigned mask, float pivot) {
    const float count = static_cast<float>(__popc(mask));
    const float inverse = mask != 0 ? 1.0f / count : 0.0f;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += mask >> i & 1 ? values[i] - pivot : 0.0f;
    const float mean = sum * inverse;
    float squares = 0.0f;
    float deviations = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float deviation = mask >> i & 1 ? values[i] - pivot - mean : 0.0f;
        deviations += deviation;
        squares = fmaf(deviation, deviation, squares);
    }
    const float correction = deviations * inverse;
    const float centred = fmaf(-deviations, correction, squares);
    return {count, mean + correction, centred < 0.0f ? 0.0f : centred};
}

// Sums of values less a pivot, which is one of them, and of the squares of that. What is added at once is summed, and
// then added with what was rounded off before (Kahan), so that a sum of any length costs no digits.
struct ShiftedSums {
    float pivot = 0.0f;
    float sum = 0.0f;
    float sum_missing = 0.0f;
    float squares = 0.0f;
    float squares_missing = 0.0f;

    __device__ static void add(float& total, float& missing, float value) {
        const float whole = value - missing;
        const float next = total + whole;
        missing = (next - total) - whole;
        total = next;
    }

    // Those of `values` that the mask names, or all of them.
    template <bool All, int N>
    __device__ void add(const float (&values)[N], unsigned mask) {
        constexpr int kChains = N % 4 == 0 ? 4 : 1;  // additions that do not wait for each other
        float of_these[kChains] = {};
        float squares_of_these[kChains] = {};
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float deviation = All || (mask >> i & 1) ? values[i] - pivot : 0.0f;
            of_these[i % kChains] += deviation;
            squares_of_these[i % kChains] = fmaf(deviation, deviation, squares_of_these[i % kChains]);
        }
#pragma unroll
        for (int i = 1; i < kChains; ++i) {
            of_these[0] += of_these[i];
            squares_of_these[0] += squares_of_these[i];
        }
        add_sums(of_these[0], squares_of_these[0]);
    }

    // Of values less the pivot, and of their squares.
    __device__ void add_sums(float of_these, float squares_of_these) {
        add(sum, sum_missing, of_these);
        add(squares, squares_missing, squares_of_these);
    }

    // Of `count` values in all.
    __device__ Moments<double> moments(std::int64_t count) const {
        if (count == 0) return {0.0, 0.0, 0.0};
        const double all = static_cast<double>(sum) - static_cast<double>(sum_missing);
        const double all_squares = static_cast<double>(squares) - static_cast<double>(squares_missing);
        const double mean = all / static_cast<double>(count);
        const double centred = all_squares - all * mean;
        return {static_cast<double>(count), static_cast<double>(pivot) + mean,
                centred < 0.0 ? 0.0 : centred};  // NaN stays NaN
    }
};

// Merges the moments of a warp's lanes; the result is in lane 0.
template <typename Real>
__device__ inline Moments<Real> merge_warp(Moments<Real> mine) {
#pragma unroll
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
        const Moments<Real> theirs{__shfl_down_sync(kFullWarp, mine.count, distance),
                                   __shfl_down_sync(kFullWarp, mine.mean, distance),
                                   __shfl_down_sync(kFullWarp, mine.sum_squared_deviations, distance)};
        mine = merge(mine, theirs);
    }
    return mine;
}

// The moments of a block out of those of its lanes, in the order of the warps; `of_warp` is shared, a place a warp.
__device__ inline void store_moments(const Moments<double>& of_lane, Moments<double>* of_warp,
                                     Moments<double>* result) {
    Moments<double> all = merge_warp(of_lane);
    if (threadIdx.x % kWarpSize == 0) of_warp[threadIdx.x / kWarpSize] = all;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned other = 1; other < blockDim.x / kWarpSize; ++other) all = merge(all, of_warp[other]);
    *result = all;
}

}  // namespace mednext_ops::cuda
