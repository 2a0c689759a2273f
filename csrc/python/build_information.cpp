// The module mednext_ops._build_information: what the compilers saw when the native parts were made, and how the CUDA
// kernels would be launched (launch_plans.cpp).
//
// Facts of the build come in as macros (build_tools/artefacts.py); nothing here depends on the date or on the machine's
// folders, so the same sources and tools give the same file.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "launch_plans.h"

namespace {

std::map<std::string, std::string> build_information() {
    return {
        {"compiler", __VERSION__},
        {"language", "C++" + std::to_string(__cplusplus / 100 % 100)},
        {"pybind11", MEDNEXT_OPS_PYBIND11},
        {"torch_headers", MEDNEXT_OPS_TORCH_HEADERS},
        {"stable_abi_target", MEDNEXT_OPS_STABLE_ABI_TARGET},
        {"cuda", MEDNEXT_OPS_CUDA},
        {"cuda_architectures", MEDNEXT_OPS_CUDA_ARCHITECTURES},
        {"fingerprint", MEDNEXT_OPS_FINGERPRINT},
    };
}

}  // namespace

PYBIND11_MODULE(_build_information, module) {
    module.doc() = "What the native parts of mednext_ops were built with.";
    module.def("build_information", &build_information,
               "Compiler, language, header versions, CUDA architectures and the fingerprint of the sources, as text.");
    add_launch_plans(module);
}
