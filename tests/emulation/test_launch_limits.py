"""Launches that no architecture refuses: the shared memory of each plan is what that architecture has."""

from __future__ import annotations

import random

import pytest
import torch

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient, InvertedBottleneckNeeds

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# Narrow and tall planes, of which two tensors and the gradient they make lie in shared memory (99 KiB on sm_86, sm_89
# and sm_120); the 320 x 320 x 16 and 256 x 256 x 24 voxels of MONAI's order of axes are among them.
NARROW = [(4, 320, w) for w in (4, 8, 12, 16, 20, 24)] + [(16, 343, 8), (4, 225, 16), (4, 167, 24), (64, 248, 16)]


def launch_all(emulated, size: tuple[int, int, int], kernel: int, stride: int, dtype: torch.dtype) -> None:
    """Forward with statistics, both gradients, of a gradient that is given and of one that is computed."""
    geometry = ConvGeometry((kernel,) * 3, (stride,) * 3, (kernel // 2,) * 3)
    output = geometry.output_size(size)
    input, weight = torch.zeros(1, 2, *size, dtype=dtype), torch.zeros(2, 1, *geometry.kernel_size, dtype=dtype)
    grad = torch.zeros(1, 2, *output, dtype=dtype)
    sums = torch.zeros(1, 2)
    emulated.depthwise_conv3d_statistics(input, weight, None, geometry, 2, 1e-5)
    for gradient in (grad, GroupNormGradient(grad, grad, sums, sums, sums)):
        emulated.depthwise_conv3d_backward(gradient, input, weight, geometry, None, True, True)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_narrow_volumes(emulated, architecture, kernel, stride):
    with emulated.architecture(architecture), emulated.launches_only():
        for size in NARROW:
            for dtype in (torch.float16, torch.float32):
                launch_all(emulated, size, kernel, stride, dtype)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_volumes(emulated, architecture):
    draw = random.Random(architecture)
    with emulated.architecture(architecture), emulated.launches_only():
        for _ in range(60):
            width = draw.choice([draw.randint(1, 40), 8 * draw.randint(1, 40)])
            size = draw.randint(1, 6), draw.randint(1, 90000 // width // 6), width
            dtype = draw.choice([torch.float16, torch.bfloat16, torch.float32])
            launch_all(emulated, size, draw.choice([3, 5, 7]), draw.choice([1, 2]), dtype)


@pytest.mark.parametrize("grn", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bottlenecks(emulated, architecture, grn):
    """Those that do not fit go to products."""
    with emulated.architecture(architecture), emulated.launches_only():
        for channels in (32, 64, 128):
            for ratio in (2, 4, 8):
                for outputs in (channels // 2, channels, 2 * channels):
                    _launch_bottleneck(emulated, channels, channels * ratio, outputs, grn)


def _launch_bottleneck(emulated, channels: int, hidden: int, outputs: int, grn: bool) -> None:
    def half(*sizes: int) -> torch.Tensor:
        return torch.zeros(sizes, dtype=torch.bfloat16)

    input, statistics = half(1, channels, 2, 3, 8), torch.ones(1, channels)
    norm, response = (half(channels), half(channels)), (half(hidden), half(hidden)) if grn else None
    expand, compress = (half(hidden, channels), half(hidden)), half(outputs, hidden)
    emulated.inverted_bottleneck(input, statistics, statistics, *norm, *expand, compress, half(outputs), response, None)
    emulated.inverted_bottleneck_backward(
        half(1, outputs, 2, 3, 8), input, statistics, statistics, *norm, *expand, compress, response,
        InvertedBottleneckNeeds(True, True, True, True, grn),
    )  # fmt: skip
