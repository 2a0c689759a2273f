// One task: planes of the moved tensor come into the ring, planes of the anchor into a buffer; products are summed.
#include "../dispatch/kernels.h"
#include "ring.h"
#include "row_tile.h"

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {
namespace {

using depthwise_conv3d::Axis;
using depthwise_conv3d::input_of;
using depthwise_conv3d::inputs_of;
using depthwise_conv3d::kOutputs;
using depthwise_conv3d::Range;
using depthwise_conv3d::WeightGradientPlan;
using depthwise_conv3d::WeightGradientProblem;

// Products that one register adds up in sequence: 64 keep its error near that of adding in pairs.
constexpr std::int64_t kOutputsPerSum = 64;

// A row of the anchor and the rows of the moved tensor that it meets through each kh, at tap 0 of output 0.
struct Meeting {
    const float* anchor;
    const float* const* moved;
};

// Sums for kRows rows of taps, in registers: kCount outputs at a time, each moved value goes to the taps that it
// concerns.
template <int kCount, int kTaps, int kStep, int kRows>
void sum_taps(const Meeting* meetings, std::int64_t count, std::int64_t width, float* to) {
    Vector sums[kRows][kTaps] = {};
    for (std::int64_t r = 0; r < count; ++r) {
        const float* anchor = meetings[r].anchor;
        const float* const* moved = meetings[r].moved;
        for (std::int64_t first = 0; first < width; first += kCount) {
            Vector anchors[kCount];
#pragma GCC unroll 8
            for (int t = 0; t < kCount; ++t) anchors[t] = load(anchor + (first + t) * kLanes);
#pragma GCC unroll 8
            for (int row = 0; row < kRows; ++row) {
                const float* from = moved[row] + first * kStep * kLanes;
#pragma GCC unroll 32
                for (int i = 0; i < (kCount - 1) * kStep + kTaps; ++i) {
                    const Vector value = load(from + i * kLanes);
#pragma GCC unroll 8
                    for (int t = 0; t < kCount; ++t) {
                        const int m = i - t * kStep;
                        if (m >= 0 && m < kTaps) sums[row][m] = fma(value, anchors[t], sums[row][m]);
                    }
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
        for (int m = 0; m < kTaps; ++m) {
            float* at = to + (row * kTaps + m) * kLanes;
            store(at, load(at) + sums[row][m]);
        }
    }
}

// The same for one row of any number of taps, stride and dilation: a tap at a time.
void sum_taps_of_any(const Axis& axis, const Meeting* meetings, std::int64_t count, std::int64_t width, float* to) {
    for (std::int64_t m = 0; m < axis.kernel; ++m) {
        Vector sums[kOutputs] = {};
        for (std::int64_t r = 0; r < count; ++r) {
            const float* anchor = meetings[r].anchor;
            const float* moved = meetings[r].moved[0] + m * axis.dilation * kLanes;
            for (std::int64_t first = 0; first < width; first += kOutputs) {
#pragma GCC unroll 8
                for (int t = 0; t < kOutputs; ++t) {
                    const Vector value = load(moved + (first + t) * axis.stride * kLanes);
                    sums[t] = fma(value, load(anchor + (first + t) * kLanes), sums[t]);
                }
            }
        }
        for (int half = kOutputs / 2; half > 0; half /= 2) {
            for (int t = 0; t < half; ++t) sums[t] += sums[t + half];
        }
        store(to + m * kLanes, load(to + m * kLanes) + sums[0]);
    }
}

using SumTaps = void (*)(const Meeting*, std::int64_t, std::int64_t, float*);

// How many rows of taps go together, and how: as many sums and anchors as there are registers, less one.
struct Kernel {
    int rows;
    SumTaps together;
    SumTaps alone;
};

template <int kStep>
Kernel kernel_for(std::int64_t taps) {
#if defined(__AVX512F__)
    if (taps == 3) return {3, sum_taps<8, 3, kStep, 3>, sum_taps<8, 3, kStep, 1>};
    if (taps == 5) return {5, sum_taps<4, 5, kStep, 5>, sum_taps<8, 5, kStep, 1>};
    if (taps == 7) return {2, sum_taps<8, 7, kStep, 2>, sum_taps<8, 7, kStep, 1>};
#else
    if (taps == 3) return {3, sum_taps<4, 3, kStep, 3>, sum_taps<8, 3, kStep, 1>};
    if (taps == 5) return {2, sum_taps<4, 5, kStep, 2>, sum_taps<8, 5, kStep, 1>};
    if (taps == 7) return {1, sum_taps<8, 7, kStep, 1>, sum_taps<8, 7, kStep, 1>};
#endif
    return {1, nullptr, nullptr};
}

Kernel kernel_of(const Axis& axis) {
    if (axis.dilation == 1 && axis.stride == 1) return kernel_for<1>(axis.kernel);
    if (axis.dilation == 1 && axis.stride == 2) return kernel_for<2>(axis.kernel);
    return {1, nullptr, nullptr};
}

template <typename T>
class Task {
  public:
    Task(const WeightGradientProblem& problem, const WeightGradientPlan& plan, float* scratch)
        : p_(problem),
          plan_(plan),
          kernel_(kernel_of(problem.axes[2])),
          ring_(scratch, plan.slots, plan.ring_rows, plan.ring_front, plan.ring_width, problem.axes[2].input) {
        zeros_ = scratch + plan.slots * plan.ring_rows * plan.ring_width * kLanes;
        for (std::int64_t i = 0; i < plan.ring_width; ++i) store(zeros_ + i * kLanes, Vector{});
        anchors_ = zeros_ + plan.ring_width * kLanes;
        sums_ = anchors_ + plan.rows_per_task * plan.anchor_width * kLanes;
        for (std::int64_t i = 0; i < plan.rows_per_task * plan.anchor_width; ++i)
            store(anchors_ + i * kLanes, Vector{});
        meetings_ = reinterpret_cast<Meeting*>(sums_ + plan.taps * kLanes);
        moved_ = reinterpret_cast<const float**>(meetings_ + plan.rows_per_task);
    }

    void run(std::int64_t task, float* partial) {
        const auto& [depth, height, width] = p_.axes;
        const std::int64_t plane_task = task % plan_.plane_tasks;
        const std::int64_t row_task = task / plan_.plane_tasks % plan_.row_tasks;
        const std::int64_t channel = task / plan_.plane_tasks / plan_.row_tasks % plan_.channel_blocks * kLanes;
        const std::int64_t sample = task / plan_.plane_tasks / plan_.row_tasks / plan_.channel_blocks;
        first_row_ = row_task * plan_.rows_per_task;
        row_count_ = at_most(plan_.rows_per_task, height.output - first_row_);

        const Reader<T> anchor(p_.anchor, sample, channel);
        const Reader<T> moved(p_.moved, sample, channel);
        const Range rows = inputs_of(height, first_row_, first_row_ + row_count_);
        ring_.restart(rows.begin, rows.end - rows.begin, height.input);
        for (std::int64_t i = 0; i < plan_.taps; ++i) store(partial + i * kLanes, Vector{});
        const std::int64_t end = at_most((plane_task + 1) * plan_.planes_per_task, depth.output);
        for (std::int64_t plane = plane_task * plan_.planes_per_task; plane < end; ++plane) {
            const Range planes = inputs_of(depth, plane, plane + 1);
            if (rows.begin >= rows.end || planes.begin >= planes.end) continue;
            ring_.require(moved, planes.begin, planes.end);
            read_anchors(anchor, plane);
            for (std::int64_t i = 0; i < plan_.taps; ++i) store(sums_ + i * kLanes, Vector{});
            for (std::int64_t kd = 0; kd < depth.kernel; ++kd) {
                const std::int64_t moved_plane = input_of(depth, plane, kd);
                if (moved_plane >= 0) sum_plane(moved_plane, sums_ + kd * height.kernel * width.kernel * kLanes);
            }
            for (std::int64_t i = 0; i < plan_.taps * kLanes; i += kLanes) {
                store(partial + i, load(partial + i) + load(sums_ + i));
            }
        }
    }

  private:
    void read_anchors(const Reader<T>& reader, std::int64_t plane) {
        const std::int64_t length = p_.axes[2].output;
        const std::int64_t first = (plane * p_.axes[1].output + first_row_) * length;
        const RowWalk walk{length, plan_.anchor_width};
        for_each_block(row_count_ * length, [&](std::int64_t voxel, std::int64_t count, std::int64_t) {
            Vector block[kLanes];
            reader.read(first + voxel, count, block);
            walk(voxel, count, [&](int i, std::int64_t offset) { store(anchors_ + offset, block[i]); });
        });
    }

    // Adds one plane's products to the sums [kh][kw] of one kd.
    void sum_plane(std::int64_t moved_plane, float* sums) {
        const auto& [depth, height, width] = p_.axes;
        const std::int64_t rows_per_sum = kOutputsPerSum > plan_.anchor_width ? kOutputsPerSum / plan_.anchor_width : 1;
        for (std::int64_t kh = 0; kh < height.kernel;) {
            const bool together = kernel_.together != nullptr && kh + kernel_.rows <= height.kernel;
            const std::int64_t taken = together ? kernel_.rows : 1;
            const std::int64_t count = list_meetings(moved_plane, kh, taken);
            for (std::int64_t row = 0; row < count; row += rows_per_sum) {
                const std::int64_t rows = at_most(rows_per_sum, count - row);
                float* to = sums + kh * width.kernel * kLanes;
                if (kernel_.together == nullptr) {
                    sum_taps_of_any(width, meetings_ + row, rows, plan_.anchor_width, to);
                } else {
                    (together ? kernel_.together : kernel_.alone)(meetings_ + row, rows, plan_.anchor_width, to);
                }
            }
            kh += taken;
        }
    }

    // The rows that meet at least one row through kh, ..., kh + taken - 1; a row that is not there is one of zeros.
    std::int64_t list_meetings(std::int64_t moved_plane, std::int64_t kh, std::int64_t taken) {
        const auto& [depth, height, width] = p_.axes;
        std::int64_t count = 0;
        for (std::int64_t row = 0; row < row_count_; ++row) {
            const float** moved = moved_ + count * taken;
            bool any = false;
            for (std::int64_t i = 0; i < taken; ++i) {
                const std::int64_t moved_row = input_of(height, first_row_ + row, kh + i);
                any |= moved_row >= 0;
                moved[i] = moved_row < 0 ? zeros_ : ring_.row(moved_plane, moved_row) - width.padding * kLanes;
            }
            if (!any) continue;
            meetings_[count] = {anchors_ + row * plan_.anchor_width * kLanes, moved};
            ++count;
        }
        return count;
    }

    const WeightGradientProblem& p_;
    const WeightGradientPlan& plan_;
    Kernel kernel_;
    Ring ring_;
    float* zeros_;
    float* anchors_;
    float* sums_;
    Meeting* meetings_;
    const float** moved_;
    std::int64_t first_row_ = 0, row_count_ = 0;
};

}  // namespace

void weight_gradient(const WeightGradientProblem& problem, const WeightGradientPlan& plan, std::int64_t begin,
                     std::int64_t end, float* scratch, float* partial) {
    with_scalar_type(problem.anchor.values.type, [&]<typename T>(const T*) {
        Task<T> task(problem, plan, scratch);
        for (std::int64_t i = begin; i < end; ++i) task.run(i, partial + i * plan.taps * kLanes);
    });
}

}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
