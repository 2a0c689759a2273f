"""Each kernel, then random problems of every operator, against float64: at most twice as wrong as PyTorch's own code.

A tensor is judged alone, and the errors of all random problems of an operator and dtype together.
"""

from __future__ import annotations

import argparse
import random
import time
from math import prod
from typing import Any

import each_kernel
from against_float64 import Pool, failure_of
from operators_tried import TRIED, BlockCall, told

from mednext.backends_used import BackendsUsed
from mednext.bench.operators import DTYPES, OpProblem

__all__ = ["SIZES", "check", "random_problem"]

KERNELS = [(k, k, k) for k in (1, 3, 5, 7, 9)] + [(1, k, k) for k in (3, 5, 7)] + [(3, 5, 7), (5, 3, 1)]
#: The most elements of an input, and the most voxels along an axis.
SIZES = {"tiny": (4_000, 24), "normal": (2_000_000, 140)}
#: The same where channels are mixed, and the most elements of a hidden tensor: channels and voxels both have a least.
MIXING_SIZES = {"tiny": (22_000, 12, 64_000), "normal": (2_000_000, 64, 16_000_000)}
CHANNELS = [5, 20, 32, 64, 128, 256]
BLOCK_KERNELS = [(3, 3, 3), (3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 3, 3), (1, 5, 5), (3, 1, 5)]
#: The least extents, which leave a norm some dozens of voxels: of fewer a variance says nothing.
LEAST_EXTENT = {"regular": 4, "down": 7, "up": 3}
FAILURES_SHOWN = 20


def random_problem(generator: random.Random, op: str, dtype: str, size: str) -> OpProblem:
    """A problem as users may have it: odd extents, few channels and many, a stride, any format."""
    special = {
        "inverted_bottleneck": _random_bottleneck,
        "pointwise_conv3d": _random_pointwise,
        "mednext_block": _random_block,
    }
    if op in special:
        return special[op](generator, dtype, size)
    return _random_convolution(generator, op, dtype, size)


