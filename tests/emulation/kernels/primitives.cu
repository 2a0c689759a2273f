// One small kernel a primitive: inputs and outputs are plain arrays that Python fills and checks.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../../../csrc/cuda/common/barrier.cuh"
#include "../../../csrc/cuda/common/copy.cuh"
#include "../../../csrc/cuda/common/divisor.cuh"
#include "../../../csrc/cuda/common/gelu.cuh"
#include "../../../csrc/cuda/common/launch.h"
#include "../../../csrc/cuda/common/mma.cuh"
#include "../../../csrc/cuda/common/shared_memory.cuh"
#include "../../../csrc/cuda/common/tma.cuh"
#include "../../../csrc/cuda/common/warp.h"
#include "entry.h"

using namespace mednext_ops::cuda;

extern "C" __attribute__((visibility("default"))) const char* emulation_test_error() {
    return entry_error.c_str();
}

namespace {

// ---- indices ----

__global__ void indices(int* output) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    output[block * static_cast<int>(blockDim.x * blockDim.y * blockDim.z) + thread] = block * 1000 + thread;
}

// output[2][count]: quotients, remainders
__global__ void divisions(const __grid_constant__ Divisor divisor, int count, const int* numbers, int* output) {
    const auto [quotient, remainder] = divisor.divide(static_cast<unsigned>(numbers[threadIdx.x]));
    output[threadIdx.x] = static_cast<int>(quotient);
    output[count + threadIdx.x] = static_cast<int>(remainder);
}

// ---- warps ----

// output[lane] by shuffle `kind`: 0 from a lane, 1 up, 2 down, 3 xor
template <typename T>
__global__ void shuffles(int kind, int argument, int width, const T* input, T* output) {
    const T value = input[threadIdx.x];
    T result{};
    if (kind == 0) result = __shfl_sync(kFullWarp, value, argument, width);
    if (kind == 1) result = __shfl_up_sync(kFullWarp, value, argument, width);
    if (kind == 2) result = __shfl_down_sync(kFullWarp, value, argument, width);
    if (kind == 3) result = __shfl_xor_sync(kFullWarp, value, argument, width);
    output[threadIdx.x] = result;
}

// output[8][lane] for the lanes of `mask`
__global__ void votes(unsigned mask, const int* input, int* output) {
    const int lane = threadIdx.x;
    if ((mask >> lane & 1) == 0) return;
    const int value = input[lane];
    output[lane] = static_cast<int>(__ballot_sync(mask, value > 0));
    output[32 + lane] = __any_sync(mask, value > 0);
    output[64 + lane] = __all_sync(mask, value > 0);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    output[96 + lane] = __reduce_add_sync(mask, value);
    output[128 + lane] = __reduce_min_sync(mask, value);
    output[160 + lane] = __reduce_max_sync(mask, value);
    output[192 + lane] = static_cast<int>(__reduce_or_sync(mask, static_cast<unsigned>(value)));
    output[224 + lane] = static_cast<int>(__reduce_xor_sync(mask, static_cast<unsigned>(value)));
#endif
}

// ---- tensor cores ----

struct MatrixTile {
    SharedLayout layout;
    SharedArray<std::uint16_t> rows = layout.array<std::uint16_t>(32 * 8);
};

// input: 32 rows of 8; row_of: which row each lane names; output[lane][Count]
template <int Count, bool Transposed>
__global__ void load_matrices(const std::uint16_t* input, const int* row_of, unsigned* output) {
    constexpr MatrixTile tile;
    std::uint16_t* rows = shared_array(tile.rows);
    for (int i = threadIdx.x; i < 32 * 8; i += 32) rows[i] = input[i];
    __syncthreads();
    unsigned fragment[Count];
    ldmatrix<Count, Transposed>(fragment, rows + 8 * row_of[threadIdx.x]);
    for (int i = 0; i < Count; ++i) output[threadIdx.x * Count + i] = fragment[i];
}

