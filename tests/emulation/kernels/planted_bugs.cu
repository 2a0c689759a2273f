// Kernels with one mistake each, which the emulation must find. Never run them on a GPU.
#include <cuda_fp16.h>

#include <cstdint>

#include "../../../csrc/cuda/common/copy.cuh"
#include "../../../csrc/cuda/common/launch.h"
#include "../../../csrc/cuda/common/mma.cuh"
#include "../../../csrc/cuda/common/shared_memory.cuh"
#include "../../../csrc/cuda/common/tma.cuh"
#include "../../../csrc/cuda/common/warp.h"
#include "entry.h"

using namespace mednext_ops::cuda;

namespace {

// Thread t reads what thread t - 1 wrote: right by luck where threads run in order.
template <bool Barrier>
__global__ void missing_barrier(const float* input, float* output) {
    MEDNEXT_OPS_SHARED(values, float[128]);
    const int t = threadIdx.x;
    values[t] = input[t];
    if (Barrier) __syncthreads();
    output[t] = t > 0 ? values[t - 1] : 0.0f;
}

__global__ void missing_warp_barrier(const float* input, float* output) {
    MEDNEXT_OPS_SHARED(values, float[32]);
    const int t = threadIdx.x;
    values[t] = input[t];
    output[t] = t > 0 ? values[t - 1] : 0.0f;
    __syncwarp();
}

template <bool Wait>
__global__ void missing_wait(const float* input, float* output) {
    MEDNEXT_OPS_SHARED(values, float[32]);
    copy_async<4>(values + threadIdx.x, input + threadIdx.x);
    copy_async_commit();
    if (Wait) copy_async_wait<0>();
    output[threadIdx.x] = values[threadIdx.x];
    copy_async_wait<0>();
}

// Two groups are on their way; all but the newest have landed.
__global__ void wait_for_too_little(const float* input, float* output) {
    MEDNEXT_OPS_SHARED(values, float[2][32]);
    for (int group = 0; group < 2; ++group) {
        copy_async<4>(values[group] + threadIdx.x, input + group * 32 + threadIdx.x);
        copy_async_commit();
    }
    copy_async_wait<1>();
    for (int group = 0; group < 2; ++group) output[group * 32 + threadIdx.x] = values[group][threadIdx.x];
    copy_async_wait<0>();
}

__global__ void never_waits(const float* input) {
    MEDNEXT_OPS_SHARED(values, float[32]);
    copy_async<4>(values + threadIdx.x, input + threadIdx.x);
    copy_async_commit();
}

// The stage is filled anew while other threads may still read it.
__global__ void overwrites_a_stage(const float* input, float* output) {
    MEDNEXT_OPS_SHARED(values, float[64]);
    const int t = threadIdx.x;
    for (int step = 0; step < 2; ++step) {
        copy_async<4>(values + t, input + step * 64 + t);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        output[step * 64 + t] = values[t > 0 ? t - 1 : 63];
    }
}

__global__ void reads_uninitialised(float* output) {
    MEDNEXT_OPS_SHARED(values, float[32]);
    if (threadIdx.x < 16) values[threadIdx.x] = 1.0f;
    __syncthreads();
    output[threadIdx.x] = values[threadIdx.x];
}

__global__ void diverges(float* output) {
    if (threadIdx.x < 64) {
        __syncthreads();
        output[threadIdx.x] = 1.0f;
    } else {
        __syncthreads();
        output[threadIdx.x] = 2.0f;
    }
}

__global__ void returns_before_the_barrier(float* output) {
    if (threadIdx.x >= 100) return;
    __syncthreads();
    output[threadIdx.x] = 1.0f;
}

__global__ void lanes_that_never_come(int* output) {
    if (threadIdx.x < 30) output[threadIdx.x] = __shfl_down_sync(kFullWarp, 1, 1);
}

__global__ void a_caller_outside_of_its_mask(int* output) {
    output[threadIdx.x] = __shfl_sync(0xffffu, 1, 0);
}

__global__ void reads_a_lane_outside_of_its_mask(int* output) {
    if (threadIdx.x < 16) output[threadIdx.x] = __shfl_sync(0xffffu, 1, 20);
}

__global__ void misaligned_row(unsigned* output) {
    MEDNEXT_OPS_SHARED(rows, std::uint16_t[8 * 8 + 4]);
    for (int i = threadIdx.x; i < 8 * 8 + 4; i += 32) rows[i] = 0;
    __syncthreads();
    unsigned fragment[1];
    ldmatrix(fragment, rows + 4 + threadIdx.x % 8 * 8);
    output[threadIdx.x] = fragment[0];
}

__global__ void rows_in_global_memory(const std::uint16_t* input, unsigned* output) {
    unsigned fragment[1];
    ldmatrix(fragment, input + threadIdx.x % 8 * 8);
    output[threadIdx.x] = fragment[0];
}

struct TwoArrays {
    SharedLayout layout;
    SharedArray<float> first = layout.array<float>(32);
    SharedArray<float> second = layout.array<float>(32);
};

__global__ void more_than_asked_for(float* output) {
    constexpr TwoArrays tile;
    output[threadIdx.x] = shared_array(tile.second)[threadIdx.x];
}

// `by` elements past the end
__global__ void past_a_static_array(int by, float* output) {
    MEDNEXT_OPS_SHARED(values, float[32]);
    MEDNEXT_OPS_SHARED(others, float[32]);
    const int t = threadIdx.x;
    float* begin = values;
    begin[t + by] = 1.0f;
    others[t] = 2.0f;
    output[t] = begin[t] + others[t];
}

__global__ void past_a_dynamic_array(int by, float* output) {
    constexpr TwoArrays tile;
    const int t = threadIdx.x;
    float* first = shared_array(tile.first);
    shared_array(tile.second)[t] = 2.0f;
    first[t + by] = 1.0f;
    output[t] = first[t];
}

__global__ void past_the_input(const float* input, int by, float* output) {
    output[threadIdx.x] = input[threadIdx.x + by];
}

__global__ void copies_past_the_input(const float* input, int by, float* output) {
    MEDNEXT_OPS_SHARED(values, float[32]);
    copy_async<4>(values + threadIdx.x, input + threadIdx.x + by);
    copy_async_commit();
    copy_async_wait<0>();
    output[threadIdx.x] = values[threadIdx.x];
}

__global__ void misaligned_vector(const float* input, int by, float4* output) {
    output[threadIdx.x] = *reinterpret_cast<const float4*>(input + 4 * threadIdx.x + by);
}

struct OneBox {
    SharedLayout layout;
    SharedArray<float> box = layout.array<float>(32, 128);
    SharedArray<std::uint64_t> full = layout.array<std::uint64_t>(1);
};

enum class BoxMistake { none, no_initialisation, no_wait, never_waited, too_many_arrivals, wrong_bytes };

template <BoxMistake Mistake>
__global__ void box(const __grid_constant__ CUtensorMap map, float* output) {
    constexpr OneBox tile;
    float* values = shared_array(tile.box);
    std::uint64_t* full = shared_array(tile.full);
    if (threadIdx.x == 0 && Mistake != BoxMistake::no_initialisation) {
        mbarrier_initialise(full, 1);
        mbarrier_initialised();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const int begin[kTensorRank] = {};
        mbarrier_arrive_and_expect(full, Mistake == BoxMistake::wrong_bytes ? 64 : 128);
        if (Mistake == BoxMistake::too_many_arrivals) mbarrier_arrive(full);
        load_box(values, &map, begin, full);
        if (Mistake == BoxMistake::too_many_arrivals) mbarrier_arrive(full);
    }
    if (Mistake != BoxMistake::no_wait && Mistake != BoxMistake::never_waited) mbarrier_wait(full, 0);
    output[threadIdx.x] = values[threadIdx.x];
    if (Mistake == BoxMistake::no_wait) mbarrier_wait(full, 0);
}

template <BoxMistake Mistake>
cudaError_t launch_box(const float* input, float* output) {
    BoxedTensor tensor{input, ScalarType::float32, {32, 1, 1, 1, 1}, {128, 128, 128, 128}, {32, 1, 1, 1, 1}};
    CUtensorMap map;
    if (const cudaError_t error = encode(tensor, &map); error != cudaSuccess) return error;
    constexpr OneBox tile;
    return launch<box<Mistake>>({1, 32, tile.layout.bytes()}, map, output);
}

// ---- a ring of boxes that no barrier of the block keeps together: warps are at different steps ----

enum class RingMistake { none, nobody_waited_for, still_in_use };

struct RingOfBoxes {
    static constexpr int kStages = 2;
    static constexpr int kFloats = 32;
    SharedLayout layout;
    SharedArray<float> boxes = layout.array<float>(kStages * kFloats, 128);
    SharedArray<std::uint64_t> full = layout.array<std::uint64_t>(kStages);
    SharedArray<std::uint64_t> read = layout.array<std::uint64_t>(kStages);
};

// output[step][warp][lane] = input[step][lane]. The first warp asks for what comes.
template <RingMistake Mistake>
__global__ void ring(const __grid_constant__ CUtensorMap map, int steps, float* output) {
    constexpr RingOfBoxes tile;
    constexpr int kStages = RingOfBoxes::kStages;
    float* boxes = shared_array(tile.boxes);
    std::uint64_t* full = shared_array(tile.full);
    std::uint64_t* read = shared_array(tile.read);
    const unsigned warps = blockDim.x / 32;
    const unsigned lane = threadIdx.x % 32;
    const auto ask = [&](int step) {
        const int begin[kTensorRank] = {0, step, 0, 0, 0};
        mbarrier_arrive_and_expect(full + step % kStages, sizeof(float) * RingOfBoxes::kFloats);
        load_box(boxes + step % kStages * RingOfBoxes::kFloats, &map, begin, full + step % kStages);
    };
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            mbarrier_initialise(full + stage, 1);
            mbarrier_initialise(read + stage, warps);
        }
        mbarrier_initialised();
        for (int step = 0; step < kStages; ++step) ask(step);
    }
    __syncthreads();
    for (int step = 0; step < steps; ++step) {
        const int stage = step % kStages;
        mbarrier_wait(full + stage, step / kStages % 2);
        unsigned at = lane;
        for (int i = 0; i < 8; ++i) at = __shfl_sync(0xffffffffu, at, lane);  // what else a step does
        output[(step * warps + threadIdx.x / 32) * 32 + lane] = boxes[stage * RingOfBoxes::kFloats + at];
        __syncwarp();
        if (lane == 0) mbarrier_arrive(read + stage);
        if (threadIdx.x != 0) continue;
        const int next = Mistake == RingMistake::still_in_use ? step + kStages : step - 1 + kStages;
        if (step == 0 && Mistake != RingMistake::still_in_use) continue;
        if (next >= steps) continue;
        if (Mistake == RingMistake::none) mbarrier_wait(read + next % kStages, (step - 1) / kStages % 2);
        shared_memory_to_copy_engine();
        ask(next);
    }
}

