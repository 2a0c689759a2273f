"""Weights, inputs and results of the official network, and the recipe that fills any network with known weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

DATA = Path(__file__).parents[1] / "data"


def fill(network: nn.Module, seed: int) -> nn.Module:
    """The weights of tests/data/README.md, in float64."""
    network.double()
    rng = np.random.RandomState(seed)
    state = network.state_dict()
    for key in sorted(state):
        if key == "dummy_tensor":
            continue
        z = rng.standard_normal(tuple(state[key].shape))
        if key.endswith("norm.weight"):
            value = 1 + 0.1 * z
        elif key.endswith("weight"):
            value = z / sqrt(prod(z.shape[1:]))
        else:
            value = 0.1 * z
        state[key].copy_(torch.from_numpy(value))
    return network


@dataclass(frozen=True)
class Golden:
    """One network that the official code ran: its arguments, input, outputs and gradients."""

    arguments: dict[str, Any]
    seed: int
    input: torch.Tensor
    outputs: list[torch.Tensor]
    grad_input: torch.Tensor
    gradients: dict[str, torch.Tensor]

    @classmethod
    def load(cls, name: str) -> Golden:
        with np.load(DATA / f"official_v1_{name}.npz") as file:
            arrays = {key: file[key] for key in file.files}
        spec = json.loads(str(arrays["spec"]))
        seed, shape = spec.pop("seed"), spec.pop("input_shape")
        tensors = {key: torch.from_numpy(value).double() for key, value in arrays.items() if key != "spec"}
        return cls(
            spec,
            seed,
            torch.from_numpy(np.random.RandomState(seed + 1).standard_normal(shape)),
            [tensors[f"output_{level}"] for level in range(5)],
            tensors["grad_input"],
            {key.removeprefix("grad/"): value for key, value in tensors.items() if key.startswith("grad/")},
        )

    def loss(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        rng = np.random.RandomState(self.seed + 2)
        weighted = [
            (y * torch.from_numpy(rng.standard_normal(tuple(y.shape)))).sum() / sqrt(y.numel()) for y in outputs
        ]
        return torch.stack(weighted).sum()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are tiny: threads would only wait for each other, and for those of the other test processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["k3", "k5"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.load(request.param)


@pytest.fixture
def golden_k3() -> Golden:
    return Golden.load("k3")


@pytest.fixture
def filled() -> Callable[[nn.Module, int], nn.Module]:
    return fill


@pytest.fixture
def data() -> Path:
    return DATA


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Arguments of a network that is small and yet has everything: unequal ratios, residuals, two blocks in a stage."""
    return {
        "in_channels": 1,
        "n_channels": 2,
        "n_classes": 3,
        "exp_r": [2, 3, 4, 4, 4, 4, 4, 3, 2],
        "kernel_size": 3,
        "do_res": True,
        "do_res_up_down": True,
        "block_counts": [2, 1, 1, 1, 1, 1, 1, 1, 1],
    }
