#include "launch.h"

#include "banded_convolution.h"
#include "banded_weight_gradient.h"
#include "general_convolution.h"
#include "general_weight_gradient.h"
#include "planar_convolution.h"
#include "streaming_convolution.h"
#include "streaming_weight_gradient.h"
#include "strided_convolution.h"
#include "strided_scatter.h"
#include "strided_weight_gradient.h"
#include "weight_gradient_reduction.h"

namespace mednext_ops::cuda::depthwise_conv3d {

cudaError_t launch_convolution(const ConvolutionProblem& problem, const ConvolutionPlan& plan, Moments<double>* moments,
                               cudaStream_t stream) {
    switch (plan.core) {
        case ConvolutionCore::banded:
            return launch_banded_convolution(problem, plan.banded, moments, stream);
        case ConvolutionCore::general:
            return launch_general_convolution(problem, moments, stream);
        case ConvolutionCore::planar:
            return launch_planar_convolution(problem, plan.planar, moments, stream);
        case ConvolutionCore::strided:
            return launch_strided_convolution(problem, plan.strided, moments, stream);
        case ConvolutionCore::strided_scatter:
            return launch_strided_scatter(problem, plan.strided_scatter, moments, stream);
        case ConvolutionCore::streaming:
            return launch_streaming_convolution(problem, plan.streaming, moments, stream);
    }
    return cudaErrorInvalidValue;
}

cudaError_t launch_weight_gradient(const WeightGradientProblem& problem, const WeightGradientPlan& plan,
                                   void* workspace, cudaStream_t stream) {
    auto* partial = static_cast<float*>(workspace);
    const std::int64_t sums = problem.channels * problem.geometry.kernel.product();
    cudaError_t error = cudaErrorInvalidValue;
    switch (plan.core) {
        case WeightGradientCore::banded:
            error = launch_banded_weight_gradient(problem, plan.banded, partial, stream);
            break;
        case WeightGradientCore::general:
            error = launch_general_weight_gradient(problem, partial, stream);
            break;
        case WeightGradientCore::strided:
            error = launch_strided_weight_gradient(problem, plan.strided, partial, stream);
            break;
        case WeightGradientCore::streaming:
            error = launch_streaming_weight_gradient(problem, plan.streaming, partial, stream);
            break;
    }
    return error == cudaSuccess ? launch_reduction(partial, sums, plan.parts, problem.grad_weight, stream) : error;
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
