"""GroupNorm's statistics: moments of tiles, merged in a fixed order by Chan's rule (Chan, Golub, LeVeque, 1983)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mednext_ops.backends.problem import memory_format_of
from mednext_ops.backends.triton.arguments import check_groups, check_input
from mednext_ops.backends.triton.launch import INTERPRETS, Blocks, cdiv, channel_tile, launch, needs_64_bits
from mednext_ops.backends.triton.numerics import column_sums

__all__ = ["group_norm_statistics", "merged"]


@triton.jit
def tile_moments(
    input,
    moments,  # [N, C, tiles, 3]: count, mean, sum of squared deviations
    channels,
    voxels,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
):
    tiles = tl.cast(tl.cdiv(voxels, BV), tl.int32)
    channel_blocks = tl.cdiv(channels, BC)
    program = tl.program_id(0)
    tile = program % tiles
    channel = ((program // tiles) % channel_blocks) * BC + tl.arange(0, BC)
    sample = (program // tiles) // channel_blocks
    voxel = tl.cast(tile, INDEX) * BV + tl.arange(0, BV)
    mask = (voxel < voxels)[:, None] & (channel < channels)[None, :]
    if CHANNELS_LAST:
        place = voxel[:, None] * channels + channel[None, :]
    else:
        place = voxel[:, None] + channel[None, :] * tl.cast(voxels, INDEX)
    value = tl.load(input + tl.cast(sample, tl.int64) * channels * voxels + place, mask, 0.0).to(tl.float32)
    count = tl.cast(tl.minimum(voxels - tl.cast(tile, INDEX) * BV, BV), tl.float32)
    mean = column_sums(value) / count
    deviation = tl.where(mask, value - mean[None, :], 0.0)
    moments += ((tl.cast(sample, tl.int64) * channels + channel) * tiles + tile) * 3
    tl.store(moments, tl.zeros_like(mean) + count, channel < channels)
    tl.store(moments + 1, mean, channel < channels)
    tl.store(moments + 2, column_sums(deviation * deviation), channel < channels)


@triton.jit
def merge_moments(moments, mean, rstd, parts, eps, BP: tl.constexpr):
    """A program a group, whose channels' parts lie one after another: in double, about the first part's mean."""
    group = tl.program_id(0)
    moments += tl.cast(group, tl.int64) * parts * 3
    first = tl.load(moments + 1).to(tl.float64)
    counts = tl.zeros((BP,), tl.float64)
    sums = tl.zeros((BP,), tl.float64)  # of the means' distances from the first, each times its count
    squares = tl.zeros((BP,), tl.float64)
    for begin in range(0, parts, BP):
        part = begin + tl.arange(0, BP).to(tl.int64)
        mask = part < parts
        count = tl.load(moments + part * 3, mask, 0.0).to(tl.float64)
        distance = tl.where(mask, tl.load(moments + part * 3 + 1, mask, 0.0).to(tl.float64) - first, 0.0)
        counts += count
        sums += count * distance
        squares += tl.load(moments + part * 3 + 2, mask, 0.0).to(tl.float64) + count * distance * distance
    total = tl.sum(counts, 0)
    distance = tl.sum(sums, 0) / total
    variance = tl.maximum(tl.sum(squares, 0) / total - distance * distance, 0.0)
    tl.store(mean + group, (first + distance).to(tl.float32))
    tl.store(rstd + group, (1.0 / tl.sqrt(variance + eps)).to(tl.float32))


def merged(moments: torch.Tensor, num_groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and rstd [N, G] of moments [N, C, parts, 3] of parts of channels."""
    batch, channels, parts, _ = moments.shape
    mean = moments.new_empty((batch, num_groups))
    rstd = torch.empty_like(mean)
    parts *= channels // num_groups
    launch(merge_moments, batch * num_groups, Blocks.of(BP=256), moments=moments, mean=mean, rstd=rstd, parts=parts,
           eps=float(eps))  # fmt: skip
    return mean, rstd


def group_norm_statistics(input: torch.Tensor, num_groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / sqrt(biased variance + eps) of each group: input [N, C, D, H, W] -> two float32 [N, G]."""
    check_input("group_norm_statistics", input)
    check_groups("group_norm_statistics", num_groups, input.shape[1])
    memory_format = memory_format_of(input)
    input = input.contiguous(memory_format=memory_format)
    channels_last = memory_format == torch.channels_last_3d
    batch, channels = input.shape[:2]
    voxels = input.shape[2:].numel()
    tile = channel_tile(channels, channels_last)
    blocks = Blocks.of(BV=2048 // tile, BC=tile)
    if INTERPRETS:
        blocks = blocks.enlarged(voxels)
    tiles = cdiv(voxels, blocks["BV"])
    moments = input.new_empty((batch, channels, tiles, 3), dtype=torch.float32)
    launch(
        tile_moments,
        batch * cdiv(channels, tile) * tiles,
        blocks,
        input=input,
        moments=moments,
        channels=channels,
        voxels=voxels,
        CHANNELS_LAST=channels_last,
        INDEX=tl.int64 if needs_64_bits(input) else tl.int32,
    )
    return merged(moments, num_groups, eps)
