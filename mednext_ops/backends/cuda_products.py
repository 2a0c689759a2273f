"""The inverted bottleneck of many channels, or in float32: products of a library, and kernels of ours between them.

Shapes: N samples, C channels, R hidden channels, O outputs, V voxels, and P, V rounded up to a multiple of eight: rows
of P voxels are what products are fast on, whatever V is. Norm weight and bias are folded into the expansion, mean and
deviation are not (csrc/cuda/inverted_bottleneck/products.h). Volumes in channels_last_3d become rows like any other,
and results go back to that format.

GRN sees the whole volume before any of it goes on, so that the hidden tensor is made twice, unless the forward has it
in one tile. Its gain goes into the compression, its shift into that one's bias; its gradient takes the sums of
:class:`~mednext_ops.formulas.GlobalResponse`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mednext_ops.backends.problem import InvertedBottleneckGradients, InvertedBottleneckNeeds, memory_format_of
from mednext_ops.formulas import (
    GlobalResponse,
    compression_gradients,
    dot_of_hidden,
    over_samples,
    pointwise_weight_gradient,
    widest_dtype,
)

__all__ = ["backward", "forward"]

Grn = tuple[torch.Tensor, torch.Tensor]

#: Elements of a hidden tensor that exist at a time, twice in backward.
TILE_ELEMENTS = 2**26


def forward(
    native: Any,
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
    """input [N, C, D, H, W] -> [N, O, D, H, W], memory format kept; ``native`` holds the operators."""
    folded, bias, _, compress = native.bottleneck_weights(
        input, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight
    )
    normalized = native.bottleneck_normalized(input, mean, rstd)
    tiles = list(_tiles(normalized, expand_weight.shape[0]))
    hidden = None
    if grn is not None:
        squares = _Sum()
        for tile in tiles:
            hidden = _product(folded, normalized[:, :, tile])
            squares.add(native.bottleneck_hidden_(hidden, bias, None, _voxels_of(tile, input)))
        gamma, beta = grn
        response = GlobalResponse(squares.total.view(input.shape[0], -1), gamma)
        compress = _with_gain(compress_weight, response, input.dtype)
        wide = widest_dtype(input.device)  # libraries add thousands of hidden channels one after the other
        shift = torch.mv(compress_weight.to(wide), beta.to(wide))
        compress_bias = (shift if compress_bias is None else shift + compress_bias).float()
    parts = []
    for tile in tiles:
        if hidden is None or len(tiles) > 1:
            hidden = _product(folded, normalized[:, :, tile])
            native.bottleneck_hidden_(hidden, bias, None)
        parts.append(_product(compress, hidden))
    product = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    output = native.bottleneck_output(product, compress_bias, residual, None, input.shape[2:], [1, 1, 1], [0, 0, 0])
    return output.contiguous(memory_format=memory_format_of(input))


def backward(
    native: Any,
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
    """The gradients that ``needs`` names, from the forward's inputs alone; those of parameters in float32.

    With GRN those of the compression and of GRN's parameters come always: they are made of the same sums.
    """
    batch, voxels, memory_format = input.shape[0], input.shape[2:].numel(), memory_format_of(input)
    folded, bias, expand, compress = native.bottleneck_weights(
        input, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight
    )
    normalized = native.bottleneck_normalized(input, mean, rstd)
    pitch = normalized.shape[2]
    if pitch == voxels and grad_output.is_contiguous() and grad_output.data_ptr() % 16 == 0:
        grads = grad_output.flatten(2)
    else:
        grads = native.packed_voxels(grad_output, True)
    needs_hidden = needs.input or needs.norm or needs.expand
    needs_compress = needs.compress and grn is None  # with GRN before the loop
    # In float32 what is gained by the sums over the hidden channels is lost to cancellation among them: the sums of the
    # norm's gradient are taken over that gradient itself, as PyTorch's norm does.
    own_sums = input.dtype == torch.float32 and (needs.input or needs.norm)
    needs_grad = needs.input or own_sums
    tiles = list(_tiles(normalized, expand_weight.shape[0]))
    whole = len(tiles) == 1
    found: dict[str, torch.Tensor | None] = {}
    slope = None
    if grn is not None:
        made, response, slope = _response(native, normalized, folded, bias, grads, tiles, input, compress_weight, grn)
        found |= made
        compress = _with_gain(compress_weight, response, input.dtype)
    grad = torch.empty_like(normalized) if needs_grad and not whole else None
    sums, hidden_normalized, output_hidden = _Sum(), _Sum(), _Sum()
    for tile in tiles if needs_hidden or needs_compress else ():
        hidden = _product(folded, normalized[:, :, tile])
        summed = grads[:, :, tile] if needs_compress else None
        if needs_hidden:
            grad_hidden = _product(compress.mT, grads[:, :, tile])
            of_rows = None if slope is None else _voxels_of(tile, input)
            sums.add(native.bottleneck_hidden_gradient_(hidden, grad_hidden, bias, summed, slope, of_rows))
            hidden_normalized.add(pointwise_weight_gradient(grad_hidden, normalized[:, :, tile]))
            if needs_grad:
                part = _product(expand.t(), grad_hidden)
                if grad is None:
                    grad = part
                else:
                    grad[:, :, tile] = part
        else:
            sums.add(native.bottleneck_hidden_(hidden, bias, summed))
        if needs_compress:
            output_hidden.add(pointwise_weight_gradient(grads[:, :, tile], hidden))
    hidden_rows = batch * expand_weight.shape[0] if needs_hidden else 0  # those of the output lie behind them
    if needs_hidden:
        names = ("grad_sum", "grad_dot_normalized", "expand_weight", "expand_bias")
        hidden_sums = sums.total[:hidden_rows].view(batch, expand_weight.shape[0])
        made = native.bottleneck_expansion_gradients(
            hidden_sums, hidden_normalized.total, norm_weight, norm_bias, expand_weight
        )
        found |= dict(zip(names, made, strict=True))
    if grad is not None:
        dense = grad if pitch == voxels else native.packed_voxels(grad[:, :, None, None, :voxels], False)
        dense = dense.unflatten(2, input.shape[2:]).contiguous(memory_format=memory_format)
        found["grad"] = dense if needs.input else None
        if own_sums:
            of_norm = native.group_norm_backward(dense, input, mean, rstd, norm_weight, norm_bias, False)[1:]
            found |= dict(zip(("grad_sum", "grad_dot_normalized"), of_norm, strict=True))
    if needs_compress:
        found["compress_weight"] = over_samples(output_hidden.total)
        found["compress_bias"] = over_samples(sums.total[hidden_rows:].view(batch, grads.shape[1]))
    return InvertedBottleneckGradients(**found)


def _response(
    native: Any,
    normalized: torch.Tensor,
    folded: torch.Tensor,
    bias: torch.Tensor,
    grads: torch.Tensor,
    tiles: list[slice],
    input: torch.Tensor,
    compress_weight: torch.Tensor,
    grn: Grn,
) -> tuple[dict[str, torch.Tensor], GlobalResponse, torch.Tensor]:
    """A pass for GRN's sums: the gradients behind it, the response, and the slope [N, R] of the gradient before it."""
    sums, output_hidden = _Sum(), _Sum()
    for tile in tiles:
        hidden = _product(folded, normalized[:, :, tile])
        sums.add(native.bottleneck_hidden_(hidden, bias, grads[:, :, tile], _voxels_of(tile, input)))
        output_hidden.add(pointwise_weight_gradient(grads[:, :, tile], hidden))
    gamma, beta = grn
    batch, rows = input.shape[0], input.shape[0] * folded.shape[0]
    response = GlobalResponse(sums.total[:rows].view(batch, -1), gamma)
    output_sums = sums.total[rows:].view(batch, -1)
    wide = compress_weight.float()
    dot = dot_of_hidden(output_hidden.total, wide)
    made = compression_gradients(output_sums, output_hidden.total, wide, response, beta, dot)
    return made, response, response.slope(dot)


