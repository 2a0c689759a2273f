"""MONAI's transforms and loaders yield a subclass of torch.Tensor: our ops take it as PyTorch's own layers do."""

from __future__ import annotations

import pytest
import torch

import mednext_ops as ops

from .eager import Block, relative_error

MetaTensor = pytest.importorskip("monai.data").MetaTensor


@pytest.mark.parametrize(("form", "stride"), [("regular", (1, 1, 1)), ("down", (2, 2, 2)), ("up", (2, 2, 2))])
@pytest.mark.parametrize("recompute", [None, "conv"])
def test_a_block_trains_on_monais_meta_tensor(form, stride, recompute):
    block = Block.random(form, with_grn=True)
    parameters = [tensor for name, tensor in block.tensors().items() if name != "input"]
    expected = torch.autograd.grad(block.ours(form, stride, 4).sum(), parameters)
    block.input = MetaTensor(block.input.detach())
    actual = torch.autograd.grad(block.ours(form, stride, 4, recompute=recompute).sum(), parameters)
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) <= 1e-12


def test_layers_train_on_monais_meta_tensor():
    layer = ops.nn.DepthwiseConvNormAct3d(4, 3)
    layer(MetaTensor(torch.randn(2, 4, 5, 6, 7))).sum().backward()
    assert layer.conv.weight.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        layer(MetaTensor(torch.randn(2, 4, 5, 6, 7))).float().sum().backward()
