// Launches a kernel: on a GPU, or on the emulation.
//
//     launch<my_kernel<float>>({blocks, kThreads, shared_bytes, stream}, input, extent, output);
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <mutex>
#include <tuple>
#include <type_traits>

#include "shared_memory.cuh"

#ifdef MEDNEXT_OPS_EMULATED
#include <string>
#include <string_view>

#include "../../emulation/grid.h"
#endif

namespace mednext_ops::cuda {

struct LaunchShape {
    dim3 grid;
    dim3 block;
    SharedBytes shared_bytes = 0;  // dynamic; more than 48 KiB is asked for where it is needed
    cudaStream_t stream = nullptr;
};

namespace detail {

// Shared memory that a kernel gets without asking.
constexpr std::size_t kUnaskedSharedBytes = 48 * 1024;

#ifndef MEDNEXT_OPS_EMULATED

// Asks for shared memory on the current device. What a kernel may have is a state of that device: it only grows, so
// that no thread of the host takes away what another is about to launch with.
template <auto Kernel>
cudaError_t ask_for_shared_memory(std::size_t bytes) {
    constexpr int kDevices = 64;  // of which it is known what has been asked for
    static std::mutex mutex;
    static std::size_t asked[kDevices] = {};
    int device = 0;
    if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
    const std::lock_guard lock(mutex);
    if (device < kDevices && bytes <= asked[device]) return cudaSuccess;
    const cudaError_t error = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(Kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error == cudaSuccess && device < kDevices) asked[device] = bytes;
    return error;
}

// An error is returned, and not left behind as the last one for whoever asks next.
template <auto Kernel, typename... Parameters>
cudaError_t launch(void (*)(Parameters...), const LaunchShape& shape, std::type_identity_t<Parameters>... parameters) {
    cudaError_t error = cudaSuccess;
    if (shape.shared_bytes > kUnaskedSharedBytes) error = ask_for_shared_memory<Kernel>(shape.shared_bytes);
    if (error == cudaSuccess) {
        void* addresses[] = {static_cast<void*>(&parameters)...};
        error = cudaLaunchKernel(reinterpret_cast<const void*>(Kernel), shape.grid, shape.block, addresses,
                                 shape.shared_bytes, shape.stream);
    }
    if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
    return error;
}

#else

// The kernel's name, out of how the compiler spells this function: "... Kernel = name; ..." or "... Kernel = name]".
template <auto Kernel>
std::string kernel_name() {
    const std::string_view spelled = __PRETTY_FUNCTION__;
    const std::string_view key = "Kernel = ";
    const std::size_t begin = spelled.find(key) + key.size();
    std::string name(spelled.substr(begin, spelled.find_first_of(";]", begin) - begin));
    for (const std::string_view noise :
         {"mednext_ops::cuda::", "{anonymous}::", "<unnamed>::", "(anonymous namespace)::", "&"}) {
        for (std::size_t at; (at = name.find(noise)) != std::string::npos;) name.erase(at, noise.size());
    }
    return name;
}

template <auto Kernel, typename... Parameters>
cudaError_t launch(void (*)(Parameters...), const LaunchShape& shape, std::type_identity_t<Parameters>... parameters) {
    std::tuple<Parameters...> all(parameters...);
    // Every thread gets parameters of its own, as on the device.
    const auto body = [](void* argument) { std::apply(Kernel, *static_cast<std::tuple<Parameters...>*>(argument)); };
    return emulation::run_grid({kernel_name<Kernel>(), shape.grid, shape.block, shape.shared_bytes.with_gaps,
                                shape.shared_bytes.on_device, body, &all});
}

#endif

}  // namespace detail

// Arguments are converted to the kernel's parameters, which are plain data and passed by value. A launch that the
// device refuses comes back as its error; nothing has run then.
template <auto Kernel, typename... Arguments>
cudaError_t launch(const LaunchShape& shape, const Arguments&... arguments) {
    static_assert((std::is_trivially_copyable_v<Arguments> && ...), "a kernel's parameters are plain data");
    return detail::launch<Kernel>(Kernel, shape, arguments...);
}

}  // namespace mednext_ops::cuda
