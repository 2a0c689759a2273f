"""The drop-in layers have PyTorch's parameters, keys and results."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize, prune

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


def square_output(layer):
    layer.conv.register_forward_hook(lambda module, inputs, output: output.square())


def shift_input(layer):
    layer.norm.register_forward_pre_hook(lambda module, inputs: (inputs[0].square(),))


def prune_weight(layer):
    prune.l1_unstructured(layer.conv, "weight", amount=0.5)


class Absolute(torch.nn.Module):
    def forward(self, weight):
        return weight.abs()


def parametrize_weight(layer):
    parametrize.register_parametrization(layer.conv, "weight", Absolute())


def exchange_norm(layer):
    layer.norm = torch.nn.BatchNorm3d(6).double()


def exchange_convolution(layer):
    layer.conv = torch.nn.Conv3d(6, 6, 5, padding=4, dilation=2).double()


def replace_forward(layer):
    layer.norm.forward = lambda x: 3 * x


CHANGES = [
    square_output, shift_input, prune_weight, parametrize_weight, exchange_norm, exchange_convolution, replace_forward
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("compiled", [False, True])
def test_what_hangs_on_a_part_of_the_fused_layer_takes_effect(change, compiled, caplog):
    layer = ops.nn.DepthwiseConvNormAct3d(6, 5).double()
    x = torch.randn(2, 6, 7, 7, 7, dtype=torch.float64, requires_grad=True)
    before = layer(x)
    change(layer)
    expected = torch.nn.functional.gelu(layer.norm(layer.conv(x)))
    with caplog.at_level(logging.INFO, logger="mednext_ops"):
        forward = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
        for _ in range(2):
            output = forward(x)
    assert relative_error(output, expected) <= 1e-12 and relative_error(output, before) > 1e-3
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (0 if compiled else 1)
    assert compiled or "DepthwiseConvNormAct3d runs layer by layer" in lines[0]
    output.sum().backward()
    assert x.grad is not None and all(parameter.grad is not None for parameter in layer.conv.parameters())


def test_the_parts_of_a_pruned_layer_keep_autocasts_dtype():
    layer = ops.nn.DepthwiseConvNormAct3d(6, 3)
    x = torch.randn(1, 6, 5, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        fused = layer(x)
        prune.identity(layer.conv, "weight")
        composed = layer(x)
    assert fused.dtype == composed.dtype == torch.bfloat16
    assert torch.allclose(fused.float(), composed.float(), atol=0.05)


@pytest.mark.parametrize(
    ("layer", "positional"),
    [
        (ops.nn.DepthwiseConv3d, (6, 3, 1, 1, 1)),
        (ops.nn.DepthwiseConvTranspose3d, (6, 3, 1, 1, 0)),
        (ops.nn.DepthwiseConvNormAct3d, (6, 3, 1, 1)),
    ],
)
def test_options_are_keywords_where_pytorchs_layers_go_on_with_others(layer, positional):
    """`Conv3d(..., dilation, groups, bias)`: groups given here by position must not become the bias."""
    layer(*positional, bias=False)
    with pytest.raises(TypeError, match="positional"):
        layer(*positional, 6)


def test_numpys_integers_are_integers():
    plain = ops.nn.DepthwiseConv3d(4, 3, stride=2, padding=1)
    layer = ops.nn.DepthwiseConv3d(np.int64(4), np.int32(3), stride=np.int64(2), padding=(np.int64(1), 1, 1))
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(1, 4, 6, 6, 6)
    assert torch.equal(layer(x), plain(x))
    with pytest.raises(ValueError, match="stride must be an int"):
        ops.nn.DepthwiseConv3d(4, 3, stride=np.bool_(True))