template <RingMistake Mistake>
cudaError_t launch_ring(const float* input, int warps, int steps, float* output) {
    const auto bytes = static_cast<std::uint64_t>(steps) * 128;
    BoxedTensor tensor{input,
                       ScalarType::float32,
                       {32, static_cast<std::uint64_t>(steps), 1, 1, 1},
                       {128, bytes, bytes, bytes},
                       {32, 1, 1, 1, 1}};
    CUtensorMap map;
    if (const cudaError_t error = encode(tensor, &map); error != cudaSuccess) return error;
    constexpr RingOfBoxes tile;
    const LaunchShape shape{1, static_cast<unsigned>(32 * warps), tile.layout.bytes()};
    return launch<ring<Mistake>>(shape, map, steps, output);
}

// output[i] = input[31 - i]: each lane copies its own element, and reads another's.
enum class ArrivalMistake { none, no_wait, never_waited, more_arrivals_expected, arrives_before_its_copy };

template <ArrivalMistake Mistake>
__global__ void arrival_when_copied(const float* input, float* output) {
    MEDNEXT_OPS_SHARED(elements, float[32]);
    MEDNEXT_OPS_SHARED(full, std::uint64_t);
    const unsigned lane = threadIdx.x;
    if (lane == 0) mbarrier_initialise(&full, Mistake == ArrivalMistake::more_arrivals_expected ? 33 : 32);
    __syncthreads();
    if (Mistake == ArrivalMistake::arrives_before_its_copy) mbarrier_arrive_when_copied(&full);
    copy_async<4>(elements + lane, input + lane);
    if (Mistake != ArrivalMistake::arrives_before_its_copy) mbarrier_arrive_when_copied(&full);
    if (Mistake != ArrivalMistake::no_wait && Mistake != ArrivalMistake::never_waited) mbarrier_wait(&full, 0);
    output[lane] = elements[31 - lane];
    if (Mistake == ArrivalMistake::no_wait) mbarrier_wait(&full, 0);
}

