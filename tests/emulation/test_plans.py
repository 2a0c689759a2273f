"""Plans of the cores whose tests do not look at them: every output once, and no number that wraps in a huge volume."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from mednext_ops.backends.problem import ConvGeometry
from mednext_ops.plans import convolution_plans

SIZES = [(128, 128, 128), (8, 8, 8), (1, 1, 1), (40, 1000, 24), (3, 2000, 16), (7, 5, 3000), (64, 3, 2)]
STREAMING = [
    *(((k, k, k), (s, s, s)) for k in (3, 5, 7) for s in (1, 2)),
    *((kernel, (1, 2, 2)) for kernel in ((3, 3, 3), (1, 5, 5), (7, 7, 7))),
    *(((1, k, k), (1, 1, 1)) for k in (3, 5, 7)),
]


def centred(kernel, stride=(1, 1, 1), **details) -> ConvGeometry:
    return ConvGeometry(kernel, stride, tuple(k // 2 for k in kernel), **details)


def ceil_div(a, b):
    return -(-a // b)


def assert_covered_once(extents, plan):
    """Tiles side by side, from the first voxel on: one fewer would leave some out."""
    for extent, of_tile, tiles in zip(extents, plan["tile"], plan["tiles"], strict=True):
        assert of_tile * tiles >= extent > of_tile * (tiles - 1), plan


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize(("kernel", "stride"), STREAMING)
def test_streaming_convolutions_and_scatters_cover_the_volume(kernel, stride, transposed, channels_last):
    g = centred(kernel, stride, transposed=transposed)
    for size, channels in itertools.product(SIZES, (24, 3)):
        plans = convolution_plans((2, channels, *size), g, "float32", 90, channels_last=channels_last)
        for name, output, scatters in (
            ("forward", g.output_size(size), transposed),
            ("backward_data", size, not transposed),
        ):
            plan = plans[name]
            assert plan["core"] == "streaming"
            if scatters and stride[2] == 2:
                # Counted in pairs of rows and columns, and in the planes that an input plane completes: the first of
                # them may complete planes before the volume.
                before = g.padding[0] % stride[0]
                extents = (output[0] + before, *(2 * ceil_div(n, 2) for n in output[1:]))
            else:
                extents = output
            of_tile, tiles = plan["tile"], plan["tiles"]
            assert_covered_once(extents, plan)
            channel_tiles = ceil_div(channels, plan["channels_a_warp"])
            assert plan["blocks"] == 2 * channel_tiles * ceil_div(math.prod(tiles), plan["threads"] // 32)
            assert plan["moments_per_channel"] == math.prod(tiles)
            lanes = plan["channels_a_warp"] * of_tile[1] * of_tile[2]
            assert lanes % 32 == 0  # a warp's lanes are all dealt out


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize("extent", [3, 5, 7])
def test_scatters_on_tensor_cores_cover_the_volume(extent, transposed, affine):
    g = centred((extent,) * 3, (2, 2, 2), transposed=transposed)
    for size in SIZES:
        plan = convolution_plans((2, 16, *size), g, "bfloat16", 90, affine=affine)[
            "forward" if transposed else "backward_data"
        ]
        output = g.output_size(size) if transposed else size
        assert plan["core"] == "strided_scatter"
        # Pairs of planes, of which the first may begin a plane before the volume; pairs of rows; rows of windows of
        # eight, that may begin a column before.
        planes = output[0] + g.padding[0] % 2
        extents = (2 * ceil_div(planes, 2), 2 * ceil_div(output[1], 2), 8 * ceil_div(output[2] + output[2] % 2, 8))
        assert_covered_once(extents, plan)
        assert plan["blocks"] == 2 * 16 * math.prod(plan["tiles"])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_the_general_core_covers_the_volume(transposed, channels_last):
    """Its blocks are runs of voxels: of 1024 outputs, or of 4096 positions of the weight gradient's small tensor."""
    g = ConvGeometry((3, 5, 9), (1, 2, 1), (1, 2, 4), (2, 1, 1), transposed=transposed)
    outputs, positions = (256, 1024) if channels_last else (1024, 4096)
    for size in SIZES:
        if min(g.output_size(size)) < 1:
            continue
        plans = convolution_plans((2, 16, *size), g, "bfloat16", 90, channels_last=channels_last)
        assert {plan["core"] for plan in plans.values()} == {"general"}
        made = {"forward": math.prod(g.output_size(size)), "backward_data": math.prod(size)}
        for name, voxels in made.items():
            assert plans[name]["moments_per_channel"] == ceil_div(voxels, outputs)
        small = made["backward_data" if transposed else "forward"]
        assert plans["backward_weight"]["parts"] == 2 * ceil_div(small, positions)
        assert plans["backward_weight"]["workspace_bytes"] == plans["backward_weight"]["parts"] * 16 * 3 * 5 * 9 * 4


