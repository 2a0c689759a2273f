"""The weight gradient on tensor cores on the emulation: against float64, to the bit in every order, on every fill."""

from __future__ import annotations

import pytest
import torch

from mednext_ops.backends.problem import ConvGeometry
from mednext_ops.plans import convolution_plans

from ..ops.eager import assert_within_twice, rms_error
from .gradients import affine_gradient, written_out
from .gradients import pytorchs_weight_gradient as eager
from .repeats import assert_250_runs_give_the_same_bits

DTYPES = [torch.bfloat16, torch.float16]
KERNELS = [(3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 3, 3), (1, 5, 5), (1, 7, 7)]
CHANNELS = 3

# Extents, architecture, and the fill that they lead to.
FILLS = [
    pytest.param((5, 9, 24), 90, "boxes", id="boxes"),
    pytest.param((5, 9, 24), 80, "async", id="async"),
    pytest.param((5, 9, 12), 90, "async", id="async, less than a patch"),
    pytest.param((5, 9, 13), 90, "elements", id="elements"),
]
# Several tiles along each axis, many patches a warp, patches cut by the edge on both sides, extents below the kernel.
SIZES = [(3, 6, 128), (2, 5, 120), (2, 4, 264), (4, 65, 8), (37, 3, 16), (9, 20, 40), (2, 70, 64), (1, 1, 1), (3, 2, 6)]


def geometry_of(kernel, padding=None, transposed=False) -> ConvGeometry:
    return ConvGeometry(kernel, padding=padding or tuple(k // 2 for k in kernel), transposed=transposed)


def plan_of(shape, geometry, dtype, architecture=90, **details):
    name = str(dtype).removeprefix("torch.")
    return convolution_plans(shape, geometry, name, architecture, **details)["backward_weight"]


def draw(size, geometry, dtype, batch=2, channels=CHANNELS):
    """An input and a gradient of the output."""
    input = torch.randn(batch, channels, *size).to(dtype)
    return input, torch.randn(batch, channels, *geometry.output_size(size)).to(dtype)


def weight_of(input, geometry):
    """Of the shape and type that the backend asks for; its values do not matter."""
    return torch.zeros(input.shape[1], 1, *geometry.kernel_size, dtype=input.dtype)


def by_kernel(emulated, grad, input, geometry):
    data, weight = emulated.depthwise_conv3d_backward(
        grad, input, weight_of(input, geometry), geometry, None, False, True
    )
    assert data is None
    assert weight.dtype == torch.float32
    return weight


def check(weight, grad, input, geometry):
    exact = eager(grad.double(), input.double(), geometry)
    theirs = eager(grad, input, geometry)
    assert_within_twice(weight, theirs, exact, "weight")
    return rms_error(weight, exact), rms_error(theirs, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "architecture", "fill"), FILLS)
def test_every_kernel_on_every_fill(emulated, size, architecture, fill, kernel, dtype):
    geometry = geometry_of(kernel)
    input, grad = draw(size, geometry, dtype)
    plan = plan_of(input.shape, geometry, dtype, architecture)
    assert (plan["core"], plan["fill"]) == ("banded", fill)
    with emulated.architecture(architecture):
        error, _ = check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)
    assert error <= 1e-6  # nothing is rounded but sums, in float


@pytest.mark.parametrize("kernel", KERNELS)
def test_in_bfloat16_it_is_strictly_better_than_pytorch(emulated, kernel):
    geometry = geometry_of(kernel)
    input, grad = draw((9, 14, 24), geometry, torch.bfloat16)
    ours, theirs = check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)
    assert ours < theirs / 100


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 5, 5)])
@pytest.mark.parametrize("size", SIZES)
def test_every_shape_of_tile(emulated, size, kernel):
    geometry = geometry_of(kernel)
    input, grad = draw(size, geometry, torch.bfloat16)
    assert plan_of(input.shape, geometry, torch.bfloat16)["core"] == "banded"
    check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)


