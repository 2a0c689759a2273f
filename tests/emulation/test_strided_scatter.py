"""The scatter at stride 2 on tensor cores on the emulation: against float64, to the bit in every order.

It is the forward pass of a transposed convolution and the data gradient of a plain one.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient
from mednext_ops.plans import convolution_plans

from ..ops.eager import assert_within_twice, rms_error
from .gradients import affine_gradient, shifted, written_out
from .repeats import assert_250_runs_give_the_same_bits

DTYPES = [torch.bfloat16, torch.float16]
KERNELS = [3, 5, 7]
CHANNELS = 3

# Extents of the input, and whether its rows are copied to where they are read.
INPUTS = [
    pytest.param((4, 5, 12), True, id="direct"),
    pytest.param((3, 4, 68), True, id="direct, two tiles a row"),
    pytest.param((5, 4, 7), False, id="odd"),
    pytest.param((4, 5, 18), False, id="even"),
    pytest.param((3, 3, 65), False, id="odd, two tiles a row"),
]
# Which axes of the output are one longer than 2 n - 1: even ones, D, H, W. Rows begin at odd elements as the volume,
# the plane and the row are odd.
EVEN = [(0, 0, 0), (1, 1, 1), (0, 0, 1), (1, 0, 0), (0, 1, 0)]
# Of the input. Rows of several tiles, fragments of several rows, cut by the edge along each axis, cuts along D, below
# the kernel.
SIZES = [
    (2, 3, 80), (1, 2, 17), (35, 2, 4), (3, 20, 5), (5, 1, 10), (1, 1, 1), (1, 1, 2), (2, 2, 3), (17, 3, 8),
    (2, 19, 32), (3, 2, 33), (2, 2, 16), (1, 40, 64), (2, 150, 3), (1, 75, 6), (1, 4, 130),
]  # fmt: skip


def geometry_of(kernel, more=(0, 0, 0), transposed=True) -> ConvGeometry:
    return ConvGeometry((kernel,) * 3, (2,) * 3, (kernel // 2,) * 3, output_padding=more, transposed=transposed)


def plan_of(shape, geometry, dtype, architecture=90, **details):
    """The plan of the scatter: forward of a transposed convolution, data gradient of a plain one."""
    name = str(dtype).removeprefix("torch.")
    plans = convolution_plans(shape, geometry, name, architecture, **details)
    return plans["forward" if geometry.transposed else "backward_data"]


def draw(size, kernel, dtype, batch=2, channels=CHANNELS):
    x = torch.randn(batch, channels, *size).to(dtype)
    w = (torch.randn(channels, 1, *(kernel,) * 3) / kernel**1.5).to(dtype)
    return x, w, torch.randn(channels).to(dtype)


def eager(x, w, b=None, more=(0, 0, 0)):
    return F.conv_transpose3d(x, w, b, 2, w.shape[-1] // 2, more, w.shape[0])


def large(size, more=(0, 0, 0)):
    """The extents of the output."""
    return tuple(2 * extent - 1 + one for extent, one in zip(size, more, strict=True))


def data_gradient(emulated, grad, w, add, more=(0, 0, 0)):
    """Of a convolution, whose gradient of the output is `grad` and whose input has extents large(..., more)."""
    like = grad.grad if isinstance(grad, GroupNormGradient) else grad
    input = torch.zeros(*like.shape[:2], *large(like.shape[2:], more), dtype=like.dtype)
    geometry = geometry_of(w.shape[-1], transposed=False)
    data, weight = emulated.depthwise_conv3d_backward(grad, input, w, geometry, add, True, False)
    assert weight is None
    return data


def check_forward(emulated, size, kernel, dtype, more=(0, 0, 0)):
    x, w, b = draw(size, kernel, dtype)
    assert plan_of(x.shape, geometry_of(kernel, more), dtype)["core"] == "strided_scatter"
    output = emulated.depthwise_conv3d(x, w, b, geometry_of(kernel, more))
    assert_within_twice(output, eager(x, w, b, more), eager(x.double(), w.double(), b.double(), more), "output")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "direct"), INPUTS)
def test_every_kernel(emulated, size, direct, kernel, dtype):
    assert plan_of((2, CHANNELS, *size), geometry_of(kernel), dtype)["direct"] == direct
    check_forward(emulated, size, kernel, dtype)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(4, 5, 12), (3, 4, 7), (2, 2, 64)])
@pytest.mark.parametrize("more", EVEN[1:])
def test_even_extents_of_the_output(emulated, more, size, kernel):
    check_forward(emulated, size, kernel, torch.bfloat16, more)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", SIZES)
def test_every_shape_of_tile(emulated, size, kernel):
    check_forward(emulated, size, kernel, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "direct"), INPUTS)
@pytest.mark.parametrize("more", EVEN[:2])
def test_the_data_gradient_of_a_convolution(emulated, more, size, direct, kernel, dtype):
    grad, w, _ = draw(size, kernel, dtype)
    add = torch.randn(2, CHANNELS, *large(size, more)).to(dtype)
    plan = plan_of(add.shape, geometry_of(kernel, transposed=False), dtype)
    assert (plan["core"], plan["direct"]) == ("strided_scatter", direct)
    alone = data_gradient(emulated, grad, w, None, more)
    assert torch.equal(alone, emulated.depthwise_conv3d(grad, w, None, geometry_of(kernel, more)))
    data = data_gradient(emulated, grad, w, add, more)
    exact = eager(grad.double(), w.double(), None, more) + add.double()
    assert_within_twice(data, eager(grad, w, None, more) + add, exact, "data")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "direct"), INPUTS)
def test_a_gradient_that_is_not_written_out(emulated, size, direct, kernel, dtype):
    more = (1, 1, 1) if direct else (0, 0, 0)
    grad, w, _ = draw(size, kernel, dtype)
    add = torch.randn(2, CHANNELS, *large(size, more)).to(dtype)
    gradient = affine_gradient(grad)
    plan = plan_of(add.shape, geometry_of(kernel, transposed=False), dtype, affine=True)
    assert (plan["core"], plan["direct"]) == ("strided_scatter", False)
    data = data_gradient(emulated, gradient, w, add, more)
    # Computed in float and rounded once, and what lies outside of the volume is zero, not its offset.
    rounded = written_out(gradient, dtype)
    exact = eager(written_out(gradient, torch.float64), w.double(), None, more) + add.double()
    assert_within_twice(data, eager(rounded, w, None, more) + add, exact, "data")
    plain = data_gradient(emulated, rounded, w, add, more)
    assert rms_error(data, plain.double()) <= torch.finfo(dtype).eps / 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("more", EVEN)
@pytest.mark.parametrize("size", [(3, 5, 12), (3, 3, 7), (2, 10, 64), (20, 2, 3), (1, 1, 1)])
def test_statistics_are_those_of_the_output_as_it_is_stored(emulated, size, more, kernel, dtype):
    x, w, b = draw(size, kernel, dtype)
    b = b.float() + 8  # a mean far larger than the deviation
    geometry = geometry_of(kernel, more)
    for groups in (CHANNELS, 1):
        y, mean, rstd = emulated.depthwise_conv3d_statistics(x, w, b, geometry, groups, 1e-5)
        assert torch.equal(y, emulated.depthwise_conv3d(x, w, b, geometry))
        variance, exact = torch.var_mean(y.double().reshape(2, groups, -1), 2, correction=0)
        exact_rstd = (variance + 1e-5).rsqrt()
        assert ((mean - exact).abs() <= 2**-21 * (exact.abs() + 1 / exact_rstd)).all()
        assert ((rstd - exact_rstd).abs() <= 2**-21 * exact_rstd).all()


def all_results(emulated, x, w, b, gradient, add, more=(0, 0, 0)):
    geometry = geometry_of(w.shape[-1], more)
    return (
        *emulated.depthwise_conv3d_statistics(x, w, b, geometry, CHANNELS, 1e-5),
        data_gradient(emulated, gradient, w, add, more),
    )


def draw_all(size, kernel, more=(0, 0, 0), dtype=torch.bfloat16):
    x, w, b = draw(size, kernel, dtype)
    gradient = affine_gradient(torch.randn_like(x))
    return x, w, b, gradient, torch.randn(2, CHANNELS, *large(size, more)).to(dtype), more


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "direct"), INPUTS)
def test_every_order_of_threads_gives_the_same_bits(emulated, size, direct, kernel):
    given = draw_all(size, kernel)
    first = all_results(emulated, *given)
    for order, seed in [("reversed", 0), *(("shuffled", seed) for seed in range(4))]:
        with emulated.thread_order(order, seed):
            assert equal(first, all_results(emulated, *given))


@pytest.mark.parametrize(("kernel", "size"), [(3, (2, 3, 8)), (7, (1, 2, 8))])
def test_250_runs_give_the_same_bits(emulated, kernel, size):
    given = draw_all(size, kernel)
    assert_250_runs_give_the_same_bits(emulated, lambda: all_results(emulated, *given))


@pytest.mark.parametrize("more", EVEN[:2])
@pytest.mark.parametrize("size", [(5, 5, 12), (4, 5, 7), (3, 3, 17), (1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_alignment_and_the_architecture_change_no_bit(emulated, kernel, size, more):
    x, w, b, gradient, add, more = draw_all(size, kernel, more)
    first = all_results(emulated, x, w, b, gradient, add, more)
    for architecture in (80, 86, 120):
        with emulated.architecture(architecture):
            assert equal(first, all_results(emulated, x, w, b, gradient, add, more))
    for by in (1, 2, 3, 4):
        elsewhere = gradient._replace(grad=shifted(gradient.grad, by))
        assert equal(first, all_results(emulated, shifted(x, by), w, b, elsewhere, shifted(add, by), more))
        elsewhere = gradient._replace(output=shifted(gradient.output, by))
        assert equal(first, all_results(emulated, x, w, b, elsewhere, add, more))


def test_the_cut_of_the_tile_changes_no_bit(emulated):
    x, w, _ = draw((10, 5, 12), 5, torch.bfloat16)
    alone = emulated.depthwise_conv3d(x[:1, :1].contiguous(), w[:1], None, geometry_of(5))  # cut otherwise along D
    assert torch.equal(alone, emulated.depthwise_conv3d(x, w, None, geometry_of(5))[:1, :1])


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_float32_parameters_are_rounded_to_the_tensor_type_once(emulated, weight_dtype):
    x, w, b = draw((3, 4, 8), 3, torch.bfloat16)
    wide = emulated.depthwise_conv3d(x, w.to(weight_dtype), b.to(weight_dtype), geometry_of(3))
    assert torch.equal(wide, emulated.depthwise_conv3d(x, w, b, geometry_of(3)))


@pytest.mark.parametrize("width", [32, 31])
def test_a_value_that_is_not_finite_reaches_only_its_neighbourhood(emulated, width):
    x, w, _ = draw((4, 5, width), 3, torch.bfloat16)
    clean = emulated.depthwise_conv3d(x, w, None, geometry_of(3))
    x[0, 1, 2, 2, 16] = float("inf")
    dirty = emulated.depthwise_conv3d(x, w, None, geometry_of(3))
    assert not dirty[0, 1, 4, 4, 32].isfinite()
    changed = torch.zeros_like(dirty, dtype=torch.bool)
    changed[0, 1, 3:6, 2:6, 23:48] = True
    assert torch.equal(dirty[~changed], clean[~changed])


def test_error_of_a_long_sum_is_that_of_one_rounding(emulated):
    """Up to 64 products are summed in float: the error is the output's own rounding."""
    x, w, _ = draw((6, 8, 12), 7, torch.bfloat16)
    exact = eager(x.double(), w.double())
    error = rms_error(emulated.depthwise_conv3d(x, w, None, geometry_of(7)), exact)
    assert error <= 1.05 * rms_error(exact.bfloat16(), exact)


