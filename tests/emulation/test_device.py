"""The same kernels on a GPU and on the emulation: the results differ by the rounding of tensor cores alone."""

from __future__ import annotations

import pytest
import torch

from mednext_ops.backends import cuda
from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient

pytestmark = pytest.mark.gpu

PROBLEMS = [
    pytest.param((2, 3, 5, 9, 24), ConvGeometry((3, 3, 3), padding=(1, 1, 1)), id="k3, boxes"),
    pytest.param((2, 3, 5, 9, 12), ConvGeometry((5, 5, 5), padding=(2, 2, 2)), id="k5, async"),
    pytest.param((1, 2, 4, 9, 13), ConvGeometry((7, 7, 7), padding=(3, 3, 3)), id="k7, elements"),
    pytest.param((1, 2, 9, 33, 128), ConvGeometry((3, 3, 3), padding=(1, 1, 1)), id="k3, full rows"),
    pytest.param((1, 3, 4, 8, 16), ConvGeometry((1, 5, 5), padding=(0, 2, 2)), id="1x5x5"),
    pytest.param((2, 5, 8, 9, 10), ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1)), id="k3, stride 2"),
    pytest.param((1, 4, 5, 4, 6), ConvGeometry((5, 5, 5), (2, 2, 2), (2, 2, 2), transposed=True), id="k5, transposed"),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "geometry"), PROBLEMS)
def test_device_and_emulation_agree(emulated, shape, geometry, dtype, channels_last):
    form = torch.channels_last_3d if channels_last else torch.contiguous_format
    output = (*shape[:2], *geometry.output_size(shape[2:]))

    def draw(*size):
        return torch.randn(size).to(dtype).contiguous(memory_format=form if len(size) == 5 else torch.contiguous_format)

    x, grad, convolved = draw(*shape), draw(*output), draw(*output)
    weight = (torch.randn(shape[1], 1, *geometry.kernel_size) / 5).to(dtype)
    maps = [torch.randn(shape[:2]) for _ in range(3)]

    def run(backend, device):
        on = [t.to(device) for t in (x, weight, grad, convolved, *maps)]
        input, w, *gradient = on
        y, mean, rstd = backend.depthwise_conv3d_statistics(input, w, None, geometry, shape[1], 1e-5)
        data, weight_gradient = backend.depthwise_conv3d_backward(
            GroupNormGradient(*gradient), input, w, geometry, input, True, True
        )
        gamma = torch.ones(shape[1], device=device)
        normalized = backend.group_norm(y, mean, rstd, gamma, gamma, "gelu")
        before = backend.group_norm_backward(gradient[0], y, mean, rstd, gamma, gamma, "gelu")
        results = (y, mean, rstd, data, weight_gradient, normalized, *before)
        return [t.double().cpu() for t in results]

    names = ("output", "mean", "rstd", "data", "weight", "normalized", "before", "sum", "dot")
    with emulated.architecture(cuda._kernels.architecture()):
        expected = run(emulated, "cpu")
    for name, ours, theirs in zip(names, run(cuda, "cuda"), expected, strict=True):
        # Two roundings to the type where a sum lies between them, and the truncation of a few hundred products.
        tolerance = 4 * max(torch.finfo(dtype).eps, 2**-17) * theirs.abs().max()
        assert (ours - theirs).abs().max() <= tolerance, name
