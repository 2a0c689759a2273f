"""The algebra of GroupNorm and of the 1x1x1 convolutions that all backends share, written once.

Shapes: N samples, C channels, G groups, V voxels; ``mean`` and ``rstd`` are [N, G], everything else a channel is
[N, C] or [C]. All of it is exact; nothing is approximated. With G == C (MedNeXt) a group is one channel.
"""

from __future__ import annotations

import math

import torch

from mednext_ops.backends.problem import GroupNormGradient

__all__ = [
    "GlobalResponse",
    "accumulation_dtype",
    "bias_gradient",
    "compression_gradients",
    "dot_of_hidden",
    "expansion_gradients",
    "group_norm_affine",
    "group_norm_gradient",
    "over_samples",
    "per_channel",
    "pointwise",
    "pointwise_weight_gradient",
    "widest_dtype",
]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics, sums and weight gradients: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, but on a device that has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def per_channel(statistic: torch.Tensor, channels: int) -> torch.Tensor:
    """Repeat a statistic of the groups, [N, G], for every channel of its group: [N, C]."""
    groups = statistic.shape[1]
    return statistic if groups == channels else statistic.repeat_interleave(channels // groups, dim=1)


def over_samples(sums: torch.Tensor) -> torch.Tensor:
    """The sum over the first dimension; of one sample that is the sample itself, and nothing to launch."""
    return sums[0] if sums.shape[0] == 1 else sums.sum(0)


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
    if groups == channels:  # the same in fewer steps: each is a launch on a GPU
        scale = gamma * rstd
        share = scale * (-1.0 / count)
        slope = share * rstd * grad_dot_normalized
        return GroupNormGradient(grad, output, scale, slope, torch.addcmul(share * grad_sum, mean, slope, value=-1))
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


#: Keeps the division of Global Response Normalisation finite (ConvNeXt V2, equation 2).
GRN_EPS = 1e-6


class GlobalResponse:
    """Global Response Normalisation of a hidden tensor h [N, R, V]: ``h * gain + beta`` with ``gain`` [N, R].

    ``gain = 1 + gamma * normalized``, and ``normalized`` is the norm of h over the voxels over its mean over R.
    """

    def __init__(self, square_sums: torch.Tensor, gamma: torch.Tensor) -> None:
        # In float64: one number stands for all voxels of a channel, so that its error does not average out.
        self.dtype, wide = square_sums.dtype, widest_dtype(square_sums.device)
        self.gamma = gamma.to(wide)
        self.norm = square_sums.to(wide).sqrt()  # [N, R]
        self.denominator = self.norm.mean(1, keepdim=True) + GRN_EPS  # [N, 1]
        self.normalized = self.norm / self.denominator
        self.gain = (1 + self.gamma * self.normalized).to(self.dtype)

    def slope(self, dot: torch.Tensor) -> torch.Tensor:
        """[N, R]: the gradient of h is ``gain * grad + slope * h``, where ``dot = sum_v grad * h`` [N, R]."""
        grad_normalized = self.gamma * dot
        mean_part = (grad_normalized * self.norm).mean(1, keepdim=True) / self.denominator.square()
        grad_norm = grad_normalized / self.denominator - mean_part
        # The norm's gradient is h / norm, and zero where h is zero throughout.
        return torch.where(self.norm > 0, grad_norm / self.norm, 0).to(self.dtype)


def expansion_gradients(
    hidden_sums: torch.Tensor,
    hidden_normalized: torch.Tensor,
    expand: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """What follows from two sums over the voxels of the expansion's gradient, by the fields' names.

    ``hidden_sums`` [N, R] is that of the gradient alone, ``hidden_normalized`` [N, R, C] that of its products with
    ``(input - mean) * rstd``; ``expand`` is the expansion's weight [R, C].
    """
    sums = over_samples(hidden_sums)
    by_scale = over_samples(hidden_normalized) * norm_weight.to(sums.dtype)
    return {
        "grad_sum": hidden_sums @ expand,
        "grad_dot_normalized": (hidden_normalized * expand).sum(1),
        "expand_bias": sums,
        "expand_weight": torch.addr(by_scale, sums, norm_bias.to(sums.dtype)),
    }


def dot_of_hidden(output_hidden: torch.Tensor, compress: torch.Tensor) -> torch.Tensor:
    """The sum over the voxels of the hidden gradient times h [N, R], without a pass: the compression is linear."""
    return (output_hidden * compress.to(widest_dtype(compress.device))).sum(1)


def compression_gradients(
    output_sums: torch.Tensor,
    output_hidden: torch.Tensor,
    compress: torch.Tensor,
    response: GlobalResponse | None,
    grn_beta: torch.Tensor | None,
    hidden_dot: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The same for two sums over the voxels of the output's gradient: alone [N, O], and times h [N, O, R].

    ``hidden_dot`` [N, R] is the sum of the hidden gradient times h, where somebody has it already.
    """
    sums = over_samples(output_sums)
    if response is None or grn_beta is None:
        return {"compress_weight": over_samples(output_hidden), "compress_bias": sums}
    by_gain = over_samples(output_hidden * response.gain[:, None])
    if hidden_dot is None:
        hidden_dot = dot_of_hidden(output_hidden, compress)
    wide = widest_dtype(compress.device)  # libraries add hundreds of outputs one after the other
    return {
        "compress_weight": torch.addr(by_gain, sums, grn_beta.to(sums.dtype)),
        "compress_bias": sums,
        "grn_gamma": over_samples(response.normalized * hidden_dot).to(sums.dtype),
        "grn_beta": (sums.to(wide) @ compress.to(wide)).to(sums.dtype),
    }


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
