// Which of the compiled variants of the CPU kernels this machine runs, for mednext_ops/native.py.
#include "../cpu/dispatch/kernels.h"

// Their names, best first, separated by commas.
extern "C" __attribute__((visibility("default"))) const char* mednext_ops_cpu_capabilities() {
    return mednext_ops::cpu::capabilities();
}
