"""The algebra of GroupNorm and of the 1x1x1 convolutions that all backends share, written once.

Shapes: N samples, C channels, G groups, V voxels; ``mean`` and ``rstd`` are [N, G], everything else a channel is
[N, C] or [C]. All of it is exact; nothing is approximated. With G == C (MedNeXt) a group is one channel.
"""

from __future__ import annotations

import math

import torch

from mednext_ops.backends.problem import GroupNormGradient

__all__ = [
    "accumulation_dtype",
    "bias_gradient",
    "group_norm_affine",
    "group_norm_gradient",
    "per_channel",
    "pointwise",
    "pointwise_weight_gradient",
]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics, sums and weight gradients: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_channel(statistic: torch.Tensor, channels: int) -> torch.Tensor:
    """Repeat a statistic of the groups, [N, G], for every channel of its group: [N, C]."""
    groups = statistic.shape[1]
    return statistic if groups == channels else statistic.repeat_interleave(channels // groups, dim=1)


def group_norm_affine(
    mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """GroupNorm as ``scale * y + shift`` a sample and channel: two [N, C] tensors in the dtype of the statistics."""
    channels = weight.shape[0]
    scale = weight.to(rstd.dtype) * per_channel(rstd, channels)
    return scale, bias.to(rstd.dtype) - per_channel(mean, channels) * scale


def group_norm_gradient(
    grad: torch.Tensor,
    output: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    grad_sum: torch.Tensor,
    grad_dot_normalized: torch.Tensor,
) -> GroupNormGradient:
    """Gradient of GroupNorm's input, as an affine map of ``grad`` and ``output`` that a backend applies on load.

    Args:
        grad: gradient of the normalised tensor (after its weight and bias), [N, C, D, H, W].
        output: the tensor that was normalised, [N, C, D, H, W].
        mean, rstd: its statistics, [N, G].
        weight: GroupNorm's weight, [C].
        grad_sum: sum of ``grad`` over the voxels, [N, C].
        grad_dot_normalized: sum of ``grad * (output - mean) * rstd`` over the voxels, [N, C].
    """
    batch, groups = rstd.shape
    channels = weight.shape[0]
    count = math.prod(output.shape[2:]) * (channels // groups)
    gamma = weight.to(rstd.dtype)
    # Means over a group of the gradient of the unscaled normalised tensor, alone and times that tensor: [N, G].
    first = (gamma * grad_sum).reshape(batch, groups, channels // groups).sum(2) / count
    second = (gamma * grad_dot_normalized).reshape(batch, groups, channels // groups).sum(2) / count
    slope = -rstd * rstd * second
    offset = -rstd * first - mean * slope
    return GroupNormGradient(
        grad, output, gamma * per_channel(rstd, channels), per_channel(slope, channels), per_channel(offset, channels)
    )


def bias_gradient(gradient: GroupNormGradient, grad_sum: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Gradient of the bias of a convolution that GroupNorm follows, [C]: the sum of ``gradient`` over all voxels.

    With a group a channel the bias cancels, and this is zero. ``grad_sum`` is the sum of ``gradient.grad``, [N, C].
    """
    channels = grad_sum.shape[1]
    if num_groups == channels:
        return grad_sum.new_zeros(channels)
    sums = gradient.output.sum((2, 3, 4), dtype=grad_sum.dtype)
    voxels = math.prod(gradient.output.shape[2:])
    return (gradient.scale * grad_sum + gradient.slope * sums + gradient.offset * voxels).sum(0)


def pointwise(weight: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """1x1x1 convolution without bias: weight [O, C], input [N, C, ...] -> [N, O, ...], contiguous.

    One product a sample: cuDNN's pointwise kernels have algorithm cliffs at batch sizes above one.
    """
    product = torch.matmul(weight.to(input.dtype), input.flatten(2))
    return product.reshape(input.shape[0], weight.shape[0], *input.shape[2:])


def pointwise_weight_gradient(grad_output: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """Sum over the voxels of ``grad_output`` times ``input``, a sample: [N, O, ...], [N, C, ...] -> [N, O, C].

    Accumulated and returned in float32 (float64 for float64).
    """
    left = grad_output.flatten(2)
    right = input.flatten(2).transpose(1, 2)
    dtype = accumulation_dtype(input.dtype)
    if left.dtype == dtype:
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=dtype)
    return torch.bmm(left.to(dtype), right.to(dtype))
