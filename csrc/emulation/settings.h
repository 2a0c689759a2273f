// How the emulation runs its threads; set from outside, read at each launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace mednext_ops::emulation {

// In the first three every thread that can go on does so in each round: no warp gets more than a collective ahead. An
// uneven order lets some warps run as far as they can before others take a step.
enum class Order { in_order, reversed, shuffled, uneven };

struct Settings {
    Order order = Order::in_order;  // of threads between two collectives, and of blocks
    std::uint64_t seed = 0;         // of a shuffled or uneven order
    unsigned workers = 1;           // threads of the operating system, each with a block of its own
    int architecture = 90;          // that launch plans are made for: 10 * major + minor
};

Settings current_settings();

// One step of splitmix64: the same numbers on every machine.
inline std::uint64_t next_random(std::uint64_t& state) {
    std::uint64_t z = state += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

// Puts the elements of a vector into the order that the settings ask for, from ascending.
template <typename Vector>
void arrange(Vector& ascending, Order order, std::uint64_t& random) {
    const std::size_t count = ascending.size();
    if (order == Order::reversed) {
        for (std::size_t i = 0; i < count / 2; ++i) std::swap(ascending[i], ascending[count - 1 - i]);
    } else if (order == Order::shuffled || order == Order::uneven) {
        for (std::size_t i = count; i > 1; --i) std::swap(ascending[i - 1], ascending[next_random(random) % i]);
    }
}

}  // namespace mednext_ops::emulation