def test_an_empty_batch_gives_an_empty_output(emulated):
    x, w, b = draw((4, 5, 6), 3, torch.bfloat16, batch=0)
    y, mean, rstd = emulated.depthwise_conv3d_statistics(x, w, b, geometry_of(3), CHANNELS, 1e-5)
    assert y.shape == (0, CHANNELS, 7, 9, 11) and mean.shape == rstd.shape == (0, CHANNELS)


@pytest.mark.parametrize(
    ("details", "core"),
    [
        ({"architecture": 75}, "streaming"),
        ({"dtype": torch.float32}, "streaming"),
        ({"channels_last": True}, "streaming"),
        ({"geometry": ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 0), transposed=True)}, "general"),
        ({"geometry": ConvGeometry((3, 3, 3), (1, 2, 2), (1, 1, 1), transposed=True)}, "streaming"),
        ({"geometry": ConvGeometry((1, 3, 3), (1, 2, 2), (0, 1, 1), transposed=True)}, "streaming"),
        ({"geometry": ConvGeometry((9, 9, 9), (2, 2, 2), (4, 4, 4), transposed=True)}, "general"),
    ],
    ids=["no such tensor cores", "float32", "channels_last", "not centred", "1x2x2", "flat", "a larger kernel"],
)
def test_the_rest_goes_to_the_other_cores(details, core):
    options = {"geometry": geometry_of(3), "dtype": torch.bfloat16, "architecture": 90} | details
    assert plan_of((1, 4, 16, 16, 16), **options)["core"] == core


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_plans_cover_the_volume(affine, transposed):
    for size in [(64, 64, 64), (32, 32, 32), (8, 8, 8), (1, 1, 1), (40, 1000, 24), (3, 2000, 16), (700, 5, 3000)]:
        for kernel in KERNELS:
            geometry = geometry_of(kernel, transposed=transposed)
            output = large(size, (0,) * 3 if transposed else (1,) * 3)
            plan = plan_of((2, 16, *(size if transposed else output)), geometry, torch.bfloat16, affine=affine)
            assert plan["core"] == "strided_scatter"
            for extent, of_tile, tiles in zip(output, plan["tile"], plan["tiles"], strict=True):
                assert of_tile * tiles >= extent > of_tile * (tiles - 1) - 2
            assert plan["blocks"] == 2 * 16 * math.prod(plan["tiles"])
            assert plan["moments_per_channel"] == math.prod(plan["tiles"])
            _, rows, columns = plan["tile"]
            windows = rows // 2 * columns // 8
            assert plan["threads"] == -(-windows // 32) * 32 <= 128
            assert plan["ring_bytes"] <= 92 * 1024  # of the 99 KiB of the smallest


def test_plans_at_the_stages_of_the_network_use_the_whole_gpu():
    for channels, extent in [(64, 64), (128, 32), (256, 16), (512, 8)]:
        for kernel in KERNELS:
            plan = plan_of((1, channels, extent, extent, extent), geometry_of(kernel), torch.bfloat16)
            assert (plan["core"], plan["direct"]) == ("strided_scatter", True)
            assert plan["blocks"] >= 132 * 3 - 12
            down = (1, channels // 2, *(2 * extent,) * 3)
            plan = plan_of(down, geometry_of(kernel, transposed=False), torch.bfloat16)
            assert (plan["core"], plan["direct"]) == ("strided_scatter", True)
