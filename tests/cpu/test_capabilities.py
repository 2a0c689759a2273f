"""One source, several variants: every one that this machine runs passes the same tests, and none touches another."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mednext_ops import native

from .conftest import ROOT

HERE = Path(__file__).parent
VARIABLE = "MEDNEXT_OPS_CPU_CAPABILITY"
CAPABILITIES = native.cpu_capabilities() if native.libraries()["cpu"].loaded else ()


def test_the_portable_variant_is_always_there():
    if not CAPABILITIES:
        pytest.skip(native.libraries()["cpu"].problem)
    assert CAPABILITIES[-1] == "portable"


@pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").is_file(), reason="not x86-64 Linux")
@pytest.mark.skipif(not CAPABILITIES, reason="the CPU library was not built")
def test_what_the_processor_has_is_found():
    flags = set(re.search(r"flags\s*:(.*)", Path("/proc/cpuinfo").read_text())[1].split())
    assert ("avx512" in CAPABILITIES) == ({"avx512f", "avx512bw", "avx512dq", "avx512vl", "f16c"} <= flags)
    assert ("avx2" in CAPABILITIES) == ({"avx2", "fma", "f16c"} <= flags)


@pytest.mark.parametrize("capability", CAPABILITIES[1:])
def test_a_lower_variant_passes_the_same_tests(capability, tmp_path):
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT)
    files = [HERE / f"test_{name}.py" for name in ("random_problems", "gelu", "threads_and_memory")]
    command = [sys.executable, "-m", "pytest", *options, *files]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {VARIABLE: capability}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not CAPABILITIES, reason="the CPU library was not built")
def test_an_unknown_variant_is_named(tmp_path):
    code = "import torch, mednext_ops as o; o.depthwise_conv3d(torch.ones(1, 1, 3, 3, 3), torch.ones(1, 1, 1, 1, 1))"
    command, environment = [sys.executable, "-c", code], os.environ | {VARIABLE: "sse9"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"the environment variable {VARIABLE} is 'sse9'; this machine runs {', '.join(CAPABILITIES)}" in done.stderr
