"""`mednext segment` says in one sentence what is wrong, exits with 2, and writes nothing."""

from __future__ import annotations

import errno
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mednext.commands import app

from .scans import mednext, phantom, save


def refused(*arguments: str | Path) -> str:
    """What the command says; it must be one sentence and no traceback."""
    result = CliRunner().invoke(app, ["segment", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    message = result.stderr.strip()
    assert message.startswith("mednext segment: ") and len(message.splitlines()) == 1, message
    return message


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save(tmp_path / "scan.nii.gz", phantom()[0])


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_plain(path: Path) -> None:
    whole = gzip.decompress(path.read_bytes())
    path.with_name("scan.nii").write_bytes(whole[: len(whole) // 2])


def with_voxels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    return lambda path: save(path, change(phantom()[0]))


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels[20, 20, 20] = value
        return voxels

    return change


def rgb(path: Path) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), kind), np.eye(4)), path)


def analyze(path: Path) -> None:
    nib.save(nib.spm2analyze.Spm2AnalyzeImage(phantom()[0], np.eye(4)), path.with_name("scan.img"))


BAD_SCANS = {
    "missing": (lambda path: path.unlink(), "there is no file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    "empty file": (lambda path: path.write_bytes(b""), "not a NIfTI file that can be read"),
    "text": (lambda path: path.write_text("not a scan"), "not a NIfTI file that can be read"),
    "truncated gzip": (truncated, "is damaged"),
    "truncated": (truncated_plain, "is damaged"),
    "not NIfTI": (analyze, "a NIfTI file (.nii, .nii.gz) was expected"),
    "all zero": (with_voxels(np.zeros_like), "is empty"),
    "no voxels": (with_voxels(lambda voxels: voxels[:0]), "is empty"),
    "constant": (with_voxels(lambda voxels: voxels * 0 + 7), "is constant"),
    "a mask": (with_voxels(lambda voxels: (voxels > 0) * np.float32(3)), "is constant"),
    "NaN": (with_voxels(put(np.nan)), "holds 1 voxels that are NaN or infinite"),
    "infinite": (with_voxels(put(np.inf)), "holds 1 voxels that are NaN or infinite"),
    "2D": (with_voxels(lambda voxels: voxels[:, :, 20]), "a 3D scan"),
    "5D": (with_voxels(lambda voxels: np.stack([voxels[..., None]] * 2, 4)), "a 3D scan"),
    "several volumes": (with_voxels(lambda voxels: np.stack([voxels] * 3, 3)), "3 volumes"),
    "colours": (rgb, "one real number a voxel"),
}


@pytest.mark.parametrize("name", BAD_SCANS)
def test_bad_scan(threshold_model: Path, scan: Path, tmp_path: Path, name: str) -> None:
    spoil, expected = BAD_SCANS[name]
    spoil(scan)
    other = {"truncated": "scan.nii", "not NIfTI": "scan.img"}.get(name)
    scan = tmp_path / other if other else scan
    message = refused(threshold_model, scan, tmp_path / "out.nii.gz")
    assert expected in message and scan.name in message
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".mednext*"))