// By mma.m16n8k16, or with the first halves of a and b by mma.m16n8k8.
template <typename T, int Depth>
__global__ void multiply(const unsigned* a, const unsigned* b, float* d) {
    unsigned left[4];
    unsigned right[2];
    float sum[4];
    for (int i = 0; i < 4; ++i) left[i] = a[threadIdx.x * 4 + i];
    for (int i = 0; i < 2; ++i) right[i] = b[threadIdx.x * 2 + i];
    for (int i = 0; i < 4; ++i) sum[i] = d[threadIdx.x * 4 + i];
    if constexpr (Depth == 16) {
        mma_m16n8k16<T>(sum, left, right);
    } else {
        mma_m16n8k8<T>(sum, {left[0], left[1]}, right[0], sum);
    }
    for (int i = 0; i < 4; ++i) d[threadIdx.x * 4 + i] = sum[i];
}

__global__ void transpose_matrix(const unsigned* input, unsigned* output) {
    output[threadIdx.x] = transposed(input[threadIdx.x]);
}

struct ProductTile {
    SharedLayout layout;
    SharedArray<std::uint16_t> a = layout.array<std::uint16_t>(16 * 16);
    SharedArray<std::uint16_t> b = layout.array<std::uint16_t>(16 * 8);
};

// d[16, 8] = a[16, 16] b[16, 8], row-major, as a kernel does it: copied, loaded by ldmatrix, multiplied
template <typename T>
__global__ void matrix_product(const std::uint16_t* a, const std::uint16_t* b, float* d) {
    constexpr ProductTile tile;
    std::uint16_t* left = shared_array(tile.a);
    std::uint16_t* right = shared_array(tile.b);
    const int lane = threadIdx.x;
    copy_async<16>(left + lane * 8, a + lane * 8);
    if (lane < 16) copy_async<16>(right + lane * 8, b + lane * 8);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    unsigned fragment_a[4];
    unsigned fragment_b[2];
    float sum[4] = {};
    ldmatrix<4>(fragment_a, left + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix<2, true>(fragment_b, right + lane % 16 * 8);
    mma_m16n8k16<T>(sum, fragment_a, fragment_b);
    for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

// ---- copies ----

// Thread t copies the first valid[t] of its Bytes bytes.
template <int Bytes>
__global__ void copy(const unsigned char* input, const int* valid, unsigned char* output) {
    MEDNEXT_OPS_SHARED(staged, unsigned[64 * Bytes / 4]);
    auto* bytes = reinterpret_cast<unsigned char*>(staged);
    const int begin = threadIdx.x * Bytes;
    copy_async<Bytes>(bytes + begin, input + begin, valid[threadIdx.x]);
    copy_async_commit();
    copy_async_wait<0>();
    for (int i = 0; i < Bytes; ++i) output[begin + i] = bytes[begin + i];
}

struct Pipeline {
    static constexpr int kStages = 3;
    SharedLayout layout;
    SharedArray<float> stage[kStages] = {layout.array<float>(128), layout.array<float>(128), layout.array<float>(128)};
};

// output[step][t] = sum of input[step] over the neighbours t - 1, t, t + 1: a ring of stages filled ahead
__global__ void pipelined_sums(const float* input, int steps, float* output) {
    constexpr Pipeline pipeline;
    const int t = threadIdx.x;
    const auto fill = [&](int step) {
        if (step < steps) copy_async<4>(shared_array(pipeline.stage[step % 3]) + t, input + step * 128 + t);
        copy_async_commit();
    };
    fill(0);
    fill(1);
    for (int step = 0; step < steps; ++step) {
        copy_async_wait<1>();
        __syncthreads();
        fill(step + 2);  // its stage was read before the barrier
        const float* stage = shared_array(pipeline.stage[step % 3]);
        const float below = t > 0 ? stage[t - 1] : 0.0f;
        const float above = t < 127 ? stage[t + 1] : 0.0f;
        output[step * 128 + t] = below + stage[t] + above;
    }
    copy_async_wait<0>();
}

struct BoxRing {
    static constexpr int kStages = 2;
    SharedLayout layout;
    SharedArray<std::uint64_t> full = layout.array<std::uint64_t>(kStages);
    SharedArray<unsigned char> boxes;
    unsigned stage_bytes;

    __host__ __device__ constexpr explicit BoxRing(unsigned box_bytes)
        : boxes{}, stage_bytes((box_bytes + 127) / 128 * 128) {
        boxes = layout.array<unsigned char>(kStages * stage_bytes, 128);
    }
};

// output[i] = the box that begins at[i], through a ring of two stages
__global__ void load_boxes(const __grid_constant__ CUtensorMap map, unsigned box_bytes, const int* at, int count,
                           unsigned char* output) {
    const BoxRing ring(box_bytes);
    std::uint64_t* full = shared_array(ring.full);
    unsigned char* boxes = shared_array(ring.boxes);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < BoxRing::kStages; ++stage) mbarrier_initialise(full + stage, 1);
        mbarrier_initialised();
        prefetch_tensor_map(&map);
    }
    __syncthreads();
    const auto load = [&](int i) {
        if (threadIdx.x != 0 || i >= count) return;
        const int begin[kTensorRank] = {at[i * 5], at[i * 5 + 1], at[i * 5 + 2], at[i * 5 + 3], at[i * 5 + 4]};
        std::uint64_t* barrier = full + i % BoxRing::kStages;
        mbarrier_arrive_and_expect(barrier, box_bytes);
        load_box(boxes + i % BoxRing::kStages * ring.stage_bytes, &map, begin, barrier);
    };
    load(0);
    load(1);
    for (int i = 0; i < count; ++i) {
        const int stage = i % BoxRing::kStages;
        mbarrier_wait(full + stage, i / BoxRing::kStages % 2);
        for (unsigned byte = threadIdx.x; byte < box_bytes; byte += blockDim.x) {
            output[static_cast<std::size_t>(i) * box_bytes + byte] = boxes[stage * ring.stage_bytes + byte];
        }
        __syncthreads();
        shared_memory_to_copy_engine();
        load(i + BoxRing::kStages);
    }
}

