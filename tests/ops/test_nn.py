"""The drop-in layers have PyTorch's parameters, keys and results."""

from __future__ import annotations

import pytest
import torch

import mednext_ops as ops

from .eager import relative_error


@pytest.mark.parametrize("kernel", [3, (1, 5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_layer_takes_the_state_of_pytorchs(kernel, bias):
    padding = 1 if kernel == 3 else (0, 2, 1)
    theirs = torch.nn.Conv3d(6, 6, kernel, 2, padding, groups=6, bias=bias).double()
    ours = ops.nn.DepthwiseConv3d(6, kernel, 2, padding, bias=bias).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 6, 7, 8, 9, dtype=torch.float64)
    assert relative_error(ours(x), theirs(x)) <= 1e-12
    assert isinstance(ours, torch.nn.Conv3d)


def test_same_padding():
    theirs = torch.nn.Conv3d(3, 3, 5, padding="same", groups=3, dilation=2).double()
    ours = ops.nn.DepthwiseConv3d(3, 5, padding="same", dilation=2).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 9, 9, 9, dtype=torch.float64)
    assert relative_error(ours(x), theirs(x)) <= 1e-12


@pytest.mark.parametrize("output_size", [None, (13, 14, 13)])
def test_transposed_layer_takes_the_state_of_pytorchs(output_size):
    theirs = torch.nn.ConvTranspose3d(6, 6, 3, 2, 1, groups=6).double()
    ours = ops.nn.DepthwiseConvTranspose3d(6, 3, 2, 1).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 6, 7, 7, 7, dtype=torch.float64)
    assert relative_error(ours(x, output_size), theirs(x, output_size)) <= 1e-12


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_fused_layer_equals_three_layers(activation):
    ours = ops.nn.DepthwiseConvNormAct3d(6, 5, num_groups=3, activation=activation).double()
    x = torch.randn(2, 6, 7, 7, 7, dtype=torch.float64)
    conv = torch.nn.functional.conv3d(x, ours.conv.weight, ours.conv.bias, padding=2, groups=6)
    expected = torch.nn.functional.group_norm(conv, 3, ours.norm.weight, ours.norm.bias)
    expected = torch.nn.functional.gelu(expected) if activation else expected
    assert relative_error(ours(x), expected) <= 1e-12
    assert set(ours.state_dict()) == {"conv.weight", "conv.bias", "norm.weight", "norm.bias"}
