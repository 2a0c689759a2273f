"""Stem and heads: PyTorch's modules and results, as matrix products on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mednext.pointwise import PointwiseConv3d, PointwiseConvTranspose3d

PAIRS = [(PointwiseConv3d, nn.Conv3d), (PointwiseConvTranspose3d, nn.ConvTranspose3d)]
FORMATS = [torch.contiguous_format, torch.channels_last_3d]


def pair(ours, theirs, channels=5, outputs=3, dtype=torch.float64):
    torch.manual_seed(0)
    expected = theirs(channels, outputs, 1).to(dtype)
    found = ours(channels, outputs).to(dtype)
    found.load_state_dict(expected.state_dict())
    return found, expected


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_values_gradients_and_memory_format_are_pytorchs(ours, theirs, channels, memory_format):
    found, expected = pair(ours, theirs, channels)
    assert isinstance(found, theirs)
    x = torch.randn(2, channels, 3, 4, 5, dtype=torch.float64).to(memory_format=memory_format)
    results = []
    for module in (found, expected):
        leaf = x.detach().requires_grad_()
        output = module(leaf)
        weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        gradients = torch.autograd.grad((output * weight).sum(), [leaf, module.weight, module.bias])
        results.append([output, *gradients])
    for ours_, theirs_ in zip(*results, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-12, atol=1e-12)
    assert found(x).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_autocast_chooses_the_dtype(ours, theirs):
    found, expected = pair(ours, theirs, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(1, 5, 2, 3, 4)
        assert found(x).dtype == expected(x).dtype == torch.bfloat16


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_what_is_no_product_goes_to_pytorch(ours, theirs):
    found, expected = pair(ours, theirs)
    empty = torch.zeros(0, 5, 2, 2, 2, dtype=torch.float64)
    assert found(empty).shape == expected(empty).shape
    with pytest.raises(RuntimeError, match="channels"):
        found(torch.zeros(1, 4, 2, 2, 2, dtype=torch.float64))
    said = []
    for module in (found, expected):
        with pytest.raises(RuntimeError) as raised:
            module(torch.zeros(1, 5, 2, 2, 2, dtype=torch.float16))
        said.append(str(raised.value))
    assert said[0] == said[1] and "Half" in said[0]
    unbatched = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(found(unbatched), expected(unbatched))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_an_exported_graph_keeps_its_convolution(ours, theirs):
    found, _ = pair(ours, theirs, dtype=torch.float32)
    program = torch.export.export(found, (torch.randn(1, 5, 2, 3, 4),))
    assert any("conv" in str(node.target) for node in program.graph.nodes)
