"""`mednext demo` writes what it promises, loses no finished epoch, and ends with the same numbers after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mednext.demo import brain as data

from .scans import environment, mednext, tiny

NETWORKS = ("k3", "k5-upkern", "k5-scratch")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that ran without interruption: by the first worker that needs it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished-demo"
    ended = shared / "ended"
    try:
        shared.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 300
        while not ended.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    else:
        result = mednext(*tiny(shared / "run"))
        ended.write_text(result.stdout + result.stderr)
    said = ended.read_text()
    assert all(word in said for word in (*NETWORKS, "grey matter", "saved for backward", "report.json")), said
    return shared / "run"


def report(output: Path) -> dict:
    return json.loads((output / "report.json").read_text())


def test_the_report_holds_every_number(finished: Path) -> None:
    content = report(finished)
    assert set(content["networks"]) == set(NETWORKS)
    for result in content["networks"].values():
        assert result["steps"] == 6
        assert set(result["dice"]) == {"held_out", "held_out_front"}
    assert [content["networks"][name]["steps_before_upkern"] for name in NETWORKS] == [0, 6, 0]
    for comparison in content["comparison"].values():
        assert comparison["logits_difference"] < 1e-4
        ours, plain = comparison["ours"]["memory"], comparison["plain"]["memory"]
        assert 0 < ours["saved_for_backward_bytes"] < plain["saved_for_backward_bytes"]
        assert all(0 < side["increase_bytes"] < side["peak_bytes"] for side in (ours, plain))
        assert (comparison["batch"], comparison["patch"]) == (2, 16)
        assert (comparison["memory_batch"], comparison["memory_patch"]) == (1, 48)
    assert content["settings"]["seed"] == 0 and content["machine"]["versions"]["torch"] == torch.__version__
    assert content["backends_used"]
    assert all(len(curve["loss"]) == 6 and len(curve["held_out_dice"]) == 2 for curve in content["curves"].values())


def test_the_tables_say_what_was_measured(finished: Path) -> None:
    said = (finished.parent / "ended").read_text()
    assert "time with batch 2 of 16^3 voxels, memory with 1 of 48^3" in " ".join(said.split())
    assert "6 + 6" in said


def test_a_log_has_a_line_for_each_epoch(finished: Path) -> None:
    lines = (finished.parent / "ended").read_text().splitlines()
    for name in NETWORKS:
        ended = [line for line in lines if line.startswith(f"{name} epoch ")]
        assert [line[: line.index(",")] for line in ended] == [f"{name} epoch {epoch} of 2" for epoch in (1, 2)]
        assert all("loss " in line and "grey matter 0." in line for line in ended)


def test_the_segmentation_lies_on_the_scan(finished: Path) -> None:
    image, brain = nib.load(finished / "segmentation.nii.gz"), data.load(4)
    assert np.array_equal(image.affine, brain.affine) and image.shape == brain.scan.shape
    assert np.array_equal(image.get_qform(), brain.affine) and image.header.get_xyzt_units()[0] == "mm"
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 4  # MNI152 space
    assert np.issubdtype(image.get_data_dtype(), np.integer) and set(np.unique(image.dataobj)) <= {0, 1, 2}


@pytest.mark.parametrize("name", ["slices.png", "curves.png"])
def test_the_pictures_show_something(finished: Path, name: str) -> None:
    import matplotlib.image

    picture = matplotlib.image.imread(finished / name)
    assert min(picture.shape[:2]) > 500 and picture[..., :3].std() > 0.05


def test_segment_takes_the_trained_network(finished: Path, tmp_path: Path) -> None:
    brain = data.load(4)
    nib.save(nib.Nifti1Image(brain.scan, brain.affine), tmp_path / "t1.nii.gz")
    result = mednext(
        "segment", finished / "k5-upkern.pt", tmp_path / "t1.nii.gz", tmp_path / "out.nii.gz", "--overlap", "0.25"
    )
    assert result.returncode == 0, result.stderr
    ours, demos = (
        np.asarray(nib.load(file).dataobj) for file in (tmp_path / "out.nii.gz", finished / "segmentation.nii.gz")
    )
    assert (ours == demos).mean() > 0.9999  # ties may fall otherwise


def heed_ctrl_c() -> None:
    """A shell lets what it runs in the background ignore SIGINT, and what that starts inherits it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(arguments: list[str], when: Path, with_signal: signal.Signals) -> tuple[int, str]:
    """Starts the command, sends the signal once the file `when` is there; returns its exit code and stderr."""
    command = [sys.executable, "-m", "mednext.cli", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=tempfile.gettempdir(),
        preexec_fn=heed_ctrl_c,
    )
    deadline = time.monotonic() + 200
    while not when.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    process.send_signal(with_signal)
    return process.wait(), process.communicate()[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_run_resumes_to_the_same_end(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    code, said = interrupt(tiny(output), output / "k3.state.pt", signal.SIGINT)
    assert code == 130 and f"mednext demo --resume --output {output}" in said.replace("\n", "")
    resume = ["demo", "--output", str(output), "--resume"]
    code, _ = interrupt(resume, output / "k5-upkern.state.pt", signal.SIGKILL)
    assert code == -signal.SIGKILL and not (output / "report.json").exists()
    kept = torch.load(output / "k5-upkern.state.pt", weights_only=True)
    assert 1 <= kept["epochs_done"] <= 2
    result = mednext(*resume)
    assert result.returncode == 0, result.stderr
    for name in NETWORKS:
        ours, theirs = (torch.load(run / f"{name}.pt", weights_only=True)["state_dict"] for run in (output, finished))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        for curve in ("loss", "dice", "held_out_dice"):
            assert report(output)["curves"][name][curve] == report(finished)["curves"][name][curve]
        assert report(output)["networks"][name]["dice"] == report(finished)["networks"][name]["dice"]
    trained = sum(sum(report(output)["curves"][name]["epoch_seconds"]) for name in NETWORKS)
    assert report(output)["seconds"] > trained  # what the earlier invocations took counts
    assert (np.asarray(nib.load(output / "segmentation.nii.gz").dataobj)
            == np.asarray(nib.load(finished / "segmentation.nii.gz").dataobj)).all()  # fmt: skip
