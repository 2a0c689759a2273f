"""The inverted bottleneck of many channels, or in float32: products of a library, and kernels of ours between them.

Shapes: N samples, C channels, R hidden channels, O outputs, V voxels, and P, V rounded up to a multiple of eight: rows
of P voxels are what products are fast on, whatever V is. Norm weight and bias are folded into the expansion, mean and
deviation are not (csrc/cuda/inverted_bottleneck/products.h). Volumes in channels_last_3d become rows like any other,
and results go back to that format.

GRN sees the whole volume before any of it goes on, so that the hidden tensor is made twice, unless the forward has it
in one tile. Its gain goes into the compression, its shift into that one's bias; gradients are made of sums over the
voxels (csrc/cuda/inverted_bottleneck/global_response.h).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mednext_ops.backends.problem import (
    InvertedBottleneckGradients,
    InvertedBottleneckNeeds,
    Triple,
    memory_format_of,
)
from mednext_ops.formulas import over_samples, pointwise_weight_gradient

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
    stride: Triple = (1, 1, 1),
    front: Triple = (0, 0, 0),
    skip: torch.Tensor | None = None,
) -> torch.Tensor:
    """input [N, C, D, H, W] -> [N, O, D, H, W], memory format kept; ``native`` holds the operators.

    ``residual`` is added to every stride-th voxel; ``front`` planes of zeros come first, and ``skip`` is added to all.
    """
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
        compress, compress_bias = native.bottleneck_response(
            input, squares.total.view(input.shape[0], expand_weight.shape[0]), *grn, compress_weight, compress_bias
        )
    product = normalized.new_empty((input.shape[0], compress_weight.shape[0], normalized.shape[2]))
    for tile in tiles:
        if hidden is None or len(tiles) > 1:
            hidden = _product(folded, normalized[:, :, tile])
            native.bottleneck_hidden_(hidden, bias, None)
        _product(compress, hidden, product[:, :, tile])
    output = native.bottleneck_output(product, compress_bias, residual, skip, input.shape[2:], stride, front)
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
    found: dict[str, torch.Tensor | None] = {}
    slope = None
    if grn is not None:
        squares, output_sums, output_hidden = _response_sums(native, normalized, folded, bias, grads, tiles, input)
        compress, slope, *made = native.bottleneck_response_gradients(
            input, squares, output_sums, output_hidden, *grn, compress_weight
        )
        found |= dict(zip(("compress_weight", "compress_bias", "grn_gamma", "grn_beta"), made, strict=True))
    grad = torch.empty_like(normalized) if needs_grad else None
    sums, hidden_normalized, by_hidden = _Sum(), _Sum(), _Sum()
    for tile in tiles if needs_hidden or needs_compress else ():
        hidden = _product(folded, normalized[:, :, tile])
        summed = grads[:, :, tile] if needs_compress else None
        if needs_hidden:
            grad_hidden = _product(compress.mT, grads[:, :, tile])
            of_rows = None if slope is None else _voxels_of(tile, input)
            sums.add(native.bottleneck_hidden_gradient_(hidden, grad_hidden, bias, summed, slope, of_rows))
            hidden_normalized.add(pointwise_weight_gradient(grad_hidden, normalized[:, :, tile]))
            if grad is not None:
                _product(expand.t(), grad_hidden, grad[:, :, tile])
        else:
            sums.add(native.bottleneck_hidden_(hidden, bias, summed))
        if needs_compress:
            by_hidden.add(pointwise_weight_gradient(grads[:, :, tile], hidden))
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
        found["compress_weight"] = over_samples(by_hidden.total)
        found["compress_bias"] = over_samples(sums.total[hidden_rows:].view(batch, grads.shape[1]))
    return InvertedBottleneckGradients(**found)


def _response_sums(
    native: Any,
    normalized: torch.Tensor,
    folded: torch.Tensor,
    bias: torch.Tensor,
    grads: torch.Tensor,
    tiles: list[slice],
    input: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A pass for GRN's sums over the voxels: h^2 [N, R], the output's gradient g [N, O], and g h^T [N, O, R]."""
    sums, output_hidden = _Sum(), _Sum()
    for tile in tiles:
        hidden = _product(folded, normalized[:, :, tile])
        sums.add(native.bottleneck_hidden_(hidden, bias, grads[:, :, tile], _voxels_of(tile, input)))
        output_hidden.add(pointwise_weight_gradient(grads[:, :, tile], hidden))
    batch, hidden_channels, outputs = input.shape[0], folded.shape[0], grads.shape[1]
    squares, output_sums = sums.total.split((batch * hidden_channels, batch * outputs))
    return squares.view(batch, hidden_channels), output_sums.view(batch, outputs), output_hidden.total


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


def _product(weight: torch.Tensor, rows: torch.Tensor, output: torch.Tensor | None = None) -> torch.Tensor:
    """[A, B], or [N, A, B], times [N, B, P] -> [N, A, P], contiguous or in ``output``, whose rows are dense."""
    if rows.shape[0] == 1:
        matrix = weight if weight.dim() == 2 else weight[0]
        return torch.mm(matrix, rows[0], out=None if output is None else output[0])[None]
    return torch.bmm(weight.expand(rows.shape[0], -1, -1), rows, out=output)
