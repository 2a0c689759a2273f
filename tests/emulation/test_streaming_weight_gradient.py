"""The weight gradient in float FMAs on the emulation: against float64, and to the bit in every order of threads."""

from __future__ import annotations

import math

import pytest
import torch

from mednext_ops.backends.problem import ConvGeometry
from mednext_ops.plans import convolution_plans

from ..ops.eager import assert_within_twice, rms_error
from .gradients import affine_gradient, written_out
from .gradients import pytorchs_weight_gradient as eager
from .repeats import assert_250_runs_give_the_same_bits

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Kernel and stride of all that is compiled.
KERNELS = [
    *(pytest.param((k, k, k), s, id=f"{k}x{k}x{k} stride {s}") for k in (3, 5, 7) for s in (1, 2)),
    *(pytest.param((1, k, k), 1, id=f"1x{k}x{k}") for k in (3, 5, 7)),
]
FORMATS = [
    pytest.param(torch.contiguous_format, id="NCDHW"),
    pytest.param(torch.channels_last_3d, id="channels_last_3d"),
]
CHANNELS = 3
# On sm_75 no 16-bit problem goes to the tensor cores instead.
ARCHITECTURE = 75

# Extents of the input: rows of several warps, rows that share a warp, cuts along D, extents below the kernel, odd ones.
SIZES = [(3, 6, 160), (2, 4, 33), (70, 3, 8), (5, 40, 9), (9, 2, 20), (1, 1, 1), (2, 2, 3)]


def geometry_of(kernel, stride=1, transposed=False) -> ConvGeometry:
    return ConvGeometry(kernel, (stride,) * 3, tuple(k // 2 for k in kernel), transposed=transposed)


def plan_of(shape, geometry, dtype, architecture=ARCHITECTURE, **details):
    name = str(dtype).removeprefix("torch.")
    return convolution_plans(shape, geometry, name, architecture, **details)["backward_weight"]


def draw(size, geometry, dtype, memory_format=torch.contiguous_format, batch=2, channels=CHANNELS):
    """An input and a gradient of the output."""
    input = torch.randn(batch, channels, *size).to(dtype)
    grad = torch.randn(batch, channels, *geometry.output_size(size)).to(dtype)
    return input.contiguous(memory_format=memory_format), grad.contiguous(memory_format=memory_format)


def by_kernel(emulated, grad, input, geometry):
    """The kernel itself: the backend writes some gradients out before it."""
    parts = (grad, None, None, None, None) if isinstance(grad, torch.Tensor) else tuple(grad)
    numbers = geometry.stride, geometry.padding, geometry.dilation, geometry.output_padding
    arguments = [list(geometry.kernel_size), *map(list, numbers), geometry.transposed]
    with emulated.architecture(ARCHITECTURE):
        gradient = emulated._kernels._native.depthwise_conv3d_backward_weight(*parts, input, *arguments)
    assert gradient.dtype == torch.float32
    return gradient


def check(weight, grad, input, geometry):
    exact = eager(grad.double(), input.double(), geometry)
    assert_within_twice(weight, eager(grad, input, geometry), exact, "weight")
    assert rms_error(weight, exact) <= 1e-6  # nothing is rounded but sums, in float


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_every_kernel(emulated, kernel, stride, dtype, memory_format, transposed):
    geometry = geometry_of(kernel, stride, transposed)
    input, grad = draw((7, 9, 12), geometry, dtype, memory_format)
    channels_last = memory_format == torch.channels_last_3d
    assert plan_of(input.shape, geometry, dtype, channels_last=channels_last)["core"] == "streaming"
    check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_a_gradient_that_is_not_written_out(emulated, kernel, stride, dtype, memory_format, transposed):
    geometry = geometry_of(kernel, stride, transposed)
    input, grad = draw((6, 7, 9), geometry, dtype, memory_format)
    gradient = affine_gradient(grad)
    weight = by_kernel(emulated, gradient, input, geometry)
    exact = eager(written_out(gradient, torch.float64), input.double(), geometry)
    assert_within_twice(weight, eager(written_out(gradient, dtype), input, geometry), exact, "weight")
    # The map is computed in float and not rounded, and what lies outside of the volume is zero, not its offset.
    assert rms_error(weight, exact) <= 1e-6


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
@pytest.mark.parametrize("size", SIZES)
def test_every_shape_of_tile(emulated, size, kernel, stride, memory_format):
    geometry = geometry_of(kernel, stride)
    input, grad = draw(size, geometry, torch.float32, memory_format)
    check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (3, 2), (1, 35), (2, 17)])
def test_samples_are_added_and_channels_are_not(emulated, batch, channels, memory_format):
    geometry = geometry_of((3, 3, 3))
    input, grad = draw((4, 5, 6), geometry, torch.float32, memory_format, batch, channels)
    check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_every_order_of_threads_gives_the_same_bits(emulated, kernel, stride, memory_format, transposed):
    geometry = geometry_of(kernel, stride, transposed)
    input, grad = draw((5, 9, 20), geometry, torch.float32, memory_format)
    gradient = affine_gradient(grad)
    first = [by_kernel(emulated, g, input, geometry) for g in (grad, gradient)]
    for order, seed in [("reversed", 0), *(("shuffled", seed) for seed in range(3))]:
        with emulated.thread_order(order, seed):
            again = [by_kernel(emulated, g, input, geometry) for g in (grad, gradient)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (7, 7, 7)])
