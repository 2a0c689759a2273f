"""Blocks of 3D ConvNeXts beyond MedNeXt on the layers of mednext_ops.

Each class is the block of a published network with PyTorch's depthwise convolution, norm and GELU exchanged for ours;
its parameters have the shapes of PyTorch's layers, so that weights of either fit the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

import mednext_ops as ops


class UXNetBlock(nn.Module):
    """3D UX-Net (Lee et al., ICLR 2023): depthwise 7x7x7, LayerNorm over channels, depthwise scaling to 4C and back.

    The two pointwise layers are grouped by channel there: each channel has its own four hidden ones.
    """

    def __init__(self, channels: int, layer_scale: float = 1e-6) -> None:
        super().__init__()
        self.conv = ops.nn.DepthwiseConv3d(channels, 7, padding=3)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Conv3d(channels, 4 * channels, 1, groups=channels)
        self.compress = nn.Conv3d(4 * channels, channels, 1, groups=channels)
        self.scale = nn.Parameter(layer_scale * torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.conv(x).movedim(1, -1)).movedim(-1, 1)
        out = self.compress(F.gelu(self.expand(out)))
        return x + self.scale[:, None, None, None] * out


class RepUXNetConvolution(nn.Module):
    """RepUX-Net (Lee et al., MICCAI 2023): a depthwise 21x21x21 and a small one side by side in training, one after.

    Both branches are linear, so :meth:`merge` adds the small kernel to the middle of the large one.
    """

    def __init__(self, channels: int, kernel_size: int = 21, small_kernel_size: int = 3) -> None:
        super().__init__()
        self.large = ops.nn.DepthwiseConv3d(channels, kernel_size, padding="same")
        self.small: nn.Module | None = ops.nn.DepthwiseConv3d(channels, small_kernel_size, padding="same", bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.large(x) if self.small is None else self.large(x) + self.small(x)

    @torch.no_grad()
    def merge(self) -> RepUXNetConvolution:
        """Leaves one convolution that computes what the two did."""
        if isinstance(self.small, nn.Conv3d):
            border = (self.large.kernel_size[0] - self.small.kernel_size[0]) // 2
            self.large.weight += F.pad(self.small.weight, (border,) * 6)
            self.small = None
        return self


class EfficientMedNeXtBlock(nn.Module):
    """EfficientMedNeXt's dilated multi-receptive-field block (Rahman & Marculescu, MICCAI 2025), the parallel part.

    Depthwise 1x1x1, 3x3x3 and dilated 3x3x3 side by side, each with GroupNorm and GELU, added, and mixed by a 1x1x1.
    """

    def __init__(self, channels: int, branches: Sequence[tuple[int, int]] = ((1, 1), (3, 1), (3, 2))) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            ops.nn.DepthwiseConvNormAct3d(channels, kernel_size, activation="gelu")
            if dilation == 1
            else nn.Sequential(
                ops.nn.DepthwiseConv3d(channels, kernel_size, padding="same", dilation=dilation),
                nn.GroupNorm(channels, channels),
                nn.GELU(),
            )
            for kernel_size, dilation in branches
        )
        self.mix = nn.Conv3d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mix(torch.stack([branch(x) for branch in self.branches]).sum(0))
