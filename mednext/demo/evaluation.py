"""Dice, of masks and of a network on fixed patches of the held-out hemisphere."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from mednext.demo.brain import Brain
from mednext.demo.settings import CLASSES
from mednext.segment import full_resolution


def dice(prediction: torch.Tensor, truth: torch.Tensor, label: int) -> float:
    """2 |P and T| / (|P| + |T|) of one class; NaN where neither has it."""
    ours, theirs = prediction == label, truth == label
    total = int(ours.sum()) + int(theirs.sum())
    return 2 * int((ours & theirs).sum()) / total if total else math.nan


def dice_by_class(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Dice of each class but background, over the voxels of `mask`."""
    ours, theirs = torch.from_numpy(prediction[mask]), torch.from_numpy(truth[mask])
    return {name: dice(ours, theirs, label) for label, name in enumerate(CLASSES) if label}


class HeldOutPatches:
    """A few fixed cubes of the right hemisphere, to follow the training with. Nothing is chosen by them."""

    def __init__(self, volume: torch.Tensor, brain: Brain, patch: int, count: int = 8) -> None:
        random = np.random.default_rng(0)
        centres = np.argwhere((brain.truth > 0) & brain.held_out)
        first = np.array([int((brain.millimetres(0) <= 0).sum()), 0, 0])
        last = np.array(brain.truth.shape) - patch
        self.cubes = []
        for centre in centres[random.choice(len(centres), count, replace=False)]:
            start = np.clip(centre - patch // 2, first, last)
            cube = tuple(slice(int(s), int(s) + patch) for s in start)
            channels = (slice(None), *cube)
            self.cubes.append((volume[channels][None], torch.from_numpy(brain.truth[cube])))

    @torch.inference_mode()
    def score(self, network: nn.Module) -> list[float]:
        """Dice of each class but background, over all the cubes together."""
        device = next(network.parameters()).device
        network.eval()
        labels = [full_resolution(network(scan.to(device))).argmax(1)[0].cpu() for scan, _ in self.cubes]
        prediction = torch.stack(labels)
        truth = torch.stack([truth for _, truth in self.cubes])
        return [dice(prediction, truth, label) for label in range(1, len(CLASSES))]
