"""What the CPU backend leaves to PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mednext_ops as ops


@pytest.mark.parametrize("geometry", [{"dilation": 4000, "padding": 4000}, {"stride": 2**24, "padding": 1}])
def test_voxels_far_apart_are_taken_by_another_backend(geometry):
    x, w = torch.randn(1, 3, 6, 6, 6, requires_grad=True), torch.randn(3, 1, 3, 3, 3, requires_grad=True)
    ours, theirs = ops.depthwise_conv3d(x, w, **geometry), F.conv3d(x, w, groups=3, **geometry)
    torch.testing.assert_close(ours, theirs)
    if "dilation" in geometry:
        return  # the reference's gradient of the weight pads the input
    grad = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, (x, w), grad) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)
