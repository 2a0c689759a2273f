"""The planar tensor-core convolution on the emulation: against float64, to the bit in every order of threads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import ConvGeometry
from mednext_ops.plans import convolution_plans

from ..ops.eager import assert_within_twice, rms_error
from .gradients import affine_gradient, written_out
from .repeats import assert_250_runs_give_the_same_bits

ROOT = Path(__file__).resolve().parents[2]
DTYPES = [torch.bfloat16, torch.float16]
KERNELS = [(3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 3, 3), (1, 5, 5), (1, 7, 7)]
CHANNELS = 3
# A strip a row of the tile and several, a last one that is cut, several tiles along W, H and D, extents below the
# kernel, and rows of a tile that are not all there.
SIZES = [(3, 6, 128), (3, 70, 16), (2, 4, 264), (4, 33, 8), (9, 10, 40), (2, 70, 64), (1, 1, 8), (3, 2, 24), (70, 3, 8)]


# How the planes come: by the copy engine of an H100, or by copies of an RTX 30.
BOTH = pytest.mark.parametrize("emulated", ["boxes", "copies"], indirect=True)


@pytest.fixture
def emulated(emulated, request):
    with emulated.architecture({"boxes": 90, "copies": 86}[getattr(request, "param", "boxes")]):
        yield emulated


def geometry_of(kernel, padding=None) -> ConvGeometry:
    return ConvGeometry(kernel, padding=padding or tuple(k // 2 for k in kernel))


def plan_of(shape, geometry, dtype, architecture=90, **details):
    name = str(dtype).removeprefix("torch.")
    return convolution_plans(shape, geometry, name, architecture, **details)


def draw(size, kernel, dtype, batch=2):
    x = torch.randn(batch, CHANNELS, *size).to(dtype)
    w = (torch.randn(CHANNELS, 1, *kernel) / (kernel[0] * kernel[1] * kernel[2]) ** 0.5).to(dtype)
    return x, w, torch.randn(CHANNELS).to(dtype)


def check_forward(emulated, size, kernel, dtype, padding=None):
    geometry = geometry_of(kernel, padding)
    x, w, b = draw(size, kernel, dtype)
    assert plan_of(x.shape, geometry, dtype, emulated._architecture)["forward"]["core"] == "planar"
    exact = F.conv3d(x.double(), w.double(), b.double(), padding=geometry.padding, groups=CHANNELS)
    theirs = F.conv3d(x, w, b, padding=geometry.padding, groups=CHANNELS)
    assert_within_twice(emulated.depthwise_conv3d(x, w, b, geometry), theirs, exact, "output")


def check_data_gradient(emulated, size, kernel, dtype, *, computed=True, added=True, padding=None):
    geometry = geometry_of(kernel, padding)
    x, w, _ = draw(size, kernel, dtype)
    grad = torch.randn_like(F.conv3d(x, w, padding=geometry.padding, groups=CHANNELS))
    gradient = affine_gradient(grad) if computed else grad
    add = torch.randn_like(x) if added else None
    plan = plan_of(x.shape, geometry, dtype, emulated._architecture, affine=computed)["backward_data"]
    assert plan["core"] == "planar"
    data, weight = emulated.depthwise_conv3d_backward(gradient, x, w, geometry, add, True, False)
    assert weight is None

    def eager(dtype):
        given = written_out(gradient, dtype) if computed else grad.to(dtype)
        data = torch.nn.grad.conv3d_input(x.shape, w.to(dtype), given, padding=geometry.padding, groups=CHANNELS)
        return data if add is None else data + add.to(dtype)

    assert_within_twice(data, eager(dtype), eager(torch.float64), "data")


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel(emulated, kernel, dtype):
    check_forward(emulated, (5, 9, 24), kernel, dtype)


@BOTH
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 7, 7)])
@pytest.mark.parametrize("size", SIZES)
def test_every_shape_of_tile(emulated, size, kernel):
    check_forward(emulated, size, kernel, torch.bfloat16)


@BOTH
@pytest.mark.parametrize("size", [(3, 6, 128), (4, 33, 8), (2, 70, 64)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (7, 7, 7)])
def test_every_shape_of_tile_where_the_gradient_is_computed(emulated, size, kernel):
    check_data_gradient(emulated, size, kernel, torch.bfloat16)


@BOTH
@pytest.mark.parametrize("kernel", [(3, 3, 1), (1, 5, 3), (5, 5, 1), (7, 7, 5), (1, 7, 1)])
def test_the_kernel_along_w_may_be_smaller(emulated, kernel):
    check_forward(emulated, (4, 6, 24), kernel, torch.float16)
    check_data_gradient(emulated, (4, 6, 24), kernel, torch.float16)


@BOTH
@pytest.mark.parametrize(
    ("kernel", "padding"), [((3, 3, 3), (0, 0, 1)), ((3, 3, 3), (4, 3, 1)), ((7, 7, 7), (2, 5, 3))]
)
def test_any_padding_along_d_and_h(emulated, kernel, padding):
    check_forward(emulated, (7, 8, 16), kernel, torch.bfloat16, padding)
    check_data_gradient(emulated, (7, 8, 16), kernel, torch.bfloat16, padding=padding)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("computed", [False, True], ids=["written out", "computed"])
def test_the_data_gradient_of_every_kernel(emulated, computed, kernel, dtype):
    check_data_gradient(emulated, (5, 9, 24), kernel, dtype, computed=computed)


@BOTH
def test_a_transposed_convolution_is_the_mirror_image(emulated):
    x, w, b = draw((5, 6, 16), (3, 3, 3), torch.bfloat16)
    geometry = ConvGeometry((3, 3, 3), padding=(1, 1, 1), transposed=True)
    exact, theirs = (
        F.conv_transpose3d(x.to(t), w.to(t), b.to(t), padding=1, groups=CHANNELS) for t in (torch.float64, x.dtype)
    )
    assert_within_twice(emulated.depthwise_conv3d(x, w, b, geometry), theirs, exact, "output")


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (7, 7, 7)])
@pytest.mark.parametrize("size", [(6, 9, 24), (3, 40, 64)])
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


def all_results(emulated, dtype, size=(5, 9, 24), kernel=(5, 5, 5), batch=2):
    torch.manual_seed(1)
    x, w, b = draw(size, kernel, dtype, batch)
    gradient = affine_gradient(torch.randn_like(x))
    data, _ = emulated.depthwise_conv3d_backward(gradient, x, w, geometry_of(kernel), gradient.grad, True, False)
    return (*emulated.depthwise_conv3d_statistics(x, w, b, geometry_of(kernel), CHANNELS, 1e-5), data)


@BOTH
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 3, 3)])
@pytest.mark.parametrize("size", [(5, 9, 24), (9, 18, 136)])
def test_every_order_of_threads_gives_the_same_bits(emulated, size, kernel):
    first = all_results(emulated, torch.bfloat16, size, kernel)
    for order, seed in [("reversed", 0), *(("shuffled", seed) for seed in range(3)), ("uneven", 0), ("uneven", 1)]:
        with emulated.thread_order(order, seed):
            again = all_results(emulated, torch.bfloat16, size, kernel)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@BOTH
@pytest.mark.parametrize(("extent", "size"), [(3, (3, 5, 16)), (7, (2, 3, 8))])
def test_250_runs_give_the_same_bits(emulated, extent, size):
    kernel = (extent,) * 3
    assert_250_runs_give_the_same_bits(emulated, lambda: all_results(emulated, torch.bfloat16, size, kernel, batch=1))


@pytest.mark.parametrize("kernel", [(3, 3, 3), (7, 7, 7)])
def test_the_cut_changes_no_bit_of_the_output(emulated, kernel):
    x, w, _ = draw((24, 40, 24), kernel, torch.bfloat16, batch=40)
    together = emulated.depthwise_conv3d(x, w, None, geometry_of(kernel))
    alone = x[:1, :1].contiguous()  # fewer channels: cut otherwise
    plans = [plan_of(t.shape, geometry_of(kernel), t.dtype)["forward"]["tile"] for t in (x, alone)]
    assert plans[0] != plans[1]
    assert torch.equal(emulated.depthwise_conv3d(alone, w[:1], None, geometry_of(kernel)), together[:1, :1])


@BOTH
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (7, 7, 7)])
def test_errors_are_those_of_the_banded_core(emulated, kernel):
    x, w, _ = draw((6, 12, 32), kernel, torch.bfloat16)
    exact = F.conv3d(x.double(), w.double(), padding="same", groups=CHANNELS)
    planar = emulated.depthwise_conv3d(x, w, None, geometry_of(kernel))
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)  # two bytes off: the banded core's
    banded = emulated.depthwise_conv3d(shifted, w, None, geometry_of(kernel))
    assert plan_of(x.shape, geometry_of(kernel), x.dtype, alignment=2)["forward"]["core"] == "banded"
    assert rms_error(planar, exact) <= 1.01 * rms_error(banded, exact)


@BOTH
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (7, 7, 7)])
def test_the_way_of_the_planes_changes_no_bit(emulated, kernel):
    x, w, b = draw((5, 12, 40), kernel, torch.bfloat16)
    gradient = affine_gradient(torch.randn_like(x))

    def results():
        data, _ = emulated.depthwise_conv3d_backward(gradient, x, w, geometry_of(kernel), x, True, False)
        return emulated.depthwise_conv3d(x, w, b, geometry_of(kernel)), data

    boxes = results()
    with emulated.architecture(80):
        assert plan_of(x.shape, geometry_of(kernel), x.dtype, 80)["forward"]["fill"] == "async"
        assert all(torch.equal(a, b) for a, b in zip(boxes, results(), strict=True))


# Rows of an odd number of quads, of which an H100's copy engine takes no boxes.
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 7, 7)])
@pytest.mark.parametrize("size", [(5, 9, 20), (3, 6, 132), (2, 70, 12), (4, 33, 4), (1, 1, 4), (2, 4, 268)])
def test_rows_of_quads(emulated, size, kernel):
    for name in ("forward", "backward_data"):
        plan = plan_of((2, CHANNELS, *size), geometry_of(kernel), torch.bfloat16, affine=True)[name]
        assert (plan["core"], plan["fill"]) == ("planar", "async")
    check_forward(emulated, size, kernel, torch.bfloat16)
    check_data_gradient(emulated, size, kernel, torch.float16)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_float32_parameters_are_rounded_to_the_tensor_type_once(emulated, weight_dtype):
    x, w, b = draw((4, 6, 16), (3, 3, 3), torch.bfloat16)
    wide = emulated.depthwise_conv3d(x, w.to(weight_dtype), b.to(weight_dtype), geometry_of((3, 3, 3)))
    assert torch.equal(wide, emulated.depthwise_conv3d(x, w, b, geometry_of((3, 3, 3))))


@BOTH
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (7, 7, 7)])
def test_a_value_that_is_not_finite_reaches_only_its_neighbourhood(emulated, kernel):
    x, w, _ = draw((9, 24, 64), kernel, torch.bfloat16)
    clean = emulated.depthwise_conv3d(x, w, None, geometry_of(kernel))
    x[0, 1, 4, 12, 32] = float("inf")
    dirty = emulated.depthwise_conv3d(x, w, None, geometry_of(kernel))
    assert not dirty[0, 1, 4, 12, 32].isfinite()
    reach = kernel[0] // 2
    changed = torch.zeros_like(dirty, dtype=torch.bool)
    changed[0, 1, 4 - reach : 5 + reach, 12 - 6 : 13 + 6, 32 - 7 : 33 + 7] = True
    assert torch.equal(dirty[~changed], clean[~changed])


@pytest.mark.parametrize(
    ("details", "core"),
    [
        ({"architecture": 75}, "streaming"),
        ({"shape": (1, 4, 16, 16, 18)}, "banded"),
        ({"shape": (1, 4, 16, 16, 20), "architecture": 100}, "banded"),
        ({"alignment": 4}, "banded"),
        ({"alignment": 8, "architecture": 120}, "banded"),
        ({"geometry": ConvGeometry((3, 3, 5), padding=(1, 1, 2))}, "banded"),
        ({"dtype": "float32"}, "streaming"),
        ({"channels_last": True}, "streaming"),
        ({"geometry": ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1))}, "strided"),
        ({}, "planar"),
        ({"architecture": 89}, "planar"),
        ({"shape": (1, 4, 16, 16, 20)}, "planar"),
        ({"alignment": 8}, "planar"),
    ],
    ids=[
        "no such tensor cores",
        "rows",
        "rows on Blackwell",
        "alignment",
        "alignment on Blackwell",
        "a wider kernel",
        "float32",
        "channels_last",
        "stride",
        "planar",
        "no copy engine",
        "quads",
        "alignment of quads",
    ],
)
def test_the_rest_goes_to_the_other_cores(details, core):
    options = {"geometry": geometry_of((3, 3, 3)), "dtype": "bfloat16", "architecture": 90} | details
    shape = options.pop("shape", (1, 4, 16, 16, 16))
    geometry, dtype, architecture = (options.pop(key) for key in ("geometry", "dtype", "architecture"))
    plans = convolution_plans(shape, geometry, dtype, architecture, **options)
    assert plans["forward"]["core"] == core


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("architecture", "most_bytes"), [(90, 216), (80, 160), (86, 97), (120, 97)])
def test_plans_at_the_stages_of_the_network(architecture, most_bytes, affine):
    for channels, extent in [(32, 128), (64, 64), (128, 32), (256, 16), (512, 8), (32, 160), (32, 96), (32, 400)]:
        for kernel in (3, 5, 7):
            shape = (1, channels, extent, extent, extent)
            plans = convolution_plans(shape, geometry_of((kernel,) * 3), "bfloat16", architecture, affine=affine)
            plan = plans["backward_data"]
            depth, rows, columns = plan["tile"]
            assert plan["core"] == "planar" and plan["threads"] <= 256 and plan["stages"] >= 2
            assert plan["blocks"] == channels * plan["tiles"][0] * plan["tiles"][1] * plan["tiles"][2]
            assert depth * plan["tiles"][0] >= extent and rows * plan["tiles"][1] >= extent
            assert columns * plan["tiles"][2] >= extent
            assert rows + kernel - 1 <= 256 and columns + 16 <= 256
            assert plan["ring_bytes"] <= most_bytes * 1024


@pytest.mark.parametrize(("architecture", "kibibytes"), [(80, 164), (86, 100), (89, 100)])
def test_stages_leave_room_for_the_blocks_that_registers_are_for(architecture, kibibytes):
    """Of the shared memory of a multiprocessor each block takes one KiB more than it asks for."""
    for channels, extent in [(32, 128), (64, 64), (128, 40)]:
        for kernel, warps, outputs in ((3, 16, 2), (7, 8, 4)):  # that registers are for; rows of a product
            beside = 512 + 32 * kernel * (kernel + 2 * outputs - 2)  # barriers, moments and taps
            for affine in (False, True):
                plans = plan_of((2, channels, *(extent,) * 3), geometry_of((kernel,) * 3), torch.bfloat16, architecture,
                                affine=affine)  # fmt: skip
                plan = plans["backward_data"]
                assert plan["fill"] == "async"
                blocks = warps * 32 // plan["threads"]
                assert plan["stages"] == 2 or blocks * (plan["ring_bytes"] + beside + 1024) <= kibibytes * 1024


def test_the_plan_chooses_tiles_that_were_measured_to_be_fast():
    """Of the tiles timed on an H200 the chosen one takes at most a twentieth longer than the fastest, on average."""
    path = ROOT / "benchmarks" / "results" / "h200-planar.json"
    if not path.is_file():
        pytest.skip("the source tree is not here: the measurements are part of it")
    measured = json.loads(path.read_text())
    tiles: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}
    for row in measured["rows"]:
        of = dict(zip(measured["columns"], row, strict=True))
        problem = tuple(of[key] for key in ("kernel", "channels", "extent", "gradient_computed"))
        tile = tuple(of[key] for key in ("fragments", "rows", "cuts_of_d"))
        times = tiles.setdefault(problem, {})
        times[tile] = min(of["us"], times.get(tile, math.inf))
    assert len(tiles) == 30
    ratios = []
    for (kernel, channels, extent, computed), times in tiles.items():
        shape = (1, channels, extent, extent, extent)
        plans = plan_of(shape, geometry_of((kernel,) * 3), torch.bfloat16, affine=bool(computed))
        plan = plans["backward_data" if computed else "forward"]
        chosen = (plan["fragments"], plan["tile"][1], plan["tiles"][0])
        if chosen in times:
            ratios.append(times[chosen] / min(times.values()))
    assert len(ratios) >= 20
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) <= 1.05
