"""GroupNorm's affine map, 1x1x1 expansion, GELU, GRN, 1x1x1 compression, residual: forward and recomputing backward.

Shapes: y [N, C, V], hidden [N, R, V] (R hidden channels), output [N, O, V]. The work goes through tiles of voxels, so
that no hidden tensor exists as a whole; GRN, which needs a norm over all voxels, goes through them twice. The backward
needs only the block's saved tensors: everything else is made again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import (
    InvertedBottleneckGradients,
    InvertedBottleneckNeeds,
    memory_format_of,
)
from mednext_ops.formulas import (
    GlobalResponse,
    accumulation_dtype,
    compression_gradients,
    dot_of_hidden,
    expansion_gradients,
    group_norm_affine,
    per_channel,
    pointwise,
    pointwise_weight_gradient,
)

__all__ = ["inverted_bottleneck", "inverted_bottleneck_backward"]

#: Elements of a hidden tile: on the CPU it stays in the cache, on an accelerator it fills the device.
TILE_ELEMENTS = {"cpu": 2**19}
TILE_ELEMENTS_ELSEWHERE = 2**25

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
    hidden = _Hidden(input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias)
    response = None
    if grn is not None:
        square_sums = input.new_zeros((input.shape[0], expand_weight.shape[0]), dtype=accumulation_dtype(input.dtype))
        for _, _, h in hidden.tiles():
            square_sums += _square_sums(h)
        response = GlobalResponse(square_sums, grn[0])
    shape = (input.shape[0], compress_weight.shape[0], *input.shape[2:])
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format_of(input))
    flat, added = output.flatten(2), None if residual is None else residual.flatten(2)
    bias = None if compress_bias is None else compress_bias.to(hidden.dtype)[:, None]
    for tile, _, h in hidden.tiles():
        part = pointwise(compress_weight, h if response is None or grn is None else _applied(response, grn[1], h))
        if bias is not None:
            part += bias
        if added is not None:
            part += added[:, :, tile].to(hidden.dtype)
        flat[:, :, tile] = part
    return output


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
    total = accumulation_dtype(input.dtype)
    hidden = _Hidden(input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias)
    grads = grad_output.flatten(2)  # [N, O, V]
    expand_transposed, compress_transposed = (w.t().to(hidden.dtype) for w in (expand_weight, compress_weight))
    needs_hidden = needs.input or needs.norm or needs.expand
    expand, compress = expand_weight.to(total), compress_weight.to(total)
    batch, channels, rows, outputs = input.shape[0], input.shape[1], expand.shape[0], compress.shape[0]
    output_sums = input.new_zeros((batch, outputs), dtype=total)
    output_hidden = input.new_zeros((batch, outputs, rows), dtype=total)
    square_sums = input.new_zeros((batch, rows), dtype=total)
    hidden_sums = input.new_zeros((batch, rows), dtype=total)
    hidden_normalized = input.new_zeros((batch, rows, channels), dtype=total)
    grad = torch.empty_like(input, memory_format=memory_format_of(input)) if needs.input else None
    flat = None if grad is None else grad.flatten(2)
    # In the accumulation dtype itself what is gained by the sums over the hidden channels is lost to cancellation among
    # them: there the gradient's own sums are taken, as PyTorch's norm does.
    own_sums = input.new_zeros((2, batch, channels), dtype=total) if flat is not None and input.dtype == total else None

    def accumulate_compression(g: torch.Tensor, h: torch.Tensor) -> None:
        output_sums.add_(g.sum(2, dtype=total))
        output_hidden.add_(pointwise_weight_gradient(g, h))

    response = slope = hidden_dot = None
    if grn is not None:
        # As for the norm's sums above: in the accumulation dtype itself a sum over the voxels is the better one.
        own_dot = input.new_zeros((batch, rows), dtype=total) if input.dtype == total else None
        for tile, _, h in hidden.tiles():
            square_sums += _square_sums(h)
            g = grads[:, :, tile].to(hidden.dtype)
            accumulate_compression(g, h)
            if own_dot is not None:
                own_dot += (pointwise(compress_transposed, g) * h).sum(2)
        response = GlobalResponse(square_sums, grn[0])
        hidden_dot = dot_of_hidden(output_hidden, compress) if own_dot is None else own_dot
        slope = response.slope(hidden_dot)
    for tile, preactivation, h in hidden.tiles() if needs_hidden or (needs.compress and grn is None) else ():
        g = grads[:, :, tile].to(hidden.dtype)
        if needs.compress and grn is None:
            accumulate_compression(g, h)
        if not needs_hidden:
            continue
        grad_hidden = pointwise(compress_transposed, g)  # [N, R, tile]
        if response is not None and slope is not None:
            gain, by_hidden = (t[:, :, None].to(g.dtype) for t in (response.gain, slope))
            grad_hidden = torch.addcmul(gain * grad_hidden, by_hidden, h)
        grad_preactivation = torch.ops.aten.gelu_backward(grad_hidden, preactivation)
        hidden_sums += grad_preactivation.sum(2, dtype=total)
        hidden_normalized += pointwise_weight_gradient(grad_preactivation, hidden.normalized(tile))
        if flat is not None:
            part = pointwise(expand_transposed, grad_preactivation)
            flat[:, :, tile] = part
            if own_sums is not None:
                own_sums[0] += part.sum(2)
                own_sums[1] += (part * hidden.normalized(tile)).sum(2)

    found: dict[str, torch.Tensor | None] = {}
    if needs.compress or grn is not None:
        beta = None if grn is None else grn[1]
        found |= compression_gradients(output_sums, output_hidden, compress, response, beta, hidden_dot)
    if needs_hidden:
        found["grad"] = grad
        found |= expansion_gradients(hidden_sums, hidden_normalized, expand, norm_weight, norm_bias)
        if own_sums is not None:
            found |= {"grad_sum": own_sums[0], "grad_dot_normalized": own_sums[1]}
    return InvertedBottleneckGradients(**found)


class _Hidden:
    """The hidden tensor, made tile by tile, as often as it is asked for.

    The affine map is applied on load, in float32: folded into 16-bit weights it would cancel where |mean| >> std.
    16-bit products run as they are on accelerators and in float32 on the CPU.
    """

    def __init__(
        self,
        input: torch.Tensor,
        mean: torch.Tensor,
        rstd: torch.Tensor,
        norm_weight: torch.Tensor,
        norm_bias: torch.Tensor,
        expand_weight: torch.Tensor,
        expand_bias: torch.Tensor | None,
    ) -> None:
        total = accumulation_dtype(input.dtype)
        self.dtype = total if input.device.type == "cpu" else input.dtype
        self.flat = input.flatten(2)
        self.scale, self.shift = (t[:, :, None] for t in group_norm_affine(mean, rstd, norm_weight, norm_bias))
        channels = input.shape[1]
        self.mean, self.rstd = per_channel(mean, channels)[:, :, None], per_channel(rstd, channels)[:, :, None]
        self.weight = expand_weight.to(self.dtype)
        self.bias = None if expand_bias is None else expand_bias.to(self.dtype)[:, None]
        elements = TILE_ELEMENTS.get(input.device.type, TILE_ELEMENTS_ELSEWHERE)
        self.step = max(elements // max(input.shape[0] * expand_weight.shape[0], 1), 256)

    def tiles(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Each tile's voxels, and the expansion before and after GELU, both [N, R, tile]."""
        voxels = self.flat.shape[2]
        for begin in range(0, voxels, self.step):
            tile = slice(begin, min(begin + self.step, voxels))
            values = self.flat[:, :, tile].to(self.scale.dtype)
            affine = torch.addcmul(self.shift, self.scale, values).to(self.dtype)
            preactivation = pointwise(self.weight, affine)
            if self.bias is not None:
                preactivation += self.bias
            yield tile, preactivation, F.gelu(preactivation)

    def normalized(self, tile: slice) -> torch.Tensor:
        """The tile of the input less its mean, over its deviation: [N, C, tile]."""
        return ((self.flat[:, :, tile].to(self.mean.dtype) - self.mean) * self.rstd).to(self.dtype)


def _square_sums(hidden: torch.Tensor) -> torch.Tensor:
    """Sum of the squares over the voxels, [N, R]."""
    return torch.linalg.vector_norm(hidden, dim=2, dtype=accumulation_dtype(hidden.dtype)).square()


def _applied(response: GlobalResponse, beta: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    gain, shift = response.gain[:, :, None], beta.to(hidden.dtype)[:, None]
    return torch.addcmul(shift, gain.to(hidden.dtype), hidden)
