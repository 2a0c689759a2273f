"""What a backend is asked to do, reduced to what decides whether it can.

A :class:`Problem` is hashable, so that the choice of a backend is made once a problem and cached.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["ConvGeometry", "Problem", "memory_format_of"]

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """Geometry of a depthwise convolution, in the order D, H, W.

    ``transposed`` tells ``ConvTranspose3d`` from ``Conv3d``; ``output_padding`` belongs to the former only.
    """

    kernel_size: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    output_padding: Triple = (0, 0, 0)
    transposed: bool = False

    def output_size(self, input_size: tuple[int, ...]) -> Triple:
        """Spatial extent of the output for a spatial extent of the input, as PyTorch defines it."""
        out = []
        for n, k, s, p, d, o in zip(
            input_size,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.output_padding,
            strict=True,
        ):
            reach = d * (k - 1) + 1
            out.append((n - 1) * s - 2 * p + reach + o if self.transposed else (n + 2 * p - reach) // s + 1)
        return out[0], out[1], out[2]


@dataclass(frozen=True)
class Problem:
    """One call of a backend function: its name and everything that may decide whether it is supported."""

    op: str
    device_type: str
    dtype: torch.dtype
    parameter_dtype: torch.dtype | None = None
    shape: tuple[int, ...] = ()
    channels_last: bool = False
    geometry: ConvGeometry | None = None
    out_channels: int | None = None
    hidden_channels: int | None = None
    num_groups: int | None = None
    flags: frozenset[str] = field(default_factory=frozenset)

    def __str__(self) -> str:
        parts = [f"{self.op} on {self.device_type}", str(self.dtype).removeprefix("torch.")]
        if self.shape:
            parts.append("x".join(map(str, self.shape)))
        if self.channels_last:
            parts.append("channels_last_3d")
        if self.geometry is not None:
            g = self.geometry
            parts.append(f"kernel {g.kernel_size} stride {g.stride}{' transposed' if g.transposed else ''}")
        if self.flags:
            parts.append("+".join(sorted(self.flags)))
        return ", ".join(parts)


def memory_format_of(tensor: torch.Tensor) -> torch.memory_format:
    """The memory format that the ops keep: ``channels_last_3d`` where it is that and not also contiguous."""
    if (
        tensor.dim() == 5
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last_3d)
    ):
        return torch.channels_last_3d
    return torch.contiguous_format
