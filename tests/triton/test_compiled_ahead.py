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


#: What another problem of the table shows as well: compiling is most of these tests' time.
ON_DEMAND = ("convolution k3 bf16", "convolution k5 fp16")


def test_the_kernels_are_as_in_the_table(table):
    """Compiled anew: at most 16 bytes of stack a thread on any target, no more registers than the table has."""
    problems = {row["problem"] for row in table}
    assert problems > set(ON_DEMAND)
    done = report(*(f"--problem={problem}" for problem in sorted(problems - set(ON_DEMAND))))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "as in the table"


def test_every_integer_argument_may_be_1(triton_backend):
    """Triton makes a constant of it, alone and with the others, and of what is computed from it."""
    done = report("--specialised", "--target=sm_90")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "every argument may be 1"


def test_a_kernel_that_cannot_take_a_1_is_told(triton_backend, tmp_path):
    module = tmp_path / "kernel_of_a_method.py"
    module.write_text(
        "import triton\n"
        "import triton.language as tl\n"
        "@triton.jit\n"
        "def kernel(out, count, other):\n"
        "    tl.store(out + tl.program_id(0), count.to(tl.int64) + tl.cast(other, tl.int64))\n"
    )
    code = (
        "import torch\n"
        "from build_tools import triton_report\n"
        "from kernel_of_a_method import kernel\n"
        "from mednext_ops.backends.triton.launch import Blocks, launch\n"
        "out = torch.empty(4, device='meta')\n"
        "triton_report.PROBLEMS['p'] = lambda: launch(kernel, 4, Blocks.of(), out=out, count=2, other=2)\n"
        "print(*triton_report.unspecialisable('p', 'sm_90'), sep='\\n')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()
    assert [line.split(": ")[2] for line in told] == ["count", "all"]
    assert all("p: kernel on sm_90, specialised: " in line and "no attribute 'to'" in line for line in told)


def test_the_table_has_every_kernel_on_every_target(table):
    kernels = {
        "add_parts", "apply", "direct_convolution", "direct_weight_gradient", "forward", "gradient", "merge_moments",
        "normalized_gradient", "tile_moments", "weight_gradients",
    }  # fmt: skip
    for target in ("sm_80", "sm_90", "gfx942"):
        found = {row["kernel"] for row in table if row["target"] == target}
        assert found >= kernels and ("banded_convolution" in found) == target.startswith("sm_")


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


def test_the_banded_convolution_is_offered_where_it_has_less_to_do():
    """The verdict that the backend's order of ways rests on: more than 1.5 times, and nothing spilt."""
    rows = json.loads((ROOT / "docs" / "triton_formulations.json").read_text())["rows"]
    found = {(r["case"], r["direction"], r["target"], r["formulation"]): r for r in rows}
    banded = [key[:3] for key in found if key[3] == "banded"]
    assert {(case.split()[1], target) for case, _, target in banded} >= {
        (kernel, target) for kernel in ("k3", "k5", "k7") for target in ("sm_80", "sm_90")
    }
    for key in banded:
        direct, other = found[(*key, "direct")], found[(*key, "banded")]
        assert direct["cycles_busiest"] > 1.5 * other["cycles_busiest"] and other["spill_bytes"] == 0, key
        assert other["products"] > 0 == direct["products"]


def test_the_count_is_as_in_the_table(triton_backend):
    """One convolution, compiled and counted anew: under the Triton that made the table, to a tenth."""
    code = (
        "import dataclasses, json, triton\n"
        "from build_tools.triton_formulations import count\n"
        "row = count('convolution k5 bf16', 'forward', 'banded', 'sm_90')\n"
        "print(json.dumps([triton.__version__, dataclasses.asdict(row)]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    release, row = json.loads(said)
    table = json.loads((ROOT / "docs" / "triton_formulations.json").read_text())
    key = ("case", "direction", "formulation", "target")
    (kept,) = (r for r in table["rows"] if all(r[name] == row[name] for name in key))
    assert row["spill_bytes"] == 0 and row["products"] == 25 * 2  # a warp has 32 of 64 octets, two fragments
    if release == table["triton"]:
        assert row["cycles_busiest"] == pytest.approx(kept["cycles_busiest"], rel=0.1)


def test_instructions_in_a_loop_count_as_often_as_it_is_gone_through(triton_backend):
    code = (
        "import json\n"
        "from build_tools.triton_formulations import cycles, executed\n"
        "line = '        /*{:04x}*/                   {} ;'\n"
        "body = ['MOV R1, R2', '.L_x_0:', 'LDG.E.64 R2, [R4]', '.L_x_1:', '@!P0 HMMA.16816.F32.BF16 R0, R2, R4, R0',\n"
        "        'FFMA R1, R2, R3, R1', '@P1 BRA `(.L_x_1)', '@P0 BRA `(.L_x_0)', 'EXIT', '.L_x_2:', 'BRA `(.L_x_2)']\n"
        "listing = '\\n'.join(t if t.startswith('.') else line.format(16 * i, t) for i, t in enumerate(body))\n"
        "found = executed(listing, [3, 5])\n"
        "print(json.dumps([found, cycles(found, 'sm_80')]))\n"
        "try:\n"
        "    executed(listing, [3])\n"
        "except ValueError as error:\n"
        "    print(json.dumps(str(error)))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    first, second = said.splitlines()
    found, units = json.loads(first)
    assert (found["MOV"], found["LDG.E.64"], found["HMMA.16816.F32.BF16"], found["FFMA"]) == (1, 3, 15, 15)
    assert units == {"floats": 15, "integers": 2, "memory": 3 * 4 * 2, "tensor_cores": 15 * 8}
    assert "expected 1" in json.loads(second)


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="here Triton compiles")
def test_in_the_interpreter_the_report_says_so(triton_backend):
    command = [sys.executable, "-m", "build_tools.triton_report"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "TRITON_INTERPRET is set" in done.stderr
