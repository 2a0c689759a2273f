"""The native parts: their sources, their flags, and the ninja edges that make each."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from build_tools.architectures import Architecture, gencode_flags, is_specific
from build_tools.ninja_file import NinjaFile
from build_tools.toolchain import MINIMUM_TORCH, Compiler, CudaHeaders, Nvcc, PybindModule, Torch

__all__ = [
    "CPU_LIBRARY",
    "CUDA_LIBRARY",
    "EMULATED_LIBRARY",
    "INFORMATION_MODULE",
    "Artefact",
    "cpu",
    "cuda",
    "emulated",
    "information",
]

CPU_LIBRARY = "libmednext_ops_cpu.so"
CUDA_LIBRARY = "libmednext_ops_cuda.so"
EMULATED_LIBRARY = "libmednext_ops_emulated.so"
INFORMATION_MODULE = "_build_information"

#: No -march: one binary runs on every machine of its kind. No fast-math: results are part of the contract.
_CXX_FLAGS = [
    *("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-fno-math-errno"),
    *("-Wall", "-Wextra"),
]
#: --expt-relaxed-constexpr: std functions that are constexpr may be called in kernels.
_NVCC_FLAGS = [
    *("-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"),
    "-Xptxas=-v,--warn-on-spills",
]
#: A fraction of the size. What it writes needs a driver of CUDA 12.4: one that runs what CUDA 13 builds has that.
_COMPRESSED = ["--compress-mode=size"]
#: Kernels as plain C++; device.h stands for what nvcc declares by itself.
_EMULATED_FLAGS = ["-DMEDNEXT_OPS_EMULATED", "-Wno-unknown-pragmas", "-Wno-psabi", "-g1"]
#: Any finding ends the program. vptr: hidden classes of two libraries are not the same to it.
_SANITIZER_FLAGS = [
    *("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    "-O1",
]
#: The CPU kernels whose names end in .simd.cpp are compiled once for each of these; csrc/cpu/dispatch chooses at run
#: time. Vectors as arguments of our own functions may change their calling convention: -Wno-psabi.
_CAPABILITIES = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
_CAPABILITY_FLAGS = ["-ffp-contract=fast", "-Wno-psabi", "-Wno-unused-function"]
_LINK_FLAGS = ["-shared", "-Wl,--as-needed", "-Wl,-z,now", "-Wl,--build-id=none"]


@dataclass(frozen=True)
class Artefact:
    """One native part and how it is made; ``describe`` goes into the build information."""

    name: str  # "cpu", "cuda" or "information"
    file: str
    compiler: str
    flags: tuple[str, ...]
    architectures: tuple[str, ...] = ()


def _target() -> str:
    major, minor = MINIMUM_TORCH
    return f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000ULL"


def _sources(root: Path, *patterns: str) -> list[Path]:
    """Sources relative to the root, where ninja runs: no absolute path gets into a binary."""
    return [p.relative_to(root) for pattern in patterns for p in sorted(root.glob(pattern))]


def _join(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(w) for w in words)


def _compile(
    ninja: NinjaFile, build: Path, name: str, sources: list[Path], compiler: Compiler, flags: list[str]
) -> list[Path]:
    rule = f"compile_{name}"
    # -x c++: the emulation compiles .cu files, which the compiler does not know by their ending.
    command = f"{shlex.quote(compiler.command)} {_join(flags)} -MMD -MF $out.d -x c++ -c $in -o $out"
    ninja.rule(rule, command, depfile=True)
    objects = [build / name / source.with_suffix(".o") for source in sources]
    for source, target in zip(sources, objects, strict=True):
        ninja.edge(target, rule, [source])
    return objects


def _link(
    ninja: NinjaFile,
    build: Path,
    name: str,
    file: str,
    objects: list[Path],
    compiler: Compiler,
    libraries: list[str],
    also_needs: Iterable[Path] = (),
) -> None:
    command = f"{shlex.quote(compiler.command)} {_join(_LINK_FLAGS)} $in -o $out {_join(libraries)}"
    ninja.rule(f"link_{name}", command)
    ninja.edge(build / file, f"link_{name}", objects, also_needs=also_needs)
    ninja.edge(name, "phony", [build / file])


def _torch_flags(torch: Torch) -> list[str]:
    return [_target(), f"-ffile-prefix-map={torch.include}=", f"-isystem{torch.include}"]


def cpu(
    ninja: NinjaFile, root: Path, build: Path, compiler: Compiler, torch: Torch, *, sanitize: bool = False
) -> Artefact:
    """Kernels and bindings for the CPU; linked against libtorch_cpu, which torch has loaded by then.

    ``sanitize`` adds AddressSanitizer and UBSan, for tests.
    """
    flags = [*_CXX_FLAGS, *(_SANITIZER_FLAGS if sanitize else ())]
    kernels = _cpu_kernels(ninja, root, build, compiler, flags)
    bindings = _compile(
        ninja,
        build,
        "cpu_binding",
        _sources(root, "csrc/bindings/cpu_*.cpp"),
        compiler,
        [*flags, *_torch_flags(torch)],
    )
    link = [*(_SANITIZER_FLAGS if sanitize else ()), f"-L{torch.lib}", "-ltorch_cpu"]
    _link(ninja, build, "cpu", CPU_LIBRARY, kernels + bindings, compiler, link)
    return Artefact("cpu", CPU_LIBRARY, compiler.version, tuple(flags))


def _cpu_kernels(ninja: NinjaFile, root: Path, build: Path, compiler: Compiler, flags: list[str]) -> list[Path]:
    """Objects of csrc/cpu: plain sources once, vectorised ones once a capability of this kind of machine."""
    sources = _sources(root, "csrc/cpu/*/*.cpp")
    vectorised = [source for source in sources if source.name.endswith(".simd.cpp")]
    plain = [source for source in sources if source not in vectorised]
    objects = _compile(ninja, build, "cpu_kernel", plain, compiler, flags)
    for capability, instructions in _CAPABILITIES.items():
        if instructions and platform.machine() not in ("x86_64", "AMD64"):
            continue
        named = [*flags, *_CAPABILITY_FLAGS, *instructions, f"-DMEDNEXT_OPS_CAPABILITY={capability}"]
        objects += _compile(ninja, build, f"cpu_kernel_{capability}", vectorised, compiler, named)
    return objects


def cuda(
    ninja: NinjaFile,
    root: Path,
    build: Path,
    compiler: Compiler,
    torch: Torch,
    nvcc: Nvcc,
    architectures: list[Architecture],
) -> Artefact:
    """Kernels by nvcc, which see no torch header; launch plans and bindings by the C++ compiler, which see no kernel.

    ptxas's report of every kernel is kept beside its object file: ``python -m build_tools.ptxas_report`` reads it.
    """
    flags = [*_NVCC_FLAGS, *(_COMPRESSED if int(nvcc.release.partition(".")[0]) >= 13 else ())]
    rules = {True: "compile_cuda_kernel_for_each", False: "compile_cuda_kernel"}
    for specific, rule in rules.items():
        command = [nvcc.command, "-ccbin", compiler.command, *flags, *gencode_flags(architectures, specific)]
        ninja.rule(
            rule,
            f"{_join(command)} -MD -MF $out.d -c $in -o $out > $out.ptxas 2>&1 || (cat $out.ptxas; exit 1)",
            depfile=True,
        )
    sources = _sources(root, "csrc/cuda/*/*.cu")
    kernels = [build / "cuda_kernel" / source.with_suffix(".o") for source in sources]
    for source, target in zip(sources, kernels, strict=True):
        ninja.edge(target, rules[is_specific(root / source)], [source])
    kernels += _compile(ninja, build, "cuda_plan", _sources(root, "csrc/cuda/*/*.cpp"), compiler, _CXX_FLAGS)
    bindings = _compile(
        ninja,
        build,
        "cuda_binding",
        _sources(root, "csrc/bindings/cuda_*.cpp"),
        compiler,
        # USE_CUDA: torch's stable headers declare the stream functions only then.
        [*_CXX_FLAGS, *_torch_flags(torch), "-DUSE_CUDA", f"-isystem{nvcc.include}"],
    )
    libtorch_cuda, also_needs = _libtorch_cuda(ninja, build, compiler, torch)
    _link(
        ninja,
        build,
        "cuda",
        CUDA_LIBRARY,
        kernels + bindings,
        compiler,
        # The stream functions live in libtorch_cuda, which is in nobody's global scope: it must be named as needed.
        [
            *("-Wl,--no-as-needed", str(libtorch_cuda), "-Wl,--as-needed", f"-L{torch.lib}", "-ltorch_cpu"),
            *(str(nvcc.cudart_static), "-Wl,--exclude-libs,ALL", "-ldl", "-lrt", "-lpthread"),
        ],
        also_needs,
    )
    return Artefact(
        "cuda",
        CUDA_LIBRARY,
        f"nvcc {nvcc.release}, {compiler.version}",
        tuple(flags),
        tuple(map(str, architectures)),
    )


def _libtorch_cuda(ninja: NinjaFile, build: Path, compiler: Compiler, torch: Torch) -> tuple[Path, list[Path]]:
    """torch's libtorch_cuda or, under a CPU-only torch, an empty library of that name to link against."""
    real = torch.lib / "libtorch_cuda.so"
    if real.is_file():
        return real, []
    source, stub = build / "stub" / "empty.cpp", build / "stub" / "libtorch_cuda.so"
    source.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_file():
        source.write_text("")
    ninja.rule("stub", f"{shlex.quote(compiler.command)} -shared -Wl,-soname,libtorch_cuda.so $in -o $out")
    ninja.edge(stub, "stub", [source])
    return stub, [stub]


