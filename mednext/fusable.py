"""Tells whether a block's submodules are together what ``mednext_ops.mednext_block`` computes, and if not, why.

The operator reads only the submodules' parameters, so each must be plain, and all of the geometry that it knows.
"""

from __future__ import annotations

from typing import Any

from torch import nn

import mednext_ops as ops

__all__ = ["why_not_fusable"]

_CONVS = (nn.Conv2d, nn.Conv3d, ops.nn.DepthwiseConv3d)
_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d, ops.nn.DepthwiseConvTranspose3d)


def why_not_fusable(block: Any, form: str) -> str | None:
    """``None`` if the fused operator gives the result of the submodules; otherwise the reason, for a log or an error.

    ``block`` holds ``conv1``, ``norm``, ``conv2``, ``act``, ``conv3`` and perhaps ``res_conv``; ``form`` is "regular",
    "down" or "up".
    """
    depthwise = _TRANSPOSED if form == "up" else _CONVS
    modules = block._modules
    for name, types in (
        ("conv1", depthwise),
        ("norm", (nn.GroupNorm,)),
        ("conv2", _CONVS),
        ("act", (nn.GELU,)),
        ("conv3", _CONVS),
    ):
        # A part may have been exchanged for a function, or for nothing.
        reason = ops.nn.why_not_plain(name, modules.get(name) or getattr(block, name, None), types)
        if reason is not None:
            return reason
    residual = None if form == "regular" else modules.get("res_conv")
    reason = None if residual is None else ops.nn.why_not_plain("res_conv", residual, depthwise)
    return reason or _other_geometry(modules, form, residual)


def _other_geometry(modules: Any, form: str, residual: Any) -> str | None:
    conv1, norm, conv2, act, conv3 = (modules[name] for name in ("conv1", "norm", "conv2", "act", "conv3"))
    kernel, ones = conv1.kernel_size, (1,) * len(conv1.kernel_size)
    if not conv1.groups == conv1.in_channels == conv1.out_channels:
        return f"conv1 has {conv1.groups} groups for {conv1.in_channels} -> {conv1.out_channels} channels"
    if conv1.padding != tuple(k // 2 for k in kernel) or not all(k % 2 for k in kernel):
        return f"conv1 has kernel_size {kernel} and padding {conv1.padding}"
    if conv1.dilation != ones or conv1.padding_mode != "zeros" or any(conv1.output_padding):
        return (
            f"conv1 has dilation {conv1.dilation}, {conv1.padding_mode} padding, output_padding {conv1.output_padding}"
        )
    if not all(s in ((1,) if form == "regular" else (1, 2)) for s in conv1.stride):
        return f"conv1 has stride {conv1.stride}"
    if norm.weight is None or norm.bias is None:
        return "norm has no affine parameters"
    if act.approximate != "none":
        return f"act is GELU's {act.approximate} approximation"
    for name, conv, stride in (("conv2", conv2, ones), ("conv3", conv3, ones), ("res_conv", residual, conv1.stride)):
        if conv is not None and not (
            conv.kernel_size == ones and conv.stride == stride and conv.groups == 1 and not any(conv.padding)
        ):
            return f"{name} is not a plain 1x1 convolution of stride {stride}"
    return None
