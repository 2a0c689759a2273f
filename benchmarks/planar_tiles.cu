// Times the planar convolution with tiles of every size, not only those that the plan chooses: what plan.cpp's costs
// are fitted to (benchmarks/results/h200-planar.json). A program of its own, without PyTorch:
//
//     nvcc -std=c++20 -O3 --expt-relaxed-constexpr -arch=sm_90a -Icsrc benchmarks/planar_tiles.cu -o planar_tiles
//     ./planar_tiles > tiles.jsonl            # a line a tile; exit status 1 where an output is wrong
//     ./planar_tiles copies > copies.jsonl    # planes by copies in place of boxes: of sm_80 to sm_90
//
// Each output of up to 32^3, and one tile of the others, is compared with sums in float32.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "cuda/depthwise_conv3d/planar_convolution.cuh"
#include "cuda/depthwise_conv3d/plane_boxes.h"

namespace {

using namespace mednext_ops::cuda;
using namespace mednext_ops::cuda::depthwise_conv3d;
using T = __nv_bfloat16;

constexpr std::size_t kElements = 32ull * 128 * 128 * 128;
constexpr int kMostChannels = 512;

void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
}

__device__ float random_value(std::size_t i, unsigned seed) {
    unsigned bits = static_cast<unsigned>(i) * 2654435761u + seed;
    bits = (bits ^ bits >> 15) * 2246822519u;
    return static_cast<float>((bits ^ bits >> 13) & 0xffff) / 32768.0f - 1.0f;
}

template <typename Value>
__global__ void fill(Value* values, std::size_t count, unsigned seed) {
    for (std::size_t i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull) {
        values[i] = static_cast<Value>(random_value(i, seed));
    }
}

struct Tensors {
    T *input, *output_of_norm, *add, *output, *weight;
    float* maps;  // scale, slope, offset
    Moments<double>* moments;
    float* worst;
    int most_planes_bytes;  // of shared memory
};

struct Case {
    int kernel, channels, extent;
    bool gradient;  // of two tensors, with an addend; or a forward pass with statistics
};

// The largest difference, in parts of a bfloat16 step of the sum and 1e-3.
__global__ void compare(Tensors t, Case c) {
    const int s = c.extent;
    const int k = c.kernel;
    const std::size_t count = static_cast<std::size_t>(c.channels) * s * s * s;
    float worst = 0.0f;
    for (std::size_t i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull) {
        const int w = static_cast<int>(i % s);
        const int h = static_cast<int>(i / s % s);
        const int d = static_cast<int>(i / s / s % s);
        const int channel = static_cast<int>(i / s / s / s);
        float sum = c.gradient ? static_cast<float>(t.add[i]) : 0.0f;
        for (int tap = 0; tap < k * k * k; ++tap) {
            const int z = d + tap / k / k - k / 2;
            const int y = h + tap / k % k - k / 2;
            const int x = w + tap % k - k / 2;
            if (min(min(x, y), z) < 0 || max(max(x, y), z) >= s) continue;
            const std::size_t from = ((static_cast<std::size_t>(channel) * s + z) * s + y) * s + x;
            float value = static_cast<float>(t.input[from]);
            if (c.gradient) {
                const float* const map = t.maps + channel;
                const float shifted =
                    fmaf(map[c.channels], static_cast<float>(t.output_of_norm[from]), map[2 * c.channels]);
                value = static_cast<float>(static_cast<T>(fmaf(map[0], value, shifted)));
            }
            sum = fmaf(value, static_cast<float>(t.weight[channel * k * k * k + tap]), sum);
        }
        worst = fmaxf(worst, fabsf(sum - static_cast<float>(t.output[i])) / (fabsf(sum) * 0.0079f + 1e-3f));
    }
    atomicMax(reinterpret_cast<int*>(t.worst), __float_as_int(worst));
}

struct Cut {
    int fragments, strips, cuts, stages;
};

cudaError_t launch_case(const Case& c, const PlanarParameters& p, unsigned blocks) {
    if (c.kernel == 3) return launch_planar_of_size<3, 3>(ScalarType::bfloat16, p, blocks, nullptr);
    if (c.kernel == 5) return launch_planar_of_size<5, 5>(ScalarType::bfloat16, p, blocks, nullptr);
    return launch_planar_of_size<7, 7>(ScalarType::bfloat16, p, blocks, nullptr);
}

