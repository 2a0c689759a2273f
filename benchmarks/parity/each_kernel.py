"""Small problems that together run every kernel of csrc/cuda on sm_90, whatever a random draw brings.

What decides on a kernel is a problem's operator, dtype, memory format, kernel and stride, and whether an extent is a
multiple of 2, 4 or 8. tests/bench/test_each_kernel.py asks the plans whether one is missing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

from against_float64 import failure_of
from operators_tried import BlockCall, told

from mednext.backends_used import BackendsUsed
from mednext.bench.operators import OpProblem

__all__ = ["check", "large_problems", "problems", "problems_for"]

Triple = tuple[int, int, int]

CUBIC: list[Triple] = [(3, 3, 3), (5, 5, 5), (7, 7, 7)]
FLAT: list[Triple] = [(1, 3, 3), (1, 5, 5), (1, 7, 7)]
ONE, HALF, TWO = (1, 1, 1), (1, 2, 2), (2, 2, 2)
_SIXTEEN_BITS = ("bf16", "fp16")
CONV, NORM, TRANSPOSED = "depthwise_conv3d", "depthwise_conv3d_group_norm", "depthwise_conv_transpose3d"


def check(options: argparse.Namespace) -> dict[str, Any]:
    """The report: counts, how many there was no time for, what failed, and which backends ran each function."""
    chosen = problems_for(options)
    tried, failures = 0, []
    with BackendsUsed() as used:
        for problem in chosen:
            if time.monotonic() > options.deadline:
                break
            failure = failure_of(problem, options, options.seed)
            tried += 1
            if failure is not None:
                failures.append(f"{told(problem)}: {failure}")
    counts = {"tried": tried, "passed": tried - len(failures), "left_out": len(chosen) - tried}
    return counts | {"failures": failures, "ran_on": used.by_op()}


def problems_for(options: argparse.Namespace, scale: int = 1) -> list[OpProblem]:
    """All of them for the backends that have these kernels, none for others."""
    if options.backend not in ("cuda", "emulated"):
        return []
    return [*problems(scale), *(large_problems() if options.device == "cuda" else ())]


def problems(scale: int = 1) -> list[OpProblem]:
    """Problems of some hundred voxels; ``scale`` multiplies their extents, and if it is odd, none takes another kernel.

    The widest ones stay as they are.
    """
    small = [*_bottlenecks(), *_blocks(), *_tensor_core_convolutions(), *_other_convolutions(), *_pointwise()]
    small += _statistics()
    scaled = [replace(p, shape=(*p.shape[:2], *(scale * n for n in p.shape[2:]))) for p in small]
    return [*scaled, *_wide_convolutions()]


def large_problems() -> Iterator[OpProblem]:
    """Those that take a kernel only for a large volume; the emulation would need many seconds for each."""
    # The planar convolution's long strips, plain and with a gradient that is computed.
    for op, kernel, channels, dtype in (
        (NORM, (3, 3, 3), 64, "fp16"),
        (CONV, (5, 5, 5), 32, "bf16"),
        (NORM, (7, 7, 7), 32, "bf16"),
        (NORM, (1, 5, 5), 64, "fp16"),
    ):
        yield OpProblem(op, (1, channels, 2 if kernel[0] == 3 else 1, 96, 128), kernel, ONE, dtype=dtype)
    # Weight gradients of as many patches a warp as there are loops without a branch for.
    yield OpProblem(CONV, (1, 64, 1, 128, 8), (3, 3, 3), dtype="bf16")
    yield OpProblem(CONV, (1, 132, 1, 128, 8), (5, 5, 5), dtype="fp16")
    # Heads of volumes that fill the GPU.
    yield OpProblem("pointwise_conv3d", (1, 5, 64, 96, 88), dtype="bf16", outputs=2)


def _tensor_core_convolutions() -> Iterator[OpProblem]:
    """16 bits, contiguous: KxKxK and 1xKxK at stride 1, KxKxK at stride 2, its transposed form too."""
    for i, kernel in enumerate([*CUBIC, *FLAT]):
        # Planes by the copy engine, by copies of eight bytes, and one element at a time (the banded core); a gradient
        # that is given, and one that the norm leaves to be computed.
        for j, (width, ops) in enumerate(((8, (CONV, NORM)), (12, (NORM, CONV)), (9, (CONV, NORM)[i % 2 :][:1]))):
            for k, op in enumerate(ops):
                yield OpProblem(op, (2, 2, 5, 6, width), kernel, ONE, dtype=_SIXTEEN_BITS[(i // 2 + j + k) % 2])
    for op, kernel in ((CONV, (3, 3, 3)), (NORM, (5, 5, 5))):
        yield OpProblem(op, (2, 2, 4, 7, 16), kernel, ONE, dtype="fp16")
    for op, kernel, dtype in ((CONV, (3, 3, 5), "fp16"), (NORM, (5, 5, 7), "bf16")):  # banded, by copies
        yield OpProblem(op, (2, 2, 5, 6, 12), kernel, ONE, dtype=dtype)
    dtypes = cycle([*_SIXTEEN_BITS, *reversed(_SIXTEEN_BITS)])
    for kernel in CUBIC:
        for op, width in ((CONV, 16), (CONV, 9), (NORM, 16), (NORM, 10)):
            yield OpProblem(op, (2, 2, 7, 6, width), kernel, TWO, dtype=next(dtypes))
        for width in (8, 5):
            yield OpProblem(TRANSPOSED, (2, 2, 4, 3, width), kernel, TWO, dtype=next(dtypes))


def _wide_convolutions() -> Iterator[OpProblem]:
    """The banded convolution where a row fills a warp's fragment, and where a warp has several fragments."""
    for kernel, op, dtype in (((3, 3, 3), NORM, "bf16"), ((7, 7, 7), CONV, "fp16"), ((1, 5, 5), CONV, "bf16")):
        yield OpProblem(op, (1, 1, 3, 4, 118), kernel, ONE, dtype=dtype)
        yield OpProblem(op, (1, 1, 2, 48, 22), kernel, ONE, dtype=dtype)


