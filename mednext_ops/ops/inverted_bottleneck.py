"""``inverted_bottleneck``: GroupNorm's affine map, expansion, GELU, GRN, compression and residual as one op.

Saved for backward: the op's own inputs. The hidden tensor, R times as wide, is made again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch

from mednext_ops import backends
from mednext_ops.backends import InvertedBottleneckGradients, InvertedBottleneckNeeds
from mednext_ops.formulas import group_norm_affine
from mednext_ops.ops.arguments import autocast_to, check_input, check_parameter, pointwise_matrix
from mednext_ops.ops.library import (
    define_op,
    differentiate,
    empty_like_format,
    given,
    not_twice_differentiable,
    problem_of,
)

__all__ = ["bottleneck", "bottleneck_backward", "bottleneck_parameters", "inverted_bottleneck", "up_bottleneck"]


def bottleneck(input: torch.Tensor, *args: Any) -> torch.Tensor:
    """The forward on the backend chosen for it; the arguments of the reference's ``inverted_bottleneck``."""
    return backends.run(_problem("inverted_bottleneck", input, *args), input, *args)


def up_bottleneck(input: torch.Tensor, *args: Any) -> torch.Tensor | None:
    """The forward of an up block, completed, where a backend has that; stride, zero planes and skip come last."""
    return backends.run_fused(_problem("up_bottleneck", input, *args), input, *args)


def bottleneck_backward(grad_output: torch.Tensor, input: torch.Tensor, *args: Any) -> InvertedBottleneckGradients:
    """The backward on the backend chosen for it; the arguments of the reference's ``inverted_bottleneck_backward``."""
    return backends.run(_problem("inverted_bottleneck_backward", input, *args), grad_output, input, *args)


def _problem(op: str, input: torch.Tensor, *args: Any) -> backends.Problem:
    mean, _, _, _, expand_weight, _, compress_weight, *rest = args
    grn = rest[0] if op.endswith("backward") else rest[1]
    return problem_of(
        op,
        input,
        parameter_dtype=expand_weight.dtype,
        num_groups=mean.shape[1],
        hidden_channels=expand_weight.shape[0],
        out_channels=compress_weight.shape[0],
        flags=frozenset() if grn is None else frozenset({"grn"}),
    )


