"""What the emulated kernels make of a random problem, and what it is compared with: float64, and PyTorch's own.

Nothing is judged here but what has one right answer: shapes, types, statistics of what was stored.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import mednext_ops as ops
from mednext_ops.backends.problem import GroupNormGradient, memory_format_of

from ..ops.eager import rms_error
from .random_problems import Drawn

__all__ = [
    "Comparison",
    "backward_results",
    "compared_backward",
    "compared_forward",
    "comparisons",
    "forward_results",
    "gradient_of",
    "results",
    "tensors_of",
]

EPS = 1e-5

Results = dict[str, torch.Tensor]


class Comparison(NamedTuple):
    """One result: ours, PyTorch's own at that dtype, and in float64.

    ``terms`` goes with a gradient behind a norm: for each number the root of the sum of squares of what is added up.
    Where the norm takes most of a sum out again its error is large beside the number itself, and a draw.
    """

    name: str
    ours: torch.Tensor
    theirs: torch.Tensor
    exact: torch.Tensor
    terms: torch.Tensor | None = None


def results(emulated: Any, p: Drawn) -> Results:
    """Everything that the operator's kernels make of the problem, by name, nothing but emulated kernels used."""
    with ops.use_backend("emulated"), emulated.architecture(p.architecture):
        return _normed(p) if p.is_normed else forward_results(emulated, p) | backward_results(emulated, p)


def comparisons(p: Drawn, found: Results) -> list[Comparison]:
    """What :func:`results` must be no worse than; nothing for an empty batch, whose results are empty or zero."""
    if p.batch == 0:
        assert not any(t.any() for t in found.values()), p
        return []
    return _compared_normed(p, found) if p.is_normed else [*compared_forward(p, found), *compared_backward(p, found)]


