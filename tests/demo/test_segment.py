"""`mednext segment` gives the right labels on the scan's own grid, whatever the grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations
from typer.testing import CliRunner

from mednext.commands import app

from .scans import mednext, phantom, save


def segment(*arguments: str | Path) -> None:
    result = CliRunner().invoke(app, ["segment", *map(str, arguments)])
    assert result.exit_code == 0, result.output


def labels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def dice(ours: np.ndarray, theirs: np.ndarray) -> float:
    return 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())


def test_size_not_divisible_by_sixteen(threshold_model: Path, tmp_path: Path) -> None:
    voxels, ball = phantom()
    save(tmp_path / "scan.nii.gz", voxels[:37, 2:, :])
    result = mednext("segment", threshold_model, tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert (labels(tmp_path / "out.nii.gz") == ball[:37, 2:, :]).all()
    assert f"ball {ball[:37, 2:, :].sum()}" in result.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.nii.gz", "scan.nii.gz"]


@pytest.mark.parametrize("spacing", [(1, 1, 4), (0.5, 0.5, 2), (2, 1.5, 0.8), (0.4, 0.4, 0.4)])
def test_other_spacings_are_resampled_and_back(
    threshold_model: Path, tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    voxels, ball = phantom(spacing)
    save(tmp_path / "scan.nii.gz", voxels, spacing)
    segment(threshold_model, tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz")
    ours = labels(tmp_path / "out.nii.gz")
    assert ours.shape == ball.shape
    assert dice(ours, ball) > 0.93  # partial volume at the ball's surface


@pytest.mark.parametrize("axes", ["LPS", "SAR", "PIR", "ARI"])
def test_orientation_does_not_matter(random_model: Path, tmp_path: Path, axes: str) -> None:
    voxels, _ = phantom()
    scan = nib.load(save(tmp_path / "ras.nii.gz", voxels))
    turn = orientations.ornt_transform(orientations.io_orientation(scan.affine), orientations.axcodes2ornt(axes))
    nib.save(scan.as_reoriented(turn), tmp_path / "turned.nii.gz")
    segment(random_model, tmp_path / "ras.nii.gz", tmp_path / "a.nii.gz")
    segment(random_model, tmp_path / "turned.nii.gz", tmp_path / "b.nii.gz")
    expected = nib.load(tmp_path / "a.nii.gz").as_reoriented(turn)
    assert len(np.unique(labels(tmp_path / "a.nii.gz"))) > 1
    assert (labels(tmp_path / "b.nii.gz") == np.asarray(expected.dataobj)).all()
    assert np.allclose(nib.load(tmp_path / "b.nii.gz").affine, nib.load(tmp_path / "turned.nii.gz").affine)


def test_sform_qform_and_units_are_kept(threshold_model: Path, tmp_path: Path) -> None:
    voxels, _ = phantom((1.2, 1, 1))
    image = nib.load(save(tmp_path / "plain.nii", voxels, (1.2, 1, 1)))
    oblique = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([1.2, 1, 1]), (3, -7, 11))
    image.set_sform(oblique, code=4)
    image.set_qform(oblique, code=1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "scan.nii")
    segment(threshold_model, tmp_path / "scan.nii", tmp_path / "out.nii.gz")
    ours, scan = nib.load(tmp_path / "out.nii.gz"), nib.load(tmp_path / "scan.nii")
    for form in ("get_sform", "get_qform"):
        (a, a_code), (b, b_code) = getattr(ours, form)(coded=True), getattr(scan, form)(coded=True)
        assert np.array_equal(a, b) and a_code == b_code
    assert ours.shape == scan.shape and ours.get_data_dtype() == np.uint8
    assert ours.header.get_xyzt_units() == ("mm", "sec")
    assert ours.header.get_slope_inter() in ((None, None), (1.0, 0.0))


@pytest.mark.parametrize(("unit", "per_mm"), [("mm", 1), ("micron", 1000), ("meter", 0.001), ("unknown", 1)])
def test_the_headers_unit_of_length_counts(threshold_model: Path, tmp_path: Path, unit: str, per_mm: float) -> None:
    voxels, ball = phantom()
    affine = np.diag([per_mm, per_mm, per_mm, 1.0])
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "scan.nii.gz")
    segment(threshold_model, tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz")
    ours = nib.load(tmp_path / "out.nii.gz")
    assert (np.asarray(ours.dataobj) == ball).all()
    assert np.allclose(ours.affine, affine) and ours.header.get_xyzt_units() == (unit, "sec")


@pytest.mark.parametrize("suffix", [".nii.gz", ".img"])
@pytest.mark.parametrize(
    ("kind", "pair"), [(nib.Nifti1Image, nib.Nifti1Pair), (nib.Nifti2Image, nib.Nifti2Pair)], ids=["1", "2"]
)
def test_the_version_of_the_format_is_kept(
    threshold_model: Path, tmp_path: Path, kind: type, pair: type, suffix: str
) -> None:
    voxels, ball = phantom()
    nib.save((pair if suffix == ".img" else kind)(voxels, np.eye(4)), tmp_path / f"scan{suffix}")
    segment(threshold_model, tmp_path / f"scan{suffix}", tmp_path / "out.nii.gz")
    ours = nib.load(tmp_path / "out.nii.gz")
    assert type(ours) is kind and ours.header["magic"].item() in (b"n+1", b"n+2")
    assert (np.asarray(ours.dataobj) == ball).all()


def test_one_volume_in_4d_and_a_chosen_one(threshold_model: Path, tmp_path: Path) -> None:
    voxels, ball = phantom()
    save(tmp_path / "one.nii.gz", voxels[..., None])
    segment(threshold_model, tmp_path / "one.nii.gz", tmp_path / "a.nii.gz")
    save(tmp_path / "three.nii.gz", np.stack([voxels[::-1], voxels, voxels + 5], axis=3))
    segment(threshold_model, tmp_path / "three.nii.gz", tmp_path / "b.nii.gz", "--volume", "1")
    for name in ("a.nii.gz", "b.nii.gz"):
        assert nib.load(tmp_path / name).shape == ball.shape and (labels(tmp_path / name) == ball).all()


def test_a_single_slice(threshold_model: Path, tmp_path: Path) -> None:
    voxels, ball = phantom()
    save(tmp_path / "slice.nii.gz", voxels[:, :, 20:21])
    segment(threshold_model, tmp_path / "slice.nii.gz", tmp_path / "out.nii.gz")
    assert (labels(tmp_path / "out.nii.gz") == ball[:, :, 20:21]).all()


def test_integer_scan_with_scaling(threshold_model: Path, tmp_path: Path) -> None:
    voxels, ball = phantom()
    image = nib.Nifti1Image((voxels * 10).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.25, 0)
    nib.save(image, tmp_path / "scan.nii.gz")
    segment(threshold_model, tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz")
    assert (labels(tmp_path / "out.nii.gz") == ball).all()


def test_probabilities_sum_to_one_and_agree_with_the_labels(random_model: Path, tmp_path: Path) -> None:
    voxels, _ = phantom((1, 1, 2))
    save(tmp_path / "scan.nii.gz", voxels, (1, 1, 2))
    segment(random_model, tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz", "--probabilities", tmp_path / "p.nii.gz")
    probabilities = labels(tmp_path / "p.nii.gz")
    assert probabilities.shape == (*voxels.shape, 3)
    assert np.allclose(probabilities.sum(3), 1, atol=1e-5)
    assert (probabilities.argmax(3) == labels(tmp_path / "out.nii.gz")).all()


def test_the_background_around_a_scan_does_not_matter(random_model: Path, tmp_path: Path) -> None:
    voxels, _ = phantom()
    save(tmp_path / "scan.nii.gz", voxels)
    save(tmp_path / "padded.nii.gz", np.pad(voxels, ((3, 20), (9, 0), (0, 31))))
    segment(random_model, tmp_path / "scan.nii.gz", tmp_path / "a.nii.gz")
    segment(random_model, tmp_path / "padded.nii.gz", tmp_path / "b.nii.gz")
    assert (labels(tmp_path / "b.nii.gz")[3:43, 9:, :40] == labels(tmp_path / "a.nii.gz")).all()


def test_nan_can_be_read_as_zero(threshold_model: Path, tmp_path: Path) -> None:
    voxels, ball = phantom()
    save(tmp_path / "scan.nii.gz", np.where(voxels == 0, np.nan, voxels))
    segment(threshold_model, tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz", "--nan-to-zero")
    assert (labels(tmp_path / "out.nii.gz") == ball).all()


def test_overwrite_replaces(threshold_model: Path, tmp_path: Path) -> None:
    voxels, ball = phantom()
    save(tmp_path / "scan.nii.gz", voxels)
    save(tmp_path / "out.nii.gz", voxels)
    segment(threshold_model, tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz", "--overwrite", "--patch", "16")
    assert (labels(tmp_path / "out.nii.gz") == ball).all()
