// The order of the kernels. GRN takes two passes over the tensors, since its norms are those of the whole volume:
//
//     forward                      backward                                  backward with GRN
//                                  fused_backward: everything                fused_backward: compression and squares
//     with GRN:                    add_parts                                 add_parts
//       fused_backward: squares    parameter_gradients                       global_response
//       add_parts                                                            fused_backward: the hidden gradient
//       global_response                                                      add_parts
//     fused_forward                                                          parameter_gradients
#include "launch.h"

#include "backward.h"
#include "forward.h"
#include "parameter_gradients.h"

namespace mednext_ops::cuda::inverted_bottleneck {
namespace {

bool has_grn(const Bottleneck& bottleneck) {
    return bottleneck.grn_gamma.data != nullptr;
}

// Where things lie in the workspace.
struct Workspace {
    float* partial;
    float* sums;
    GlobalResponse response;

    Workspace(const Extents& extents, const BackwardPlan& plan, void* memory)
        : partial(static_cast<float*>(memory)),
          sums(partial + extents.batch * plan.parts * plan.splits * plan.sums()),
          response{sums + extents.batch * plan.sums(), nullptr, nullptr} {
        response.slope = response.gain + extents.batch * extents.hidden;
        response.by_gamma = response.slope + extents.batch * extents.hidden;
    }

    static std::int64_t bytes(const Extents& e, const BackwardPlan& plan) {
        const std::int64_t of_sample = (std::int64_t{plan.parts} * plan.splits + 1) * plan.sums() + 3 * e.hidden;
        return 4 * e.batch * of_sample;
    }
};

}  // namespace

std::int64_t forward_workspace_bytes(const Bottleneck& bottleneck, int architecture) {
    return has_grn(bottleneck) ? backward_workspace_bytes(bottleneck, architecture) : 0;
}

std::int64_t backward_workspace_bytes(const Bottleneck& bottleneck, int architecture) {
    const auto plan = plan_backward(bottleneck.extents, architecture);
    return plan ? Workspace::bytes(bottleneck.extents, *plan) : 0;
}

cudaError_t launch_forward(const ForwardProblem& problem, int architecture, void* workspace, cudaStream_t stream) {
    const Bottleneck& bottleneck = problem.bottleneck;
    const auto plan = plan_forward(bottleneck.extents, bottleneck.channels_last, architecture);
    if (!plan) return cudaErrorInvalidValue;
    if (!has_grn(bottleneck)) return launch_fused_forward(problem, *plan, nullptr, stream);

    const auto sums_plan = plan_backward(bottleneck.extents, architecture);
    if (!sums_plan) return cudaErrorInvalidValue;
    const Workspace memory(bottleneck.extents, *sums_plan, workspace);
    BackwardPass pass{};
    pass.kind = BackwardPass::Kind::squares;
    pass.partial = memory.partial;
    cudaError_t error = launch_fused_backward(bottleneck, *sums_plan, pass, stream);
    if (error == cudaSuccess) {
        error = launch_add_parts(*sums_plan, bottleneck.extents.batch, sums_plan->squares(), sums_plan->sums(),
                                 memory.partial, memory.sums, stream);
    }
    if (error == cudaSuccess) {
        error = launch_global_response(bottleneck, *sums_plan, false, memory.sums, memory.response, stream);
    }
    if (error == cudaSuccess) error = launch_fused_forward(problem, *plan, memory.response.gain, stream);
    return error;
}

cudaError_t launch_backward(const BackwardProblem& problem, int architecture, void* workspace, cudaStream_t stream) {
    const Bottleneck& bottleneck = problem.bottleneck;
    const auto found = plan_backward(bottleneck.extents, architecture);
    if (!found) return cudaErrorInvalidValue;
    const BackwardPlan& plan = *found;
    const Workspace memory(bottleneck.extents, plan, workspace);
    const bool grn = has_grn(bottleneck);
    const auto run = [&](const BackwardPass& pass, std::int64_t begin, std::int64_t end) {
        if (bottleneck.extents.batch == 0) return cudaSuccess;
        const cudaError_t error = launch_fused_backward(bottleneck, plan, pass, stream);
        if (error != cudaSuccess) return error;
        return launch_add_parts(plan, bottleneck.extents.batch, begin, end, memory.partial, memory.sums, stream);
    };

    BackwardPass pass{};
    pass.grad_output = problem.grad_output;
    pass.partial = memory.partial;
    cudaError_t error = cudaSuccess;
    if (grn) {
        pass.kind = BackwardPass::Kind::squares;
        error = run(pass, plan.compress(), plan.sums());
        if (error == cudaSuccess) {
            error = launch_global_response(bottleneck, plan, true, memory.sums, memory.response, stream);
        }
        pass.gain = memory.response.gain;
        pass.slope = memory.response.slope;
    }
    pass.kind = grn ? BackwardPass::Kind::adjusted : BackwardPass::Kind::complete;
    pass.grad = problem.grad;
    if (error == cudaSuccess && (problem.wants_hidden || (!grn && problem.wants_compress))) {
        error = run(pass, plan.normalized(), grn ? plan.compress() : plan.squares());
    }
    if (error == cudaSuccess) error = launch_parameter_gradients(problem, plan, memory.sums, memory.response, stream);
    return error;
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