def convolve(p: Drawn, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    """PyTorch's own."""
    g = p.geometry
    if g.transposed:
        return F.conv_transpose3d(x, w, b, g.stride, g.padding, g.output_padding, p.channels, g.dilation)
    return F.conv3d(x, w, b, g.stride, g.padding, g.dilation, p.channels)


@contextlib.contextmanager
def pytorchs_kernels(p: Drawn) -> Iterator[None]:
    """Without oneDNN where padding exceeds the kernel's reach: its float16 kernels crash there, on processors with
    instructions for float16."""
    g = p.geometry
    before = torch._C._get_mkldnn_enabled()
    within = all(pad <= d * (k - 1) for pad, d, k in zip(g.padding, g.dilation, g.kernel_size, strict=True))
    torch._C._set_mkldnn_enabled(before and within)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def volume_like(p: Drawn, values: torch.Tensor) -> torch.Tensor:
    """In the problem's type and memory format."""
    values = values.to(p.dtype)
    return values.contiguous(memory_format=torch.channels_last_3d) if p.channels_last else values


def tensors_of(p: Drawn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Input, weight, bias and gradient of the output."""
    generator = torch.Generator().manual_seed(p.seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    taps = math.prod(p.geometry.kernel_size)
    x = volume_like(p, normal(p.batch, p.channels, *p.size))
    w = (normal(p.channels, 1, *p.geometry.kernel_size) / taps**0.5).to(p.parameter_dtype)
    b = normal(p.channels).to(p.parameter_dtype) if p.bias else None
    return x, w, b, volume_like(p, normal(p.batch, p.channels, *p.output_size))


# ---- a convolution: what the backend is asked for, with every prologue and epilogue ----


def forward_results(backend: Any, p: Drawn) -> Results:
    x, w, b, _ = tensors_of(p)
    output = backend.depthwise_conv3d(x, w, b, p.geometry)
    stored, mean, rstd = backend.depthwise_conv3d_statistics(x, w, b, p.geometry, p.num_groups, EPS)
    assert output.shape == (p.batch, p.channels, *p.output_size) and output.dtype == p.dtype
    assert torch.equal(output, stored), p
    return {"output": output, "mean": mean, "rstd": rstd}


def compared_forward(p: Drawn, found: Results) -> list[Comparison]:
    x, w, b, _ = tensors_of(p)
    values = found["output"].double().reshape(p.batch, p.num_groups, -1)
    variance, mean = torch.var_mean(values, dim=2, correction=0)
    rstd = (variance + EPS).rsqrt()
    assert ((found["mean"].double() - mean).abs() <= 2**-21 * (mean.abs() + 1 / rstd)).all(), p
    assert ((found["rstd"].double() - rstd).abs() <= 2**-21 * rstd).all(), p
    exact = convolve(p, x.double(), w.double(), None if b is None else b.double())
    # Contiguous: some of PyTorch's own channels_last_3d paths leave NaN.
    with pytorchs_kernels(p):
        theirs = convolve(p, x.contiguous(), w.to(p.dtype), None if b is None else b.to(p.dtype))
    return [Comparison("output", found["output"], theirs, exact)]


def gradient_of(p: Drawn) -> tuple[torch.Tensor | GroupNormGradient, torch.Tensor]:
    """The gradient as the backend is given it, and written out in float64."""
    grad = tensors_of(p)[3]
    if not p.affine:
        return grad, grad.double()
    generator = torch.Generator().manual_seed(p.seed + 1)
    output = volume_like(p, torch.randn(grad.shape, generator=generator))
    maps = [torch.randn(p.batch, p.channels, generator=generator) for _ in range(3)]
    scale, slope, offset = (m.double()[:, :, None, None, None] for m in maps)
    return GroupNormGradient(grad, output, *maps), scale * grad.double() + slope * output.double() + offset


def _added(p: Drawn) -> torch.Tensor | None:
    """What is added to the gradient of the input."""
    shape = (p.batch, p.channels, *p.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(p.seed + 2)).to(p.dtype) if p.add else None


def backward_results(backend: Any, p: Drawn) -> Results:
    x, w, _, _ = tensors_of(p)
    given, _ = gradient_of(p)
    data, weight = backend.depthwise_conv3d_backward(given, x, w, p.geometry, _added(p), True, True)
    assert data.shape == x.shape and weight.shape == w.shape and weight.dtype == torch.float32
    return {"gradient of the input": data, "gradient of the weight": weight}


def compared_backward(p: Drawn, found: Results) -> list[Comparison]:
    x, w, _, _ = tensors_of(p)
    add = _added(p)
    _, written = gradient_of(p)
    data, weight = found["gradient of the input"], found["gradient of the weight"]

    def gradients(dtype: torch.dtype, grad: torch.Tensor = written) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = [t.to(dtype).contiguous().requires_grad_() for t in (x, w)]
        with pytorchs_kernels(p):
            made = torch.autograd.grad(convolve(p, *inputs, None), inputs, grad.to(dtype).contiguous())
        return made[0] if add is None else made[0] + add.to(dtype), made[1]

    exact, theirs = gradients(torch.float64), gradients(p.dtype)
    their_error = rms_error(theirs[1], exact[1])
    if p.dtype != torch.float32 and their_error > 0:  # it is 0 where no tap meets the input
        # A gradient that is computed may be rounded first, as PyTorch is given it: then the sums of that are compared,
        # for where taps are few PyTorch's second rounding may happen to take back the first.
        rounded = gradients(torch.float64, written.to(p.dtype))[1] if p.affine else exact[1]
        better = rms_error(weight, exact[1]) < their_error or rms_error(weight, rounded) < rms_error(theirs[1], rounded)
        assert better, f"gradient of the weight: no better than PyTorch's {their_error:.2e}, of {p}"
    return [
        Comparison("gradient of the input", data, theirs[0], exact[0]),
        Comparison("gradient of the weight", weight, theirs[1].float(), exact[1]),
    ]


# ---- a convolution, its norm and an activation: the public operator ----


def _leaves_of(p: Drawn) -> dict[str, torch.Tensor]:
    """Input and parameters that require a gradient, by name."""
    x, w, b, _ = tensors_of(p)
    generator = torch.Generator().manual_seed(p.seed + 3)
    norm = [torch.randn(p.channels, generator=generator).to(p.parameter_dtype) for _ in range(2)]
    named = {"input": x, "weight": w, "bias": b, "norm's weight": norm[0], "norm's bias": norm[1]}
    return {name: t.requires_grad_() for name, t in named.items() if t is not None}


def _normed(p: Drawn) -> Results:
    leaves, grad = _leaves_of(p), tensors_of(p)[3]
    output = ops.depthwise_conv3d_group_norm(
        *map(leaves.get, ("input", "weight", "bias", "norm's weight", "norm's bias")),
        stride=p.geometry.stride,
        padding=p.geometry.padding,
        num_groups=p.num_groups,
        eps=EPS,
        activation=p.activation,
    )
    gradients = torch.autograd.grad(output, list(leaves.values()), grad)
    assert output.shape == (p.batch, p.channels, *p.output_size) and output.dtype == p.dtype
    assert memory_format_of(output) == memory_format_of(grad)
    assert all(g.shape == t.shape and g.dtype == t.dtype for g, t in zip(gradients, leaves.values(), strict=True))
    if p.bias and p.num_groups == p.channels:
        assert not gradients[2].any()  # it cancels
    found = {f"gradient of the {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"output": output.detach()} | found


def _compared_normed(p: Drawn, found: Results) -> list[Comparison]:
    leaves, grad = _leaves_of(p), tensors_of(p)[3]

    def composed(dtype: torch.dtype) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """The results, and for each gradient the terms of its sums."""
        cast = {name: t.detach().to(dtype).contiguous().requires_grad_() for name, t in leaves.items()}
        with pytorchs_kernels(p):
            convolved = convolve(p, cast["input"], cast["weight"], cast.get("bias"))
            normalized = F.group_norm(convolved, p.num_groups, cast["norm's weight"], cast["norm's bias"], EPS)
            output = F.gelu(normalized) if p.activation else normalized
            wanted = [*cast.values(), convolved, normalized]
            *gradients, of_convolved, of_normalized = torch.autograd.grad(output, wanted, grad.to(dtype))
        without_affine = F.group_norm(convolved.detach(), p.num_groups, eps=EPS)
        sums = {"bias": of_convolved, "norm's weight": of_normalized * without_affine, "norm's bias": of_normalized}
        terms = {name: t.square().sum((0, 2, 3, 4)).sqrt() for name, t in sums.items()}
        squared = [cast[name].detach().square().requires_grad_() for name in ("input", "weight")]
        of_squares = torch.autograd.grad(convolve(p, *squared, None), squared, of_convolved.square())
        return [output.detach(), *gradients], terms | {
            name: t.sqrt() for name, t in zip(("input", "weight"), of_squares, strict=True)
        }

    theirs, _ = composed(p.dtype)
    exact, terms = composed(torch.float64)
    compared = [Comparison("output", found["output"], theirs[0], exact[0])]
    for name, their, wanted in zip(leaves, theirs[1:], exact[1:], strict=True):
        if name == "bias" and p.num_groups == p.channels:
            continue
        ours = found[f"gradient of the {name}"]
        compared.append(Comparison(f"gradient of the {name}", ours, their.to(ours.dtype), wanted, terms[name]))
    return compared
