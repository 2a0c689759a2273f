"""The convolutions in float FMAs that walk along D, on the emulation: against float64, to the bit in every order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import ConvGeometry
from mednext_ops.plans import convolution_plans

from ..ops.eager import assert_within_twice
from .repeats import assert_250_runs_give_the_same_bits

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Kernel and stride of all gathers that are compiled.
KERNELS = [
    *(pytest.param((k, k, k), (s,) * 3, id=f"{k}x{k}x{k} stride {s}") for k in (3, 5, 7) for s in (1, 2)),
    *(pytest.param((k, k, k), (1, 2, 2), id=f"{k}x{k}x{k} stride 1x2x2") for k in (3, 5, 7)),
    *(pytest.param((1, k, k), (1, s, s), id=f"1x{k}x{k} stride 1x{s}x{s}") for k in (3, 5, 7) for s in (1, 2)),
]
FORMATS = [
    pytest.param(torch.contiguous_format, id="NCDHW"),
    pytest.param(torch.channels_last_3d, id="channels_last_3d"),
]
CHANNELS = 3
# On sm_75 no 16-bit problem goes to the tensor cores instead.
ARCHITECTURE = 75
# Rows of several warps, rows that share a warp, cuts along D, extents below the kernel, odd ones.
SIZES = [(7, 9, 12), (3, 6, 160), (2, 4, 33), (70, 3, 8), (5, 40, 9), (1, 1, 1), (2, 2, 3)]


def geometry_of(kernel, stride=(1, 1, 1), transposed=False) -> ConvGeometry:
    return ConvGeometry(kernel, stride, tuple(k // 2 for k in kernel), transposed=transposed)


def core_of(shape, geometry, dtype, memory_format, of="forward"):
    channels_last = memory_format == torch.channels_last_3d
    name = str(dtype).removeprefix("torch.")
    return convolution_plans(shape, geometry, name, ARCHITECTURE, channels_last=channels_last)[of]["core"]


def draw(size, kernel, dtype, memory_format):
    x = torch.randn(2, CHANNELS, *size).to(dtype).contiguous(memory_format=memory_format)
    w = (torch.randn(CHANNELS, 1, *kernel) / (kernel[0] * kernel[1] * kernel[2]) ** 0.5).to(dtype)
    return x, w, torch.randn(CHANNELS).to(dtype)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_every_gather(emulated, kernel, stride, size, dtype, memory_format):
    geometry = geometry_of(kernel, stride)
    x, w, b = draw(size, kernel, dtype, memory_format)
    assert core_of(x.shape, geometry, dtype, memory_format) == "streaming"
    with emulated.architecture(ARCHITECTURE):
        output = emulated.depthwise_conv3d(x, w, b, geometry)
    assert output.is_contiguous(memory_format=memory_format)
    exact = F.conv3d(x.double(), w.double(), b.double(), stride, geometry.padding, groups=CHANNELS)
    theirs = F.conv3d(x.contiguous(), w, b, stride, geometry.padding, groups=CHANNELS)
    assert_within_twice(output, theirs, exact, "output")


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_the_data_gradient_of_a_transposed_convolution_gathers(emulated, kernel, stride, memory_format):
    geometry = geometry_of(kernel, stride, transposed=True)
    x, w, _ = draw((4, 5, 8), kernel, torch.float32, memory_format)
    assert core_of(x.shape, geometry, torch.float32, memory_format, "backward_data") == "streaming"
    grad = torch.randn(2, CHANNELS, *geometry.output_size(x.shape[2:])).contiguous(memory_format=memory_format)
    with emulated.architecture(ARCHITECTURE):
        data, _ = emulated.depthwise_conv3d_backward(grad, x, w, geometry, None, True, False)

    def exact(dtype):
        return F.conv3d(grad.to(dtype).contiguous(), w.to(dtype), None, stride, geometry.padding, groups=CHANNELS)

    assert_within_twice(data, exact(torch.float32), exact(torch.float64), "gradient of the input")


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_every_order_of_threads_gives_the_same_bits(emulated, kernel, stride, memory_format):
    geometry = geometry_of(kernel, stride)
    x, w, b = draw((5, 9, 20), kernel, torch.float32, memory_format)

    def run():
        with emulated.architecture(ARCHITECTURE):
            return emulated.depthwise_conv3d_statistics(x, w, b, geometry, CHANNELS, 1e-5)

    first = run()
    for order, seed in [("reversed", 0), *(("shuffled", seed) for seed in range(3))]:
        with emulated.thread_order(order, seed):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (7, 7, 7)])
def test_250_runs_give_the_same_bits(emulated, kernel, memory_format):
    geometry = geometry_of(kernel)
    x, w, b = draw((3, 5, 8), kernel, torch.float32, memory_format)
    assert_250_runs_give_the_same_bits(emulated, lambda: emulated.depthwise_conv3d(x, w, b, geometry))
