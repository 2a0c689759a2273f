"""What every kernel computes with: rounding to the stored type, sums and products of tiles, GELU and its slope.

The interpreter (TRITON_INTERPRET=1) has flaws that the compiler has not: it cuts float32 off on the way to bfloat16,
multiplies bfloat16 tiles wrongly, and adds a column's values one after the other, where a GPU adds them in a tree. All
are gone around here, where ``INTERPRETED`` is set, and nowhere else.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["INTERPRETED", "column_sums", "gelu", "gelu_slope", "product", "rounded"]

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_DENSITY_AT_ZERO = tl.constexpr(0.3989422804014327)


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """A float32 tile in the type it is stored in, to the nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        return tl.where(value == value, nearest.to(tl.float32, bitcast=True), value).to(dtype)
    return value.to(dtype)


@triton.jit
def column_sums(value):
    """The sums of a float32 tile over its rows."""
    if INTERPRETED:
        return tl.sum(value.to(tl.float64), 0).to(tl.float32)
    return tl.sum(value, 0)


@triton.jit
def product(left, right, sums):
    """``left @ right + sums`` in float32: on tensor cores in 16 bits, without TF32's loss in float32."""
    if INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), sums, input_precision="ieee")
    return tl.dot(left, right, sums, input_precision="ieee")


@triton.jit
def gelu(value):
    """The exact one, by erf."""
    return 0.5 * value * (1 + tl.erf(value * _SQRT_HALF))


@triton.jit
def gelu_slope(value):
    """Its derivative."""
    return 0.5 * (1 + tl.erf(value * _SQRT_HALF)) + value * tl.exp(-0.5 * value * value) * _DENSITY_AT_ZERO
