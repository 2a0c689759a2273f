"""What the compiler made of every CUDA kernel: registers, spills, shared memory, and the instructions of its main loop.

``python -m build_tools.instruction_report`` disassembles the object files of a build (build/native by default) for the
architectures of :data:`ARCHITECTURES` and compares them with the committed table, docs/kernels/instructions.json.
``--write`` makes that table, and docs/kernels/instructions.md from it, anew. Both fail on a spill, a stack frame, and a
name that two kernels have. The comparison also fails where a kernel is missing on either side, takes more registers or
a longer loop than :data:`TOLERANCE` allows, or loses tensor-core products; under another CUDA release than the table's
it leaves the last three out and says so. Needs cuobjdump and nvdisasm: of a CUDA toolkit, or
``pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build_tools.ptxas_report import allowed_frame, demangle, read_report
from build_tools.settings import usable_cpus
from build_tools.toolchain import Missing, Nvcc, find_nvcc, package_directories

__all__ = ["KernelInstructions", "compare", "defects", "main", "main_loop", "not_compared", "read_disassembly"]

#: One of each generation that differs in what it executes: Ampere's copies and products, Hopper's copy engine.
ARCHITECTURES = ("sm_80", "sm_90a")

#: A new compiler flag or a changed line moves a few; a lost optimisation moves many.
TOLERANCE = 1.1

TABLE = Path("docs", "kernels", "instructions.json")
PAGE = TABLE.with_suffix(".md")

#: What is counted in the loop, and the units that execute it.
_COUNTED = {
    "HMMA": "tensor core",
    "FFMA": "float FMA",
    "LDSM": "ldmatrix",
    "LDS": "shared load",
    "STS": "shared store",
    "LDGSTS": "asynchronous copy",
    "LDG": "global load",
    "STG": "global store",
    "MUFU": "special function",
}


@dataclass(frozen=True)
class KernelInstructions:
    """One kernel on one architecture; ``loop`` counts the instructions of :func:`main_loop`, paths not taken too."""

    kernel: str
    architecture: str
    registers: int
    spill_bytes: int
    stack_bytes: int  # of a frame, which :data:`build_tools.ptxas_report.ALLOWED_FRAMES` may explain
    static_shared_bytes: int
    instructions: int
    loop_instructions: int
    loop: dict[str, int]

    @property
    def work_share(self) -> float:
        """Which part of the loop is products: on tensor cores or in float."""
        return (self.loop.get("HMMA") or self.loop.get("FFMA", 0)) / max(self.loop_instructions, 1)


_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_BRANCH = re.compile(r"\bBRA(?:\.\w+)*\s+(?:!?U?P\w+,\s*)?(?:`\(\.?\w+\)|0x([0-9a-f]+))")

Instruction = tuple[int, str]  # address, text


def read_disassembly(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each function of ``cuobjdump -sass``, by mangled name."""
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if match := _FUNCTION.match(line):
            current = functions.setdefault(match[1], [])
        elif match := _INSTRUCTION.match(line):
            current.append((int(match[1], 16), match[2]))
    return functions


def _operation(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0]


def main_loop(instructions: list[Instruction]) -> list[Instruction]:
    """The shortest loop with the most products: what the kernel spends its time in; empty where there is no loop.

    Products of tensor cores, where a loop has any.
    """
    best: list[Instruction] = []
    key = (-1, -1, 0)
    for address, text in instructions:
        branch = _BRANCH.search(text)
        if branch is None or branch[1] is None or int(branch[1], 16) >= address:
            continue
        body = [i for i in instructions if int(branch[1], 16) <= i[0] <= address]
        operations = Counter(_operation(t) for _, t in body)
        ranked = (operations["HMMA"], 0 if operations["HMMA"] else operations["FFMA"], -len(body))
        if ranked > key:
            best, key = body, ranked
    return best


