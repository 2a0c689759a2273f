"""The inverted bottleneck, forward and recomputing backward: launches of its kernels, and what follows from their sums.

Saved tensors, parameters' gradients and GRN's algebra are those of :mod:`mednext_ops.formulas`, as in every backend.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from mednext_ops.backends.problem import InvertedBottleneckGradients, InvertedBottleneckNeeds, memory_format_of
from mednext_ops.backends.triton import bottleneck_kernels as kernels
from mednext_ops.backends.triton.arguments import check_input, check_like, check_parameter, check_statistics
from mednext_ops.backends.triton.launch import Blocks, cdiv, launch, needs_64_bits
from mednext_ops.backends.triton.reduction import sum_of_parts
from mednext_ops.backends.triton.tuning import choose, kind
from mednext_ops.formulas import GlobalResponse, compression_gradients, expansion_gradients, per_channel

__all__ = ["inverted_bottleneck", "inverted_bottleneck_backward"]

Grn = tuple[torch.Tensor, torch.Tensor]

#: Programs that the sums over the voxels are shared by: enough for any GPU of today, and few enough for the workspace.
#: The split depends on the shape alone, so that every GPU adds in the same order.
_PROGRAMS = 1024


def inverted_bottleneck(
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    compress_weight: torch.Tensor,
    compress_bias: torch.Tensor | None,
    grn: Grn | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """input [N, C, D, H, W], expand_weight [R, C], compress_weight [O, R] -> [N, O, D, H, W], dtype and format kept."""
    op = "inverted_bottleneck"
    _check(op, input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight, grn)
    check_parameter(op, "compress_bias", compress_bias, compress_weight.shape[:1], input)
    check_like(op, "residual", residual, _output_shape(input, compress_weight), input)
    tensors = _Tensors(input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight)
    bias, gain = compress_bias, None
    if grn is not None:
        gain = GlobalResponse(tensors.sums(squares=True)["squares"], grn[0]).gain.contiguous()
        shift = torch.mv(compress_weight.float(), grn[1].float())
        bias = shift if bias is None else bias.float() + shift
    output = tensors.input.new_empty(_output_shape(input, compress_weight)).contiguous(
        memory_format=tensors.memory_format
    )
    tensors.launch_tiles(
        kernels.forward,
        bias=bias,
        gain=gain,
        residual=None if residual is None else tensors.alike(residual),
        output=output,
    )
    return output


def inverted_bottleneck_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    compress_weight: torch.Tensor,
    grn: Grn | None,
    needs: InvertedBottleneckNeeds,
) -> InvertedBottleneckGradients:
    """The gradients that ``needs`` names, from the forward's inputs alone; those of parameters in float32."""
    op = "inverted_bottleneck_backward"
    _check(op, input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight, grn)
    check_like(op, "grad_output", grad_output, _output_shape(input, compress_weight), input)
    tensors = _Tensors(input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight)
    grad_output = tensors.alike(grad_output)
    needs_hidden = needs.input or needs.norm or needs.expand
    found: dict[str, torch.Tensor | None] = {}
    expand, compress = tensors.expand.float(), tensors.compress.float()
    response = gain = slope = None
    sums: dict[str, torch.Tensor] = {}
    if grn is not None:
        # What the norm over the voxels needs comes first: the slope of each hidden channel follows from these sums.
        sums = tensors.sums(grad_output, squares=True, compression=True)
        response = GlobalResponse(sums["squares"], grn[0])
        slope = response.slope((sums["output_hidden"] * compress.t()).sum(2)).contiguous()
        gain = response.gain.contiguous()
    needs_compress = needs.compress and grn is None
    if needs_hidden or needs_compress:
        sums |= tensors.sums(grad_output, gain, slope, expansion=needs_hidden, compression=needs_compress)
    if needs.compress or grn is not None:
        beta = None if grn is None else grn[1]
        found |= compression_gradients(sums["output_sums"], sums["output_hidden"].mT, compress, response, beta)
    if needs_hidden:
        found |= expansion_gradients(sums["hidden_sums"], sums["hidden_normalized"], expand, norm_weight, norm_bias)
    if needs.input:
        found["grad"] = torch.empty_like(tensors.input)
        tensors.launch_tiles(
            kernels.normalized_gradient, grad_output=grad_output, gain=gain, slope=slope, grad=found["grad"]
        )
    return InvertedBottleneckGradients(**found)


def _output_shape(input: torch.Tensor, compress_weight: torch.Tensor) -> tuple[int, ...]:
    return (input.shape[0], compress_weight.shape[0], *input.shape[2:])


def _check(
    op: str,
    input: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    compress_weight: torch.Tensor,
    grn: Grn | None,
) -> None:
    check_input(op, input)
    check_statistics(op, mean, rstd, input)
    channels, hidden, outputs = input.shape[1], expand_weight.shape[0], compress_weight.shape[0]
    gamma, beta = grn or (None, None)
    for name, parameter, shape in (
        ("norm_weight", norm_weight, (channels,)),
        ("norm_bias", norm_bias, (channels,)),
        ("expand_weight", expand_weight, (hidden, channels)),
        ("expand_bias", expand_bias, (hidden,)),
        ("compress_weight", compress_weight, (outputs, hidden)),
        ("grn gamma", gamma, (hidden,)),
        ("grn beta", beta, (hidden,)),
    ):
        check_parameter(op, name, parameter, shape, input)


