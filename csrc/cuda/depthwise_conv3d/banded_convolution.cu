// The host's side of the banded core: a problem and its tile become the parameters of an instance.
#include "banded_convolution.cuh"

#include <climits>

namespace mednext_ops::cuda::depthwise_conv3d {

extern template cudaError_t launch_banded_of_size<3, 3>(ScalarType, const BandedParameters&, const BandedTile&,
                                                        unsigned, cudaStream_t);
extern template cudaError_t launch_banded_of_size<5, 5>(ScalarType, const BandedParameters&, const BandedTile&,
                                                        unsigned, cudaStream_t);
extern template cudaError_t launch_banded_of_size<7, 7>(ScalarType, const BandedParameters&, const BandedTile&,
                                                        unsigned, cudaStream_t);
extern template cudaError_t launch_banded_of_size<1, 3>(ScalarType, const BandedParameters&, const BandedTile&,
                                                        unsigned, cudaStream_t);
extern template cudaError_t launch_banded_of_size<1, 5>(ScalarType, const BandedParameters&, const BandedTile&,
                                                        unsigned, cudaStream_t);
extern template cudaError_t launch_banded_of_size<1, 7>(ScalarType, const BandedParameters&, const BandedTile&,
                                                        unsigned, cudaStream_t);

namespace {

bool at_pairs(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 4 == 0;
}

}  // namespace

cudaError_t launch_banded_convolution(const ConvolutionProblem& p, const BandedTile& tile, Moments<double>* moments,
                                      cudaStream_t stream) {
    const Triple kernel = p.geometry.kernel;
    BandedParameters parameters{{p, moments}, {}, false, tile};
    parameters.source = {p.input,
                         p.affine,
                         tile.fill,
                         static_cast<int>(p.input_size.d),
                         static_cast<int>(p.input_size.h),
                         static_cast<int>(p.input_size.w),
                         {},
                         {}};
    parameters.pairs = p.output_size.w % 2 == 0 && at_pairs(p.output) && at_pairs(p.add);
    const std::int64_t blocks = p.batch * p.channels * tile.tiles();
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;

    const auto count = static_cast<unsigned>(blocks);
    const bool flat = kernel.d == 1;
    switch (kernel.h) {
        case 3:
            return flat ? launch_banded_of_size<1, 3>(p.type, parameters, tile, count, stream)
                        : launch_banded_of_size<3, 3>(p.type, parameters, tile, count, stream);
        case 5:
            return flat ? launch_banded_of_size<1, 5>(p.type, parameters, tile, count, stream)
                        : launch_banded_of_size<5, 5>(p.type, parameters, tile, count, stream);
        default:
            return flat ? launch_banded_of_size<1, 7>(p.type, parameters, tile, count, stream)
                        : launch_banded_of_size<7, 7>(p.type, parameters, tile, count, stream);
    }
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
