"""Builds the emulated library: the CUDA kernels compiled as plain C++, run on a CPU by csrc/emulation, for tests.

``python -m build_tools.emulated`` builds it in build/emulated and prints where it is; ``--sanitize`` builds it with
AddressSanitizer and UBSan in build/emulated-sanitized. It is part of no wheel. Needs a C++ compiler, ninja, torch and
CUDA's headers; no nvcc, no GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from build_tools import artefacts
from build_tools.native import Tools, find_tools
from build_tools.ninja_file import NinjaFile
from build_tools.settings import BuildError, Settings
from build_tools.toolchain import Missing, find_cuda_headers, package_directories

__all__ = ["build_emulated", "main"]


def build_emulated(
    root: Path,
    build: Path,
    tools: Tools,
    *,
    max_jobs: int = 1,
    sanitize: bool = False,
    kernels: Mapping[str, list[Path]] | None = None,
) -> Path | Missing:
    """Build the emulated library into ``build``; returns its file, or what the machine lacks.

    ``kernels`` are further libraries, of sources below ``root`` that know no torch, put beside it by file name.

    Raises:
        BuildError: the compiler failed; the text holds its output.
    """
    headers = find_cuda_headers(package_directories(), tools.nvcc)
    compiler, ninja, torch = tools.compiler, tools.ninja, tools.torch
    for lacking in (compiler, ninja, torch, headers):
        if isinstance(lacking, Missing):
            return lacking
    assert not isinstance(compiler, Missing) and not isinstance(torch, Missing) and not isinstance(headers, Missing)
    build.mkdir(parents=True, exist_ok=True)
    ninja_file = NinjaFile(build)
    artefacts.emulated(ninja_file, root, build, compiler, torch, headers, sanitize=sanitize, kernels=kernels)
    ninja_file.write(build / "build.ninja")
    command = [str(ninja), "-f", str(build / "build.ninja"), "-j", str(max_jobs)]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"the emulated library does not compile:\n{done.stdout}")
    return build / artefacts.EMULATED_LIBRARY


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build_tools.emulated", description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan")
    options = parser.parse_args(arguments)
    if not Path("csrc", "emulation").is_dir():
        print("there is no csrc/emulation here: run this in a clone of mednext-ops", file=sys.stderr)
        return 1
    build = Path("build", "emulated-sanitized" if options.sanitize else "emulated").absolute()
    try:
        settings = Settings.from_environment()
        built = build_emulated(Path.cwd(), build, find_tools(), max_jobs=settings.max_jobs, sanitize=options.sanitize)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    if isinstance(built, Missing):
        print(f"the emulated library cannot be built here: {built}", file=sys.stderr)
        return 1
    print(built)
    return 0


if __name__ == "__main__":
    sys.exit(main())
