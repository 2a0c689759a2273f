"""The same bits at every run, on another stream and out of a CUDA graph."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import each_kernel
import results_of
import torch
from operators_tried import draw, told

import mednext_ops as ops
from mednext.bench.operators import DTYPES, OPERATORS, OpProblem, Tensors

__all__ = ["check_bitwise", "check_graph", "check_stream"]

#: Enough blocks for any order of them; rows that the copy engine takes, and rows that it does not.
SHAPES = {"cuda": [(2, 32, 40, 40, 40), (1, 24, 33, 37, 45)], "cpu": [(1, 3, 4, 5, 8), (1, 2, 3, 4, 7)]}

#: Of the fixed list's extents: an odd factor takes no other kernel, and gives each more blocks.
SCALES = {"cuda": 3, "cpu": 1}


def problems(options: argparse.Namespace) -> list[OpProblem]:
    """Each kernel, then each operator in each dtype and format, k3 and k5."""
    return [*each_kernel.problems_for(options, SCALES[options.device]), *_of_operators(SHAPES[options.device])]


def _of_operators(shapes: Sequence[tuple[int, ...]]) -> Iterator[OpProblem]:
    for op in OPERATORS:
        for dtype in DTYPES:
            for shape in shapes:
                for kernel, channels_last in (((3, 3, 3), False), ((5, 5, 5), False), ((3, 3, 3), True)):
                    if kernel != (3, 3, 3) and op in ("group_norm_statistics", "inverted_bottleneck"):
                        continue
                    stride = (2, 2, 2) if op == "depthwise_conv_transpose3d" else (1, 1, 1)
                    yield OpProblem(op, shape, kernel, stride, 2, dtype, channels_last)


def differing(first: Tensors, second: Tensors) -> list[str]:
    """Names of the tensors that are not equal to the bit (NaN equals nothing)."""
    return [name for name in first if not torch.equal(first[name], second[name])]


def check_bitwise(options: argparse.Namespace) -> dict[str, Any]:
    """Many runs of each problem, fewer where the time is short: each has an equal share of what is left of it."""
    repeats: list[int] = []

    def same(problem: OpProblem, until: float) -> str | None:
        tensors = draw(problem, options.device, options.seed)
        first = results_of.of_ours(problem, tensors)
        run = 1
        while run == 1 or (run <= options.runs and time.monotonic() < until):
            run += 1
            if wrong := differing(first, results_of.of_ours(problem, tensors)):
                return f"run {run} gives other bits in {', '.join(wrong)}"
        repeats.append(run - 1)
        return None

    return _count(options, same) | {"runs": options.runs, "fewest_runs": min(repeats, default=0)}


def check_stream(options: argparse.Namespace) -> dict[str, Any]:
    """On a side stream, on which the input appears late: a kernel on any other stream would read zeros."""
    if options.device != "cuda":
        return _skipped("streams belong to a GPU")

    def same(problem: OpProblem, until: float) -> str | None:
        tensors = draw(problem, "cuda", options.seed)
        expected = results_of.of_ours(problem, tensors)
        source = tensors["input"].clone()
        tensors["input"].zero_()
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # about 30 ms
            tensors["input"].copy_(source)
            results = results_of.of_ours(problem, tensors)
        stream.synchronize()
        wrong = differing(expected, results)
        return f"other bits in {', '.join(wrong)}" if wrong else None

    return _count(options, same)


def check_graph(options: argparse.Namespace) -> dict[str, Any]:
    """Captured once, replayed on other numbers: forward and backward in one CUDA graph."""
    if options.device != "cuda":
        return _skipped("CUDA graphs belong to a GPU")

    def same(problem: OpProblem, until: float) -> str | None:
        tensors = draw(problem, "cuda", options.seed)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                results_of.of_ours(problem, tensors)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results_of.of_ours(problem, tensors)
        for name, other in draw(problem, "cuda", options.seed + 1).items():
            tensors[name].copy_(other)
        graph.replay()
        wrong = differing(captured, results_of.of_ours(problem, tensors))
        return f"the replay gives other bits in {', '.join(wrong)}" if wrong else None

    return _count(options, same)


def _count(options: argparse.Namespace, fails: Callable[[OpProblem, float], str | None]) -> dict[str, Any]:
    """``fails`` of each problem and the time at which its share is over; no new problem after the deadline."""
    tried, failures, chosen = 0, [], problems(options)
    for problem in chosen:
        now = time.monotonic()
        if now > options.deadline:
            break
        until = now + (options.deadline - now) / (len(chosen) - tried)
        tried += 1
        try:
            with ops.use_backend(options.backend, "reference"):
                failure = fails(problem, until)
        except RuntimeError as error:
            failure = f"{type(error).__name__}: {error}"
        if failure is not None:
            failures.append(f"{told(problem)}: {failure}")
    return {
        "tried": tried,
        "passed": tried - len(failures),
        "left_out": len(chosen) - tried,
        "failures": failures,
    }


def _skipped(reason: str) -> dict[str, Any]:
    return {"tried": 0, "passed": 0, "skipped": f"skipped: {reason}"}
