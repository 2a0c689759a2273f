// Tile by tile: read, expand, GELU, compress, write; and back.
#include "../dispatch/kernels.h"
#include "../simd/fetch.h"
#include "../simd/gelu.h"
#include "../simd/product.h"
#include "tile.h"

namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY {
namespace {

using inverted_bottleneck::BackwardProblem;
using inverted_bottleneck::ForwardProblem;
using inverted_bottleneck::Operands;
using inverted_bottleneck::Plan;
using inverted_bottleneck::ResponseProblem;

Right packed(const float* data, std::int64_t depth) {
    return {data, kProductColumns, depth * kProductColumns};
}

// A tile's buffers, and the steps that the three kernels are made of.
template <typename T>
class Tile {
  public:
    Tile(const Operands& operands, const Plan& plan, float* scratch) : o_(operands), plan_(plan) {
        normalized_ = scratch;
        grad_normalized_ = normalized_ + plan.tile_voxels * plan.channels;  // first the affine map's result
        outputs_ = grad_normalized_ + plan.tile_voxels * plan.channels;
        hidden_ = outputs_ + 2 * plan.tile_voxels * plan.outputs;
        slope_ = hidden_ + plan.tile_voxels * plan.hidden;
        grad_hidden_ = slope_ + plan.tile_voxels * plan.hidden;
    }

    void start(std::int64_t sample, std::int64_t tile) {
        const std::int64_t first = tile * plan_.tile_voxels;
        span_ = {sample, first, at_most(plan_.tile_voxels, o_.shape.voxels - first)};
        rows_ = (span_.count + kProductRows - 1) / kProductRows * kProductRows;
    }

    // While this tile is worked on, fetches what the next one reads: its input and the same voxels of `other`.
    void fetch_next(const Volume& other) {
        const std::int64_t first = span_.first + plan_.tile_voxels;
        fetch_.restart();
        fetch_.template add<T>(o_.input, span_.sample, 0, o_.shape.channels, first, plan_.tile_voxels);
        fetch_.template add<T>(other, span_.sample, 0, other.channels, first, plan_.tile_voxels);
    }

    // The expansion before GELU, into the hidden buffer; the normalised input stays in its own if it is wanted later.
    // GroupNorm's weight is not folded into the expansion's: a weight rounded once more errs the same way at every
    // voxel, and the sums over the voxels would show it.
    template <bool kKeepNormalized>
    void expand() {
        const std::int64_t statistics = span_.sample * o_.shape.channels;
        float* affine = grad_normalized_;
        read_tile<T>(o_.input, span_, rows_, plan_.channels, kKeepNormalized ? normalized_ : affine,
                     [&](Vector(&block)[kLanes], std::int64_t channel) {
                         const std::int64_t channels = at_most(kLanes, o_.shape.channels - channel);
                         const Vector mean = load_first(o_.mean + statistics + channel, channels);
                         const Vector rstd = load_first(o_.rstd + statistics + channel, channels);
                         for (int i = 0; i < kLanes; ++i) block[i] = (block[i] - mean) * rstd;
                         if (kKeepNormalized) return;
                         const Vector weight = load_first(o_.norm_weight + channel, channels);
                         const Vector bias = load_first(o_.norm_bias + channel, channels);
                         for (int i = 0; i < kLanes; ++i) block[i] = fma(block[i], weight, bias);
                     });
        for (std::int64_t channel = 0; kKeepNormalized && channel < o_.shape.channels; channel += kLanes) {
            const std::int64_t channels = at_most(kLanes, o_.shape.channels - channel);
            const Vector weight = load_first(o_.norm_weight + channel, channels);
            const Vector bias = load_first(o_.norm_bias + channel, channels);
            for (std::int64_t v = 0; v < rows_; ++v) {
                const std::int64_t i = v * plan_.channels + channel;
                store(affine + i, fma(load(normalized_ + i), weight, bias));
            }
        }
        multiply<Start::bias>(rows_, plan_.hidden, o_.shape.channels, {affine, plan_.channels, 1},
                              packed(o_.expand, o_.shape.channels), o_.expand_bias, {hidden_, plan_.hidden}, fetch_);
    }

    void activate() {
        for (std::int64_t i = 0; i < rows_ * plan_.hidden; i += kLanes) store(hidden_ + i, gelu(load(hidden_ + i)));
    }

    void activate_with_slope() {
        for (std::int64_t i = 0; i < rows_ * plan_.hidden; i += kLanes) {
            const Activation activation = gelu_with_slope(load(hidden_ + i));
            store(hidden_ + i, activation.value);
            store(slope_ + i, activation.slope);
        }
    }

    void scale_hidden() {
        const float* gain = o_.gain + span_.sample * plan_.hidden;
        for (std::int64_t v = 0; v < rows_; ++v) {
            float* row = hidden_ + v * plan_.hidden;
            for (std::int64_t r = 0; r < plan_.hidden; r += kLanes) store(row + r, load(row + r) * load(gain + r));
        }
    }

    void compress(const ForwardProblem& p) {
        multiply<Start::bias>(rows_, plan_.outputs, o_.shape.hidden, {hidden_, plan_.hidden, 1},
                              packed(p.compress, o_.shape.hidden), p.compress_bias, {outputs_, plan_.outputs}, fetch_);
        write_tile<T>(p.output, p.residual, span_, plan_.outputs, outputs_);
    }

    void read_gradient(const Volume& grad_output) {
        read_tile<T>(grad_output, span_, rows_, plan_.outputs, outputs_, [](Vector(&)[kLanes], std::int64_t) {});
    }

    void sum_squares(float* slot) {
        add_over_voxels(hidden_, span_.count, plan_.hidden, slot + plan_.square_sums(),
                        [](Vector value) { return value * value; });
    }

    void sum_compression(float* slot) {
        add_over_voxels(outputs_, span_.count, plan_.outputs, slot + plan_.output_sums(),
                        [](Vector value) { return value; });
        multiply<Start::sum>(plan_.outputs, plan_.hidden, span_.count, {outputs_, 1, plan_.outputs},
                             {hidden_, plan_.hidden, kProductColumns}, nullptr,
                             {slot + plan_.output_hidden(), plan_.hidden}, fetch_);
    }

    // The gradient of the expansion before GELU, from that of the output.
    void gradient_of_expansion(const BackwardProblem& p) {
        multiply<Start::zero>(rows_, plan_.hidden, o_.shape.outputs, {outputs_, plan_.outputs, 1},
                              packed(p.compress_back, o_.shape.outputs), nullptr, {grad_hidden_, plan_.hidden}, fetch_);
        if (o_.gain == nullptr) {
            for (std::int64_t i = 0; i < rows_ * plan_.hidden; i += kLanes) {
                store(grad_hidden_ + i, load(grad_hidden_ + i) * load(slope_ + i));
            }
            return;
        }
        const float* gain = o_.gain + span_.sample * plan_.hidden;
        const float* slope = p.slope + span_.sample * plan_.hidden;
        for (std::int64_t v = 0; v < span_.count; ++v) {
            for (std::int64_t r = 0; r < plan_.hidden; r += kLanes) {
                const std::int64_t i = v * plan_.hidden + r;
                const Vector grad = fma(load(gain + r), load(grad_hidden_ + i), load(slope + r) * load(hidden_ + i));
                store(grad_hidden_ + i, grad * load(slope_ + i));
            }
        }
    }

    void sum_expansion(float* slot) {
        add_over_voxels(grad_hidden_, span_.count, plan_.hidden, slot + plan_.hidden_sums(),
                        [](Vector value) { return value; });
        multiply<Start::sum>(plan_.channels, plan_.hidden, span_.count, {normalized_, 1, plan_.channels},
                             {grad_hidden_, plan_.hidden, kProductColumns}, nullptr,
                             {slot + plan_.hidden_normalized(), plan_.hidden}, fetch_);
    }

    void write_gradient(const BackwardProblem& p) {
        multiply<Start::zero>(rows_, plan_.channels, o_.shape.hidden, {grad_hidden_, plan_.hidden, 1},
                              packed(p.expand_back, o_.shape.hidden), nullptr, {grad_normalized_, plan_.channels},
                              fetch_);
        write_tile<T>(p.grad, {}, span_, plan_.channels, grad_normalized_);
    }

  private:
    const Operands& o_;
    const Plan& plan_;
    float *normalized_, *grad_normalized_, *outputs_, *hidden_, *slope_, *grad_hidden_;
    Span span_ = {};
    Fetch fetch_;
    std::int64_t rows_ = 0;  // voxels, and zeros up to a whole block of results
};

// Calls function(sample, tile, slot's memory) for every tile of slots begin <= s < end, the slots' memory zeroed first.
template <typename Function>
MEDNEXT_OPS_INLINE void for_each_tile(const Plan& plan, std::int64_t begin, std::int64_t end, float* slots,
                                      Function&& function) {
    for (std::int64_t s = begin; s < end; ++s) {
        float* slot = slots + s * plan.slot_floats();
        for (std::int64_t i = 0; i < plan.slot_floats(); i += kLanes) store(slot + i, Vector{});
        const std::int64_t first = s % plan.slots * plan.tiles_per_slot;
        const std::int64_t last = at_most(first + plan.tiles_per_slot, plan.tiles);
        for (std::int64_t tile = first; tile < last; ++tile) function(s / plan.slots, tile, slot);
    }
}

}  // namespace

void bottleneck(const ForwardProblem& p, const Plan& plan, std::int64_t begin, std::int64_t end, float* scratch) {
    with_scalar_type(p.output.type, [&]<typename T>(const T*) {
        Tile<T> tile(p.operands, plan, scratch);
        for (std::int64_t task = begin; task < end; ++task) {
            tile.start(task / plan.tiles, task % plan.tiles);
            tile.fetch_next(p.residual);
            tile.template expand<false>();
            tile.activate();
            if (p.operands.gain != nullptr) tile.scale_hidden();
            tile.compress(p);
        }
    });
}

void bottleneck_response(const ResponseProblem& p, const Plan& plan, std::int64_t begin, std::int64_t end,
                         float* scratch, float* slots) {
    with_scalar_type(p.operands.input.type, [&]<typename T>(const T*) {
        Tile<T> tile(p.operands, plan, scratch);
        for_each_tile(plan, begin, end, slots, [&](std::int64_t sample, std::int64_t number, float* slot) {
            tile.start(sample, number);
            tile.fetch_next(p.grad_output);
            tile.template expand<false>();
            tile.activate();
            tile.sum_squares(slot);
            if (p.grad_output.data == nullptr) return;
            tile.read_gradient(p.grad_output);
            tile.sum_compression(slot);
        });
    });
}

void bottleneck_backward(const BackwardProblem& p, const Plan& plan, std::int64_t begin, std::int64_t end,
                         float* scratch, float* slots) {
    with_scalar_type(p.operands.input.type, [&]<typename T>(const T*) {
        Tile<T> tile(p.operands, plan, scratch);
        for_each_tile(plan, begin, end, slots, [&](std::int64_t sample, std::int64_t number, float* slot) {
            tile.start(sample, number);
            tile.fetch_next(p.grad_output);
            tile.template expand<true>();
            tile.activate_with_slope();
            tile.read_gradient(p.grad_output);
            if (p.needs_compress) tile.sum_compression(slot);
            if (!p.needs_hidden) return;
            tile.gradient_of_expansion(p);
            tile.sum_expansion(slot);
            if (p.grad.data != nullptr) tile.write_gradient(p);
        });
    });
}

}  // namespace mednext_ops::cpu::MEDNEXT_OPS_CAPABILITY
