"""What a backend is asked to do: geometry, gradients not yet written out, and the problem it decides on.

Nothing here computes a result; every backend and every op imports this and nothing imports a backend from here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = [
    "FEW_CHANNELS",
    "ConvGeometry",
    "GroupNormGradient",
    "InvertedBottleneckGradients",
    "InvertedBottleneckNeeds",
    "Problem",
    "Triple",
    "memory_format_of",
]

Triple = tuple[int, int, int]

#: Channels on one side up to which a 1x1x1 convolution is bound by memory, and has kernels of its own.
FEW_CHANNELS = 8


class ConvGeometry(NamedTuple):
    """Geometry of a depthwise convolution, in the order D, H, W.

    ``transposed`` tells ``ConvTranspose3d`` from ``Conv3d``; ``output_padding`` belongs to the former only.
    """

    kernel_size: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    output_padding: Triple = (0, 0, 0)
    transposed: bool = False

    def output_size(self, input_size: tuple[int, ...] | torch.Size) -> Triple:
        """Spatial extent of the output for a spatial extent (D, H, W) of the input, as PyTorch defines it."""
        out = []
        for n, k, s, p, d, o in zip(
            input_size, self.kernel_size, self.stride, self.padding, self.dilation, self.output_padding, strict=True
        ):
            reach = d * (k - 1) + 1
            out.append((n - 1) * s - 2 * p + reach + o if self.transposed else (n + 2 * p - reach) // s + 1)
        return out[0], out[1], out[2]


class GroupNormGradient(NamedTuple):
    """Gradient of a normalised convolution's output, not yet written out: ``scale * grad + slope * output + offset``.

    ``grad`` is the gradient of the normalised tensor, ``output`` the convolution's own output (both [N, C, D, H, W]);
    ``scale``, ``slope`` and ``offset`` are [N, C] in the accumulation dtype. A backend applies it while it loads.
    """

    grad: torch.Tensor
    output: torch.Tensor
    scale: torch.Tensor
    slope: torch.Tensor
    offset: torch.Tensor


class InvertedBottleneckNeeds(NamedTuple):
    """Which gradients of the inverted bottleneck somebody asked for; the rest is left out."""

    input: bool
    norm: bool
    expand: bool
    compress: bool
    grn: bool


class InvertedBottleneckGradients(NamedTuple):
    """Gradients of the inverted bottleneck; ``None`` where they were not asked for.

    ``grad`` is the gradient of the normalised tensor [N, C, D, H, W]; ``grad_sum`` and ``grad_dot_normalized`` are its
    sums over the voxels, alone and times ``(input - mean) * rstd`` [N, C]. Gradients of parameters are summed over the
    batch, and in the accumulation dtype.
    """

    grad: torch.Tensor | None = None
    grad_sum: torch.Tensor | None = None
    grad_dot_normalized: torch.Tensor | None = None
    expand_weight: torch.Tensor | None = None
    expand_bias: torch.Tensor | None = None
    compress_weight: torch.Tensor | None = None
    compress_bias: torch.Tensor | None = None
    grn_gamma: torch.Tensor | None = None
    grn_beta: torch.Tensor | None = None


class Problem(NamedTuple):
    """One call of a backend function: its name and everything that may decide whether it is supported."""

    op: str
    device_type: str
    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    parameter_dtype: torch.dtype | None = None
    channels_last: bool = False
    geometry: ConvGeometry | None = None
    out_channels: int | None = None
    hidden_channels: int | None = None
    num_groups: int | None = None
    flags: frozenset[str] = frozenset()

    def __str__(self) -> str:
        parts = [f"{self.op} on {self.device_type}", str(self.dtype).removeprefix("torch.")]
        if self.shape:
            parts.append("x".join(map(str, self.shape)))
        if self.channels_last:
            parts.append("channels_last_3d")
        if self.geometry is not None:
            g = self.geometry
            kind = " transposed" if g.transposed else ""
            parts.append(f"kernel {'x'.join(map(str, g.kernel_size))} stride {'x'.join(map(str, g.stride))}{kind}")
        if self.hidden_channels is not None:
            parts.append(f"{self.hidden_channels} hidden and {self.out_channels} output channels")
        if self.flags:
            parts.append("+".join(sorted(self.flags)))
        return ", ".join(parts)


def memory_format_of(tensor: torch.Tensor) -> torch.memory_format:
    """The memory format that the ops keep: ``channels_last_3d`` where it is that and not contiguous as well."""
    if tensor.dim() == 5 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format
