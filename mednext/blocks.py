"""The MedNeXt blocks: depthwise convolution, norm, and an inverted bottleneck of 1x1 convolutions around a GELU.

Constructors, submodules and parameter names are those of the official ``mednextv1/blocks.py`` (Roy et al., MICCAI
2023), so its state dicts load and code that walks the modules finds what it expects. The submodules hold the
parameters; the arithmetic of a block is one fused operator, or, where the submodules are not what that operator
computes (LayerNorm, a grouped convolution, a hook or an exchanged layer), their plain composition, which the log says.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

import mednext_ops as ops
from mednext.arguments import (
    RECOMPUTE,
    PerAxis,
    kernel_per_axis,
    one_of,
    positive_int,
    spatial_axes,
    stride_per_axis,
)
from mednext.fusable import why_not_fusable
from mednext.pointwise import HEAD

__all__ = ["LayerNorm", "MedNeXtBlock", "MedNeXtDownBlock", "MedNeXtUpBlock", "OutBlock"]

CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class MedNeXtBlock(nn.Module):
    """``input + conv3(GELU(conv2(norm(conv1(input)))))`` on the input's own grid.

    Args:
        in_channels: channels C of the input.
        out_channels: channels of the output; with ``do_res`` the same as ``in_channels``.
        exp_r: expansion ratio R; the bottleneck is R * C channels wide.
        kernel_size: odd extent of the depthwise convolution, one for all axes or one an axis.
        do_res: add the input to the output.
        norm_type: "group" (one group a channel) or "layer" (over the channels of each voxel).
        n_groups: groups of ``conv1`` if it is not to be depthwise.
        dim: "3d" for [N, C, D, H, W] or "2d" for [N, C, H, W].
        grn: global response normalisation after the GELU (ConvNeXt V2), starting as the identity.
        stride: of ``conv1``, 1 or 2, one for all axes or one an axis; 1 with ``do_res``.
        recompute: "conv" keeps only the block's input for backward and computes the convolution again; ``None`` keeps
            its output as well.

    Raises:
        ValueError: an argument out of its range, named in the message; in ``forward``, an input of another rank.
    """

    form: ClassVar[str] = "regular"
    grn_names: tuple[str, str] = ("grn_gamma", "grn_beta")
    recompute: str | None = None
    conv1: Any
    norm: Any
    res_conv: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        exp_r: int = 4,
        kernel_size: PerAxis = 7,
        do_res: bool = True,
        norm_type: str = "group",
        n_groups: int | None = None,
        dim: str = "3d",
        grn: bool = False,
        *,
        stride: PerAxis = 1,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        axes = spatial_axes(dim)
        hidden = positive_int("in_channels", in_channels) * positive_int("exp_r", exp_r)
        one_of("norm_type", norm_type, ("group", "layer"))
        kernel = kernel_per_axis("kernel_size", kernel_size, axes)
        strides = stride_per_axis("stride", stride, axes)
        if do_res and in_channels != positive_int("out_channels", out_channels):
            raise ValueError(
                f"out_channels must be in_channels={in_channels} where do_res adds the input, got {out_channels}"
            )
        if do_res and max(strides) > 1:
            raise ValueError(f"stride must be 1 where do_res adds the input, got {stride!r}")
        self.do_res = do_res
        self.dim = dim
        self.grn = grn
        self.recompute = one_of("recompute", recompute, RECOMPUTE)
        self.conv1 = self._depthwise(in_channels, kernel, strides, n_groups)
        self.norm = nn.GroupNorm(in_channels, in_channels) if norm_type == "group" else LayerNorm(in_channels)
        self.conv2 = CONV[axes](in_channels, hidden, kernel_size=1)
        self.act = nn.GELU()
        self.conv3 = CONV[axes](hidden, out_channels, kernel_size=1)
        if grn:
            self.grn_beta = nn.Parameter(torch.zeros(1, hidden, *(1,) * axes))
            self.grn_gamma = nn.Parameter(torch.zeros(1, hidden, *(1,) * axes))

    def forward(self, x: torch.Tensor, dummy_tensor: torch.Tensor | None = None) -> torch.Tensor:
        """The block's output [N, out_channels, ...]. ``dummy_tensor`` is there for the official call and not used."""
        return self._fused(x) if self._is_fusable(x) else self._composed(x)

    def _is_fusable(self, x: torch.Tensor) -> bool:
        """Whether one operator computes the block; if not, the log says why."""
        axes = len(self.conv1.kernel_size)
        if x.dim() != axes + 2:
            layout = "[N, C, D, H, W]" if axes == 3 else "[N, C, H, W]"
            raise ValueError(f"input of a {axes}D {type(self).__name__} must be {layout}, got shape {list(x.shape)}")
        reason = why_not_fusable(self, self.form)
        if reason is not None:
            ops.nn.note_composed(self, reason)
        return reason is None

    def _fused(self, x: torch.Tensor, skip: torch.Tensor | None = None, keep_input: bool = False) -> Any:
        planar = x.dim() == 4  # a plane is a volume of depth 1

        def volume(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.unsqueeze(2) if planar else tensor

        conv1, norm, conv2, conv3 = self.conv1, self.norm, self.conv2, self.conv3
        res_conv = self._res_conv()
        out = ops.mednext_block(
            volume(x),
            volume(conv1.weight),
            conv1.bias,
            norm.weight,
            norm.bias,
            volume(conv2.weight),
            conv2.bias,
            volume(conv3.weight),
            conv3.bias,
            form=self.form,
            stride=(1, *conv1.stride) if planar else conv1.stride,
            residual=self.do_res or res_conv is not None,
            residual_weight=None if res_conv is None else volume(res_conv.weight),
            residual_bias=None if res_conv is None else res_conv.bias,
            grn=tuple(getattr(self, name) for name in self.grn_names) if self.grn else None,
            num_groups=norm.num_groups,
            eps=norm.eps,
            recompute=self.recompute,
            skip=None if skip is None else volume(skip),
            keep_input=keep_input,
        )
        if not planar:
            return out
        return tuple(t.squeeze(2) for t in out) if isinstance(out, tuple) else out.squeeze(2)

    def _composed(self, x: torch.Tensor) -> torch.Tensor:
        out = self._branch(x)
        return x + out if self.do_res else out

    def _branch(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.conv2(self.norm(self.conv1(x))))
        if self.grn:
            gamma, beta = (getattr(self, name) for name in self.grn_names)
            norm = torch.linalg.vector_norm(hidden, dim=tuple(range(2, hidden.dim())), keepdim=True)
            hidden = hidden + gamma * (hidden * (norm / (norm.mean(1, keepdim=True) + 1e-6))) + beta
        return self.conv3(hidden)

    def _res_conv(self) -> Any:
        return None

    def _depthwise(
        self, channels: int, kernel: tuple[int, ...], stride: tuple[int, ...], groups: int | None
    ) -> nn.Module:
        padding = tuple(k // 2 for k in kernel)
        if groups is not None and channels % positive_int("n_groups", groups):
            raise ValueError(f"n_groups must divide in_channels={channels}, got {groups}")
        if len(kernel) == 3 and groups in (None, channels):
            return ops.nn.DepthwiseConv3d(channels, kernel, stride, padding)
        return CONV[len(kernel)](channels, channels, kernel, stride, padding, groups=groups or channels)


class _ResamplingBlock(MedNeXtBlock):
    """What the two resampling blocks share: a strided ``conv1`` and, with ``do_res``, a 1x1 ``res_conv`` beside it."""

    pointwise_types: ClassVar[dict[int, Any]] = CONV

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        exp_r: int = 4,
        kernel_size: PerAxis = 7,
        do_res: bool = False,
        norm_type: str = "group",
        dim: str = "3d",
        grn: bool = False,
        *,
        stride: PerAxis = 2,
        recompute: str | None = None,
    ) -> None:
        super().__init__(
            *(in_channels, out_channels, exp_r, kernel_size, False, norm_type, None, dim, grn),
            stride=stride,
            recompute=recompute,
        )
        self.resample_do_res = do_res
        if do_res:
            pointwise = self.pointwise_types[spatial_axes(dim)]
            self.res_conv = pointwise(in_channels, out_channels, kernel_size=1, stride=self.conv1.stride)

    def _res_conv(self) -> Any:
        return self.res_conv if self.resample_do_res else None


class MedNeXtDownBlock(_ResamplingBlock):
    """The block with a ``conv1`` of stride 2: extent n becomes ceil(n / 2) on every axis with stride 2.

    Arguments as :class:`MedNeXtBlock`, and

    Args:
        do_res: add a 1x1 convolution of the input with the same stride.
        stride: 1 or 2, one for all axes or one an axis.
    """

    form: ClassVar[str] = "down"

    def forward(self, x: torch.Tensor, dummy_tensor: torch.Tensor | None = None, keep_input: bool = False) -> Any:
        """The block's output [N, out_channels, ...]; with ``keep_input`` a pair of that and the input.

        What a skip connection takes is that input: its gradient is then added in a pass that there is anyway.
        """
        if self._is_fusable(x):
            return self._fused(x, keep_input=keep_input)
        out = self._composed(x)
        return (out, x) if keep_input else out

    def _composed(self, x: torch.Tensor) -> torch.Tensor:
        out = self._branch(x)
        return out + self.res_conv(x) if self.resample_do_res else out


class MedNeXtUpBlock(_ResamplingBlock):
    """The block with a transposed ``conv1`` of stride 2: extent n becomes 2n on every axis with stride 2.

    The convolution gives 2n - 1 planes; norm and bottleneck run on those, and a plane of zeros is put in front. The
    residual, a transposed 1x1 convolution, gets the same plane. Arguments as :class:`MedNeXtDownBlock`.
    """

    form: ClassVar[str] = "up"
    pointwise_types: ClassVar[dict[int, Any]] = CONV_TRANSPOSE

    def forward(
        self, x: torch.Tensor, dummy_tensor: torch.Tensor | None = None, skip: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The block's output [N, out_channels, ...], plus ``skip``, which a decoder adds to it, in the same pass."""
        if self._is_fusable(x):
            return self._fused(x, skip)
        out = self._composed(x)
        return out if skip is None else skip + out

    def _composed(self, x: torch.Tensor) -> torch.Tensor:
        out = self._branch(x)
        if self.resample_do_res:
            out = out + self.res_conv(x)
        front = [pad for stride in reversed(self.conv1.stride) for pad in (int(stride == 2), 0)]
        return F.pad(out, front)

    def _depthwise(
        self, channels: int, kernel: tuple[int, ...], stride: tuple[int, ...], groups: int | None
    ) -> nn.Module:
        padding = tuple(k // 2 for k in kernel)
        if len(kernel) == 3:
            return ops.nn.DepthwiseConvTranspose3d(channels, kernel, stride, padding)
        return CONV_TRANSPOSE[2](channels, channels, kernel, stride, padding, groups=channels)


class OutBlock(nn.Module):
    """A segmentation head: 1x1 convolution to ``n_classes`` logits (its weight laid out as a transposed one's).

    Args:
        in_channels: channels of the input.
        n_classes: channels of the output.
        dim: "3d" or "2d".
    """

    def __init__(self, in_channels: int, n_classes: int, dim: str = "3d") -> None:
        super().__init__()
        self.conv_out = HEAD[spatial_axes(dim)](
            positive_int("in_channels", in_channels), positive_int("n_classes", n_classes)
        )

    def forward(self, x: torch.Tensor, dummy_tensor: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [N, n_classes, ...] of ``x`` [N, in_channels, ...]."""
        return self.conv_out(x)


class LayerNorm(nn.Module):
    """LayerNorm over the channels of each voxel of [N, C, ...]; the memory format is kept.

    Args:
        normalized_shape: the number of channels C.
        eps: added to the variance.
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.normalized_shape = (normalized_shape,)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` with mean 0 and variance 1 over dimension 1, then scaled and shifted a channel."""
        out = F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps).movedim(-1, 1)
        return out.contiguous() if x.is_contiguous() else out
