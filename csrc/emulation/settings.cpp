#include "settings.h"

#include <mutex>

namespace mednext_ops::emulation {
namespace {

std::mutex mutex;
Settings settings;

}  // namespace

Settings current_settings() {
    const std::lock_guard lock(mutex);
    return settings;
}

}  // namespace mednext_ops::emulation

// The one door from outside; order: 0 in order, 1 reversed, 2 shuffled by `seed`.
extern "C" __attribute__((visibility("default"))) int mednext_ops_emulation_configure(int order, std::uint64_t seed,
                                                                                      int workers) {
    using namespace mednext_ops::emulation;
    if (order < 0 || order > 2 || workers < 1) return -1;
    const std::lock_guard lock(mutex);
    settings = {static_cast<Order>(order), seed, static_cast<unsigned>(workers)};
    return 0;
}
