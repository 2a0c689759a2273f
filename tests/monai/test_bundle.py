"""The bundle trains, evaluates and segments with MONAI's own commands, on blocks of a real scan."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

pytest.importorskip("ignite", reason="MONAI's engines need the packages of mednext-ops[monai]")
pytest.importorskip("fire", reason="MONAI's command needs the packages of mednext-ops[monai]")

CONFIGS = Path(__file__).parents[2] / "bundles" / "mednext" / "configs"
SMALL = {"patch_size": [32, 32, 32], "blocks": 1}


def overrides(root):
    return {"bundle_root": str(root), "meta_file": str(CONFIGS / "metadata.json"), **SMALL}


@pytest.mark.slow
def test_the_bundle_trains_evaluates_and_segments(tmp_path):
    import monai.bundle

    from mednext.demo.blocks import cut

    frequency = cut(tmp_path / "data", extent=32, training=5, testing=1)
    words = [word for name, value in overrides(tmp_path).items() for word in (f"--{name}", str(value).replace(" ", ""))]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIGS / "train.yaml"), *words]
    trained = subprocess.run(
        [*command, "--epochs", "3"],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tmp_path,
        env=os.environ | {"OMP_WAIT_POLICY": "passive"},
    )
    assert trained.returncode == 0, trained.stderr[-3000:]
    losses = [float(line.split("train_loss: ")[1].split()[0]) for line in (trained.stdout + trained.stderr).splitlines()
              if "train_loss: " in line]  # fmt: skip
    assert len(losses) == 12
    assert losses[-1] < losses[0]

    both = [str(CONFIGS / "train.yaml"), str(CONFIGS / "evaluate.yaml")]
    monai.bundle.run(config_file=both, **overrides(tmp_path))
    monai.bundle.run(config_file=str(CONFIGS / "inference.yaml"), **overrides(tmp_path))

    with open(tmp_path / "eval" / "val_mean_dice_raw.csv") as file:
        (row,) = csv.DictReader(file)
    segmentation = nib.load(tmp_path / "eval" / "brain_ts00_0000_seg.nii.gz")
    truth = nib.load(tmp_path / "data" / "labelsTs" / "brain_ts00.nii.gz")
    assert np.allclose(segmentation.affine, truth.affine)
    predicted, expected = (np.asarray(image.dataobj).astype(int) for image in (segmentation, truth))
    for label, column in ((1, "class0"), (2, "class1")):  # the file that was written has the Dice that was reported
        overlap = (
            2
            * ((predicted == label) & (expected == label)).sum()
            / ((predicted == label).sum() + (expected == label).sum())
        )
        assert float(row[column]) == pytest.approx(overlap, abs=1e-4)
    constant = max(2 * share / (1 + share) for name, share in frequency.items() if name != "background") / 2
    assert float(row["mean"]) > constant + 0.1  # the best segmentation that knows nothing of the image


@pytest.mark.parametrize(("file", "kind"), [("train.yaml", "train"), ("inference.yaml", "infer")])
def test_monai_finds_the_properties_of_its_workflows(file, kind, tmp_path):
    from monai.bundle import create_workflow

    from mednext.demo.blocks import cut

    cut(tmp_path / "data", extent=32, training=2, testing=1)
    workflow = create_workflow(config_file=str(CONFIGS / file), workflow_type=kind, **overrides(tmp_path))
    assert not workflow.check_properties()


def test_monai_verifies_the_network_against_the_metadata():
    from monai.bundle import verify_net_in_out

    files = {"meta_file": str(CONFIGS / "metadata.json"), "config_file": str(CONFIGS / "inference.yaml")}
    verify_net_in_out(net_id="network_def", device="cpu", n=2, **files)
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out(net_id="network_def", device="cpu", n=2, classes=4, **files)


def test_a_checkpoint_of_the_bundle_is_monais_and_ours():
    """Accelerated blocks keep MONAI's names; the weights load into MONAI's network and into ours."""
    from monai.networks.nets import MedNeXtS

    import mednext

    theirs = MedNeXtS(in_channels=1, out_channels=3)
    accelerated = mednext.accelerate(MedNeXtS(in_channels=1, out_channels=3))
    theirs.load_state_dict(accelerated.state_dict())
    ours = mednext.create_mednext("S", 1, 3)
    mednext.load_checkpoint(ours, accelerated.state_dict())
    x = torch.randn(1, 1, 32, 16, 16)
    for network in (theirs, ours):
        torch.testing.assert_close(network.eval()(x), accelerated.eval()(x), rtol=1e-4, atol=1e-4)
