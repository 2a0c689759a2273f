"""The same network, same weights, same patches: ours against plain PyTorch, step by step in turn."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from mednext.demo import memory, networks
from mednext.demo.patches import Patches
from mednext.demo.settings import Settings
from mednext.demo.training import ADAM_EPS, WEIGHT_DECAY, train_step, training_loss
from mednext.segment import full_resolution

TOLERANCE = {"cpu": 1e-4, "cuda": 5e-2}  # of the logits' largest value; a GPU computes in bfloat16
MEMORY_PATCH = 48  # voxels an edge: on a CPU, enough for the activations to stand out of the process


@dataclass(frozen=True)
class Side:
    """What one of the two networks took."""

    step_seconds: float  # the median
    step_seconds_all: list[float]
    memory: memory.Memory


@dataclass(frozen=True)
class Comparison:
    """Ours and plain PyTorch at one kernel size."""

    ours: Side
    plain: Side
    logits_difference: float  # relative to the logits' largest value, before the first step
    batch: int
    patch: int
    memory_batch: int
    memory_patch: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    trained: nn.Module, kernel_size: int, settings: Settings, patches: Patches, advance: Callable[[], None]
) -> Comparison:
    """Times training steps of both in turn, and measures each one's memory in a fresh process.

    Raises:
        RuntimeError: the two do not compute the same; no time of a wrong result is reported.
    """
    device = torch.device(settings.device)
    arguments = settings.network(kernel_size)
    both = {"ours": copy.deepcopy(trained).to(device), "plain": networks.build_plain(arguments).to(device)}
    both["plain"].load_state_dict(trained.state_dict())
    difference = _difference(both["ours"], both["plain"], patches.draw(0)[0].to(device))
    if not difference <= TOLERANCE[device.type]:
        raise RuntimeError(f"ours and plain PyTorch differ by {difference:.1e} of the logits' largest value.")
    seconds = _time(both, settings.timed_steps, patches, device, advance)
    memory_patch = max(MEMORY_PATCH, settings.patch)
    memory_batch = settings.batch if memory_patch == settings.patch else 1
    sides = {}
    for name in both:
        request = memory.Request(
            arguments, name == "plain", memory_batch, memory_patch, settings.device, torch.get_num_threads()
        )
        sides[name] = Side(statistics.median(seconds[name]), seconds[name], memory.measure(request))
        advance()
    return Comparison(
        sides["ours"], sides["plain"], difference, settings.batch, settings.patch, memory_batch, memory_patch
    )


@torch.inference_mode()
def _difference(ours: nn.Module, plain: nn.Module, scan: torch.Tensor) -> float:
    with torch.autocast(scan.device.type, torch.bfloat16, enabled=scan.device.type == "cuda"):
        a, b = (full_resolution(network.eval()(scan)).float() for network in (ours, plain))
    return float((a - b).abs().max() / b.abs().max())


def _time(
    both: dict[str, nn.Module], steps: int, patches: Patches, device: torch.device, advance: Callable[[], None]
) -> dict[str, list[float]]:
    loss = training_loss()
    optimizers = {
        name: torch.optim.AdamW(network.parameters(), 1e-5, eps=ADAM_EPS, weight_decay=WEIGHT_DECAY)
        for name, network in both.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for step in range(steps + 1):  # the first one warms up and is not counted
        scan, truth = (tensor.to(device) for tensor in patches.draw(step))
        names = list(both) if step % 2 else list(both)[::-1]  # neither is always the first
        for name in names:
            _wait(device)
            start = time.perf_counter()
            train_step(both[name], optimizers[name], loss, scan, truth)
            _wait(device)
            if step:
                seconds[name].append(time.perf_counter() - start)
        advance()
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
