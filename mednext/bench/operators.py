"""The operators under measurement: for each the tensors it takes, ours, PyTorch's own, and the passes to be timed.

A problem is drawn at random from a seed, on its device; both sides read the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

import mednext_ops as ops

__all__ = [
    "DTYPES",
    "EPS",
    "OPERATORS",
    "OpProblem",
    "Operator",
    "Tensors",
    "draw",
    "draw_tensors",
    "eager_mlp",
    "mlp_shapes",
]

Triple = tuple[int, int, int]
Tensors = dict[str, torch.Tensor]

_MLP = ("expand_weight", "expand_bias", "compress_weight", "compress_bias")
_GRN = ("grn_gamma", "grn_beta")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EPS = 1e-5


@dataclass(frozen=True)
class OpProblem:
    """One call of an operator.

    Attributes:
        op: its name in ``mednext_ops``.
        shape: N, C, D, H, W of the input.
        kernel: of the depthwise convolution; ``stride`` too. The padding is half the kernel.
        ratio: hidden channels of the inverted bottleneck over C.
        dtype: "fp32", "fp16" or "bf16", of every tensor.
        channels_last: the voxels are in channels_last_3d.
        outputs: channels of the output, where the operator mixes channels; None for as many as the input has.
        grn: the inverted bottleneck has a global response normalisation.
    """

    op: str
    shape: tuple[int, ...]
    kernel: Triple = (3, 3, 3)
    stride: Triple = (1, 1, 1)
    ratio: int = 2
    dtype: str = "fp32"
    channels_last: bool = False
    outputs: int | None = None
    grn: bool = False

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def out_channels(self) -> int:
        return self.channels if self.outputs is None else self.outputs

    @property
    def padding(self) -> Triple:
        d, h, w = self.kernel
        return d // 2, h // 2, w // 2

    @property
    def voxels(self) -> int:
        """Of one channel of the input."""
        return self.shape[2] * self.shape[3] * self.shape[4]

    def output_size(self) -> Triple:
        """Spatial extents of the output."""
        steps = zip(self.shape[2:], self.kernel, self.stride, self.padding, strict=True)
        if self.op == "depthwise_conv_transpose3d":
            d, h, w = ((n - 1) * s - 2 * p + k for n, k, s, p in steps)
        elif self.op in CONVOLUTIONS:
            d, h, w = ((n + 2 * p - k) // s + 1 for n, k, s, p in steps)
        else:
            d, h, w = self.shape[2:]
        return d, h, w

    def __str__(self) -> str:
        text = f"{self.op} {'x'.join(map(str, self.shape))}"
        if self.op in CONVOLUTIONS:
            text += " k" + _extents(self.kernel)
            text += "" if self.stride == (1, 1, 1) else f" stride {_extents(self.stride)}"
        text += f" ratio {self.ratio}" if self.op == "inverted_bottleneck" else ""
        text += "" if self.outputs is None else f" to {self.outputs}"
        return text + " grn" * self.grn


def _extents(values: Triple) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


CONVOLUTIONS = ("depthwise_conv3d", "depthwise_conv_transpose3d", "depthwise_conv3d_group_norm")


@dataclass(frozen=True)
class Operator:
    """How one operator is called.

    Attributes:
        shapes: of its tensors, by name, with the scale of their values (and 1 added where it is a norm's weight).
        ours: the operator of ``mednext_ops``.
        eager: the same result by PyTorch's own functions.
        passes: what is timed: for each pass the tensors, of those that there are, whose gradients it computes; for
            "forward" none.
        results: names of what the functions return.
    """

    shapes: Callable[[OpProblem], dict[str, tuple[tuple[int, ...], float]]]
    ours: Callable[[OpProblem, Tensors], Any]
    eager: Callable[[OpProblem, Tensors], Any]
    passes: dict[str, tuple[str, ...]]
    results: tuple[str, ...] = ("output",)


def draw(problem: OpProblem, device: str | torch.device, seed: int = 0) -> Tensors:
    """Random tensors for a problem: the input of variance 1, weights scaled so that the output has about that too."""
    return draw_tensors(problem, OPERATORS[problem.op], device, seed)


def draw_tensors(problem: OpProblem, operator: Operator, device: str | torch.device, seed: int = 0) -> Tensors:
    """The same for an operator that is not one of :data:`OPERATORS`."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, (shape, scale) in operator.shapes(problem).items():
        values = torch.randn(shape, device=device, generator=generator).mul_(scale)
        if name == "norm_weight" or problem.op == "group_norm_statistics":
            values.add_(1)  # a mean of zero has no relative error
        tensors[name] = values.to(DTYPES[problem.dtype])
    if problem.channels_last:
        for name in ("input", "residual", "skip"):
            if name in tensors:
                tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last_3d)
    return tensors


def _convolution_shapes(p: OpProblem) -> dict[str, tuple[tuple[int, ...], float]]:
    taps = p.kernel[0] * p.kernel[1] * p.kernel[2]
    return {
        "input": (p.shape, 1.0),
        "weight": ((p.channels, 1, *p.kernel), taps**-0.5),
        "bias": ((p.channels,), 0.1),
    }


def _convolution_norm_shapes(p: OpProblem) -> dict[str, tuple[tuple[int, ...], float]]:
    return _convolution_shapes(p) | {"norm_weight": ((p.channels,), 0.1), "norm_bias": ((p.channels,), 0.1)}


