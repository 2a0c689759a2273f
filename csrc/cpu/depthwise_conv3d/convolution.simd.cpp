// One task: planes come into the ring, rows of outputs are computed from it, results go out through blocks.
#include "../dispatch/kernels.h"
#include "../simd/fetch.h"
#include "ring.h"
#include "row_tile.h"

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {
namespace {

using depthwise_conv3d::Axis;
using depthwise_conv3d::ConvolutionPlan;
using depthwise_conv3d::ConvolutionProblem;
using depthwise_conv3d::input_of;
using depthwise_conv3d::inputs_of;
using depthwise_conv3d::kOutputs;
using depthwise_conv3d::Phase;
using depthwise_conv3d::Range;

// An input row and the weights that it meets, both at tap 0 of output 0.
struct Row {
    const float* input;
    const float* weight;
};

// kCount outputs along W from all their rows. The inputs pass once; each goes to the outputs that it concerns, so that
// weights and outputs stay in registers: (kCount - 1) * kStep + kTaps loads for kCount * kTaps multiplications.
template <int kCount, int kTaps, int kStep>
MEDNEXT_OPS_INLINE void outputs_of(const Row* rows, std::int64_t count, std::int64_t first, Vector bias, float* to,
                                   std::int64_t step) {
    Vector sums[kCount];
#pragma GCC unroll 8
    for (int t = 0; t < kCount; ++t) sums[t] = bias;
    for (std::int64_t r = 0; r < count; ++r) {
        const float* input = rows[r].input + first * kStep * kLanes;
        Vector weights[kTaps];
#pragma GCC unroll 8
        for (int m = 0; m < kTaps; ++m) weights[m] = load(rows[r].weight + m * kLanes);
#pragma GCC unroll 32
        for (int i = 0; i < (kCount - 1) * kStep + kTaps; ++i) {
            const Vector value = load(input + i * kLanes);
#pragma GCC unroll 8
            for (int t = 0; t < kCount; ++t) {
                const int m = i - t * kStep;
                if (m >= 0 && m < kTaps) sums[t] = fma(value, weights[m], sums[t]);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kCount; ++t) store(to + t * step * kLanes, sums[t]);
}

// The same for any number of taps, step and dilation.
MEDNEXT_OPS_INLINE void outputs_of_any(const Phase& phase, const Row* rows, std::int64_t count, std::int64_t first,
                                       Vector bias, float* to) {
    Vector sums[kOutputs];
    for (int t = 0; t < kOutputs; ++t) sums[t] = bias;
    for (std::int64_t r = 0; r < count; ++r) {
        const float* input = rows[r].input + first * phase.input_step * kLanes;
        for (std::int64_t m = 0; m < phase.taps; ++m) {
            const Vector weight = load(rows[r].weight + m * kLanes);
#pragma GCC unroll 8
            for (int t = 0; t < kOutputs; ++t) {
                const float* value = input + (t * phase.input_step + m * phase.input_tap_step) * kLanes;
                sums[t] = fma(load(value), weight, sums[t]);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kOutputs; ++t) store(to + t * phase.step * kLanes, sums[t]);
}

// Lines of what comes next that are fetched with each block of outputs: as many as three volumes have there.
constexpr std::int64_t kFetchedLines = 3 * kOutputs;

// All outputs of a phase in a tile of output rows; `starts` has the first entry in `rows` of each, and the end.
// Rows are the inner loop: the next one meets most of the inputs again, which are then still in the first-level cache.
template <typename Block>
MEDNEXT_OPS_INLINE void for_each_output(const Phase& phase, const Row* rows, const std::int64_t* starts,
                                        std::int64_t row_count, float* to, std::int64_t width, std::int64_t block,
                                        Fetch& fetch, Block&& outputs) {
    for (std::int64_t first = 0; first < phase.count; first += block) {
        for (std::int64_t row = 0; row < row_count; ++row) {
            float* at = to + (row * width + phase.first + first * phase.step) * kLanes;
            outputs(rows + starts[row], starts[row + 1] - starts[row], first, at);
            fetch.some(kFetchedLines);
        }
    }
}

template <int kTaps, int kStep>
void compute(const Phase& phase, const Row* rows, const std::int64_t* starts, std::int64_t row_count, Vector bias,
             float* to, std::int64_t width, Fetch& fetch) {
    constexpr int kHalf = kOutputs / 2;
    if (phase.count <= kHalf) {
        for_each_output(phase, rows, starts, row_count, to, width, kHalf, fetch,
                        [&](const Row* r, std::int64_t count, std::int64_t first, float* at) {
                            outputs_of<kHalf, kTaps, kStep>(r, count, first, bias, at, phase.step);
                        });
        return;
    }
    for_each_output(phase, rows, starts, row_count, to, width, kOutputs, fetch,
                    [&](const Row* r, std::int64_t count, std::int64_t first, float* at) {
                        outputs_of<kOutputs, kTaps, kStep>(r, count, first, bias, at, phase.step);
                    });
}

void compute_any(const Phase& phase, const Row* rows, const std::int64_t* starts, std::int64_t row_count, Vector bias,
                 float* to, std::int64_t width, Fetch& fetch) {
    for_each_output(phase, rows, starts, row_count, to, width, kOutputs, fetch,
                    [&](const Row* r, std::int64_t count, std::int64_t first, float* at) {
                        outputs_of_any(phase, r, count, first, bias, at);
                    });
}

using Compute = void (*)(const Phase&, const Row*, const std::int64_t*, std::int64_t, Vector, float*, std::int64_t,
                         Fetch&);

// Kernels of 3, 5 and 7 at stride 1 and 2; and the parts of 1 to 4 taps that a stride of 2 leaves of them in
// scattering.
Compute compute_for(const Phase& phase) {
    if (phase.input_tap_step != 1 && phase.taps > 1) return compute_any;
    if (phase.input_step == 1) {
        switch (phase.taps) {
            case 1:
                return compute<1, 1>;
            case 2:
                return compute<2, 1>;
            case 3:
                return compute<3, 1>;
            case 4:
                return compute<4, 1>;
            case 5:
                return compute<5, 1>;
            case 7:
                return compute<7, 1>;
        }
    }
    if (phase.input_step == 2) {
        switch (phase.taps) {
            case 1:
                return compute<1, 2>;
            case 3:
                return compute<3, 2>;
            case 5:
                return compute<5, 2>;
            case 7:
                return compute<7, 2>;
        }
    }
    return compute_any;
}

// Moments of a task's outputs, a channel a lane: those of a block around its own mean, merged as common/moments.h does.
class MomentSums {
  public:
    MEDNEXT_OPS_INLINE void add(const Vector (&block)[kLanes], std::int64_t begin, std::int64_t end) {
        if (begin >= end) return;
        const float count = static_cast<float>(end - begin);
        Vector sum = {};
        for (std::int64_t i = begin; i < end; ++i) sum += block[i];
        const Vector centre = sum / count;
        Vector offset = {}, squares = {};
        for (std::int64_t i = begin; i < end; ++i) {
            const Vector deviation = block[i] - centre;
            offset += deviation;
            squares = fma(deviation, deviation, squares);
        }
        const double seen = count_;
        count_ += count;
        const double share = count / count_;
        for (int lane = 0; lane < kLanes; ++lane) {
            const double mean = static_cast<double>(centre[lane]) + static_cast<double>(offset[lane]) / count;
            const double difference = mean - mean_[lane];
            mean_[lane] += difference * share;
            deviations_[lane] += static_cast<double>(squares[lane]) + difference * difference * seen * share;
        }
    }

    void write(Moments* to, std::int64_t channels, std::int64_t stride) const {
        for (std::int64_t lane = 0; lane < channels; ++lane) {
            Moments& moments = to[lane * stride];
            moments.count = count_;
            moments.mean = mean_[lane];
            moments.sum_squared_deviations = deviations_[lane];
        }
    }

  private:
    double count_ = 0;
    double mean_[kLanes] = {};
    double deviations_[kLanes] = {};
};

template <typename T>
class Task {
  public:
    Task(const ConvolutionProblem& problem, const ConvolutionPlan& plan, float* scratch)
        : p_(problem),
          plan_(plan),
          ring_(scratch, plan.slots, plan.ring_rows, plan.ring_front, plan.ring_width, problem.axes[2].input) {
        results_ = scratch + plan.slots * plan.ring_rows * plan.ring_width * kLanes;
        weights_ = results_ + plan.rows_per_task * plan.output_width * kLanes;
        const std::int64_t taps = p_.axes[0].kernel * p_.axes[1].kernel;
        rows_ = reinterpret_cast<Row*>(weights_ + taps * p_.axes[2].kernel * kLanes);
        starts_ = reinterpret_cast<std::int64_t*>(rows_ + plan.rows_per_task * taps);
    }

    void run(std::int64_t task) {
        const auto& [depth, height, width] = p_.axes;
        plane_task_ = task % plan_.plane_tasks;
        row_task_ = task / plan_.plane_tasks % plan_.row_tasks;
        channel_ = task / plan_.plane_tasks / plan_.row_tasks % plan_.channel_blocks * kLanes;
        sample_ = task / plan_.plane_tasks / plan_.row_tasks / plan_.channel_blocks;
        channels_ = at_most(kLanes, p_.output.channels - channel_);
        first_row_ = row_task_ * plan_.rows_per_task;
        row_count_ = at_most(plan_.rows_per_task, height.output - first_row_);

        order_weights();
        const Vector bias = p_.bias == nullptr ? Vector{} : load_first(p_.bias + channel_, channels_);
        const Reader<T> reader(p_.input, sample_, channel_);
        const Range rows = inputs_of(height, first_row_, first_row_ + row_count_);
        ring_.restart(rows.begin, rows.end - rows.begin, height.input);
        MomentSums sums;
        const std::int64_t end = at_most((plane_task_ + 1) * plan_.planes_per_task, depth.output);
        for (std::int64_t plane = plane_task_ * plan_.planes_per_task; plane < end; ++plane) {
            const Range planes = inputs_of(depth, plane, plane + 1);
            if (rows.begin < rows.end && planes.begin < planes.end) ring_.require(reader, planes.begin, planes.end);
            fetch_next(rows, planes.end, plane + 1);
            const float* weights = weights_;
            for (const Phase& phase : plan_.phases) {
                list_rows(phase, plane, weights);
                compute_for(phase)(phase, rows_, starts_, row_count_, bias, results_, plan_.output_width, fetch_);
                weights += depth.kernel * height.kernel * phase.taps * kLanes;
            }
            write_plane(plane, sums);
        }
        if (p_.moments != nullptr) {
            const std::int64_t each = plan_.row_tasks * plan_.plane_tasks;
            Moments* to = p_.moments + (sample_ * p_.output.channels + channel_) * each;
            sums.write(to + row_task_ * plan_.plane_tasks + plane_task_, channels_, each);
        }
    }

  private:
    // While this plane is worked on, fetches `rows` of the next input plane and what is added to the next output plane.
    void fetch_next(const Range& rows, std::int64_t plane, std::int64_t output_plane) {
        const auto& [depth, height, width] = p_.axes;
        const std::int64_t first = (plane * height.input + rows.begin) * width.input;
        const std::int64_t count = (rows.end - rows.begin) * width.input;
        fetch_.restart();
        fetch_.template add<T>(p_.input.values, sample_, channel_, kLanes, first, count);
        if (p_.input.scale != nullptr) {
            fetch_.template add<T>(p_.input.output, sample_, channel_, kLanes, first, count);
        }
        fetch_.template add<T>(p_.add, sample_, channel_, kLanes,
                               (output_plane * height.output + first_row_) * width.output, row_count_ * width.output);
    }

    // [phase][kd][kh][tap of the phase][lane]
    void order_weights() {
        const auto& [depth, height, width] = p_.axes;
        const std::int64_t each = depth.kernel * height.kernel * width.kernel;
        float* to = weights_;
        for (const Phase& phase : plan_.phases) {
            for (std::int64_t k = 0; k < depth.kernel * height.kernel; ++k) {
                for (std::int64_t m = 0; m < phase.taps; ++m, to += kLanes) {
                    const std::int64_t tap = k * width.kernel + phase.first_tap + m * phase.tap_step;
                    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
                        to[lane] = lane < channels_ ? p_.weight[(channel_ + lane) * each + tap] : 0.0f;
                    }
                }
            }
        }
    }

    void list_rows(const Phase& phase, std::int64_t plane, const float* weights) {
        const auto& [depth, height, width] = p_.axes;
        std::int64_t entry = 0;
        for (std::int64_t row = 0; row < row_count_; ++row) {
            starts_[row] = entry;
            for (std::int64_t kd = 0; kd < (phase.taps > 0 ? depth.kernel : 0); ++kd) {
                const std::int64_t input_plane = input_of(depth, plane, kd);
                if (input_plane < 0) continue;
                for (std::int64_t kh = 0; kh < height.kernel; ++kh) {
                    const std::int64_t input_row = input_of(height, first_row_ + row, kh);
                    if (input_row < 0) continue;
                    rows_[entry].input = ring_.row(input_plane, input_row) + phase.first_input * kLanes;
                    rows_[entry].weight = weights + (kd * height.kernel + kh) * phase.taps * kLanes;
                    ++entry;
                }
            }
        }
        starts_[row_count_] = entry;
    }

    void write_plane(std::int64_t plane, MomentSums& sums) {
        const std::int64_t length = p_.axes[2].output;
        const std::int64_t first = (plane * p_.axes[1].output + first_row_) * length;
        const RowWalk walk{length, plan_.output_width};
        for_each_block(row_count_ * length, [&](std::int64_t voxel, std::int64_t count, std::int64_t seen) {
            Vector block[kLanes];
            walk(voxel, count, [&](int i, std::int64_t offset) { block[i] = load(results_ + offset); });
            for (std::int64_t i = count; i < kLanes; ++i) block[i] = Vector{};
            if (p_.add.data != nullptr) {
                store_sum<T>(p_.output, p_.add, sample_, channel_, first + voxel, count, block);
                return;
            }
            if (p_.moments != nullptr) {
                for (int i = 0; i < kLanes; ++i) block[i] = rounded_to<T>(block[i]);
                sums.add(block, seen, count);
            }
            store_block<T>(p_.output, sample_, channel_, first + voxel, count, block);
        });
    }

    const ConvolutionProblem& p_;
    const ConvolutionPlan& plan_;
    Ring ring_;
    Fetch fetch_;
    float* results_;
    float* weights_;
    Row* rows_;
    std::int64_t* starts_;
    std::int64_t plane_task_ = 0, row_task_ = 0, channel_ = 0, sample_ = 0, channels_ = 0, first_row_ = 0,
                 row_count_ = 0;
};

}  // namespace

void convolve(const ConvolutionProblem& problem, const ConvolutionPlan& plan, std::int64_t begin, std::int64_t end,
              float* scratch) {
    with_scalar_type(problem.output.type, [&]<typename T>(const T*) {
        Task<T> task(problem, plan, scratch);
        for (std::int64_t i = begin; i < end; ++i) task.run(i);
    });
}

}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
