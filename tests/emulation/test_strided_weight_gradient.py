"""The weight gradient at stride 2 on tensor cores on the emulation: against float64, and to the bit in every order."""

from __future__ import annotations

import math

import pytest
import torch

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient
from mednext_ops.plans import convolution_plans

from ..ops.eager import assert_within_twice, rms_error
from .gradients import affine_gradient, halved, shifted, written_out
from .gradients import pytorchs_weight_gradient as eager
from .repeats import assert_250_runs_give_the_same_bits

DTYPES = [torch.bfloat16, torch.float16]
KERNELS = [3, 5, 7]
CHANNELS = 3

# Extents of the large tensor, and whether its rows are whole vectors.
LARGE = [
    pytest.param((5, 9, 24), True, id="aligned"),
    pytest.param((8, 4, 40), True, id="aligned, more than a patch"),
    pytest.param((7, 9, 13), False, id="odd"),
    pytest.param((6, 7, 36), False, id="even"),
    pytest.param((5, 5, 67), False, id="odd, more than two patches"),
]
# Rows of several patches, blocks of several, cut by the edge along each axis, cuts along D, below the kernel, odd ones.
SIZES = [
    (3, 6, 160), (2, 4, 33), (70, 3, 8), (5, 40, 9), (9, 2, 20), (1, 1, 1), (2, 2, 3), (1, 1, 2), (33, 5, 16),
    (4, 17, 64), (6, 3, 66), (3, 3, 31), (2, 6, 130),
]  # fmt: skip


def geometry_of(kernel, transposed=False) -> ConvGeometry:
    return ConvGeometry((kernel,) * 3, (2, 2, 2), (kernel // 2,) * 3, transposed=transposed)


def plan_of(shape, geometry, dtype, architecture=90, **details):
    name = str(dtype).removeprefix("torch.")
    return convolution_plans(shape, geometry, name, architecture, **details)["backward_weight"]


def draw(size, geometry, dtype, batch=2, channels=CHANNELS):
    """An input and a gradient of the output, the larger one of `size`, as far as a transposed convolution has it."""
    large = size
    if geometry.transposed:
        large = geometry.output_size(halved(size))
    large = torch.randn(batch, channels, *large).to(dtype)
    small = torch.randn(batch, channels, *halved(size)).to(dtype)
    return (small, large) if geometry.transposed else (large, small)


def by_kernel(emulated, grad, input, geometry):
    weight = torch.zeros(input.shape[1], 1, *geometry.kernel_size, dtype=input.dtype)
    data, gradient = emulated.depthwise_conv3d_backward(grad, input, weight, geometry, None, False, True)
    assert data is None
    assert gradient.dtype == torch.float32
    return gradient


def check(weight, grad, input, geometry):
    exact = eager(grad.double(), input.double(), geometry)
    theirs = eager(grad, input, geometry)
    assert_within_twice(weight, theirs, exact, "weight")
    assert rms_error(weight, exact) <= 1e-6  # nothing is rounded but sums, in float
    return rms_error(weight, exact), rms_error(theirs, exact)


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "aligned"), LARGE)
def test_every_kernel(emulated, size, aligned, kernel, dtype, transposed):
    geometry = geometry_of(kernel, transposed)
    input, grad = draw(size, geometry, dtype)
    plan = plan_of(input.shape, geometry, dtype)
    assert (plan["core"], plan["large_aligned"]) == ("strided", aligned and not transposed)
    check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)


@pytest.mark.parametrize("kernel", KERNELS)
def test_in_bfloat16_it_is_strictly_better_than_pytorch(emulated, kernel):
    geometry = geometry_of(kernel)
    input, grad = draw((9, 14, 24), geometry, torch.bfloat16)
    ours, theirs = check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)
    assert ours < theirs / 100


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", SIZES)
def test_every_shape_of_tile(emulated, size, kernel, transposed):
    geometry = geometry_of(kernel, transposed)
    input, grad = draw(size, geometry, torch.bfloat16)
    assert plan_of(input.shape, geometry, torch.bfloat16)["core"] == "strided"
    check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(3, 5, 64), (2, 4, 16), (4, 3, 9)])
def test_transposed_with_output_padding(emulated, size, kernel):
    geometry = ConvGeometry((kernel,) * 3, (2, 2, 2), (kernel // 2,) * 3, transposed=True, output_padding=(1, 1, 1))
    input = torch.randn(2, CHANNELS, *size).to(torch.bfloat16)
    grad = torch.randn(2, CHANNELS, *geometry.output_size(size)).to(torch.bfloat16)
    assert plan_of(input.shape, geometry, torch.bfloat16)["core"] == "strided"
    check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)


@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (3, 2), (2, 9)])
def test_samples_are_added_and_channels_are_not(emulated, batch, channels):
    geometry = geometry_of(5)
    input, grad = draw((6, 7, 16), geometry, torch.float16, batch, channels)
    check(by_kernel(emulated, grad, input, geometry), grad, input, geometry)


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "aligned"), LARGE)
def test_a_gradient_that_is_not_written_out(emulated, size, aligned, kernel, dtype, transposed):
    geometry = geometry_of(kernel, transposed)
    input, grad = draw(size, geometry, dtype)
    gradient = affine_gradient(grad)
    plan = plan_of(input.shape, geometry, dtype, affine=True)
    assert (plan["core"], plan["large_aligned"]) == ("strided", aligned and not transposed)
    weight = by_kernel(emulated, gradient, input, geometry)
    exact = eager(written_out(gradient, torch.float64), input.double(), geometry)
    assert_within_twice(weight, eager(written_out(gradient, dtype), input, geometry), exact, "weight")
    # The map is computed in float and rounded once, and what lies outside of the volume is zero, not its offset.
    rounded = eager(written_out(gradient, dtype).double(), input.double(), geometry)
    assert rms_error(weight, rounded) <= torch.finfo(dtype).eps / 16


