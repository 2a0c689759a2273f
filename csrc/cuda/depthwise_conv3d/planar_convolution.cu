// The host's side of the planar core: a problem and its tile become the parameters of an instance.
#include "planar_convolution.cuh"

#include <climits>

#include "plane_boxes.h"

namespace mednext_ops::cuda::depthwise_conv3d {

#define MEDNEXT_OPS_INSTANCE(KD, KH)                                                                         \
    extern template cudaError_t launch_planar_of_size<KD, KH>(ScalarType, const PlanarParameters&, unsigned, \
                                                              cudaStream_t)
MEDNEXT_OPS_INSTANCE(3, 3);
MEDNEXT_OPS_INSTANCE(5, 5);
MEDNEXT_OPS_INSTANCE(7, 7);
MEDNEXT_OPS_INSTANCE(1, 3);
MEDNEXT_OPS_INSTANCE(1, 5);
MEDNEXT_OPS_INSTANCE(1, 7);
#undef MEDNEXT_OPS_INSTANCE

cudaError_t launch_planar_convolution(const ConvolutionProblem& p, const PlanarTile& tile, Moments<double>* moments,
                                      cudaStream_t stream) {
    const Triple kernel = p.geometry.kernel;
    const auto kh = static_cast<int>(kernel.h);
    const std::int64_t blocks = p.batch * p.channels * tile.tiles();
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;

    PlanarParameters parameters{{p, moments},
                                {},
                                {},
                                p.affine,
                                static_cast<int>(p.input_size.d),
                                static_cast<int>(p.input_size.h),
                                static_cast<int>(p.input_size.w),
                                tile,
                                p.input};
    const PlaneBoxes boxes{p.type, p.batch * p.channels, p.input_size, tile.row_bytes(kh) / 2, tile.plane_rows(kh)};
    if (tile.fill == Fill::boxes) {
        cudaError_t error = encode_planes(boxes, p.input, &parameters.box);
        if (error == cudaSuccess && p.affine.given()) {
            error = encode_planes(boxes, p.affine.output, &parameters.box_output);
        }
        if (error != cudaSuccess) return error;
    }

    const auto count = static_cast<unsigned>(blocks);
    const bool flat = kernel.d == 1;
    switch (kh) {
        case 3:
            return flat ? launch_planar_of_size<1, 3>(p.type, parameters, count, stream)
                        : launch_planar_of_size<3, 3>(p.type, parameters, count, stream);
        case 5:
            return flat ? launch_planar_of_size<1, 5>(p.type, parameters, count, stream)
                        : launch_planar_of_size<5, 5>(p.type, parameters, count, stream);
        default:
            return flat ? launch_planar_of_size<1, 7>(p.type, parameters, count, stream)
                        : launch_planar_of_size<7, 7>(p.type, parameters, count, stream);
    }
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
