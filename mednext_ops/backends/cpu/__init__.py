"""The CPU library (csrc/cpu) as a backend: every op of the contract, in float32, float16 and bfloat16.

16-bit tensors are converted as they are read and written; arithmetic, sums and statistics are in float32 and above.
"""

from __future__ import annotations

import torch

from mednext_ops import native
from mednext_ops.backends.cpu.convolution import (
    depthwise_conv3d,
    depthwise_conv3d_backward,
    depthwise_conv3d_statistics,
)
from mednext_ops.backends.cpu.group_norm import group_norm, group_norm_backward, group_norm_statistics
from mednext_ops.backends.cpu.inverted_bottleneck import inverted_bottleneck, inverted_bottleneck_backward
from mednext_ops.backends.problem import Problem

__all__ = [
    "NAME",
    "depthwise_conv3d",
    "depthwise_conv3d_backward",
    "depthwise_conv3d_statistics",
    "group_norm",
    "group_norm_backward",
    "group_norm_statistics",
    "inverted_bottleneck",
    "inverted_bottleneck_backward",
    "supports",
    "unavailable",
]

NAME = "cpu"

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OPS = frozenset(
    {
        "depthwise_conv3d",
        "depthwise_conv3d_backward",
        "depthwise_conv3d_statistics",
        "group_norm",
        "group_norm_backward",
        "group_norm_statistics",
        "inverted_bottleneck",
        "inverted_bottleneck_backward",
    }
)


def unavailable() -> str | None:
    """Why this backend cannot run here, and how to mend it; None if it can."""
    return native.libraries()["cpu"].problem


#: Its rings of rows are as long as a stride or a dilation, whatever is computed of them.
_MOST_STRIDE, _MOST_DILATION = 64, 1024


def supports(problem: Problem) -> str | None:
    """Why this backend declines ``problem``; None if it takes it."""
    if problem.device_type != "cpu":
        return f"it runs on CPU tensors, not on {problem.device_type}"
    if problem.op not in _OPS:
        return f"it has no kernel for {problem.op}"
    for dtype in (problem.dtype, problem.parameter_dtype):
        if dtype is not None and dtype not in _DTYPES:
            return f"it has no kernel for {dtype}"
    if len(problem.shape) != 5:
        return f"it takes [N, C, D, H, W] only, not {len(problem.shape)} dimensions"
    geometry = problem.geometry
    if geometry is not None and (max(geometry.stride) > _MOST_STRIDE or max(geometry.dilation) > _MOST_DILATION):
        return f"its kernels are for strides of at most {_MOST_STRIDE} and dilations of at most {_MOST_DILATION}"
    return None