// ---- named barriers ----

// Warp 0 produces rounds of 32 numbers, warp 1 adds them up: barriers 1 (full) and 2 (empty)
__global__ void producer_and_consumer(const float* input, int rounds, float* output) {
    MEDNEXT_OPS_SHARED(handed, float[32]);
    const int lane = threadIdx.x % kWarpSize;
    if (threadIdx.x < kWarpSize) {
        for (int round = 0; round < rounds; ++round) {
            if (round > 0) named_barrier_wait(2, 64);
            handed[lane] = input[round * 32 + lane];
            named_barrier_arrive(1, 64);
        }
    } else {
        float sum = 0.0f;
        for (int round = 0; round < rounds; ++round) {
            named_barrier_wait(1, 64);
            sum += handed[31 - lane];
            if (round + 1 < rounds) named_barrier_arrive(2, 64);
        }
        output[lane] = sum;
    }
}

// ---- GELU ----

// with_slope[i] comes from the form that also gives the slope.
template <typename T, bool Summand>
__global__ void gelus(const float* input, float* value, float* with_slope, float* slope) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    value[i] = gelu<T, Summand>(input[i]);
    float x = input[i];
    slope[i] = gelu_with_slope<T, Summand>(x);
    with_slope[i] = x;
}

template <typename T>
cudaError_t launch_shuffles(int kind, int argument, int width, const void* input, void* output) {
    return launch<shuffles<T>>({1, 32}, kind, argument, width, static_cast<const T*>(input), static_cast<T*>(output));
}

}  // namespace

ENTRY run_indices(const unsigned* grid, const unsigned* block, int* output) {
    return entered(
        [&] { return launch<indices>({dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2])}, output); });
}

ENTRY run_shuffles(int type, int kind, int argument, int width, const void* input, void* output) {
    return entered([&] {
        if (type == 0) return launch_shuffles<int>(kind, argument, width, input, output);
        if (type == 1) return launch_shuffles<float>(kind, argument, width, input, output);
        return launch_shuffles<double>(kind, argument, width, input, output);
    });
}

ENTRY run_votes(unsigned mask, const int* input, int* output) {
    return entered([&] { return launch<votes>({1, 32}, mask, input, output); });
}

