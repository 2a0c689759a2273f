"""The same bits at every run, on another stream and out of a CUDA graph."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import results_of
import torch

import mednext_ops as ops
from mednext.bench.operators import DTYPES, OPERATORS, OpProblem, Tensors, draw

__all__ = ["check_bitwise", "check_graph", "check_stream"]

#: Enough blocks for any order of them; rows that the copy engine takes, and rows that it does not.
SHAPES = {"cuda": [(2, 32, 40, 40, 40), (1, 24, 33, 37, 45)], "cpu": [(1, 3, 4, 5, 8), (1, 2, 3, 4, 7)]}


def problems(options: argparse.Namespace) -> Iterator[OpProblem]:
    """Each operator in each dtype and format, k3 and k5, until the time is over."""
    for op in OPERATORS:
        for dtype in DTYPES:
            for shape in SHAPES[options.device]:
                for kernel, channels_last in (((3, 3, 3), False), ((5, 5, 5), False), ((3, 3, 3), True)):
                    if time.monotonic() > options.deadline:
                        return
                    if kernel != (3, 3, 3) and op in ("group_norm_statistics", "inverted_bottleneck"):
                        continue
                    stride = (2, 2, 2) if op == "depthwise_conv_transpose3d" else (1, 1, 1)
                    yield OpProblem(op, shape, kernel, stride, 2, dtype, channels_last)


def differing(first: Tensors, second: Tensors) -> list[str]:
    """Names of the tensors that are not equal to the bit (NaN equals nothing)."""
    return [name for name in first if not torch.equal(first[name], second[name])]


def check_bitwise(options: argparse.Namespace) -> dict[str, Any]:
    """Many runs of each problem."""

    def same(problem: OpProblem) -> str | None:
        tensors = draw(problem, options.device, options.seed)
        first = results_of.of_ours(problem, tensors)
        for run in range(options.runs):
            if time.monotonic() > options.deadline:
                return None
            if wrong := differing(first, results_of.of_ours(problem, tensors)):
                return f"run {run + 2} gives other bits in {', '.join(wrong)}"
        return None

    return _count(options, same) | {"runs": options.runs}


def check_stream(options: argparse.Namespace) -> dict[str, Any]:
    """On a side stream, on which the input appears late: a kernel on any other stream would read zeros."""
    if options.device != "cuda":
        return _skipped("streams belong to a GPU")

    def same(problem: OpProblem) -> str | None:
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

    def same(problem: OpProblem) -> str | None:
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


def _count(options: argparse.Namespace, fails: Callable[[OpProblem], str | None]) -> dict[str, Any]:
    tried, failures = 0, []
    for problem in problems(options):
        tried += 1
        try:
            with ops.use_backend(options.backend, "reference"):
                failure = fails(problem)
        except RuntimeError as error:
            failure = f"{type(error).__name__}: {error}"
        if failure is not None:
            failures.append(f"{problem.dtype} {problem}{' channels_last' * problem.channels_last}: {failure}")
    return {"tried": tried, "passed": tried - len(failures), "failures": failures}


def _skipped(reason: str) -> dict[str, Any]:
    return {"tried": 0, "passed": 0, "skipped": f"skipped: {reason}"}
