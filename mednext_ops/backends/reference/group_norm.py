"""GroupNorm in its three parts: statistics, the affine map with an optional GELU, and the gradient's sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import memory_format_of
from mednext_ops.formulas import accumulation_dtype, group_norm_affine, per_channel

__all__ = ["group_norm", "group_norm_backward", "group_norm_statistics"]


def group_norm_statistics(input: torch.Tensor, num_groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / sqrt(biased variance + eps) of each group: input [N, C, ...] -> two [N, G] in float32 (float64)."""
    dtype = accumulation_dtype(input.dtype)
    batch, channels = input.shape[:2]
    if batch == 0:
        return input.new_empty((0, num_groups), dtype=dtype), input.new_empty((0, num_groups), dtype=dtype)
    values = input.to(dtype)
    dims = tuple(range(2, input.dim()))
    if num_groups != channels:
        values, dims = values.reshape(batch, num_groups, -1), (2,)
    variance, mean = torch.var_mean(values, dim=dims, correction=0)
    return mean, torch.rsqrt(variance + eps)


def group_norm(
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    activation: str | None,
) -> torch.Tensor:
    """``activation(weight * (input - mean) * rstd + bias)``, computed in float32 (float64), in the input's dtype."""
    normalized = _affine(input, mean, rstd, weight, bias)
    if activation == "gelu":
        normalized = F.gelu(normalized)
    return normalized.to(input.dtype).contiguous(memory_format=memory_format_of(input))


def group_norm_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradient of the normalised tensor before the activation, [N, C, D, H, W], and its two sums, [N, C] each.

    The sums over the voxels are those of the gradient, and of the gradient times ``(input - mean) * rstd``.
    """
    dtype = rstd.dtype
    grad = grad_output
    if activation == "gelu":
        grad = torch.ops.aten.gelu_backward(grad.to(dtype), _affine(input, mean, rstd, weight, bias)).to(input.dtype)
    channels = input.shape[1]
    voxels = tuple(range(2, input.dim()))
    centred = input.to(dtype) - per_channel(mean, channels)[:, :, None, None, None]
    wide = grad.to(dtype)
    return grad, wide.sum(voxels), (wide * centred).sum(voxels) * per_channel(rstd, channels)


def _affine(
    input: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    scale, shift = group_norm_affine(mean, rstd, weight, bias)
    return torch.addcmul(shift[:, :, None, None, None], scale[:, :, None, None, None], input.to(scale.dtype))
