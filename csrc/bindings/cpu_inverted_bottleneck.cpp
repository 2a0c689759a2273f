// mednext_ops_native::inverted_bottleneck_with_gain, its GRN sums and its gradient on CPU tensors.
//
// GRN arrives as a gain of the hidden tensor, its bias folded into the compression's (mednext_ops/backends/cpu).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../cpu/common/scratch.h"
#include "../cpu/dispatch/kernels.h"
#include "cpu_volume.h"

namespace mednext_ops::bindings {
namespace {

namespace kernels = mednext_ops::cpu::inverted_bottleneck;
using Memory = cpu::AlignedFloats;

// Fewer multiplications than this are not worth a second thread.
constexpr std::int64_t kOperationsPerThread = 1 << 18;

void require_vector(const char* op, const char* name, const Tensor& tensor, std::int64_t extent) {
    require_floating_type(op, name, tensor);
    require(tensor.dim() == 1 && tensor.size(0) == extent, op, ": ", name, " must be [", extent, "], got ",
            shape_of(tensor));
}

void require_matrix(const char* op, const char* name, const Tensor& tensor, std::int64_t rows, std::int64_t columns) {
    require_floating_type(op, name, tensor);
    require(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns, op, ": ", name, " must be [",
            rows, ", ", columns, "], got ", shape_of(tensor));
}

// matrix [rows, columns], or its transpose, as the right operand of a product.
Memory packed(const Tensor& tensor, bool transposed, std::int64_t padded_columns) {
    const Tensor matrix = floats(tensor).tensor;
    const std::int64_t panel = 2 * cpu::kernels().lanes;
    const std::int64_t rows = matrix.size(transposed ? 1 : 0), columns = matrix.size(transposed ? 0 : 1);
    const std::int64_t row = transposed ? 1 : columns, column = transposed ? rows : 1;
    Memory result = cpu::aligned_floats(padded_columns * rows);
    const float* source = static_cast<const float*>(matrix.const_data_ptr());
    const std::int64_t grain = std::max<std::int64_t>(1, 32768 / std::max<std::int64_t>(1, rows * panel));
    torch::stable::parallel_for(0, padded_columns / panel, grain, [&](std::int64_t begin, std::int64_t end) {
        kernels::pack(source, rows, columns, row, column, panel, begin, end, result.get());
    });
    return result;
}

// Rows of `columns` numbers, padded with zeros.
Memory padded(const Tensor& tensor, std::int64_t columns, std::int64_t padded_columns) {
    const Tensor rows = floats(tensor).tensor;
    const std::int64_t count = columns == 0 ? 0 : rows.numel() / columns;
    Memory result = cpu::aligned_floats(count * padded_columns);
    const float* source = static_cast<const float*>(rows.const_data_ptr());
    for (std::int64_t i = 0; i < count; ++i) {
        std::copy_n(source + i * columns, columns, result.get() + i * padded_columns);
        std::fill_n(result.get() + i * padded_columns + columns, padded_columns - columns, 0.0f);
    }
    return result;
}

// What all three operators take.
struct Arguments {
    const Tensor &input, &mean, &rstd, &norm_weight, &norm_bias, &expand_weight;
    const std::optional<Tensor>& expand_bias;
};

// The same, checked and laid out.
struct Bottleneck {
    kernels::Shape shape;
    kernels::Plan plan;
    DenseVolume input;
    Floats mean, rstd, norm_weight, norm_bias;
    Memory expand, expand_bias, gain;

    Bottleneck(const char* op, const Arguments& a, std::int64_t outputs, const std::optional<Tensor>& gain_)
        : input{checked(op, a.input)},
          mean(floats(a.mean)),
          rstd(floats(a.rstd)),
          norm_weight(floats(a.norm_weight)),
          norm_bias(floats(a.norm_bias)) {
        require_per_channel(op, "mean", a.mean, a.input);
        require_per_channel(op, "rstd", a.rstd, a.input);
        require_vector(op, "norm_weight", a.norm_weight, a.input.size(1));
        require_vector(op, "norm_bias", a.norm_bias, a.input.size(1));
        require(a.expand_weight.dim() == 2, op, ": expand_weight must be [R, C], got ", shape_of(a.expand_weight));
        shape = {a.input.size(0), voxels_of(a.input), a.input.size(1), a.expand_weight.size(0), outputs};
        require_matrix(op, "expand_weight", a.expand_weight, shape.hidden, shape.channels);
        if (a.expand_bias.has_value()) require_vector(op, "expand_bias", *a.expand_bias, shape.hidden);
        if (gain_.has_value()) require_matrix(op, "gain", *gain_, shape.batch, shape.hidden);
        plan = kernels::plan(shape, cpu::kernels().lanes);
        expand = packed(a.expand_weight, true, plan.hidden);
        expand_bias = bias(a.expand_bias, shape.hidden, plan.hidden);
        if (gain_.has_value()) gain = padded(*gain_, shape.hidden, plan.hidden);
    }

