"""Random problems of every operator against float64, at most twice as wrong as PyTorch's own code.

Memory that a kernel should have written holds NaN before. A tensor is judged alone, and the errors of all problems
together: one small tensor's error is a draw, the sum over a hundred is not.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import results_of
import torch

import mednext_ops as ops
from mednext.backends_used import BackendsUsed
from mednext.bench.accuracy import FACTOR, judge, pytorch_error, rms_error
from mednext.bench.operators import DTYPES, OPERATORS, OpProblem, draw

__all__ = ["SIZES", "check", "poisoned", "random_problem"]

KERNELS = [(k, k, k) for k in (1, 3, 5, 7, 9)] + [(1, k, k) for k in (3, 5, 7)] + [(3, 5, 7), (5, 3, 1)]
#: The most elements of an input, and the most voxels along an axis.
SIZES = {"tiny": (4_000, 24), "normal": (2_000_000, 140)}
FAILURES_SHOWN = 20
FEW = 10  # problems, whose errors together still are a draw


def random_problem(generator: random.Random, op: str, dtype: str, size: str) -> OpProblem:
    """A problem as users may have it: odd extents, extents below the kernel, few channels, a stride, any format."""
    most, longest = SIZES[size]
    channels = generator.choice([1, 2, 3, 8, 13, 16, 32, 40, 64])
    batch = generator.choice([1, 1, 2, 3])
    extents = [generator.choice([generator.randint(1, longest), 8 * generator.randint(1, longest // 8)]) for _ in "DHW"]
    while batch * channels * extents[0] * extents[1] * extents[2] > most:
        longest_axis = max(range(3), key=lambda axis: extents[axis])
        if extents[longest_axis] <= 4:
            channels = max(1, channels // 2)
            batch = 1
        extents[longest_axis] = (extents[longest_axis] + 1) // 2
    if op != "depthwise_conv3d" and extents[0] * extents[1] * extents[2] < 64:
        extents = [max(4, extent) for extent in extents]  # of fewer voxels a variance says nothing
    strides = [(1, 1, 1), (1, 1, 1), (2, 2, 2), (1, 2, 2)]
    return OpProblem(
        op,
        (batch, channels, *extents),
        generator.choice(KERNELS),
        (2, 2, 2) if op == "depthwise_conv_transpose3d" else generator.choice(strides),
        generator.choice([2, 3, 4, 8]),
        dtype,
        generator.random() < 0.25,
    )


def check(options: argparse.Namespace) -> dict[str, Any]:
    """The report: counts, what failed, the pooled errors, and which backend ran each function."""
    generator = random.Random(options.seed)
    tried = passed = 0
    failures: list[str] = []
    operators: dict[str, Any] = {}
    for op in OPERATORS:
        for dtype in DTYPES:
            counts = {"tried": 0, "passed": 0}
            squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
            with BackendsUsed() as used:
                for _ in range(options.problems):
                    if time.monotonic() > options.deadline:
                        break
                    problem = random_problem(generator, op, dtype, options.size)
                    failure = _check_one(problem, options, generator.randrange(2**31), squares)
                    counts["tried"] += 1
                    counts["passed"] += failure is None
                    if failure is not None:
                        failures.append(f"{dtype} {problem}{' channels_last' * problem.channels_last}: {failure}")
                    if options.backend not in used.names():
                        counts["note"] = f"{options.backend} has no kernel for it: it ran elsewhere"
                        break
            if counts["tried"]:
                pooled = _pooled(squares, counts["tried"], dtype)
                failures += [f"{dtype} {op}, all problems together: {text}" for text in pooled.pop("failures")]
                tried, passed = tried + counts["tried"], passed + counts["passed"]
                operators[f"{op} {dtype}"] = counts | {"ran_on": used.by_op(), "rms_errors": pooled}
    wrong_pools = sum("all problems together" in failure for failure in failures)
    return {
        "tried": tried + wrong_pools,
        "passed": passed,
        "failures": failures[:FAILURES_SHOWN],
        "failures_in_all": len(failures),
        "operators": operators,
    }


def _check_one(
    problem: OpProblem, options: argparse.Namespace, seed: int, squares: dict[str, list[float]]
) -> str | None:
    if options.tell:
        print(f"{problem.dtype} {problem}{' channels_last' * problem.channels_last}", flush=True)
    tensors = draw(problem, options.reference_device, seed)
    exact = results_of.of_eager(problem, tensors, torch.float64)
    eager = results_of.of_eager(problem, tensors)
    try:
        with ops.use_backend(options.backend, "reference"), poisoned():
            ours = results_of.of_ours(problem, {name: t.to(options.device) for name, t in tensors.items()})
        ours = {name: result.to(options.reference_device) for name, result in ours.items()}
        verdict = judge(ours, eager, exact)
    except (RuntimeError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    for name, wanted in exact.items():
        squares[name][0] += rms_error(ours[name], wanted) ** 2
        squares[name][1] += pytorch_error(eager[name], wanted) ** 2
    return None if verdict.ok else str(verdict)


def _pooled(squares: dict[str, list[float]], count: int, dtype: str) -> dict[str, Any]:
    """Root mean squares over all problems, and a sentence for each tensor that breaks the rule there."""
    pooled: dict[str, Any] = {"failures": []}
    for name, (our_square, eager_square) in squares.items():
        our, eager = (our_square / count) ** 0.5, (eager_square / count) ** 0.5
        pooled[name] = {"ours": our, "pytorch": eager}
        if count >= FEW and not our <= FACTOR * eager + torch.finfo(DTYPES[dtype]).eps:
            pooled["failures"].append(f"{name}: error {our:.2e}, PyTorch's own {eager:.2e}")
    return pooled


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
