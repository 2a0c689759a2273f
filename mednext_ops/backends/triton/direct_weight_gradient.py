"""The weight gradient of a depthwise convolution, any odd kernel, stride, padding and dilation, in float32.

``grad_weight[k] = sum over j of small[j] large[j S + k D - P]``: of a convolution the output's gradient is small and
the input large, of a transposed one the other way round. A program keeps a tile of [BV voxels, BC channels] of the
small tensor in registers and meets all taps with it, each a shifted tile of the large one; the sum over the tile is its
part of that tap.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mednext_ops.backends.triton.numerics import column_sums

__all__ = ["direct_weight_gradient"]


@triton.jit
def _read(tensor, affine_output, place, mask, a, b, c):
    """A tile of a tensor, or of the gradient that a GroupNorm left unwritten, as float32 and zero where masked."""
    value = tl.load(tensor + place, mask, 0.0).to(tl.float32)
    if affine_output is not None:
        other = tl.load(affine_output + place, mask, 0.0).to(tl.float32)
        value = tl.where(mask, a * value + (b * other + c), 0.0)
    return value


@triton.jit
def direct_weight_gradient(
    small,
    large,
    affine_output,  # with scale, slope, offset [N, C]: belongs to the gradient, whichever of the two that is; or None
    scale,
    slope,
    offset,
    workspace,  # [C, KD, KH, KW, N, tiles]
    batch,
    channels,
    small_d,
    small_h,
    small_w,
    large_d,
    large_h,
    large_w,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SD: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DD: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    LARGE_IS_GRADIENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
):
    small_voxels = tl.cast(small_d, INDEX) * small_h * small_w
    large_voxels = tl.cast(large_d, INDEX) * large_h * large_w
    tiles = tl.cast(tl.cdiv(small_voxels, BV), tl.int32)
    channel_blocks = tl.cdiv(channels, BC)
    program = tl.program_id(0)
    tile = program % tiles
    channel = ((program // tiles) % channel_blocks) * BC + tl.arange(0, BC)
    sample = (program // tiles) // channel_blocks
    there = channel < channels

    voxel = tl.cast(tile, INDEX) * BV + tl.arange(0, BV)
    jw = (voxel % small_w).to(tl.int32)
    jh = ((voxel // small_w) % small_h).to(tl.int32)
    jd = ((voxel // small_w) // small_h).to(tl.int32)
    inside = voxel < small_voxels
    if CHANNELS_LAST:
        stride, small_channel, large_channel = channels, channel[None, :], channel[None, :]
    else:
        stride = 1
        small_channel, large_channel = channel[None, :] * small_voxels, channel[None, :] * large_voxels
    small += tl.cast(sample, tl.int64) * channels * small_voxels
    large += tl.cast(sample, tl.int64) * channels * large_voxels
    a, b, c = 1.0, 0.0, 0.0
    small_other = None
    large_other = None
    if affine_output is not None:
        row = tl.cast(sample, tl.int64) * channels + channel
        a = tl.load(scale + row, there, 0.0)[None, :]
        b = tl.load(slope + row, there, 0.0)[None, :]
        c = tl.load(offset + row, there, 0.0)[None, :]
        if LARGE_IS_GRADIENT:
            large_other = affine_output + tl.cast(sample, tl.int64) * channels * large_voxels
        else:
            small_other = affine_output + tl.cast(sample, tl.int64) * channels * small_voxels

    mask = inside[:, None] & there[None, :]
    held = _read(small, small_other, voxel[:, None] * stride + small_channel, mask, a, b, c)
    parts = tl.cast(batch, tl.int64) * tiles
    workspace += channel * (KD * KH * KW * parts) + sample * tiles + tile
    column = (jw * SW)[:, None]
    for kd in range(KD):
        zd = jd * SD + (kd * DD - PD)
        for kh in range(KH):
            zh = jh * SH + (kh * DH - PH)
            in_row = (inside & (zd >= 0) & (zd < large_d) & (zh >= 0) & (zh < large_h))[:, None] & there[None, :]
            row_place = ((zd.to(INDEX) * large_h + zh) * large_w)[:, None] * stride + large_channel
            row_parts = workspace + (kd * KH + kh) * KW * parts
            for kw in tl.static_range(KW):
                zw = column + (kw * DW - PW)
                mask = in_row & (zw >= 0) & (zw < large_w)
                met = _read(large, large_other, row_place + zw.to(INDEX) * stride, mask, a, b, c)
                tl.store(row_parts + kw * parts, column_sums(held * met), there)
