"""Forward-mode derivatives: there are none, and that is an error, not a tangent of zero."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import mednext
import mednext_ops as ops

X, W = torch.randn(1, 4, 5, 5, 5), torch.randn(4, 1, 3, 3, 3)
CALLS = {
    "depthwise_conv3d": lambda x: ops.depthwise_conv3d(x, W, padding=1),
    "depthwise_conv_transpose3d": lambda x: ops.depthwise_conv_transpose3d(x, W, stride=2),
    "group_norm_statistics": lambda x: ops.group_norm_statistics(x, 4)[0],
    "block": lambda x: mednext.MedNeXtBlock(4, 4, exp_r=2, kernel_size=3)(x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("with_gradient", [False, True])
def test_a_dual_tensor_is_refused(call, with_gradient):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X.clone().requires_grad_(with_gradient), torch.randn_like(X))
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
            call(dual)
        assert call(X).shape[:2] == X.shape[:2]  # a plain one is taken


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_jvp_is_refused(call):
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        torch.func.jvp(call, (X,), (torch.randn_like(X),))
