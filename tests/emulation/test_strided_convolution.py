"""The gather at stride 2 on tensor cores on the emulation: against float64, to the bit in every order."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient
from mednext_ops.plans import convolution_plans

from ..ops.eager import assert_within_twice, rms_error
from .gradients import affine_gradient, halved, shifted, written_out
from .repeats import assert_250_runs_give_the_same_bits

DTYPES = [torch.bfloat16, torch.float16]
KERNELS = [3, 5, 7]
CHANNELS = 3

# Extents of the input, and whether its rows are copied to where they are read.
INPUTS = [
    pytest.param((5, 9, 24), True, id="direct"),
    pytest.param((8, 4, 132), True, id="direct, two tiles a row"),
    pytest.param((7, 9, 13), False, id="odd"),
    pytest.param((6, 7, 38), False, id="even"),
    pytest.param((5, 5, 131), False, id="odd, two tiles a row"),
]
# Rows of several tiles, fragments of several rows, cut by the edge along each axis, cuts along D, below the kernel.
SIZES = [
    (3, 6, 160), (2, 4, 33), (70, 3, 8), (5, 40, 9), (9, 2, 20), (1, 1, 1), (2, 2, 3), (1, 1, 2), (33, 5, 16),
    (4, 37, 64), (6, 3, 66), (3, 3, 31), (2, 80, 128), (3, 300, 5), (2, 150, 12), (2, 7, 260),
]  # fmt: skip


def geometry_of(kernel, transposed=False) -> ConvGeometry:
    return ConvGeometry((kernel,) * 3, (2, 2, 2), (kernel // 2,) * 3, transposed=transposed)


def plan_of(shape, geometry, dtype, architecture=90, **details):
    """The plan of the gather: forward of a convolution, data gradient of a transposed one."""
    name = str(dtype).removeprefix("torch.")
    plans = convolution_plans(shape, geometry, name, architecture, **details)
    return plans["backward_data" if geometry.transposed else "forward"]


def draw(size, kernel, dtype, batch=2, channels=CHANNELS):
    x = torch.randn(batch, channels, *size).to(dtype)
    w = (torch.randn(channels, 1, *(kernel,) * 3) / kernel**1.5).to(dtype)
    return x, w, torch.randn(channels).to(dtype)


def eager(x, w, b=None):
    return F.conv3d(x, w, b, 2, w.shape[-1] // 2, groups=w.shape[0])


def data_gradient(emulated, grad, w, add, size=None):
    """Of a transposed convolution, whose gradient of the output is `grad`."""
    kernel = w.shape[-1]
    like = grad.grad if isinstance(grad, GroupNormGradient) else grad
    # An even extent of the output has an output padding, and an odd one none.
    padding = tuple((extent + 1) % 2 for extent in like.shape[2:])
    geometry = ConvGeometry((kernel,) * 3, (2,) * 3, (kernel // 2,) * 3, transposed=True, output_padding=padding)
    input = torch.zeros(*like.shape[:2], *halved(like.shape[2:]), dtype=like.dtype)
    data, weight = emulated.depthwise_conv3d_backward(grad, input, w, geometry, add, True, False)
    assert weight is None
    return data


def check_forward(emulated, size, kernel, dtype):
    x, w, b = draw(size, kernel, dtype)
    assert plan_of(x.shape, geometry_of(kernel), dtype)["core"] == "strided"
    output = emulated.depthwise_conv3d(x, w, b, geometry_of(kernel))
    assert_within_twice(output, eager(x, w, b), eager(x.double(), w.double(), b.double()), "output")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "direct"), INPUTS)
def test_every_kernel(emulated, size, direct, kernel, dtype):
    assert plan_of((2, CHANNELS, *size), geometry_of(kernel), dtype)["direct"] == direct
    check_forward(emulated, size, kernel, dtype)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", SIZES)
def test_every_shape_of_tile(emulated, size, kernel):
    check_forward(emulated, size, kernel, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "direct"), INPUTS)
def test_the_data_gradient_of_a_transposed_convolution(emulated, size, direct, kernel, dtype):
    grad, w, _ = draw(size, kernel, dtype)
    add = torch.randn(2, CHANNELS, *halved(size)).to(dtype)
    assert torch.equal(
        data_gradient(emulated, grad, w, None), emulated.depthwise_conv3d(grad, w, None, geometry_of(kernel))
    )
    data = data_gradient(emulated, grad, w, add)
    exact = eager(grad.double(), w.double()) + add.double()
    assert_within_twice(data, eager(grad, w) + add, exact, "data")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "direct"), INPUTS)
def test_a_gradient_that_is_not_written_out(emulated, size, direct, kernel, dtype):
    grad, w, _ = draw(size, kernel, dtype)
    add = torch.randn(2, CHANNELS, *halved(size)).to(dtype)
    gradient = affine_gradient(grad)
    plan = plan_of((2, CHANNELS, *halved(size)), geometry_of(kernel, True), dtype, affine=True)
    assert (plan["core"], plan["direct"]) == ("strided", False)
    data = data_gradient(emulated, gradient, w, add)
    # Computed in float and rounded once, and what lies outside of the volume is zero, not its offset.
    rounded = written_out(gradient, dtype)
    exact = eager(written_out(gradient, torch.float64), w.double()) + add.double()
    assert_within_twice(data, eager(rounded, w) + add, exact, "data")
    plain = data_gradient(emulated, rounded, w, add)
    assert rms_error(data, plain.double()) <= torch.finfo(dtype).eps / 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(6, 9, 24), (5, 6, 13), (3, 80, 64), (40, 3, 6)])
def test_statistics_are_those_of_the_output_as_it_is_stored(emulated, size, kernel, dtype):
    x, w, b = draw(size, kernel, dtype)
    x += 3
    for groups in (CHANNELS, 1):
        y, mean, rstd = emulated.depthwise_conv3d_statistics(x, w, b, geometry_of(kernel), groups, 1e-5)
        assert torch.equal(y, emulated.depthwise_conv3d(x, w, b, geometry_of(kernel)))
        variance, exact = torch.var_mean(y.double().reshape(2, groups, -1), 2, correction=0)
        exact_rstd = (variance + 1e-5).rsqrt()
        assert ((mean - exact).abs() <= 2**-21 * (exact.abs() + 1 / exact_rstd)).all()
        assert ((rstd - exact_rstd).abs() <= 2**-21 * exact_rstd).all()


def all_results(emulated, x, w, b, gradient, add):
    geometry = geometry_of(w.shape[-1])
    return (
        *emulated.depthwise_conv3d_statistics(x, w, b, geometry, CHANNELS, 1e-5),
        data_gradient(emulated, gradient, w, add),
    )


def draw_all(size, kernel, dtype=torch.bfloat16):
    x, w, b = draw(size, kernel, dtype)
    gradient = affine_gradient(torch.randn_like(x))
    return x, w, b, gradient, torch.randn(2, CHANNELS, *halved(size)).to(dtype)


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


@pytest.mark.parametrize(("kernel", "size"), [(3, (3, 5, 15)), (7, (2, 3, 9))])
def test_250_runs_give_the_same_bits(emulated, kernel, size):
    given = draw_all(size, kernel)
    assert_250_runs_give_the_same_bits(emulated, lambda: all_results(emulated, *given))


@pytest.mark.parametrize("size", [(9, 10, 24), (7, 9, 15), (5, 6, 34), (1, 1, 1), (2, 3, 2)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_alignment_and_the_architecture_change_no_bit(emulated, kernel, size):
    x, w, b, gradient, add = draw_all(size, kernel)
    first = all_results(emulated, x, w, b, gradient, add)
    for architecture in (80, 86, 120):
        with emulated.architecture(architecture):
            assert equal(first, all_results(emulated, x, w, b, gradient, add))
    for by in (1, 2, 3, 4):
        elsewhere = gradient._replace(grad=shifted(gradient.grad, by))
        assert equal(first, all_results(emulated, shifted(x, by), w, b, elsewhere, shifted(add, by)))
        elsewhere = gradient._replace(output=shifted(gradient.output, by))
        assert equal(first, all_results(emulated, x, w, b, elsewhere, add))


def test_the_cut_of_the_tile_changes_no_bit(emulated):
    x, w, _ = draw((20, 10, 24), 5, torch.bfloat16)
    alone = emulated.depthwise_conv3d(x[:1, :1].contiguous(), w[:1], None, geometry_of(5))  # cut otherwise along D
    assert torch.equal(alone, emulated.depthwise_conv3d(x, w, None, geometry_of(5))[:1, :1])


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_float32_parameters_are_rounded_to_the_tensor_type_once(emulated, weight_dtype):
    x, w, b = draw((4, 6, 16), 3, torch.bfloat16)
    wide = emulated.depthwise_conv3d(x, w.to(weight_dtype), b.to(weight_dtype), geometry_of(3))
    assert torch.equal(wide, emulated.depthwise_conv3d(x, w, b, geometry_of(3)))


@pytest.mark.parametrize("width", [64, 63])
def test_a_value_that_is_not_finite_reaches_only_its_neighbourhood(emulated, width):
    x, w, _ = draw((7, 9, width), 3, torch.bfloat16)
    clean = emulated.depthwise_conv3d(x, w, None, geometry_of(3))
    x[0, 1, 3, 4, 32] = float("inf")
    dirty = emulated.depthwise_conv3d(x, w, None, geometry_of(3))
    assert not dirty[0, 1, 1, 2, 16].isfinite()
    changed = torch.zeros_like(dirty, dtype=torch.bool)
    changed[0, 1, 1:3, 0:4, 12:20] = True
    assert torch.equal(dirty[~changed], clean[~changed])


def test_error_of_a_long_sum_is_that_of_one_rounding(emulated):
    """343 products are summed in float: the error is the output's own rounding."""
    x, w, _ = draw((11, 16, 24), 7, torch.bfloat16)
    exact = eager(x.double(), w.double())
    error = rms_error(emulated.depthwise_conv3d(x, w, None, geometry_of(7)), exact)
    assert error <= 1.05 * rms_error(exact.bfloat16(), exact)


