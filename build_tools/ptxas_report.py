"""Registers and spills of every kernel on every architecture, from what ptxas said during the build.

``python -m build_tools.ptxas_report [FOLDER]`` reads build/native by default, and fails if a kernel spills or if there
is no report.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Kernel", "demangle", "main", "read_report"]


@dataclass(frozen=True)
class Kernel:
    """What one kernel takes on one architecture."""

    name: str
    architecture: str
    registers: int
    spill_stores: int  # bytes a thread
    spill_loads: int
    stack: int

    @property
    def spills(self) -> bool:
        return self.spill_stores > 0 or self.spill_loads > 0


_ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<architecture>\w+)'")
_SPILLS = re.compile(r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes")
_REGISTERS = re.compile(r"Used (?P<registers>\d+) registers")


def read_report(text: str) -> list[Kernel]:
    """The kernels of one ``ptxas -v`` output, in its order."""
    kernels: list[Kernel] = []
    entry: re.Match[str] | None = None
    spills: re.Match[str] | None = None
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            entry, spills = match, None
        elif match := _SPILLS.search(line):
            # A device function that was not inlined has a line of its own, before the kernel's registers.
            worse = spills is None or int(match["stores"]) + int(match["loads"]) > 0
            spills = match if worse else spills
        elif (match := _REGISTERS.search(line)) and entry is not None and spills is not None:
            kernels.append(
                Kernel(
                    entry["name"],
                    entry["architecture"],
                    int(match["registers"]),
                    int(spills["stores"]),
                    int(spills["loads"]),
                    int(spills["stack"]),
                )
            )
            entry = None
    return kernels


def demangle(names: list[str]) -> list[str]:
    """The names without namespace and parameters, as a person reads them; as they are where there is no c++filt."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    short = (re.sub(r"\(anonymous namespace\)::|mednext_ops::cuda::", "", name) for name in done.stdout.splitlines())
    return [re.sub(r"^void |\(.*\)$", "", name) for name in short]


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
        print(
            f"{kernel.registers:9}  {kernel.spill_stores:12}  {kernel.spill_loads:11}  {kernel.stack:5}  "
            f"{kernel.architecture:12}  {name}{'   <- SPILLS' if kernel.spills else ''}"
        )
    spilling = sum(kernel.spills for kernel in kernels)
    print(f"{len(kernels)} kernels, {spilling} with spills, at most {max(k.registers for k in kernels)} registers")
    return int(spilling > 0)


if __name__ == "__main__":
    sys.exit(main())
