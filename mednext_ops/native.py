"""The compiled libraries: finds them, loads those that this torch can take, remembers why the others are not there.

Importing this never raises and never initialises CUDA. The operators that the libraries implement are declared here,
in the namespace ``mednext_ops_native``; only the modules of :mod:`mednext_ops.backends` call them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "EMULATED_LIBRARY_VARIABLE",
    "EMULATED_NAMESPACE",
    "MINIMUM_TORCH",
    "NAMESPACE",
    "REINSTALL",
    "LibraryState",
    "build_information",
    "compiled_facts",
    "covers",
    "cpu_capabilities",
    "cuda_runtime_problem",
    "emulated_library",
    "libraries",
    "library_functions",
    "missing_part",
]

NAMESPACE = "mednext_ops_native"

#: The same operators by the CUDA kernels on CPU tensors; declared only where the emulated library is loaded.
EMULATED_NAMESPACE = "mednext_ops_emulated"
EMULATED_LIBRARY_VARIABLE = "MEDNEXT_OPS_EMULATED_LIBRARY"

#: The oldest torch whose stable ABI the libraries use.
MINIMUM_TORCH = (2, 10)

#: How to build anew: pip keeps the wheel that it built when something was missing.
REINSTALL = "install mednext-ops again with pip install --force-reinstall --no-deps --no-cache-dir"

_NORM = "Tensor input, Tensor mean, Tensor rstd, Tensor weight, Tensor bias"
_GEOMETRY = "int[3] stride, int[3] padding, int[3] dilation, int[3] output_padding, bool transposed"
#: A gradient that may not be written out yet (backends.problem.GroupNormGradient): the last four are given, or None.
_GRADIENT = "Tensor grad_output, Tensor? output, Tensor? scale, Tensor? slope, Tensor? offset"
#: What makes the hidden tensor of an inverted bottleneck.
_HIDDEN = (
    "Tensor input, Tensor mean, Tensor rstd, Tensor norm_weight, Tensor norm_bias, Tensor expand_weight, "
    "Tensor? expand_bias, Tensor compress_weight"
)
_BOTTLENECK_WEIGHTS = (
    "Tensor norm_weight, Tensor norm_bias, Tensor expand_weight, Tensor? expand_bias, Tensor compress_weight"
)
#: The fields of backends.problem.InvertedBottleneckGradients; empty where nobody asked for one.
_BOTTLENECK_GRADIENTS = (
    "Tensor grad, Tensor grad_sum, Tensor grad_dot_normalized, Tensor expand_weight, Tensor expand_bias, "
    "Tensor compress_weight, Tensor compress_bias, Tensor grn_gamma, Tensor grn_beta"
)
#: The same as the CPU library takes it: statistics are [N, C], those of a group repeated for its channels; GRN comes as
#: a gain of the hidden tensor.
_HIDDEN_WITH_GAIN = (
    "Tensor input, Tensor mean, Tensor rstd, Tensor norm_weight, Tensor norm_bias, "
    "Tensor expand_weight, Tensor? expand_bias"
)

SCHEMAS = (
    "group_norm_statistics(Tensor input, int num_groups, float eps) -> (Tensor mean, Tensor rstd)",
    f"group_norm({_NORM}, bool gelu) -> Tensor",
    f"group_norm_backward(Tensor grad_output, {_NORM}, bool gelu) "
    "-> (Tensor grad, Tensor grad_sum, Tensor grad_dot_normalized)",
    f"depthwise_conv3d(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor",
    f"depthwise_conv3d_statistics(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}, int num_groups, float eps) "
    "-> (Tensor output, Tensor mean, Tensor rstd)",
    "group_norm_gradient(Tensor grad, Tensor output, Tensor scale, Tensor slope, Tensor offset) -> Tensor",
    "group_norm_input_gradient(Tensor grad_sum, Tensor grad_dot_normalized, Tensor mean, Tensor rstd, Tensor weight, "
    "int voxels) -> (Tensor scale, Tensor slope, Tensor offset)",
    f"depthwise_conv3d_backward_data({_GRADIENT}, Tensor weight, int[3] input_size, {_GEOMETRY}, Tensor? add) "
    "-> Tensor",
    f"depthwise_conv3d_backward_weight({_GRADIENT}, Tensor input, int[3] kernel_size, {_GEOMETRY}) -> Tensor",
    f"inverted_bottleneck({_HIDDEN}, Tensor? compress_bias, Tensor? grn_gamma, Tensor? grn_beta, Tensor? residual) "
    "-> Tensor",
    f"inverted_bottleneck_backward(Tensor grad_output, {_HIDDEN}, Tensor? grn_gamma, Tensor? grn_beta, "
    "bool needs_input, bool needs_norm, bool needs_expand, bool needs_compress, bool needs_grn) "
    f"-> ({_BOTTLENECK_GRADIENTS})",
    f"bottleneck_weights(Tensor input, {_BOTTLENECK_WEIGHTS}) "
    "-> (Tensor folded, Tensor bias, Tensor expand, Tensor compress)",
    "bottleneck_normalized(Tensor input, Tensor mean, Tensor rstd) -> Tensor",
    "bottleneck_hidden_(Tensor(a!) preactivation, Tensor bias, Tensor? grad_output, int? squared=None) -> Tensor",
    "bottleneck_hidden_gradient_(Tensor(a!) preactivation, Tensor(b!) grad, Tensor bias, Tensor? grad_output, "
    "Tensor? slope=None, int? voxels=None) -> Tensor",
    "bottleneck_output(Tensor product, Tensor? bias, Tensor? residual, Tensor? skip, int[3] size, int[3] stride, "
    "int[3] front) -> Tensor",
    "packed_voxels(Tensor input, bool aligned) -> Tensor",
    "bottleneck_expansion_gradients(Tensor hidden_sums, Tensor hidden_normalized, Tensor norm_weight, "
    "Tensor norm_bias, Tensor expand_weight) "
    "-> (Tensor grad_sum, Tensor grad_dot_normalized, Tensor grad_weight, Tensor grad_bias)",
    "bottleneck_response(Tensor input, Tensor squares, Tensor gamma, Tensor beta, Tensor compress_weight, "
    "Tensor? compress_bias) -> (Tensor weights, Tensor bias)",
    "bottleneck_response_gradients(Tensor input, Tensor squares, Tensor output_sums, Tensor output_hidden, "
    "Tensor gamma, Tensor beta, Tensor compress_weight) -> (Tensor weights, Tensor slope, Tensor grad_weight, "
    "Tensor grad_bias, Tensor grad_gamma, Tensor grad_beta)",
    "pointwise_conv3d(Tensor input, Tensor weight, Tensor? bias) -> Tensor",
    "pointwise_conv3d_backward(Tensor grad_output, Tensor input, Tensor weight, bool needs_input, "
    "bool needs_parameters) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    f"inverted_bottleneck_with_gain({_HIDDEN_WITH_GAIN}, Tensor compress_weight, Tensor? compress_bias, Tensor? gain, "
    "Tensor? residual) -> Tensor",
    f"inverted_bottleneck_response(Tensor? grad_output, {_HIDDEN_WITH_GAIN}) "
    "-> (Tensor square_sums, Tensor output_sums, Tensor output_hidden)",
    f"inverted_bottleneck_with_gain_backward(Tensor grad_output, {_HIDDEN_WITH_GAIN}, Tensor compress_weight, "
    "Tensor? gain, Tensor? slope, bool needs_data, bool needs_hidden, bool needs_compress) -> (Tensor grad, "
    "Tensor hidden_sums, Tensor normalized_hidden, Tensor output_sums, Tensor output_hidden)",
)

_FOLDER = Path(__file__).parent
_INFORMATION_FILE = _FOLDER / "_build_info.json"

_library = torch.library.Library(NAMESPACE, "DEF")
for _schema in SCHEMAS:
    _library.define(_schema)


@dataclass(frozen=True)
class LibraryState:
    """Whether a compiled library is in use and, if it is not, why and what to do about it."""

    file: str
    loaded: bool
    reason: str | None = None
    mend: str | None = None

    @property
    def problem(self) -> str | None:
        """The reason and the mend as one sentence; None for a loaded library."""
        if self.loaded:
            return None
        return f"{self.reason}; {self.mend}" if self.mend else self.reason


def _installed_elsewhere() -> Path | None:
    """Another copy of this package on Python's path, one that was installed."""
    for entry in sys.path:
        folder = Path(entry or ".", _INFORMATION_FILE.parent.name).absolute()
        if folder != _INFORMATION_FILE.parent and (folder / _INFORMATION_FILE.name).is_file():
            return folder
    return None


