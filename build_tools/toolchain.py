"""Where the compilers, the headers and the driver are.

Every ``find_*`` returns what it found, or a :class:`Missing` that says what it looked for and how to mend it. Nothing
is imported from torch: its version and headers are read as files, so that a build takes a second to start.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.machinery
import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MINIMUM_TORCH",
    "PYPI_NVCC",
    "PYPI_NVCC_VERSION",
    "REINSTALL",
    "Compiler",
    "CudaHeaders",
    "Missing",
    "Nvcc",
    "PybindModule",
    "Torch",
    "driver_cuda_version",
    "driver_present",
    "find_compiler",
    "find_cuda_headers",
    "find_ninja",
    "find_nvcc",
    "find_pybind",
    "find_torch",
    "package_directories",
    "run_tool",
]

#: The oldest torch whose stable ABI the libraries use; TORCH_TARGET_VERSION says the same to the headers.
MINIMUM_TORCH = (2, 10)

#: NVIDIA's compiler from PyPI: five packages of one minor version, about 300 MB, no toolkit or administrator needed.
PYPI_NVCC_VERSION = (13, 0)
PYPI_NVCC = tuple(
    f"nvidia-{name}=={PYPI_NVCC_VERSION[0]}.{PYPI_NVCC_VERSION[1]}.*"
    for name in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")
)

#: How to build anew: pip keeps the wheel that it built when something was missing.
REINSTALL = "install again with pip install --force-reinstall --no-deps --no-cache-dir"

_MINIMUM_NVCC = (12, 0)  # the first that speaks C++20
_HEADERS = ("cuda.h", "cuda_runtime_api.h", "crt/host_defines.h", "cuda_fp16.h", "cuda_bf16.h", "nv/target")
_PROBE = "#include <bit>\n#include <cstdint>\nint main() { return std::bit_cast<std::int32_t>(0.0f); }\n"


@dataclass(frozen=True)
class Missing:
    """Something that a build needs and this machine lacks."""

    reason: str
    mend: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.mend}"


@dataclass(frozen=True)
class Torch:
    """An installed torch: only its files are used."""

    root: Path
    version: str
    has_cuda: bool

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"


@dataclass(frozen=True)
class Compiler:
    command: str
    version: str


@dataclass(frozen=True)
class Nvcc:
    """An nvcc that runs, and the toolkit around it."""

    command: str
    version: tuple[int, int]
    include: Path
    cudart_static: Path
    architectures: frozenset[int]
    origin: str  # "CUDA_HOME", "PATH", "/usr/local/cuda" or "PyPI"

    @property
    def release(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"


@dataclass(frozen=True)
class CudaHeaders:
    """CUDA's headers without its compiler: types and conversions, which any C++ compiler reads."""

    include: Path


@dataclass(frozen=True)
class PybindModule:
    include: Path
    version: str
    python_include: Path
    suffix: str


def run_tool(*command: str) -> tuple[int, str]:
    """Exit status and output (both streams) of a tool; a status of 127 where it does not start."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout + done.stderr


def package_directories(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Folders of installed packages, the build's own first, then those of the environment that is installed into.

    Under pip's build isolation the interpreter is the target's own, but its packages are taken off ``sys.path``:
    ``sysconfig`` still knows where they are. ``build`` and uv make a fresh environment instead: VIRTUAL_ENV or
    CONDA_PREFIX names the one that the user is in.
    """
    paths = sysconfig.get_paths()
    found: list[str] = [*sys.path, paths["purelib"], paths["platlib"]]
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := environ.get(variable):
            found += sorted(glob.glob(os.path.join(prefix, "lib", "python3*", "site-packages")), reverse=True)
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    return list(dict.fromkeys(Path(p) for p in found if p and os.path.isdir(p)))


