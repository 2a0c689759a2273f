#include "affine.h"

namespace mednext_ops::cpu::group_norm {

void add_parts(const AffineGradientProblem& p, float* grad_sum, float* grad_dot_normalized) {
    const std::int64_t parts = parts_of(p.forward);
    for (std::int64_t i = 0; i < p.forward.batch * p.forward.input.channels; ++i) {
        double sum = 0, dot = 0;
        for (std::int64_t part = 0; part < parts; ++part) {
            sum += p.sums[(i * parts + part) * 2];
            dot += p.sums[(i * parts + part) * 2 + 1];
        }
        grad_sum[i] = static_cast<float>(sum);
        grad_dot_normalized[i] = static_cast<float>(dot);
    }
}

}  // namespace mednext_ops::cpu::group_norm
