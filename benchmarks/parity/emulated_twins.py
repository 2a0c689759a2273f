"""The GPU against its emulation on the same numbers: they may differ by roundings, as PyTorch from float64, no more.

Needs MEDNEXT_OPS_EMULATED_LIBRARY (``python -m build_tools.emulated``).
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import results_of
import torch
from operators_tried import TRIED, draw, told
from random_problems import random_problem

import mednext_ops as ops
from mednext.bench.accuracy import rms_error
from mednext.bench.operators import DTYPES

__all__ = ["check"]

PROBLEMS = 10  # an operator and dtype: a thread of the emulation takes microseconds where the GPU's takes nanoseconds
ALLOWED_UNITS = 2.0  # in the last place of the dtype, in root mean square, beside PyTorch's own error


def check(options: argparse.Namespace) -> dict[str, Any]:
    if options.device != "cuda":
        return {"tried": 0, "passed": 0, "skipped": "skipped: there is no GPU to compare the emulation with"}
    try:
        with ops.use_backend("emulated"):
            pass
    except RuntimeError as error:
        return {"tried": 0, "passed": 0, "skipped": f"skipped: {error}"}
    generator = random.Random(options.seed)
    tried, failures, largest = 0, [], {}
    for op in TRIED:
        for dtype in DTYPES:
            worst = 0.0
            for _ in range(min(PROBLEMS, options.problems)):
                if time.monotonic() > options.deadline:
                    break
                problem = random_problem(generator, op, dtype, "tiny")
                tensors = draw(problem, "cpu", generator.randrange(2**31))
                with ops.use_backend("emulated", "reference"):
                    emulated = results_of.of_ours(problem, tensors)
                with ops.use_backend(options.backend, "reference"):
                    device = results_of.of_ours(problem, {name: t.cuda() for name, t in tensors.items()})
                eager = results_of.of_eager(problem, tensors)
                exact = results_of.of_eager(problem, tensors, torch.float64)
                tried += 1
                different = {name: rms_error(device[name].cpu(), emulated[name]) for name in emulated}
                worst = max(worst, *different.values())
                allowed = {name: rms_error(eager[name], exact[name]) for name in emulated}
                unlike = [
                    f"{name} differs by {different[name]:.1e}, PyTorch's error is {allowed[name]:.1e}"
                    for name in emulated
                    if not different[name] <= allowed[name] + ALLOWED_UNITS * torch.finfo(DTYPES[dtype]).eps
                ]
                if unlike:
                    failures.append(f"{told(problem)}: {'; '.join(unlike)}")
            largest[f"{op} {dtype}"] = worst
    return {"tried": tried, "passed": tried - len(failures), "failures": failures, "largest_differences": largest}
