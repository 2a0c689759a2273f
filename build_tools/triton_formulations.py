"""Two formulations of the depthwise convolution in Triton, compared by what their machine code costs: no GPU is needed.

``python -m build_tools.triton_formulations`` compiles the direct and the banded convolution of each of :data:`CASES`
for :data:`TARGETS`, disassembles them, and counts what 32 outputs take: warp instructions, and cycles of each unit of a
quarter of a multiprocessor (a quarter issues one instruction a cycle). ``--write`` puts the table into
docs/triton_formulations.json. The count is arithmetic on code as it stands: every path is taken, caches always hit, and
nothing waits. It says which formulation has less to do, not how long it takes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import triton

from build_tools.triton_report import TARGETS as ALL_TARGETS
from build_tools.triton_report import compile_for, compile_launch, record, refusal
from mednext_ops.backends.triton import tuning
from mednext_ops.backends.triton.launch import Launch

__all__ = ["CASES", "TARGETS", "Formulation", "convolutions", "count", "cycles", "executed", "main"]

TARGETS = tuple(name for name, target in ALL_TARGETS.items() if target.backend == "cuda")

#: Problems of the report, each with statistics forward and an unwritten gradient backward.
CASES = ("convolution k3 bf16", "convolution k5 bf16", "convolution k7 bf16", "convolution k7 bf16 of 63 voxels")

#: The place of a formulation in the list of ways that a compiled kernel has (convolution.py).
WAYS = {"banded": 0, "direct": sys.maxsize}

TABLE = Path("docs", "triton_formulations.json")

#: Cycles of its unit that one warp instruction takes: lanes 32, and a quarter of a multiprocessor has 32 for floats, 16
#: for integers, logic and selection, a quarter of 32 for shared and global memory, 4 and 8 products of 256 elements a
#: cycle on sm_80 and sm_90 (NVIDIA's architecture papers and the throughput table of the CUDA programming guide).
_FLOAT = ("FFMA", "FADD", "FMUL")
_MEMORY = {"LDG": 4, "STG": 4, "LDS": 4, "STS": 4, "LDGSTS": 4, "LDSM": 4, "STSM": 4, "SHFL": 4, "LDL": 4, "STL": 4}
_PRODUCT = {"sm_80": 8, "sm_90": 4}
#: A wgmma of 64 x 8 x 16 reads 2 KiB of shared memory, 128 bytes a cycle of the whole multiprocessor.
_GROUP_PRODUCT = 16
_CONTROL = ("BRA", "BAR", "EXIT", "NOP", "BSSY", "BSYNC", "DEPBAR", "LDGDEPBAR", "WARPSYNC", "CALL", "RET")


@dataclass(frozen=True)
class Formulation:
    """What one formulation of one convolution costs on one target; cycles are of a quarter, for 32 outputs."""

    case: str
    direction: str
    formulation: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    products: int
    instructions: float
    cycles_floats: float
    cycles_integers: float
    cycles_memory: float
    cycles_tensor_cores: float
    cycles_busiest: float


def convolutions(case: str, formulation: str, target: str) -> dict[str, Launch]:
    """The launches of a case by direction."""
    with tuning.taking(WAYS[formulation]):
        found = [launch for launch in record(case, target) if launch.kernel.__name__.endswith("_convolution")]
    assert [launch.kernel.__name__ for launch in found] == [f"{formulation}_convolution"] * 2
    return dict(zip(("forward", "data gradient"), found, strict=True))


def outputs(launch: Launch) -> int:
    """Of a program that is full."""
    return launch.blocks["BV"] * (launch.blocks["BD"] if "BD" in launch.blocks else launch.blocks["BC"])


def disassembly(cubin: bytes) -> str:
    nvdisasm = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([nvdisasm, "-c", file.name], capture_output=True, text=True, check=True).stdout


def executed(code: str, trips: Iterable[int]) -> Counter[str]:
    """Instructions that a warp executes, by name: those in a loop as often as ``trips`` says, outermost loop first."""
    instructions: list[str] = []
    places: dict[str, int] = {}
    loops = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            places[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", line):
            instructions.append(found[1])
            target = re.search(r"\.L_\w+", found[1])
            # A branch backwards closes a loop; one to itself only pads the end of the code.
            if found[1].startswith("BRA") and target and places.get(target[0], sys.maxsize) < len(instructions) - 1:
                loops.append((places[target[0]], len(instructions)))
    times = [1] * len(instructions)
    wanted = list(trips)
    nested = sorted(set(loops), key=lambda loop: loop[0] - loop[1])
    if len(nested) != len(wanted) or any(inner[0] < outer[0] or inner[1] > outer[1]
                                         for outer, inner in pairwise(nested)):  # fmt: skip
        raise ValueError(f"the code has loops {nested}, expected {len(wanted)}, each within the one before")
    for (begin, end), count_ in zip(nested, wanted, strict=True):
        times[begin:end] = [n * count_ for n in times[begin:end]]
    total: Counter[str] = Counter()
    for name, n in zip(instructions, times, strict=True):
        total[name.split()[0]] += n
    return total


def cycles(instructions: Counter[str], target: str) -> dict[str, float]:
    """Cycles of each unit of a quarter of a multiprocessor."""
    found = {"floats": 0.0, "integers": 0.0, "memory": 0.0, "tensor_cores": 0.0}
    for full_name, times in instructions.items():
        name, *details = full_name.split(".")
        if name in ("HMMA", "HGMMA"):
            found["tensor_cores"] += times * (_PRODUCT[target] if name == "HMMA" else _GROUP_PRODUCT)
        elif name in _FLOAT:
            found["floats"] += times
        elif name in _MEMORY:
            width = 4 if "LDSM" in name or "STSM" in name else 1
            width = {"64": 2, "128": 4}.get(next((d for d in details if d in ("64", "128")), ""), width)
            found["memory"] += times * _MEMORY[name] * width
        elif name not in _CONTROL and not name.startswith("U"):  # U: the unit that a whole warp shares
            found["integers"] += 2 * times
    return found


def trips(launch: Launch) -> list[int]:
    """How often a program goes through its loops, outermost first."""
    arguments = launch.arguments
    if "BD" in launch.blocks:
        return [launch.blocks["BD"] + arguments["KD"] - 1]
    return [arguments["KD"], arguments["KH"]]


def count(case: str, direction: str, formulation: str, target: str) -> Formulation:
    """Compile one formulation and count."""
    launch = convolutions(case, formulation, target)[direction]
    compiled = compile_launch(case, launch, target)
    instructions = executed(disassembly(compile_for(launch, target).asm["cubin"]), trips(launch))
    # Per 32 outputs: a program's warps all execute this.
    share = launch.blocks.threads / outputs(launch)
    issued = sum(instructions.values()) * share
    units = {f"cycles_{unit}": round(n * share, 2) for unit, n in cycles(instructions, target).items()}
    return Formulation(
        case,
        direction,
        formulation,
        target,
        compiled.registers,
        compiled.spill_bytes,
        compiled.shared_bytes,
        compiled.tensor_core_products,
        round(issued, 2),
        cycles_busiest=round(max(issued, *units.values()), 2),
        **units,
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line of ``python -m build_tools.triton_formulations``."""
    parser = argparse.ArgumentParser(
        prog="python -m build_tools.triton_formulations", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--write", action="store_true", help=f"write the table {TABLE}")
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; may be repeated")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be repeated")
    options = parser.parse_args(arguments)
    if (reason := refusal()) is not None:
        print(reason, file=sys.stderr)
        return 1
    rows: list[Formulation] = []
    for case in options.case or CASES:
        for direction in ("forward", "data gradient"):
            for target in options.target or TARGETS:
                both = {name: count(case, direction, name, target) for name in ("direct", "banded")}
                rows += both.values()
                ratio = both["direct"].cycles_busiest / both["banded"].cycles_busiest
                for name, row in both.items():
                    print(f"{target} {case}, {direction}, {name}: {row.instructions:.1f} instructions, "
                          f"{row.cycles_busiest:.1f} cycles, {row.registers} registers, {row.spill_bytes} spilt, "
                          f"{row.shared_bytes} shared", flush=True)  # fmt: skip
                print(f"  the banded one has {ratio:.1f} times less to do", flush=True)
    if options.write:
        TABLE.write_text(
            json.dumps({"triton": triton.__version__, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
