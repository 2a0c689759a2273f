// Mean and reciprocal standard deviation of each group of channels on the CPU.
//
// The tensor is cut into blocks of a fixed size. `compute_blocks` may run on any number of threads, each on a range of
// blocks of its own; `finalize` then merges what they wrote in the blocks' order. The cut depends on the shape alone,
// so the result is the same, to the bit, whatever the number of threads.
#pragma once

#include <cstdint>

#include "../common/moments.h"
#include "../common/scalar_types.h"

namespace mednext_ops::cpu::group_norm {

struct StatisticsProblem {
    const void* input;  // [N, C, V], or [N, V, C] where channels_last; dense
    ScalarType type;
    bool channels_last;
    std::int64_t batch;       // N
    std::int64_t channels;    // C
    std::int64_t voxels;      // V = D * H * W
    std::int64_t num_groups;  // G, divides C
};

// How many blocks the tensor has, how many `Moments` they write in all, and about how many elements each one reads.
std::int64_t block_count(const StatisticsProblem& problem);
std::int64_t moments_count(const StatisticsProblem& problem);
std::int64_t elements_per_block(const StatisticsProblem& problem);

// Writes the moments of blocks begin <= b < end to their places in `moments`, which holds moments_count() of them.
void compute_blocks(const StatisticsProblem& problem, std::int64_t begin, std::int64_t end, Moments* moments);

// Merges the moments of each group, which lie one after another, into mean and rstd [N, G]. An empty group has no mean:
// both are NaN, as in torch.var_mean.
void finalize(const Moments* moments, std::int64_t groups, std::int64_t moments_per_group, double eps, float* mean,
              float* rstd);

}  // namespace mednext_ops::cpu::group_norm
