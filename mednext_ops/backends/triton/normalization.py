"""GroupNorm's affine map with GELU, and its gradient with the two sums: one pass each over [BV voxels, BC channels]."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from mednext_ops.backends.problem import memory_format_of
from mednext_ops.backends.triton.arguments import (
    check_activation,
    check_input,
    check_like,
    check_parameter,
    check_statistics,
)
from mednext_ops.backends.triton.launch import INTERPRETS, Blocks, cdiv, channel_tile, launch, needs_64_bits
from mednext_ops.backends.triton.numerics import column_sums, gelu, gelu_slope, rounded
from mednext_ops.backends.triton.reduction import sum_of_parts
from mednext_ops.formulas import per_channel

__all__ = ["group_norm", "group_norm_backward"]


@triton.jit
def _tile(channels, voxels, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr):
    """A program's tile: its number, sample, channels [BC], offsets within the sample and mask [BV, BC]."""
    tiles = tl.cast(tl.cdiv(voxels, BV), tl.int32)
    channel_blocks = tl.cdiv(channels, BC)
    program = tl.program_id(0)
    tile = program % tiles
    channel = ((program // tiles) % channel_blocks) * BC + tl.arange(0, BC)
    sample = (program // tiles) // channel_blocks
    voxel = tl.cast(tile, INDEX) * BV + tl.arange(0, BV)
    if CHANNELS_LAST:
        place = voxel[:, None] * channels + channel[None, :]
    else:
        place = voxel[:, None] + channel[None, :] * tl.cast(voxels, INDEX)
    mask = (voxel < voxels)[:, None] & (channel < channels)[None, :]
    return tile, tiles, tl.cast(sample, tl.int64), channel, place, mask


@triton.jit
def apply(
    input,
    mean,  # [N, C], as rstd
    rstd,
    weight,  # [C], as bias
    bias,
    output,
    channels,
    voxels,
    GELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
):
    _, _, sample, channel, place, mask = _tile(channels, voxels, CHANNELS_LAST, INDEX, BV, BC)
    row, there = sample * channels + channel, channel < channels
    centre = tl.load(mean + row, there, 0.0)
    scale = tl.load(rstd + row, there, 0.0) * tl.load(weight + channel, there, 0.0).to(tl.float32)
    shift = tl.load(bias + channel, there, 0.0).to(tl.float32)
    start = sample * channels * voxels
    value = tl.load(input + start + place, mask, 0.0).to(tl.float32)
    value = (value - centre[None, :]) * scale[None, :] + shift[None, :]
    if GELU:
        value = gelu(value)
    tl.store(output + start + place, rounded(value, output.dtype.element_ty), mask)


@triton.jit
def gradient(
    grad_output,
    input,
    mean,
    rstd,
    weight,
    bias,
    grad,  # the gradient before the activation; None where there is none
    sums,  # [2, N, C, tiles]: of the gradient, alone and times the normalised input
    batch,
    channels,
    voxels,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
):
    tile, tiles, sample, channel, place, mask = _tile(channels, voxels, CHANNELS_LAST, INDEX, BV, BC)
    row, there = sample * channels + channel, channel < channels
    centre, deviation = tl.load(mean + row, there, 0.0), tl.load(rstd + row, there, 0.0)
    start = sample * channels * voxels
    normalized = (tl.load(input + start + place, mask, 0.0).to(tl.float32) - centre[None, :]) * deviation[None, :]
    value = tl.load(grad_output + start + place, mask, 0.0).to(tl.float32)
    if grad is not None:
        scale = tl.load(weight + channel, there, 0.0).to(tl.float32)
        shift = tl.load(bias + channel, there, 0.0).to(tl.float32)
        stored = rounded(value * gelu_slope(normalized * scale[None, :] + shift[None, :]), grad.dtype.element_ty)
        tl.store(grad + start + place, stored, mask)
        value = stored.to(tl.float32)
    sums += row * tiles + tile
    tl.store(sums, column_sums(value), there)
    # Beyond the tensor the value is zero.
    tl.store(sums + tl.cast(batch, tl.int64) * channels * tiles, column_sums(value * normalized), there)


def _check(
    op: str,
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    activation: str | None,
) -> None:
    check_input(op, input)
    check_statistics(op, mean, rstd, input)
    for name, parameter in (("weight", weight), ("bias", bias)):
        check_parameter(op, name, parameter, input.shape[1:2], input)
    check_activation(op, activation)


def _cut(input: torch.Tensor) -> tuple[int, Blocks, dict[str, Any]]:
    """Programs, their blocks and the arguments that describe the tensor, contiguous in its memory format."""
    batch, channels = input.shape[:2]
    voxels = input.shape[2:].numel()
    channels_last = memory_format_of(input) == torch.channels_last_3d
    tile = channel_tile(channels, channels_last)
    blocks = Blocks.of(BV=2048 // tile, BC=tile)
    if INTERPRETS:
        blocks = blocks.enlarged(voxels)
    arguments = {
        "channels": channels,
        "voxels": voxels,
        "CHANNELS_LAST": channels_last,
        "INDEX": tl.int64 if needs_64_bits(input) else tl.int32,
    }
    return batch * cdiv(channels, tile) * cdiv(voxels, blocks["BV"]), blocks, arguments


def group_norm(
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    activation: str | None,
) -> torch.Tensor:
    """``activation(weight * (input - mean) * rstd + bias)``, computed in float32, in the input's dtype."""
    _check("group_norm", input, mean, rstd, weight, bias, activation)
    input = input.contiguous(memory_format=memory_format_of(input))
    output = torch.empty_like(input)
    programs, blocks, arguments = _cut(input)
    mean, rstd = (per_channel(t, input.shape[1]).contiguous() for t in (mean, rstd))
    launch(apply, programs, blocks, input=input, mean=mean, rstd=rstd, weight=weight.contiguous(),
           bias=bias.contiguous(), output=output, GELU=activation == "gelu", **arguments)  # fmt: skip
    return output


def group_norm_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradient before the activation and its two sums, alone and times the normalised input, [N, C] each."""
    op = "group_norm_backward"
    _check(op, input, mean, rstd, weight, bias, activation)
    check_like(op, "grad_output", grad_output, input.shape, input)
    memory_format = memory_format_of(input)
    input = input.contiguous(memory_format=memory_format)
    programs, blocks, arguments = _cut(input)
    mean, rstd = (per_channel(t, input.shape[1]).contiguous() for t in (mean, rstd))
    batch, channels = input.shape[:2]
    grad = torch.empty_like(input) if activation == "gelu" else None
    sums = input.new_empty((2, batch, channels, cdiv(arguments["voxels"], blocks["BV"])), dtype=torch.float32)
    launch(gradient, programs, blocks, grad_output=grad_output.contiguous(memory_format=memory_format), input=input,
           mean=mean, rstd=rstd, weight=weight.contiguous(), bias=bias.contiguous(), grad=grad, sums=sums, batch=batch,
           **arguments)  # fmt: skip
    first, second = sum_of_parts(sums)
    return grad_output if grad is None else grad, first, second