@pytest.mark.parametrize("spacing", [(1000, 1000, 1000), (0.001, 0.001, 0.001), (1, 1, 500)])
def test_a_spacing_that_no_scan_for_this_model_has(
    threshold_model: Path, tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    """As a header has it that counts in micrometres or metres and does not say so."""
    scan = save(tmp_path / "scan.nii.gz", phantom()[0], spacing)
    message = refused(threshold_model, scan, tmp_path / "out.nii.gz")
    assert f"40x40x40 voxels of {'x'.join(map(str, spacing))} mm" in message
    assert "trained on 1x1x1 mm" in message and "xyzt_units" in message
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_a_scan_that_would_be_too_large_on_the_models_grid(threshold_model: Path, tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii.gz", phantom()[0], (50, 50, 50))
    message = refused(threshold_model, scan, tmp_path / "out.nii.gz")
    assert "it would have 2000x2000x2000" in message and "cut the scan" in message


def test_volume_out_of_range(threshold_model: Path, scan: Path, tmp_path: Path) -> None:
    assert "volumes 0 to 0" in refused(threshold_model, scan, tmp_path / "out.nii.gz", "--volume", "1")


def test_wrong_number_of_channels(threshold_model: Path, scan: Path, tmp_path: Path) -> None:
    from mednext import MedNeXt
    from mednext.model_file import ModelCard, save_model

    arguments = {"in_channels": 2, "n_channels": 2, "n_classes": 2, "exp_r": 2, "kernel_size": 3}
    card = ModelCard(arguments, ["background", "a"], [1.0] * 3, [32] * 3)
    save_model(tmp_path / "two.pt", card, MedNeXt(**arguments))
    message = refused(tmp_path / "two.pt", scan, tmp_path / "out.nii.gz")
    assert "takes 2 channels" in message and "has 1 volume(s)" in message


def test_bad_output(threshold_model: Path, scan: Path, tmp_path: Path) -> None:
    before = scan.read_bytes()
    assert "is also an input" in refused(threshold_model, scan, scan, "--overwrite")
    assert "does not exist" in refused(threshold_model, scan, tmp_path / "no" / "out.nii.gz")
    assert "must end in .nii" in refused(threshold_model, scan, tmp_path / "out.png")
    (tmp_path / "old.nii.gz").write_bytes(b"kept")
    assert "--overwrite" in refused(threshold_model, scan, tmp_path / "old.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    assert "is a folder" in refused(threshold_model, scan, tmp_path / "folder.nii.gz", "--overwrite")
    same = (threshold_model, scan, tmp_path / "o.nii.gz", "--probabilities", tmp_path / "o.nii.gz")
    assert "is also an input" in refused(*same)
    assert scan.read_bytes() == before and (tmp_path / "old.nii.gz").read_bytes() == b"kept"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
def test_unwritable_folder(threshold_model: Path, scan: Path) -> None:
    assert "cannot be written to" in refused(threshold_model, scan, "/proc/self/out.nii.gz")


def test_bad_model(scan: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.nii.gz"
    assert "there is no model file" in refused(tmp_path / "none.pt", scan, output)
    assert "is not a model" in refused(scan, scan, output)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    assert "lacks the network's constructor arguments" in refused(tmp_path / "weights.pt", scan, output)
    torch.save(torch.nn.Linear(1, 1), tmp_path / "pickled.pt")
    assert "is not a model" in refused(tmp_path / "pickled.pt", scan, output)


def test_damaged_model(threshold_model: Path, scan: Path, tmp_path: Path) -> None:
    content = torch.load(threshold_model, weights_only=True)
    del content["state_dict"]["stem.weight"]
    torch.save(content, tmp_path / "part.pt")
    assert "is a damaged model" in refused(tmp_path / "part.pt", scan, tmp_path / "out.nii.gz")
    truncated_model = tmp_path / "half.pt"
    truncated_model.write_bytes(threshold_model.read_bytes()[:2000])
    assert "is not a model" in refused(truncated_model, scan, tmp_path / "out.nii.gz")


CARD_FAULTS = {
    "no labels": ({"labels": None}, "its labels should be the names of 2 classes, and is None"),
    "too few labels": ({"labels": ["background"]}, "its labels should be the names of 2 classes"),
    "labels of another kind": ({"labels": [0, 1]}, "its labels should be"),
    "no spacing": ({"spacing": []}, "its spacing should be three numbers above 0, in mm, and is []"),
    "a spacing of 0": ({"spacing": [1.0, 0.0, 1.0]}, "its spacing should be three numbers above 0"),
    "an infinite spacing": ({"spacing": [1.0, float("inf"), 1.0]}, "its spacing should be"),
    "a spacing of words": ({"spacing": "1mm"}, "its spacing should be"),
    "a patch that does not halve": ({"patch_size": [30, 32, 32]}, "its patch_size should be three multiples of 16"),
    "a patch of two axes": ({"patch_size": [32, 32]}, "its patch_size should be"),
    "no network": ({"network": None}, "its network should be the arguments of a 3D mednext.MedNeXt"),
    "a 2D network": ({"network": {"dim": "2d"}}, "its network should be"),
    "a network of words": ({"network": {"in_channels": "one", "n_channels": 4, "n_classes": 2}}, "in_channels must be"),
    "unknown arguments": ({"network": {"n_classes": 2, "depth": 3}}, "unexpected keyword argument 'depth'"),
    "no weights": ({"state_dict": None}, "is a damaged model: "),
    "weights of another network": ({"state_dict": {}}, "is a damaged model: "),
}


@pytest.mark.parametrize("name", CARD_FAULTS)
def test_a_damaged_model_card_is_named(threshold_model: Path, scan: Path, tmp_path: Path, name: str) -> None:
    change, expected = CARD_FAULTS[name]
    torch.save(torch.load(threshold_model, weights_only=True) | change, tmp_path / "odd.pt")
    message = refused(tmp_path / "odd.pt", scan, tmp_path / "out.nii.gz")
    assert "odd.pt is a damaged model: " in message and expected in message


def test_a_model_that_lacks_a_part_names_it(threshold_model: Path, scan: Path, tmp_path: Path) -> None:
    content = torch.load(threshold_model, weights_only=True)
    for part in ("labels", "spacing", "state_dict"):
        torch.save({key: value for key, value in content.items() if key != part}, tmp_path / "part.pt")
        assert f"it lacks its {part}" in refused(tmp_path / "part.pt", scan, tmp_path / "out.nii.gz")


def test_a_model_with_a_weight_that_is_no_number(threshold_model: Path, scan: Path, tmp_path: Path) -> None:
    content = torch.load(threshold_model, weights_only=True)
    content["state_dict"]["up_1.conv1.weight"][0] = torch.nan
    torch.save(content, tmp_path / "nan.pt")
    assert "up_1.conv1.weight are NaN" in refused(tmp_path / "nan.pt", scan, tmp_path / "out.nii.gz")


def test_too_little_memory(threshold_model: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        torch.empty(2**50)

    monkeypatch.setattr("mednext.segment.predict", fill)
    message = refused(threshold_model, scan, tmp_path / "out.nii.gz")
    assert "the memory of cpu does not suffice for" in message and "--patch" in message


def test_bad_options(threshold_model: Path, scan: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.nii.gz"
    assert "multiples of 16" in refused(threshold_model, scan, output, "--patch", "40")
    assert "up to 512" in refused(threshold_model, scan, output, "--patch", "4096")
    assert "--overlap is 1" in refused(threshold_model, scan, output, "--overlap", "1")
    assert "--device" in refused(threshold_model, scan, output, "--device", "abacus")
    assert "GPUs" in refused(threshold_model, scan, output, "--device", "cuda:99")


def test_error_as_a_user_sees_it(threshold_model: Path, tmp_path: Path) -> None:
    result = mednext("segment", threshold_model, tmp_path / "none.nii", tmp_path / "out.nii")
    assert result.returncode == 2 and result.stdout.strip() == ""
    assert result.stderr.strip() == f"mednext segment: there is no file {tmp_path / 'none.nii'}."


def test_a_full_disk_is_a_sentence(
    scan: Path, threshold_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert "No space left on device" in refused(threshold_model, scan, tmp_path / "labels.nii.gz")
    assert [file.name for file in tmp_path.iterdir() if "labels" in file.name] == []


def test_numbers_beyond_float32_are_not_called_infinite(threshold_model: Path, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.linspace(0, 1e300, 4096).reshape(16, 16, 16), np.eye(4))
    nib.save(image, tmp_path / "large.nii.gz")
    message = refused(threshold_model, tmp_path / "large.nii.gz", tmp_path / "labels.nii.gz")
    assert "beyond the range of float32" in message