ENTRY run_load_matrices(int count, int transposed, const std::uint16_t* input, const int* row_of, unsigned* output) {
    constexpr MatrixTile tile;
    const LaunchShape shape{1, 32, tile.layout.bytes()};
    return entered([&] {
        if (count == 1 && transposed == 0) return launch<load_matrices<1, false>>(shape, input, row_of, output);
        if (count == 1) return launch<load_matrices<1, true>>(shape, input, row_of, output);
        if (count == 2 && transposed == 0) return launch<load_matrices<2, false>>(shape, input, row_of, output);
        if (count == 2) return launch<load_matrices<2, true>>(shape, input, row_of, output);
        if (transposed == 0) return launch<load_matrices<4, false>>(shape, input, row_of, output);
        return launch<load_matrices<4, true>>(shape, input, row_of, output);
    });
}

ENTRY run_multiply(int bfloat16, int depth, const unsigned* a, const unsigned* b, float* d) {
    return entered([&] {
        const auto of_depth = [&]<int Depth>() {
            if (bfloat16 != 0) return launch<multiply<__nv_bfloat16, Depth>>({1, 32}, a, b, d);
            return launch<multiply<__half, Depth>>({1, 32}, a, b, d);
        };
        return depth == 16 ? of_depth.template operator()<16>() : of_depth.template operator()<8>();
    });
}

ENTRY run_transpose_matrix(const unsigned* input, unsigned* output) {
    return entered([&] { return launch<transpose_matrix>({1, 32}, input, output); });
}

ENTRY run_gelus(int bfloat16, int summand, const float* input, int count, float* value, float* with_slope,
                float* slope) {
    return entered([&] {
        const LaunchShape shape{static_cast<unsigned>(count / 256), 256};
        const auto run = [&]<typename T>() {
            if (summand != 0) return launch<gelus<T, true>>(shape, input, value, with_slope, slope);
            return launch<gelus<T, false>>(shape, input, value, with_slope, slope);
        };
        return bfloat16 != 0 ? run.template operator()<__nv_bfloat16>() : run.template operator()<__half>();
    });
}

ENTRY run_matrix_product(int bfloat16, const std::uint16_t* a, const std::uint16_t* b, float* d) {
    constexpr ProductTile tile;
    const LaunchShape shape{1, 32, tile.layout.bytes()};
    return entered([&] {
        if (bfloat16 != 0) return launch<matrix_product<__nv_bfloat16>>(shape, a, b, d);
        return launch<matrix_product<__half>>(shape, a, b, d);
    });
}

ENTRY run_divisions(int divisor, int count, const int* numbers, int* output) {
    return entered([&] {
        return launch<divisions>({1, dim3(count)}, Divisor(static_cast<unsigned>(divisor)), count, numbers, output);
    });
}

ENTRY run_copy(int bytes, const unsigned char* input, const int* valid, unsigned char* output) {
    return entered([&] {
        if (bytes == 4) return launch<copy<4>>({1, 64}, input, valid, output);
        if (bytes == 8) return launch<copy<8>>({1, 64}, input, valid, output);
        return launch<copy<16>>({1, 64}, input, valid, output);
    });
}

ENTRY run_pipelined_sums(const float* input, int steps, float* output) {
    constexpr Pipeline pipeline;
    return entered([&] { return launch<pipelined_sums>({1, 128, pipeline.layout.bytes()}, input, steps, output); });
}

ENTRY run_load_boxes(const void* data, int type, const std::uint64_t* extent, const std::uint64_t* stride_bytes,
                     const std::uint32_t* box, const int* at, int count, unsigned char* output) {
    return entered([&] {
        BoxedTensor tensor{data, static_cast<ScalarType>(type), {}, {}, {}};
        for (int i = 0; i < kTensorRank; ++i) tensor.extent[i] = extent[i];
        for (int i = 0; i < kTensorRank; ++i) tensor.box[i] = box[i];
        for (int i = 0; i < kTensorRank - 1; ++i) tensor.stride_bytes[i] = stride_bytes[i];
        CUtensorMap map;
        if (const cudaError_t error = encode(tensor, &map); error != cudaSuccess) return error;
        const auto bytes = static_cast<unsigned>(tensor.box_bytes());
        return launch<load_boxes>({1, 64, BoxRing(bytes).layout.bytes()}, map, bytes, at, count, output);
    });
}

ENTRY run_producer_and_consumer(const float* input, int rounds, float* output) {
    return entered([&] { return launch<producer_and_consumer>({1, 64}, input, rounds, output); });
}