def mlp_shapes(p: OpProblem) -> dict[str, tuple[tuple[int, ...], float]]:
    """Of a norm's parameters and those of the two 1x1x1 convolutions behind it, with GRN's where there is one."""
    c, hidden, outputs = p.channels, p.ratio * p.channels, p.out_channels
    of_mlp: dict[str, tuple[tuple[int, ...], float]] = {
        "norm_weight": ((c,), 0.1),
        "norm_bias": ((c,), 0.1),
        "expand_weight": ((hidden, c, 1, 1, 1), c**-0.5),
        "expand_bias": ((hidden,), 0.1),
        "compress_weight": ((outputs, hidden, 1, 1, 1), hidden**-0.5),
        "compress_bias": ((outputs,), 0.1),
    }
    return of_mlp | (dict.fromkeys(_GRN, ((1, hidden, 1, 1, 1), 0.5)) if p.grn else {})


def _bottleneck_shapes(p: OpProblem) -> dict[str, tuple[tuple[int, ...], float]]:
    residual = (p.shape[0], p.out_channels, *p.shape[2:])
    return {"input": (p.shape, 1.0)} | mlp_shapes(p) | {"residual": (residual, 1.0)}


def _our_convolution(p: OpProblem, t: Tensors) -> torch.Tensor:
    return ops.depthwise_conv3d(t["input"], t["weight"], t["bias"], p.stride, p.padding)


def _eager_convolution(p: OpProblem, t: Tensors) -> torch.Tensor:
    return F.conv3d(t["input"], t["weight"], t["bias"], p.stride, p.padding, groups=p.channels)


def _our_transposed(p: OpProblem, t: Tensors) -> torch.Tensor:
    return ops.depthwise_conv_transpose3d(t["input"], t["weight"], t["bias"], p.stride, p.padding)


def _eager_transposed(p: OpProblem, t: Tensors) -> torch.Tensor:
    return F.conv_transpose3d(t["input"], t["weight"], t["bias"], p.stride, p.padding, groups=p.channels)


def _our_statistics(p: OpProblem, t: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    return ops.group_norm_statistics(t["input"])


def _eager_statistics(p: OpProblem, t: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = torch.var_mean(t["input"].flatten(2), 2, correction=0)
    return mean, (variance + EPS).rsqrt()


def _our_convolution_norm(p: OpProblem, t: Tensors) -> torch.Tensor:
    norm = (t["norm_weight"], t["norm_bias"])
    return ops.depthwise_conv3d_group_norm(
        t["input"], t["weight"], t["bias"], *norm, stride=p.stride, padding=p.padding, eps=EPS, activation="gelu"
    )


def _eager_convolution_norm(p: OpProblem, t: Tensors) -> torch.Tensor:
    return F.gelu(F.group_norm(_eager_convolution(p, t), p.channels, t["norm_weight"], t["norm_bias"], EPS))


def _our_bottleneck(p: OpProblem, t: Tensors) -> torch.Tensor:
    mean, rstd = ops.group_norm_statistics(t["input"], eps=EPS)
    parameters = (t[name] for name in ("norm_weight", "norm_bias", *_MLP))
    grn = (t["grn_gamma"], t["grn_beta"]) if p.grn else None
    return ops.inverted_bottleneck(t["input"], mean, rstd, *parameters, grn=grn, residual=t["residual"])


def _eager_bottleneck(p: OpProblem, t: Tensors) -> torch.Tensor:
    return eager_mlp(p, t, t["input"]) + t["residual"]


def eager_mlp(p: OpProblem, t: Tensors, input: torch.Tensor) -> torch.Tensor:
    """Norm, expansion, GELU, GRN and compression by PyTorch's own functions."""
    normalized = F.group_norm(input, p.channels, t["norm_weight"], t["norm_bias"], EPS)
    hidden = F.gelu(F.conv3d(normalized, t["expand_weight"], t["expand_bias"]))
    if p.grn:
        norm = hidden.norm(p=2, dim=(2, 3, 4), keepdim=True)
        response = hidden * (norm / (norm.mean(1, keepdim=True) + 1e-6))
        hidden = hidden + t["grn_gamma"] * response + t["grn_beta"]
    return F.conv3d(hidden, t["compress_weight"], t["compress_bias"])


_CONVOLUTION_PASSES = {"forward": (), "backward data": ("input",), "backward weight": ("weight",)}

OPERATORS: dict[str, Operator] = {
    "depthwise_conv3d": Operator(_convolution_shapes, _our_convolution, _eager_convolution, _CONVOLUTION_PASSES),
    "depthwise_conv_transpose3d": Operator(
        _convolution_shapes, _our_transposed, _eager_transposed, _CONVOLUTION_PASSES
    ),
    "group_norm_statistics": Operator(
        lambda p: {"input": (p.shape, 1.0)}, _our_statistics, _eager_statistics, {"forward": ()}, ("mean", "rstd")
    ),
    "depthwise_conv3d_group_norm": Operator(
        _convolution_norm_shapes,
        _our_convolution_norm,
        _eager_convolution_norm,
        {"forward": (), "backward": ("input", "weight", "norm_weight", "norm_bias")},
    ),
    # With the statistics of its own input, so that both sides compute the same gradient.
    "inverted_bottleneck": Operator(
        _bottleneck_shapes,
        _our_bottleneck,
        _eager_bottleneck,
        {"forward": (), "backward": ("input", "norm_weight", "norm_bias", *_MLP, *_GRN, "residual")},
    ),
}