def _with_gain(compress_weight: torch.Tensor, response: GlobalResponse, dtype: torch.dtype) -> torch.Tensor:
    """[N, O, R]: GRN's gain of each sample in the compression, rounded once."""
    return (compress_weight.float() * response.gain[:, None]).to(dtype)


def _voxels_of(tile: slice, input: torch.Tensor) -> int:
    """How many voxels of a tile there are: the last one's rows go on to a multiple of eight."""
    return max(min(tile.stop, input.shape[2:].numel()) - tile.start, 0)


class _Sum:
    """A sum over tiles; of one tile it is that tile's own tensor."""

    total: torch.Tensor

    def __init__(self) -> None:
        self._empty = True

    def add(self, part: torch.Tensor) -> None:
        self.total = part if self._empty else self.total + part
        self._empty = False


def _tiles(rows: torch.Tensor, hidden: int) -> Iterator[slice]:
    """Slices of the last dimension of ``rows`` [N, C, P], at least one, whose hidden tensor is of bounded size."""
    batch, _, pitch = rows.shape
    step = max(TILE_ELEMENTS // max(batch * hidden, 1) // 8, 1) * 8
    for begin in range(0, max(pitch, 1), step):
        yield slice(begin, min(begin + step, pitch))


def _product(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[A, B], or [N, A, B], times [N, B, P] -> [N, A, P], contiguous."""
    if rows.shape[0] == 1:
        return torch.mm(weight if weight.dim() == 2 else weight[0], rows[0])[None]
    return torch.bmm(weight.expand(rows.shape[0], -1, -1), rows)
