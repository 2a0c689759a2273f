// CUDA's warp functions: votes, shuffles, reductions. Each is complete when the last lane of its mask has come.
#pragma once

#include <bit>
#include <type_traits>

#include "block.h"

namespace mednext_ops::emulation {

// `complete(lanes, mask)` sees what each lane brought; lanes outside the mask are null.
template <typename Exchange, typename Function>
void warp_collective(const char* name, unsigned mask, Exchange& mine, Function, const CallSite& where) {
    static_assert(std::is_empty_v<Function>, "a lambda without captures: all lanes must bring the same one");
    Block::current().warp_collective(
        name, mask, &mine,
        [](void* const* lanes, unsigned members) { Function{}(reinterpret_cast<Exchange* const*>(lanes), members); },
        where);
}

template <typename T>
struct Shuffle {
    T value;
    unsigned source;
    const CallSite* where;
    T result;
};

template <typename T>
T shuffle(const char* name, unsigned mask, T value, unsigned source, const CallSite& where) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "a shuffle moves 1 to 8 bytes");
    Shuffle<T> mine{value, source, &where, value};
    warp_collective(
        name, mask, mine,
        [](Shuffle<T>* const* lanes, unsigned members) {
            for (unsigned lane = 0; lane < kLanes; ++lane) {
                if ((members >> lane & 1) == 0) continue;
                const unsigned from = lanes[lane]->source;
                if ((members >> from & 1) == 0) {
                    Block::current().fail("a shuffle reads lane " + std::to_string(from) + ", which is not in its mask",
                                          *lanes[lane]->where);
                }
                lanes[lane]->result = lanes[from]->value;
            }
        },
        where);
    return mine.result;
}

inline unsigned lane_id() {
    return Block::current().thread().lane();
}

// The first lane of the segment of `width` lanes that the caller is in.
inline unsigned segment(int width) {
    return lane_id() & ~(static_cast<unsigned>(width) - 1);
}

template <typename T, typename Combine>
T reduce(const char* name, unsigned mask, T value, Combine, const CallSite& where) {
    struct Reduction {
        T value;
        T result;
    };
    Reduction mine{value, value};
    warp_collective(
        name, mask, mine,
        [](Reduction* const* lanes, unsigned members) {
            const auto first = static_cast<unsigned>(std::countr_zero(members));
            T all = lanes[first]->value;
            for (unsigned lane = first + 1; lane < kLanes; ++lane) {
                if ((members >> lane & 1) != 0) all = Combine{}(all, lanes[lane]->value);
            }
            for (unsigned lane = 0; lane < kLanes; ++lane) {
                if ((members >> lane & 1) != 0) lanes[lane]->result = all;
            }
        },
        where);
    return mine.result;
}

}  // namespace mednext_ops::emulation

using MednextOpsCallSite = mednext_ops::emulation::CallSite;

inline void __syncwarp(unsigned mask = 0xffffffffu, MednextOpsCallSite where = MednextOpsCallSite::current()) {
    mednext_ops::emulation::Block::current().warp_collective("__syncwarp", mask, nullptr, nullptr, where);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              MednextOpsCallSite where = MednextOpsCallSite::current()) {
    using namespace mednext_ops::emulation;
    const unsigned from = segment(width) + (static_cast<unsigned>(source) & (static_cast<unsigned>(width) - 1));
    return shuffle("__shfl_sync", mask, value, from, where);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 MednextOpsCallSite where = MednextOpsCallSite::current()) {
    using namespace mednext_ops::emulation;
    const unsigned lane = lane_id();
    return shuffle("__shfl_up_sync", mask, value, lane - segment(width) >= distance ? lane - distance : lane, where);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   MednextOpsCallSite where = MednextOpsCallSite::current()) {
    using namespace mednext_ops::emulation;
    const unsigned lane = lane_id();
    const bool inside = lane - segment(width) + distance < static_cast<unsigned>(width);
    return shuffle("__shfl_down_sync", mask, value, inside ? lane + distance : lane, where);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  MednextOpsCallSite where = MednextOpsCallSite::current()) {
    using namespace mednext_ops::emulation;
    const unsigned lane = lane_id();
    const unsigned from = lane ^ static_cast<unsigned>(lane_mask);
    // As the device: a lane of a later segment is out of reach, one of an earlier segment is not.
    const bool inside = from < segment(width) + static_cast<unsigned>(width);
    return shuffle("__shfl_xor_sync", mask, value, inside ? from : lane, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, MednextOpsCallSite where = MednextOpsCallSite::current()) {
    using namespace mednext_ops::emulation;
    const unsigned bit = predicate != 0 ? 1u << lane_id() : 0;
    return reduce("__ballot_sync", mask, bit, [](unsigned a, unsigned b) { return a | b; }, where);
}

inline int __any_sync(unsigned mask, int predicate, MednextOpsCallSite where = MednextOpsCallSite::current()) {
    return mednext_ops::emulation::reduce(
        "__any_sync", mask, int{predicate != 0}, [](int a, int b) { return a | b; }, where);
}

inline int __all_sync(unsigned mask, int predicate, MednextOpsCallSite where = MednextOpsCallSite::current()) {
    return mednext_ops::emulation::reduce(
        "__all_sync", mask, int{predicate != 0}, [](int a, int b) { return a & b; }, where);
}

// int and unsigned, as on the device (sm_80 and newer).
template <typename T>
    requires(std::is_same_v<T, int> || std::is_same_v<T, unsigned>)
T __reduce_add_sync(unsigned mask, T value, MednextOpsCallSite where = MednextOpsCallSite::current()) {
    return mednext_ops::emulation::reduce(
        "__reduce_add_sync", mask, value,
        [](T a, T b) { return static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b)); }, where);
}

template <typename T>
    requires(std::is_same_v<T, int> || std::is_same_v<T, unsigned>)
T __reduce_min_sync(unsigned mask, T value, MednextOpsCallSite where = MednextOpsCallSite::current()) {
    return mednext_ops::emulation::reduce(
        "__reduce_min_sync", mask, value, [](T a, T b) { return b < a ? b : a; }, where);
}

template <typename T>
    requires(std::is_same_v<T, int> || std::is_same_v<T, unsigned>)
T __reduce_max_sync(unsigned mask, T value, MednextOpsCallSite where = MednextOpsCallSite::current()) {
    return mednext_ops::emulation::reduce(
        "__reduce_max_sync", mask, value, [](T a, T b) { return a < b ? b : a; }, where);
}

inline unsigned __reduce_or_sync(unsigned mask, unsigned value,
                                 MednextOpsCallSite where = MednextOpsCallSite::current()) {
    return mednext_ops::emulation::reduce(
        "__reduce_or_sync", mask, value, [](unsigned a, unsigned b) { return a | b; }, where);
}

inline unsigned __reduce_and_sync(unsigned mask, unsigned value,
                                  MednextOpsCallSite where = MednextOpsCallSite::current()) {
    return mednext_ops::emulation::reduce(
        "__reduce_and_sync", mask, value, [](unsigned a, unsigned b) { return a & b; }, where);
}

inline unsigned __reduce_xor_sync(unsigned mask, unsigned value,
                                  MednextOpsCallSite where = MednextOpsCallSite::current()) {
    return mednext_ops::emulation::reduce(
        "__reduce_xor_sync", mask, value, [](unsigned a, unsigned b) { return a ^ b; }, where);
}