// A block asks for more shared memory than the architecture has, though no more than another one has.
__global__ void large_block() {}

}  // namespace

ENTRY run_ring(int mistake, const float* input, int warps, int steps, float* output) {
    return entered([&] {
        switch (static_cast<RingMistake>(mistake)) {
            case RingMistake::none:
                return launch_ring<RingMistake::none>(input, warps, steps, output);
            case RingMistake::nobody_waited_for:
                return launch_ring<RingMistake::nobody_waited_for>(input, warps, steps, output);
            default:
                return launch_ring<RingMistake::still_in_use>(input, warps, steps, output);
        }
    });
}

ENTRY run_arrival_when_copied(int mistake, const float* input, float* output) {
    return entered([&] {
        switch (static_cast<ArrivalMistake>(mistake)) {
            case ArrivalMistake::none:
                return launch<arrival_when_copied<ArrivalMistake::none>>({1, 32}, input, output);
            case ArrivalMistake::no_wait:
                return launch<arrival_when_copied<ArrivalMistake::no_wait>>({1, 32}, input, output);
            case ArrivalMistake::never_waited:
                return launch<arrival_when_copied<ArrivalMistake::never_waited>>({1, 32}, input, output);
            case ArrivalMistake::more_arrivals_expected:
                return launch<arrival_when_copied<ArrivalMistake::more_arrivals_expected>>({1, 32}, input, output);
            default:
                return launch<arrival_when_copied<ArrivalMistake::arrives_before_its_copy>>({1, 32}, input, output);
        }
    });
}

