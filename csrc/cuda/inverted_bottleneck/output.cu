// A bottleneck's output put together, and volumes made dense: passes over memory, which do little else than move it.
#include <climits>
#include <cstdint>

#include "../common/divisor.cuh"
#include "../common/launch.h"
#include "../common/parameter.cuh"
#include "../common/scalar_types.cuh"
#include "../common/warp.h"
#include "products.h"
#include "rows.cuh"

namespace mednext_ops::cuda::inverted_bottleneck {
namespace {

// ---- rows without anything between them ----

template <typename T, bool Aligned>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) add_rows(const __grid_constant__ OutputProblem p) {
    const std::int64_t voxels = p.size[0] * p.size[1] * p.size[2];
    const auto runs = static_cast<unsigned>((voxels + kRun - 1) / kRun);
    const std::int64_t row = warp_number() / runs;  // n * O + o
    if (row >= p.batch * p.channels) return;
    const float bias = p.bias.data == nullptr ? 0.0f : load_parameter(p.bias, row % p.channels);
    const std::int64_t first = std::int64_t{warp_number() % runs} * kRun + threadIdx.x % kWarpSize * kVector;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        const std::int64_t v = first + step * kStep;
        if (v >= voxels) break;
        const int count = elements_left(voxels, v);
        float values[kVector];
        read<T, Aligned>(static_cast<const T*>(p.product) + row * p.pitch + v, count, values);
        float added[kVector] = {};
        if (p.residual != nullptr) {
            read<T, Aligned>(static_cast<const T*>(p.residual) + row * voxels + v, count, added);
        }
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] = values[i] + bias + added[i];
        write<T, Aligned>(static_cast<T*>(p.output) + row * voxels + v, count, values);
    }
}

// ---- behind planes of zeros ----

struct PlaceParameters {
    OutputProblem problem;
    Divisor vectors, height, depth;  // of a line, a layer and a volume of the output
};

// Eight elements from `at` on of an array of `count`, a multiple of eight, that begins aligned; what lies outside of it
// is not read. They come as the two aligned vectors that hold them, wherever they begin.
template <typename T>
__device__ void read_shifted(const T* array, std::int64_t count, std::int64_t at, float (&values)[kVector]) {
    const int shift = static_cast<int>(at & (kVector - 1));
    const std::int64_t begin = at - shift;
    uint4 low{};
    uint4 high{};
    if (begin >= 0) low = *reinterpret_cast<const uint4*>(array + begin);
    const std::int64_t next = begin + kVector;
    if (shift != 0 && next >= 0 && next < count) high = *reinterpret_cast<const uint4*>(array + next);
    unsigned words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int distance = 2; distance > 0; distance /= 2) {  // of whole words
#pragma unroll
        for (int i = 0; i + distance < 8; ++i) words[i] = (shift & 2 * distance) != 0 ? words[i + distance] : words[i];
    }
    const unsigned selector = (shift & 1) != 0 ? 0x5432 : 0x3210;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        unpack<T>(__byte_perm(words[i], words[i + 1], selector), values[2 * i], values[2 * i + 1]);
    }
}