def _find_cuobjdump(nvcc: Nvcc | Missing) -> Path | None:
    places = [Path(nvcc.command).parent] if isinstance(nvcc, Nvcc) else []
    places += [directory / "nvidia" / "cu13" / "bin" for directory in package_directories()]
    places += [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p]
    for place in places:
        if os.access(place / "cuobjdump", os.X_OK) and os.access(place / "nvdisasm", os.X_OK):
            return place / "cuobjdump"
    return None


def collect(folder: Path, cuobjdump: Path) -> list[KernelInstructions]:
    """Every kernel of a build, on each of :data:`ARCHITECTURES`."""
    jobs = [(report, architecture) for report in sorted(folder.rglob("*.o.ptxas")) for architecture in ARCHITECTURES]
    with ProcessPoolExecutor(usable_cpus()) as pool:
        parts = pool.map(functools.partial(_collect_one, cuobjdump), *zip(*jobs, strict=True)) if jobs else ()
        return sorted((kernel for part in parts for kernel in part), key=lambda k: (k.kernel, k.architecture))


def _collect_one(cuobjdump: Path, report: Path, architecture: str) -> list[KernelInstructions]:
    """The kernels of an object file on one architecture; ``report`` is what ptxas said of it."""
    text = report.read_text()
    entries = {(k.name, k.architecture): k for k in read_report(text)}
    shared = _static_shared(text)
    if not any(a == architecture for _, a in entries):
        return []
    environment = os.environ | {"PATH": f"{cuobjdump.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [str(cuobjdump), "-sass", "-arch", architecture, str(report.with_suffix(""))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    functions = read_disassembly(done.stdout)
    found = []
    for mangled, name in zip(functions, demangle(list(functions)), strict=True):
        entry = entries[mangled, architecture]
        loop = main_loop(functions[mangled])
        operations = Counter(_operation(operation) for _, operation in loop)
        found.append(
            KernelInstructions(
                name,
                architecture,
                entry.registers,
                entry.spill_stores + entry.spill_loads,
                entry.stack,
                shared.get((mangled, architecture), 0),
                len(functions[mangled]),
                len(loop),
                {operation: operations[operation] for operation in _COUNTED if operations[operation]},
            )
        )
    return found


def _static_shared(report: str) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    entry: tuple[str, str] | None = None
    for line in report.splitlines():
        if match := re.search(r"Compiling entry function '([^']+)' for '(\w+)'", line):
            entry = match[1], match[2]
        elif entry is not None and (match := re.search(r"Used \d+ registers.*?(\d+) bytes smem", line)):
            found[entry] = int(match[1])
    return found


def defects(kernels: list[KernelInstructions]) -> list[str]:
    """What may not be, whatever the table says: spills, stack frames, and two kernels that cannot be told apart."""
    problems = []
    for k in kernels:
        name = f"{k.kernel} on {k.architecture}"
        if k.spill_bytes:
            problems.append(f"{name} spills {k.spill_bytes} bytes a thread")
        elif k.stack_bytes and allowed_frame(k.kernel, k.architecture, k.stack_bytes) is None:
            problems.append(f"{name} has a stack frame of {k.stack_bytes} bytes a thread: an array not in registers")
    return problems + _repeated((k.kernel, k.architecture) for k in kernels)


def _repeated(keys: Iterable[tuple[str, str]]) -> list[str]:
    counts = Counter(keys)
    return [f"{name} on {arch} is the name of {count} kernels" for (name, arch), count in counts.items() if count > 1]


def not_compared(table: dict[str, Any], release: str) -> str | None:
    """What :func:`compare` leaves out, in words; None where it compares everything."""
    if release == table["cuda"]:
        return None
    return (
        f"not compared: registers, loops and their tensor-core products, since this build is of CUDA {release} "
        f"and the table of CUDA {table['cuda']}; compared: spills, stack frames and which kernels there are"
    )


def compare(now: list[KernelInstructions], table: dict[str, Any], release: str) -> list[str]:
    """What is worse than the committed table, a sentence each; empty where nothing is."""
    before = {(k["kernel"], k["architecture"]): KernelInstructions(**k) for k in table["kernels"]}
    current = {(k.kernel, k.architecture): k for k in now}
    problems = defects(now)
    problems += [f"in the table {p}" for p in _repeated((k["kernel"], k["architecture"]) for k in table["kernels"])]
    for key, kernel in current.items():
        name = f"{kernel.kernel} on {kernel.architecture}"
        old = before.get(key)
        if old is None:
            problems.append(f"{name} is not in the table: make it anew with --write and look at it")
            continue
        if release != table["cuda"]:
            continue
        for field in ("registers", "loop_instructions"):
            was, is_now = getattr(old, field), getattr(kernel, field)
            if is_now > was * TOLERANCE:
                problems.append(f"{name}: {field.replace('_', ' ')} went from {was} to {is_now}")
        if kernel.loop.get("HMMA", 0) < old.loop.get("HMMA", 0):
            products = kernel.loop.get("HMMA", 0)
            problems.append(f"{name}: its loop had {old.loop['HMMA']} tensor-core products, now {products}")
    problems += [
        f"{kernel} on {arch} is in the table and was not built" for kernel, arch in before.keys() - current.keys()
    ]
    return problems


def page(kernels: list[KernelInstructions], release: str) -> str:
    """The table for people."""
    lines = [
        "# Registers and instructions of every kernel",
        "",
        f"Made by `python -m build_tools.instruction_report --write` from a build with CUDA {release}; CI compares.",
        "The loop is the one with the most products; its instructions are counted as they stand, with the paths that a",
        "launch does not take (other fills, odd extents, epilogues). Nothing spills, nothing has a stack frame.",
        "",
        "Static shared memory is what the code declares. Rings of planes, tiles and weights are dynamic shared memory,",
        "which a launch sizes for its problem: `python -m mednext_ops.info --plan` shows the ring of a convolution",
        "(`ring bytes`; weights and tables are on top) and all that a fused bottleneck takes (`shared bytes at most`).",
        "",
        "| kernel | architecture | registers | static shared | loop | products | share | also in the loop |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for k in kernels:
        product = "HMMA" if k.loop.get("HMMA") else "FFMA"
        others = ", ".join(f"{count} {name}" for name, count in k.loop.items() if name != product)
        products = f"{k.loop.get(product, 0)} {product}" if k.loop.get(product) else "none"
        lines.append(
            f"| `{k.kernel}` | {k.architecture} | {k.registers} | {k.static_shared_bytes} | {k.loop_instructions} | "
            f"{products} | {100 * k.work_share:.0f} % | {others} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m build_tools.instruction_report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/native"), help="where the build is")
    parser.add_argument("--write", action="store_true", help="write the table instead of comparing with it")
    options = parser.parse_args(arguments)
    nvcc = find_nvcc(package_directories())
    cuobjdump = _find_cuobjdump(nvcc)
    if isinstance(nvcc, Missing) or cuobjdump is None:
        lacking = nvcc.reason if isinstance(nvcc, Missing) else "no cuobjdump with an nvdisasm beside it"
        mend = "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, or a CUDA toolkit"
        print(f"nothing to compare: {lacking}; {mend}", file=sys.stderr)
        return 1
    kernels = collect(options.folder, cuobjdump)
    if not kernels:
        wanted = ", ".join(ARCHITECTURES)
        print(
            f"no kernel for {wanted} under {options.folder}: build with MEDNEXT_OPS_BUILD=cuda first", file=sys.stderr
        )
        return 1
    if options.write and (problems := defects(kernels)):
        for problem in problems:
            print(problem, file=sys.stderr)
        print(f"nothing written, {len(problems)} defects")
        return 1
    if options.write:
        table = {"cuda": nvcc.release, "kernels": [asdict(k) for k in kernels]}
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
        PAGE.write_text(page(kernels, nvcc.release))
        print(f"{len(kernels)} kernels written to {TABLE} and {PAGE}")
        return 0
    table = json.loads(TABLE.read_text())
    problems = compare(kernels, table, nvcc.release)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(kernels)} kernels compared with {TABLE}, {len(problems)} worse")
    if left_out := not_compared(table, nvcc.release):
        print(left_out)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