    static Memory bias(const std::optional<Tensor>& given, std::int64_t columns, std::int64_t padded_columns) {
        if (given.has_value()) return padded(*given, columns, padded_columns);
        Memory zeros = cpu::aligned_floats(padded_columns);
        std::fill_n(zeros.get(), padded_columns, 0.0f);
        return zeros;
    }

    kernels::Operands operands() const {
        return {shape,        input.volume,      mean.data(), rstd.data(), norm_weight.data(), norm_bias.data(),
                expand.get(), expand_bias.get(), gain.get()};
    }

    template <typename Kernel>
    void run(std::int64_t tasks, const Kernel& kernel) const {
        const std::int64_t all = shape.batch * shape.voxels * shape.hidden * (shape.channels + shape.outputs) /
                                 std::max<std::int64_t>(tasks, 1);
        const std::int64_t grain = std::max<std::int64_t>(1, kOperationsPerThread / std::max<std::int64_t>(all, 1));
        torch::stable::parallel_for(0, tasks, grain, [&](std::int64_t begin, std::int64_t end) {
            kernel(begin, end, cpu::scratch(plan.scratch_floats));
        });
    }

    // The vector of sums at `offset` of all slots: [N, columns].
    Tensor vector_sums(const float* slots, std::int64_t offset, std::int64_t columns,
                       std::int64_t padded_columns) const {
        Tensor result = allocate(input.tensor, {shape.batch, columns}, ScalarType::Float);
        add_up(slots, offset, 1, columns, padded_columns, result);
        return result;
    }

    // The matrix of sums at `offset` of all slots: [N, rows, columns].
    Tensor matrix_sums(const float* slots, std::int64_t offset, std::int64_t rows, std::int64_t columns) const {
        Tensor result = allocate(input.tensor, {shape.batch, rows, columns}, ScalarType::Float);
        add_up(slots, offset, rows, columns, plan.hidden, result);
        return result;
    }

  private:
    void add_up(const float* slots, std::int64_t offset, std::int64_t rows, std::int64_t columns,
                std::int64_t padded_columns, Tensor& result) const {
        float* to = static_cast<float*>(result.mutable_data_ptr());
        const std::int64_t grain = std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(columns * plan.slots, 1));
        for (std::int64_t sample = 0; sample < shape.batch; ++sample) {
            torch::stable::parallel_for(0, rows, grain, [&](std::int64_t begin, std::int64_t end) {
                kernels::add_slots(plan, slots, sample, offset + begin * padded_columns, end - begin, columns,
                                   padded_columns, to + (sample * rows + begin) * columns);
            });
        }
    }

