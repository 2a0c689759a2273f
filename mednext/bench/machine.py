"""What a row was measured on and with: machine, versions, state of the sources, command, ceilings."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mednext.bench.operators import DTYPES
from mednext_ops import info

__all__ = ["Ceilings", "available_bytes", "describe_device", "measure_ceilings", "provenance"]

#: Names the sources where there is no git.
GIT_VARIABLE = "MEDNEXT_OPS_GIT"


@dataclass(frozen=True)
class Ceilings:
    """The most that this device did, in this process: of bytes, copied; of operations, in a matrix product."""

    bytes_per_second: float
    operations_per_second: float


def measure_ceilings(device: torch.device, dtype: str) -> Ceilings:
    """The best of some copies (read and written bytes) and square matrix products at that dtype."""
    size, edge = (2**30, 8192) if device.type == "cuda" else (2**27, 1024)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    copied = 2 * size / _best_seconds(lambda: target.copy_(source), device)
    a, b = (torch.randn(edge, edge, device=device).to(DTYPES[dtype]) for _ in range(2))
    return Ceilings(copied, 2 * edge**3 / _best_seconds(lambda: a @ b, device))


def _best_seconds(call: Any, device: torch.device) -> float:
    best = float("inf")
    for _ in range(8):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_device(device: torch.device) -> str:
    """One line: the GPU, or the processor and how many threads are used."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, on {_processor()}"
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    """Its name: Linux keeps it where `platform` does not look."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def provenance(device: torch.device, arguments: list[str]) -> dict[str, str]:
    """The fields of a row that say where it comes from."""
    versions = {name: version for name, version in info.collect()["versions"].items() if version}
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
    return {
        "machine": describe_device(device),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "git": _revision(),
        "command": shlex.join(["mednext", "bench", *arguments]),
    }


def _revision() -> str:
    """Of the sources that run, if they lie in a clone; else what the build noted, or the environment says."""
    here = Path(__file__).resolve().parents[2]
    if (here / ".git").exists():
        asked = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        try:
            return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"git does not answer: {error}", file=sys.stderr)
    return os.environ.get(GIT_VARIABLE) or info.collect()["build"].get("git") or "unknown"


def available_bytes() -> int | None:
    """Memory that a process may still take on the CPU; None where the system does not say."""
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None
