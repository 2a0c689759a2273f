"""Depthwise convolution and its data gradient, any odd kernel, stride, padding and dilation: one tap after the other.

A program has a tile of [BV voxels, BC channels] of the destination, BC = 1 in NCDHW, where voxels are neighbours.

Two readings, one loop. *Gather* (a convolution, and the data gradient of a transposed one): destination j reads the
source at ``j S + k D - P``. *Scatter* (the other two): destination o reads it at ``(o + P - k D) / S``, where that
divides. So the destination is cut into S x S x S classes of equal remainder r, ``o = j S + r``; a program has voxels of
one class, for which a tap is there or is not, and where it is, voxel j reads the source at ``j + (r + P - k D) / S``:
no tap is tried in vain.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mednext_ops.backends.triton.numerics import column_sums, rounded

__all__ = ["direct_convolution"]


@triton.jit
def direct_convolution(
    source,
    affine_output,  # with scale, slope, offset [N, C]: the gradient that a GroupNorm left unwritten; else None
    scale,
    slope,
    offset,
    weight,  # [C, KD, KH, KW]
    bias,  # [C] or None
    add,  # of the destination's shape, or None
    destination,
    moments,  # [N, C, parts, 3]: count, mean, sum of squared deviations of what a program stored; or None
    channels,
    source_d,
    source_h,
    source_w,
    destination_d,
    destination_h,
    destination_w,
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
    SCATTER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,  # type of an offset within a sample
    BV: tl.constexpr,
    BC: tl.constexpr,
):
    # Voxels of a class: all of them in a gather, one of each S x S x S in a scatter.
    CD: tl.constexpr = SD if SCATTER else 1
    CH: tl.constexpr = SH if SCATTER else 1
    CW: tl.constexpr = SW if SCATTER else 1
    extent_d, extent_h, extent_w = tl.cdiv(destination_d, CD), tl.cdiv(destination_h, CH), tl.cdiv(destination_w, CW)
    tiles = tl.cast(tl.cdiv(tl.cast(extent_d, INDEX) * extent_h * extent_w, BV), tl.int32)
    parts = tiles * (CD * CH * CW)
    channel_blocks = tl.cdiv(channels, BC)

    program = tl.program_id(0)
    part = program % parts
    channel_block = (program // parts) % channel_blocks
    sample = (program // parts) // channel_blocks
    tile, remainder = part % tiles, part // tiles
    rw = remainder % CW
    rh = (remainder // CW) % CH
    rd = remainder // (CW * CH)

    voxel = tl.cast(tile, INDEX) * BV + tl.arange(0, BV)
    jw = (voxel % extent_w).to(tl.int32)
    jh = ((voxel // extent_w) % extent_h).to(tl.int32)
    jd = ((voxel // extent_w) // extent_h).to(tl.int32)
    od, oh, ow = jd * CD + rd, jh * CH + rh, jw * CW + rw
    inside = (od < destination_d) & (oh < destination_h) & (ow < destination_w)
    channel = channel_block * BC + tl.arange(0, BC)
    there = channel < channels

    source_voxels = tl.cast(source_d, INDEX) * source_h * source_w
    destination_voxels = tl.cast(destination_d, INDEX) * destination_h * destination_w
    if CHANNELS_LAST:
        voxel_stride, source_channel, destination_channel = channels, channel[None, :], channel[None, :]
    else:
        voxel_stride = 1
        source_channel, destination_channel = channel[None, :] * source_voxels, channel[None, :] * destination_voxels
    source += tl.cast(sample, tl.int64) * channels * source_voxels
    if affine_output is not None:
        affine_output += tl.cast(sample, tl.int64) * channels * source_voxels
        row = tl.cast(sample, tl.int64) * channels + channel
        a = tl.load(scale + row, there, 0.0)[None, :]
        b = tl.load(slope + row, there, 0.0)[None, :]
        c = tl.load(offset + row, there, 0.0)[None, :]

    column = (jw if SCATTER else jw * SW)[:, None]
    sums = tl.zeros((BV, BC), tl.float32)
    for kd in range(KD):
        position_d = rd + PD - kd * DD if SCATTER else kd * DD - PD
        for kh in range(KH):
            position_h = rh + PH - kh * DH if SCATTER else kh * DH - PH
            divides = True
            if SCATTER:
                divides = (position_d % SD == 0) & (position_h % SH == 0)
            if divides:
                if SCATTER:
                    zd, zh = jd + position_d // SD, jh + position_h // SH
                else:
                    zd, zh = jd * SD + position_d, jh * SH + position_h
                in_row = (inside & (zd >= 0) & (zd < source_d) & (zh >= 0) & (zh < source_h))[:, None] & there[None, :]
                row_place = ((zd.to(INDEX) * source_h + zh) * source_w)[:, None] * voxel_stride + source_channel
                row_taps = weight + channel * (KD * KH * KW) + (kd * KH + kh) * KW
                for kw in tl.static_range(KW):
                    position_w = rw + PW - kw * DW if SCATTER else kw * DW - PW
                    divides_w = True
                    if SCATTER:
                        divides_w = position_w % SW == 0
                    if divides_w:
                        zw = column + (position_w // SW if SCATTER else position_w)
                        mask = in_row & (zw >= 0) & (zw < source_w)
                        place = row_place + zw.to(INDEX) * voxel_stride
                        value = tl.load(source + place, mask, 0.0).to(tl.float32)
                        if affine_output is not None:
                            other = tl.load(affine_output + place, mask, 0.0).to(tl.float32)
                            value = tl.where(mask, a * value + (b * other + c), 0.0)
                        sums += value * tl.load(row_taps + kw, there, 0.0).to(tl.float32)[None, :]

    if bias is not None:
        sums += tl.load(bias + channel, there, 0.0).to(tl.float32)[None, :]
    mask = inside[:, None] & there[None, :]
    place = ((od.to(INDEX) * destination_h + oh) * destination_w + ow)[:, None] * voxel_stride + destination_channel
    start = tl.cast(sample, tl.int64) * channels * destination_voxels
    if add is not None:
        sums += tl.load(add + start + place, mask, 0.0).to(tl.float32)
    stored = rounded(sums, destination.dtype.element_ty)
    tl.store(destination + start + place, stored, mask)
    if moments is not None:
        count = tl.sum(inside.to(tl.int32), 0).to(tl.float32)
        value = tl.where(mask, stored.to(tl.float32), 0.0)
        mean = column_sums(value) / tl.maximum(count, 1.0)
        deviation = tl.where(mask, value - mean[None, :], 0.0)
        moments += ((tl.cast(sample, tl.int64) * channels + channel) * parts + part) * 3
        tl.store(moments, tl.zeros_like(mean) + count, there)
        tl.store(moments + 1, mean, there)
        tl.store(moments + 2, column_sums(deviation * deviation), there)