def _other_convolutions() -> Iterator[OpProblem]:
    """Streaming, in float32, channels_last or at stride 1x2x2, and general: kernels that are no cube, and 9x9x9."""
    formats = [("fp32", False), ("fp32", True), ("bf16", True), ("fp16", True)]
    turn = cycle([CONV, NORM])
    for i, kernel in enumerate([*CUBIC, *FLAT]):
        yield OpProblem(next(turn), (2, 2, 5, 6, 9), kernel, ONE, dtype="fp32")
        dtype, _ = formats[1 + i % 3]
        yield OpProblem(next(turn), (1, 8, 4, 5, 6), kernel, ONE, dtype=dtype, channels_last=True)
    for i, kernel in enumerate(CUBIC):
        for dtype, channels_last in (formats[0], formats[1 + i]):
            yield OpProblem(next(turn), (2, 2, 7, 6, 9), kernel, TWO, dtype=dtype, channels_last=channels_last)
            yield OpProblem(TRANSPOSED, (2, 2, 3, 4, 5), kernel, TWO, dtype=dtype, channels_last=channels_last)
    for i, (dtype, channels_last) in enumerate((*formats, ("bf16", False), ("fp16", False))):
        for kernels in (CUBIC, FLAT):
            op = next(turn)
            yield OpProblem(op, (2, 2, 5, 7, 9), kernels[i % 3], HALF, dtype=dtype, channels_last=channels_last)
    for dtype, channels_last, op, kernel, stride in (
        ("fp32", False, CONV, (3, 5, 7), ONE),
        ("fp32", True, NORM, (5, 3, 1), HALF),
        ("bf16", False, NORM, (5, 3, 1), TWO),
        ("bf16", True, TRANSPOSED, (3, 5, 7), TWO),
        ("fp16", False, CONV, (9, 9, 9), ONE),
        ("fp16", True, CONV, (1, 1, 1), HALF),
    ):
        yield OpProblem(op, (2, 2, 5, 6, 8), kernel, stride, dtype=dtype, channels_last=channels_last)


