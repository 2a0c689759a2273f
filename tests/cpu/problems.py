"""Random problems of every op: geometry, extents, channels, types and memory formats that no list would name."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from mednext_ops.backends import ConvGeometry, GroupNormGradient

DTYPES = [torch.float32, torch.float32, torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last_3d]
MOST_VOXELS = 100_000


def widened(value: Any) -> Any:
    """The same values in float64, through tuples and named tuples."""
    if isinstance(value, torch.Tensor):
        return value.double()
    if isinstance(value, GroupNormGradient):
        return GroupNormGradient(*map(widened, value))
    return tuple(map(widened, value)) if isinstance(value, tuple) else value


@dataclass
class Convolution:
    """A convolution, what goes forward and what comes back."""

    geometry: ConvGeometry
    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    grad_output: torch.Tensor | GroupNormGradient
    add: torch.Tensor | None


def convolution(seed: int) -> Convolution:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        cubic = draw.choice([3, 5, 7])
        kernel = draw.choice([(cubic,) * 3, (1, cubic, cubic), tuple(draw.choice([1, 3, 5, 7, 9]) for _ in range(3))])
        stride = draw.choice([(1, 1, 1), (2, 2, 2), tuple(draw.choice([1, 2, 3]) for _ in range(3))])
        dilation = draw.choice([(1, 1, 1), (1, 1, 1), tuple(draw.choice([1, 2, 3]) for _ in range(3))])
        padding = tuple(draw.randint(0, d * (k - 1) // 2 + 1) for d, k in zip(dilation, kernel, strict=True))
        transposed = draw.random() < 0.4
        extra = tuple(draw.randrange(s) for s in stride) if transposed else (0, 0, 0)
        geometry = ConvGeometry(kernel, stride, padding, dilation, extra, transposed)
        batch, channels = draw.choice([1, 2]), draw.choice([1, 3, 5, 8, 16, 17, 32, 40])
        size = tuple(draw.choice([1, 2, 3, 5, 8, 9, 13, 17, 20, 35]) for _ in range(3))
        result = geometry.output_size(size)
        most = max(size[0] * size[1] * size[2], result[0] * result[1] * result[2])
        if min(result) >= 1 and batch * channels * most <= MOST_VOXELS:
            break
    dtype = draw.choice(DTYPES)

    def volume(*extent: int) -> torch.Tensor:
        return torch.randn(batch, channels, *extent).to(dtype).contiguous(memory_format=draw.choice(FORMATS))

    taps = kernel[0] * kernel[1] * kernel[2]
    grad: Any = volume(*result)
    if draw.random() < 0.5:
        grad = GroupNormGradient(grad, volume(*result), *(torch.randn(batch, channels) for _ in range(3)))
    return Convolution(
        geometry,
        volume(*size),
        (torch.randn(channels, 1, *kernel) * taps**-0.5).to(draw.choice([dtype, torch.float32])),
        torch.randn(channels).to(dtype) if draw.random() < 0.5 else None,
        grad,
        volume(*size) if draw.random() < 0.5 else None,
    )


def bottleneck(seed: int) -> tuple[Any, ...]:
    """The arguments of ``inverted_bottleneck``."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    batch, channels = draw.choice([1, 2]), draw.choice([8, 17, 32, 40])
    hidden, outputs = draw.choice([7, 33, 64, 100]), draw.choice([5, 16, 32, 37])
    size = draw.choice([(3, 5, 2), (7, 9, 11), (4, 4, 4), (16, 16, 17)])
    groups, dtype = draw.choice([channels, 1]), draw.choice(DTYPES)
    parameters = draw.choice([dtype, torch.float32])
    input = (torch.randn(batch, channels, *size) * 2 + 1).to(dtype).contiguous(memory_format=draw.choice(FORMATS))
    residual = torch.randn(batch, outputs, *size).to(dtype).contiguous(memory_format=draw.choice(FORMATS))

    def parameter(*shape: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
        return (torch.randn(*shape) * scale + shift).to(parameters)

    return (
        input,
        torch.randn(batch, groups) * 0.1 + 1,
        torch.rand(batch, groups) + 0.3,
        parameter(channels, scale=0.1, shift=1.0),
        parameter(channels, scale=0.1),
        parameter(hidden, channels, scale=channels**-0.5),
        draw.choice([None, parameter(hidden, scale=0.1)]),
        parameter(outputs, hidden, scale=hidden**-0.5),
        draw.choice([None, parameter(outputs, scale=0.1)]),
        draw.choice([None, (parameter(hidden), parameter(hidden))]),
        draw.choice([None, residual]),
    )