ENTRY run_large_block(int bytes) {
    return entered([&] { return launch<large_block>({1, 32, static_cast<std::size_t>(bytes)}); });
}

ENTRY run_missing_barrier(int barrier, const float* input, float* output) {
    return entered([&] {
        if (barrier != 0) return launch<missing_barrier<true>>({1, 128}, input, output);
        return launch<missing_barrier<false>>({1, 128}, input, output);
    });
}

ENTRY run_missing_warp_barrier(const float* input, float* output) {
    return entered([&] { return launch<missing_warp_barrier>({1, 32}, input, output); });
}

ENTRY run_missing_wait(int wait, const float* input, float* output) {
    return entered([&] {
        if (wait != 0) return launch<missing_wait<true>>({1, 32}, input, output);
        return launch<missing_wait<false>>({1, 32}, input, output);
    });
}

ENTRY run_wait_for_too_little(const float* input, float* output) {
    return entered([&] { return launch<wait_for_too_little>({1, 32}, input, output); });
}

ENTRY run_never_waits(const float* input) {
    return entered([&] { return launch<never_waits>({1, 32}, input); });
}

ENTRY run_overwrites_a_stage(const float* input, float* output) {
    return entered([&] { return launch<overwrites_a_stage>({1, 64}, input, output); });
}

ENTRY run_reads_uninitialised(float* output) {
    return entered([&] { return launch<reads_uninitialised>({1, 32}, output); });
}

ENTRY run_diverges(float* output) {
    return entered([&] { return launch<diverges>({1, 128}, output); });
}

ENTRY run_returns_before_the_barrier(float* output) {
    return entered([&] { return launch<returns_before_the_barrier>({3, 128}, output); });
}

ENTRY run_lanes_that_never_come(int* output) {
    return entered([&] { return launch<lanes_that_never_come>({1, 32}, output); });
}

ENTRY run_a_caller_outside_of_its_mask(int* output) {
    return entered([&] { return launch<a_caller_outside_of_its_mask>({1, 32}, output); });
}

ENTRY run_reads_a_lane_outside_of_its_mask(int* output) {
    return entered([&] { return launch<reads_a_lane_outside_of_its_mask>({1, 32}, output); });
}

ENTRY run_misaligned_row(unsigned* output) {
    return entered([&] { return launch<misaligned_row>({1, 32}, output); });
}

ENTRY run_rows_in_global_memory(const std::uint16_t* input, unsigned* output) {
    return entered([&] { return launch<rows_in_global_memory>({1, 32}, input, output); });
}

ENTRY run_more_than_asked_for(float* output) {
    return entered([&] { return launch<more_than_asked_for>({1, 32, 128}, output); });
}

ENTRY run_past_a_static_array(int by, float* output) {
    return entered([&] { return launch<past_a_static_array>({1, 32}, by, output); });
}

ENTRY run_past_a_dynamic_array(int by, float* output) {
    constexpr TwoArrays tile;
    return entered([&] { return launch<past_a_dynamic_array>({1, 32, tile.layout.bytes()}, by, output); });
}

ENTRY run_past_the_input(const float* input, int by, float* output) {
    return entered([&] { return launch<past_the_input>({1, 32}, input, by, output); });
}

ENTRY run_copies_past_the_input(const float* input, int by, float* output) {
    return entered([&] { return launch<copies_past_the_input>({1, 32}, input, by, output); });
}

ENTRY run_misaligned_vector(const float* input, int by, void* output) {
    return entered([&] { return launch<misaligned_vector>({1, 32}, input, by, static_cast<float4*>(output)); });
}

ENTRY run_box(int mistake, const float* input, float* output) {
    return entered([&] {
        switch (static_cast<BoxMistake>(mistake)) {
            case BoxMistake::no_initialisation:
                return launch_box<BoxMistake::no_initialisation>(input, output);
            case BoxMistake::no_wait:
                return launch_box<BoxMistake::no_wait>(input, output);
            case BoxMistake::never_waited:
                return launch_box<BoxMistake::never_waited>(input, output);
            case BoxMistake::too_many_arrivals:
                return launch_box<BoxMistake::too_many_arrivals>(input, output);
            case BoxMistake::wrong_bytes:
                return launch_box<BoxMistake::wrong_bytes>(input, output);
            case BoxMistake::none:
                break;
        }
        return launch_box<BoxMistake::none>(input, output);
    });
}
