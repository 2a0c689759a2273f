"""``depthwise_conv3d``: one kernel a channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mednext_ops.backends import ConvGeometry
from mednext_ops.ops.arguments import autocast_to, check_input, check_output_size, check_parameter, triple
from mednext_ops.ops.convolution import define_convolution

__all__ = ["convolution_geometry", "depthwise_conv3d"]

_op = define_convolution("depthwise_conv3d", transposed=False)


def convolution_geometry(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    output_padding: int | Sequence[int] = 0,
    transposed: bool = False,
) -> ConvGeometry:
    """Check a depthwise convolution's arguments and return its geometry."""
    channels = input.shape[1]
    if not isinstance(weight, torch.Tensor) or weight.dim() != 5:
        shape = list(weight.shape) if isinstance(weight, torch.Tensor) else type(weight).__name__
        raise ValueError(f"weight must be a tensor of shape [{channels}, 1, kd, kh, kw], got {shape}")
    kernel = triple("kernel_size", tuple(weight.shape[2:]), minimum=1)
    if any(extent % 2 == 0 for extent in kernel):
        raise ValueError(f"the kernel must be odd on every axis, got kernel_size {list(kernel)}")
    if weight.shape[0] != channels and weight.shape[1] == 1:
        raise ValueError(
            f"weight must have shape {[channels, 1, *kernel]} for an input of {channels} channels, "
            f"got {list(weight.shape)}"
        )
    check_parameter("weight", weight, (channels, 1, *kernel), input)
    if bias is not None:
        check_parameter("bias", bias, (channels,), input)
    geometry = ConvGeometry(
        kernel,
        triple("stride", stride, minimum=1),
        triple("padding", padding, minimum=0),
        triple("dilation", dilation, minimum=1),
        triple("output_padding", output_padding, minimum=0),
        transposed,
    )
    if any(o >= s for o, s in zip(geometry.output_padding, geometry.stride, strict=True)):
        raise ValueError(f"output_padding must be smaller than the stride, got {output_padding!r} at stride {stride!r}")
    check_output_size(geometry.output_size(input.shape[2:]), input, kernel)
    return geometry


def depthwise_conv3d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> torch.Tensor:
    """Depthwise 3D convolution: ``torch.nn.functional.conv3d(..., groups=C)``.

    Under autocast the input is cast to autocast's dtype. Twice differentiable.

    Args:
        input: [N, C, D, H, W], float16, bfloat16, float32 or float64; contiguous or channels_last_3d (kept).
        weight: [C, 1, kd, kh, kw], odd extents, in the input's dtype or, for a 16-bit input, float32.
        bias: [C] or None.
        stride, padding, dilation: in voxels, an int or three (D, H, W).

    Returns:
        [N, C, D', H', W'] in the input's dtype and memory format, ``D' = (D + 2 p - d (k - 1) - 1) // s + 1``.

    Raises:
        TypeError: a dtype or argument type that is not listed above.
        ValueError: a shape that does not fit; the message names the argument.
        RuntimeError: tensors on different devices.

    Example:
        >>> x = torch.randn(1, 32, 64, 64, 64)
        >>> depthwise_conv3d(x, torch.randn(32, 1, 5, 5, 5), padding=2).shape
        torch.Size([1, 32, 64, 64, 64])
    """
    check_input("input", input)
    input = autocast_to(input)
    g = convolution_geometry(input, weight, bias, stride, padding, dilation)
    return _op(input, weight, bias, g.stride, g.padding, g.dilation, g.output_padding)
