"""Time of a call: medians of many, in turn with those of the others, on cold caches.

On a GPU between CUDA events, of a CUDA graph where the call can be captured (launching small kernels takes longer than
running them); the L2 cache is overwritten before each. On a CPU by the wall clock, with the caches overwritten where
that takes no longer than the call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Sample", "Timer", "Timing", "summarize"]

MOST_SAMPLES = 500
CPU_CACHES = 64 * 2**20  # bytes; more than the last level of most
SHORT_SECONDS = 0.05  # of a call on a CPU, below which caches matter


@dataclass(frozen=True)
class Timing:
    """Of one implementation: median, 20th and 80th percentile, in seconds."""

    median: float
    p20: float
    p80: float
    samples: int
    clock: str


Sample = Callable[[], float]


def summarize(seconds: list[float], clock: str) -> Timing:
    """Median and percentiles by linear interpolation between the samples."""
    ordered = sorted(seconds)

    def percentile(fraction: float) -> float:
        position = fraction * (len(ordered) - 1)
        low, high = math.floor(position), math.ceil(position)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    return Timing(percentile(0.5), percentile(0.2), percentile(0.8), len(ordered), clock)


class Timer:
    """Times calls on one device.

    Args:
        device: where they run.
        seconds: how long each implementation is sampled, at least, overwriting caches included.
        samples: how many samples each gets, at least.
    """

    def __init__(self, device: torch.device, seconds: float, samples: int) -> None:
        self._device, self._seconds, self._samples = device, seconds, samples
        if device.type == "cuda":
            size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, 2**25)
        else:
            size = CPU_CACHES
        self._flush = torch.zeros(size, dtype=torch.uint8, device=device)

    def prepare(self, call: Callable[[], Any], graph: bool) -> tuple[Sample, str]:
        """What takes one sample of a call that has run before, and the name of its clock."""
        if self._device.type != "cuda":
            return self._wall_clock(call), "wall clock"
        if graph:
            try:
                return self._events(_captured(call)), "CUDA graph"
            except RuntimeError:  # it synchronises, or allocates what a graph may not
                torch.cuda.synchronize(self._device)
        return self._events(call), "CUDA events"

    def time_in_turn(self, samplers: dict[str, tuple[Sample, str]]) -> dict[str, Timing]:
        """Samples all of them round after round, so that what disturbs one disturbs all."""
        seconds: dict[str, list[float]] = {name: [] for name in samplers}
        for name, (sample, _) in samplers.items():
            for _ in range(2):
                sample()  # warms up
            seconds[name].append(sample())
        spent = dict.fromkeys(samplers, 0.0)
        names = list(samplers)
        while names:
            for name in names:
                start = time.perf_counter()
                seconds[name].append(samplers[name][0]())
                spent[name] += time.perf_counter() - start
            names = [name for name in reversed(names) if not self._enough(len(seconds[name]), spent[name])]
        return {name: summarize(found, samplers[name][1]) for name, found in seconds.items()}

    def _enough(self, count: int, spent: float) -> bool:
        return count >= MOST_SAMPLES or (count >= self._samples and spent >= self._seconds)

    def _wall_clock(self, call: Callable[[], Any]) -> Sample:
        start = time.perf_counter()
        call()
        short = time.perf_counter() - start < SHORT_SECONDS

        def sample() -> float:
            if short:
                self._flush.zero_()
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

        return sample

    def _events(self, call: Callable[[], Any]) -> Sample:
        def sample() -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            start.record()
            call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) * 1e-3

        return sample


def _captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph; its results stay where they are.

    On the current stream, which is no default one: a backward pass runs on the stream of its forward pass.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        kept = call()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay
