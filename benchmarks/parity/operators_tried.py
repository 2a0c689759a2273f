"""What parity tries: the operators under measurement, and ``pointwise_conv3d`` and ``mednext_block``, by the same form.

The benchmarks of operators know the last two as parts of a network and as blocks (mednext.bench.blocks).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

import mednext_ops as ops
from mednext.bench.operators import (
    EPS,
    OPERATORS,
    Operator,
    OpProblem,
    Tensors,
    draw_tensors,
    eager_mlp,
    mlp_shapes,
)

__all__ = ["TRIED", "BlockCall", "draw", "operator_of", "told"]


@dataclass(frozen=True)
class BlockCall(OpProblem):
    """One call of ``mednext_block``, whose ``op`` is that.

    Attributes:
        form: "regular", "down" or "up"; the last two have the residual's 1x1x1 convolution.
        recompute: the convolution is run again in the backward pass.
        skip: an up block adds a decoder's skip to its output.
        keep_input: a down block returns its input too, and gets a gradient for it.
        float_parameters: they are in float32, as under autocast.
        permuted_gradient: the output's gradient comes in the other memory format.
    """

    form: str = "regular"
    recompute: bool = False
    skip: bool = False
    keep_input: bool = False
    float_parameters: bool = False
    permuted_gradient: bool = False

    def __str__(self) -> str:
        text = f"{self.op} {self.form} {_extents(self.shape)} k{_extents(self.kernel)} stride {_extents(self.stride)}"
        text += f" ratio {self.ratio} to {self.out_channels}"
        flags = ("grn", "recompute", "skip", "keep_input", "float_parameters", "permuted_gradient")
        return " ".join([text, *(name for name in flags if getattr(self, name))])


def _extents(values: tuple[int, ...]) -> str:
    return "x".join(map(str, values))


def told(problem: OpProblem) -> str:
    """All of a problem in a line."""
    return f"{problem.dtype} {problem}{' channels_last' * problem.channels_last}"


def operator_of(problem: OpProblem) -> Operator:
    """How the problem's operator is called."""
    return _MORE[problem.op] if problem.op in _MORE else OPERATORS[problem.op]


def draw(problem: OpProblem, device: str | torch.device, seed: int = 0) -> Tensors:
    """Random tensors for a problem, as :func:`mednext.bench.operators.draw` makes them."""
    tensors = draw_tensors(problem, operator_of(problem), device, seed)
    if isinstance(problem, BlockCall) and problem.float_parameters:
        tensors = {name: t if name in ("input", "skip") else t.float() for name, t in tensors.items()}
    return tensors


def _pointwise_shapes(p: OpProblem) -> dict[str, tuple[tuple[int, ...], float]]:
    return {
        "input": (p.shape, 1.0),
        "weight": ((p.out_channels, p.channels, 1, 1, 1), p.channels**-0.5),
        "bias": ((p.out_channels,), 0.1),
    }


def _our_pointwise(p: OpProblem, t: Tensors) -> torch.Tensor:
    return ops.pointwise_conv3d(t["input"], t["weight"], t["bias"])


def _eager_pointwise(p: OpProblem, t: Tensors) -> torch.Tensor:
    return F.conv3d(t["input"], t["weight"], t["bias"])


def _block_shapes(p: OpProblem) -> dict[str, tuple[tuple[int, ...], float]]:
    assert isinstance(p, BlockCall)
    c, o, taps = p.channels, p.out_channels, p.kernel[0] * p.kernel[1] * p.kernel[2]
    shapes: dict[str, tuple[tuple[int, ...], float]] = {
        "input": (p.shape, 1.0),
        "conv_weight": ((c, 1, *p.kernel), taps**-0.5),
        "conv_bias": ((c,), 0.1),
    } | mlp_shapes(p)
    if p.form != "regular":
        matrix = (c, o) if p.form == "up" else (o, c)
        shapes |= {"residual_weight": ((*matrix, 1, 1, 1), c**-0.5), "residual_bias": ((o,), 0.1)}
    if p.skip:
        size = (n * s for n, s in zip(p.shape[2:], p.stride, strict=True))
        shapes["skip"] = ((p.shape[0], o, *size), 1.0)
    return shapes


#: In the order in which ``mednext_block`` takes them.
_PARAMETERS = (
    *("conv_weight", "conv_bias", "norm_weight", "norm_bias"),
    *("expand_weight", "expand_bias", "compress_weight", "compress_bias"),
)


def _our_block(p: OpProblem, t: Tensors) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(p, BlockCall)
    return ops.mednext_block(
        t["input"],
        *(t[name] for name in _PARAMETERS),
        form=p.form,
        stride=p.stride,
        residual_weight=t.get("residual_weight"),
        residual_bias=t.get("residual_bias"),
        grn=(t["grn_gamma"], t["grn_beta"]) if p.grn else None,
        eps=EPS,
        recompute="conv" if p.recompute else None,
        skip=t.get("skip"),
        keep_input=p.keep_input,
    )


def _eager_block(p: OpProblem, tensors: Tensors) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(p, BlockCall)
    input = tensors["input"]
    t = {name: tensor.to(input.dtype) for name, tensor in tensors.items()}
    up = p.form == "up"
    convolution = F.conv_transpose3d if up else F.conv3d
    convolved = convolution(input, t["conv_weight"], t["conv_bias"], p.stride, p.padding, groups=p.channels)
    output = eager_mlp(p, t, convolved)
    residual = convolution(input, t["residual_weight"], t["residual_bias"], p.stride) if p.form != "regular" else input
    output = output + residual
    if up:
        d, h, w = (s - 1 for s in p.stride)
        output = F.pad(output, (w, 0, h, 0, d, 0))
    if p.skip:
        output = output + t["skip"]
    return (output, input.view_as(input)) if p.keep_input else output


_MORE: dict[str, Operator] = {
    "pointwise_conv3d": Operator(
        _pointwise_shapes,
        _our_pointwise,
        _eager_pointwise,
        {"forward": (), "backward": ("input", "weight", "bias")},
    ),
    # The convolution's bias cancels: its exact gradient is zero, and no error relates to that.
    "mednext_block": Operator(
        _block_shapes,
        _our_block,
        _eager_block,
        {
            "forward": (),
            "backward": (
                *("input", "skip", *(name for name in _PARAMETERS if name != "conv_bias")),
                *("residual_weight", "residual_bias", "grn_gamma", "grn_beta"),
            ),
        },
        ("output", "kept input"),
    ),
}

#: Names of all operators that are tried.
TRIED = (*OPERATORS, *_MORE)
