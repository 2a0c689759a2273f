"""The inverted bottleneck of many channels, or in float32: products of a library, and kernels of ours between them.

Shapes: N samples, C channels, R hidden channels, O outputs, V voxels, and P, V rounded up to a multiple of eight: rows
of P voxels are what products are fast on, whatever V is. Norm weight and bias are folded into the expansion, mean and
deviation are not (csrc/cuda/inverted_bottleneck/products.h).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mednext_ops.backends.problem import InvertedBottleneckGradients, InvertedBottleneckNeeds
from mednext_ops.formulas import over_samples, pointwise_weight_gradient

__all__ = ["backward", "forward"]

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
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """input [N, C, D, H, W], contiguous -> [N, O, D, H, W]; ``native`` holds the operators."""
    folded, bias, _, compress = native.bottleneck_weights(
        input, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight
    )
    normalized = native.bottleneck_normalized(input, mean, rstd)
    parts = []
    for tile in _tiles(normalized, expand_weight.shape[0]):
        hidden = _product(folded, normalized[:, :, tile])
        native.bottleneck_hidden_(hidden, bias, None)
        parts.append(_product(compress, hidden))
    product = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    return native.bottleneck_output(product, compress_bias, residual, None, input.shape[2:], [1, 1, 1], [0, 0, 0])


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
    needs: InvertedBottleneckNeeds,
) -> InvertedBottleneckGradients:
    """The gradients that ``needs`` names, from the forward's inputs alone; those of parameters in float32."""
    folded, bias, expand, compress = native.bottleneck_weights(
        input, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight
    )
    normalized = native.bottleneck_normalized(input, mean, rstd)
    voxels, pitch = input.shape[2:].numel(), normalized.shape[2]
    if pitch == voxels and grad_output.is_contiguous() and grad_output.data_ptr() % 16 == 0:
        grads = grad_output.flatten(2)
    else:
        grads = native.packed_voxels(grad_output, True)
    needs_hidden = needs.input or needs.norm or needs.expand
    # In float32 what is gained by the sums over the hidden channels is lost to cancellation among them: the sums of the
    # norm's gradient are taken over that gradient itself, as PyTorch's norm does.
    own_sums = input.dtype == torch.float32 and (needs.input or needs.norm)
    needs_grad = needs.input or own_sums
    tiles = list(_tiles(normalized, expand_weight.shape[0]))
    whole = len(tiles) == 1
    grad = torch.empty_like(normalized) if needs_grad and not whole else None
    sums, hidden_normalized, output_hidden = _Sum(), _Sum(), _Sum()
    for tile in tiles if needs_hidden or needs.compress else ():
        hidden = _product(folded, normalized[:, :, tile])
        summed = grads[:, :, tile] if needs.compress else None
        if needs_hidden:
            grad_hidden = _product(compress.t(), grads[:, :, tile])
            sums.add(native.bottleneck_hidden_gradient_(hidden, grad_hidden, bias, summed))
            hidden_normalized.add(pointwise_weight_gradient(grad_hidden, normalized[:, :, tile]))
            if needs_grad:
                part = _product(expand.t(), grad_hidden)
                if grad is None:
                    grad = part
                else:
                    grad[:, :, tile] = part
        else:
            sums.add(native.bottleneck_hidden_(hidden, bias, summed))
        if needs.compress:
            output_hidden.add(pointwise_weight_gradient(grads[:, :, tile], hidden))
    found: dict[str, torch.Tensor | None] = {}
    batch = input.shape[0]
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
        dense = dense.unflatten(2, input.shape[2:])
        found["grad"] = dense if needs.input else None
        if own_sums:
            of_norm = native.group_norm_backward(dense, input, mean, rstd, norm_weight, norm_bias, False)[1:]
            found |= dict(zip(("grad_sum", "grad_dot_normalized"), of_norm, strict=True))
    if needs.compress:
        found["compress_weight"] = over_samples(output_hidden.total)
        found["compress_bias"] = over_samples(sums.total[hidden_rows:].view(batch, grads.shape[1]))
    return InvertedBottleneckGradients(**found)


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
    """[A, B] times [N, B, P] -> [N, A, P], contiguous."""
    if rows.shape[0] == 1:
        return torch.mm(weight, rows[0])[None]
    return torch.bmm(weight.expand(rows.shape[0], -1, -1), rows)
