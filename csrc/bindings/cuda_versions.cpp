// What the CUDA library says of itself before any tensor is there: called by name, without initialising a device.
#include <cuda_runtime_api.h>

// The versions (1000 * major + 10 * minor) of the CUDA runtime inside this library, and the newest one that the
// installed driver serves: 0 where no driver is.
extern "C" __attribute__((visibility("default"))) void mednext_ops_cuda_versions(int* runtime, int* driver) {
    *runtime = CUDART_VERSION;
    if (cudaDriverGetVersion(driver) != cudaSuccess) *driver = 0;
}
