"""The example blocks compute what PyTorch's layers do, forward and backward, on the backend that the table names."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mednext_ops as ops
from mednext.backends_used import BackendsUsed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def convnexts():
    spec = importlib.util.spec_from_file_location("convnexts", ROOT / "examples" / "convnexts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(convnexts):
    return {
        "3D UX-Net, k7": convnexts.UXNetBlock(8, layer_scale=0.5),
        "RepUX-Net, k21": convnexts.RepUXNetConvolution(4),
        "EfficientMedNeXt": convnexts.EfficientMedNeXtBlock(8),
    }


def in_pytorch(block):
    """A copy of the block, in which our layers' forwards are PyTorch's."""
    plain = copy.deepcopy(block)
    for module in plain.modules():
        if isinstance(module, ops.nn.DepthwiseConv3d):
            module.__class__ = nn.Conv3d
    for name, module in list(plain.named_modules()):
        if isinstance(module, ops.nn.DepthwiseConvNormAct3d):
            plain.set_submodule(name, nn.Sequential(module.conv, module.norm, nn.GELU()))
    return plain


def result(block, x):
    x = x.clone().requires_grad_()
    y = block(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in block.parameters())]


@pytest.mark.parametrize("name", ["3D UX-Net, k7", "RepUX-Net, k21", "EfficientMedNeXt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_block_computes_what_pytorch_does(convnexts, name, dtype):
    block = blocks(convnexts)[name].to(dtype)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    x = torch.randn(1, next(block.parameters()).shape[0], 12, 9, 11, dtype=dtype)
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-10}[dtype]
    expected = result(in_pytorch(block), x)
    scale = max(tensor.abs().max().item() for tensor in expected)  # of all: a bias before a norm has gradient 0
    for ours, theirs in zip(result(block, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(scale, 1))


def test_merging_keeps_the_output(convnexts):
    block = blocks(convnexts)["RepUX-Net, k21"].double()
    x = torch.randn(1, 4, 12, 9, 11, dtype=torch.float64)
    before = block(x)
    merged = block.merge()
    assert not any("small" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(x), before)
    assert F.conv3d(x, merged.large.weight, merged.large.bias, padding=10, groups=4).allclose(before)


@pytest.mark.skipif("cpu" not in ops.available_backends(), reason="needs the native CPU library")
@pytest.mark.parametrize("name", ["3D UX-Net, k7", "RepUX-Net, k21", "EfficientMedNeXt"])
def test_the_documented_backend_runs_the_block(convnexts, name):
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", (ROOT / "docs" / "convnexts.md").read_text(), re.MULTILINE)
    with BackendsUsed() as used:
        block = blocks(convnexts)[name]
        result(block, torch.randn(1, next(block.parameters()).shape[0], 12, 9, 11))
    assert " and ".join(used.names()) == dict(rows)[name], used.by_op()
