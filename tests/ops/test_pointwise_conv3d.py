"""``pointwise_conv3d`` against torch.nn.functional.conv3d, and the stem and heads that are made of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mednext_ops as ops
from mednext.pointwise import PointwiseConv3d, PointwiseConvTranspose3d

from .eager import assert_within_twice

# A stem, heads, and what no kernel takes: many channels on both sides, voxels that fill no vector.
CASES = [
    (1, 32, (8, 10, 16)),
    (4, 16, (5, 6, 8)),
    (32, 3, (8, 10, 16)),
    (64, 8, (2, 4, 8)),
    (12, 20, (4, 4, 4)),
    (32, 3, (3, 5, 7)),
]


def gradients(function, x, weight, bias, grad):
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    output = function(*leaves)
    return [output, *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def eager(x, weight, bias):
    return F.conv3d(x, weight[..., None, None, None], bias)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs", "size"), CASES)
def test_error_is_within_twice_that_of_pytorch(device, inputs, outputs, size, dtype, memory_format):
    x = torch.randn(2, inputs, *size).to(device, dtype).contiguous(memory_format=memory_format)
    weight, bias = torch.randn(outputs, inputs).to(device, dtype), torch.randn(outputs).to(device, dtype)
    grad = torch.randn(2, outputs, *size).to(device, dtype)
    exact = gradients(eager, *(t.double() for t in (x, weight, bias, grad)))
    theirs = gradients(eager, x, weight, bias, grad)
    found = gradients(ops.pointwise_conv3d, x, weight, bias, grad)
    assert found[0].is_contiguous(memory_format=memory_format) or inputs == 1
    for name, our, their, right in zip(("output", "input", "weight", "bias"), found, theirs, exact, strict=True):
        assert our.dtype == their.dtype and our.shape == their.shape
        assert_within_twice(our, their, right, name)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"weight": torch.ones(3, 5)}, ValueError, "weight must"),
        ({"weight": torch.ones(3, 4, 3, 3, 3)}, ValueError, "weight must"),
        ({"bias": torch.ones(4)}, ValueError, "bias must"),
        ({"bias": torch.ones(3).half()}, TypeError, "bias"),
        ({"input": torch.ones(1, 4, 8, 8)}, ValueError, "input must have 5 dimensions"),
        ({"input": torch.ones(1, 4, 2, 2, 2, dtype=torch.int32)}, TypeError, "input must be float16"),
    ],
)
def test_bad_input_is_an_error(change, error, sentence):
    arguments = {"input": torch.ones(1, 4, 2, 2, 2), "weight": torch.ones(3, 4), "bias": torch.ones(3)} | change
    with pytest.raises(error, match=sentence):
        ops.pointwise_conv3d(**arguments)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("ours", "theirs", "channels"),
    [
        (PointwiseConv3d, nn.Conv3d, (1, 32)),
        (PointwiseConvTranspose3d, nn.ConvTranspose3d, (32, 3)),
        (PointwiseConvTranspose3d, nn.ConvTranspose3d, (64, 3)),
    ],
)
@pytest.mark.parametrize("size", [(32, 32, 64), (16, 16, 16), (129, 128, 128)])
def test_stem_and_heads_under_autocast(ours, theirs, channels, size):
    expected = theirs(*channels, 1).cuda()
    found = ours(*channels).cuda()
    found.load_state_dict(expected.state_dict())
    x = torch.randn(1, channels[0], *size, device="cuda", dtype=torch.float32 if channels[0] == 1 else torch.bfloat16)
    grad = torch.randn(1, channels[1], *size, device="cuda").bfloat16()
    columns = []
    for module, dtype in ((found, None), (expected, None), (theirs(*channels, 1).cuda().double(), torch.float64)):
        if dtype is not None:
            module.load_state_dict(expected.state_dict())
        leaf = x.detach().to(dtype or x.dtype).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype is None):
            output = module(leaf)
        columns.append(
            [output, *torch.autograd.grad(output, [leaf, module.weight, module.bias], grad.to(output.dtype))]
        )
    for name, our, their, right in zip(("output", "input", "weight", "bias"), *columns, strict=True):
        assert our.dtype == their.dtype and our.shape == their.shape
        assert_within_twice(our, their, right, name)
