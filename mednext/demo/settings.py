"""What can be chosen in the demo, the defaults of a CPU and of a GPU, and what a trained network's arguments are."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mednext.atomic_file import replacing
from mednext.errors import InputError

CLASSES = ("background", "grey matter", "white matter")
WIDEST_WINDOW = 240  # the scan has 197x233x189 voxels at its finest


@dataclass(frozen=True)
class Settings:
    """Everything that decides the demo's numbers; kept in the run's folder so that it can be resumed."""

    device: str = "cpu"
    seed: int = 0
    resolution: int = 1  # mm a voxel
    kernel_size: int = 3
    large_kernel_size: int = 5
    channels: int = 8
    expansion: int = 2
    blocks: int = 1
    patch: int = 32
    batch: int = 2
    epochs: int = 8  # of the small kernel
    large_epochs: int = 5  # of the large one, from UpKern and from scratch alike
    steps: int = 20  # an epoch
    learning_rate: float = 3e-3  # for a few hundred steps; long trainings take 1e-3
    window: int = 64  # of the sliding window
    overlap: float = 0.25
    timed_steps: int = 4

    def network(self, kernel_size: int) -> dict[str, Any]:
        """The arguments of mednext.MedNeXt."""
        return {
            "in_channels": 1,
            "n_channels": self.channels,
            "n_classes": len(CLASSES),
            "exp_r": self.expansion,
            "kernel_size": kernel_size,
            "deep_supervision": True,
            "do_res": True,
            "do_res_up_down": True,
            "block_counts": [self.blocks] * 9,
        }


GPU = Settings(
    device="cuda",
    channels=32,
    blocks=2,
    learning_rate=1e-3,
    patch=96,
    epochs=20,
    large_epochs=10,
    steps=50,
    window=128,
    overlap=0.5,
    timed_steps=20,
)


def choose(device: str, chosen: dict[str, Any]) -> Settings:
    """The defaults of `device` ("cpu" or "cuda...") with what the user has chosen in their place."""
    settings = replace(GPU if device.startswith("cuda") else Settings(), **{"device": device, **chosen})
    for name in ("epochs", "large_epochs", "steps", "batch", "channels", "blocks", "expansion", "timed_steps"):
        if getattr(settings, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; 1 or more was expected.")
    for name in ("patch", "window"):
        if getattr(settings, name) < 16 or getattr(settings, name) % 16:
            raise InputError(f"--{name} is {getattr(settings, name)}; a multiple of 16 voxels was expected.")
    for name in ("kernel_size", "large_kernel_size"):
        if getattr(settings, name) < 1 or getattr(settings, name) % 2 == 0:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; an odd number was expected.")
    if settings.window > WIDEST_WINDOW:
        raise InputError(
            f"--window is {settings.window}; at most {WIDEST_WINDOW} voxels were expected, which hold the whole scan."
        )
    if settings.large_kernel_size <= settings.kernel_size:
        raise InputError(
            f"--large-kernel-size {settings.large_kernel_size} must exceed --kernel-size {settings.kernel_size}."
        )
    if not 0 < settings.learning_rate < math.inf:
        raise InputError(f"--learning-rate is {settings.learning_rate:g}; a finite number above 0 was expected.")
    if not settings.resolution >= 1:
        raise InputError(f"--resolution is {settings.resolution:g} mm; the scan has 1 mm, so 1 or more was expected.")
    return settings


def write(settings: Settings, path: Path) -> None:
    """Keeps the settings; a reader sees them whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(asdict(settings), indent=2) + "\n")


def are_ours(path: Path) -> bool:
    """Whether `write` wrote the file."""
    try:
        read(path)
    except InputError:
        return False
    return True


def read(path: Path) -> Settings:
    """The settings that `write` kept."""
    try:
        kept = json.loads(path.read_text())
        return Settings(**{field.name: kept[field.name] for field in fields(Settings)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read, so this run cannot go on; start anew with --overwrite.") from error
