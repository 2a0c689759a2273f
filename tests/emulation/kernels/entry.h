// How Python calls a test kernel: a C function that returns 0, or 1 with a sentence in emulation_test_error().
#pragma once

#include <cuda_runtime_api.h>

#include <exception>
#include <string>

#define ENTRY extern "C" __attribute__((visibility("default"))) int

inline thread_local std::string entry_error;

template <typename Function>
int entered(Function function) {
    try {
        const cudaError_t error = function();
        if (error == cudaSuccess) return 0;
        entry_error = std::string("not launched: ") + cudaGetErrorString(error);
    } catch (const std::exception& failure) {
        entry_error = failure.what();
    }
    return 1;
}