@functools.cache
def build_information() -> dict[str, Any]:
    """What the install recorded about its native build; without one, a record that says so."""
    try:
        information = json.loads(_INFORMATION_FILE.read_text())
    except FileNotFoundError:
        where = f"this copy of mednext_ops, {_INFORMATION_FILE.parent}, was not installed, so nothing was built"
        installed = _installed_elsewhere()
        if installed is None:
            return _no_information(where, "pip install -e .")
        return _no_information(
            f"{where}; Python found it before the installed one, {installed}", "leave this folder, or use python -P"
        )
    except (OSError, ValueError) as error:
        return _no_information(f"{_INFORMATION_FILE.name} cannot be read: {error}", REINSTALL)
    if not isinstance(information, dict) or not isinstance(information.get("parts"), dict):
        return _no_information(f"{_INFORMATION_FILE.name} is not a record of a build", REINSTALL)
    return information


def _no_information(reason: str, mend: str) -> dict[str, Any]:
    record = {"built": False, "reason": reason, "mend": mend}
    return {"parts": {part: dict(record) for part in ("cpu", "cuda", "information")}}


def missing_part(part: str) -> LibraryState | None:
    """Why ``part`` ("cpu", "cuda" or "information") is not among the installed files; None if it is."""
    record = build_information()["parts"].get(part, {})
    file = record.get("file", f"libmednext_ops_{part}.so")
    if not record.get("built", False):
        reason = record.get("reason", "the build left no word of it")
        return LibraryState(file, False, f"it was not built: {reason}", record.get("mend", REINSTALL))
    if not (_FOLDER / file).is_file():
        return LibraryState(file, False, f"it was built, but {file} is gone from {_FOLDER}", REINSTALL)
    return None


