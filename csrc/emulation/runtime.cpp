// The few functions of the CUDA runtime that launchers and bindings call, without a runtime behind them.
#include <cuda_runtime_api.h>

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
