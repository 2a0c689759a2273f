"""Drop-in layers: PyTorch's constructors, parameters and state_dict keys, our operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mednext_ops.ops.arguments import check_group_count, is_int, triple
from mednext_ops.ops.depthwise_conv3d import depthwise_conv3d
from mednext_ops.ops.depthwise_conv3d_group_norm import depthwise_conv3d_group_norm
from mednext_ops.ops.depthwise_conv_transpose3d import depthwise_conv_transpose3d
from mednext_ops.plain import note_composed, why_not_plain

__all__ = [
    "DepthwiseConv3d",
    "DepthwiseConvNormAct3d",
    "DepthwiseConvTranspose3d",
    "note_composed",
    "why_not_plain",
]

Extent = int | Sequence[int]


def _positive(channels: int) -> int:
    if not is_int(channels) or channels < 1:
        raise ValueError(f"channels must be a positive int, got {channels!r}")
    return int(channels)


class DepthwiseConv3d(torch.nn.Conv3d):
    """``torch.nn.Conv3d(channels, channels, ..., groups=channels)`` on :func:`mednext_ops.depthwise_conv3d`.

    Args:
        channels: C, of the input and the output.
        kernel_size: odd, an int or three (D, H, W).
        stride, padding, dilation: in voxels, an int or three; padding="same" as in PyTorch, at stride 1.
        bias: whether there is a bias [C].

    Example:
        >>> layer = DepthwiseConv3d(32, kernel_size=5, padding=2)
        >>> layer.load_state_dict(torch.nn.Conv3d(32, 32, 5, padding=2, groups=32).state_dict())
        <All keys matched successfully>
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Extent,
        stride: Extent = 1,
        padding: Extent | str = 0,
        dilation: Extent = 1,
        *,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel, dilations = triple("kernel_size", kernel_size, 1), triple("dilation", dilation, 1)
        strides = triple("stride", stride, 1)
        if isinstance(padding, str):
            if padding not in ("same", "valid") or (padding == "same" and max(strides) > 1):
                raise ValueError(f"padding must be numbers, 'valid', or 'same' at stride 1, got {padding!r}")
            padding = [d * (k // 2) if padding == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
        if any(k % 2 == 0 for k in kernel):
            raise ValueError(f"kernel_size must be odd on every axis, got {kernel_size!r}")
        super().__init__(
            _positive(channels),
            channels,
            kernel,
            strides,
            triple("padding", padding, 0),
            dilations,
            groups=channels,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return depthwise_conv3d(input, self.weight, self.bias, self.stride, self.padding, self.dilation)  # type: ignore[arg-type]


class DepthwiseConvTranspose3d(torch.nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d(channels, channels, ..., groups=channels)`` on our operator.

    Args:
        channels: C, of the input and the output.
        kernel_size: odd, an int or three (D, H, W).
        stride, padding, output_padding: in voxels, an int or three.
        bias: whether there is a bias [C].
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Extent,
        stride: Extent = 1,
        padding: Extent = 0,
        output_padding: Extent = 0,
        *,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel = triple("kernel_size", kernel_size, 1)
        if any(k % 2 == 0 for k in kernel):
            raise ValueError(f"kernel_size must be odd on every axis, got {kernel_size!r}")
        super().__init__(
            _positive(channels),
            channels,
            kernel,
            triple("stride", stride, 1),
            triple("padding", padding, 0),
            triple("output_padding", output_padding, 0),
            groups=channels,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        output_padding: Any = self.output_padding
        if output_size is not None:
            geometry: tuple[Any, ...] = (self.stride, self.padding, self.kernel_size, 3, self.dilation)
            output_padding = self._output_padding(input, output_size, *geometry)
        padding: Any = self.padding
        return depthwise_conv_transpose3d(input, self.weight, self.bias, self.stride, padding, output_padding)


class DepthwiseConvNormAct3d(torch.nn.Module):
    """Depthwise convolution, GroupNorm and GELU as one op; the parameters lie in ``conv`` and ``norm``.

    Where one of the two is hooked, pruned, parametrized or exchanged, they run one after the other, and the log says
    so (``logging.getLogger("mednext_ops")``, INFO).

    Args:
        channels: C, of the input and the output.
        kernel_size: odd, an int or three (D, H, W).
        stride, padding: in voxels, an int or three; the padding is half the kernel by default.
        num_groups: a divisor of C; None for one group a channel.
        eps: added to the variance.
        activation: None or "gelu".
        bias: whether the convolution has a bias [C].
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Extent,
        stride: Extent = 1,
        padding: Extent | None = None,
        *,
        num_groups: int | None = None,
        eps: float = 1e-5,
        activation: str | None = "gelu",
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = [k // 2 for k in triple("kernel_size", kernel_size, 1)]
        if activation not in (None, "gelu"):
            raise ValueError(f"activation must be None or 'gelu', got {activation!r}")
        self.conv = DepthwiseConv3d(channels, kernel_size, stride, padding, bias=bias, device=device, dtype=dtype)
        groups = check_group_count(num_groups, channels)
        self.norm = torch.nn.GroupNorm(groups, channels, eps, device=device, dtype=dtype)
        self.activation = activation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        reason = self._why_not_fusable()
        if reason is not None:
            note_composed(self, reason)
            return self._composed(input)
        return depthwise_conv3d_group_norm(
            input,
            self.conv.weight,
            self.conv.bias,
            self.norm.weight,
            self.norm.bias,
            stride=self.conv.stride,
            padding=self.conv.padding,  # type: ignore[arg-type]
            num_groups=self.norm.num_groups,
            eps=self.norm.eps,
            activation=self.activation,
        )

    def _why_not_fusable(self) -> str | None:
        reason = why_not_plain("conv", self.conv, (DepthwiseConv3d,)) or why_not_plain(
            "norm", self.norm, (torch.nn.GroupNorm,)
        )
        if reason is None and max(self.conv.dilation) > 1:
            return f"conv has dilation {self.conv.dilation}"
        if reason is None and not self.norm.affine:
            return "norm has no affine parameters"
        return reason

    def _composed(self, input: torch.Tensor) -> torch.Tensor:
        convolved = self.conv(input)
        output = self.norm(convolved)
        if self.activation is not None:
            output = torch.nn.functional.gelu(output)
        return output.to(convolved.dtype)  # autocast computes norms in float32

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"