    static DenseVolume checked(const char* op, const Tensor& values) {
        require_volume(op, "input", values);
        require_floating_type(op, "input", values);
        return dense(values);
    }
};

void require_gradient(const char* op, const Tensor& grad_output, const Tensor& input, std::int64_t outputs) {
    require_volume(op, "grad_output", grad_output);
    require(grad_output.scalar_type() == input.scalar_type(), op, ": grad_output must have the type of input, ",
            torch::headeronly::toString(input.scalar_type()), ", got ",
            torch::headeronly::toString(grad_output.scalar_type()));
    bool same = grad_output.size(0) == input.size(0) && grad_output.size(1) == outputs;
    for (int i = 2; i < 5; ++i) same = same && grad_output.size(i) == input.size(i);
    require(same, op, ": grad_output must be [N, O, D, H, W] with O = ", outputs, " for the input ", shape_of(input),
            ", got ", shape_of(grad_output));
}

Tensor inverted_bottleneck(const Tensor& input, const Tensor& mean, const Tensor& rstd, const Tensor& norm_weight,
                           const Tensor& norm_bias, const Tensor& expand_weight,
                           const std::optional<Tensor>& expand_bias, const Tensor& compress_weight,
                           const std::optional<Tensor>& compress_bias, const std::optional<Tensor>& gain,
                           const std::optional<Tensor>& residual) {
    constexpr const char* op = "inverted_bottleneck_with_gain";
    require(compress_weight.dim() == 2, op, ": compress_weight must be [O, R], got ", shape_of(compress_weight));
    const std::int64_t outputs = compress_weight.size(0);
    const Bottleneck b(op, {input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias}, outputs, gain);
    require_matrix(op, "compress_weight", compress_weight, outputs, b.shape.hidden);
    if (compress_bias.has_value()) require_vector(op, "compress_bias", *compress_bias, outputs);
    const std::int64_t extent[] = {input.size(2), input.size(3), input.size(4)};
    const DenseVolume output = new_volume(input, b.shape.batch, outputs, extent, b.input.volume.channels_last);
    std::optional<DenseVolume> added;
    if (residual.has_value()) {
        require_same(op, "residual", *residual, "the output", output.tensor);
        added = dense(*residual);
    }
    const Memory compress = packed(compress_weight, true, b.plan.outputs);
    const Memory bias = Bottleneck::bias(compress_bias, outputs, b.plan.outputs);
    const kernels::ForwardProblem problem{b.operands(), compress.get(), bias.get(),
                                          added.has_value() ? added->volume : cpu::Volume{}, output.volume};
    b.run(b.shape.batch * b.plan.tiles, [&](std::int64_t begin, std::int64_t end, float* scratch) {
        cpu::kernels().bottleneck(problem, b.plan, begin, end, scratch);
    });
    return output.tensor;
}

std::tuple<Tensor, Tensor, Tensor> inverted_bottleneck_response(const std::optional<Tensor>& grad_output,
                                                                const Tensor& input, const Tensor& mean,
                                                                const Tensor& rstd, const Tensor& norm_weight,
                                                                const Tensor& norm_bias, const Tensor& expand_weight,
                                                                const std::optional<Tensor>& expand_bias) {
    constexpr const char* op = "inverted_bottleneck_response";
    const std::int64_t outputs = grad_output.has_value() && grad_output->dim() > 1 ? grad_output->size(1) : 0;
    const Bottleneck b(op, {input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias}, outputs,
                       std::nullopt);
    std::optional<DenseVolume> grad;
    if (grad_output.has_value()) {
        require_gradient(op, *grad_output, input, outputs);
        grad = dense(*grad_output);
    }
    const kernels::ResponseProblem problem{b.operands(), grad.has_value() ? grad->volume : cpu::Volume{}};
    const std::int64_t tasks = b.shape.batch * b.plan.slots;
    const Memory slots = cpu::aligned_floats(tasks * b.plan.slot_floats());
    b.run(tasks, [&](std::int64_t begin, std::int64_t end, float* scratch) {
        cpu::kernels().bottleneck_response(problem, b.plan, begin, end, scratch, slots.get());
    });
    return {b.vector_sums(slots.get(), b.plan.square_sums(), b.shape.hidden, b.plan.hidden),
            b.vector_sums(slots.get(), b.plan.output_sums(), outputs, b.plan.outputs),
            b.matrix_sums(slots.get(), b.plan.output_hidden(), outputs, b.shape.hidden)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> inverted_bottleneck_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd, const Tensor& norm_weight,
    const Tensor& norm_bias, const Tensor& expand_weight, const std::optional<Tensor>& expand_bias,
    const Tensor& compress_weight, const std::optional<Tensor>& gain, const std::optional<Tensor>& slope,
    bool needs_data, bool needs_hidden, bool needs_compress) {
    constexpr const char* op = "inverted_bottleneck_with_gain_backward";
    require(compress_weight.dim() == 2, op, ": compress_weight must be [O, R], got ", shape_of(compress_weight));
    const std::int64_t outputs = compress_weight.size(0);
    const Bottleneck b(op, {input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias}, outputs, gain);
    require_matrix(op, "compress_weight", compress_weight, outputs, b.shape.hidden);
    require(gain.has_value() == slope.has_value(), op, ": gain and slope belong together: give both or neither");
    if (slope.has_value()) require_matrix(op, "slope", *slope, b.shape.batch, b.shape.hidden);
    require(needs_hidden || !needs_data, op, ": needs_data goes through the hidden gradient: it asks for needs_hidden");
    require_gradient(op, grad_output, input, outputs);

    const DenseVolume read = dense(grad_output);
    std::optional<DenseVolume> grad;
    if (needs_data) grad = new_volume_like(input, b.input.volume.channels_last);
    const Memory expand_back = packed(expand_weight, false, b.plan.channels);
    const Memory compress_back = packed(compress_weight, false, b.plan.hidden);
    const Memory slopes = slope.has_value() ? padded(*slope, b.shape.hidden, b.plan.hidden) : Memory();
    const kernels::BackwardProblem problem{
        b.operands(), read.volume,  expand_back.get(), compress_back.get(),
        slopes.get(), needs_hidden, needs_compress,    needs_data ? grad->volume : cpu::Volume{}};
    const std::int64_t tasks = b.shape.batch * b.plan.slots;
    const Memory slots = cpu::aligned_floats(tasks * b.plan.slot_floats());
    b.run(tasks, [&](std::int64_t begin, std::int64_t end, float* scratch) {
        cpu::kernels().bottleneck_backward(problem, b.plan, begin, end, scratch, slots.get());
    });
    return {needs_data ? grad->tensor : torch::stable::new_empty(input, {0}),
            b.vector_sums(slots.get(), b.plan.hidden_sums(), b.shape.hidden, b.plan.hidden),
            b.matrix_sums(slots.get(), b.plan.hidden_normalized(), b.shape.channels, b.shape.hidden),
            b.vector_sums(slots.get(), b.plan.output_sums(), outputs, b.plan.outputs),
            b.matrix_sums(slots.get(), b.plan.output_hidden(), outputs, b.shape.hidden)};
}

}  // namespace
}  // namespace mednext_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(mednext_ops_native, CPU, library) {
    library.impl("inverted_bottleneck_with_gain", TORCH_BOX(&mednext_ops::bindings::inverted_bottleneck));
    library.impl("inverted_bottleneck_response", TORCH_BOX(&mednext_ops::bindings::inverted_bottleneck_response));
    library.impl("inverted_bottleneck_with_gain_backward",
                 TORCH_BOX(&mednext_ops::bindings::inverted_bottleneck_backward));
}
