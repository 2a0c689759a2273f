// Count, mean and sum of squared deviations of a set of numbers: what kernels leave of a tensor for its statistics.
#pragma once

namespace mednext_ops::cuda {

// Real is float inside a block of threads, and double where the results of many blocks come together.
template <typename Real>
struct Moments {
    Real count;
    Real mean;
    Real sum_squared_deviations;
};

}  // namespace mednext_ops::cuda
