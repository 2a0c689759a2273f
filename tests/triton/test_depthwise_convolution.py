"""Depthwise convolutions and their gradients on the Triton backend: random problems against float64, edges, equal bits.

The checks are those of the emulated CUDA kernels. The interpreter takes milliseconds a tap, so of the
problems those with few taps and programs are taken.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mednext_ops.backends.problem import ConvGeometry

from .problems import Drawn, check_backward, check_forward, draw, problem

PROBLEMS = 16
CHUNKS = 4
MOST_TAPS = 70
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def problems(first: int) -> list[Drawn]:
    """Problems of few taps, in the order of their seeds."""
    drawn = (draw(seed) for seed in itertools.count(first))
    return list(itertools.islice((p for p in drawn if taps(p) <= MOST_TAPS), PROBLEMS))


def taps(p: Drawn) -> int:
    return max(p.batch, 1) * math.prod(p.geometry.kernel_size) * math.ceil(p.channels / 32)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_forward_is_within_twice_pytorchs_error(triton_backend, chunk):
    for p in problems(0)[chunk::CHUNKS]:
        check_forward(triton_backend, p)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_backward_is_within_twice_pytorchs_error(triton_backend, chunk):
    for p in problems(1_000_000)[chunk::CHUNKS]:
        check_backward(triton_backend, p)


def block(kernel, dtype, channels_last=False, size=(4, 6, 9), batch=1, channels=3, **changes) -> Drawn:
    """A block's convolution: statistics, an unwritten gradient, a residual to add."""
    geometry = ConvGeometry((kernel,) * 3, padding=(kernel // 2,) * 3, **changes)
    return problem(geometry, batch, channels, size, dtype, dtype, channels_last, False, True, True, channels, seed=7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last_3d"])
def test_the_networks_convolutions(triton_backend, channels_last, dtype):
    p = block(3, dtype, channels_last, batch=2)
    check_forward(triton_backend, p)
    check_backward(triton_backend, p)


@pytest.mark.parametrize(("kernel", "dtype"), [(5, torch.bfloat16), (7, torch.float16), (5, torch.float32)])
def test_large_kernels(triton_backend, kernel, dtype):
    p = block(kernel, dtype)
    check_forward(triton_backend, p)
    check_backward(triton_backend, p)


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resampling_convolutions(triton_backend, dtype, transposed):
    p = block(3, dtype, stride=(2, 2, 2), transposed=transposed)
    check_forward(triton_backend, p)
    check_backward(triton_backend, p)