def _torch_lacks() -> tuple[str, str] | None:
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is not None and (int(version[1]), int(version[2])) < MINIMUM_TORCH:
        wanted = ".".join(map(str, MINIMUM_TORCH))
        return f"it needs torch {wanted}, this is torch {torch.__version__}", f"pip install 'torch>={wanted}'"
    return None


def _torch_lacks_cuda() -> tuple[str, str] | None:
    if torch.version.cuda is None:
        kind = f"ROCm {torch.version.hip}" if torch.version.hip else "without CUDA"
        return (
            f"it was built, but this torch ({torch.__version__}) is {kind}",
            "install a torch with CUDA (pytorch.org, Get Started); mednext-ops itself need not be built again",
        )
    return _torch_lacks()


def _load(part: str, torch_lacks: Callable[[], tuple[str, str] | None]) -> LibraryState:
    missing = missing_part(part)
    if missing is not None:
        return missing
    file = build_information()["parts"][part]["file"]
    lack = torch_lacks()
    if lack is not None:
        return LibraryState(file, False, *lack)
    try:
        torch.ops.load_library(str(_FOLDER / file))
    except Exception as error:  # whatever the loader raises: it is shown, and another backend serves
        built_for = build_information().get("torch")
        return LibraryState(
            file,
            False,
            f"it was built against torch {built_for} and does not load in torch {torch.__version__}: {error}",
            REINSTALL,
        )
    return LibraryState(file, True)


_LOADED_FROM = _FOLDER
_states = {"cpu": _load("cpu", _torch_lacks), "cuda": _load("cuda", _torch_lacks_cuda)}


def libraries() -> dict[str, LibraryState]:
    """The state of each library, by the name of the backend that it serves."""
    return dict(_states)


