"""Registers, spills and stack of every kernel on every architecture, from what ptxas said during the build.

``python -m build_tools.ptxas_report [FOLDER]`` reads build/native by default, and fails if a kernel spills, if one has
a stack frame that :data:`ALLOWED_FRAMES` does not explain (an array that did not fit into registers), or if there is no
report.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ALLOWED_FRAMES", "AllowedFrame", "Kernel", "allowed_frame", "demangle", "main", "read_report"]


@dataclass(frozen=True)
class Kernel:
    """What one kernel takes on one architecture."""

    name: str  # as the compiler mangled it
    architecture: str
    registers: int
    spill_stores: int  # bytes a thread
    spill_loads: int
    stack: int

    @property
    def spills(self) -> bool:
        return self.spill_stores > 0 or self.spill_loads > 0

    @property
    def frame(self) -> bool:
        """It has a stack frame, without a spill, that nothing explains."""
        return self.stack > 0 and not self.spills and allowed_frame(self.name, self.architecture, self.stack) is None


@dataclass(frozen=True)
class AllowedFrame:
    """A stack frame that is known, no array, and costs nothing that matters."""

    kernels: tuple[str, ...]  # their names, without template arguments
    architecture: str
    stack: int  # bytes a thread
    reason: str


ALLOWED_FRAMES = (
    AllowedFrame(
        ("planar_convolution", "boxed_weight_gradient", "banded_weight_gradient"),
        "sm_120",
        8,
        "ptxas's own: before each box that the copy engine brings a call, jumped over unless the address is another "
        "block's (__cuda_syscall_cp_async_bulk_tensor_5d_tile_unicast), and a store for it that nothing loads",
    ),
)


def allowed_frame(name: str, architecture: str, stack: int) -> AllowedFrame | None:
    """The entry of :data:`ALLOWED_FRAMES` that explains a kernel's stack frame; ``name`` mangled or not."""
    for allowed in ALLOWED_FRAMES:
        named = any(re.search(rf"(?<![a-z_]){kernel}(?![a-z_])", name) for kernel in allowed.kernels)
        if named and (architecture, stack) == (allowed.architecture, allowed.stack):
            return allowed
    return None


_ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<architecture>\w+)'")
_SPILLS = re.compile(r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes")
_REGISTERS = re.compile(r"Used (?P<registers>\d+) registers")


def read_report(text: str) -> list[Kernel]:
    """The kernels of one ``ptxas -v`` output, in its order."""
    kernels: list[Kernel] = []
    entry: re.Match[str] | None = None
    worst = (0, 0, 0)
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            entry, worst = match, (0, 0, 0)
        elif match := _SPILLS.search(line):
            # A device function that was not inlined has a line of its own, before the kernel's registers.
            stores, loads, stack = (int(match[field]) for field in ("stores", "loads", "stack"))
            worst = max(worst[0], stores), max(worst[1], loads), max(worst[2], stack)
        elif (match := _REGISTERS.search(line)) and entry is not None:
            kernels.append(Kernel(entry["name"], entry["architecture"], int(match["registers"]), *worst))
            entry = None
    return kernels


def demangle(names: list[str]) -> list[str]:
    """The names without namespace and parameters, as a person reads them; as they are where there is no c++filt.

    ``strided_convolution<__half, 7, StridedFill 1>``: an argument of an enumeration is its type and its value.
    """
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return [_short(name) for name in done.stdout.splitlines()]


def _short(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|mednext_ops::cuda::", "", name).removeprefix("void ")
    name = name[: _parameters(name)]
    return re.sub(r"\((?:[a-z]\w*::)*([\w:]+)\)(-?\d+)", r"\1 \2", name)


def _parameters(name: str) -> int:
    """Where the parentheses of a function's parameters open: those that close at the end of its name."""
    depth = 0
    for place in range(len(name) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(name[place], 0)
        if depth == 0:
            return place if name[place] == "(" else len(name)
    return len(name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build_tools.ptxas_report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/native"), help="where the build is")
    folder: Path = parser.parse_args(arguments).folder
    kernels = [kernel for file in sorted(folder.rglob("*.ptxas")) for kernel in read_report(file.read_text())]
    if not kernels:
        print(f"no ptxas report under {folder}: build with MEDNEXT_OPS_BUILD=cuda first", file=sys.stderr)
        return 1
    print("registers  spill stores  spill loads  stack  architecture  kernel")
    for kernel, name in zip(kernels, demangle([k.name for k in kernels]), strict=True):
        problem = "   <- SPILLS" if kernel.spills else "   <- STACK FRAME" if kernel.frame else ""
        print(
            f"{kernel.registers:9}  {kernel.spill_stores:12}  {kernel.spill_loads:11}  {kernel.stack:5}  "
            f"{kernel.architecture:12}  {name}{problem}"
        )
    explained = Counter(allowed_frame(k.name, k.architecture, k.stack) for k in kernels if not k.spills)
    for allowed in ALLOWED_FRAMES:
        if count := explained[allowed]:
            print(f"{count} on {allowed.architecture} have a stack frame of {allowed.stack} bytes: {allowed.reason}")
    spilling, framed = sum(kernel.spills for kernel in kernels), sum(kernel.frame for kernel in kernels)
    print(
        f"{len(kernels)} kernels, {spilling} with spills, {framed} with a stack frame that nothing explains, "
        f"at most {max(k.registers for k in kernels)} registers"
    )
    return int(spilling + framed > 0)


if __name__ == "__main__":
    sys.exit(main())
