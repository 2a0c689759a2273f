"""The inverted bottleneck by csrc/cpu/inverted_bottleneck.

What the kernels know of GRN is a gain of the hidden tensor; its bias is folded into the compression's here.
"""

from __future__ import annotations

import torch

from mednext_ops.backends.problem import InvertedBottleneckGradients, InvertedBottleneckNeeds
from mednext_ops.formulas import (
    GlobalResponse,
    compression_gradients,
    dot_of_hidden,
    expansion_gradients,
    per_channel,
)

__all__ = ["inverted_bottleneck", "inverted_bottleneck_backward"]

_native = torch.ops.mednext_ops_native

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
    channels = input.shape[1]
    statistics = per_channel(mean, channels), per_channel(rstd, channels)
    hidden = (input, *statistics, norm_weight, norm_bias, expand_weight, expand_bias)
    gain, bias = None, compress_bias
    if grn is not None:
        square_sums, _, _ = _native.inverted_bottleneck_response(None, *hidden)
        gain = GlobalResponse(square_sums, grn[0]).gain
        bias = compress_weight.float() @ grn[1].float()
        if compress_bias is not None:
            bias += compress_bias
    return _native.inverted_bottleneck_with_gain(*hidden, compress_weight, bias, gain, residual)


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
    channels = input.shape[1]
    statistics = per_channel(mean, channels), per_channel(rstd, channels)
    hidden = (input, *statistics, norm_weight, norm_bias, expand_weight, expand_bias)
    expand, compress = expand_weight.float(), compress_weight.float()
    needs_hidden = needs.input or needs.norm or needs.expand
    found: dict[str, torch.Tensor | None] = {}
    gain = slope = None
    if grn is not None:
        square_sums, output_sums, output_hidden = _native.inverted_bottleneck_response(grad_output, *hidden)
        response = GlobalResponse(square_sums, grn[0])
        hidden_dot = dot_of_hidden(output_hidden, compress)
        found |= compression_gradients(output_sums, output_hidden, compress, response, grn[1], hidden_dot)
        gain, slope = response.gain, response.slope(hidden_dot)
    needs_compress = needs.compress and grn is None
    # In float32 what is gained by the sums over the hidden channels is lost to cancellation among them: the sums of the
    # norm's gradient are taken over that gradient itself, as PyTorch's norm does.
    own_sums = input.dtype == torch.float32 and (needs.input or needs.norm)
    if needs_hidden or needs_compress:
        grad, hidden_sums, normalized_hidden, output_sums, output_hidden = (
            _native.inverted_bottleneck_with_gain_backward(
                grad_output, *hidden, compress, gain, slope, needs.input or own_sums, needs_hidden, needs_compress
            )
        )
        if needs_compress:
            found |= compression_gradients(output_sums, output_hidden, compress, None, None)
        if needs_hidden:
            found["grad"] = grad if needs.input else None
            found |= expansion_gradients(hidden_sums, normalized_hidden.mT, expand, norm_weight, norm_bias)
            if own_sums:
                sums = _native.group_norm_backward(grad, input, *statistics, norm_weight, norm_bias, False)[1:]
                found |= dict(zip(("grad_sum", "grad_dot_normalized"), sums, strict=True))
    return InvertedBottleneckGradients(**found)
