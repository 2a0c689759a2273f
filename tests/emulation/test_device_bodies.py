"""The bodies for a GPU, beside the emulated ones, go through nvcc and its assembler for every architecture."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT


def test_the_primitives_compile_for_every_architecture(tmp_path: Path) -> None:
    from build_tools.architectures import gencode_flags, parse_architectures, split_known
    from build_tools.native import find_tools
    from build_tools.settings import DEFAULT_ARCHITECTURES
    from build_tools.toolchain import Nvcc

    tools = find_tools()
    if not isinstance(tools.nvcc, Nvcc):
        pytest.skip(str(tools.nvcc))
    known, _ = split_known(parse_architectures(DEFAULT_ARCHITECTURES), tools.nvcc.architectures)
    gencode = gencode_flags(known)
    source = ROOT / "tests" / "emulation" / "kernels" / "primitives.cu"
    flags = ["-std=c++20", "-O1", "--expt-relaxed-constexpr", "-Xptxas=--warn-on-spills", "-Werror=all-warnings"]
    command = [tools.nvcc.command, *flags, *gencode, "-c", str(source), "-o", str(tmp_path / "kernels.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "spill" not in done.stdout + done.stderr
