"""The MedNeXt blocks under measurement: ours and the same block in plain PyTorch layers, with the same weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mednext.bench.operators import DTYPES, Tensors
from mednext.blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock
from mednext.eager import EagerBlock

__all__ = ["BlockProblem", "draw_input", "eager_block", "fill", "our_block"]

_OURS = {"regular": MedNeXtBlock, "down": MedNeXtDownBlock, "up": MedNeXtUpBlock}
_STEPS = {"regular": 0, "down": -1, "up": 1}


@dataclass(frozen=True)
class BlockProblem:
    """One block on one input.

    Attributes:
        form: "regular", "down" (to half the extents and twice the channels) or "up" (the other way).
        shape: N, C, D, H, W of the input.
        kernel_size: cubic, of the depthwise convolution.
        ratio: hidden channels over C.
        dtype: "fp32", or "fp16" or "bf16" for autocast with float32 weights, as networks are trained.
        channels_last: input and weights are in channels_last_3d.
        grn: with global response normalisation.
    """

    form: str
    shape: tuple[int, ...]
    kernel_size: int = 3
    ratio: int = 2
    dtype: str = "fp32"
    channels_last: bool = False
    grn: bool = False

    @property
    def out_channels(self) -> int:
        return {"regular": self.shape[1], "down": 2 * self.shape[1], "up": self.shape[1] // 2}[self.form]

    def __str__(self) -> str:
        grn = " grn" if self.grn else ""
        return f"{self.form} {'x'.join(map(str, self.shape))} k{self.kernel_size} ratio {self.ratio}{grn}"


def eager_block(problem: BlockProblem, device: str | torch.device = "cpu", seed: int = 0) -> nn.Module:
    """The block in plain PyTorch layers, float32."""
    block = EagerBlock(
        *(problem.shape[1], problem.out_channels, problem.ratio, problem.kernel_size, True),
        step=_STEPS[problem.form],
        axes=3,
        grn=problem.grn,
    )
    return _placed(fill(block, seed), problem, device)


def our_block(problem: BlockProblem, device: str | torch.device = "cpu", seed: int = 0) -> nn.Module:
    """Our block, with the weights of :func:`eager_block`."""
    block = _OURS[problem.form](
        *(problem.shape[1], problem.out_channels, problem.ratio, problem.kernel_size),
        do_res=True,
        grn=problem.grn,
    )
    block.load_state_dict(eager_block(problem, seed=seed).state_dict())
    return _placed(block, problem, device)


def _placed(block: nn.Module, problem: BlockProblem, device: str | torch.device) -> nn.Module:
    memory_format = torch.channels_last_3d if problem.channels_last else torch.contiguous_format
    return block.to(device, memory_format=memory_format)


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Random weights that keep the variance: every parameter matters to the result, the norms' and GRN's too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                values.mul_(0.1).add_(1)
            elif name.endswith("weight"):
                transposed = isinstance(_owner(module, name), nn.ConvTranspose3d) and parameter.shape[1] > 1
                fan_in = parameter.shape[0] if transposed else parameter[0].numel()
                values.mul_(fan_in**-0.5)
            else:
                values.mul_(0.1)
            parameter.copy_(values)
    return module


def _owner(module: nn.Module, parameter_name: str) -> nn.Module:
    return module.get_submodule(parameter_name.rpartition(".")[0])


def draw_input(problem: BlockProblem, device: str | torch.device, seed: int = 0) -> Tensors:
    """The block's input: in the 16-bit type under autocast, as a block inside of a network gets it."""
    generator = torch.Generator(device).manual_seed(seed)
    values = torch.randn(problem.shape, device=device, generator=generator).to(DTYPES[problem.dtype])
    if problem.channels_last:
        values = values.contiguous(memory_format=torch.channels_last_3d)
    return {"input": values}