def information(
    ninja: NinjaFile,
    root: Path,
    build: Path,
    compiler: Compiler,
    pybind: PybindModule,
    facts: dict[str, str],
) -> Artefact:
    """The pybind11 module that tells what was compiled by what, and how the CUDA kernels would be launched."""
    defines = [f'-DMEDNEXT_OPS_{name.upper()}="{value}"' for name, value in facts.items()]
    flags = [
        *_CXX_FLAGS,
        f"-ffile-prefix-map={pybind.include}=",
        f"-isystem{pybind.include}",
        f"-isystem{pybind.python_include}",
    ]
    sources = _sources(root, "csrc/python/*.cpp", "csrc/cuda/*/*.cpp")
    objects = _compile(ninja, build, "information", sources, compiler, [*flags, *defines])
    file = INFORMATION_MODULE + pybind.suffix
    _link(ninja, build, "information_module", file, objects, compiler, [])
    return Artefact("information", file, compiler.version, tuple(_CXX_FLAGS))


def emulated(
    ninja: NinjaFile,
    root: Path,
    build: Path,
    compiler: Compiler,
    torch: Torch,
    headers: CudaHeaders,
    *,
    sanitize: bool = False,
    kernels: Mapping[str, list[Path]] | None = None,
) -> Artefact:
    """The CUDA kernels and their bindings compiled as plain C++, on the emulation (csrc/emulation), for CPU tensors.

    ``sanitize`` adds AddressSanitizer and UBSan. ``kernels``: more libraries, each of the emulation and of sources
    below ``root`` that know no torch, by file name.
    """
    flags = [*_CXX_FLAGS, *_EMULATED_FLAGS, *(_SANITIZER_FLAGS if sanitize else ()), f"-isystem{headers.include}"]
    kernel_flags = [*flags, "-includecsrc/emulation/device.h"]
    emulation = _compile(ninja, build, "emulation", _sources(root, "csrc/emulation/*.cpp"), compiler, flags)
    objects = _compile(ninja, build, "emulated_kernel", _sources(root, "csrc/cuda/*/*.cu"), compiler, kernel_flags)
    objects += _compile(ninja, build, "emulated_plan", _sources(root, "csrc/cuda/*/*.cpp"), compiler, flags)
    # cuda_versions.cpp asks the CUDA runtime, of which there is none here.
    bindings = [s for s in _sources(root, "csrc/bindings/cuda_*.cpp") if s.name != "cuda_versions.cpp"]
    objects += _compile(ninja, build, "emulated_binding", bindings, compiler, [*flags, *_torch_flags(torch)])
    libraries = [*(_SANITIZER_FLAGS if sanitize else ()), "-lpthread"]
    link = [*libraries, f"-L{torch.lib}", "-ltorch_cpu"]
    _link(ninja, build, "emulated", EMULATED_LIBRARY, emulation + objects, compiler, link)
    for number, (file, sources) in enumerate((kernels or {}).items()):
        extra = _compile(ninja, build, f"extra_kernel_{number}", sources, compiler, kernel_flags)
        _link(ninja, build, f"extra_{number}", file, emulation + extra, compiler, libraries)
    return Artefact("emulated", EMULATED_LIBRARY, compiler.version, tuple(flags))
