"""The inverted bottleneck of every block of every published variant, on the emulation."""

from __future__ import annotations

import pytest
import torch

import mednext
from mednext.variants import VARIANTS

from .test_inverted_bottleneck import Case, check_backward, check_forward, problem

Shape = tuple[int, int, int, bool]

SIZES = [(2, 3, 5), (1, 2, 8), (3, 3, 3)]
OTHERS = [torch.float16, torch.float32, None]


def shapes() -> list[Shape]:
    """C input, R hidden and O output channels, and whether with GRN, each once."""
    found = set()
    with torch.device("meta"):
        networks = [mednext.create_mednext(name, 1, 3) for name in VARIANTS]
    for network in networks:
        for block in network.modules():
            if isinstance(block, mednext.MedNeXtBlock):
                hidden, channels = block.conv2.weight.shape[:2]
                found.add((channels, hidden, block.conv3.weight.shape[0], block.grn))
    return sorted(found)


SHAPES = shapes()


def check(emulated, shape: Shape, dtype: torch.dtype, parameters: torch.dtype, index: int) -> None:
    *channels, grn = shape
    flags = frozenset({"grn"}) if grn else frozenset()
    for name in ("inverted_bottleneck", "inverted_bottleneck_backward"):
        declined = emulated.supports(problem(channels, dtype, flags=flags)._replace(op=name))
        assert declined is None, declined
    residual = channels[2] >= channels[0]  # an up block adds its own on a finer grid
    case = Case.draw(channels, SIZES[index % 3], 1 + index % 2, dtype, parameters, residual, grn)
    check_forward(emulated, case)
    check_backward(emulated, case)


def test_the_shapes_are_those_of_all_forms():
    assert len(SHAPES) == 58
    outputs = {channels: {o for c, _, o, _ in SHAPES if c == channels} for channels in (32, 64, 128, 256, 512, 1024)}
    assert outputs[32] == {32, 64} and outputs[1024] == {512, 1024}  # the finest has no up block, the coarsest no down
    assert all(outputs[channels] == {channels // 2, channels, 2 * channels} for channels in (64, 128, 256, 512))
    assert {grn for *_, grn in SHAPES} == {False, True}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_bfloat16_with_parameters_as_under_autocast(emulated, shape):
    check(emulated, shape, torch.bfloat16, torch.float32, SHAPES.index(shape))


@pytest.mark.parametrize(
    ("shape", "dtype"), [(s, OTHERS[i % 3]) for i, s in enumerate(SHAPES) if OTHERS[i % 3] is not None], ids=str
)
def test_in_another_type(emulated, shape, dtype):
    check(emulated, shape, dtype, dtype, SHAPES.index(shape) // 3)
