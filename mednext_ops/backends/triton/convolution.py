"""Depthwise convolution with statistics and its two gradients: which kernel, how it is cut, and its workspace."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton.language as tl

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient, memory_format_of
from mednext_ops.backends.triton.arguments import (
    check_convolution,
    check_gradient,
    check_groups,
    check_like,
    check_parameter,
)
from mednext_ops.backends.triton.banded_convolution import OCTET, SHIFT, banded_convolution
from mednext_ops.backends.triton.direct_convolution import direct_convolution
from mednext_ops.backends.triton.direct_weight_gradient import direct_weight_gradient
from mednext_ops.backends.triton.launch import INTERPRETS, Blocks, amd, cdiv, channel_tile, launch, needs_64_bits
from mednext_ops.backends.triton.reduction import sum_of_parts
from mednext_ops.backends.triton.statistics import merged
from mednext_ops.backends.triton.tuning import choose, kind

__all__ = ["depthwise_conv3d", "depthwise_conv3d_backward", "depthwise_conv3d_statistics"]


#: Triton compiles anew for arguments that this divides, and knows it. For other widths addresses take more registers.
KNOWN_DIVISOR = 16


def depthwise_conv3d(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry
) -> torch.Tensor:
    """input [N, C, D, H, W], weight [C, 1, kd, kh, kw], bias [C] -> [N, C, D', H', W'], dtype and format kept."""
    return _forward("depthwise_conv3d", input, weight, bias, geometry, statistics=False)[0]


def depthwise_conv3d_statistics(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: ConvGeometry,
    num_groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The convolution, and mean and rstd [N, G] of its output as it is stored, in one pass over it."""
    op = "depthwise_conv3d_statistics"
    check_groups(op, num_groups, input.shape[1])
    output, moments = _forward(op, input, weight, bias, geometry, statistics=True)
    assert moments is not None
    return output, *merged(moments, num_groups, eps)


def _forward(
    op: str,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: ConvGeometry,
    statistics: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    check_convolution(op, input, weight, geometry)
    check_parameter(op, "bias", bias, input.shape[1:2], input)
    size = geometry.output_size(input.shape[2:])
    memory_format = memory_format_of(input)
    return _convolve(input, None, weight, bias, None, geometry, geometry.transposed, size, memory_format, statistics)


def depthwise_conv3d_backward(
    grad_output: torch.Tensor | GroupNormGradient,
    input: torch.Tensor,
    weight: torch.Tensor,
    geometry: ConvGeometry,
    add: torch.Tensor | None,
    needs_data: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of the input (plus ``add``) and of the weight (float32); the affine map is applied on load."""
    op = "depthwise_conv3d_backward"
    check_convolution(op, input, weight, geometry)
    check_gradient(op, grad_output, input, geometry)
    check_like(op, "add", add, input.shape, input)
    grad, affine = (grad_output, None) if isinstance(grad_output, torch.Tensor) else (grad_output.grad, grad_output)
    memory_format = memory_format_of(input)
    data = grad_weight = None
    if needs_data:
        scatter = not geometry.transposed
        data, _ = _convolve(
            grad, affine, weight, None, add, geometry, scatter, tuple(input.shape[2:]), memory_format, False
        )
    if needs_weight:
        grad_weight = _weight_gradient(grad, affine, input, geometry, memory_format)
    return data, grad_weight


def _weight_gradient(
    grad: torch.Tensor,
    affine: GroupNormGradient | None,
    input: torch.Tensor,
    geometry: ConvGeometry,
    memory_format: torch.memory_format,
) -> torch.Tensor:
    """[C, 1, kd, kh, kw] in float32."""
    batch, channels = input.shape[:2]
    channels_last = memory_format == torch.channels_last_3d
    input, grad = (t.contiguous(memory_format=memory_format) for t in (input, grad))
    small, large = (input, grad) if geometry.transposed else (grad, input)
    tile = channel_tile(channels, channels_last)
    arguments = {
        "small": small,
        "large": large,
        **affine_arguments(affine, memory_format),
        "batch": batch,
        "channels": channels,
        **extents_of("small", small.shape[2:]),
        **extents_of("large", large.shape[2:]),
        **geometry_arguments(geometry),
        "LARGE_IS_GRADIENT": geometry.transposed,
        "CHANNELS_LAST": channels_last,
        "INDEX": tl.int64 if needs_64_bits(small, large) else tl.int32,
    }

    def run(blocks: Blocks) -> torch.Tensor:
        tiles = cdiv(small.shape[2:].numel(), blocks["BV"])
        workspace = input.new_empty((channels, 1, *geometry.kernel_size, batch * tiles), dtype=torch.float32)
        programs = batch * cdiv(channels, tile) * tiles
        launch(direct_weight_gradient, programs, blocks, workspace=workspace, **arguments)
        return sum_of_parts(workspace)

    # Larger tiles share the sums at their end among more products, smaller ones leave registers for more programs.
    sizes = [(4096, 128), (2048, 128), (8192, 256)]
    odd = small.shape[4] % KNOWN_DIVISOR or large.shape[4] % KNOWN_DIVISOR
    wide = max(geometry.kernel_size) > 5
    if odd or wide or max(geometry.stride) > 1:  # offsets that are no plain shifts of each other take registers
        sizes = [(2048, 128), (1024, 128), (4096, 256)]
    ways = [Blocks.of(threads, BV=elements // tile, BC=tile) for elements, threads in sizes]
    key = kind(small, channels_last, affine is not None, geometry, "odd" if odd else "even")
    return run(choose("direct_weight_gradient", key, ways, small, run))


def _convolve(
    source: torch.Tensor,
    affine: GroupNormGradient | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    add: torch.Tensor | None,
    geometry: ConvGeometry,
    scatter: bool,
    size: tuple[int, ...],
    memory_format: torch.memory_format,
    statistics: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The destination of that size in that format, and [N, C, parts, 3] moments of it where asked for."""
    batch, channels = source.shape[:2]
    channels_last = memory_format == torch.channels_last_3d
    source = source.contiguous(memory_format=memory_format)
    destination = source.new_empty((batch, channels, *size)).contiguous(memory_format=memory_format)
    tile = channel_tile(channels, channels_last)
    classes = geometry.stride if scatter else (1, 1, 1)
    extents = [cdiv(extent, s) for extent, s in zip(size, classes, strict=True)]
    arguments = {
        "source": source,
        **affine_arguments(affine, memory_format),
        "weight": weight.contiguous(),
        "bias": None if bias is None else bias.contiguous(),
        "add": None if add is None else add.contiguous(memory_format=memory_format),
        "destination": destination,
        "channels": channels,
        **extents_of("source", source.shape[2:]),
        **extents_of("destination", size),
        "INDEX": tl.int64 if needs_64_bits(source, destination) else tl.int32,
    }
    direct = {**geometry_arguments(geometry), "SCATTER": scatter, "CHANNELS_LAST": channels_last}

    def run(blocks: Blocks) -> torch.Tensor | None:
        banded = "BD" in blocks
        if banded:
            octets = size[1] * cdiv(size[2], OCTET.value)
            tiles = cdiv(octets, blocks["BV"] // OCTET.value)
            parts, programs = size[0] * tiles, batch * channels * cdiv(size[0], blocks["BD"]) * tiles
        else:
            parts = cdiv(math.prod(extents), blocks["BV"]) * math.prod(classes)
            programs = batch * cdiv(channels, tile) * parts
        moments = source.new_empty((batch, channels, parts, 3), dtype=torch.float32) if statistics else None
        kernel = banded_convolution if banded else direct_convolution
        special = _band_arguments(geometry, scatter, source) if banded else direct
        launch(kernel, programs, blocks, moments=moments, **arguments, **special)
        return moments

    # Larger tiles share the weights, smaller ones fill a GPU from fewer voxels.
    sizes = [(1024, 128), (512, 128), (2048, 256)]
    if channels_last or max(geometry.stride) > 1:  # offsets that are no plain shifts of each other take registers
        sizes = [(512, 128), (256, 128), (1024, 256)]
    ways = [Blocks.of(threads, BV=elements // tile, BC=tile) for elements, threads in sizes]
    if not channels_last and _has_bands(geometry, source.dtype):
        banded_ways = _banded_ways(source, affine is not None)
        # In the interpreter it is programs that cost, and a banded one has a single channel.
        ways = [*ways, *banded_ways] if INTERPRETS else [*banded_ways, ways[0]]
    # Widths of other divisors have other ways, and other code.
    width = math.gcd(source.shape[4], KNOWN_DIVISOR)
    key = kind(destination, channels_last, affine is not None, statistics, scatter, geometry, width)
    return destination, run(choose("convolution", key, ways, destination, run))


def _has_bands(geometry: ConvGeometry, dtype: torch.dtype) -> bool:
    """Whether a convolution and its mirror image are products of windows with bands of taps, on tensor cores.

    AMD's are left out: their products are 16 wide at least, an octet falls back to single multiplications.
    """
    kernel, before = geometry.kernel_size, geometry.padding[2]
    behind = kernel[2] - 1 - before
    return (
        dtype in (torch.float16, torch.bfloat16)
        and geometry.stride == geometry.dilation == (1, 1, 1)
        and max(kernel[:2]) <= 7  # a sum for each plane of taps, a band for each row
        and kernel[2] >= 3
        and min(before, behind) >= 0
        and max(before, behind) <= SHIFT.value  # a window has so many elements beside its octet
        and not amd()
    )


def _banded_ways(source: torch.Tensor, affine: bool) -> list[Blocks]:
    """Copies in flight cost shared memory; where two tensors are loaded, registers too: neither is what is multiplied.

    Programs of 64 threads multiply by mma.sync on sm_90 too. Of 128 and more, from 64 octets on, they use wgmma there,
    which is for larger products: docs/triton.md.
    """
    width, stages = source.shape[4], 1 if affine else 2
    if width % 4:  # single elements are loaded, each with an address
        return [Blocks.of(128, 1, BV=256, BD=32), Blocks.of(64, 1, BV=128, BD=8)]
    if width % KNOWN_DIVISOR:
        return [Blocks.of(64, 1, BV=256, BD=32), Blocks.of(64, 2, BV=256, BD=32), Blocks.of(64, 1, BV=256, BD=8)]
    return [
        Blocks.of(64, stages, BV=512, BD=32),
        Blocks.of(128, stages, BV=1024, BD=32),
        Blocks.of(64, 1, BV=256, BD=8),
    ]


def _band_arguments(geometry: ConvGeometry, scatter: bool, source: torch.Tensor) -> dict[str, Any]:
    """A gradient reads with the kernel's mirror image, whose padding is what the kernel reaches behind its centre."""
    padding = geometry.padding
    if scatter:
        padding = tuple(k - 1 - p for k, p in zip(geometry.kernel_size, padding, strict=True))  # type: ignore[assignment]
    names = (("K", geometry.kernel_size), ("P", padding))
    axes = {letter + axis: n for letter, values in names for axis, n in zip("DHW", values, strict=True)}
    return {**axes, "REVERSED": scatter, "ALIGNED": 1 if source.shape[4] % 4 else 4}


def affine_arguments(affine: GroupNormGradient | None, memory_format: torch.memory_format) -> dict[str, Any]:
    if affine is None:
        return {"affine_output": None, "scale": None, "slope": None, "offset": None}
    maps = {name: getattr(affine, name).contiguous() for name in ("scale", "slope", "offset")}
    return {"affine_output": affine.output.contiguous(memory_format=memory_format), **maps}


def extents_of(name: str, size: tuple[int, ...] | torch.Size) -> dict[str, int]:
    return {f"{name}_{axis}": extent for axis, extent in zip("dhw", size, strict=True)}


def geometry_arguments(geometry: ConvGeometry) -> dict[str, int]:
    g = geometry
    names = (("K", g.kernel_size), ("S", g.stride), ("P", g.padding), ("D", g.dilation))
    return {letter + axis: n for letter, values in names for axis, n in zip("DHW", values, strict=True)}
