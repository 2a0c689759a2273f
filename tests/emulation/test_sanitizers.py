"""AddressSanitizer and UBSan see what the emulated kernels touch: clean where they are right, stopped where not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import KERNELS, ROOT, build

HERE = Path(__file__).parent

SCRIPT = """
import ctypes, sys, numpy as np
library = ctypes.CDLL(sys.argv[1])
kernel, by = sys.argv[2], int(sys.argv[3])
input, output = np.zeros(4096, np.float32), np.zeros(4096, np.float32)
begin = input.ctypes.data + (-input.ctypes.data % 16 if kernel == "misaligned_vector" else 4 * (4096 - 32))
arguments = [ctypes.c_int(by), ctypes.c_void_p(output.ctypes.data)]
if "array" not in kernel:
    arguments.insert(0, ctypes.c_void_p(begin))
print("status", getattr(library, "run_" + kernel)(*arguments))
"""


@pytest.fixture(scope="module")
def preloaded() -> dict[str, str]:
    """An environment in which a program starts with AddressSanitizer."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++, whose AddressSanitizer these tests load")

    def library(name: str) -> str:
        command = [compiler, f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if not Path(library("libasan.so")).is_file():
        pytest.skip("g++ comes without AddressSanitizer (libasan)")
    # Python itself never frees all; what it leaves is no concern here.
    return os.environ | {
        # The sanitizer looks for the function that throws when it starts: libstdc++ must be there by then.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "MEDNEXT_OPS_TEST_SANITIZED": "1",
    }


@pytest.fixture(scope="module")
def sanitized() -> Path:
    if os.environ.get("MEDNEXT_OPS_TEST_SANITIZED") == "1":
        pytest.skip("this process runs under the sanitizers itself")
    return build(sanitize=True)


#: In order and shuffled once, one 16-bit type: what a thread touches does not depend on much else.
CLEAN = {
    "test_primitives.py": "not reversed and not shuffled-0 and not every_fp16",
    "test_statistics.py": "not reversed and not shuffled-0 and not every_fp16",
    "test_group_norm.py": "not order and not 250",
    "test_inverted_bottleneck.py": "dtype0 or extent or slices or large or bad_input or other_format or anywhere",
    "test_bottleneck_products.py": "not dtype1 and not every_order and not extreme",
    "test_depthwise_convolution.py": "(random or every_order) and (conv3d-0 or transpose3d-1 or group_norm-2)",
    "test_planar_convolution.py": "dtype0 and (every_kernel or statistics) or tile_where or padding "
    "or every_order and size0-kernel0",
    "test_banded_convolution.py": "dtype0 and (every_kernel or data_gradient or statistics) or tile or padding "
    "or every_order and async-dtype0",
    "test_streaming_convolution.py": "dtype0 and size0 or transposed and NCDHW or every_order and 3x3x3 and 1-NCDHW",
    "test_strided_convolution.py": "dtype0 and (every_kernel or written_out) or tile or alignment",
    "test_strided_scatter.py": "dtype0 and (every_kernel or written_out) or tile or alignment",
    "test_streaming_scatter.py": "dtype0 and (size0 or size2) or apart or every_order and dtype1",
    "test_streaming_weight_gradient.py": "dtype0 and (every_kernel or written_out) or tile and NCDHW "
    "or every_order and 3x3x3 and 1-convolution-NCDHW",
    "test_strided_weight_gradient.py": "dtype0 and (every_kernel or written_out) or tile or alignment "
    "or every_order and [aligned-3-convolution",
    "test_banded_weight_gradient.py": "dtype0 and (every_kernel or written_out) or tile or padding "
    "or every_number and (29-8 or 28-5 or 55-4 or 31-4) or every_order and boxes-kernel0-dtype0",
    "test_pointwise_convolution.py": "dtype1 or every_order or bad_input or another_shape",
}


@pytest.mark.parametrize("file", CLEAN)
def test_correct_kernels_are_clean(file, sanitized, preloaded, tmp_path):
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT)
    command = [sys.executable, "-m", "pytest", *options, "-k", CLEAN[file], HERE / file]
    done = subprocess.run(command, cwd=tmp_path, env=preloaded, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kernel", "by", "report"),
    [
        ("past_a_static_array", 1, "use-after-poison"),
        ("past_a_static_array", -1, "use-after-poison"),
        ("past_a_dynamic_array", 1, "use-after-poison"),
        ("past_a_dynamic_array", -1, "use-after-poison"),
        ("past_the_input", 1, "heap-buffer-overflow"),
        ("copies_past_the_input", 1, "heap-buffer-overflow"),
        ("misaligned_vector", 1, "misaligned address"),
    ],
)
def test_what_is_touched_and_should_not_be_is_reported(kernel, by, report, sanitized, preloaded):
    def run(by: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT, str(sanitized / KERNELS), kernel, str(by)]
        return subprocess.run(command, env=preloaded, capture_output=True, text=True, check=False)

    wrong = run(by)
    assert wrong.returncode != 0
    assert report in wrong.stderr
    assert "planted_bugs.cu" in wrong.stderr
    assert "status 0" in run(0).stdout
