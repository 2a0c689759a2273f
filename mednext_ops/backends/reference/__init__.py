"""The reference backend: every op in plain PyTorch, on any device, in float16, bfloat16, float32 and float64.

It defines the signatures and the meaning of every backend function; the others are tested against it in float64.
"""

from __future__ import annotations

from mednext_ops.backends.problem import Problem
from mednext_ops.backends.reference.convolution import depthwise_conv3d, depthwise_conv3d_backward
from mednext_ops.backends.reference.group_norm import group_norm, group_norm_backward, group_norm_statistics
from mednext_ops.backends.reference.inverted_bottleneck import inverted_bottleneck, inverted_bottleneck_backward

__all__ = [
    "NAME",
    "depthwise_conv3d",
    "depthwise_conv3d_backward",
    "group_norm",
    "group_norm_backward",
    "group_norm_statistics",
    "inverted_bottleneck",
    "inverted_bottleneck_backward",
    "supports",
    "unavailable",
]

NAME = "reference"

_OPS = frozenset(
    {
        "depthwise_conv3d",
        "depthwise_conv3d_backward",
        "group_norm",
        "group_norm_backward",
        "group_norm_statistics",
        "inverted_bottleneck",
        "inverted_bottleneck_backward",
    }
)


def unavailable() -> None:
    """The reference runs wherever PyTorch does."""


def supports(problem: Problem) -> str | None:
    """Every op of the contract; fused forms are put together from them by the caller."""
    return None if problem.op in _OPS else f"{problem.op} is a fused form, put together from its parts"