def test_an_empty_batch_gives_an_empty_output(emulated):
    x, w, b = draw((4, 5, 6), 3, torch.bfloat16, batch=0)
    y, mean, rstd = emulated.depthwise_conv3d_statistics(x, w, b, geometry_of(3), CHANNELS, 1e-5)
    assert y.shape == (0, CHANNELS, 2, 3, 3) and mean.shape == rstd.shape == (0, CHANNELS)


@pytest.mark.parametrize(
    ("details", "core"),
    [
        ({"architecture": 75}, "streaming"),
        ({"dtype": torch.float32}, "streaming"),
        ({"channels_last": True}, "streaming"),
        ({"geometry": ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 0))}, "general"),
        ({"geometry": ConvGeometry((3, 3, 3), (1, 2, 2), (1, 1, 1))}, "streaming"),
        ({"geometry": ConvGeometry((1, 3, 3), (1, 2, 2), (0, 1, 1))}, "streaming"),
        ({"geometry": ConvGeometry((9, 9, 9), (2, 2, 2), (4, 4, 4))}, "general"),
    ],
    ids=["no such tensor cores", "float32", "channels_last", "not centred", "1x2x2", "flat", "a larger kernel"],
)
def test_the_rest_goes_to_the_other_cores(details, core):
    options = {"geometry": geometry_of(3), "dtype": torch.bfloat16, "architecture": 90} | details
    assert plan_of((1, 4, 16, 16, 16), **options)["core"] == core


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_plans_cover_the_volume(affine, transposed):
    for size in [(128, 128, 128), (64, 64, 64), (8, 8, 8), (1, 1, 1), (40, 1000, 24), (3, 2000, 16), (700, 5, 3000)]:
        for kernel in KERNELS:
            geometry = geometry_of(kernel, transposed)
            plan = plan_of((2, 16, *size), geometry, torch.bfloat16, affine=affine)
            assert plan["core"] == "strided"
            output = size if transposed else halved(size)
            for extent, of_tile, tiles in zip(output, plan["tile"], plan["tiles"], strict=True):
                assert of_tile * tiles >= extent > of_tile * (tiles - 1)
            assert plan["blocks"] == 2 * 16 * math.prod(plan["tiles"])
            assert plan["moments_per_channel"] == math.prod(plan["tiles"])
            _, rows, columns = plan["tile"]
            quads = rows // 2 * columns // 4
            assert plan["threads"] == -(-quads // 32) * 32 <= 128
            assert plan["ring_bytes"] <= 92 * 1024  # of the 99 KiB of the smallest


def test_plans_at_the_stages_of_the_network_use_the_whole_gpu():
    for channels, extent in [(32, 128), (64, 64), (128, 32), (256, 16)]:
        for kernel in KERNELS:
            plan = plan_of((1, channels, extent, extent, extent), geometry_of(kernel), torch.bfloat16)
            assert (plan["core"], plan["direct"]) == ("strided", True)
            assert plan["blocks"] >= 132 * 3 - 12
            up = (1, 2 * channels, *halved((extent,) * 3))
            plan = plan_of(up, geometry_of(kernel, True), torch.bfloat16)
            assert (plan["core"], plan["direct"]) == ("strided", False)
