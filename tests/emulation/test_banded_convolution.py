"""The banded tensor-core convolution on the emulation: against float64, to the bit in every order, on every fill."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient
from mednext_ops.plans import convolution_plans

from ..ops.eager import assert_within_twice, rms_error
from .repeats import assert_250_runs_give_the_same_bits

DTYPES = [torch.bfloat16, torch.float16]
KERNELS = [(3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 3, 3), (1, 5, 5), (1, 7, 7)]
CHANNELS = 3

# Extents, architecture, and the fill that they lead to.
FILLS = [
    pytest.param((5, 9, 28), 120, "async", id="async"),
    pytest.param((5, 9, 12), 100, "async", id="async, two octets"),
    pytest.param((5, 9, 13), 90, "elements", id="elements"),
]
# Rows that fill a fragment, rows that share one, several tiles along W, H and D, extents below the kernel.
SIZES = [(3, 6, 124), (3, 5, 116), (2, 4, 268), (4, 33, 4), (9, 10, 44), (2, 70, 60), (1, 1, 1), (3, 2, 6), (3, 3, 127)]


@pytest.fixture
def emulated(emulated):
    """The backend as a Blackwell GPU, where the planar core takes rows of whole octets alone."""
    with emulated.architecture(120):
        yield emulated


def geometry_of(kernel, padding=None) -> ConvGeometry:
    return ConvGeometry(kernel, padding=padding or tuple(k // 2 for k in kernel))


def plan_of(shape, geometry, dtype, architecture=120, **details):
    name = str(dtype).removeprefix("torch.")
    return convolution_plans(shape, geometry, name, architecture, **details)


def draw(size, kernel, dtype, batch=2):
    x = torch.randn(batch, CHANNELS, *size).to(dtype)
    w = (torch.randn(CHANNELS, 1, *kernel) / (kernel[0] * kernel[1] * kernel[2]) ** 0.5).to(dtype)
    return x, w, torch.randn(CHANNELS).to(dtype)


def check_forward(emulated, size, kernel, dtype, padding=None):
    geometry = geometry_of(kernel, padding)
    x, w, b = draw(size, kernel, dtype)
    assert plan_of(x.shape, geometry, dtype, emulated._architecture)["forward"]["core"] == "banded"
    exact = F.conv3d(x.double(), w.double(), b.double(), padding=geometry.padding, groups=CHANNELS)
    theirs = F.conv3d(x, w, b, padding=geometry.padding, groups=CHANNELS)
    assert_within_twice(emulated.depthwise_conv3d(x, w, b, geometry), theirs, exact, "output")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "architecture", "fill"), FILLS)
def test_every_kernel_on_every_fill(emulated, size, architecture, fill, kernel, dtype):
    plan = plan_of((2, CHANNELS, *size), geometry_of(kernel), dtype, architecture)["forward"]
    assert (plan["core"], plan["fill"]) == ("banded", fill)
    with emulated.architecture(architecture):
        check_forward(emulated, size, kernel, dtype)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (1, 7, 7)])
@pytest.mark.parametrize("size", SIZES)
def test_every_shape_of_tile(emulated, size, kernel):
    check_forward(emulated, size, kernel, torch.bfloat16)


@pytest.mark.parametrize("kernel", [(3, 3, 1), (1, 5, 3), (5, 5, 7), (3, 3, 7)])
def test_the_kernel_along_w_is_any_up_to_seven(emulated, kernel):
    check_forward(emulated, (4, 6, 20), kernel, torch.float16)


@pytest.mark.parametrize("padding", [(0, 0, 1), (2, 0, 1), (4, 3, 1)])
def test_any_padding_along_d_and_h(emulated, padding):
    check_forward(emulated, (5, 7, 12), (3, 3, 3), torch.bfloat16, padding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "architecture", "fill"), FILLS)
def test_the_data_gradient_reads_a_gradient_that_is_not_written_out(emulated, size, architecture, fill, kernel, dtype):
    geometry = geometry_of(kernel)
    x, w, _ = draw(size, kernel, dtype)
    grad, output, add = (torch.randn_like(x) for _ in range(3))
    maps = [torch.randn(2, CHANNELS) for _ in range(3)]
    plan = plan_of(x.shape, geometry, dtype, architecture, affine=True)["backward_data"]
    assert (plan["core"], plan["fill"]) == ("banded", fill)
    with emulated.architecture(architecture):
        data, weight = emulated.depthwise_conv3d_backward(
            GroupNormGradient(grad, output, *maps), x, w, geometry, add, True, False
        )
    assert weight is None

    def written_out(dtype):
        scale, slope, offset = (m.to(torch.promote_types(dtype, torch.float32))[..., None, None, None] for m in maps)
        return (scale * grad.to(scale.dtype) + slope * output.to(scale.dtype) + offset).to(dtype)

    def eager(dtype):
        data = torch.nn.grad.conv3d_input(
            x.shape, w.to(dtype), written_out(dtype), padding=geometry.padding, groups=CHANNELS
        )
        return data + add.to(dtype)

    assert_within_twice(data, eager(dtype), eager(torch.float64), "data")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(6, 9, 28), (5, 6, 13), (3, 40, 60)])
def test_statistics_are_those_of_the_output_as_it_is_stored(emulated, size, dtype):
    x, w, b = draw(size, (3, 3, 3), dtype)
    x += 3
    for groups in (CHANNELS, 1):
        y, mean, rstd = emulated.depthwise_conv3d_statistics(x, w, b, geometry_of((3, 3, 3)), groups, 1e-5)
        assert torch.equal(y, emulated.depthwise_conv3d(x, w, b, geometry_of((3, 3, 3))))
        variance, exact = torch.var_mean(y.double().reshape(2, groups, -1), 2, correction=0)
        exact_rstd = (variance + 1e-5).rsqrt()
        assert ((mean - exact).abs() <= 2**-21 * (exact.abs() + 1 / exact_rstd)).all()
        assert ((rstd - exact_rstd).abs() <= 2**-21 * exact_rstd).all()


def all_results(emulated, dtype, size=(5, 9, 28), kernel=(5, 5, 5), batch=2):
    torch.manual_seed(1)
    x, w, b = draw(size, kernel, dtype, batch)
    grad, output = torch.randn_like(x), torch.randn_like(x)
    gradient = GroupNormGradient(grad, output, *(torch.randn(batch, CHANNELS) for _ in range(3)))
    data, _ = emulated.depthwise_conv3d_backward(gradient, x, w, geometry_of(kernel), grad, True, False)
    return (*emulated.depthwise_conv3d_statistics(x, w, b, geometry_of(kernel), CHANNELS, 1e-5), data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "architecture", "fill"), FILLS)
def test_every_order_of_threads_gives_the_same_bits(emulated, size, architecture, fill, dtype):
    with emulated.architecture(architecture):
        first = all_results(emulated, dtype, size)
        for order, seed in [("reversed", 0), *(("shuffled", seed) for seed in range(4)), ("uneven", 0), ("uneven", 1)]:
            with emulated.thread_order(order, seed):
                again = all_results(emulated, dtype, size)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("extent", "size"), [(3, (3, 5, 12)), (7, (2, 3, 4))])
def test_250_runs_give_the_same_bits(emulated, extent, size):
    kernel = (extent,) * 3
    assert_250_runs_give_the_same_bits(emulated, lambda: all_results(emulated, torch.bfloat16, size, kernel, batch=1))


def test_the_fill_and_the_cut_along_d_change_no_bit(emulated):
    x, w, _ = draw((9, 6, 28), (3, 3, 3), torch.bfloat16)
    results = [emulated.depthwise_conv3d(x, w, None, geometry_of((3, 3, 3)))]
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)  # two bytes off: element by element
    results.append(emulated.depthwise_conv3d(shifted, w, None, geometry_of((3, 3, 3))))
    alone = x[:1, :1].contiguous()  # fewer channels: cut otherwise
    assert torch.equal(emulated.depthwise_conv3d(alone, w[:1], None, geometry_of((3, 3, 3))), results[0][:1, :1])
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_float32_parameters_are_rounded_to_the_tensor_type_once(emulated, weight_dtype):
    x, w, b = draw((4, 6, 12), (3, 3, 3), torch.bfloat16)
    wide = emulated.depthwise_conv3d(x, w.to(weight_dtype), b.to(weight_dtype), geometry_of((3, 3, 3)))
    assert torch.equal(wide, emulated.depthwise_conv3d(x, w, b, geometry_of((3, 3, 3))))


def test_a_value_that_is_not_finite_reaches_only_its_neighbourhood(emulated):
    x, w, _ = draw((7, 9, 60), (3, 3, 3), torch.bfloat16)
    clean = emulated.depthwise_conv3d(x, w, None, geometry_of((3, 3, 3)))
    x[0, 1, 3, 4, 32] = float("inf")
    dirty = emulated.depthwise_conv3d(x, w, None, geometry_of((3, 3, 3)))
    assert not dirty[0, 1, 3, 4, 32].isfinite()
    changed = torch.zeros_like(dirty, dtype=torch.bool)
    changed[0, 1, 2:5, 3:6, 32 - 11 : 32 + 12] = True
    assert torch.equal(dirty[~changed], clean[~changed])


@pytest.mark.parametrize(
    ("details", "core"),
    [
        ({"architecture": 75}, "streaming"),
        ({"dtype": "float32"}, "streaming"),
        ({"channels_last": True}, "streaming"),
        ({"geometry": ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1))}, "strided"),
        ({"geometry": ConvGeometry((3, 3, 3), padding=(1, 1, 0))}, "general"),
        ({"geometry": ConvGeometry((3, 3, 3), padding=(2, 2, 2), dilation=(2, 2, 2))}, "general"),
        ({"geometry": ConvGeometry((9, 9, 9), padding=(4, 4, 4))}, "general"),
    ],
    ids=[
        "no such tensor cores",
        "float32",
        "channels_last",
        "stride",
        "padding along W",
        "dilation",
        "a larger kernel",
    ],
)
def test_the_rest_goes_to_the_other_cores(details, core):
    options = {"geometry": geometry_of((3, 3, 3)), "dtype": "bfloat16", "architecture": 80} | details
    geometry, dtype, architecture = (options.pop(key) for key in ("geometry", "dtype", "architecture"))
    plans = convolution_plans((1, 4, 16, 16, 16), geometry, dtype, architecture, **options)
    assert plans["forward"]["core"] == core


def test_plans_at_the_stages_of_the_network():
    for channels, extent in [(32, 124), (64, 60), (128, 28), (256, 12), (512, 4)]:
        for kernel in (3, 5, 7):
            shape = (1, channels, extent, extent, extent)
            plan = plan_of(shape, geometry_of((kernel,) * 3), torch.bfloat16)["forward"]
            depth, rows, columns = plan["tile"]
            assert (plan["core"], plan["fill"]) == ("banded", "async")
            assert plan["blocks"] == channels * plan["tiles"][0] * plan["tiles"][1] * plan["tiles"][2]
            assert depth * plan["tiles"][0] >= extent and rows * plan["tiles"][1] >= extent
            assert columns * plan["tiles"][2] >= extent
            assert plan["blocks"] * plan["threads"] >= 132 * 96  # work for most multiprocessors
            assert plan["ring_bytes"] <= 100 * 1024


def test_bad_input_is_named_and_nothing_is_launched(emulated):
    x, w, b = draw((4, 5, 6), (3, 3, 3), torch.bfloat16)
    g = geometry_of((3, 3, 3))
    cases = [
        (lambda: emulated.depthwise_conv3d(x[0], w, b, g), r"input must be \[N, C, D, H, W\], got 4 dimensions"),
        (lambda: emulated.depthwise_conv3d(x.double(), w, b, g), "input must be float32, float16 or bfloat16"),
        (
            lambda: emulated.depthwise_conv3d(x, w[:2], b, g),
            r"weight must be \[3, 1, kd, kh, kw\], got \[2, 1, 3, 3, 3\]",
        ),
        (lambda: emulated.depthwise_conv3d(x, w.half(), b, g), "weight must be float32 or BFloat16"),
        (lambda: emulated.depthwise_conv3d(x, w, b[:1], g), r"bias must be \[3\], got \[1\]"),
        (
            lambda: emulated.depthwise_conv3d(x, w, b, ConvGeometry((3, 3, 3), (0, 1, 1))),
            r"stride must be between 1 and 2147483647, got \[0, 1, 1\]",
        ),
        (
            lambda: emulated.depthwise_conv3d(x[:, :, :1], w, b, ConvGeometry((3, 3, 3))),
            "too small for a kernel",
        ),
        (
            lambda: emulated.depthwise_conv3d_statistics(x, w, b, g, 2, 1e-5),
            "num_groups must be a divisor of the 3 channels, got 2",
        ),
        (
            lambda: emulated.depthwise_conv3d_backward(x[:, :, :3], x, w, g, None, True, False),
            r"this geometry makes \[4, 5, 6\] of an input of \[4, 5, 6\], got \[3, 5, 6\]",
        ),
        (
            lambda: emulated.depthwise_conv3d_backward(x, x, w, g, x[:1], True, False),
            r"add must be \[2, 3, 4, 5, 6\]",
        ),
        (
            lambda: emulated.depthwise_conv3d_backward(
                GroupNormGradient(x, x, *(torch.ones(2, 3),) * 2, torch.ones(3)), x, w, g, None, True, False
            ),
            r"offset must be \[2, 3\], got \[3\]",
        ),
    ]
    for call, sentence in cases:
        with pytest.raises(RuntimeError, match=sentence):
            call()


def test_an_empty_batch_gives_empty_outputs_and_a_zero_gradient(emulated):
    x, w, b = draw((4, 5, 6), (3, 3, 3), torch.bfloat16, batch=0)
    g = geometry_of((3, 3, 3))
    y, mean, rstd = emulated.depthwise_conv3d_statistics(x, w, b, g, CHANNELS, 1e-5)
    assert y.shape == x.shape and mean.shape == rstd.shape == (0, CHANNELS)
    data, weight = emulated.depthwise_conv3d_backward(x, x, w, g, None, True, True)
    assert data.shape == x.shape and not weight.any() and weight.shape == w.shape


def test_error_of_a_long_sum_is_that_of_one_rounding(emulated):
    """343 products are summed in float: the error is the output's own rounding."""
    x, w, _ = draw((7, 12, 16), (7, 7, 7), torch.bfloat16)
    exact = F.conv3d(x.double(), w.double(), padding=3, groups=CHANNELS)
    error = rms_error(emulated.depthwise_conv3d(x, w, None, geometry_of((7, 7, 7))), exact)
    assert error <= 1.05 * rms_error(exact.bfloat16(), exact)
