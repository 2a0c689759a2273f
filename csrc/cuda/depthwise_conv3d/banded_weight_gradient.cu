// The host's side of the banded weight gradient: a problem and its tile become the parameters of an instance.
#include "banded_weight_gradient.cuh"

#include <climits>

#include "plane_boxes.h"

namespace mednext_ops::cuda::depthwise_conv3d {

#define MEDNEXT_OPS_INSTANCE(KD, K)                                           \
    extern template cudaError_t launch_banded_weight_gradient_of_size<KD, K>( \
        ScalarType, const WeightGradientParameters&, unsigned, cudaStream_t)
MEDNEXT_OPS_INSTANCE(3, 3);
MEDNEXT_OPS_INSTANCE(5, 5);
MEDNEXT_OPS_INSTANCE(7, 7);
MEDNEXT_OPS_INSTANCE(1, 3);
MEDNEXT_OPS_INSTANCE(1, 5);
MEDNEXT_OPS_INSTANCE(1, 7);
#undef MEDNEXT_OPS_INSTANCE

namespace {

cudaError_t make_source(const WeightGradientProblem& p, const Triple& size, const PlaneLayout& layout, Fill fill,
                        const void* data, const AffineGradient& affine, PlaneSource* source) {
    *source = {data, affine, fill, static_cast<int>(size.d), static_cast<int>(size.h), static_cast<int>(size.w),
               {},   {}};
    if (fill != Fill::boxes) return cudaSuccess;
    const PlaneBoxes boxes{p.type, p.batch * p.channels, size, 8 * layout.row_pitch, layout.rows};
    const cudaError_t error = encode_planes(boxes, data, &source->box);
    if (error != cudaSuccess || !affine.given()) return error;
    return encode_planes(boxes, affine.output, &source->box_output);
}

}  // namespace

cudaError_t launch_banded_weight_gradient(const WeightGradientProblem& p, const WeightGradientTile& tile,
                                          float* partial, cudaStream_t stream) {
    const std::int64_t count = p.batch * p.channels * tile.tiles();
    if (count == 0) return cudaSuccess;  // no part at all: the reduction gives zeros
    if (count > INT_MAX) return cudaErrorInvalidConfiguration;

    const Triple kernel = p.geometry.kernel;
    const int k = static_cast<int>(kernel.h);
    const AffineGradient none{};
    const AffineGradient& of_small = p.large_is_gradient ? none : p.affine;
    const AffineGradient& of_large = p.large_is_gradient ? p.affine : none;
    WeightGradientParameters parameters{.small = {},
                                        .large = {},
                                        .small_planes = tile.small_planes(k, of_small.given()),
                                        .large_planes = tile.large_planes(k, of_large.given())};
    const int patch_rows = WeightGradientTile::patch_rows(k);
    parameters.small_patch_bytes = patch_rows * parameters.small_planes.row_pitch * 16;
    parameters.large_patch_bytes = patch_rows * parameters.large_planes.row_pitch * 16;
    cudaError_t error =
        make_source(p, p.small_size, parameters.small_planes, tile.fill, p.small, of_small, &parameters.small);
    if (error != cudaSuccess) return error;
    error = make_source(p, p.large_size, parameters.large_planes, tile.fill, p.large, of_large, &parameters.large);
    if (error != cudaSuccess) return error;
    parameters.pad_d = static_cast<int>(p.geometry.padding.d);
    parameters.pad_h = static_cast<int>(p.geometry.padding.h);
    parameters.channels = p.channels;
    parameters.tile = tile;
    parameters.partial = partial;
    const auto blocks = static_cast<unsigned>(count);
    const bool flat = kernel.d == 1;
    switch (k) {
        case 3:
            return flat ? launch_banded_weight_gradient_of_size<1, 3>(p.type, parameters, blocks, stream)
                        : launch_banded_weight_gradient_of_size<3, 3>(p.type, parameters, blocks, stream);
        case 5:
            return flat ? launch_banded_weight_gradient_of_size<1, 5>(p.type, parameters, blocks, stream)
                        : launch_banded_weight_gradient_of_size<5, 5>(p.type, parameters, blocks, stream);
        default:
            return flat ? launch_banded_weight_gradient_of_size<1, 7>(p.type, parameters, blocks, stream)
                        : launch_banded_weight_gradient_of_size<7, 7>(p.type, parameters, blocks, stream);
    }
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
