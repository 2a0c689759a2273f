"""One problem by ours and by PyTorch's own code, both against float64.

Memory that a kernel should have written holds NaN before.
"""

from __future__ import annotations

import argparse
import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import results_of
import torch
from operators_tried import BlockCall, draw, told

import mednext_ops as ops
from mednext.bench.accuracy import FACTOR, judge, pytorch_error, rms_error
from mednext.bench.operators import DTYPES, OpProblem

__all__ = ["Pool", "failure_of", "poisoned"]

FEW = 10  # problems, whose errors together still are a draw


class Pool:
    """The errors of many problems together: one small tensor's error is a draw, the sum over a hundred is not."""

    def __init__(self) -> None:
        self._squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, name: str, error: float, eager_error: float) -> None:
        self._squares[name][0] += error**2
        self._squares[name][1] += eager_error**2
        self._counts[name] += 1

    def judged(self, dtype: str) -> tuple[dict[str, Any], list[str]]:
        """Root mean squares of each tensor's errors, and a sentence for each tensor that breaks the rule there."""
        pooled, failures = {}, []
        for name, squares in self._squares.items():
            count = self._counts[name]
            our, eager = ((square / count) ** 0.5 for square in squares)
            pooled[name] = {"ours": our, "pytorch": eager}
            if count >= FEW and not our <= FACTOR * eager + torch.finfo(DTYPES[dtype]).eps:
                failures.append(f"{name}: error {our:.2e}, PyTorch's own {eager:.2e}")
        return pooled, failures


def failure_of(problem: OpProblem, options: argparse.Namespace, seed: int, pool: Pool | None = None) -> str | None:
    """What is wrong with our results, or None. The errors go into ``pool``."""
    if options.tell:
        print(told(problem), flush=True)
    tensors = draw(problem, options.reference_device, seed)
    exact = results_of.of_eager(problem, tensors, torch.float64)
    eager = results_of.of_eager(problem, tensors)
    try:
        with ops.use_backend(options.backend, "reference"), poisoned():
            ours = results_of.of_ours(problem, {name: t.to(options.device) for name, t in tensors.items()})
        ours = {name: result.to(options.reference_device) for name, result in ours.items()}
        if isinstance(problem, BlockCall) and problem.float_parameters:
            # Beside the volumes' roundings those of float32 are none, and PyTorch's gradients were 16 bits wide.
            ours = {name: result.to(DTYPES[problem.dtype]) for name, result in ours.items()}
        verdict = judge(ours, eager, exact)
    except (RuntimeError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    if pool is not None:
        for name, wanted in exact.items():
            pool.add(name, rms_error(ours[name], wanted), pytorch_error(eager[name], wanted))
    return None if verdict.ok else str(verdict)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New tensors of torch hold NaN: what a kernel leaves out shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