def bottleneck_parameters(
    input: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    compress_weight: torch.Tensor,
    compress_bias: torch.Tensor | None,
    grn: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Check the parameters of an inverted bottleneck; returns both weights as matrices and GRN's two as vectors."""
    channels = input.shape[1]
    check_parameter("norm_weight", norm_weight, (channels,), input)
    check_parameter("norm_bias", norm_bias, (channels,), input)
    expand = pointwise_matrix("expand_weight", expand_weight)
    hidden = expand.shape[0]
    check_parameter("expand_weight", expand, (hidden, channels), input)
    compress = pointwise_matrix("compress_weight", compress_weight)
    out_channels = compress.shape[0]
    check_parameter("compress_weight", compress, (out_channels, hidden), input)
    if expand_bias is not None:
        check_parameter("expand_bias", expand_bias, (hidden,), input)
    if compress_bias is not None:
        check_parameter("compress_bias", compress_bias, (out_channels,), input)
    if grn is None:
        return expand, compress, None, None
    if not isinstance(grn, tuple | list) or len(grn) != 2 or not all(isinstance(t, torch.Tensor) for t in grn):
        raise TypeError("grn must be None or two tensors (gamma, beta)")
    for name, tensor in zip(("grn gamma", "grn beta"), grn, strict=True):
        if tensor.numel() != hidden:
            raise ValueError(f"{name} must have {hidden} elements, one a hidden channel, got {list(tensor.shape)}")
    gamma, beta = grn[0].reshape(hidden), grn[1].reshape(hidden)
    check_parameter("grn gamma", gamma, (hidden,), input)
    check_parameter("grn beta", beta, (hidden,), input)
    return expand, compress, gamma, beta


def _forward(
    input: Any, mean: Any, rstd: Any, norm_weight: Any, norm_bias: Any, expand_weight: Any, expand_bias: Any,
    compress_weight: Any, compress_bias: Any, grn_gamma: Any, grn_beta: Any, residual: Any,
) -> torch.Tensor:  # fmt: skip
    grn = None if grn_gamma is None else (grn_gamma, grn_beta)
    return bottleneck(
        input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight, compress_bias, grn,
        residual,
    )  # fmt: skip


def _forward_fake(input: Any, *args: Any) -> torch.Tensor:
    return empty_like_format(input, (input.shape[0], args[6].shape[0], *input.shape[2:]))


def _backward_op(
    grad_output: Any, input: Any, mean: Any, rstd: Any, norm_weight: Any, norm_bias: Any, expand_weight: Any,
    expand_bias: Any, compress_weight: Any, compress_bias: Any, grn_gamma: Any, grn_beta: Any, needs: Any,
) -> list[torch.Tensor]:  # fmt: skip
    needs = InvertedBottleneckNeeds(*needs)
    grn = None if grn_gamma is None else (grn_gamma, grn_beta)
    found = bottleneck_backward(
        grad_output, input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight, grn, needs
    )
    results: list[torch.Tensor | None] = [None] * 11
    if found.grad_sum is not None and found.grad_dot_normalized is not None:
        gamma = norm_weight.to(rstd.dtype)
        batch, groups = rstd.shape
        if found.grad is not None:
            # The statistics are inputs of their own here, so that only the affine map is differentiated.
            scale, _ = group_norm_affine(mean, rstd, norm_weight, norm_bias)
            results[0] = found.grad * scale.to(found.grad.dtype)[:, :, None, None, None]
        shape = (batch, groups, gamma.shape[0] // groups)
        group_sums = (gamma * found.grad_sum).reshape(shape).sum(2)
        results[1] = -rstd * group_sums
        results[2] = (gamma * found.grad_dot_normalized).reshape(shape).sum(2) / rstd
        results[3] = found.grad_dot_normalized.sum(0).to(norm_weight.dtype)
        results[4] = found.grad_sum.sum(0).to(norm_bias.dtype)
    for slot, gradient, parameter in (
        (5, found.expand_weight, expand_weight),
        (6, found.expand_bias, expand_bias),
        (7, found.compress_weight, compress_weight),
        (8, found.compress_bias, compress_bias),
        (9, found.grn_gamma, grn_gamma),
        (10, found.grn_beta, grn_beta),
    ):
        if gradient is not None and parameter is not None:
            results[slot] = gradient.to(parameter.dtype)
    wanted = _wanted(needs, expand_bias is not None, compress_bias is not None)
    return [given(result) if want else input.new_empty((0,)) for result, want in zip(results, wanted, strict=True)]


def _wanted(needs: InvertedBottleneckNeeds, expand_bias: bool, compress_bias: bool) -> list[bool]:
    statistics = needs.input or needs.norm
    return [
        needs.input,
        statistics,
        statistics,
        needs.norm,
        needs.norm,
        needs.expand,
        needs.expand and expand_bias,
        needs.compress,
        needs.compress and compress_bias,
        needs.grn,
        needs.grn,
    ]


def _backward_fake(grad_output: Any, *args: Any) -> list[torch.Tensor]:
    *tensors, needs = args
    input = tensors[0]
    wanted = _wanted(InvertedBottleneckNeeds(*needs), tensors[6] is not None, tensors[8] is not None)
    shapes = [empty_like_format(input, input.shape) if wanted[0] else input.new_empty((0,))]
    for want, tensor in zip(wanted[1:], tensors[1:], strict=True):
        shapes.append(tensor.new_empty(tensor.shape) if want else input.new_empty((0,)))
    return shapes


_TENSORS = (
    "Tensor input, Tensor mean, Tensor rstd, Tensor norm_weight, Tensor norm_bias, Tensor expand_weight, "
    "Tensor? expand_bias, Tensor compress_weight, Tensor? compress_bias, Tensor? grn_gamma, Tensor? grn_beta"
)
_op = define_op(f"inverted_bottleneck({_TENSORS}, Tensor? residual) -> Tensor", _forward, _forward_fake)
_gradient_op = define_op(
    f"inverted_bottleneck_backward(Tensor grad_output, {_TENSORS}, bool[5] needs) -> Tensor[]",
    _backward_op,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:11])


def _backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad
    asked = [
        needs[0] or needs[1] or needs[2],
        needs[3] or needs[4],
        needs[5] or needs[6],
        needs[7] or needs[8],
        needs[9] or needs[10],
    ]
    results: list[Any] = [None] * 11
    if any(asked):
        results = _gradient_op(grad_output, *ctx.saved_tensors, asked)
    return *(r if need else None for r, need in zip(results, needs[:11], strict=True)), grad_output if needs[
        11
    ] else None


differentiate(_op, _backward, _save)
not_twice_differentiable(_gradient_op)


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
    *,
    grn: tuple[torch.Tensor, torch.Tensor] | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The second half of a MedNeXt block: normalise, expand, GELU, (GRN), compress, add.

    ``n = norm_weight (input - mean) rstd + norm_bias``, ``h = gelu(expand_weight n + expand_bias)``,
    with GRN ``h = h + gamma h nx + beta`` where ``gx = ||h||_2`` over the voxels and ``nx = gx / (mean_c gx + 1e-6)``
    (ConvNeXt V2), then ``compress_weight h + compress_bias + residual``. No normalised or hidden tensor is kept for the
    backward pass. The statistics are inputs with gradients of their own: with those of
    :func:`group_norm_statistics` the whole is GroupNorm's gradient. Differentiable once.

    Args:
        input: [N, C, D, H, W], float16, bfloat16, float32 or float64; contiguous or channels_last_3d (kept). Cast, like
            the residual, under autocast.
        mean, rstd: [N, G] of :func:`group_norm_statistics`, float32 (float64 for float64), G a divisor of C.
        norm_weight, norm_bias: [C]; this and every other parameter in the input's dtype or, for 16 bits, float32.
        expand_weight, expand_bias: [R, C] or [R, C, 1, 1, 1], and [R] or None.
        compress_weight, compress_bias: [O, R] or [O, R, 1, 1, 1], and [O] or None.
        grn: None or (gamma, beta) of R elements each.
        residual: None or [N, O, D, H, W] in the input's dtype.

    Returns:
        [N, O, D, H, W] in the input's dtype and memory format.

    Raises:
        TypeError: a dtype or argument type that is not listed above.
        ValueError: a shape that does not fit; the message names the argument.
        RuntimeError: tensors on different devices.
    """
    check_input("input", input)
    input = autocast_to(input)
    expand, compress, gamma, beta = bottleneck_parameters(
        input, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight, compress_bias, grn
    )
    statistic = torch.float64 if input.dtype == torch.float64 else torch.float32
    for name, tensor in (("mean", mean), ("rstd", rstd)):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != statistic or tensor.dim() != 2:
            raise TypeError(f"{name} must be a {statistic} tensor [N, G], as group_norm_statistics returns it")
        groups = tensor.shape[1]
        if tensor.shape != mean.shape or tensor.shape[0] != input.shape[0] or not groups or input.shape[1] % groups:
            raise ValueError(
                f"{name} must be [N, G] with N = {input.shape[0]} and G a divisor of {input.shape[1]} channels, "
                f"got {list(tensor.shape)}"
            )
        if tensor.device != input.device:
            raise RuntimeError(f"{name} is on {tensor.device} but input is on {input.device}; move one of them")
    if residual is not None:
        check_input("residual", residual)
        residual = autocast_to(residual)
        expected = (input.shape[0], compress.shape[0], *input.shape[2:])
        if residual.dtype != input.dtype:
            raise TypeError(f"residual is {residual.dtype} but input is {input.dtype}; they must be the same")
        check_parameter("residual", residual, expected, input)
    return _op(
        input, mean, rstd, norm_weight, norm_bias, expand, expand_bias, compress, compress_bias, gamma, beta, residual
    )