// A thread has eight elements of a row along W; rows along W are far too short for a warp each.
template <typename T, bool Aligned>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    place_rows(const __grid_constant__ PlaceParameters parameters) {
    const OutputProblem& p = parameters.problem;
    const auto [line, vector] = parameters.vectors.divide(blockIdx.x * kThreads + threadIdx.x);
    const auto [layer, y] = parameters.height.divide(line);
    const auto [row, z] = parameters.depth.divide(layer);  // n * O + o
    const std::int64_t rows = p.batch * p.channels;
    if (row >= rows) return;
    const auto size = [&](int axis) { return static_cast<int>(p.size[axis]); };
    const auto front = [&](int axis) { return static_cast<int>(p.front[axis]); };
    const int begin = static_cast<int>(vector) * kVector;
    const int count = elements_left(size(2) + front(2), begin);
    const std::int64_t at = std::int64_t{line} * (size(2) + front(2)) + begin;
    const int d = static_cast<int>(z) - front(0);
    const int h = static_cast<int>(y) - front(1);
    const int w = begin - front(2);  // of the first element, in the product
    const auto inside = [&](int i) { return static_cast<unsigned>(w + i) < static_cast<unsigned>(size(2)); };

    float values[kVector] = {};
    if (p.skip != nullptr) read<T, Aligned>(static_cast<const T*>(p.skip) + at, count, values);
    if (d >= 0 && h >= 0) {
        const unsigned channel = row % static_cast<unsigned>(p.channels);
        const float bias = p.bias.data == nullptr ? 0.0f : load_parameter(p.bias, channel);
        const T* const product = static_cast<const T*>(p.product);
        const std::int64_t from = row * p.pitch + (std::int64_t{d} * size(1) + h) * size(2) + w;
        float found[kVector] = {};
        if constexpr (Aligned && sizeof(T) == 2) {
            read_shifted<T>(product, rows * p.pitch, from, found);
        } else {
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                if (inside(i)) found[i] = to_float(product[from + i]);
            }
        }
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] += inside(i) ? found[i] + bias : 0.0f;
        // Strides are 1 or 2: less one they are the bits that must be zero, and the distance to shift by.
        const auto bits = [&](int axis) { return static_cast<int>(p.stride[axis]) - 1; };
        if (p.residual != nullptr && (d & bits(0)) == 0 && (h & bits(1)) == 0) {
            const auto extent = [&](int axis) { return (size(axis) + bits(axis)) >> bits(axis); };
            const std::int64_t residual_line =
                (row * std::int64_t{extent(0)} + (d >> bits(0))) * extent(1) + (h >> bits(1));
            const T* const residual = static_cast<const T*>(p.residual) + residual_line * extent(2);
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                if (inside(i) && ((w + i) & bits(2)) == 0) values[i] += to_float(residual[(w + i) >> bits(2)]);
            }
        }
    }
    write<T, Aligned>(static_cast<T*>(p.output) + at, count, values);
}

// ---- dense volumes ----

constexpr int kElementsOfLane = 4;
constexpr int kLine = kWarpSize * kElementsOfLane;

struct PackParameters {
    PackedProblem problem;
    std::int64_t voxels, layer_voxels;  // of a layer of lines
    Divisor groups, depth, channels;
};

// A warp has some lines along W, its lanes neighbouring elements: lines begin anywhere, where they are read and
// written. Elements along W lie `Stride` apart, 0 for what the problem says.
template <typename Element, int Stride, int Lines>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    pack_rows(const __grid_constant__ PackParameters parameters) {
    const PackedProblem& p = parameters.problem;
    const auto [layer, group] = parameters.groups.divide(warp_number());
    const auto [row, d] = parameters.depth.divide(layer);  // n * C + c
    const auto [n, c] = parameters.channels.divide(row);
    if (n >= p.batch) return;
    const int lane = threadIdx.x % kWarpSize;
    const int width = static_cast<int>(p.size[2]);
    const std::int64_t first = std::int64_t{group} * Lines;
    const Element* const from = static_cast<const Element*>(p.input) + n * p.stride[0] + c * p.stride[1] +
                                d * p.stride[2] + first * p.stride[3];
    Element* const result = static_cast<Element*>(p.result) + row * p.pitch;
    Element* const to = result + d * parameters.layer_voxels + first * width;
    const std::int64_t element_stride = Stride > 0 ? Stride : p.stride[4];
    int lengths[Lines];  // of what the layer has of each line
#pragma unroll
    for (int line = 0; line < Lines; ++line) {
        const std::int64_t left = parameters.layer_voxels - (first + line) * width;
        lengths[line] = static_cast<int>(max(std::int64_t{0}, min(left, std::int64_t{width})));
    }
#pragma unroll 1
    for (int begin = lane; begin < width; begin += kLine) {
        Element values[Lines][kElementsOfLane];
#pragma unroll
        for (int line = 0; line < Lines; ++line) {
            const Element* const at = from + line * p.stride[3] + begin * element_stride;
#pragma unroll
            for (int i = 0; i < kElementsOfLane; ++i) {
                if (begin + i * kWarpSize < lengths[line]) values[line][i] = at[i * kWarpSize * element_stride];
            }
        }
#pragma unroll
        for (int line = 0; line < Lines; ++line) {
            Element* const at = to + std::int64_t{line} * width + begin;
#pragma unroll
            for (int i = 0; i < kElementsOfLane; ++i) {
                if (begin + i * kWarpSize < lengths[line]) at[i * kWarpSize] = values[line][i];
            }
        }
    }
    const bool is_last = d + 1 == p.size[0] && first + Lines >= p.size[1];
    if (is_last && lane < p.pitch - parameters.voxels) result[parameters.voxels + lane] = 0;
}

