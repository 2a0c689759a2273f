"""GroupNorm in its three parts, by csrc/cpu/group_norm."""

from __future__ import annotations

import torch

from mednext_ops.formulas import per_channel

__all__ = ["group_norm", "group_norm_backward", "group_norm_statistics"]

_native = torch.ops.mednext_ops_native


def group_norm_statistics(input: torch.Tensor, num_groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / sqrt(biased variance + eps) of each group: input [N, C, D, H, W] -> two float32 [N, G]."""
    return _native.group_norm_statistics(input, num_groups, eps)


def group_norm(
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    activation: str | None,
) -> torch.Tensor:
    """``activation(weight * (input - mean) * rstd + bias)``, in the input's dtype and memory format."""
    mean, rstd = (per_channel(t, input.shape[1]) for t in (mean, rstd))
    return _native.group_norm(input, mean, rstd, weight, bias, activation == "gelu")


def group_norm_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradient of the normalised tensor before the activation, [N, C, D, H, W], and its two sums, [N, C] each."""
    mean, rstd = (per_channel(t, input.shape[1]) for t in (mean, rstd))
    gelu = activation == "gelu"
    grad, *sums = _native.group_norm_backward(grad_output, input, mean, rstd, weight, bias, gelu)
    return grad if gelu else grad_output, *sums
