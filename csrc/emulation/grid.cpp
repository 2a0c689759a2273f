#include "grid.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <thread>

#include "../cuda/common/architecture.h"

namespace mednext_ops::emulation {
namespace {

constexpr unsigned kMostThreads = 1024;
// Whether blocks run, or launches are only looked at: what a host pays for them can be timed so.
std::atomic<bool> running{true};

// Launches asked for so far, also of what the device would refuse.
std::atomic<std::uint64_t> launches{0};

bool possible(const Launch& launch, int architecture) {
    const dim3& g = launch.grid;
    const dim3& b = launch.block;
    const std::uint64_t threads = std::uint64_t{b.x} * b.y * b.z;
    return g.x > 0 && g.y > 0 && g.z > 0 && g.x <= 0x7fffffffu && g.y <= 65535 && g.z <= 65535 && threads > 0 &&
           threads <= kMostThreads && b.z <= 64 &&
           launch.device_shared_bytes <= static_cast<std::size_t>(cuda::most_shared_bytes(architecture));
}

}  // namespace

cudaError_t run_grid(const Launch& launch) {
    ++launches;
    const Settings settings = current_settings();
    if (!possible(launch, settings.architecture)) return cudaErrorInvalidConfiguration;
    if (!running) return cudaSuccess;
    const std::uint64_t blocks = std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
    std::vector<std::uint64_t> order(blocks);
    for (std::uint64_t i = 0; i < blocks; ++i) order[i] = i;
    std::uint64_t random = settings.seed;
    arrange(order, settings.order, random);

    std::atomic<std::uint64_t> next{0};
    std::mutex mutex;
    std::uint64_t failed_at = std::numeric_limits<std::uint64_t>::max();
    std::exception_ptr failure;
    const auto work = [&] {
        Block block(launch, settings);
        for (std::uint64_t at = next++; at < blocks; at = next++) {
            const std::uint64_t number = order[at];
            try {
                block.run({static_cast<unsigned>(number % launch.grid.x),
                           static_cast<unsigned>(number / launch.grid.x % launch.grid.y),
                           static_cast<unsigned>(number / launch.grid.x / launch.grid.y)});
            } catch (...) {
                const std::lock_guard lock(mutex);
                if (at < failed_at) {
                    failed_at = at;
                    failure = std::current_exception();
                }
                next = blocks;  // the blocks before this one have all been begun
            }
        }
    };

    const auto workers = static_cast<unsigned>(std::min<std::uint64_t>(settings.workers, blocks));
    std::vector<std::thread> others;
    for (unsigned i = 1; i < workers; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
    if (failure) std::rethrow_exception(failure);
    return cudaSuccess;
}

}  // namespace mednext_ops::emulation

extern "C" __attribute__((visibility("default"))) void mednext_ops_emulation_set_running(int running) {
    mednext_ops::emulation::running = running != 0;
}

extern "C" __attribute__((visibility("default"))) std::uint64_t mednext_ops_emulation_launches() {
    return mednext_ops::emulation::launches;
}
