"""MedNeXt in plain PyTorch layers, as the baseline for results, memory and time; it knows nothing of our operators.

Same arguments, module names and arithmetic as the official network (Roy et al., MICCAI 2023), in eager mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["EagerMedNeXt"]


class EagerBlock(nn.Module):
    """A MedNeXt block: regular (``step`` 0), or resampling by 2 with a strided (-1) or transposed (+1) convolution."""

    def __init__(
        self, channels: int, out_channels: int, ratio: int, kernel: int, residual: bool, step: int, axes: int, grn: bool
    ) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[axes]
        resample = conv if step <= 0 else {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[axes]
        stride = 2 if step else 1
        self.step = step
        self.do_res = residual and not step
        self.resample_do_res = residual and bool(step)
        self.conv1 = resample(channels, channels, kernel, stride, kernel // 2, groups=channels)
        self.norm = nn.GroupNorm(channels, channels)
        self.conv2 = conv(channels, ratio * channels, 1)
        self.act = nn.GELU()
        self.conv3 = conv(ratio * channels, out_channels, 1)
        if self.resample_do_res:
            self.res_conv = resample(channels, out_channels, 1, 2)
        self.grn = grn
        if grn:
            self.grn_beta = nn.Parameter(torch.zeros(1, ratio * channels, *[1] * axes))
            self.grn_gamma = nn.Parameter(torch.zeros(1, ratio * channels, *[1] * axes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.conv2(self.norm(self.conv1(x))))
        if self.grn:
            response = hidden.flatten(2).norm(dim=2).reshape(*hidden.shape[:2], *[1] * (hidden.dim() - 2))
            response = response / (response.mean(1, keepdim=True) + 1e-6)
            hidden = self.grn_gamma * (hidden * response) + self.grn_beta + hidden
        out = self._front(self.conv3(hidden))
        if self.do_res:
            return x + out
        return out + self._front(self.res_conv(x)) if self.resample_do_res else out

    def _front(self, out: torch.Tensor) -> torch.Tensor:
        return F.pad(out, (1, 0) * (out.dim() - 2)) if self.step > 0 else out


class CheckpointedBlock(EagerBlock):
    """An :class:`EagerBlock` that keeps its input alone for the backward pass and runs again there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class EagerHead(nn.Module):
    """A 1x1 convolution to the classes."""

    def __init__(self, channels: int, classes: int, axes: int) -> None:
        super().__init__()
        self.conv_out = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[axes](channels, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(x)


class EagerMedNeXt(nn.Module):
    """The official MedNeXt with GroupNorm and one cubic kernel; arguments as :class:`MedNeXt`."""

    def __init__(
        self,
        in_channels: int,
        n_channels: int,
        n_classes: int,
        exp_r: int | Sequence[int] = 4,
        kernel_size: int = 7,
        deep_supervision: bool = False,
        do_res: bool = False,
        do_res_up_down: bool = False,
        checkpoint_style: str | None = None,
        block_counts: Sequence[int] = (2,) * 9,
        dim: str = "3d",
        grn: bool | str = False,
    ) -> None:
        super().__init__()
        axes = int(dim[0])
        r = [exp_r] * 9 if isinstance(exp_r, int) else list(exp_r)
        c = [n_channels * 2**level for level in range(5)]
        k, n = kernel_size, block_counts
        block = {None: EagerBlock, "outside_block": CheckpointedBlock}[checkpoint_style]

        def stage(channels: int, ratio: int, count: int) -> nn.Sequential:
            blocks = [block(channels, channels, ratio, k, do_res, 0, axes, bool(grn)) for _ in range(count)]
            return nn.Sequential(*blocks)

        def down(level: int) -> EagerBlock:
            with_grn = grn == "all" or (bool(grn) and level > 0)
            return block(c[level], c[level + 1], r[level + 1], k, do_res_up_down, -1, axes, with_grn)

        def up(level: int) -> EagerBlock:
            return block(c[level + 1], c[level], r[8 - level], k, do_res_up_down, +1, axes, bool(grn))

        self.stem = {2: nn.Conv2d, 3: nn.Conv3d}[axes](in_channels, c[0], 1)
        self.enc_block_0, self.down_0 = stage(c[0], r[0], n[0]), down(0)
        self.enc_block_1, self.down_1 = stage(c[1], r[1], n[1]), down(1)
        self.enc_block_2, self.down_2 = stage(c[2], r[2], n[2]), down(2)
        self.enc_block_3, self.down_3 = stage(c[3], r[3], n[3]), down(3)
        self.bottleneck = stage(c[4], r[4], n[4])
        self.up_3, self.dec_block_3 = up(3), stage(c[3], r[5], n[5])
        self.up_2, self.dec_block_2 = up(2), stage(c[2], r[6], n[6])
        self.up_1, self.dec_block_1 = up(1), stage(c[1], r[7], n[7])
        self.up_0, self.dec_block_0 = up(0), stage(c[0], r[8], n[8])
        self.out_0 = EagerHead(c[0], n_classes, axes)
        self.dummy_tensor = nn.Parameter(torch.tensor([1.0]))
        self.do_ds = deep_supervision
        if deep_supervision:
            self.out_1, self.out_2 = EagerHead(c[1], n_classes, axes), EagerHead(c[2], n_classes, axes)
            self.out_3, self.out_4 = EagerHead(c[3], n_classes, axes), EagerHead(c[4], n_classes, axes)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        e0 = self.enc_block_0(self.stem(x))
        e1 = self.enc_block_1(self.down_0(e0))
        e2 = self.enc_block_2(self.down_1(e1))
        e3 = self.enc_block_3(self.down_2(e2))
        d4 = self.bottleneck(self.down_3(e3))
        d3 = self.dec_block_3(e3 + self.up_3(d4))
        d2 = self.dec_block_2(e2 + self.up_2(d3))
        d1 = self.dec_block_1(e1 + self.up_1(d2))
        d0 = self.dec_block_0(e0 + self.up_0(d1))
        if not self.do_ds:
            return self.out_0(d0)
        return [self.out_0(d0), self.out_1(d1), self.out_2(d2), self.out_3(d3), self.out_4(d4)]