# Kernel, channels and rows with which a warp has so many patches: there are kernels for some numbers, and one for any.
PATCHES = [
    (3, 200, 29, 8),
    (3, 200, 25, 7),
    (3, 132, 33, 3),
    (5, 200, 28, 5),
    (5, 70, 55, 4),
    (5, 70, 37, 3),
    (7, 140, 31, 4),
    (7, 140, 21, 3),
]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("extent", "channels", "rows", "patches"), PATCHES)
def test_every_number_of_patches_a_warp(emulated, extent, channels, rows, patches, affine):
    geometry = geometry_of((extent,) * 3)
    input, grad = draw((2, rows, 8), geometry, torch.bfloat16, 1, channels)
    plan = plan_of(input.shape, geometry, torch.bfloat16, affine=affine)
    assert (plan["fill"], plan["patches_a_warp"]) == ("boxes", patches)
    gradient = affine_gradient(grad) if affine else grad
    weight = by_kernel(emulated, gradient, input, geometry)
    rounded = written_out(gradient, torch.bfloat16) if affine else grad
    error = rms_error(weight, eager(rounded.double(), input.double(), geometry))
    assert error <= (torch.finfo(torch.bfloat16).eps / 16 if affine else 1e-6)
    with emulated.thread_order("shuffled", 7):
        assert torch.equal(by_kernel(emulated, gradient, input, geometry), weight)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (1, 7, 7)])
@pytest.mark.parametrize(("d", "h"), [(0, 0), (2, 0), (0, 3), (4, 5)])
def test_any_padding_along_d_and_h(emulated, kernel, d, h):
    geometry = geometry_of(kernel, (d, h, kernel[2] // 2))
    input, grad = draw((7, 9, 16), geometry, torch.bfloat16)
    assert plan_of(input.shape, geometry, torch.bfloat16)["core"] == "banded"
    check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)


@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (3, 2), (2, 9)])
def test_samples_are_added_and_channels_are_not(emulated, batch, channels):
    geometry = geometry_of((5, 5, 5))
    input, grad = draw((6, 7, 16), geometry, torch.float16, batch, channels)
    check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "architecture", "fill"), FILLS)
def test_a_gradient_that_is_not_written_out(emulated, size, architecture, fill, kernel, dtype, transposed):
    geometry = geometry_of(kernel, transposed=transposed)
    input, grad = draw(size, geometry, dtype)
    plan = plan_of(input.shape, geometry, dtype, architecture, affine=True)
    assert (plan["core"], plan["fill"]) == ("banded", fill)
    gradient = affine_gradient(grad)
    with emulated.architecture(architecture):
        weight = by_kernel(emulated, gradient, input, geometry)
    exact = eager(written_out(gradient, torch.float64), input.double(), geometry)
    theirs = eager(written_out(gradient, dtype), input, geometry)
    assert_within_twice(weight, theirs, exact, "weight")
    # The map is computed in float and rounded once, and what lies outside of the volume is zero, not its offset.
    rounded = eager(written_out(gradient, dtype).double(), input.double(), geometry)
    assert rms_error(weight, rounded) <= torch.finfo(dtype).eps / 16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 3, 3)])
@pytest.mark.parametrize(("size", "architecture", "fill"), FILLS)
def test_every_order_of_threads_gives_the_same_bits(emulated, size, architecture, fill, kernel, dtype):
    geometry = geometry_of(kernel)
    input, grad = draw(size, geometry, dtype)
    gradient = affine_gradient(grad)
    with emulated.architecture(architecture):
        first = [by_kernel(emulated, g, input, geometry) for g in (grad, gradient)]
        for order, seed in [("reversed", 0), *(("shuffled", seed) for seed in range(4)), ("uneven", 0), ("uneven", 1)]:
            with emulated.thread_order(order, seed):
                again = [by_kernel(emulated, g, input, geometry) for g in (grad, gradient)]
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_many_warps_in_every_order_give_the_same_bits(emulated):
    geometry = geometry_of((3, 3, 3))
    input, grad = draw((5, 33, 64), geometry, torch.bfloat16, channels=1)
    assert plan_of(input.shape, geometry, torch.bfloat16)["threads"] > 32
    first = by_kernel(emulated, grad, input, geometry)
    for seed in range(4):
        with emulated.thread_order("shuffled", seed):
            assert torch.equal(by_kernel(emulated, grad, input, geometry), first)


# Every number of patches that has kernels of its own, one that has not, and k7; planes by boxes.
REPEATED = [
    (3, (3, 5, 16), 1),
    (7, (2, 3, 16), 1),
    (3, (2, 505, 8), 8),
    (5, (2, 265, 8), 5),
    (5, (2, 217, 8), 4),
    (7, (2, 217, 8), 4),
]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("extent", "size", "patches"), REPEATED)
def test_250_runs_give_the_same_bits(emulated, extent, size, patches, affine):
    geometry = geometry_of((extent,) * 3)
    input, grad = draw(size, geometry, torch.bfloat16, batch=1, channels=1)
    plan = plan_of(input.shape, geometry, torch.bfloat16, affine=affine)
    assert (plan["fill"], plan["patches_a_warp"]) == ("boxes", patches)
    gradient = affine_gradient(grad) if affine else grad
    assert_250_runs_give_the_same_bits(emulated, lambda: by_kernel(emulated, gradient, input, geometry))


