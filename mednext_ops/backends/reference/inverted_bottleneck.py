"""GroupNorm's affine map, 1x1x1 expansion, GELU, GRN, 1x1x1 compression, residual: forward and recomputing backward.

Shapes: y [N, C, V], hidden [N, R, V] (R hidden channels), output [N, O, V]. The hidden tensors live inside one call.
The backward needs only the block's saved tensors: everything else is made again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import InvertedBottleneckGradients, InvertedBottleneckNeeds, memory_format_of
from mednext_ops.formulas import (
    accumulation_dtype,
    group_norm_affine,
    per_channel,
    pointwise,
    pointwise_weight_gradient,
)

__all__ = ["inverted_bottleneck", "inverted_bottleneck_backward"]

#: Keeps the division of Global Response Normalisation finite (ConvNeXt V2, equation 2).
GRN_EPS = 1e-6

Grn = tuple[torch.Tensor, torch.Tensor]


def inverted_bottleneck(
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    compress_weight: torch.Tensor,
    compress_bias: torch.Tensor | None,
    grn: Grn | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """input [N, C, D, H, W], expand_weight [R, C], compress_weight [O, R] -> [N, O, D, H, W] in the input's dtype."""
    compute = _compute_dtype(input)
    _, hidden = _hidden(input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias, compute)
    if grn is not None:
        hidden = _GlobalResponse(hidden, *grn).applied(hidden)
    output = pointwise(compress_weight, hidden)
    if compress_bias is not None:
        output += compress_bias.to(compute)[:, None]
    output = output.reshape(input.shape[0], compress_weight.shape[0], *input.shape[2:])
    if residual is not None:
        output += residual.to(compute)
    return output.to(input.dtype).contiguous(memory_format=memory_format_of(input))


def inverted_bottleneck_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    compress_weight: torch.Tensor,
    grn: Grn | None,
    needs: InvertedBottleneckNeeds,
) -> InvertedBottleneckGradients:
    """The gradients of :func:`inverted_bottleneck` that ``needs`` names, from the forward's inputs alone."""
    compute, total = _compute_dtype(input), accumulation_dtype(input.dtype)
    preactivation, hidden = _hidden(input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias, compute)
    grad_output = grad_output.to(compute).flatten(2)  # [N, O, V]
    needs_hidden = needs.input or needs.norm or needs.expand
    compress = compress_weight.to(total)
    found: dict[str, torch.Tensor] = {}

    output_sums = grad_output.sum(2, dtype=total)  # [N, O]
    if needs.compress or grn is not None:
        output_hidden = pointwise_weight_gradient(grad_output, hidden)  # [N, O, R]
        found["compress_weight"], found["compress_bias"] = output_hidden.sum(0), output_sums.sum(0)
    grad_hidden = pointwise(compress_weight.t(), grad_output) if needs_hidden else None  # [N, R, V]
    if grn is not None:
        response = _GlobalResponse(hidden, *grn)
        found["compress_weight"] = (output_hidden * response.gain[:, None, :, 0]).sum(0)
        found["compress_weight"] += torch.outer(output_sums.sum(0), grn[1].to(total))
        # The sum over the voxels of grad_hidden * hidden, without a pass over them: the compression is linear.
        hidden_dot = (output_hidden * compress).sum(1)  # [N, R]
        found["grn_gamma"] = (response.normalized[:, :, 0] * hidden_dot).sum(0)
        found["grn_beta"] = output_sums.sum(0) @ compress
        if grad_hidden is not None:
            grad_hidden = response.gradient(grad_hidden, hidden, hidden_dot)
    del hidden
    if grad_hidden is None:
        return InvertedBottleneckGradients(**found)

    grad_preactivation = torch.ops.aten.gelu_backward(grad_hidden, preactivation)  # [N, R, V]
    del grad_hidden, preactivation
    channels = input.shape[1]
    centred = input.flatten(2).to(total) - per_channel(mean, channels)[:, :, None]
    normalized = (centred * per_channel(rstd, channels)[:, :, None]).to(compute)
    expand = expand_weight.to(total)
    hidden_sums = grad_preactivation.sum(2, dtype=total)  # [N, R]
    hidden_normalized = pointwise_weight_gradient(grad_preactivation, normalized)  # [N, R, C]
    found["grad_sum"] = hidden_sums @ expand
    found["grad_dot_normalized"] = (hidden_normalized * expand).sum(1)
    found["expand_bias"] = hidden_sums.sum(0)
    found["expand_weight"] = hidden_normalized.sum(0) * norm_weight.to(total)
    found["expand_weight"] += torch.outer(found["expand_bias"], norm_bias.to(total))
    if needs.input:
        grad = pointwise(expand_weight.t(), grad_preactivation).reshape(input.shape)
        found["grad"] = grad.to(input.dtype).contiguous(memory_format=memory_format_of(input))
    return InvertedBottleneckGradients(**found)


def _compute_dtype(input: torch.Tensor) -> torch.dtype:
    """16-bit products run as they are on accelerators and in float32 on the CPU."""
    return accumulation_dtype(input.dtype) if input.device.type == "cpu" else input.dtype


def _hidden(
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    compute: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The expansion before and after GELU, both [N, R, V].

    The affine map is applied on load, in float32: folded into 16-bit weights it would cancel where |mean| >> std.
    """
    scale, shift = group_norm_affine(mean, rstd, norm_weight, norm_bias)
    flat = input.flatten(2)
    normalized = torch.addcmul(shift[:, :, None], scale[:, :, None], flat.to(scale.dtype)).to(compute)
    preactivation = pointwise(expand_weight, normalized)
    if expand_bias is not None:
        preactivation += expand_bias.to(compute)[:, None]
    return preactivation, F.gelu(preactivation)


class _GlobalResponse:
    """Global Response Normalisation of a hidden tensor h [N, R, V]: ``h * (1 + gamma * normalized) + beta``."""

    def __init__(self, hidden: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> None:
        total = accumulation_dtype(hidden.dtype)
        self.gamma, self.beta = gamma.to(total)[:, None], beta.to(total)[:, None]
        self.norm = torch.linalg.vector_norm(hidden, dim=2, keepdim=True, dtype=total)  # [N, R, 1]
        self.denominator = self.norm.mean(1, keepdim=True) + GRN_EPS  # [N, 1, 1]
        self.normalized = self.norm / self.denominator
        self.gain = 1 + self.gamma * self.normalized

    def applied(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.beta.to(hidden.dtype), self.gain.to(hidden.dtype), hidden)

    def gradient(self, grad: torch.Tensor, hidden: torch.Tensor, dot: torch.Tensor) -> torch.Tensor:
        """Gradient of h, given that of the output and ``dot = sum_v grad * h`` [N, R]."""
        grad_normalized = self.gamma * dot[:, :, None]
        mean_part = (grad_normalized * self.norm).mean(1, keepdim=True) / self.denominator.square()
        grad_norm = grad_normalized / self.denominator - mean_part
        # The norm's gradient is h / norm, and zero where h is zero throughout.
        slope = torch.where(self.norm > 0, grad_norm / self.norm, 0)
        return torch.addcmul(self.gain.to(grad.dtype) * grad, slope.to(grad.dtype), hidden)
