"""Tests of the emulation: its library is built from the source tree into build/, and again only where it changed.

With MEDNEXT_OPS_TEST_SANITIZED=1, in a process that has AddressSanitizer preloaded, the sanitized library is taken: the
same tests run on it (test_sanitizers.py starts them so).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mednext_ops import backends, native

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

KERNELS = "libemulation_test_kernels.so"


def build(*, sanitize: bool) -> Path:
    """The folder of the emulated library and the test kernels; skips the test where they cannot be built."""
    if not (ROOT / "build_tools").is_dir() or not (ROOT / "csrc").is_dir():
        pytest.skip("the source tree is not here: the emulated library is built from it")
    from build_tools.emulated import build_emulated
    from build_tools.native import find_tools
    from build_tools.settings import Settings
    from build_tools.toolchain import Missing

    folder = ROOT / "build" / ("emulated-sanitized" if sanitize else "emulated")
    folder.mkdir(parents=True, exist_ok=True)
    sources = [p.relative_to(ROOT) for p in sorted((ROOT / "tests" / "emulation" / "kernels").glob("*.cu"))]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the other workers
        jobs = Settings.from_environment().max_jobs
        built = build_emulated(ROOT, folder, find_tools(), max_jobs=jobs, sanitize=sanitize, kernels={KERNELS: sources})
    if isinstance(built, Missing):
        pytest.skip(f"this machine cannot build the emulated library: {built}")
    return folder


@pytest.fixture(scope="session")
def folder() -> Path:
    return build(sanitize=os.environ.get("MEDNEXT_OPS_TEST_SANITIZED") == "1")


class Kernels:
    """The test kernels: ``kernels("name", ...)`` calls run_name with numbers and NumPy arrays.

    Raises:
        RuntimeError: the kernel was stopped or not launched; the text is the emulation's.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.emulation_test_error.restype = ctypes.c_char_p

    def order(self, order: int, seed: int = 0, workers: int = 1) -> None:
        arguments = ctypes.c_int(order), ctypes.c_uint64(seed), ctypes.c_int(workers)
        assert self._library.mednext_ops_emulation_configure(*arguments) == 0

    def __call__(self, name: str, *arguments: Any) -> None:
        converted = [
            ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_int(int(a)) for a in arguments
        ]
        if getattr(self._library, f"run_{name}")(*converted) != 0:
            raise RuntimeError(self._library.emulation_test_error().decode())


IN_ORDER, REVERSED, SHUFFLED, UNEVEN = 0, 1, 2, 3
ORDERS = {
    "in order": (IN_ORDER, 0),
    "reversed": (REVERSED, 0),
    **{f"shuffled {seed}": (SHUFFLED, seed) for seed in range(4)},
    **{f"uneven {seed}": (UNEVEN, seed) for seed in range(2)},
}


@pytest.fixture
def kernels(folder: Path) -> Kernels:
    """The test kernels, threads in order."""
    found = Kernels(folder / KERNELS)
    found.order(IN_ORDER)
    return found


@pytest.fixture(params=ORDERS.values(), ids=ORDERS.keys())
def in_any_order(request: pytest.FixtureRequest, folder: Path) -> Kernels:
    """The test kernels, in each of several orders of threads."""
    found = Kernels(folder / KERNELS)
    found.order(*request.param)
    return found


@pytest.fixture(scope="session")
def emulated(folder: Path) -> Any:
    """The emulated backend, with the library that was just built."""
    os.environ[native.EMULATED_LIBRARY_VARIABLE] = str(folder / "libmednext_ops_emulated.so")
    native.emulated_library.cache_clear()
    backends._first_taker.cache_clear()
    module = backends._module("emulated")
    assert module.unavailable() is None
    return module
