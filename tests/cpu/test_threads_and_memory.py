"""The same bits on any number of threads, at every run, and whatever was in memory before."""

from __future__ import annotations

import pytest
import torch

from mednext_ops.backends import ConvGeometry, InvertedBottleneckNeeds

from .conftest import DTYPES, FORMATS

NAMES = [
    "depthwise_conv3d",
    "depthwise_conv3d_statistics",
    "depthwise_conv3d_backward",
    "inverted_bottleneck",
    "inverted_bottleneck_backward",
    "group_norm",
    "group_norm_backward",
]


def tensors_of(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return [t for t in result if t is not None]


def results(cpu, dtype, memory_format, size=(19, 18, 21)):
    """Every op on one problem that is cut into many tasks, by name."""
    torch.manual_seed(3)
    channels, hidden, outputs = 40, 72, 24
    x = torch.randn(2, channels, *size).to(dtype).contiguous(memory_format=memory_format)
    g = torch.randn(2, outputs, *size).to(dtype).contiguous(memory_format=memory_format)
    w, p = torch.randn(channels, 1, 5, 5, 5), torch.randn(channels)
    mean, rstd = torch.randn(2, channels), torch.rand(2, channels) + 0.5
    expand, compress = torch.randn(hidden, channels), torch.randn(outputs, hidden)
    grn = torch.randn(hidden), torch.randn(hidden)
    geometry = ConvGeometry((5, 5, 5), padding=(2, 2, 2))
    needs = InvertedBottleneckNeeds(True, True, True, True, True)
    found = (
        cpu.depthwise_conv3d(x, w, p, geometry),
        cpu.depthwise_conv3d_statistics(x, w, p, geometry, channels, 1e-5),
        cpu.depthwise_conv3d_backward(x, x, w, geometry, x, True, True),
        cpu.inverted_bottleneck(x, mean, rstd, p, p, expand, grn[0], compress, p[:outputs], grn, g),
        cpu.inverted_bottleneck_backward(g, x, mean, rstd, p, p, expand, grn[0], compress, grn, needs),
        cpu.group_norm(x, mean, rstd, p, p, "gelu"),
        cpu.group_norm_backward(x, x, mean, rstd, p, p, "gelu"),
    )
    return {name: tensors_of(result) for name, result in zip(NAMES, found, strict=True)}


def assert_same_bits(first, second):
    for name in NAMES:
        for one, other in zip(first[name], second[name], strict=True):
            assert torch.equal(one, other), name


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_does_not_depend_on_the_number_of_threads(cpu, dtype, memory_format):
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(results(cpu, dtype, memory_format))
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])


def test_nothing_is_left_over_from_the_problem_before(cpu):
    """Threads keep their scratch memory: here it is full of NaN from a larger problem."""
    clean = results(cpu, torch.float32, torch.contiguous_format, (9, 8, 7))
    geometry = ConvGeometry((7, 7, 7), padding=(3, 3, 3))
    lost = torch.full((1, 64, 24, 24, 24), float("nan"))
    cpu.depthwise_conv3d_backward(lost, lost, torch.randn(64, 1, 7, 7, 7), geometry, None, True, True)
    expand, nothing = torch.full((128, 64), float("nan")), torch.zeros(1, 64)
    bias = torch.zeros(128)
    cpu.inverted_bottleneck(lost, nothing, nothing, bias[:64], bias[:64], expand, bias, expand.T, None, None, None)
    again = results(cpu, torch.float32, torch.contiguous_format, (9, 8, 7))
    assert_same_bits(clean, again)


def test_both_memory_formats_give_the_same_bits(cpu):
    """Voxels are summed in the same order in either."""
    assert_same_bits(*(results(cpu, torch.float32, memory_format) for memory_format in FORMATS))
