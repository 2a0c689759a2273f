"""Builds the CPU library with AddressSanitizer and UBSan, for tests (tests/cpu/test_sanitizers.py).

It is part of no wheel. Needs a C++ compiler, ninja and torch.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from build_tools import artefacts
from build_tools.native import Tools
from build_tools.ninja_file import NinjaFile
from build_tools.settings import BuildError
from build_tools.toolchain import Missing

__all__ = ["build_sanitized"]


def build_sanitized(root: Path, build: Path, tools: Tools, *, max_jobs: int = 1) -> Path | Missing:
    """Build the sanitized CPU library into ``build``; returns its file, or what the machine lacks.

    Raises:
        BuildError: the compiler failed; the text holds its output.
    """
    compiler, ninja, torch = tools.compiler, tools.ninja, tools.torch
    for lacking in (compiler, ninja, torch):
        if isinstance(lacking, Missing):
            return lacking
    assert not isinstance(compiler, Missing) and not isinstance(torch, Missing)
    build.mkdir(parents=True, exist_ok=True)
    ninja_file = NinjaFile(build)
    artefacts.cpu(ninja_file, root, build, compiler, torch, sanitize=True)
    ninja_file.write(build / "build.ninja")
    command = [str(ninja), "-f", str(build / "build.ninja"), "-j", str(max_jobs)]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"the sanitized CPU library does not compile:\n{done.stdout}")
    return build / artefacts.CPU_LIBRARY