// False where a result was wrong; a tile that does not fit is left out.
bool time_tile(const Tensors& t, const Case& c, const Cut& cut, Fill filled, bool compares) {
    PlanarTile tile{};
    const int k = c.kernel;
    const int s = c.extent;
    tile.fill = filled;
    tile.fragments = cut.fragments;
    tile.quads = s / 4;
    tile.tiles_w = 1;
    tile.strips = cut.strips;
    tile.tiles_h = (s + tile.rows(k) - 1) / tile.rows(k);
    tile.warps = (cut.strips * tile.quads + PlanarTile::units(k) - 1) / PlanarTile::units(k);
    tile.stages = cut.stages;
    tile.depth = (s + cut.cuts - 1) / cut.cuts;
    tile.tiles_d = (s + tile.depth - 1) / tile.depth;
    if (tile.warps > PlanarTile::kMostWarps || tile.rows(k) >= s + tile.strip_rows(k) || tile.plane_rows(k) > 256 ||
        tile.planes_bytes(k, c.gradient) > t.most_planes_bytes) {
        return true;
    }
    PlanarParameters p{};
    const PlaneBoxes boxes{ScalarType::bfloat16, c.channels, {s, s, s}, tile.row_bytes(k) / 2, tile.plane_rows(k)};
    const bool boxed = filled == Fill::boxes;
    p.input = t.input;
    if (boxed) check(encode_planes(boxes, t.input, &p.box), "tensor map");
    if (c.gradient) {
        if (boxed) check(encode_planes(boxes, t.output_of_norm, &p.box_output), "tensor map");
        p.affine = {t.output_of_norm, t.maps, t.maps + c.channels, t.maps + 2 * c.channels};
        p.add = t.add;
    } else {
        p.moments = t.moments;
    }
    p.in_d = p.in_h = p.in_w = p.out_d = p.out_h = p.out_w = s;
    p.weight = {t.weight, ScalarType::bfloat16};
    p.kernel_w = k;
    p.pad_d = p.pad_h = k / 2;
    p.channels = c.channels;
    p.output = t.output;
    p.tile = tile;
    const auto blocks = static_cast<unsigned>(c.channels * tile.tiles());

    cudaEvent_t begin;
    cudaEvent_t end;
    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    check(launch_case(c, p, blocks), "launch");
    check(cudaDeviceSynchronize(), "kernel");
    constexpr int kRounds = 3;
    const int launches = s >= 128 ? 4 : 20;
    std::array<float, kRounds> times{};
    for (float& time : times) {
        check(cudaEventRecord(begin), "event");
        for (int i = 0; i < launches; ++i) check(launch_case(c, p, blocks), "launch");
        check(cudaEventRecord(end), "event");
        check(cudaEventSynchronize(end), "kernel");
        check(cudaEventElapsedTime(&time, begin, end), "event");
    }
    std::sort(times.begin(), times.end());
    float worst = -1.0f;
    if (compares) {
        check(cudaMemset(t.worst, 0, sizeof(float)), "memset");
        compare<<<2048, 256>>>(t, c);
        check(cudaMemcpy(&worst, t.worst, sizeof(float), cudaMemcpyDeviceToHost), "comparison");
    }
    std::printf(
        "{\"copies\": %d, \"kernel\": %d, \"channels\": %d, \"extent\": %d, \"gradient_computed\": %d, \"fragments\": "
        "%d, \"rows\": "
        "%d, "
        "\"warps\": %d, \"cuts_of_d\": %d, \"stages\": %d, \"blocks\": %u, \"us\": %.1f, \"worst\": %.3f}\n",
        boxed ? 0 : 1, k, c.channels, s, c.gradient ? 1 : 0, tile.fragments, tile.rows(k), tile.warps, cut.cuts,
        cut.stages, blocks, 1000.0f * times[kRounds / 2] / static_cast<float>(launches), worst);
    check(cudaEventDestroy(begin), "event");
    check(cudaEventDestroy(end), "event");
    return worst <= 1.0f;
}

}  // namespace

int main(int count, char** arguments) {
    const bool copies = count == 2 && std::string_view(arguments[1]) == "copies";
    if (count > 1 && !copies) {
        std::fprintf(stderr, "usage: planar_tiles [copies]\n");
        return 2;
    }
    const Fill filled = copies ? Fill::async : Fill::boxes;
    int device = 0;
    int major = 0;
    int shared_bytes = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device");
    if (!PlanarTile::is_built(filled, 10 * major)) {
        std::fprintf(stderr, "there is no code for planes by %s on this GPU\n", copies ? "copies" : "boxes");
        return 2;
    }
    Tensors t{};
    t.most_planes_bytes = shared_bytes - 11 * 1024;
    for (T** tensor : {&t.input, &t.output_of_norm, &t.add, &t.output}) {
        check(cudaMalloc(tensor, kElements * sizeof(T)), "memory");
        fill<<<1024, 256>>>(*tensor, kElements, static_cast<unsigned>(tensor - &t.input));
    }
    check(cudaMalloc(&t.weight, kMostChannels * 343 * sizeof(T)), "memory");
    check(cudaMalloc(&t.maps, 3 * kMostChannels * sizeof(float)), "memory");
    check(cudaMalloc(&t.moments, 1000000 * sizeof(Moments<double>)), "memory");
    check(cudaMalloc(&t.worst, sizeof(float)), "memory");
    fill<<<64, 256>>>(t.weight, kMostChannels * 343, 4);
    fill<<<1, 256>>>(t.maps, 3 * kMostChannels, 5);
    bool right = true;
    for (const auto& [channels, extent] : {std::array{32, 128}, {64, 64}, {128, 32}, {256, 16}, {512, 8}}) {
        for (const int kernel : {3, 5, 7}) {
            for (const bool gradient : {false, true}) {
                const std::vector<int> stages = extent <= 32 ? std::vector{4}
                                                : gradient   ? std::vector{2, 3, 4}
                                                             : std::vector{3, 4, 6};
                for (int fragments = PlanarTile::kFewFragments; fragments <= PlanarTile::kMostFragments;
                     fragments += 2) {
                    for (int strips = 1; strips <= 16; strips *= 2) {
                        for (int cuts = 1; cuts <= (extent >= 64 ? 4 : extent); cuts *= 2) {
                            for (const int stage : stages) {
                                const bool compares = extent <= 32 || (strips == 2 && cuts == 2 && stage == stages[0]);
                                const Case c{kernel, channels, extent, gradient};
                                right = time_tile(t, c, {fragments, strips, cuts, stage}, filled, compares) && right;
                            }
                        }
                    }
                }
            }
        }
    }
    return right ? 0 : 1;
}
