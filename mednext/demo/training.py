"""Trains one network by epochs. After each epoch everything that the next one depends on is kept on the disk.

Deep supervision, Dice + cross-entropy, AdamW and the clipping follow the official trainers (MIC-DKFZ/MedNeXt). Patches
are a function of (seed, step) and the learning rate of the step, so the checkpoint needs weights, optimizer and curves
only, and a resumed run computes what an uninterrupted one would have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import nn

from mednext.demo.evaluation import dice
from mednext.demo.patches import Patches
from mednext.demo.settings import CLASSES, Settings
from mednext.errors import InputError
from mednext.model_file import load_content, save_atomically

WEIGHT_DECAY = 3e-5
ADAM_EPS = 1e-4  # 1e-8 can give NaN in half precision
CLIP_NORM = 12.0
POLY_POWER = 0.9


@dataclass
class Curves:
    """What was measured while training: a value a step, and the held-out Dice an epoch."""

    loss: list[float] = field(default_factory=list)
    dice: list[list[float]] = field(default_factory=list)  # a list of classes a step, of the training patches
    held_out_dice: list[list[float]] = field(default_factory=list)  # an epoch, of fixed patches
    seconds: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)  # with the scoring


class Trainer:
    """One network's training. `epochs_done` says how far it is; `train` goes on from there."""

    def __init__(self, name: str, network: nn.Module, settings: Settings, epochs: int, state: Path) -> None:
        self.name = name
        self.device = torch.device(settings.device)
        self.network = network.to(self.device)
        self.settings, self.epochs, self.state = settings, epochs, state
        self.optimizer = torch.optim.AdamW(
            network.parameters(), settings.learning_rate, eps=ADAM_EPS, weight_decay=WEIGHT_DECAY
        )
        self.loss = training_loss()
        self.curves = Curves()
        self.epochs_done = 0
        self.seconds_before = 0.0  # of the epochs that an earlier invocation finished

    def resume(self) -> None:
        """Takes up what the last finished epoch left, if there is one."""
        if not self.state.exists():
            return
        try:
            kept = load_content(self.state, self.settings.device)
            self.network.load_state_dict(kept["network"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.curves = Curves(**kept["curves"])
            self.epochs_done = kept["epochs_done"]
            self.seconds_before = sum(self.curves.epoch_seconds)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.state} cannot be read, so this run cannot go on; pass --overwrite.") from error

    def train(
        self,
        patches: Patches,
        held_out: Callable[[nn.Module], list[float]],
        advance: Callable[[], None],
        epoch_ended: Callable[[], None],
    ) -> None:
        """The epochs that are not done yet. `held_out` scores the network after each.

        `advance` hears of each step, `epoch_ended` of each epoch once it is on the disk.
        """
        while self.epochs_done < self.epochs:
            start = time.perf_counter()
            first = self.epochs_done * self.settings.steps
            for step in range(first, first + self.settings.steps):
                self._step(step, *patches.draw(step))
                advance()
            self.curves.held_out_dice.append(held_out(self.network))
            self.curves.epoch_seconds.append(time.perf_counter() - start)
            self.epochs_done += 1
            self._keep()
            epoch_ended()

    def _step(self, step: int, scan: torch.Tensor, truth: torch.Tensor) -> None:
        start = time.perf_counter()
        done = step / (self.epochs * self.settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * (1 - done) ** POLY_POWER
        loss, logits = train_step(self.network, self.optimizer, self.loss, scan.to(self.device), truth.to(self.device))
        if not torch.isfinite(loss):
            rate = self.settings.learning_rate
            raise InputError(
                f"the loss of {self.name} is {loss.item()} at step {step}, so the weights are lost; start anew with "
                f"--overwrite and a --learning-rate below {rate:g}, such as {rate / 3:.1g}."
            )
        labels = logits.argmax(1, keepdim=True).cpu()
        self.curves.loss.append(loss.item())
        self.curves.dice.append([dice(labels, truth, label) for label in range(1, len(CLASSES))])
        self.curves.seconds.append(time.perf_counter() - start)

    def _keep(self) -> None:
        content: dict[str, Any] = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curves": vars(self.curves),
            "epochs_done": self.epochs_done,
        }
        save_atomically(self.state, content)


def training_loss() -> nn.Module:
    """Dice + cross-entropy at every resolution, each coarser one counting half as much as the finer before it."""
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_dr=1e-5)
    return DeepSupervisionLoss(loss, weight_mode="exp")


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, loss: nn.Module, scan: torch.Tensor, truth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step; returns the loss before it and the full-resolution logits."""
    network.train()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(scan.device.type, torch.bfloat16, enabled=scan.device.type == "cuda"):
        outputs = network(scan)
    value = loss([output.float() for output in outputs], truth)
    value.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
    optimizer.step()
    return value.detach(), outputs[0].detach()
