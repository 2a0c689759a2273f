"""AddressSanitizer and UBSan over the CPU kernels: they touch nothing that is not theirs, on odd extents above all.

The sanitized library is built from the sources into build/cpu-sanitized and put into a copy of the installed package.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mednext_ops
from mednext_ops import native

from .conftest import ROOT

HERE = Path(__file__).parent
SEEDS = 12

OVERRUN = """
import sys, numpy as np, torch
from mednext_ops.backends import cpu, ConvGeometry
memory = np.ones(5 * 6 * 7 - int(sys.argv[1]), np.float32)
view = np.lib.stride_tricks.as_strided(memory, (1, 1, 5, 6, 7), (840, 840, 168, 28, 4))
x = torch.from_numpy(view)
print(cpu.depthwise_conv3d(x, torch.ones(1, 1, 3, 3, 3), None, ConvGeometry((3, 3, 3))).shape)
"""


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no g++, whose AddressSanitizer these tests load")
    return found


@pytest.fixture(scope="module")
def objects(compiler) -> Path:
    """The folder that the sanitized library was built in."""
    if not (ROOT / "build_tools").is_dir() or not (ROOT / "csrc").is_dir():
        pytest.skip("the source tree is not here: the sanitized library is built from it")
    from build_tools.native import find_tools
    from build_tools.sanitized import build_sanitized
    from build_tools.settings import Settings
    from build_tools.toolchain import Missing

    folder = ROOT / "build" / "cpu-sanitized"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the other workers
        built = build_sanitized(ROOT, folder, find_tools(), max_jobs=Settings.from_environment().max_jobs)
    if isinstance(built, Missing):
        pytest.skip(f"this machine cannot build the sanitized library: {built}")
    return folder


@pytest.fixture(scope="module")
def environment(objects, compiler, tmp_path_factory) -> dict[str, str]:
    """An environment in which mednext_ops has the sanitized library, and a program starts with AddressSanitizer."""
    if not native.libraries()["cpu"].loaded:
        pytest.skip(native.libraries()["cpu"].problem)

    def library(name: str) -> str:
        command = [compiler, f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if not Path(library("libasan.so")).is_file():
        pytest.skip("g++ comes without AddressSanitizer (libasan)")
    copies = tmp_path_factory.mktemp("sanitized")
    shutil.copytree(Path(mednext_ops.__file__).parent, copies / "mednext_ops")
    name = native.libraries()["cpu"].file
    shutil.copy(objects / name, copies / "mednext_ops" / name)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return inherited | {
        "PYTHONPATH": str(copies),
        # The sanitizer looks for the function that throws when it starts: libstdc++ must be there by then.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


@pytest.mark.parametrize("capability", native.cpu_capabilities() if native.libraries()["cpu"].loaded else ())
def test_the_kernels_are_clean(capability, environment, tmp_path):
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT)
    file = HERE / "test_random_problems.py"
    names = (
        "convolution_and_its_gradients[{}]",
        "fused_statistics_are_those_of_the_output[{}]",
        "inverted_bottleneck_and_its_gradients[{}]",
        "group_norm_and_its_gradient[{}-gelu]",
    )
    tests = [name.format(seed) for name in names for seed in range(SEEDS)]
    command = [sys.executable, "-m", "pytest", *options, *(f"{file}::test_{test}" for test in tests)]
    forced = environment | {"MEDNEXT_OPS_CPU_CAPABILITY": capability}
    done = subprocess.run(command, cwd=tmp_path, env=forced, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(tests)} passed" in done.stdout


def test_a_read_past_the_end_is_reported(environment, tmp_path):
    def run(missing: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", OVERRUN, str(missing)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert "torch.Size([1, 1, 3, 4, 5])" in run(0).stdout
    wrong = run(1)
    assert wrong.returncode != 0
    # A vector that begins inside of the array and ends outside has no better name than "unknown-crash".
    assert re.search("AddressSanitizer: (heap-buffer-overflow|unknown-crash)", wrong.stderr), wrong.stderr
    assert "mednext_ops::cpu::" in wrong.stderr  # the frame that read


def test_no_variant_leaves_a_function_for_another_to_take(objects):
    """Of an inline function in several objects the linker keeps one, perhaps with instructions that a machine lacks."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm to list the symbols with")
    found = sorted(objects.glob("cpu_kernel_*/**/*.simd.o"))
    assert len(found) >= 5
    for file in found:
        listing = subprocess.run([nm, "-C", "--defined-only", file], capture_output=True, text=True, check=True).stdout
        shared = [line for line in listing.splitlines() if line.split()[1] in "WVu" and "DW.ref." not in line]
        assert not shared, f"{file.name}: {shared}"
