"""The build backend: setuptools', with build requirements that depend on the machine.

Nothing large is downloaded unasked. NVIDIA's compiler (300 MB) is asked for where a driver that can run its output is
present and no toolkit is, or where MEDNEXT_OPS_BUILD=cuda asks; torch only where MEDNEXT_OPS_BUILD asks for a library
and no torch is installed. Otherwise a part that cannot be built is left out, and the install succeeds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from build_tools.settings import BuildError, Settings
from build_tools.toolchain import (
    MINIMUM_TORCH,
    PYPI_NVCC,
    PYPI_NVCC_VERSION,
    Missing,
    driver_cuda_version,
    driver_present,
    find_compiler,
    find_nvcc,
    find_torch,
    package_directories,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "machine_requirements",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def machine_requirements(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The packages that a native build needs on this machine beyond what pyproject.toml lists."""
    settings = Settings.from_environment(environ)
    directories = package_directories(environ)
    needed: list[str] = []
    if not settings.wants_native:
        return needed
    no_torch = isinstance(find_torch(directories), Missing)
    asked = settings.mode in ("cuda", "cpu")
    if no_torch and asked:
        needed.append(f"torch>={'.'.join(map(str, MINIMUM_TORCH))}")
    buildable = not isinstance(find_compiler(environ), Missing) and (asked or not no_torch)
    useful = settings.mode == "cuda" or (settings.wants_cuda and _driver_runs_pypi_cuda(environ))
    if useful and buildable and isinstance(find_nvcc(directories, environ), Missing):
        needed += PYPI_NVCC
    return needed


def _driver_runs_pypi_cuda(environ: Mapping[str, str]) -> bool:
    version = driver_cuda_version()
    return driver_present(environ) and (version is None or version >= PYPI_NVCC_VERSION)


def _machine_requirements_or_exit() -> list[str]:
    try:
        return machine_requirements()
    except BuildError as error:
        raise SystemExit(f"mednext-ops: {error}") from None


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_machine_requirements_or_exit()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_machine_requirements_or_exit()]