def find_torch(directories: Iterable[Path]) -> Torch | Missing:
    """The first installed torch that is new enough."""
    too_old = ""
    for directory in directories:
        root = directory / "torch"
        if not (root / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            continue
        text = (root / "version.py").read_text() if (root / "version.py").is_file() else ""
        match = re.search(r"__version__\s*=\s*['\"]((\d+)\.(\d+)[^'\"]*)", text)
        if match is None:
            continue
        if (int(match[2]), int(match[3])) >= MINIMUM_TORCH:
            return Torch(root, match[1], (root / "lib" / "libtorch_cuda.so").is_file())
        too_old = too_old or match[1]
    wanted = ".".join(map(str, MINIMUM_TORCH))
    if too_old:
        return Missing(f"torch {too_old} is older than {wanted}", f"pip install 'torch>={wanted}', then {REINSTALL}")
    return Missing(
        "torch is not installed, and the native parts are compiled against its headers",
        f"pip install 'torch>={wanted}', then {REINSTALL}",
    )


def find_compiler(environ: Mapping[str, str] = os.environ) -> Compiler | Missing:
    """CXX where it is set, else g++, else c++: the first that compiles a line of C++20."""
    mend = (
        "install g++ 11 or newer (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; conda: gxx), then "
        + REINSTALL
    )
    if sys.platform != "linux":
        return Missing(f"the native parts are built on Linux only, this is {sys.platform}", "use the reference backend")
    problem = "no C++ compiler: neither CXX nor g++ nor c++ is on PATH"
    chosen = environ.get("CXX", "").strip()
    if chosen and shutil.which(chosen, path=environ.get("PATH")) is None:
        return Missing(
            f"no C++ compiler: CXX is {chosen!r}, which is no program", f"correct or unset CXX, then {REINSTALL}"
        )
    for name in (chosen, "g++", "c++"):
        command = shutil.which(name, path=environ.get("PATH")) if name else None
        if command is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(_PROBE)
            status, output = run_tool(command, "-std=c++20", "-c", str(source), "-o", str(Path(folder, "probe.o")))
        if status == 0:
            return Compiler(command, _first_line(run_tool(command, "--version")[1]))
        problem = f"{name} does not compile C++20: {_first_line(output)}"
    return Missing(problem, mend)


def find_ninja(environ: Mapping[str, str] = os.environ) -> str | Missing:
    """Ninja of the ``ninja`` package, which build isolation installs, or of PATH."""
    spec = importlib.util.find_spec("ninja")
    if spec is not None and spec.origin is not None:
        import ninja

        beside = os.path.join(ninja.BIN_DIR, "ninja")
        if os.access(beside, os.X_OK):
            return beside
    on_path = shutil.which("ninja", path=environ.get("PATH"))
    return on_path or Missing("ninja, which runs the compilers, was not found", f"pip install ninja, then {REINSTALL}")


def find_pybind(directories: Iterable[Path]) -> PybindModule | Missing:
    """pybind11 and Python's headers, for the build-information module."""
    python_include = Path(sysconfig.get_paths()["include"])
    if not (python_include / "Python.h").is_file():
        return Missing(
            "Python's headers (Python.h) are not installed",
            f"install python3-dev (Debian, Ubuntu) or python3-devel, then {REINSTALL}",
        )
    for directory in directories:
        include = directory / "pybind11" / "include"
        if (include / "pybind11" / "pybind11.h").is_file():
            text = (include / "pybind11" / "detail" / "common.h").read_text()
            parts = [re.search(rf"define PYBIND11_VERSION_{p}\s+(\d+)", text) for p in ("MAJOR", "MINOR")]
            version = ".".join(p[1] for p in parts if p is not None)
            return PybindModule(include, version, python_include, importlib.machinery.EXTENSION_SUFFIXES[0])
    return Missing("pybind11 is not installed", f"pip install pybind11, then {REINSTALL}")


def find_nvcc(
    directories: Iterable[Path], environ: Mapping[str, str] = os.environ, usual_place: str = "/usr/local/cuda"
) -> Nvcc | Missing:
    """nvcc of CUDA_HOME (or CUDA_PATH), of PATH, of the usual place, or of PyPI's packages, in this order."""
    candidates: list[tuple[str, str]] = []
    unusable: list[str] = []
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := environ.get(variable):
            candidates.append((os.path.join(home, "bin", "nvcc"), variable))
            if not os.access(candidates[-1][0], os.X_OK):
                unusable.append(f"{variable} is {home}, which has no bin/nvcc")
    if on_path := shutil.which("nvcc", path=environ.get("PATH")):
        candidates.append((on_path, "PATH"))
    candidates.append((os.path.join(usual_place, "bin", "nvcc"), usual_place))
    for directory in directories:
        root = directory / "nvidia" / f"cu{PYPI_NVCC_VERSION[0]}"
        candidates.append((str(root / "bin" / "nvcc"), "PyPI"))
    for command, origin in candidates:
        if os.access(command, os.X_OK):
            found = _examine_nvcc(command, origin)
            if isinstance(found, Nvcc):
                return found
            unusable.append(found)
    seen = f" ({'; '.join(unusable)})" if unusable else ""
    return Missing(
        f"no nvcc, the CUDA compiler, in CUDA_HOME, on PATH, in {usual_place} or among Python packages{seen}",
        f"install a CUDA toolkit or: pip install {' '.join(repr(p) for p in PYPI_NVCC)}; then {REINSTALL}",
    )


def _examine_nvcc(command: str, origin: str) -> Nvcc | str:
    """The nvcc at ``command``, or why it is of no use."""
    status, output = run_tool(command, "--version")
    match = re.search(r"release (\d+)\.(\d+)", output)
    if status != 0 or match is None:
        return f"{command} does not run: {_first_line(output)}"
    version = int(match[1]), int(match[2])
    if version < _MINIMUM_NVCC:
        return f"{command} is CUDA {version[0]}.{version[1]}, older than {_MINIMUM_NVCC[0]}.{_MINIMUM_NVCC[1]}"
    # nvcc may be a link or a script: it says itself where its toolkit is.
    _, dry_run = run_tool(command, "--dryrun", "-x", "cu", os.devnull)
    top = re.search(r"^#\$ TOP=(.*)$", dry_run, re.MULTILINE)
    root = Path(top[1].strip()).resolve() if top else Path(os.path.realpath(command)).parent.parent
    include = _first_with(root, ("include", "targets/*/include"), "cuda_runtime_api.h")
    library = _first_with(root, ("lib64", "lib", "targets/*/lib"), "libcudart_static.a")
    if include is None or library is None:
        lacking = "headers (cuda_runtime_api.h)" if include is None else "static runtime (libcudart_static.a)"
        return f"{command} comes without CUDA's {lacking}"
    known = frozenset(int(n) for n in re.findall(r"compute_(\d+)\b", run_tool(command, "--list-gpu-arch")[1]))
    return Nvcc(command, version, include, library / "libcudart_static.a", known, origin)


def find_cuda_headers(directories: Iterable[Path], nvcc: Nvcc | Missing) -> CudaHeaders | Missing:
    """The headers of the toolkit that was found, or of PyPI's packages."""
    candidates = [nvcc.include] if isinstance(nvcc, Nvcc) else []
    candidates += [d / "nvidia" / f"cu{PYPI_NVCC_VERSION[0]}" / "include" for d in directories]
    for include in candidates:
        if all((include / name).is_file() for name in _HEADERS):
            return CudaHeaders(include)
    packages = " ".join(repr(p) for p in PYPI_NVCC if "runtime" in p or "cccl" in p or "crt" in p)
    return Missing(
        f"no CUDA headers ({', '.join(_HEADERS)}) in a toolkit or among Python packages",
        f"install a CUDA toolkit or: pip install {packages}",
    )


def _first_with(root: Path, patterns: tuple[str, ...], file: str) -> Path | None:
    return next((d for pattern in patterns for d in sorted(root.glob(pattern)) if (d / file).is_file()), None)


def driver_present(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this machine has NVIDIA's driver: what makes a CUDA build worth a download."""
    return (
        os.path.exists("/proc/driver/nvidia/version")
        or shutil.which("nvidia-smi", path=environ.get("PATH")) is not None
        or driver_cuda_version() is not None
    )


def driver_cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver serves; asking does not initialise a device. None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int(0)
        if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no output")
