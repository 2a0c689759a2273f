"""The demo trains where it says it does, and the scan needs no network."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch

from mednext.demo import brain as data
from mednext.demo.evaluation import HeldOutPatches, dice
from mednext.demo.patches import Patches
from mednext.grid import normalise


@pytest.fixture(scope="module")
def brain() -> data.Brain:
    return data.load(4)


def test_the_scan_comes_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the demo's data must not need a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    brain = data.load(1)
    assert brain.scan.shape == (197, 233, 189) and brain.scan.dtype == np.float32
    grey, white = ((brain.truth == label).sum() / 1000 for label in (1, 2))
    assert 900 < grey < 1300 and 500 < white < 750  # millilitres, as in an adult brain
    assert brain.scan[brain.truth == 2].mean() > brain.scan[brain.truth == 1].mean() > 0.5  # T1 contrast


def test_training_sees_nothing_of_the_held_out_hemisphere(brain: data.Brain) -> None:
    seen = np.zeros(brain.scan.shape, bool)
    seen[brain.training_box] = True
    assert not (seen & brain.held_out).any()
    assert not (seen[::-1] & brain.held_out_front).any()  # nor, mirrored, of its front
    assert brain.held_out_front.sum() > 0.2 * (brain.held_out & (brain.truth > 0)).sum()
    centre = (np.abs(brain.millimetres(0)) < 1e-6).sum()
    assert (brain.millimetres(0) > 0).sum() + (brain.millimetres(0) < 0).sum() + centre == brain.scan.shape[0]


def test_patches_are_a_function_of_seed_and_step(brain: data.Brain) -> None:
    volume, _ = normalise(torch.from_numpy(brain.scan)[None])
    patches = Patches(volume, brain, 16, 2, seed=1)
    first = patches.draw(4)
    patches.draw(5)
    again = Patches(volume, brain, 16, 2, seed=1).draw(4)
    other = Patches(volume, brain, 16, 2, seed=2).draw(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == first[1].shape == (2, 1, 16, 16, 16)


def test_held_out_patches_score_a_perfect_network_with_one(brain: data.Brain) -> None:
    truth = torch.from_numpy(brain.truth)[None].float()

    class Oracle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([(x == label).float() for label in range(3)], 1)

    assert HeldOutPatches(truth, brain, 16).score(Oracle()) == [1.0, 1.0]


def test_dice() -> None:
    a, b = torch.tensor([1, 1, 0, 2]), torch.tensor([1, 0, 0, 1])
    assert dice(a, b, 1) == 0.5
    assert dice(a, b, 2) == 0.0
    assert np.isnan(dice(a, b, 3))
