"""1x1x1 convolutions of stem and heads: PyTorch's modules, which on a CPU compute as what they are, matrix products.

PyTorch's own 1x1x1 convolutions copy their input into columns and convert whole volumes between memory formats: on a
CPU a head takes several times as long as its product, in backward above all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["PointwiseConv3d", "PointwiseConvTranspose3d"]


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``weight`` [O, C] times each voxel of ``x`` [N, C, D, H, W], and ``bias`` [O]; the memory format is kept."""
    if x.stride(1) == 1:
        return F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    product = torch.baddbmm(bias[:, None], weight.expand(x.shape[0], -1, -1), x.flatten(2))
    return product.view(x.shape[0], weight.shape[0], *x.shape[2:])


def _is_product(module: Any, x: Any) -> bool:
    """Whether a module called with ``x`` is a product here; if not, or if it must refuse ``x``, PyTorch goes on."""
    return (
        isinstance(x, torch.Tensor)
        and x.device.type == "cpu"
        and x.dim() == 5
        and x.shape[1] == module.in_channels
        and x.numel() > 0
        and (x.dtype == module.weight.dtype or torch.is_autocast_enabled("cpu"))
        and not torch.compiler.is_exporting()  # an exported graph keeps its convolutions
        and not torch.onnx.is_in_onnx_export()
    )


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
        if not _is_product(self, x):
            return super().forward(x)
        return pointwise(x, self.weight.flatten(1), self.bias)


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
        if output_size is not None or not _is_product(self, x):
            return super().forward(x, output_size)
        return pointwise(x, self.weight.flatten(1).t(), self.bias)


STEM: dict[int, Any] = {2: lambda channels, width: nn.Conv2d(channels, width, 1), 3: PointwiseConv3d}
HEAD: dict[int, Any] = {2: lambda width, classes: nn.ConvTranspose2d(width, classes, 1), 3: PointwiseConvTranspose3d}
