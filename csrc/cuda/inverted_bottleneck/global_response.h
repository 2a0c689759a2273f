// Global Response Normalisation (ConvNeXt V2) around a library's products: what is made of sums over the voxels.
//
// h [R, V] of a sample becomes h gain + beta, with gain = 1 + gamma norm / (mean over R of norm + eps) and norm the
// root of the sum of h^2. The gain goes into the compression, beta into its bias, so that nothing passes over h for it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/parameter.h"
#include "../common/scalar_type.h"

namespace mednext_ops::cuda::inverted_bottleneck {

struct ResponseProblem {
    ScalarType type;  // of the weights for the products
    std::int64_t batch, hidden, outputs;
    const float* squares;                      // [N, R]: sum of h^2
    Parameter gamma, beta;                     // [R]
    Parameter compress_weight, compress_bias;  // [O, R], [O] or null
    float* gain;                               // [N, R]
    void* weights;                             // [N, O, R]: compress_weight gain, rounded once
    float* bias;                               // [O]: compress_weight beta + compress_bias
};

cudaError_t launch_response(const ResponseProblem& problem, cudaStream_t stream);

// Its gradients, from two sums over the voxels of the output's gradient g: alone, and times h.
struct ResponseGradientsProblem {
    ScalarType type;
    std::int64_t batch, hidden, outputs;
    const float* squares;        // [N, R]
    const float* output_sums;    // [N, O]: sum of g
    const float* output_hidden;  // [N, O, R]: sum of g h^T
    Parameter gamma, beta;
    Parameter compress_weight;
    double* dots;             // [N, R], workspace: the sum of h times its gradient behind GRN
    double* gamma_of_sample;  // [N, R], workspace
    float* gain;              // [N, R]
    float* slope;             // [N, R]: the gradient of h is the compression's times gain, plus slope h
    void* weights;            // [N, O, R], as above
    float* grad_weight;       // [O, R]: sum over n of output_hidden gain + output_sums beta^T
    float* grad_bias;         // [O]
    float* grad_gamma;        // [R]
    float* grad_beta;         // [R]
};

cudaError_t launch_response_gradients(const ResponseGradientsProblem& problem, cudaStream_t stream);

}  // namespace mednext_ops::cuda::inverted_bottleneck