// Of a number that is at most that of the units of a launch.
Divisor divisor_of(std::int64_t number) {
    return Divisor(static_cast<unsigned>(number));
}

}  // namespace

cudaError_t launch_output(const OutputProblem& p, cudaStream_t stream) {
    bool plain = p.skip == nullptr;
    std::array<std::int64_t, 3> whole{};
    for (int axis = 0; axis < 3; ++axis) {
        plain = plain && p.front[axis] == 0 && p.stride[axis] == 1;
        whole[axis] = p.size[axis] + p.front[axis];
        if (p.size[axis] > INT_MAX / 2 || p.front[axis] > INT_MAX / 2) return cudaErrorInvalidConfiguration;
    }
    const std::int64_t rows = p.batch * p.channels;
    const std::int64_t voxels = p.size[0] * p.size[1] * p.size[2];
    const bool aligned =
        p.pitch % kVector == 0 && is_aligned(p.product) && is_aligned(p.residual) && is_aligned(p.output);
    return with_scalar_type(p.type, [&]<typename T>(const T*) {
        if (plain) {
            const std::int64_t warps = rows * ceil_div(voxels, kRun);
            return aligned && voxels % kVector == 0 ? launch_units<add_rows<T, true>>(warps, kWarps, p, stream)
                                                    : launch_units<add_rows<T, false>>(warps, kWarps, p, stream);
        }
        const std::int64_t vectors = ceil_div(whole[2], kVector);
        const std::int64_t threads = rows * whole[0] * whole[1] * vectors;
        if (threads == 0) return cudaSuccess;
        const PlaceParameters parameters{p, divisor_of(vectors), divisor_of(whole[1]), divisor_of(whole[0])};
        return whole[2] % kVector == 0 && rows * p.pitch % kVector == 0 && is_aligned(p.product) &&
                       is_aligned(p.skip) && is_aligned(p.output)
                   ? launch_units<place_rows<T, true>>(threads, kThreads, parameters, stream)
                   : launch_units<place_rows<T, false>>(threads, kThreads, parameters, stream);
    });
}

cudaError_t launch_packed(const PackedProblem& problem, cudaStream_t stream) {
    PackedProblem p = problem;
    for (const std::int64_t extent : p.size) {
        if (extent > INT_MAX / 2) return cudaErrorInvalidConfiguration;
    }
    const std::int64_t voxels = p.size[0] * p.size[1] * p.size[2];
    std::int64_t layer_voxels = p.size[1] * p.size[2];
    if ((p.size[1] == 1 || p.stride[3] == p.size[2] * p.stride[4]) &&
        (p.size[0] == 1 || p.stride[2] == layer_voxels * p.stride[4])) {  // one line, which warps share
        layer_voxels = voxels;
        p.size = {1, ceil_div(voxels, kLine), kLine};
        p.stride[3] = kLine * p.stride[4];
    }
    const auto launch_lines = [&]<int Stride, int Lines>() {
        const std::int64_t groups = ceil_div(p.size[1], Lines);
        const std::int64_t warps = voxels == 0 ? 0 : p.batch * p.channels * p.size[0] * groups;
        if (warps == 0) return cudaSuccess;
        const PackParameters parameters{
            p, voxels, layer_voxels, divisor_of(groups), divisor_of(p.size[0]), divisor_of(p.channels)};
        return p.type == ScalarType::float32
                   ? launch_units<pack_rows<std::uint32_t, Stride, Lines>>(warps, kWarps, parameters, stream)
                   : launch_units<pack_rows<std::uint16_t, Stride, Lines>>(warps, kWarps, parameters, stream);
    };
    if (p.stride[4] == 1) return launch_lines.template operator()<1, 4>();
    if (p.stride[4] == 2) return launch_lines.template operator()<2, 4>();
    return launch_lines.template operator()<0, 2>();
}

}  // namespace mednext_ops::cuda::inverted_bottleneck
