"""Wrong arguments get an error that names the argument, before any work."""

from __future__ import annotations

import pytest
import torch

import mednext_ops as ops

from .eager import Block

X = torch.randn(1, 4, 5, 5, 5)
W = torch.randn(4, 1, 3, 3, 3)
P = torch.ones(4)


@pytest.mark.parametrize("op", [ops.depthwise_conv3d, ops.depthwise_conv_transpose3d])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([1.0], W), {}, TypeError, "input must be a torch.Tensor"),
        ((X[0], W), {}, ValueError, "input must have 5 dimensions"),
        ((X.long(), W), {}, TypeError, "input must be float16"),
        ((X.to_sparse(), W), {}, TypeError, "dense"),
        ((X, W[0]), {}, ValueError, "weight must be a tensor of shape"),
        ((X, W[:3]), {}, ValueError, r"weight must have shape \[4, 1, 3, 3, 3\]"),
        ((X, W.expand(4, 4, 3, 3, 3)), {}, ValueError, "weight must have shape"),
        ((X, torch.randn(4, 1, 2, 3, 3)), {}, ValueError, "odd"),
        ((X, W.double()), {}, TypeError, "weight is torch.float64 but input is torch.float32"),
        ((X, W.bfloat16()), {}, TypeError, "weight is torch.bfloat16"),
        ((X, W.to("meta")), {}, RuntimeError, "weight is on meta but input is on cpu"),
        ((X, W, torch.ones(3)), {}, ValueError, "bias must have shape"),
        ((X, W), {"stride": 0}, ValueError, "stride must be at least 1"),
        ((X, W), {"stride": (1, 2)}, ValueError, "stride must be an int or three ints"),
        ((X, W), {"stride": 1.5}, ValueError, r"stride must be an int or three ints \(D, H, W\), got 1.5"),
        ((X, W), {"stride": "222"}, ValueError, "stride must be an int or three ints"),
        ((X, W), {"stride": None}, ValueError, "stride must be an int or three ints"),
        ((X, W), {"padding": True}, ValueError, "padding must be an int or three ints"),
        ((X, W), {"padding": -1}, ValueError, "padding must be at least 0"),
    ],
)
def test_convolutions(op, arguments, options, error, words):
    with pytest.raises(error, match=words):
        op(*arguments, **options)


def test_an_output_without_voxels():
    with pytest.raises(ValueError, match="too small for kernel_size"):
        ops.depthwise_conv3d(X, torch.randn(4, 1, 7, 7, 7))


def test_output_padding_at_least_the_stride():
    with pytest.raises(ValueError, match="output_padding must be smaller than the stride"):
        ops.depthwise_conv_transpose3d(X, W, stride=2, output_padding=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_groups": 3}, "num_groups must be a positive divisor of the 4 channels"),
        ({"num_groups": 0}, "num_groups"),
        ({"activation": "relu"}, "activation must be None or 'gelu', got 'relu'"),
    ],
)
def test_group_norm(options, words):
    with pytest.raises(ValueError, match=words):
        ops.depthwise_conv3d_group_norm(X, W, None, P, P, padding=1, **options)


def test_norm_parameters_are_named():
    with pytest.raises(ValueError, match="norm_bias must have shape"):
        ops.depthwise_conv3d_group_norm(X, W, None, P, torch.ones(5))


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"form": "sideways"}, "form must be"),
        ({}, {"recompute": "all"}, "recompute must be"),
        ({}, {"stride": 2}, "stride must be 1 in the regular form"),
        ({}, {"form": "down", "stride": 3, "residual": False}, "stride must be 1 in the regular form and 1 or 2"),
        ({}, {"form": "down"}, "residual_weight must be given for the down form"),
        ({}, {"keep_input": True}, "keep_input belongs to the down form, got form 'regular'"),
        ({}, {"residual_weight": torch.randn(4, 4)}, "belong to the down and up form"),
        ({"expand_weight": torch.randn(8, 5)}, {}, "expand_weight must have shape"),
        ({"expand_weight": torch.randn(8, 4, 3, 3, 3)}, {}, r"expand_weight must have shape \[out, in\]"),
        ({"compress_weight": torch.randn(4, 9)}, {}, "compress_weight must have shape"),
        ({"compress_weight": torch.randn(6, 8), "compress_bias": None}, {}, "a regular block with a residual keeps"),
        ({"compress_bias": torch.randn(5)}, {}, "compress_bias must have shape"),
        ({"gamma": torch.randn(7)}, {}, "grn gamma must have 8 elements"),
    ],
)
def test_block(change, options, words):
    block = Block.random(with_grn=True, dtype=torch.float32)
    for name, value in change.items():
        setattr(block, name, value)
    arguments = [getattr(block, name) for name in list(Block.__dataclass_fields__)[:9]]
    with pytest.raises(ValueError, match=words):
        ops.mednext_block(*arguments, grn=(block.gamma, block.beta), **options)


@pytest.mark.parametrize(
    ("form", "skip", "error", "words"),
    [
        ("regular", torch.randn(2, 4, 5, 6, 7), ValueError, "skip belongs to the up form, got form 'regular'"),
        ("up", torch.randn(2, 2, 9, 11, 13), ValueError, r"skip must have shape \[2, 2, 10, 12, 14\]"),
        ("up", torch.randn(2, 2, 10, 12, 14).double(), TypeError, "skip is torch.float64 but input is torch.float32"),
        ("up", 1.0, TypeError, "skip must be a torch.Tensor"),
    ],
)
def test_skip(form, skip, error, words):
    block = Block.random(form, dtype=torch.float32)
    with pytest.raises(error, match=words):
        block.ours(form, 2 if form == "up" else 1, 4, skip=skip)


def test_grn_must_be_a_pair():
    b = Block.random(dtype=torch.float32)
    arguments = [getattr(b, name) for name in list(Block.__dataclass_fields__)[:9]]
    with pytest.raises(TypeError, match="two tensors"):
        ops.mednext_block(*arguments, grn=torch.ones(8))


@pytest.mark.parametrize(
    ("mean", "error", "words"),
    [
        (torch.zeros(1, 3), ValueError, "mean must be"),
        (torch.zeros(2, 4), ValueError, "mean must be"),
        (torch.zeros(1, 4, dtype=torch.float64), TypeError, "mean must be a torch.float32"),
    ],
)
def test_inverted_bottleneck_statistics(mean, error, words):
    with pytest.raises(error, match=words):
        ops.inverted_bottleneck(X, mean, mean, P, P, torch.ones(8, 4), None, torch.ones(4, 8), None)


def test_inverted_bottleneck_residual():
    statistic = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="residual must have shape"):
        ops.inverted_bottleneck(
            X, statistic, statistic, P, P, torch.ones(8, 4), None, torch.ones(4, 8), None, residual=X[..., 1:]
        )


@pytest.mark.parametrize("layer", [ops.nn.DepthwiseConv3d, ops.nn.DepthwiseConvTranspose3d])
def test_layers(layer):
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        layer(4, 2)
    with pytest.raises(ValueError, match="stride"):
        layer(4, 3, stride=0)
    for channels in (0, "4", 4.0):
        with pytest.raises(ValueError, match="channels must be a positive int"):
            layer(channels, 3)


def test_a_padding_that_is_no_padding():
    with pytest.raises(ValueError, match="'same' at stride 1"):
        ops.nn.DepthwiseConv3d(4, 3, stride=2, padding="same")