def numbers_of(plan: Any) -> list[int]:
    if isinstance(plan, dict):
        return [n for value in plan.values() for n in numbers_of(value)]
    return (
        [n for value in plan for n in numbers_of(value)] if isinstance(plan, list) else [plan] * isinstance(plan, int)
    )


# Of more than 2^31 elements: in all, along one axis, in a plane, in the channels, in the batch.
HUGE = [
    (1, 32, 512, 512, 512),
    (2, 3, 2048, 1024, 1024),
    (1, 64, 2**17, 16, 128),
    (1, 1, 2**16, 2**16, 8),
    (4, 64, 2**12, 2**6, 2**8 + 2),
    (1, 8, 2**29 - 8, 1, 8),
    (1, 32, 1, 2**23, 8),
    (32, 1, 1, 8, 2**23),
    (1, 1, 2**31 + 8, 1, 1),
    (1, 1, 1, 2**31 + 8, 1),
    (1, 1, 1, 1, 2**31 + 8),
    (1, 2**31, 1, 1, 1),
    (70_000, 40_000, 1, 1, 8),
]
GEOMETRIES = [
    *(centred((k, k, k), (s, s, s), transposed=t) for k in (3, 5, 7) for s in (1, 2) for t in (False, True)),
    *(centred((1, k, k), transposed=t) for k in (3, 7) for t in (False, True)),
    centred((3, 3, 3), (1, 2, 2)),
    centred((9, 3, 3)),
]


def test_no_number_of_a_huge_plan_wraps():
    cores: dict[str, set[str]] = {}
    for shape, g, dtype, channels_last, architecture, affine in itertools.product(
        HUGE, GEOMETRIES, ("float32", "bfloat16"), (False, True), (75, 80, 90), (False, True)
    ):
        plans = convolution_plans(shape, g, dtype, architecture, channels_last=channels_last, affine=affine)
        for name, plan in plans.items():
            cores.setdefault(name, set()).add(plan["core"])
            assert min(numbers_of(plan)) >= 0, (shape, g, plan)
            assert plan.get("blocks", 0) < 2**31, (shape, g, plan)  # of a grid's first axis
            _assert_exact(shape, g, name, plan)
    of_convolutions = {"planar", "banded", "strided", "strided_scatter", "streaming", "general"}
    assert cores["forward"] == cores["backward_data"] == of_convolutions
    assert cores["backward_weight"] == {"banded", "strided", "streaming", "general"}


def _assert_exact(shape: tuple[int, ...], g: ConvGeometry, name: str, plan: dict[str, Any]) -> None:
    """What a plan says twice is the same, in integers that do not wrap."""
    batch, channels, *size = shape
    tiles = math.prod(plan.get("tiles", [0]))
    if name == "backward_weight":
        assert plan["workspace_bytes"] == plan["parts"] * channels * math.prod(g.kernel_size) * 4
        if plan["core"] == "banded":
            assert plan["parts"] == batch * tiles
            assert_covered_once(g.output_size(tuple(size)) if g.transposed else size, plan)
    elif plan["core"] in ("banded", "planar", "strided", "strided_scatter"):
        assert plan["moments_per_channel"] == tiles
    if plan["core"] in ("banded", "planar", "strided", "strided_scatter"):
        assert plan["blocks"] == batch * channels * tiles
    if plan["core"] in ("banded", "planar") and name != "backward_weight":
        output = g.output_size(tuple(size)) if name == "forward" else size
        assert plan["tile"][2] * plan["tiles"][2] >= output[2]
        assert plan["tile"][0] * plan["tiles"][0] >= output[0]