def test_a_gradient_that_is_not_written_out_in_whole_vectors(emulated):
    geometry = ConvGeometry((7, 7, 7), (2, 2, 2), (3, 3, 3), transposed=True, output_padding=(1, 1, 1))
    input = torch.randn(2, CHANNELS, 3, 5, 12).to(torch.bfloat16)
    gradient = affine_gradient(torch.randn(2, CHANNELS, *geometry.output_size((3, 5, 12))).to(torch.bfloat16))
    plan = plan_of(input.shape, geometry, torch.bfloat16, affine=True)
    assert (plan["core"], plan["large_aligned"]) == ("strided", True)
    weight = by_kernel(emulated, gradient, input, geometry)
    rounded = eager(written_out(gradient, torch.bfloat16).double(), input.double(), geometry)
    assert rms_error(weight, rounded) <= torch.finfo(torch.bfloat16).eps / 16


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size", "aligned"), LARGE)
def test_every_order_of_threads_gives_the_same_bits(emulated, size, aligned, kernel, transposed):
    geometry = geometry_of(kernel, transposed)
    input, grad = draw(size, geometry, torch.bfloat16)
    gradient = affine_gradient(grad)
    first = [by_kernel(emulated, g, input, geometry) for g in (grad, gradient)]
    for order, seed in [("reversed", 0), *(("shuffled", seed) for seed in range(4))]:
        with emulated.thread_order(order, seed):
            again = [by_kernel(emulated, g, input, geometry) for g in (grad, gradient)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("kernel", "size"), [(3, (3, 5, 16)), (7, (3, 3, 16))])
def test_250_runs_give_the_same_bits(emulated, kernel, size):
    geometry = geometry_of(kernel)
    input, grad = draw(size, geometry, torch.bfloat16)
    gradient = affine_gradient(grad)
    assert_250_runs_give_the_same_bits(
        emulated, lambda: [by_kernel(emulated, g, input, geometry) for g in (grad, gradient)]
    )


@pytest.mark.parametrize("size", [(9, 10, 24), (7, 9, 15), (5, 6, 34)])
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_alignment_and_the_architecture_change_no_bit(emulated, kernel, transposed, size):
    geometry = geometry_of(kernel, transposed)
    input, grad = draw(size, geometry, torch.bfloat16)
    for gradient in (grad, affine_gradient(grad)):
        results = []
        for architecture in (80, 86, 90, 120):
            with emulated.architecture(architecture):
                results.append(by_kernel(emulated, gradient, input, geometry))
        results.append(by_kernel(emulated, gradient, shifted(input), geometry))
        if isinstance(gradient, GroupNormGradient):
            elsewhere = [
                gradient._replace(grad=shifted(gradient.grad)),
                gradient._replace(output=shifted(gradient.output)),
            ]
        else:
            elsewhere = [shifted(gradient)]
        results += [by_kernel(emulated, g, x, geometry) for g in elsewhere for x in (input, shifted(input))]
        assert all(torch.equal(results[0], other) for other in results[1:])


def test_a_value_that_is_not_finite_stays_in_its_channel(emulated):
    geometry = geometry_of(5)
    for size in [(5, 6, 16), (5, 6, 15)]:
        input, grad = draw(size, geometry, torch.bfloat16)
        clean = by_kernel(emulated, grad, input, geometry)
        input[1, 1, 2, 3, 5] = float("nan")
        dirty = by_kernel(emulated, grad, input, geometry)
        assert torch.equal(dirty.isnan(), eager(grad.double(), input.double(), geometry).isnan())
        assert torch.equal(dirty[[0, 2]], clean[[0, 2]])


def test_an_empty_batch_gives_zeros(emulated):
    geometry = geometry_of(3)
    input, grad = draw((4, 5, 8), geometry, torch.bfloat16, batch=0)
    assert not by_kernel(emulated, grad, input, geometry).any()


@pytest.mark.parametrize(
    ("details", "core"),
    [
        ({"architecture": 75}, "streaming"),
        ({"dtype": torch.float32}, "streaming"),
        ({"channels_last": True}, "streaming"),
        ({"geometry": ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 0))}, "general"),
        ({"geometry": ConvGeometry((3, 3, 3), (1, 2, 2), (1, 1, 1))}, "general"),
        ({"geometry": ConvGeometry((1, 3, 3), (1, 2, 2), (0, 1, 1))}, "general"),
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
            large = geometry.output_size(size) if transposed else size
            assert plan["steps"] == -(-large[0] // 4)
            assert plan["patches"] == [-(-large[1] // 2), -(-large[2] // 32)]
            cuts, blocks = plan["tiles"]
            assert plan["steps_a_block"] * cuts >= plan["steps"] > plan["steps_a_block"] * (cuts - 1)
            warps = plan["threads"] // 32
            assert warps * blocks >= math.prod(plan["patches"]) > warps * (blocks - 1)
            assert plan["parts"] == 2 * cuts * blocks
            assert plan["workspace_bytes"] == plan["parts"] * 16 * kernel**3 * 4
            assert plan["steps_a_block"] <= 64  # a chain of sums in one accumulator


def test_plans_at_the_stages_of_the_network_use_the_whole_gpu():
    for channels, extent in [(32, 128), (64, 64), (128, 32), (256, 16), (512, 8)]:
        for kernel in KERNELS:
            plan = plan_of((1, channels, extent, extent, extent), geometry_of(kernel), torch.bfloat16)
            assert (plan["core"], plan["large_aligned"]) == ("strided", True)
            assert plan["blocks"] * plan["threads"] >= 132 * 32 * 8
            assert plan["workspace_bytes"] <= 10_000_000
