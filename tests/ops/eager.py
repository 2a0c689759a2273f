"""The same mathematics in PyTorch's own layers: what the ops are compared with, in float64 for parity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected magnitude, in float64."""
    actual, expected = actual.double(), expected.double()
    if expected.numel() == 0:
        assert actual.shape == expected.shape
        return 0.0
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()


def rms_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over that of the expected values, in float64."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300)).item()


def assert_within_twice(ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor, name: str) -> None:
    """The house rule: an error of at most twice that of PyTorch's own op.

    Of a tensor in float32 one rounding more, for of a few numbers that is a draw; in 16 bits a sixteenth of one.
    """
    our, their = rms_error(ours, exact), rms_error(theirs, exact)
    if math.isnan(their) and exact.isfinite().all():
        their = (
            0.0  # PyTorch's convolutions in 16 bits on a CPU have read memory that nobody wrote: theirs says nothing
        )
    slack = torch.finfo(ours.dtype).eps / (16 if ours.element_size() == 2 else 1)
    assert our <= 2 * their + slack, f"{name}: error {our:.2e}, PyTorch's own {their:.2e}"


def grn(hidden: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Global Response Normalisation over the voxels (ConvNeXt V2)."""
    norm = hidden.norm(p=2, dim=(2, 3, 4), keepdim=True)
    normalized = norm / (norm.mean(1, keepdim=True) + 1e-6)
    return hidden + gamma.reshape(1, -1, 1, 1, 1) * (hidden * normalized) + beta.reshape(1, -1, 1, 1, 1)


@dataclass
class Block:
    """The tensors of a MedNeXt block, in the shapes of the official layers."""

    input: torch.Tensor
    conv_weight: torch.Tensor
    conv_bias: torch.Tensor | None
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    expand_weight: torch.Tensor
    expand_bias: torch.Tensor | None
    compress_weight: torch.Tensor
    compress_bias: torch.Tensor | None
    residual_weight: torch.Tensor | None = None
    residual_bias: torch.Tensor | None = None
    gamma: torch.Tensor | None = None
    beta: torch.Tensor | None = None

    @classmethod
    def random(
        cls,
        form: str = "regular",
        kernel: Sequence[int] = (3, 3, 3),
        size: Sequence[int] = (5, 6, 7),
        batch: int = 2,
        channels: int = 4,
        hidden: int = 8,
        with_grn: bool = False,
        residual: bool = True,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Block:
        def draw(*shape: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
            return torch.randn(*shape, dtype=torch.float64) * scale + shift

        out = channels if form == "regular" else {"down": 2 * channels, "up": max(channels // 2, 1)}[form]
        taps = kernel[0] * kernel[1] * kernel[2]
        block = cls(
            draw(batch, channels, *size),
            draw(channels, 1, *kernel, scale=taps**-0.5),
            draw(channels, scale=0.1),
            draw(channels, scale=0.1, shift=1.0),
            draw(channels, scale=0.1),
            draw(hidden, channels, 1, 1, 1, scale=channels**-0.5),
            draw(hidden, scale=0.1),
            draw(out, hidden, 1, 1, 1, scale=hidden**-0.5),
            draw(out, scale=0.1),
        )
        if residual and form != "regular":
            shape = (channels, out) if form == "up" else (out, channels)
            block.residual_weight, block.residual_bias = draw(*shape, 1, 1, 1, scale=channels**-0.5), draw(out)
        if with_grn:
            block.gamma, block.beta = draw(1, hidden, 1, 1, 1), draw(1, hidden, 1, 1, 1)
        block = block.to(dtype, device)
        block.input = block.input.contiguous(memory_format=memory_format)
        return block.leaves()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are there, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Block:
        return replace(self, **{name: tensor.detach().to(device, dtype) for name, tensor in self.tensors().items()})

    def leaves(self) -> Block:
        """The same values as leaves that require a gradient."""
        return replace(self, **{name: t.detach().requires_grad_() for name, t in self.tensors().items()})

    def eager(self, form: str, stride: Sequence[int], groups: int, eps: float = 1e-5, residual: bool = True):
        """The official block, layer by layer."""
        padding = [k // 2 for k in self.conv_weight.shape[2:]]
        channels = self.input.shape[1]
        convolution = F.conv_transpose3d if form == "up" else F.conv3d
        y = convolution(self.input, self.conv_weight, self.conv_bias, stride, padding, groups=channels)
        hidden = F.gelu(
            F.conv3d(
                F.group_norm(y, groups, self.norm_weight, self.norm_bias, eps), self.expand_weight, self.expand_bias
            )
        )
        if self.gamma is not None:
            hidden = grn(hidden, self.gamma, self.beta)
        output = F.conv3d(hidden, self.compress_weight, self.compress_bias)
        front = [s - 1 for s in stride]
        pad = (front[2], 0, front[1], 0, front[0], 0)
        if form == "up":
            output = F.pad(output, pad)
        if not residual:
            return output
        if form == "regular":
            return output + self.input
        if form == "down":
            return output + F.conv3d(self.input, self.residual_weight, self.residual_bias, stride)
        return output + F.pad(F.conv_transpose3d(self.input, self.residual_weight, self.residual_bias, stride), pad)

    def ours(self, form: str, stride: Sequence[int], groups: int, residual: bool = True, **options):
        """The same block as one op."""
        import mednext_ops as ops

        positional = [getattr(self, f.name) for f in fields(self)[:9]]
        return ops.mednext_block(
            *positional,
            form=form,
            stride=stride,
            num_groups=groups,
            residual=residual,
            residual_weight=self.residual_weight,
            residual_bias=self.residual_bias,
            grn=None if self.gamma is None else (self.gamma, self.beta),
            **options,
        )
