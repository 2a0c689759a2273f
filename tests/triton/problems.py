"""Random depthwise convolutions for the Triton backend, and the emulation's comparisons of them.

Drawn without a thought of the CUDA planner's cores, which those of the emulation are dealt over.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch

from mednext_ops.backends.problem import ConvGeometry

from ..emulation.random_problems import DTYPES, OPS, Drawn
from ..emulation.random_results import (
    Comparison,
    backward_results,
    compared_backward,
    compared_forward,
    forward_results,
)
from ..ops.eager import assert_within_twice

MOST_ELEMENTS = 20_000
MOST_PRODUCTS = 1_000_000


def usual_kernel(random_: random.Random) -> tuple[list[int], list[int], list[int], list[int]]:
    """KxKxK or 1xKxK at stride 1, 2 or 1x2x2, centred: what the fast kernels take."""
    k = random_.choice([3, 3, 5, 7])
    kernel = [random_.choice([1, k, k, k]), k, k]
    stride = random_.choice([[1, 1, 1], [1, 1, 1], [2, 2, 2], [1, 2, 2]])
    return kernel, stride, [n // 2 for n in kernel], [1] * 3


def any_kernel(random_: random.Random) -> tuple[list[int], list[int], list[int], list[int]]:
    kernel = [random_.choice([1, 3, 5, 7, 9]) for _ in range(3)]
    dilation = [random_.choice([1, 1, 2, 3]) for _ in range(3)]
    padding = [random_.randint(0, k * d // 2 + 1) for k, d in zip(kernel, dilation, strict=True)]
    return kernel, [random_.choice([1, 2]) for _ in range(3)], padding, dilation


def problem(
    geometry: ConvGeometry,
    batch: int,
    channels: int,
    size: tuple[int, ...],
    dtype: torch.dtype,
    parameter_dtype: torch.dtype,
    channels_last: bool,
    bias: bool,
    affine: bool,
    add: bool,
    num_groups: int,
    seed: int,
) -> Drawn:
    """A problem of a convolution alone, whatever the architecture."""
    op = OPS[geometry.transposed]
    return Drawn(
        op, seed, "any", geometry, batch, channels, size, dtype, parameter_dtype, channels_last, bias, affine, add,
        None, num_groups, 90,
    )  # fmt: skip


def draw(seed: int) -> Drawn:
    random_ = random.Random(seed)
    while True:
        kernel, stride, padding, dilation = random_.choice([usual_kernel, any_kernel])(random_)
        transposed = random_.random() < 0.5
        room = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
        output_padding = [random_.randint(0, most) if transposed and random_.random() < 0.3 else 0 for most in room]
        geometry = ConvGeometry(
            *(tuple(triple) for triple in (kernel, stride, padding, dilation, output_padding)), transposed=transposed
        )
        size = tuple(random_.choice([1, 2, 3, 5, 8, 9, 12, 15, 16, 17, 24, 31, 33, 40]) for _ in range(3))
        batch, channels = random_.choice([0, 1, 1, 2, 3]), random_.choice([1, 2, 3, 4, 8, 13, 16, 32, 33, 40])
        dtype = random_.choice(DTYPES)
        parameter_dtype = random_.choice([dtype, torch.float32])
        channels_last, bias, affine, add = (random_.random() < share for share in (0.4, 0.5, 0.4, 0.4))
        num_groups = random_.choice([n for n in range(1, channels + 1) if channels % n == 0])
        drawn = problem(
            geometry, batch, channels, size, dtype, parameter_dtype, channels_last, bias, affine, add, num_groups, seed
        )
        if min(drawn.output_size) < 1:
            continue
        voxels = sorted([math.prod(size), math.prod(drawn.output_size)])
        many = max(batch, 1) * channels
        if voxels[1] * many <= MOST_ELEMENTS and voxels[0] * many * math.prod(kernel) <= MOST_PRODUCTS:
            return drawn


def check_forward(backend: Any, p: Drawn) -> list[torch.Tensor]:
    """The results, after a comparison."""
    return _checked(p, forward_results(backend, p), compared_forward)


def check_backward(backend: Any, p: Drawn) -> list[torch.Tensor]:
    return _checked(p, backward_results(backend, p), compared_backward)


def _checked(p: Drawn, found: dict[str, torch.Tensor], compared: Callable[..., list[Comparison]]) -> list[torch.Tensor]:
    if p.batch == 0:
        assert not any(t.any() for t in found.values()), p
    else:
        for name, ours, theirs, exact, _ in compared(p, found):
            assert_within_twice(ours, theirs, exact, f"{name} of {p}")
    return list(found.values())
