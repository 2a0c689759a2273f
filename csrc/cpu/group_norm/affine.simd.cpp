#include "affine.h"

#include "../dispatch/kernels.h"
#include "../simd/block.h"
#include "../simd/gelu.h"

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {
namespace {

using group_norm::AffineGradientProblem;
using group_norm::AffineProblem;

struct Part {
    Part(const AffineProblem& p, std::int64_t task) {
        const std::int64_t parts = group_norm::parts_of(p);
        const std::int64_t blocks = (p.input.channels + kLanes - 1) / kLanes;
        number = task % parts;
        channel = task / parts % blocks * kLanes;
        sample = task / parts / blocks;
        first = number * group_norm::kVoxelsPerTask;
        count = at_most(group_norm::kVoxelsPerTask, p.input.voxels - first);
        channels = at_most(kLanes, p.input.channels - channel);
        mean = load_first(p.mean + sample * p.input.channels + channel, channels);
        rstd = load_first(p.rstd + sample * p.input.channels + channel, channels);
        weight = load_first(p.weight + channel, channels);
        bias = load_first(p.bias + channel, channels);
    }

    std::int64_t number, channel, sample, first, count, channels;
    Vector mean, rstd, weight, bias;
};

}  // namespace

void group_norm_affine(const AffineProblem& p, std::int64_t begin, std::int64_t end) {
    with_scalar_type(p.input.type, [&]<typename T>(const T*) {
        for (std::int64_t task = begin; task < end; ++task) {
            const Part part(p, task);
            for_each_block(part.count, [&](std::int64_t voxel, std::int64_t count, std::int64_t) {
                Vector block[kLanes];
                load_block<T>(p.input, part.sample, part.channel, part.first + voxel, count, block);
                for (int i = 0; i < kLanes; ++i) {
                    block[i] = fma((block[i] - part.mean) * part.rstd, part.weight, part.bias);
                    if (p.gelu) block[i] = gelu(block[i]);
                }
                store_block<T>(p.output, part.sample, part.channel, part.first + voxel, count, block);
            });
        }
    });
}

void group_norm_gradient(const AffineGradientProblem& p, std::int64_t begin, std::int64_t end) {
    const AffineProblem& f = p.forward;
    with_scalar_type(f.input.type, [&]<typename T>(const T*) {
        for (std::int64_t task = begin; task < end; ++task) {
            const Part part(f, task);
            double sums[2][kLanes] = {};
            for_each_block(part.count, [&](std::int64_t voxel, std::int64_t count, std::int64_t seen) {
                Vector block[kLanes], grad[kLanes];
                load_block<T>(f.input, part.sample, part.channel, part.first + voxel, count, block);
                load_block<T>(p.grad_output, part.sample, part.channel, part.first + voxel, count, grad);
                Vector sum = {}, dot = {};
                for (std::int64_t i = 0; i < count; ++i) {
                    const Vector normalized = (block[i] - part.mean) * part.rstd;
                    if (f.gelu) {
                        const Activation activation = gelu_with_slope(fma(normalized, part.weight, part.bias));
                        grad[i] = grad[i] * activation.slope;
                    }
                    if (i < seen) continue;
                    sum += grad[i];
                    dot = fma(grad[i], normalized, dot);
                }
                for (int lane = 0; lane < kLanes; ++lane) {
                    sums[0][lane] += sum[lane];
                    sums[1][lane] += dot[lane];
                }
                if (p.grad.data != nullptr) {
                    store_block<T>(p.grad, part.sample, part.channel, part.first + voxel, count, grad);
                }
            });
            const std::int64_t parts = group_norm::parts_of(f);
            for (std::int64_t lane = 0; lane < part.channels; ++lane) {
                double* to =
                    p.sums + ((part.sample * f.input.channels + part.channel + lane) * parts + part.number) * 2;
                to[0] = sums[0][lane];
                to[1] = sums[1][lane];
            }
        }
    });
}

}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
