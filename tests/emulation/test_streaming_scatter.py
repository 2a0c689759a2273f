"""The scatters at stride 2 that walk along D, on the emulation: against float64, to the bit in every order.

They are the forward pass of a transposed convolution and the data gradient of a plain one.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient
from mednext_ops.plans import convolution_plans

from ..ops.eager import assert_within_twice
from .repeats import assert_250_runs_give_the_same_bits

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Kernel and stride of all scatters that are compiled.
KERNELS = [
    *(pytest.param((k, k, k), (2, 2, 2), id=f"{k}x{k}x{k}") for k in (3, 5, 7)),
    *(pytest.param((k, k, k), (1, 2, 2), id=f"{k}x{k}x{k} stride 1x2x2") for k in (3, 5, 7)),
    *(pytest.param((1, k, k), (1, 2, 2), id=f"1x{k}x{k}") for k in (3, 5, 7)),
]
CUBIC = KERNELS[:3]
FORMATS = [
    pytest.param(torch.contiguous_format, id="NCDHW"),
    pytest.param(torch.channels_last_3d, id="channels_last_3d"),
]
CHANNELS = 3
# Of the small tensor. Rows of several warps, rows that share a warp, cuts along D, extents below the kernel.
SIZES = [(4, 5, 9), (2, 3, 70), (2, 2, 33), (37, 2, 4), (3, 21, 5), (1, 1, 1), (1, 2, 2)]


def geometry_of(kernel, stride, more=(0, 0, 0), transposed=True) -> ConvGeometry:
    return ConvGeometry(kernel, stride, tuple(k // 2 for k in kernel), output_padding=more, transposed=transposed)


@pytest.fixture(autouse=True)
def no_tensor_cores(emulated):
    """On sm_75 no 16-bit problem goes to the tensor cores instead."""
    with emulated.architecture(75):
        yield


def core_of(shape, geometry, dtype, architecture, channels_last, of):
    name = str(dtype).removeprefix("torch.")
    return convolution_plans(shape, geometry, name, architecture, channels_last=channels_last)[of]["core"]


def draw(*shape, dtype=torch.float32, memory_format=torch.contiguous_format):
    x = torch.randn(*shape).to(dtype)
    return x.contiguous(memory_format=memory_format) if len(shape) == 5 else x


def draw_weight(kernel, dtype, channels=CHANNELS):
    return (torch.randn(channels, 1, *kernel) / (kernel[0] * kernel[1] * kernel[2]) ** 0.5).to(dtype)


def written_out(gradient, dtype):
    grad, output, *maps = gradient
    wide = torch.promote_types(dtype, torch.float32)
    scale, slope, offset = (m.to(wide)[..., None, None, None] for m in maps)
    return (scale * grad.to(wide) + slope * output.to(wide) + offset).to(dtype)


def largest_padding(stride):
    """Of the output: every row, column and plane that a convolution at that stride never reads is there."""
    return tuple(s - 1 for s in stride)


@pytest.mark.parametrize("architecture", [75, 80, 90, 120])
@pytest.mark.parametrize("channels_last", [False, True], ids=["NCDHW", "channels_last_3d"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_every_scatter_streams_that_tensor_cores_do_not_take(kernel, stride, dtype, channels_last, architecture):
    transposed, plain = geometry_of(kernel, stride), geometry_of(kernel, stride, transposed=False)
    tensor_cores = architecture >= 80 and dtype != torch.float32 and not channels_last and stride == (2, 2, 2)
    core = "strided_scatter" if tensor_cores else "streaming"
    assert core_of((1, 32, 9, 9, 9), transposed, dtype, architecture, channels_last, "forward") == core
    assert core_of((1, 32, 16, 16, 16), plain, dtype, architecture, channels_last, "backward_data") == core


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("even", [False, True], ids=["odd outputs", "even outputs"])
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_the_forward_pass_of_every_transposed_convolution(emulated, kernel, stride, even, size, dtype, memory_format):
    geometry = geometry_of(kernel, stride, largest_padding(stride) if even else (0, 0, 0))
    x, w = draw(2, CHANNELS, *size, dtype=dtype, memory_format=memory_format), draw_weight(kernel, dtype)
    b = draw(CHANNELS, dtype=dtype)
    output = emulated.depthwise_conv3d(x, w, b, geometry)
    assert output.is_contiguous(memory_format=memory_format) or size == (1, 1, 1)  # one voxel is of both formats

    def eager(dtype):
        tensors = x.to(dtype).contiguous(), w.to(dtype), b.to(dtype)
        return F.conv_transpose3d(*tensors, stride, geometry.padding, geometry.output_padding, CHANNELS)

    assert_within_twice(output, eager(dtype), eager(torch.float64), "output")


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(6, 9, 12), (5, 7, 33), (1, 2, 3)])
@pytest.mark.parametrize("affine", [False, True], ids=["written", "affine"])
@pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
@pytest.mark.parametrize(("kernel", "stride"), CUBIC)
def test_the_data_gradient_of_every_convolution(emulated, kernel, stride, added, affine, size, dtype, memory_format):
    geometry = geometry_of(kernel, stride, transposed=False)
    x = draw(2, CHANNELS, *size, dtype=dtype, memory_format=memory_format)
    w = draw_weight(kernel, dtype)
    grad = draw(2, CHANNELS, *geometry.output_size(size), dtype=dtype, memory_format=memory_format)
    add = torch.randn_like(x) if added else None
    given, written = grad, {torch.float64: grad.double(), dtype: grad}
    if affine:
        given = GroupNormGradient(grad, torch.randn_like(grad), *(torch.randn(2, CHANNELS) for _ in range(3)))
        written = {d: written_out(given, d) for d in (torch.float64, dtype)}
    data, _ = emulated.depthwise_conv3d_backward(given, x, w, geometry, add, True, False)
    assert data.is_contiguous(memory_format=memory_format)

    def eager(dtype):
        gradient = written[dtype].contiguous()
        made = torch.nn.grad.conv3d_input(x.shape, w.to(dtype), gradient, stride, geometry.padding, groups=CHANNELS)
        return made if add is None else made + add.to(dtype)

    assert_within_twice(data, eager(dtype), eager(torch.float64), "gradient of the input")


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (3, 2), (1, 35), (2, 17)])
@pytest.mark.parametrize(("kernel", "stride"), CUBIC)
def test_samples_and_channels_are_apart(emulated, kernel, stride, batch, channels, memory_format):
    geometry = geometry_of(kernel, stride)
    x, w = draw(batch, channels, 3, 4, 5, memory_format=memory_format), draw_weight(kernel, torch.float32, channels)
    output = emulated.depthwise_conv3d(x, w, None, geometry)

    def eager(dtype):
        return F.conv_transpose3d(x.to(dtype).contiguous(), w.to(dtype), None, stride, geometry.padding, 0, channels)

    assert_within_twice(output, eager(torch.float32), eager(torch.float64), "output")


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("even", [False, True], ids=["odd outputs", "even outputs"])
@pytest.mark.parametrize("size", [(6, 9, 13), (35, 2, 3), (1, 1, 1)])
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_the_statistics_are_those_of_what_was_stored(emulated, kernel, stride, size, even, dtype, memory_format):
    geometry = geometry_of(kernel, stride, largest_padding(stride) if even else (0, 0, 0))
    x, w = draw(2, CHANNELS, *size, dtype=dtype, memory_format=memory_format), draw_weight(kernel, dtype)
    b = 100 + draw(CHANNELS)  # a mean far larger than the deviation
    output, mean, rstd = emulated.depthwise_conv3d_statistics(x, w, b, geometry, CHANNELS, 1e-5)
    assert torch.equal(output, emulated.depthwise_conv3d(x, w, b, geometry))
    exact_variance, exact_mean = torch.var_mean(output.double().flatten(2), dim=2, correction=0)
    exact_rstd = (exact_variance + 1e-5).rsqrt()
    assert ((mean.double() - exact_mean).abs() <= 2**-21 * (exact_mean.abs() + 1 / exact_rstd)).all()
    assert ((rstd.double() - exact_rstd).abs() <= 2**-20 * exact_rstd).all()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_every_order_of_threads_gives_the_same_bits(emulated, kernel, stride, dtype, memory_format):
    geometry = geometry_of(kernel, stride)
    x, w = draw(2, CHANNELS, 5, 9, 20, dtype=dtype, memory_format=memory_format), draw_weight(kernel, dtype)

    def run():
        return emulated.depthwise_conv3d_statistics(x, w, None, geometry, CHANNELS, 1e-5)

    first = run()
    for order, seed in [("reversed", 0), *(("shuffled", seed) for seed in range(3))]:
        with emulated.thread_order(order, seed):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (7, 7, 7)])
def test_250_runs_give_the_same_bits(emulated, kernel, memory_format):
    geometry = geometry_of(kernel, (2, 2, 2))
    x, w = draw(1, CHANNELS, 2, 3, 5, memory_format=memory_format), draw_weight(kernel, torch.float32)
    assert_250_runs_give_the_same_bits(emulated, lambda: emulated.depthwise_conv3d(x, w, None, geometry))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("kernel", "stride"), CUBIC)
def test_a_volume_is_the_same_bits_wherever_it_is_cut(emulated, kernel, stride, memory_format):
    """One sample is walked through in shorter pieces than many are."""
    geometry = geometry_of(kernel, stride)
    x, w = draw(1, CHANNELS, 40, 2, 3, memory_format=memory_format), draw_weight(kernel, torch.float32)
    many = x.expand(400, *x.shape[1:]).contiguous(memory_format=memory_format)
    alone = emulated.depthwise_conv3d(x, w, None, geometry)
    assert torch.equal(emulated.depthwise_conv3d(many, w, None, geometry)[-1:], alone)
