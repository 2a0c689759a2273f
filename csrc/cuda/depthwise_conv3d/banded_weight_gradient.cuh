// The weight gradient with planes by any fill, and the launch of this kernel and of the boxed one: see
// weight_gradient_patches.cuh.
#pragma once

#include <cstdint>

#include "../common/launch.h"
#include "boxed_weight_gradient.cuh"
#include "ring_of_places.cuh"
#include "weight_gradient_patches.cuh"

namespace mednext_ops::cuda::depthwise_conv3d {

// Planes by any fill: two rings that walk together, a barrier of the block a step.
template <typename T, int KD, int K>
__global__ void __launch_bounds__(WeightGradientPatches<T, KD, K>::kMostThreads,
                                  WeightGradientPatches<T, KD, K>::kBlocksPerProcessor)
    banded_weight_gradient(const __grid_constant__ WeightGradientParameters p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    __trap();  // the planner does not come here
#else
    using Core = WeightGradientPatches<T, KD, K>;
    const WeightGradientPlace place(p, K);
    const typename Core::Shared shared(p.large_planes, p.small_planes, static_cast<int>(blockDim.x));

    // Step z has plane z of x, from d0 on, and plane z + pd of g; the KD - 1 steps before bring g alone.
    using Ring = typename Core::Ring;
    const int begin = place.d0 - KD + 1;
    Ring large(p.large, p.large_planes, shared_array(shared.large), shared_array(shared.large_full),
               shared_array(shared.large_table), place.volume, place.h0, place.w0 - WeightGradientTile::kLargeHalo,
               begin, place.d0, place.d1);
    Ring small(p.small, p.small_planes, shared_array(shared.small), shared_array(shared.small_full),
               shared_array(shared.small_table), place.volume, place.h0 + p.pad_h - K + 1, place.w0, begin + p.pad_d,
               begin + p.pad_d, place.d1 + p.pad_d);
    Ring::start(large, small);
    __syncthreads();

    const typename Core::Places places = Core::places_of(p);
    float acc[Core::kSets][KD][4] = {};
    unsigned held[Core::kPatches][KD][2];
    int newest = 0;
    for (int z = begin; z < place.d1; ++z) {
        const bool has_large = large.is_inside();
        const bool has_small = small.is_inside();
        large.arrive();
        small.arrive();
        __syncthreads();  // the planes are there, and nobody reads those before them any more
        const unsigned char* large_plane = large.turn();
        const unsigned char* small_plane = small.turn();
        at_place<KD>(newest, [&]<int Newest>() {
            Core::template hold<Newest>(held, has_small, small_plane, places, p);
            if (!has_large) return;
            unsigned thread = threadIdx.x;
            make_opaque(thread);  // computed for each plane: registers are what this kernel has least of
            Core::template multiply<Newest>(acc, held, large_plane, places, Core::second_row(p, thread), p);
        });
        newest = newest + 1 == KD ? 0 : newest + 1;
    }
    large.finish();
    small.finish();
    Core::store(acc, reinterpret_cast<float*>(shared_array(shared.large)), place.partial(p, KD * K * K));
#endif
}

// The numbers of patches a warp that kernels are made for: those of the tiles of large volumes.
template <int KD, typename Function>
cudaError_t with_patches(int patches, Function&& function) {
    constexpr int kMost = WeightGradientTile::most_patches(KD);
    if constexpr (KD > 1) {
        if (patches == kMost) return function.template operator()<kMost>();
        if constexpr (KD == 5) {
            if (patches == kMost - 1) return function.template operator()<kMost - 1>();
        }
    }
    return function.template operator()<0>();
}

// The instances of a kernel size, each size in a file of its own.
template <int KD, int K>
cudaError_t launch_banded_weight_gradient_of_size(ScalarType type, const WeightGradientParameters& p, unsigned blocks,
                                                  cudaStream_t stream) {
    const auto threads = static_cast<unsigned>(p.tile.warps() * kWarpSize);
    const auto of_type = [&]<typename T>(const T*) {
        const auto by_boxes = [&]<bool Mapped>() {
            return with_patches<KD>(p.tile.patches, [&]<int Patches>() {
                const typename BoxedWeightGradient<T, KD, K, Mapped, Patches>::Shared shared(p);
                const LaunchShape shape{blocks, threads, shared.layout.bytes(), stream};
                return launch<boxed_weight_gradient<T, KD, K, Mapped, Patches>>(shape, p);
            });
        };
        // A large tensor that is computed needs its planes computed once, for all warps.
        if (p.tile.fill == Fill::boxes && !p.large.affine.given()) {
            return p.small.affine.given() ? by_boxes.template operator()<true>()
                                          : by_boxes.template operator()<false>();
        }
        const typename WeightGradientPatches<T, KD, K>::Shared shared(p.large_planes, p.small_planes,
                                                                      static_cast<int>(threads));
        return launch<banded_weight_gradient<T, KD, K>>({blocks, threads, shared.layout.bytes(), stream}, p);
    };
    return type == ScalarType::float16 ? of_type(static_cast<const __half*>(nullptr))
                                       : of_type(static_cast<const __nv_bfloat16*>(nullptr));
}

}  // namespace mednext_ops::cuda::depthwise_conv3d