def _random_convolution(generator: random.Random, op: str, dtype: str, size: str) -> OpProblem:
    """Also with extents below the kernel; statistics are drawn like them."""
    most, longest = SIZES[size]
    channels = generator.choice([1, 2, 3, 8, 13, 16, 32, 40, 64])
    batch = generator.choice([1, 1, 2, 3])
    extents = _extents(generator, 1, longest)
    while batch * channels * prod(extents) > most:
        longest_axis = max(range(3), key=lambda axis: extents[axis])
        if extents[longest_axis] <= 4:
            channels = max(1, channels // 2)
            batch = 1
        extents[longest_axis] = (extents[longest_axis] + 1) // 2
    if op != "depthwise_conv3d" and prod(extents) < 64:
        extents = [max(4, extent) for extent in extents]  # of fewer voxels a variance says nothing
    strides = [(1, 1, 1), (1, 1, 1), (2, 2, 2), (1, 2, 2)]
    return OpProblem(
        op,
        (batch, channels, *extents),
        generator.choice(KERNELS),
        (2, 2, 2) if op == "depthwise_conv_transpose3d" else generator.choice(strides),
        dtype=dtype,
        channels_last=generator.random() < 0.25,
    )


def _extents(generator: random.Random, least: int, longest: int) -> list[int]:
    """Along D, H and W: any, or a multiple of eight."""
    return [
        generator.choice([generator.randint(least, longest), 8 * generator.randint(1, longest // 8)]) for _ in "DHW"
    ]


def _mixing_shape(generator: random.Random, size: str, least: int) -> tuple[tuple[int, ...], int]:
    """N, C, D, H, W of an operator that mixes channels, and its ratio; every extent is at least ``least``."""
    most, longest, most_hidden = MIXING_SIZES[size]
    channels = generator.choice([c for c in CHANNELS if c * least**3 <= most])
    batch, ratio = generator.choice([1, 1, 2]), generator.choice([2, 3, 4, 8])
    extents = _extents(generator, least, longest)
    while (elements := batch * channels * prod(extents)) > most or ratio * elements > most_hidden:
        longest_axis = max(range(3), key=lambda axis: extents[axis])
        if extents[longest_axis] > least:
            extents[longest_axis] = max((extents[longest_axis] + 1) // 2, least)
        elif batch > 1:
            batch = 1
        else:
            break
    return (batch, channels, *extents), ratio


def _random_bottleneck(generator: random.Random, dtype: str, size: str) -> OpProblem:
    shape, ratio = _mixing_shape(generator, size, LEAST_EXTENT["regular"])
    channels = shape[1]
    return OpProblem(
        "inverted_bottleneck",
        shape,
        ratio=ratio,
        dtype=dtype,
        channels_last=generator.random() < 0.25,
        outputs=generator.choice([channels, 2 * channels, channels // 2]),
        grn=generator.random() < 0.3,
    )


def _random_pointwise(generator: random.Random, dtype: str, size: str) -> OpProblem:
    """A stem or a head: few channels on one side."""
    (batch, many, *extents), _ = _mixing_shape(generator, size, LEAST_EXTENT["regular"])
    channels = [many, generator.choice([1, 2, 3, 4, 7, 8, 13])]
    generator.shuffle(channels)
    shape = (batch, channels[0], *extents)
    last = generator.random() < 0.1
    return OpProblem("pointwise_conv3d", shape, dtype=dtype, channels_last=last, outputs=channels[1])


def _random_block(generator: random.Random, dtype: str, size: str) -> BlockCall:
    form = generator.choice(list(LEAST_EXTENT))
    shape, ratio = _mixing_shape(generator, size, LEAST_EXTENT[form])
    channels = shape[1]
    return BlockCall(
        "mednext_block",
        shape,
        generator.choice(BLOCK_KERNELS),
        (1, 1, 1) if form == "regular" else generator.choice([(2, 2, 2), (2, 2, 2), (1, 2, 2)]),
        ratio,
        dtype,
        generator.random() < 0.25,
        {"regular": channels, "down": 2 * channels, "up": channels // 2}[form],
        generator.random() < 0.3,
        form=form,
        recompute=generator.random() < 0.3,
        skip=form == "up" and generator.random() < 0.6,
        keep_input=form == "down" and generator.random() < 0.6,
        float_parameters=dtype != "fp32" and generator.random() < 0.5,
        permuted_gradient=generator.random() < 0.1,
    )


def check(options: argparse.Namespace) -> dict[str, Any]:
    """The report: counts, what failed, the pooled errors, and which backend ran each function."""
    generator = random.Random(options.seed)
    fixed = each_kernel.check(options)
    tried, passed, failures = fixed["tried"], fixed["passed"], list(fixed.pop("failures"))
    operators: dict[str, Any] = {}
    for op in TRIED:
        for dtype in DTYPES:
            counts: dict[str, Any] = {"tried": 0, "passed": 0}
            pool = Pool()
            with BackendsUsed() as used:
                for _ in range(options.problems):
                    if time.monotonic() > options.deadline:
                        break
                    problem = random_problem(generator, op, dtype, options.size)
                    failure = failure_of(problem, options, generator.randrange(2**31), pool)
                    counts["tried"] += 1
                    counts["passed"] += failure is None
                    if failure is not None:
                        failures.append(f"{told(problem)}: {failure}")
                    if options.backend not in used.names():
                        counts["note"] = f"{options.backend} has no kernel for it: it ran elsewhere"
                        break
            if counts["tried"]:
                errors, wrong = pool.judged(dtype)
                failures += [f"{dtype} {op}, all problems together: {text}" for text in wrong]
                tried, passed = tried + counts["tried"] + len(wrong), passed + counts["passed"]
                operators[f"{op} {dtype}"] = counts | {"ran_on": used.by_op(), "rms_errors": errors}
    return {
        "tried": tried,
        "passed": passed,
        "left_out": fixed["left_out"],
        "failures": failures[:FAILURES_SHOWN],
        "failures_in_all": len(failures),
        "each_kernel": fixed,
        "operators": operators,
    }
