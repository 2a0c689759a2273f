"""What nnU-Net needs to build a trainer: folders, plans, and a data set's description."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

try:
    import timm  # noqa: F401 - nnU-Net looks through all of its trainers, and some of them import it
except (ImportError, RuntimeError) as error:
    MISSING = f"nnU-Net needs the packages of mednext-ops[nnunet]: {error}"
else:
    MISSING = ""

CUBIC = {"strides": [[1, 1, 1]] + [[2, 2, 2]] * 4, "kernel_sizes": [[3, 3, 3]] * 5}


@pytest.fixture(autouse=True)
def _nnunet() -> None:
    if MISSING:
        pytest.skip(MISSING)


@pytest.fixture(scope="session")
def extension() -> str:
    """The folder that `mednext nnunet path` names."""
    command = [sys.executable, "-m", "mednext.cli", "nnunet", "path"]
    # From a folder that does not hold the source.
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=tempfile.gettempdir())
    line = done.stdout.strip()
    name, folder = line.removeprefix("export ").split("=", 1)
    assert name == "nnUNet_extTrainer"
    return folder


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str) -> Callable[..., Any]:
    """Builds a trainer by its name, as nnU-Net does, for a plan of two classes on the CPU."""
    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", extension)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "preprocessed" / "Dataset901_Test" / "data").mkdir(parents=True)
    (tmp_path / "preprocessed" / "Dataset901_Test" / "data" / "case.b2nd").touch()

    def build(name: str, architecture: dict[str, Any] = CUBIC, classes: int = 2, patch: int = 32) -> Any:
        configuration = {
            "data_identifier": "data",
            "batch_size": 2,
            "patch_size": [patch] * len(architecture["strides"][0]),
            "batch_dice": False,
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "architecture": {"network_class_name": "", "arch_kwargs": architecture, "_kw_requires_import": []},
        }
        plans = {
            "dataset_name": "Dataset901_Test",
            "plans_name": "plans",
            "label_manager": "LabelManager",
            "configurations": {"3d_fullres": configuration},
            "continue_training": False,
        }
        labels = {"background": 0} | {f"class {label}": label for label in range(1, classes)}
        dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 5, "file_ending": ".nii.gz"}
        return recursive_find_trainer_class_by_name(name)(plans, "3d_fullres", 0, dataset, torch.device("cpu"))

    return build
