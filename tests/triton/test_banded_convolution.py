"""The convolution as products with bands of taps: the problems and checks of the other kernels, where it is a choice.

The interpreter prefers the direct kernel, a program of which has many channels; here the banded one is asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import replace

import pytest
import torch

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient

from ..emulation.random_results import gradient_of, tensors_of
from .problems import Drawn, check_backward, check_forward, draw
from .test_depthwise_convolution import block

PROBLEMS = 6
MOST_PRODUCTS = 300


@pytest.fixture
def banded(triton_backend, monkeypatch):
    """The backend, whose convolutions that have bands are cut in their banded way of that number."""
    from mednext_ops.backends.triton import convolution, launch

    choose = convolution.choose
    number, used = 0, []

    def choose_banded(kernel, key, ways, over, run):
        found = [way for way in ways if "BD" in way]
        used.append(bool(found))
        return found[min(number, len(found) - 1)] if found else choose(kernel, key, ways, over, run)

    class Banded:
        def __getattr__(self, name):
            return getattr(triton_backend, name)

        @contextlib.contextmanager
        def way(self, n):
            nonlocal number
            before, number = number, n
            yield
            number = before

        def recorded(self, dtype=torch.bfloat16, size=(8, 8, 8), amd=False, **geometry):
            """The kernel that a convolution launches."""
            g = ConvGeometry(**geometry)
            x = torch.empty(1, 2, *size, dtype=dtype, device="meta")
            with launch.recording(amd=amd) as launches:
                convolution.depthwise_conv3d(x, torch.empty(2, 1, *g.kernel_size, device="meta"), None, g)
            return launches[0].kernel.__name__

    monkeypatch.setattr(convolution, "choose", choose_banded)
    yield Banded()
    assert any(used)


def eligible(p: Drawn) -> bool:
    g = p.geometry
    behind = g.kernel_size[2] - 1 - g.padding[2]
    return (
        p.dtype != torch.float32
        and not p.channels_last
        and g.stride == g.dilation == (1, 1, 1)
        and max(g.kernel_size[:2]) <= 7
        and g.kernel_size[2] >= 3
        and max(g.padding[2], behind) <= 4
        and behind >= 0
        and p.batch * p.channels * g.kernel_size[0] * g.kernel_size[1] * (p.size[0] + g.kernel_size[0]) < MOST_PRODUCTS
    )


def problems(first: int) -> list[Drawn]:
    """The first eligible problems of few programs, in the order of their seeds."""
    return list(itertools.islice(filter(eligible, map(draw, itertools.count(first))), PROBLEMS))


@pytest.mark.parametrize("index", range(PROBLEMS))
def test_random_problems_are_within_twice_pytorchs_error(banded, index):
    check_forward(banded, problems(0)[index])
    check_backward(banded, problems(1_000_000)[index])


NETWORK = [
    (3, torch.float16, (2, 5, 9)), (3, torch.bfloat16, (3, 4, 12)), (5, torch.float16, (2, 4, 12)),
    (5, torch.bfloat16, (1, 5, 9)), (7, torch.float16, (1, 3, 9)), (7, torch.bfloat16, (1, 4, 12)),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "dtype", "size"), NETWORK)
def test_the_networks_convolutions(banded, kernel, dtype, size):
    """Statistics, an unwritten gradient, a residual; rows that are loaded one element at a time, and four."""
    p = block(kernel, dtype, size=size, channels=1 if kernel == 7 else 2)
    check_forward(banded, p)
    check_backward(banded, p)


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 5), (1, 1, 9)])
def test_kernels_of_other_forms(banded, kernel):
    p = block(3, torch.bfloat16, size=(3, 5, 10), channels=1)
    p = replace(p, geometry=ConvGeometry(kernel, padding=tuple(k // 2 for k in kernel)))
    check_forward(banded, p)
    check_backward(banded, p)


@pytest.mark.parametrize("padding", [(0, 0, 0), (2, 1, 4), (0, 3, 1)])
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_any_padding_that_a_window_has_room_for(banded, padding, transposed):
    p = block(5, torch.float16, size=(5, 5, 8), channels=1)
    p = replace(p, geometry=ConvGeometry((5, 5, 5), padding=padding, transposed=transposed))
    check_forward(banded, p)
    check_backward(banded, p)


@pytest.mark.parametrize("way", [0, 1, 2])
def test_every_way_to_cut_it_gives_the_same_bits_of_output_and_gradient(banded, way):
    """A sum of a voxel has one order, whatever the tile: several chunks along D, several tiles of a plane."""
    p = block(3, torch.bfloat16, size=(9, 12, 36), channels=1)
    x, w, b, _ = tensors_of(p)
    given, _ = gradient_of(p)

    def run():
        output = banded.depthwise_conv3d(x, w, b, p.geometry)
        return output, banded.depthwise_conv3d_backward(given, x, w, p.geometry, x, True, False)[0]

    expected = run()
    with banded.way(way):
        check_forward(banded, p)
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))


def test_the_same_input_gives_the_same_bits(banded):
    p = block(3, torch.bfloat16, size=(3, 6, 12), channels=2)
    x, w, b, _ = tensors_of(p)
    given, _ = gradient_of(p)

    def run():
        return (
            *banded.depthwise_conv3d_statistics(x, w, b, p.geometry, 2, 1e-5),
            *banded.depthwise_conv3d_backward(given, x, w, p.geometry, None, True, True),
        )

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_64_bit_offsets_give_the_same_bits(banded, monkeypatch):
    from mednext_ops.backends.triton import launch

    p = block(3, torch.float16, size=(3, 6, 12), channels=2, batch=2)
    expected = check_forward(banded, p) + check_backward(banded, p)
    monkeypatch.setattr(launch, "_MOST", 0)
    found = check_forward(banded, p) + check_backward(banded, p)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_beyond_a_slice_is_read_and_every_output_is_written(banded, monkeypatch):
    """Neighbours are NaN, and so is all memory that nobody wrote to."""
    p = block(5, torch.bfloat16, size=(3, 5, 10), channels=1)
    x, w, _, grad = tensors_of(p)
    maps = [torch.randn(1, 1) for _ in range(3)]

    def run(x, grad):
        gradient = GroupNormGradient(grad, grad, *maps)
        return (
            *banded.depthwise_conv3d_statistics(x, w, None, p.geometry, 1, 1e-5),
            banded.depthwise_conv3d_backward(gradient, x, w, p.geometry, None, True, False)[0],
        )

    expected = run(x, grad)
    wide = torch.full((2, 3, 3, 5, 10), float("nan")).bfloat16()
    wide[0, 1], wide[1, 1] = x[0, 0], grad[0, 0]
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **o: new_empty(*a, **o).fill_(float("nan")))
    found = run(wide[:1, 1:2], wide[1:, 1:2])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_goes_to_the_bands_and_what_does_not(banded):
    usual = {"kernel_size": (5, 5, 5), "padding": (2, 2, 2)}
    assert banded.recorded(**usual) == "banded_convolution"
    assert banded.recorded(torch.float16, **usual) == "banded_convolution"
    assert banded.recorded(torch.float32, **usual) == "direct_convolution"
    assert banded.recorded(stride=(2, 2, 2), **usual) == "direct_convolution"
    assert banded.recorded(dilation=(1, 1, 2), size=(8, 8, 16), **usual) == "direct_convolution"
    assert banded.recorded(kernel_size=(3, 3, 9), padding=(1, 1, 4)) == "banded_convolution"
    assert banded.recorded(kernel_size=(3, 3, 9), padding=(1, 1, 3)) == "direct_convolution"  # a window is too short
    assert banded.recorded(kernel_size=(3, 3, 11), padding=(1, 1, 5)) == "direct_convolution"
    assert banded.recorded(kernel_size=(9, 3, 3), padding=(4, 1, 1)) == "direct_convolution"  # too many sums
    assert banded.recorded(kernel_size=(3, 3, 3), padding=(1, 1, 3)) == "direct_convolution"  # its mirror image is none
    assert banded.recorded(amd=True, **usual) == "direct_convolution"


def test_widths_that_are_cut_in_other_ways_are_timed_apart(triton_backend, monkeypatch):
    """Else each would find the other's way in the place of its own, and time anew at every call."""
    from mednext_ops.backends.triton import convolution

    ways_of = {}

    def choose(kernel, key, ways, over, run):
        assert ways_of.setdefault((kernel, key), ways) == ways
        return ways[0]

    monkeypatch.setattr(convolution, "INTERPRETS", False)
    monkeypatch.setattr(convolution, "choose", choose)
    w, geometry = torch.randn(1, 1, 3, 3, 3), ConvGeometry((3, 3, 3), padding=(1, 1, 1))
    for width in (16, 12, 14, 15):  # voxels to the same power of two
        x = torch.randn(1, 1, 2, 2, width).half()
        convolution.depthwise_conv3d_backward(x, x, w, geometry, None, True, True)
    assert len(ways_of) == 4 + 2


def test_a_gpu_times_both_formulations_and_takes_the_banded_one_untimed(triton_backend, monkeypatch):
    from mednext_ops.backends.triton import convolution

    offered = []
    monkeypatch.setattr(convolution, "INTERPRETS", False)
    monkeypatch.setattr(convolution, "choose", lambda kernel, key, ways, over, run: offered.extend(ways) or ways[0])
    x = torch.randn(1, 1, 2, 4, 8).half()
    convolution.depthwise_conv3d(x, torch.randn(1, 1, 3, 3, 3), None, ConvGeometry((3, 3, 3), padding=(1, 1, 1)))
    assert ["BD" in way for way in offered] == [True, True, True, False]
    assert math.prod(len({way for way in offered if ("BD" in way) == kind}) for kind in (True, False)) == 3
