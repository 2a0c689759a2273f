"""Tensors of more than 2^31 elements: offsets that no 32-bit number holds.

Channels of a depthwise convolution and of its norm are independent, so the first and the last one are compared alone.
"""

from __future__ import annotations

import argparse
from typing import Any

import results_of
import torch

import mednext_ops as ops
from mednext.bench.accuracy import judge
from mednext.bench.operators import DTYPES, OPERATORS, OpProblem, Tensors

__all__ = ["check"]

SHAPE = (1, 36, 400, 400, 400)  # 2.3e9 elements, 4.3 GiB in 16 bits
NEEDED_GIB = 40
OPS = ("depthwise_conv3d", "group_norm_statistics")


def check(options: argparse.Namespace) -> dict[str, Any]:
    if options.device != "cuda":
        return {"tried": 0, "passed": 0, "skipped": "skipped: it takes a GPU's memory"}
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < NEEDED_GIB:
        return {"tried": 0, "passed": 0, "skipped": f"skipped: {free:.0f} GiB are free, it takes {NEEDED_GIB}"}
    tried, failures = 0, []
    for op in OPS:
        for channels_last in (False, True):
            problem = OpProblem(op, SHAPE, dtype="bf16", channels_last=channels_last)
            tried += 1
            failure = _fails(problem, options)
            torch.cuda.empty_cache()
            if failure is not None:
                failures.append(f"{problem}{' channels_last' * channels_last}: {failure}")
    return {"tried": tried, "passed": tried - len(failures), "failures": failures, "shape": list(SHAPE)}


def _fails(problem: OpProblem, options: argparse.Namespace) -> str | None:
    tensors = _draw(problem, options.seed)
    try:
        with ops.use_backend(options.backend, "reference"):
            ours = results_of.of_ours(problem, tensors)
        for channel in (0, SHAPE[1] - 1):
            alone = OpProblem(problem.op, (1, 1, *SHAPE[2:]), dtype="bf16")
            own = {name: _channel(name, t, channel) for name, t in tensors.items()}
            exact = {"output": OPERATORS[alone.op].eager(alone, {name: t.double() for name, t in own.items()})}
            eager = {"output": OPERATORS[alone.op].eager(alone, own)}
            if isinstance(exact["output"], tuple):
                exact, eager = (dict(zip(("mean", "rstd"), side["output"], strict=True)) for side in (exact, eager))
            verdict = judge({name: _channel(name, ours[name], channel) for name in exact}, eager, exact)
            if not verdict.ok:
                return f"channel {channel}: {verdict}"
        return next((f"{name} is not finite" for name, t in ours.items() if not bool(t.isfinite().all())), None)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"


def _draw(problem: OpProblem, seed: int) -> Tensors:
    """In 16 bits from the start: float32 on the way would take twice the memory."""
    generator = torch.Generator("cuda").manual_seed(seed)
    tensors = {}
    for name, (shape, scale) in OPERATORS[problem.op].shapes(problem).items():
        memory_format = torch.channels_last_3d if problem.channels_last and len(shape) == 5 else torch.contiguous_format
        empty = torch.empty(shape, dtype=DTYPES[problem.dtype], device="cuda", memory_format=memory_format)
        tensors[name] = empty.normal_(generator=generator).mul_(scale)
    return tensors


def _channel(name: str, tensor: torch.Tensor, channel: int) -> torch.Tensor:
    along = 0 if name in ("weight", "bias") else 1
    return tensor.narrow(along, channel, 1).contiguous()