class _Tensors:
    """The arguments that all kernels share, as they read them."""

    def __init__(
        self,
        input: torch.Tensor,
        mean: torch.Tensor,
        rstd: torch.Tensor,
        norm_weight: torch.Tensor,
        norm_bias: torch.Tensor,
        expand_weight: torch.Tensor,
        expand_bias: torch.Tensor | None,
        compress_weight: torch.Tensor,
    ) -> None:
        self.memory_format = memory_format_of(input)
        self.input = self.alike(input)
        self.batch, self.channels = input.shape[:2]
        self.outputs, self.hidden = compress_weight.shape
        self.voxels = input.shape[2:].numel()
        # The products are in the type of the voxels, as PyTorch's are.
        self.expand, self.compress = (w.to(input.dtype).contiguous() for w in (expand_weight, compress_weight))
        wide = input.new_empty(1).expand(self.batch, max(self.channels, self.outputs), *input.shape[2:])
        self.arguments: dict[str, Any] = {
            "input": self.input,
            "mean": per_channel(mean, self.channels).contiguous(),
            "rstd": per_channel(rstd, self.channels).contiguous(),
            "norm_weight": norm_weight.contiguous(),
            "norm_bias": norm_bias.contiguous(),
            "expand": self.expand,
            "expand_bias": None if expand_bias is None else expand_bias.contiguous(),
            "compress": self.compress,
            "channels": self.channels,
            "hidden": self.hidden,
            "outputs": self.outputs,
            "voxels": self.voxels,
            "CHANNELS_LAST": self.memory_format == torch.channels_last_3d,
            "INDEX": tl.int64 if needs_64_bits(wide) else tl.int32,
            "CP": _filled(self.channels),
            "OP": _filled(self.outputs),
        }

    def alike(self, tensor: torch.Tensor) -> torch.Tensor:
        """In the memory format of the input."""
        return tensor.contiguous(memory_format=self.memory_format)

    def launch_tiles(self, kernel: Any, **arguments: Any) -> None:
        """A program a tile of voxels."""

        def run(blocks: Blocks) -> None:
            programs = self.batch * cdiv(self.voxels, blocks["BV"])
            launch(kernel, programs, blocks, **self.arguments, **arguments)

        run(choose(kernel.__name__, self.kind(), self.tile_ways(), self.input, run))

    def kind(self, *details: Any) -> tuple[Any, ...]:
        return kind(self.input, self.arguments["CHANNELS_LAST"], self.hidden, self.outputs, *details)

    def tile_ways(self) -> list[Blocks]:
        """More voxels a tile share the weights' way into shared memory, more hidden channels fill the products."""
        if self.input.dtype == torch.float32:  # no tensor cores: registers are what is short
            return [Blocks.of(256, 1, BV=32, BR=16), Blocks.of(128, 1, BV=16, BR=16)]
        return [Blocks.of(256, BV=128, BR=32), Blocks.of(128, BV=64, BR=32), Blocks.of(128, BV=64, BR=64)]

    def sums_ways(self) -> list[Blocks]:
        if self.input.dtype == torch.float32:
            return [Blocks.of(256, 1, BV=16, BR=16), Blocks.of(256, 1, BV=16, BR=32)]
        if max(self.channels, self.outputs) > 64:
            return [Blocks.of(256, BV=32, BR=32), Blocks.of(256, BV=32, BR=16)]
        return [Blocks.of(256, BV=64, BR=32), Blocks.of(256, BV=64, BR=64), Blocks.of(128, BV=32, BR=32)]

    def sums(
        self,
        grad_output: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        slope: torch.Tensor | None = None,
        *,
        expansion: bool = False,
        compression: bool = False,
        squares: bool = False,
    ) -> dict[str, torch.Tensor]:
        """The sums over the voxels that are asked for, by the names of the kernel's workspaces."""
        shapes = {
            "hidden_normalized": (self.hidden, self.channels) if expansion else None,
            "hidden_sums": (self.hidden,) if expansion else None,
            "output_hidden": (self.hidden, self.outputs) if compression else None,
            "output_sums": (self.outputs,) if compression else None,
            "squares": (self.hidden,) if squares else None,
        }

        def run(blocks: Blocks) -> dict[str, torch.Tensor]:
            row_blocks = cdiv(self.hidden, blocks["BR"])
            parts = min(cdiv(self.voxels, blocks["BV"]), cdiv(_PROGRAMS, max(self.batch * row_blocks, 1)))
            workspaces = {
                name: None if shape is None else self.input.new_empty((self.batch, *shape, parts), dtype=torch.float32)
                for name, shape in shapes.items()
            }
            arguments = self.arguments | workspaces | {"grad_output": grad_output, "gain": gain, "slope": slope}
            launch(kernels.weight_gradients, self.batch * row_blocks * parts, blocks, parts=parts, **arguments)
            return {name: sum_of_parts(found) for name, found in workspaces.items() if found is not None}

        key = self.kind(expansion, compression, squares, gain is not None)
        return run(choose("weight_gradients", key, self.sums_ways(), self.input, run, most=64))


def _filled(channels: int) -> int:
    """The extent of a tile that holds so many channels: a power of two, and what a product takes at least."""
    extent = 16
    while extent < channels:
        extent *= 2
    return extent
