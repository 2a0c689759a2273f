"""Bytes and operations that a problem takes, counted from its sizes; whoever runs it, and however.

Bytes are those of the tensors of voxels (weights are small beside them), each moved once, except where the norm stands
in the way: a block's convolution is written and read again, since the norm needs the statistics of all of it. An
operation is a multiplication or an addition; recomputed ones do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from mednext.bench.operators import DTYPES, OpProblem
from mednext.eager import EagerBlock, EagerHead

__all__ = ["Work", "block_work", "multiply_adds", "network_work", "op_work"]


@dataclass(frozen=True)
class Work:
    """Bytes to and from memory, and operations."""

    bytes: int
    operations: int

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.operations + other.operations)

    def floor_seconds(self, bytes_per_second: float, operations_per_second: float) -> float:
        """The least time on a device with these ceilings, if it moves and computes at the same time."""
        return max(self.bytes / bytes_per_second, self.operations / operations_per_second)


def op_work(problem: OpProblem, pass_name: str) -> Work:
    """Of one pass of an operator."""
    batch, channels = problem.shape[:2]
    taps = prod(problem.kernel)
    output_voxels = prod(problem.output_size())
    input, output = prod(problem.shape), batch * problem.out_channels * output_voxels
    scattered = problem.op == "depthwise_conv_transpose3d"
    convolution = 2 * taps * (input if scattered else output)
    mlp = 2 * batch * problem.voxels * problem.ratio * channels * (channels + problem.out_channels)
    elements, operations = {
        ("depthwise_conv3d", "forward"): (input + output, convolution),
        ("depthwise_conv3d", "backward data"): (input + output, convolution),
        ("depthwise_conv3d", "backward weight"): (input + output, convolution),
        ("group_norm_statistics", "forward"): (input, 3 * input),
        # The convolution is written, and read again by the norm.
        ("depthwise_conv3d_group_norm", "forward"): (input + 3 * output, convolution),
        ("depthwise_conv3d_group_norm", "backward"): (2 * input + 4 * output, 2 * convolution),
        # The statistics first; in the backward pass the gradient's sums, of which the input's gradient is made.
        ("inverted_bottleneck", "forward"): (2 * input + output + output, mlp),
        ("inverted_bottleneck", "backward"): (2 * input + output + 3 * input, 2 * mlp),
    }[("depthwise_conv3d" if scattered else problem.op, pass_name)]
    return Work(elements * DTYPES[problem.dtype].itemsize, operations)


def block_work(block: EagerBlock, input: torch.Tensor, dtype: str, training: bool) -> Work:
    """Of a block on an input, which may be on the meta device: its forward pass, or forward and backward."""
    convolved = block.conv1(input).numel()
    output = block(input).numel()
    forward = 2 * input.numel() + 2 * convolved + output
    # Backward: the bottleneck reads grad and convolution, writes dn; the convolution reads all of them and the input.
    backward = 2 * output + 2 * convolved + 2 * convolved + 2 * input.numel()
    elements = forward + (backward if training else 0)
    return Work(elements * DTYPES[dtype].itemsize, 2 * multiply_adds(block, input) * (3 if training else 1))


def network_work(network: nn.Module, shape: tuple[int, ...], dtype: str, training: bool) -> Work:
    """Of an :class:`~mednext.eager.EagerMedNeXt` on the meta device: all its blocks, its stem and its heads."""
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        calls.append((module, arguments[0], output))

    parts = [m for m in network.modules() if isinstance(m, (EagerBlock, EagerHead))]
    with _Hooks([*parts, network.get_submodule("stem")], note):
        network(torch.empty(shape, device="meta"))
    total = Work(0, 0)
    for module, input, output in calls:
        if isinstance(module, EagerBlock):
            total += block_work(module, input, dtype, training)
        else:
            passes = 3 if training else 1
            moved = passes * (input.numel() + output.numel()) * DTYPES[dtype].itemsize
            total += Work(moved, 2 * passes * _multiply_adds_of(module, input, output))
    return total


def multiply_adds(module: nn.Module, input: torch.Tensor) -> int:
    """Multiply-adds of all convolutions in a forward pass; the input may be on the meta device."""
    counted = 0

    def note(convolution: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        nonlocal counted
        counted += _multiply_adds_of(convolution, arguments[0], output)

    with _Hooks([m for m in module.modules() if isinstance(m, (nn.Conv3d, nn.ConvTranspose3d))], note):
        module(input)
    return counted


def _multiply_adds_of(module: nn.Module, input: torch.Tensor, output: torch.Tensor) -> int:
    convolution: Any = module.conv_out if isinstance(module, EagerHead) else module
    if isinstance(convolution, nn.ConvTranspose3d):  # every input voxel is spread
        return input.numel() * convolution.out_channels // convolution.groups * prod(convolution.kernel_size)
    return output.numel() * convolution.in_channels // convolution.groups * prod(convolution.kernel_size)


class _Hooks:
    """Forward hooks on some modules, while the context is open."""

    def __init__(self, modules: list[nn.Module], hook: Any) -> None:
        self._modules, self._hook = modules, hook

    def __enter__(self) -> None:
        self._handles = [module.register_forward_hook(self._hook) for module in self._modules]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
