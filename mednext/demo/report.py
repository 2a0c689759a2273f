"""What is reported: report.json for programs, a closing table for people."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

import mednext_ops
from mednext.atomic_file import replacing
from mednext.demo.brain import FRONT
from mednext.demo.comparison import Comparison
from mednext.demo.settings import CLASSES, Settings

NOTES = [
    "The scan is the symmetric MNI152 template: the right, held-out hemisphere mirrors the left one exactly.",
    f"Training saw the left hemisphere behind y = {FRONT:.0f} mm, without left-right flips. So 'held_out' has anatomy "
    "that training saw mirrored, and 'held_out_front' (before that plane) anatomy that it did not see at all.",
    "One scan, an average of 152 brains: the Dice shows that training works, not how well the network generalises.",
    "The large network from UpKern had the small one's steps before its own (steps_before_upkern); the one from "
    "scratch only its own.",
    "'seconds' counts the finished epochs of every invocation and everything else of the last one.",
]
PACKAGES = ("mednext-ops", "torch", "monai", "nilearn", "nibabel", "numpy")


def machine(settings: Settings) -> dict[str, Any]:
    """What the numbers were measured on and with."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None  # run from a source folder
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name(settings.device) if settings.device.startswith("cuda") else None,
        "backends": mednext_ops.available_backends(),
        "versions": versions,
    }


def processor() -> str:
    """The processor's name: Linux keeps it where `platform` does not look."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes the report whole or not at all; NaN, which JSON lacks, becomes null."""
    with replacing(path) as part:
        part.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(
    console: Console, networks: dict[str, dict[str, Any]], comparisons: dict[str, Comparison], backends: list[str]
) -> None:
    """The closing tables. `backends` are those that ran our operators; a comparison's sizes are the same for all."""
    table = Table(title="Dice on the held-out (right) hemisphere; in brackets its front, unseen even mirrored")
    table.add_column("network")
    table.add_column("steps", justify="right")
    for name in CLASSES[1:]:
        table.add_column(name, justify="right")
    for name, result in networks.items():
        whole, front = result["dice"]["held_out"], result["dice"]["held_out_front"]
        before = f"{result['steps_before_upkern']} + " if result["steps_before_upkern"] else ""
        table.add_row(name, f"{before}{result['steps']}", *(f"{whole[c]:.3f} ({front[c]:.3f})" for c in CLASSES[1:]))
    console.print(table)
    sizes = next(iter(comparisons.values()))
    table = Table(
        title=f"one training step: mednext ({' + '.join(backends)} backend) against plain PyTorch; time with batch "
        f"{sizes.batch} of {sizes.patch}^3 voxels, memory with {sizes.memory_batch} of {sizes.memory_patch}^3"
    )
    for column in ("network", "a step", "peak memory", "of it by steps", "saved for backward"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, comparison in comparisons.items():
        for label, side in (("mednext", comparison.ours), ("PyTorch", comparison.plain)):
            memory = (side.memory.peak_bytes, side.memory.increase_bytes, side.memory.saved_for_backward_bytes)
            columns = (f"{count / 2**20:.0f} MiB" for count in memory)
            table.add_row(f"{name} {label}", f"{side.step_seconds * 1e3:.0f} ms", *columns)
    console.print(table)
