// The few functions of the CUDA runtime that launchers and bindings call, without a runtime behind them.
#include <cuda_runtime_api.h>

#include "settings.h"

const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorInvalidValue:
            return "invalid argument";
        default:
            return "an error that the emulation does not know";
    }
}

cudaError_t CUDARTAPI cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const int architecture = mednext_ops::emulation::current_settings().architecture;
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor:
            *value = architecture / 10;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor:
            *value = architecture % 10;
            return cudaSuccess;
        default:
            return cudaErrorInvalidValue;
    }
}
