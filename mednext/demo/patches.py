"""Training patches: a function of (seed, step), so that a resumed run and both large networks see the same ones."""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms import Compose, RandGaussianNoised, RandScaleIntensityd, RandShiftIntensityd

from mednext.demo.brain import Brain
from mednext.demo.settings import CLASSES
from mednext.errors import InputError


class Patches:
    """Random cubes of the training box, each centred as well as it fits on a voxel of a class drawn at random."""

    def __init__(self, volume: torch.Tensor, brain: Brain, patch: int, batch: int, seed: int) -> None:
        box = brain.training_box
        seen = (slice(None), *box)
        self.volume = volume[seen]  # [1, x, y, z], normalised
        self.truth = torch.from_numpy(brain.truth[box])[None]
        self.patch, self.batch, self.seed = patch, batch, seed
        if any(n < patch for n in self.truth.shape[1:]):
            extent = "x".join(map(str, self.truth.shape[1:]))
            raise InputError(f"--patch {patch} does not fit into the training hemisphere's {extent} voxels.")
        inside = self.volume[0] != self.volume.min()
        self.centres = [((self.truth[0] == label) & inside).nonzero().numpy() for label in range(len(CLASSES))]
        # Intensities only: a flip from left to right would train on the held-out hemisphere, the mirror image of this.
        self.augment = Compose(
            [
                RandScaleIntensityd("scan", factors=0.1, prob=0.5),
                RandShiftIntensityd("scan", offsets=0.1, prob=0.5),
                RandGaussianNoised("scan", prob=0.2, std=0.05),
            ]
        )

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The scan and the truth of a step, both [batch, 1, p, p, p] and float32 as MONAI's losses take them."""
        random = np.random.default_rng([self.seed, step])
        self.augment.set_random_state(state=np.random.RandomState(random.integers(2**31)))
        drawn = [self._one(random) for _ in range(self.batch)]
        scan, truth = (torch.stack([one[key] for one in drawn]) for key in ("scan", "truth"))
        return scan.as_subclass(torch.Tensor), truth.float().as_subclass(torch.Tensor)

    def _one(self, random: np.random.Generator) -> dict[str, torch.Tensor]:
        centres = self.centres[random.integers(len(self.centres))]
        centre = centres[random.integers(len(centres))]
        extent = np.array(self.truth.shape[1:])
        start = np.clip(centre - self.patch // 2, 0, extent - self.patch)
        cube = (slice(None), *(slice(int(s), int(s) + self.patch) for s in start))
        return self.augment({"scan": self.volume[cube].clone(), "truth": self.truth[cube].clone()})
