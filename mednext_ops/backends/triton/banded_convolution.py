"""Depthwise convolution at stride 1 in 16 bits and NCDHW, and its data gradient, as products on tensor cores.

A row of the output is a product of overlapping windows of an input row with a band that holds a row of taps, an octet
of outputs a window (docs/kernels/banded_convolution.md has the picture):

```
window[m, kappa] = source[8 m + kappa - 4]         [BV / 8, 16], a row m an octet of the destination
band[kappa, n]   = taps[kappa - n + PW - 4] or 0   [16, 8]
window @ band    = what this row of taps adds to destination 8 m + n
```

A program has BV voxels of every plane of one channel and walks along D, BD planes far. It keeps the sums of the KD
planes that an input plane adds to; one of them is complete after each, is stored, and the others move up. So a window
is loaded KH times and multiplied KD KH times. The bands are made once and stay in shared memory or registers.
"""

# Triton unrolls the loops that make tuples; to a type checker their length changes.
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

from mednext_ops.backends.triton.numerics import column_sums, product, rounded

__all__ = ["OCTET", "SHIFT", "WINDOW", "banded_convolution"]

#: Outputs and inputs of a window, and how far to the left of its outputs it begins: a product takes 16 at least.
OCTET = tl.constexpr(8)
WINDOW = tl.constexpr(16)
SHIFT = tl.constexpr(4)


@triton.jit
def _band(weight, kd: tl.constexpr, kh: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
          PW: tl.constexpr, REVERSED: tl.constexpr, dtype: tl.constexpr):  # fmt: skip
    """The band of a row of taps, or of the kernel's mirror image."""
    tap = tl.arange(0, WINDOW)[:, None] - tl.arange(0, OCTET)[None, :] + (PW - SHIFT)
    there = (tap >= 0) & (tap < KW)
    row: tl.constexpr = (KD - 1 - kd) * KH + (KH - 1 - kh) if REVERSED else kd * KH + kh
    place = row * KW + (KW - 1 - tap if REVERSED else tap)
    return rounded(tl.load(weight + place, there, 0.0).to(tl.float32), dtype)


@triton.jit
def banded_convolution(
    source,
    affine_output,  # with scale, slope, offset [N, C]: the gradient that a GroupNorm left unwritten; else None
    scale,
    slope,
    offset,
    weight,  # [C, KD, KH, KW]
    bias,  # [C] or None
    add,  # of the destination's shape, or None
    destination,
    moments,  # [N, C, destination_d * tiles, 3]: count, mean, sum of squared deviations of what was stored; or None
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
    PD: tl.constexpr,  # of the mirrored kernel where it is mirrored
    PH: tl.constexpr,
    PW: tl.constexpr,
    REVERSED: tl.constexpr,  # the kernel's mirror image: of a data gradient
    ALIGNED: tl.constexpr,  # divides source_w: as many elements are loaded at once
    INDEX: tl.constexpr,  # type of an offset within a sample
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    dtype: tl.constexpr = destination.dtype.element_ty
    BO: tl.constexpr = BV // OCTET
    width = (source_w // ALIGNED) * ALIGNED  # says to the compiler that rows begin at such multiples
    octets = tl.cdiv(destination_w, OCTET)
    tiles = tl.cdiv(destination_h * octets, BO)
    chunks = tl.cdiv(destination_d, BD)
    program = tl.program_id(0)
    tile = program % tiles
    first = ((program // tiles) % chunks) * BD
    row = tl.cast((program // tiles) // chunks, tl.int64)  # sample and channel
    channel = row % channels

    octet = tile * BO + tl.arange(0, BO)
    h = octet // octets
    w = (octet % octets) * OCTET
    column = w[:, None] + (tl.arange(0, WINDOW)[None, :] - SHIFT)
    in_row = (column >= 0) & (column < width)
    out_w = w[:, None] + tl.arange(0, OCTET)[None, :]
    out_place = (h.to(INDEX) * destination_w)[:, None] + out_w
    inside = (h < destination_h)[:, None] & (out_w < destination_w)

    source += row * source_d * source_h * width
    start = row * destination_d * destination_h * destination_w
    if affine_output is not None:
        affine_output += row * source_d * source_h * width
        a, b, c = tl.load(scale + row), tl.load(slope + row), tl.load(offset + row)
    shift = 0.0
    if bias is not None:
        shift = tl.load(bias + channel).to(tl.float32)
    if moments is not None:
        count = tl.sum(tl.sum(inside.to(tl.int32), 1), 0).to(tl.float32)

    weight += channel * (KD * KH * KW)
    bands = ()
    for kd in tl.static_range(KD):
        for kh in tl.static_range(KH):
            bands = bands + (_band(weight, kd, kh, KD, KH, KW, PW, REVERSED, dtype),)  # noqa: RUF005
    sums = ()
    for _ in tl.static_range(KD):
        sums = sums + (tl.zeros((BO, OCTET), tl.float32),)  # noqa: RUF005

    last = tl.minimum(first + BD, destination_d)
    for plane in range(first - PD, last - PD + (KD - 1)):
        z = tl.cast(plane, INDEX)
        rows = tl.where((z >= 0) & (z < source_d), source_h, 0)  # none of a plane that is not there
        for kh in tl.static_range(KH):
            source_row = h + (kh - PH)
            mask = ((source_row >= 0) & (source_row < rows))[:, None] & in_row
            place = ((z * source_h + source_row) * width)[:, None] + column
            window = tl.load(source + place, mask, 0.0)
            if affine_output is not None:
                other = tl.load(affine_output + place, mask, 0.0).to(tl.float32)
                written = tl.where(mask, a * window.to(tl.float32) + (b * other + c), 0.0)
                window = rounded(written, dtype)
            # Plane z is the input of tap kd of the output plane z + PD - kd: the last tap completes the first sum.
            added = ()
            for i in tl.static_range(KD):
                added = added + (product(window, bands[(KD - 1 - i) * KH + kh], sums[i]),)  # noqa: RUF005
            sums = added
        d = z + (PD - (KD - 1))
        value = sums[0] + shift
        sums = sums[1:] + (tl.zeros((BO, OCTET), tl.float32),)  # noqa: RUF005
        mask = inside & (h < tl.where(d >= first, destination_h, 0))[:, None]
        place = start + d * destination_h * destination_w + out_place
        if add is not None:
            value += tl.load(add + place, mask, 0.0).to(tl.float32)
        stored = rounded(value, dtype)
        tl.store(destination + place, stored, mask)
        if moments is not None:
            kept = tl.where(inside, stored.to(tl.float32), 0.0)
            mean = tl.sum(column_sums(kept), 0) / count
            deviation = tl.where(inside, kept - mean, 0.0)
            squares = tl.sum(column_sums(deviation * deviation), 0)
            part = moments + ((row * destination_d + d) * tiles + tile) * 3
            tl.store(part, count, d >= first)
            tl.store(part + 1, mean, d >= first)
            tl.store(part + 2, squares, d >= first)
