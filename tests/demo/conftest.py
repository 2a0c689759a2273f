"""Models small enough for a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mednext import MedNeXt
from mednext.model_file import ModelCard, save_model


@pytest.fixture(scope="session")
def threshold_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MedNeXt whose blocks add nothing, so that its heads see the stem: class 1 where the input exceeds 0.7."""
    arguments = {
        "in_channels": 1, "n_channels": 4, "n_classes": 2, "exp_r": 2, "kernel_size": 3, "do_res": True,
        "do_res_up_down": True, "block_counts": [1] * 9,
    }  # fmt: skip
    network = MedNeXt(**arguments)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "conv3" in name or "res_conv" in name or name.startswith("stem"):
                parameter.zero_()
        network.stem.weight[0] = 1
        network.out_0.conv_out.weight.zero_()
        network.out_0.conv_out.weight[0, 1] = 4
        network.out_0.conv_out.bias.copy_(torch.tensor([0.0, -4 * 0.7]))
    path = tmp_path_factory.mktemp("model") / "threshold.pt"
    save_model(path, ModelCard(arguments, ["background", "ball"], [1.0] * 3, [32] * 3), network)
    return path


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MedNeXt with random weights: its answer at a voxel depends on the voxels around it."""
    arguments = {"in_channels": 1, "n_channels": 4, "n_classes": 3, "exp_r": 2, "kernel_size": 3, "do_res": True}
    arguments |= {"do_res_up_down": True, "block_counts": [1] * 9}
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("model") / "random.pt"
    save_model(path, ModelCard(arguments, ["background", "a", "b"], [1.0] * 3, [32] * 3), MedNeXt(**arguments))
    return path
