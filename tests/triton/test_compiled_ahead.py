"""Every kernel compiles for GPUs that are not here, fits their registers, and multiplies on tensor cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def report(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The report's command in a process whose Triton compiles: this one's interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "build_tools.triton_report", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def table(triton_backend) -> list[dict]:
    return json.loads((ROOT / "docs" / "triton.json").read_text())["kernels"]


def test_the_kernels_are_as_in_the_table(triton_backend):
    """Compiled anew: at most 16 bytes of stack a thread on any target, no more registers than the table has."""
    done = report()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "as in the table"


def test_the_table_has_every_kernel_on_every_target(table):
    kernels = {
        "add_parts", "apply", "direct_convolution", "direct_weight_gradient", "forward", "gradient", "merge_moments",
        "normalized_gradient", "tile_moments", "weight_gradients",
    }  # fmt: skip
    for target in ("sm_80", "sm_90", "gfx942"):
        assert {row["kernel"] for row in table if row["target"] == target} >= kernels


def test_16_bit_products_are_on_tensor_cores(table):
    rows = [r for r in table if r["problem"].startswith("inverted bottleneck") and "fp32" not in r["problem"]]
    products = [r for r in rows if r["kernel"] in ("forward", "normalized_gradient", "weight_gradients")]
    assert len(products) >= 9 * 3
    assert all(row["tensor_core_products"] > 0 for row in products)


def test_a_spill_and_a_kernel_that_is_not_in_the_table_are_told(triton_backend):
    code = (
        "import dataclasses, json\n"
        "from build_tools.triton_report import CompiledKernel, compare\n"
        "fine = CompiledKernel('p', 'k', 'sm_80', 4, 100, 0, 0, 0)\n"
        "table = {'triton': '1', 'kernels': [dataclasses.asdict(fine)]}\n"
        "variants = [{}, {'spill_bytes': 16}, {'spill_bytes': 24}, {'registers': 111}, {'kernel': 'other'}]\n"
        "print(json.dumps([compare([dataclasses.replace(fine, **v)], table, '1') for v in variants]))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    fine, few, spill, registers, unknown = json.loads(said)
    assert fine == few == []
    assert spill == ["p: k on sm_80 spills 24 bytes"]
    assert registers == ["p: k on sm_80 takes 111 registers, 100 in the table"]
    assert unknown == ["p: other on sm_80 is not in the table; make it anew with --write"]


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="here Triton compiles")
def test_in_the_interpreter_the_report_says_so(triton_backend):
    command = [sys.executable, "-m", "build_tools.triton_report"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "TRITON_INTERPRET is set" in done.stderr
