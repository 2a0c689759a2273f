"""1x1x1 convolutions of stem and heads: PyTorch's modules, which compute as what they are, matrix products.

PyTorch's own 1x1x1 convolutions copy their input into columns and convert whole volumes between memory formats: a head
takes several times as long as its product, in backward above all. On a CPU the product is torch's, on a GPU, where one
side has few channels, ``mednext_ops.pointwise_conv3d``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import mednext_ops as ops
from mednext_ops.ops.pointwise_conv3d import FEW_CHANNELS

__all__ = ["PointwiseConv3d", "PointwiseConvTranspose3d"]


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``weight`` [O, C] times each voxel of ``x`` [N, C, D, H, W], and ``bias`` [O]; the memory format is kept."""
    if x.stride(1) == 1:
        return F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    product = torch.baddbmm(bias[:, None], weight.expand(x.shape[0], -1, -1), x.flatten(2))
    return product.view(x.shape[0], weight.shape[0], *x.shape[2:])


def _product(module: Any, x: Any) -> Any:
    """The function that computes a module called with ``x`` as a product; None where PyTorch goes on, or refuses."""
    if not isinstance(x, torch.Tensor) or x.dim() != 5 or x.shape[1] != module.in_channels or x.numel() == 0:
        return None
    kind = x.device.type
    if kind not in ("cpu", "cuda") or x.device != module.weight.device:
        return None
    if x.dtype != module.weight.dtype and not torch.is_autocast_enabled(kind):
        return None
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return None  # a recorded graph keeps its convolutions
    if kind == "cpu":
        return pointwise
    few = min(module.in_channels, module.out_channels) <= FEW_CHANNELS
    return ops.pointwise_conv3d if few and x.dtype in (torch.float32, torch.float16, torch.bfloat16) else None


class PointwiseConv3d(nn.Conv3d):
    """``nn.Conv3d(in_channels, out_channels, 1)``: the same parameters and results.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    bias: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, out_channels, D, H, W] of ``x`` [N, in_channels, D, H, W]."""
        product = _product(self, x)
        return super().forward(x) if product is None else product(x, self.weight.flatten(1), self.bias)


class PointwiseConvTranspose3d(nn.ConvTranspose3d):
    """``nn.ConvTranspose3d(in_channels, out_channels, 1)``: the same parameters and results.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    bias: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """[N, out_channels, D, H, W] of ``x`` [N, in_channels, D, H, W]."""
        product = None if output_size is not None else _product(self, x)
        if product is None:
            return super().forward(x, output_size)
        return product(x, self.weight.flatten(1).t(), self.bias)


STEM: dict[int, Any] = {2: lambda channels, width: nn.Conv2d(channels, width, 1), 3: PointwiseConv3d}
HEAD: dict[int, Any] = {2: lambda width, classes: nn.ConvTranspose2d(width, classes, 1), 3: PointwiseConvTranspose3d}