def test_250_runs_give_the_same_bits(emulated, kernel, memory_format):
    geometry = geometry_of(kernel)
    input, grad = draw((2, 3, 8), geometry, torch.float32, memory_format)
    assert_250_runs_give_the_same_bits(emulated, lambda: by_kernel(emulated, grad, input, geometry))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_vectors_or_elements_change_no_bit(emulated, kernel, stride, dtype):
    geometry = geometry_of(kernel, stride)
    input, grad = draw((5, 6, 16), geometry, dtype)
    gradient = affine_gradient(grad)
    expected = by_kernel(emulated, gradient, input, geometry)

    def shifted(t):
        return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape).copy_(t)

    elsewhere = gradient._replace(grad=shifted(gradient.grad), output=shifted(gradient.output))
    assert torch.equal(by_kernel(emulated, gradient, shifted(input), geometry), expected)
    assert torch.equal(by_kernel(emulated, elsewhere, input, geometry), expected)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_value_that_is_not_finite_stays_in_its_channel(emulated, memory_format):
    geometry = geometry_of((5, 5, 5))
    input, grad = draw((5, 6, 16), geometry, torch.float32, memory_format)
    clean = by_kernel(emulated, grad, input, geometry)
    input[1, 1, 2, 3, 5] = float("nan")
    dirty = by_kernel(emulated, grad, input, geometry)
    assert dirty[1].isnan().all()
    assert torch.equal(dirty[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("memory_format", FORMATS)
def test_an_empty_batch_gives_zeros(emulated, memory_format):
    geometry = geometry_of((3, 3, 3))
    input, grad = draw((4, 5, 8), geometry, torch.float32, memory_format, batch=0)
    assert not by_kernel(emulated, grad, input, geometry).any()


@pytest.mark.parametrize(
    ("geometry", "why"),
    [
        (ConvGeometry((3, 3, 3), padding=(0, 1, 1)), "not centred along D"),
        (ConvGeometry((3, 3, 3), padding=(1, 1, 0)), "not centred along W"),
        (ConvGeometry((3, 3, 5), padding=(1, 1, 2)), "another kernel along W"),
        (ConvGeometry((5, 3, 3), padding=(2, 1, 1)), "another kernel along D"),
        (ConvGeometry((3, 3, 3), padding=(2, 2, 2), dilation=(2, 2, 2)), "dilation"),
        (ConvGeometry((9, 9, 9), padding=(4, 4, 4)), "a larger kernel"),
        (ConvGeometry((3, 3, 3), (1, 1, 2), (1, 1, 1)), "a stride of its own along W"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_rest_goes_to_the_general_core(geometry, why):
    assert plan_of((1, 4, 16, 16, 16), geometry, torch.float32)["core"] == "general"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
def test_plans_cover_the_volume(kernel, stride, channels_last):
    geometry = geometry_of(kernel, stride)
    for size in [(128, 128, 128), (8, 8, 8), (1, 1, 1), (40, 1000, 24), (3, 2000, 16), (7, 5, 3000)]:
        plan = plan_of((2, 24, *size), geometry, torch.float32, channels_last=channels_last)
        assert plan["core"] == "streaming"
        outputs = geometry.output_size(size)
        taps = plan["planes_of_taps_a_warp"]
        steps = (outputs[0] + taps - 1, *outputs[1:])
        assert all(t * n >= s > t * (n - 1) for t, n, s in zip(plan["tile"], plan["tiles"], steps, strict=True))
        assert plan["parts"] == 2 * -(-math.prod(plan["tiles"]) // plan["tiles_a_warp"])
        assert plan["workspace_bytes"] == plan["parts"] * 24 * kernel[0] * kernel[1] * kernel[2] * 4
        # Products that a thread adds to one sum: the error grows with their number.
        rows = plan["tile"][1] * plan["tile"][2] * plan["channels_a_warp"] // 32 // 4
        assert plan["tile"][0] * rows * 4 <= 256
        assert plan["threads"] <= 256


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("architecture", [75, 80, 90, 120])
def test_plans_at_the_stages_of_the_network_use_the_whole_gpu(architecture, channels_last):
    for channels, extent in [(32, 128), (64, 64), (128, 32), (256, 16), (512, 8)]:
        for kernel in (3, 5, 7):
            shape = (1, channels, extent, extent, extent)
            plan = plan_of(shape, geometry_of((kernel,) * 3), torch.float32, architecture, channels_last=channels_last)
            assert plan["core"] == "streaming"
            assert plan["blocks"] >= 132
            # It stays in the second-level cache of an H200, which has 50 MB.
            assert plan["workspace_bytes"] <= 45_000_000
