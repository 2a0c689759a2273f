"""Scans and models small enough for a test, and the command line as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

TINY = {
    "--device": "cpu", "--resolution": 4, "--channels": 4, "--patch": 16, "--window": 32, "--epochs": 2,
    "--large-epochs": 2, "--steps": 3, "--timed-steps": 1,
}  # fmt: skip


def tiny(output: Path, *more: str) -> list[str]:
    """The arguments of a demo that takes seconds."""
    return ["demo", "--output", str(output), *(str(word) for pair in TINY.items() for word in pair), *more]


def environment() -> dict[str, str]:
    """One thread: the tests beside this one need the other cores, and the numbers must repeat."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def mednext(*arguments: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, from a folder that does not hold the source."""
    command = [sys.executable, "-m", "mednext.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment(), cwd=tempfile.gettempdir()
    )


def phantom(spacing: tuple[float, float, float] = (1, 1, 1), extent: float = 40.0) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid of intensity 100 with a ball of 200 off its centre, and the ball as truth."""
    axes = [np.arange(step / 2, extent, step) for step in spacing]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = ((x - 20) / 18) ** 2 + ((y - 20) / 16) ** 2 + ((z - 20) / 17) ** 2 < 1
    ball = (x - 24) ** 2 + (y - 18) ** 2 + (z - 21) ** 2 < 9**2
    return (inside * 100.0 + ball * 100.0).astype(np.float32), ball.astype(np.uint8)


def save(path: Path, voxels: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> Path:
    """A NIfTI with the spacing, its origin off zero."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-20, 10, 5)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path