def test_the_fill_and_the_architecture_change_no_bit(emulated):
    geometry = geometry_of((5, 5, 5))
    input, grad = draw((9, 10, 24), geometry, torch.bfloat16)
    gradient = affine_gradient(grad)
    results = []
    for architecture in (80, 86, 90, 120):
        with emulated.architecture(architecture):
            results.append(by_kernel(emulated, gradient, input, geometry))
    # Two bytes off: element by element.
    shifted = torch.empty(input.numel() + 1, dtype=input.dtype)[1:].view(input.shape).copy_(input)
    results.append(by_kernel(emulated, gradient, shifted, geometry))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_a_value_that_is_not_finite_stays_in_its_channel(emulated):
    geometry = geometry_of((3, 3, 3))
    input, grad = draw((5, 6, 16), geometry, torch.bfloat16)
    clean = by_kernel(emulated, grad, input, geometry)
    input[1, 1, 2, 3, 5] = float("nan")
    dirty = by_kernel(emulated, grad, input, geometry)
    assert dirty[1].isnan().all()
    assert torch.equal(dirty[[0, 2]], clean[[0, 2]])


def test_an_empty_batch_gives_zeros(emulated):
    geometry = geometry_of((3, 3, 3))
    input, grad = draw((4, 5, 8), geometry, torch.bfloat16, batch=0)
    assert not by_kernel(emulated, grad, input, geometry).any()


@pytest.mark.parametrize(
    ("details", "core"),
    [
        ({"architecture": 75}, "streaming"),
        ({"dtype": "float32"}, "streaming"),
        ({"channels_last": True}, "streaming"),
        ({"geometry": ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1))}, "strided"),
        ({"geometry": ConvGeometry((3, 3, 3), padding=(1, 1, 0))}, "general"),
        ({"geometry": ConvGeometry((3, 3, 5), padding=(1, 1, 2))}, "general"),
        ({"geometry": ConvGeometry((3, 3, 3), padding=(2, 2, 2), dilation=(2, 2, 2))}, "general"),
        ({"geometry": ConvGeometry((9, 9, 9), padding=(4, 4, 4))}, "general"),
    ],
    ids=[
        "no such tensor cores",
        "float32",
        "channels_last",
        "stride",
        "padding along W",
        "another kernel along W",
        "dilation",
        "a larger kernel",
    ],
)
def test_the_rest_goes_to_the_other_cores(details, core):
    options = {"geometry": geometry_of((3, 3, 3)), "dtype": "bfloat16", "architecture": 90} | details
    geometry, dtype, architecture = (options.pop(key) for key in ("geometry", "dtype", "architecture"))
    plans = convolution_plans((1, 4, 16, 16, 16), geometry, dtype, architecture, **options)
    assert plans["backward_weight"]["core"] == core


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_plans_cover_the_volume_and_fit(architecture, affine, transposed):
    shared = {80: 163, 90: 227, 100: 227}.get(architecture, 99) * 1024
    for size in [(128, 128, 128), (64, 64, 64), (8, 8, 8), (1, 1, 1), (40, 1000, 24), (3, 2000, 16), (7, 5, 3000)]:
        for kernel in KERNELS:
            geometry = geometry_of(kernel, transposed=transposed)
            plan = plan_of((2, 16, *size), geometry, torch.bfloat16, architecture, affine=affine)
            assert plan["core"] == "banded"
            assert all(t * n >= s > t * (n - 1) for t, n, s in zip(plan["tile"], plan["tiles"], size, strict=True))
            assert plan["parts"] == 2 * plan["tiles"][0] * plan["tiles"][1] * plan["tiles"][2]
            assert plan["workspace_bytes"] == plan["parts"] * 16 * kernel[0] * kernel[1] * kernel[2] * 4
            assert plan["ring_bytes"] + 5 * 1024 <= shared
            assert plan["tile"][0] <= 64  # a chain of sums in one accumulator
            assert plan["threads"] <= 256


def test_plans_at_the_stages_of_the_network_use_the_whole_gpu():
    for channels, extent in [(32, 128), (64, 64), (128, 32), (256, 16), (512, 8)]:
        for kernel in (3, 5, 7):
            shape = (1, channels, extent, extent, extent)
            plan = plan_of(shape, geometry_of((kernel,) * 3), torch.bfloat16)
            assert (plan["core"], plan["fill"]) == ("banded", "boxes")
            assert plan["blocks"] >= 128
            assert plan["blocks"] * plan["threads"] >= 132 * 96  # work for most multiprocessors