@functools.cache
def emulated_library() -> LibraryState:
    """The emulated library (docs/emulation.md), loaded from where MEDNEXT_OPS_EMULATED_LIBRARY says at the first call.

    It is part of no wheel: tests build it from the sources.
    """
    file = os.environ.get(EMULATED_LIBRARY_VARIABLE, "").strip()
    mend = (
        f"it is for tests: build it in a clone with python -m build_tools.emulated and set {EMULATED_LIBRARY_VARIABLE} "
        f"to the file that this prints"
    )
    if not file:
        return LibraryState("libmednext_ops_emulated.so", False, f"{EMULATED_LIBRARY_VARIABLE} is not set", mend)
    if not os.path.isfile(file):
        return LibraryState(file, False, f"{EMULATED_LIBRARY_VARIABLE} is {file!r}, which is no file", mend)
    lack = _torch_lacks()
    if lack is not None:
        return LibraryState(file, False, *lack)
    global _emulated
    if _emulated is None:
        _emulated = torch.library.Library(EMULATED_NAMESPACE, "DEF")
        for schema in SCHEMAS:
            _emulated.define(schema)
    try:
        torch.ops.load_library(file)
    except Exception as error:  # as for the other libraries
        return LibraryState(file, False, f"it does not load: {error}", mend)
    return LibraryState(file, True)


_emulated: torch.library.Library | None = None  # kept: its operators go when it goes


def library_functions(part: str) -> Any:
    """The functions of a loaded library that are called by name, not through torch: "cpu", "cuda" or "emulated"."""
    return _opened(emulated_library().file if part == "emulated" else str(_LOADED_FROM / _states[part].file))


@functools.cache
def _opened(file: str) -> ctypes.CDLL:
    return ctypes.CDLL(file)


def cuda_runtime_problem() -> str | None:
    """Why the loaded CUDA library cannot use this machine's driver; None if it can. Initialises no device."""
    library = library_functions("cuda")
    runtime, driver = ctypes.c_int(0), ctypes.c_int(0)
    library.mednext_ops_cuda_versions(ctypes.byref(runtime), ctypes.byref(driver))
    if driver.value == 0:
        return "no NVIDIA driver answers; install one (nvidia-smi must list the GPU)"
    if driver.value // 1000 < runtime.value // 1000:
        have, need = (f"{v // 1000}.{v % 1000 // 10}" for v in (driver.value, runtime.value))
        return (
            f"it was built with CUDA {need}, and the driver serves CUDA up to {have}; update the driver, or put a "
            f"CUDA {driver.value // 1000} toolkit on PATH and {REINSTALL}"
        )
    return None


def cpu_capabilities() -> tuple[str, ...]:
    """Which variants of the loaded CPU library's kernels this machine runs, best first.

    The first one is taken, or the one that the environment variable MEDNEXT_OPS_CPU_CAPABILITY names.
    """
    library = library_functions("cpu")
    library.mednext_ops_cpu_capabilities.restype = ctypes.c_char_p
    return tuple(library.mednext_ops_cpu_capabilities().decode().split(", "))


def covers(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for ``architectures`` ("86", "90a", "120+PTX") runs on a GPU of that compute capability.

    PTX runs on newer ones too, but it is without what its own architecture lacks: bfloat16 on tensor cores and
    asynchronous copies (8.0), the copy engine (9.0). Kernels are chosen by the GPU, which must have none of them new.
    """
    major, minor = capability
    for name in architectures:
        match = re.fullmatch(r"(\d+)(\d)([af]?)(\+PTX)?", name)
        if match is None:
            continue
        built = int(match[1]), int(match[2])
        if built == (major, minor):
            return True
        same_family = built[0] == major and built[1] <= minor
        if same_family and match[3] != "a":
            return True
        features = [sum(version >= since for since in ((8, 0), (9, 0))) for version in (built, capability)]
        if match[4] and not match[3] and built <= (major, minor) and features[0] == features[1]:
            return True
    return False


def compiled_facts() -> dict[str, str]:
    """What the build-information module says of its own compilation; empty where it was not built or does not load."""
    if missing_part("information") is not None:
        return {}
    try:
        return dict(importlib.import_module("mednext_ops._build_information").build_information())
    except ImportError:
        return {}
