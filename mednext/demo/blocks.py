"""Cuts the scan into a small data set of NIfTI files, in the folders that nnU-Net and MONAI's bundles know.

`imagesTr` and `labelsTr` are blocks of the left hemisphere, `imagesTs` and `labelsTs` of the right one.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
from nibabel import save
from nibabel.nifti1 import Nifti1Image

from mednext.demo import brain
from mednext.demo.settings import CLASSES
from mednext.errors import InputError

__all__ = ["cut"]


def cut(
    folder: str | Path,
    extent: int = 40,
    training: int = 5,
    testing: int = 2,
    resolution: int = 1,
    step: int | None = None,
) -> dict[str, float]:
    """Writes the data set.

    Args:
        folder: a new or an empty one.
        extent: voxels of a block an axis.
        training: blocks to train on.
        testing: blocks to be judged on.
        resolution: mm a voxel.
        step: voxels from one block to the next; with fewer than ``extent``, the default, blocks overlap.

    Returns:
        How frequent each class is in the test blocks.

    Raises:
        InputError: the folder is not empty, or the scan has fewer blocks.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"the folder {folder} is not empty.")
    whole = brain.load(resolution)
    left, behind, height = whole.training_box
    right = slice(whole.scan.shape[0] - left.stop, whole.scan.shape[0])
    parts = {
        "Tr": _fullest(whole.truth, (left, behind, height), extent, step or extent)[:training],
        "Ts": _fullest(whole.truth, (right, behind, height), extent, step or extent)[:testing],
    }
    if len(parts["Tr"]) < training or len(parts["Ts"]) < testing:
        raise InputError(f"a hemisphere at {resolution} mm has {len(parts['Tr'])} blocks of {extent} voxels or fewer.")
    counts = np.zeros(len(CLASSES))
    for part, blocks in parts.items():
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True)
        for number, block in enumerate(blocks):
            case = f"brain_{part.lower()}{number:02}"
            affine = whole.affine.copy()
            affine[:3, 3] += np.diag(whole.affine)[:3] * [side.start for side in block]
            save(Nifti1Image(whole.scan[block], affine), folder / f"images{part}" / f"{case}_0000.nii.gz")
            save(Nifti1Image(whole.truth[block], affine), folder / f"labels{part}" / f"{case}.nii.gz")
            if part == "Ts":
                counts += np.bincount(whole.truth[block].ravel(), minlength=len(CLASSES))
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {name.replace(" ", "_"): label for label, name in enumerate(CLASSES)},
        "numTraining": training,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
    return {name: float(count / counts.sum()) for name, count in zip(CLASSES, counts, strict=True)}


def _fullest(truth: np.ndarray, box: tuple[slice, ...], extent: int, step: int) -> list[tuple[slice, ...]]:
    """Blocks of ``extent`` voxels an axis in ``box``, each ``step`` from the next, those with the most tissue first."""
    starts = [range(side.start, side.stop - extent + 1, step) for side in box]
    blocks = [tuple(slice(start, start + extent) for start in corner) for corner in itertools.product(*starts)]
    return sorted(blocks, key=lambda block: -np.count_nonzero(truth[block]))
