"""The way of a scan onto the network's grid, and of a prediction back onto the scan's own.

The network sees every scan in RAS orientation, at the spacing it was trained on, cut to the box that is not zero and
scaled so that the non-zero voxels have mean 0 and standard deviation 1. Oblique scans are taken along their closest
axes and not rotated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from nibabel import orientations

from mednext.errors import InputError
from mednext.scan import Scan

MOST_RATIO = 100.0  # of the scan's spacing and the network's, either way: beyond it the header's unit is wrong
MOST_VOXELS = 2**30  # of a resampled scan, 1024 an axis: 4 GiB a channel and a class
RAS = np.array([[0, 1], [1, 1], [2, 1]], dtype=float)


@dataclass(frozen=True)
class Grid:
    """What `prepare` did to one scan, so that it can be undone."""

    to_ras: np.ndarray  # nibabel's orientation of the file's axes
    ras_shape: tuple[int, ...]  # the scan's extent in RAS order, at its own spacing
    shape: tuple[int, ...]  # the same at the network's spacing
    box: tuple[slice, ...]  # the part of it that holds non-zero voxels

    def restore(self, probabilities: torch.Tensor) -> np.ndarray:
        """[classes, *box] on the network's grid to [classes, X, Y, Z] on the scan's. Outside the box is class 0."""
        whole = probabilities.new_zeros((probabilities.shape[0], *self.shape))
        whole[0] = 1
        inside = (slice(None), *self.box)
        whole[inside] = probabilities
        resampled = resample(whole, self.ras_shape).cpu().numpy()
        back = orientations.ornt_transform(RAS, self.to_ras)
        return np.stack([orientations.apply_orientation(channel, back) for channel in resampled])


def prepare(scan: Scan, spacing: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor, Grid]:
    """The scan as the network is to see it.

    Returns:
        The input [channels, *box], the value that background has in it [channels], and the way back.

    Raises:
        InputError: the scan's spacing has nothing to do with the network's, or it would have too many voxels there.
    """
    to_ras = orientations.io_orientation(scan.affine)
    ras = np.stack([orientations.apply_orientation(channel, to_ras) for channel in scan.channels])
    own_spacing = np.empty(3)
    own_spacing[to_ras[:, 0].astype(int)] = np.linalg.norm(scan.affine[:3, :3], axis=0)
    shape = tuple(max(1, round(n * own / to)) for n, own, to in zip(ras.shape[1:], own_spacing, spacing, strict=True))
    facts = f"the scan has {_by(ras.shape[1:])} voxels of {_by(own_spacing)} mm"
    if any(not 1 / MOST_RATIO <= own / to <= MOST_RATIO for own, to in zip(own_spacing, spacing, strict=True)):
        raise InputError(
            f"{facts}, but the model was trained on {_by(spacing)} mm; up to {MOST_RATIO:g} times as much or as little "
            "was expected: mend the spacing or its unit (xyzt_units) in the scan's header."
        )
    if math.prod(shape) > MOST_VOXELS:
        raise InputError(
            f"{facts}; on the {_by(spacing)} mm that the model was trained on it would have {_by(shape)}, over "
            f"{MOST_VOXELS:.0e}: cut the scan to what is to be segmented, or mend the spacing in its header."
        )
    volume = resample(torch.from_numpy(np.ascontiguousarray(ras)), shape)
    box = bounding_box(volume.ne(0).any(0))
    volume, background = normalise(volume)
    inside = (slice(None), *box)
    return volume[inside], background, Grid(to_ras, ras.shape[1:], shape, box)


def _by(numbers: Sequence[float] | np.ndarray) -> str:
    return "x".join(f"{number:g}" for number in numbers)


def resample(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """[channels, X, Y, Z] to [channels, *shape], linear; axes that shrink by 2 or more are averaged."""
    shape = tuple(shape)
    if tuple(volume.shape[1:]) == shape:
        return volume
    batch = volume[None]
    averaged = [to if own >= 2 * to else own for own, to in zip(volume.shape[1:], shape, strict=True)]
    batch = F.adaptive_avg_pool3d(batch, (averaged[0], averaged[1], averaged[2]))
    return F.interpolate(batch, size=shape, mode="trilinear", align_corners=False)[0]


def normalise(volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per channel: the non-zero voxels to mean 0, standard deviation 1. Also what 0 has become, [channels]."""
    statistics = [torch.std_mean(channel[channel != 0].double(), correction=0) for channel in volume]
    std = torch.stack([s for s, _ in statistics]).clamp_min(1e-12).float()
    mean = torch.stack([m for _, m in statistics]).float()
    return (volume - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1), -mean / std


def bounding_box(mask: torch.Tensor) -> tuple[slice, ...]:
    """The smallest box that holds every True voxel of `mask`; the whole of it where there is none."""
    if not mask.any():
        return tuple(slice(0, n) for n in mask.shape)
    slices = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = mask.any(others).nonzero().flatten()
        slices.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(slices)
