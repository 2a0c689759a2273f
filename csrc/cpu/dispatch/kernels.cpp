// Which table of kernels runs: asked of the processor, once.
#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

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

std::vector<const Kernels*> runnable() {
    std::vector<const Kernels*> tables;
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512) tables.push_back(&avx512::table);
    if (avx2) tables.push_back(&avx2::table);
#endif
    tables.push_back(&portable::table);
    return tables;
}

const Kernels& choose() {
    const char* variable = std::getenv("MEDNEXT_OPS_CPU_CAPABILITY");
    const std::string asked = variable == nullptr ? "" : variable;
    for (const Kernels* table : runnable()) {
        if (asked.empty() || asked == table->capability) return *table;
    }
    throw std::runtime_error("the environment variable MEDNEXT_OPS_CPU_CAPABILITY is '" + asked +
                             "'; this machine runs " + capabilities());
}

}  // namespace

const char* capabilities() {
    static const std::string names = [] {
        std::string list;
        for (const Kernels* table : runnable()) list += (list.empty() ? "" : ", ") + std::string(table->capability);
        return list;
    }();
    return names.c_str();
}

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace mednext_ops::cpu
