"""``depthwise_conv_transpose3d``: the transposed depthwise convolution, which raises resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mednext_ops.ops.arguments import autocast_to, check_input
from mednext_ops.ops.convolution import define_convolution
from mednext_ops.ops.depthwise_conv3d import convolution_geometry

__all__ = ["depthwise_conv_transpose3d"]

_op = define_convolution("depthwise_conv_transpose3d", transposed=True)


def depthwise_conv_transpose3d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
) -> torch.Tensor:
    """Depthwise transposed 3D convolution: ``torch.nn.functional.conv_transpose3d(..., groups=C)``.

    Under autocast the input is cast to autocast's dtype. Twice differentiable.

    Args:
        input: [N, C, D, H, W], float16, bfloat16, float32 or float64; contiguous or channels_last_3d (kept).
        weight: [C, 1, kd, kh, kw], odd extents, in the input's dtype or, for a 16-bit input, float32.
        bias: [C] or None.
        stride, padding, output_padding: in voxels, an int or three (D, H, W); output_padding is below the stride.

    Returns:
        [N, C, D', H', W'] in the input's dtype and memory format, ``D' = (D - 1) s - 2 p + k + output_padding``.

    Raises:
        TypeError: a dtype or argument type that is not listed above.
        ValueError: a shape that does not fit; the message names the argument.
        RuntimeError: tensors on different devices.

    Example:
        >>> x = torch.randn(1, 32, 8, 8, 8)
        >>> depthwise_conv_transpose3d(x, torch.randn(32, 1, 3, 3, 3), stride=2, padding=1).shape
        torch.Size([1, 32, 15, 15, 15])
    """
    check_input("input", input)
    input = autocast_to(input)
    g = convolution_geometry(input, weight, bias, stride, padding, output_padding=output_padding, transposed=True)
    return _op(input, weight, bias, g.stride, g.padding, g.dilation, g.output_padding)
