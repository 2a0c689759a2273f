"""Bits that must depend on nothing: neither on chance nor on the order in which threads and blocks run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["assert_250_runs_give_the_same_bits"]


def assert_250_runs_give_the_same_bits(emulated: Any, run: Callable[[], torch.Tensor | Sequence[torch.Tensor]]) -> None:
    """``run`` on the same tensors, first in order and then in 250 different orders of threads and blocks."""

    def results() -> list[torch.Tensor]:
        found = run()
        return [found] if isinstance(found, torch.Tensor) else list(found)

    first = results()
    for seed in range(250):
        with emulated.thread_order("shuffled", seed):
            again = results()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), f"order {seed}"
