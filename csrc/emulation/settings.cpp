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

// The door from outside; order: 0 in order, 1 reversed, 2 shuffled by `seed`, 3 uneven by `seed`.
extern "C" __attribute__((visibility("default"))) int mednext_ops_emulation_configure(int order, std::uint64_t seed,
                                                                                      int workers) {
    using namespace mednext_ops::emulation;
    if (order < 0 || order > 3 || workers < 1) return -1;
    const std::lock_guard lock(mutex);
    settings.order = static_cast<Order>(order);
    settings.seed = seed;
    settings.workers = static_cast<unsigned>(workers);
    return 0;
}

// Which GPU the bindings take this for; kernels run the same on all.
extern "C" __attribute__((visibility("default"))) int mednext_ops_emulation_set_architecture(int architecture) {
    using namespace mednext_ops::emulation;
    if (architecture < 10) return -1;
    const std::lock_guard lock(mutex);
    settings.architecture = architecture;
    return 0;
}
