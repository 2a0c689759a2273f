"""The data: the MNI152 T1 scan and its tissue maps as nilearn's package carries them, and where to train and test.

Nothing is downloaded. The template is the symmetric one: its right half is the exact mirror image of its left half. So
the held-out hemisphere has anatomy that training saw mirrored, everywhere but in front of the plane `FRONT`: training
leaves that part of its own hemisphere out, and it is scored separately.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.nifti1 import Nifti1Image

from mednext.errors import InputError

FRONT = 25.0  # mm: training stays behind this coronal plane


@dataclass(frozen=True)
class Brain:
    """A scan with its truth. Arrays are [X, Y, Z] in RAS order: x grows to the right, y to the front, z upwards."""

    scan: np.ndarray  # float32, skull-stripped: 0 outside the brain
    truth: np.ndarray  # uint8: 0 background and cerebrospinal fluid, 1 grey matter, 2 white matter
    affine: np.ndarray  # voxel -> mm

    @property
    def image(self) -> Nifti1Image:
        """The scan as a NIfTI image, in the header of which stands what space it is in."""
        image = Nifti1Image(self.scan, self.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(self.affine, code="mni")
        image.set_qform(self.affine, code="mni")
        return image

    def millimetres(self, axis: int) -> np.ndarray:
        """Where the voxels' centres lie along an axis."""
        return self.affine[axis, 3] + self.affine[axis, axis] * np.arange(self.scan.shape[axis])

    @property
    def training_box(self) -> tuple[slice, slice, slice]:
        """The voxels that training may see: the left hemisphere behind FRONT."""
        left = int((self.millimetres(0) < 0).sum())
        behind = int((self.millimetres(1) <= FRONT).sum())
        return slice(0, left), slice(0, behind), slice(0, self.scan.shape[2])

    @property
    def held_out(self) -> np.ndarray:
        """The right hemisphere, as a mask. The midline belongs to neither side."""
        return np.broadcast_to((self.millimetres(0) > 0)[:, None, None], self.scan.shape)

    @property
    def held_out_front(self) -> np.ndarray:
        """The part of the right hemisphere whose mirror image training did not see."""
        return self.held_out & (self.millimetres(1) > FRONT)[None, :, None]


def load(resolution: int = 1) -> Brain:
    """Reads the scan and its labels from nilearn's package.

    The labels are the likeliest of three: grey matter and white matter as their maps say, and neither of them
    (1 - grey - white: cerebrospinal fluid and what is outside the brain).
    """
    from nilearn import datasets

    images: list[Nifti1Image] = [
        datasets.load_mni152_template(resolution=resolution),
        datasets.load_mni152_gm_template(resolution=resolution),
        datasets.load_mni152_wm_template(resolution=resolution),
    ]
    scan, grey, white = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    affine = np.asarray(images[0].affine, dtype=float)
    if not (scan.shape == grey.shape == white.shape) or (affine[:3, :3] != np.diag(np.diag(affine)[:3])).any():
        raise InputError("this nilearn carries another MNI152 template than the demo knows; nilearn 0.14 is known.")
    scan = np.where(scan > 1e-6, scan, np.float32(0))  # resampling leaves traces outside the brain
    truth = np.stack([1 - grey - white, grey, white]).argmax(0).astype(np.uint8)
    return Brain(scan, truth, affine)
