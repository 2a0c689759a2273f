"""The inverted bottleneck's kernels: voxels are a tile's rows, so that one product's result is the next's left side.

```
            [BV, C]                      [BV, BR]                    [BV, O]
    n = gamma (y - mean) rstd + beta     h = gelu(n W1^T + b1)       sums += h W2^T       for each BR hidden channels
```

The hidden tensor exists as tiles in registers only. The backward makes it again, in two kernels: one sums over the
hidden channels (the gradient of n), the other over the voxels (the gradients of the weights); one kernel for both would
have to keep a sum of either kind. Channels are filled up to a power of two, CP and OP, with zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mednext_ops.backends.triton.numerics import column_sums, gelu, gelu_slope, product, rounded

__all__ = ["forward", "normalized_gradient", "weight_gradients"]


@triton.jit
def _places(
    tile, sample, channels, voxels, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, BV: tl.constexpr, P: tl.constexpr
):
    """Offsets [BV, P] of a tile of voxels of a sample, all channels, and where they lie within the tensor."""
    voxel = tl.cast(tile, INDEX) * BV + tl.arange(0, BV)
    channel = tl.arange(0, P)
    if CHANNELS_LAST:
        place = voxel[:, None] * channels + channel[None, :]
    else:
        place = voxel[:, None] + channel[None, :] * tl.cast(voxels, INDEX)
    mask = (voxel < voxels)[:, None] & (channel < channels)[None, :]
    return tl.cast(sample, tl.int64) * channels * voxels + place, mask


@triton.jit
def _unit(input, mean, rstd, sample, channels, place, mask, P: tl.constexpr):
    """(y - mean) rstd, [BV, P] in float32, zero beyond the tensor."""
    channel = tl.arange(0, P)
    row = tl.cast(sample, tl.int64) * channels + channel
    centre = tl.load(mean + row, channel < channels, 0.0)[None, :]
    scale = tl.load(rstd + row, channel < channels, 0.0)[None, :]
    return tl.where(mask, (tl.load(input + place, mask, 0.0).to(tl.float32) - centre) * scale, 0.0)


@triton.jit
def _normalized(unit, norm_weight, norm_bias, channels, dtype: tl.constexpr, P: tl.constexpr):
    """gamma unit + beta, in the type of the products. Not zero beyond the last voxel: what follows is masked."""
    channel = tl.arange(0, P)
    gamma = tl.load(norm_weight + channel, channel < channels, 0.0).to(tl.float32)
    beta = tl.load(norm_bias + channel, channel < channels, 0.0).to(tl.float32)
    return rounded(unit * gamma[None, :] + beta[None, :], dtype)


@triton.jit
def _matrix(weight, row, rows, column, columns, row_stride, column_stride):
    """The part [row, column] of a matrix that lies in memory with these strides, zero beyond it."""
    place = row[:, None] * row_stride + column[None, :] * column_stride
    return tl.load(weight + place, (row < rows)[:, None] & (column < columns)[None, :], 0.0)


@triton.jit
def forward(
    input,
    mean,  # [N, C], as rstd
    rstd,
    norm_weight,  # [C], as norm_bias
    norm_bias,
    expand,  # [R, C] in the input's type
    expand_bias,  # [R] or None
    compress,  # [O, R] in the input's type
    bias,  # [O] or None
    gain,  # GRN's, [N, R] float32, or None
    residual,  # [N, O, voxels] or None
    output,
    channels,
    hidden,
    outputs,
    voxels,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    CP: tl.constexpr,
    OP: tl.constexpr,
    BV: tl.constexpr,
    BR: tl.constexpr,
):
    dtype: tl.constexpr = input.dtype.element_ty
    tiles = tl.cast(tl.cdiv(voxels, BV), tl.int32)
    tile, sample = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    place, mask = _places(tile, sample, channels, voxels, CHANNELS_LAST, INDEX, BV, CP)
    unit = _unit(input, mean, rstd, sample, channels, place, mask, CP)
    normalized = _normalized(unit, norm_weight, norm_bias, channels, dtype, CP)
    channel, out_channel = tl.arange(0, CP), tl.arange(0, OP)
    sums = tl.zeros((BV, OP), tl.float32)
    for first in range(0, hidden, BR):
        row = first + tl.arange(0, BR)
        expanded = product(
            normalized, _matrix(expand, channel, channels, row, hidden, 1, channels), tl.zeros((BV, BR), tl.float32)
        )
        if expand_bias is not None:
            expanded += tl.load(expand_bias + row, row < hidden, 0.0).to(tl.float32)[None, :]
        h = gelu(expanded)
        if gain is not None:
            h *= tl.load(gain + tl.cast(sample, tl.int64) * hidden + row, row < hidden, 0.0)[None, :]
        sums = product(rounded(h, dtype), _matrix(compress, row, hidden, out_channel, outputs, 1, hidden), sums)
    if bias is not None:
        sums += tl.load(bias + out_channel, out_channel < outputs, 0.0).to(tl.float32)[None, :]
    place, mask = _places(tile, sample, outputs, voxels, CHANNELS_LAST, INDEX, BV, OP)
    if residual is not None:
        sums += tl.load(residual + place, mask, 0.0).to(tl.float32)
    tl.store(output + place, rounded(sums, dtype), mask)


@triton.jit
def normalized_gradient(
    grad_output,
    input,
    mean,
    rstd,
    norm_weight,
    norm_bias,
    expand,
    expand_bias,
    compress,
    gain,  # GRN: the gradient of h is gain * grad + slope * h, [N, R] float32; or None, both
    slope,
    grad,  # [N, C, voxels]: the gradient of n
    channels,
    hidden,
    outputs,
    voxels,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    CP: tl.constexpr,
    OP: tl.constexpr,
    BV: tl.constexpr,
    BR: tl.constexpr,
):
    dtype: tl.constexpr = input.dtype.element_ty
    tiles = tl.cast(tl.cdiv(voxels, BV), tl.int32)
    tile, sample = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    out_place, out_mask = _places(tile, sample, outputs, voxels, CHANNELS_LAST, INDEX, BV, OP)
    grads = tl.load(grad_output + out_place, out_mask, 0.0)
    place, mask = _places(tile, sample, channels, voxels, CHANNELS_LAST, INDEX, BV, CP)
    unit = _unit(input, mean, rstd, sample, channels, place, mask, CP)
    normalized = _normalized(unit, norm_weight, norm_bias, channels, dtype, CP)
    channel, out_channel = tl.arange(0, CP), tl.arange(0, OP)
    sums = tl.zeros((BV, CP), tl.float32)
    for first in range(0, hidden, BR):
        row = first + tl.arange(0, BR)
        expanded = product(
            normalized, _matrix(expand, channel, channels, row, hidden, 1, channels), tl.zeros((BV, BR), tl.float32)
        )
        if expand_bias is not None:
            expanded += tl.load(expand_bias + row, row < hidden, 0.0).to(tl.float32)[None, :]
        before = product(
            grads, _matrix(compress, out_channel, outputs, row, hidden, hidden, 1), tl.zeros((BV, BR), tl.float32)
        )
        if gain is not None:
            at = tl.cast(sample, tl.int64) * hidden + row
            before = before * tl.load(gain + at, row < hidden, 0.0)[None, :]
            before += gelu(expanded) * tl.load(slope + at, row < hidden, 0.0)[None, :]
        before *= gelu_slope(expanded)
        sums = product(rounded(before, dtype), _matrix(expand, row, hidden, channel, channels, channels, 1), sums)
    tl.store(grad + place, rounded(sums, dtype), mask)


@triton.jit
def weight_gradients(
    grad_output,  # None where only the squares are asked for
    input,
    mean,
    rstd,
    norm_weight,
    norm_bias,
    expand,
    expand_bias,
    compress,
    gain,
    slope,
    hidden_normalized,  # [N, R, C, parts]: sum over voxels of the expansion's gradient times unit; or None
    hidden_sums,  # [N, R, parts]: that gradient's sum; or None
    output_hidden,  # [N, R, O, parts]: sum of h times the output's gradient; or None
    output_sums,  # [N, O, parts]: that gradient's sum; or None
    squares,  # [N, R, parts]: sum of h squared; or None
    channels,
    hidden,
    outputs,
    voxels,
    parts,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    CP: tl.constexpr,
    OP: tl.constexpr,
    BV: tl.constexpr,
    BR: tl.constexpr,
):
    """A program has BR hidden channels and walks over every parts-th tile of BV voxels of a sample."""
    dtype: tl.constexpr = input.dtype.element_ty
    tiles = tl.cast(tl.cdiv(voxels, BV), tl.int32)
    row_blocks = tl.cdiv(hidden, BR)
    part = tl.program_id(0) % parts
    row_block = (tl.program_id(0) // parts) % row_blocks
    sample = (tl.program_id(0) // parts) // row_blocks
    row = row_block * BR + tl.arange(0, BR)
    there = row < hidden
    at = tl.cast(sample, tl.int64) * hidden + row
    channel, out_channel = tl.arange(0, CP), tl.arange(0, OP)
    expansion = _matrix(expand, channel, channels, row, hidden, 1, channels)
    shift = tl.zeros((BR,), tl.float32)
    if expand_bias is not None:
        shift = tl.load(expand_bias + row, there, 0.0).to(tl.float32)
    if hidden_sums is not None:
        compression = _matrix(compress, out_channel, outputs, row, hidden, hidden, 1)
        if gain is not None:
            row_gain, row_slope = tl.load(gain + at, there, 0.0), tl.load(slope + at, there, 0.0)
        by_unit = tl.zeros((BR, CP), tl.float32)
        by_one = tl.zeros((BR,), tl.float32)
    if output_hidden is not None:
        by_output = tl.zeros((BR, OP), tl.float32)
        by_grad = tl.zeros((OP,), tl.float32)
    if squares is not None:
        by_itself = tl.zeros((BR,), tl.float32)
    for tile in range(part, tiles, parts):
        place, mask = _places(tile, sample, channels, voxels, CHANNELS_LAST, INDEX, BV, CP)
        unit = _unit(input, mean, rstd, sample, channels, place, mask, CP)
        normalized = _normalized(unit, norm_weight, norm_bias, channels, dtype, CP)
        expanded = product(normalized, expansion, tl.zeros((BV, BR), tl.float32)) + shift[None, :]
        inside = (tl.cast(tile, INDEX) * BV + tl.arange(0, BV) < voxels)[:, None]
        h = tl.where(inside, gelu(expanded), 0.0)
        if grad_output is not None:
            out_place, out_mask = _places(tile, sample, outputs, voxels, CHANNELS_LAST, INDEX, BV, OP)
            grads = tl.load(grad_output + out_place, out_mask, 0.0)
        if hidden_sums is not None:
            before = product(grads, compression, tl.zeros((BV, BR), tl.float32))
            if gain is not None:
                before = before * row_gain[None, :] + h * row_slope[None, :]
            stored = rounded(before * gelu_slope(expanded), dtype)
            by_one += column_sums(stored.to(tl.float32))
            by_unit = product(tl.trans(stored), rounded(unit, dtype), by_unit)
        if output_hidden is not None:
            by_output = product(tl.trans(rounded(h, dtype)), grads, by_output)
            by_grad += column_sums(grads.to(tl.float32))
        if squares is not None:
            by_itself += column_sums(h * h)
    if hidden_sums is not None:
        tl.store(hidden_sums + at * parts + part, by_one, there)
        place = (at[:, None] * channels + channel[None, :]) * parts + part
        tl.store(hidden_normalized + place, by_unit, there[:, None] & (channel < channels)[None, :])
    if output_hidden is not None:
        place = (at[:, None] * outputs + out_channel[None, :]) * parts + part
        tl.store(output_hidden + place, by_output, there[:, None] & (out_channel < outputs)[None, :])
        first = (tl.cast(sample, tl.int64) * outputs + out_channel) * parts + part
        tl.store(output_sums + first, by_grad, out_channel < tl.where(row_block == 0, outputs, 0))
    if squares is not None:
        tl.store(squares + at * parts + part, by_itself, there)
