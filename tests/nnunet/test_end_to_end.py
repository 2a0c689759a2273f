"""nnU-Net's own programs train, continue, widen, predict and evaluate a MedNeXt, on blocks of a real scan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "nnunet_end_to_end.py"


def command(*words, **environment):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"COLUMNS": "200"} | environment,
        cwd=tempfile.gettempdir(),
    )


@pytest.mark.slow
def test_the_programs_of_nnunet_train_a_mednext(tmp_path):
    done = command(PROGRAM, "--folder", tmp_path / "work", "--output", tmp_path / "result.json", "--short")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["resumed"]["epochs before the kill"] == result["resumed"]["first epoch after it"] > 0
    assert result["UpKern"] == "took 237 pretrained tensors; UpKern widened 26 kernels from 3x3x3 to 5x5x5"
    for kernel in ("k3", "k5"):
        assert len(result[kernel]["training loss"]) == int(result["options"]["epochs"])
    assert result["k5"]["training loss"][-1] < result["k3"]["training loss"][0]
    assert result["k3"]["learning rate"][0] == 1e-3 > result["k3"]["learning rate"][-1]
    reached = result["test Dice"]["k5"].values()
    assert sum(reached) / 2 > result["mean Dice of the best constant segmentation"]


def test_a_wrong_plan_is_refused(tmp_path):
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    refused = command("-m", "mednext.cli", "nnunet", "plan", "901", **folders)
    assert refused.returncode == 2
    assert "data set 901 cannot be planned" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"patch_size": [100, 128, 128]}, "three multiples of 16 were expected"),
        ({"patch_size": [128, 128]}, "three multiples of 16 were expected"),
        ({"spacing": 0.0}, "the spacing is 0 mm; a number above 0"),
        ({"batch_size": 0}, "the batch size is 0; 1 or more"),
    ],
)
def test_numbers_that_no_plan_has_are_named(arguments, said):
    from mednext.nnunet.planner import plan

    with pytest.raises(ValueError, match=said):
        plan("901", **arguments)