def _bottlenecks() -> Iterator[OpProblem]:
    """Fused ones, in 16 bits, and those of a library's products."""

    def bottleneck(dtype: str, c: int, ratio: int, o: int, size: Triple, **more: Any) -> OpProblem:
        batch = 2 if c <= 32 else 1
        return OpProblem("inverted_bottleneck", (batch, c, *size), ratio=ratio, dtype=dtype, outputs=o, **more)

    dtypes = cycle(["bf16", "fp16", "fp16", "bf16"])
    # More than a tile of the backward pass, whole vectors of voxels and not.
    sizes: Iterator[Triple] = cycle([(4, 4, 8), (5, 3, 5), (3, 6, 4)])
    for c, ratio, o in ((32, 2, 32), (32, 4, 64), (64, 2, 32), (64, 4, 64), (5, 8, 10), (20, 3, 10)):
        for channels_last in (False, True):
            for grn in (False, True):
                more = {"channels_last": channels_last, "grn": grn}
                yield bottleneck(next(dtypes), c, ratio, o, next(sizes), **more)
    for c, ratio, o in ((64, 2, 128), (128, 2, 64), (128, 2, 128), (72, 1, 100)):
        yield bottleneck(next(dtypes), c, ratio, o, next(sizes), channels_last=True)
    # Forward fused, backward by products: more hidden channels than a block has warps for.
    yield bottleneck("bf16", 64, 8, 64, (4, 4, 8))
    for dtype, c, ratio, o, size in (
        ("bf16", 128, 3, 128, (4, 4, 8)),
        ("fp16", 128, 2, 256, (4, 4, 8)),
        ("bf16", 256, 2, 128, (5, 3, 5)),
        ("fp32", 32, 2, 64, (4, 4, 8)),
        ("fp32", 20, 4, 10, (5, 3, 5)),
        ("fp32", 5, 2, 5, (9, 11, 11)),  # a row that two warps share
        ("fp16", 71, 1, 35, (9, 11, 11)),
    ):
        yield bottleneck(dtype, c, ratio, o, size)


def _blocks() -> Iterator[OpProblem]:
    """The three forms; what up blocks' outputs are put together from, and what is packed, in each width."""

    def block(form: str, dtype: str, c: int, size: Triple, kernel: int, stride: Triple = TWO, **more: Any) -> OpProblem:
        o = {"regular": c, "down": 2 * c, "up": c // 2}[form]
        stride = ONE if form == "regular" else stride
        more |= {"form": form, "dtype": dtype, "outputs": o}
        return BlockCall("mednext_block", (2 if c <= 20 else 1, c, *size), (kernel, kernel, kernel), stride, **more)

    yield block("regular", "bf16", 32, (5, 4, 8), 3, recompute=True)
    yield block("regular", "fp16", 32, (4, 5, 5), 5, ratio=3, grn=True, float_parameters=True)
    yield block("regular", "bf16", 20, (4, 5, 5), 3, channels_last=True, permuted_gradient=True)
    # Elements of a gradient that lie neither next to each other nor two apart.
    yield block("regular", "fp16", 32, (4, 4, 8), 3, permuted_gradient=True)
    yield block("regular", "fp32", 20, (5, 4, 8), 3, permuted_gradient=True, recompute=True)
    yield block("down", "bf16", 32, (7, 7, 9), 3, keep_input=True, float_parameters=True)
    yield block("down", "fp16", 20, (8, 7, 16), 5, grn=True, recompute=True)
    yield block("down", "fp32", 20, (7, 8, 8), 3, keep_input=True)
    yield block("down", "fp16", 128, (5, 7, 6), 3, HALF)
    yield block("down", "bf16", 32, (7, 8, 8), 3, channels_last=True, keep_input=True, grn=True)
    yield block("up", "bf16", 64, (3, 4, 4), 3, skip=True, float_parameters=True)
    yield block("up", "bf16", 64, (3, 4, 5), 5, skip=True, grn=True)
    yield block("up", "fp16", 32, (3, 4, 4), 3, recompute=True)
    yield block("up", "fp16", 20, (4, 3, 5), 7, skip=True)
    yield block("up", "fp32", 32, (3, 4, 4), 3, skip=True)
    yield block("up", "fp32", 20, (8, 3, 5), 5, HALF)
    yield block("up", "bf16", 20, (8, 3, 4), 5, HALF, recompute=True)
    yield block("up", "bf16", 128, (3, 3, 4), 3, skip=True)
    yield block("up", "fp16", 64, (3, 4, 4), 5, channels_last=True, skip=True)
    yield block("up", "fp32", 20, (3, 4, 4), 5, channels_last=True, skip=True)
    yield block("up", "bf16", 10, (3, 4, 4), 5, channels_last=True, grn=True)


def _statistics() -> Iterator[OpProblem]:
    for dtype, size, channels_last in (
        ("fp16", (5, 6, 8), False),
        ("bf16", (7, 3, 5), False),
        ("fp32", (5, 6, 7), True),
    ):
        yield OpProblem("group_norm_statistics", (2, 5, *size), dtype=dtype, channels_last=channels_last)


def _pointwise() -> Iterator[OpProblem]:
    dtypes = cycle(["bf16", "fp16", "fp32"])
    for few in (1, 2, 3, 7):
        for inputs, outputs in ((few, 32), (20, few)):
            yield OpProblem("pointwise_conv3d", (2, inputs, 3, 4, 6), dtype=next(dtypes), outputs=outputs)
