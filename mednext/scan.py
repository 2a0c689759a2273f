"""Scans on the disk: reads a NIfTI file, says in one sentence what is wrong with it, writes one whole or not at all."""

from __future__ import annotations

import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from mednext.atomic_file import PREFIX, replacing
from mednext.errors import InputError, first_line

SUFFIXES = (".nii", ".nii.gz")
MILLIMETRES = {1: 1e3, 2: 1.0, 3: 1e-3}  # in the header's unit of length: metre, millimetre, micrometre


@dataclass(frozen=True)
class Scan:
    """A scan as it lies on the disk: channels first, in the file's own orientation."""

    channels: np.ndarray  # [channels, X, Y, Z], float32
    affine: np.ndarray  # [4, 4], voxel -> mm, whatever unit the file has
    image: nib.nifti1.Nifti1Pair  # the file's image, for the header of what is written


def read_scan(path: Path, in_channels: int = 1, volume: int | None = None, nan_to_zero: bool = False) -> Scan:
    """The scan in `path`, checked: a NIfTI whose voxels a network with `in_channels` input channels can be given.

    Raises:
        InputError: missing, corrupt or not NIfTI; not 3D, or 4D with several volumes and no choice among them; empty,
            constant or with voxels that are no finite number; without a usable affine.
    """
    image = _open(path)
    affine = _affine_in_mm(image, path)
    channels = _as_channels(_voxels(image, path), path, in_channels, volume)
    bad = ~np.isfinite(channels)
    if bad.any():
        if not nan_to_zero:
            raise InputError(
                f"{path} holds {int(bad.sum())} voxels that are NaN or infinite; pass --nan-to-zero to read them as 0."
            )
        channels = np.where(bad, np.float32(0), channels)
    for index, channel in enumerate(channels):
        inside = channel[channel != 0]
        if inside.size == 0:
            raise InputError(f"{path} is empty: every voxel of volume {index} is 0, so there is nothing to segment.")
        if inside.min() == inside.max():
            raise InputError(f"{path} is constant: volume {index} holds no value but {inside[0]:g} (and perhaps 0).")
    return Scan(channels, affine, image)


def _open(path: Path) -> nib.nifti1.Nifti1Pair:
    if not path.exists():
        raise InputError(f"there is no file {path}.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; a NIfTI file (.nii, .nii.gz) was expected.")
    try:
        image = nib.load(path)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} is not a NIfTI file that can be read ({first_line(error)}).") from error
    if not isinstance(image, nib.nifti1.Nifti1Pair):  # Nifti1Image, Nifti2Image and .hdr/.img pairs derive from it
        raise InputError(f"{path} is a {type(image).__name__}; a NIfTI file (.nii, .nii.gz) was expected.")
    return image


def _affine_in_mm(image: nib.nifti1.Nifti1Pair, path: Path) -> np.ndarray:
    """The affine in millimetres. A file without a known unit is taken to be in millimetres, as nearly all are."""
    affine = image.affine
    if affine is None or not np.isfinite(affine).all() or _is_flat(affine[:3, :3]):
        raise InputError(f"{path} has no usable affine, so its voxel size is unknown; mend its sform or qform.")
    factor = MILLIMETRES.get(int(image.header["xyzt_units"]) % 8, 1.0)
    return np.diag([factor, factor, factor, 1.0]) @ affine


def _is_flat(axes: np.ndarray) -> bool:
    """Whether the three axes, whatever their lengths, do not span space."""
    lengths = np.linalg.norm(axes, axis=0)
    return lengths.min() == 0 or abs(np.linalg.det(axes / lengths)) < 1e-6


def _voxels(image: nib.nifti1.Nifti1Pair, path: Path) -> np.ndarray:
    if image.get_data_dtype().fields is not None or np.issubdtype(image.get_data_dtype(), np.complexfloating):
        raise InputError(f"{path} holds {image.get_data_dtype()} voxels; one real number a voxel was expected.")
    if 0 in image.shape:
        raise InputError(f"{path} is empty: its shape is {image.shape}.")
    try:
        with np.errstate(over="ignore"):
            voxels = np.asarray(image.dataobj, dtype=np.float32)
        infinite = np.isinf(voxels)
        # As they are they take twice the memory: they are read so only where some became infinite.
        too_large = infinite.any() and np.isfinite(np.asarray(image.dataobj)[infinite]).any()
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} is damaged: its voxels cannot be read ({first_line(error)}).") from error
    if too_large:
        raise InputError(f"{path} holds numbers beyond the range of float32 (3.4e38); scale them first.")
    return voxels


def _as_channels(voxels: np.ndarray, path: Path, in_channels: int, volume: int | None) -> np.ndarray:
    """[X, Y, Z] or [X, Y, Z, T] to [in_channels, X, Y, Z]."""
    if voxels.ndim > 4 and set(voxels.shape[4:]) == {1}:
        voxels = voxels.reshape(voxels.shape[:4])
    if voxels.ndim not in (3, 4):
        raise InputError(f"{path} has shape {voxels.shape}; a 3D scan, or 4D with volumes last, was expected.")
    volumes = voxels[..., None] if voxels.ndim == 3 else voxels
    count = volumes.shape[3]
    if in_channels > 1:
        if volume is not None:
            raise InputError(f"--volume picks one volume, but the model takes {in_channels} channels at once; drop it.")
        if count != in_channels:
            raise InputError(f"the model takes {in_channels} channels, but {path} has {count} volume(s).")
    else:
        if volume is None and count > 1:
            raise InputError(f"{path} has {count} volumes and the model takes one; pick it with --volume INDEX.")
        if volume is not None and not 0 <= volume < count:
            raise InputError(f"--volume {volume} is out of range: {path} has volumes 0 to {count - 1}.")
        index = volume or 0
        volumes = volumes[..., index : index + 1]
    return np.ascontiguousarray(np.moveaxis(volumes, 3, 0))


def check_output(path: Path, overwrite: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Raises InputError where `write_scan` could not write `path`; writes nothing."""
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path} must end in .nii or .nii.gz.")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; make it first.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; the name of a file to write was expected.")
    if any(path.resolve() == other.resolve() for other in inputs):
        raise InputError(f"{path} is also an input or another output; choose another file to write.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; pass --overwrite to replace it.")
    try:
        descriptor, probe = tempfile.mkstemp(dir=path.parent, prefix=PREFIX)
    except OSError as error:
        raise InputError(f"the folder {path.parent} cannot be written to ({error.strerror}).") from error
    os.close(descriptor)
    os.unlink(probe)


def write_scan(path: Path, voxels: np.ndarray, like: nib.nifti1.Nifti1Pair) -> None:
    """Writes `voxels` to `path`, whole or not at all.

    Version and header (sform, qform, their codes, units) are those of `like`, the scan that the voxels belong to.
    """
    two = isinstance(like.header, nib.nifti2.Nifti2Header)  # of images no class holds both Nifti2Image and Nifti2Pair
    kind = nib.nifti2.Nifti2Image if two else nib.nifti1.Nifti1Image
    image = kind(voxels, like.affine, like.header.copy(), dtype=voxels.dtype)
    image.header["cal_min"] = image.header["cal_max"] = 0  # the display window of the scan is none for its labels
    with replacing(path) as part:
        nib.save(image, part)
