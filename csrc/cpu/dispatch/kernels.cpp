// Which table of kernels runs: asked of the processor, once.
#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace mednext_ops::cpu {

#if defined(__x86_64__)
namespace avx512 {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
#endif
namespace portable {
extern const Kernels table;
}

namespace {

struct Capability {
    const Kernels* table;
    bool runs;
};

const Kernels& choose() {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const Capability capabilities[] = {{&avx512::table, avx512}, {&avx2::table, avx2}, {&portable::table, true}};
#else
    const Capability capabilities[] = {{&portable::table, true}};
#endif
    const char* variable = std::getenv("MEDNEXT_OPS_CPU_CAPABILITY");
    const std::string asked = variable == nullptr ? "" : variable;
    std::string names;
    for (const Capability& capability : capabilities) {
        if (!capability.runs) continue;
        if (asked.empty() || asked == capability.table->capability) return *capability.table;
        names += (names.empty() ? "" : ", ") + std::string(capability.table->capability);
    }
    throw std::runtime_error("the environment variable MEDNEXT_OPS_CPU_CAPABILITY is '" + asked +
                             "'; this machine runs " + names);
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace mednext_ops::cpu
