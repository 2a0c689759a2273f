"""``depthwise_conv3d_group_norm``: convolution, GroupNorm and optionally GELU as one op.

Saved for backward: the input, the convolution's output and the statistics; the normalised tensor is never kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mednext_ops import backends
from mednext_ops.backends import ConvGeometry, GroupNormGradient
from mednext_ops.formulas import accumulation_dtype, bias_gradient, group_norm_gradient
from mednext_ops.ops.arguments import autocast_to, check_group_count, check_input, check_parameter
from mednext_ops.ops.convolution import convolve, convolve_backward
from mednext_ops.ops.depthwise_conv3d import convolution_geometry
from mednext_ops.ops.group_norm_statistics import statistics
from mednext_ops.ops.library import (
    define_op,
    differentiate,
    empty_like_format,
    not_twice_differentiable,
    problem_of,
)

__all__ = ["bias_before_norm", "convolve_with_statistics", "depthwise_conv3d_group_norm", "gradient_before_norm"]

ACTIVATIONS = (None, "gelu")


def bias_before_norm(bias: torch.Tensor | None, num_groups: int, channels: int) -> torch.Tensor | None:
    """The bias of a convolution that GroupNorm follows: with a group a channel it cancels, and is left out."""
    return None if num_groups == channels else bias


def convolve_with_statistics(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: ConvGeometry,
    num_groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The convolution's output and its GroupNorm statistics: in one pass where a backend has that, else in two."""
    bias = bias_before_norm(bias, num_groups, input.shape[1])
    problem = problem_of(
        "depthwise_conv3d_statistics", input, geometry=geometry, parameter_dtype=weight.dtype, num_groups=num_groups
    )
    fused = backends.run_fused(problem, input, weight, bias, geometry, num_groups, eps)
    if fused is not None:
        return fused
    output = convolve(input, weight, bias, geometry)
    return output, *statistics(output, num_groups, eps)


def gradient_before_norm(
    grad: torch.Tensor,
    convolved: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    norm_weight: torch.Tensor,
    grad_sum: torch.Tensor,
    grad_dot_normalized: torch.Tensor,
) -> GroupNormGradient:
    """:func:`formulas.group_norm_gradient`, its maps by one kernel where a backend has that."""
    problem = problem_of("group_norm_input_gradient", convolved, num_groups=mean.shape[1])
    voxels = convolved.shape[2:].numel()
    maps = backends.run_fused(problem, grad_sum, grad_dot_normalized, mean, rstd, norm_weight, voxels)
    if maps is None:
        return group_norm_gradient(grad, convolved, mean, rstd, norm_weight, grad_sum, grad_dot_normalized)
    return GroupNormGradient(grad, convolved, *maps)


def _geometry(weight: torch.Tensor, stride: Sequence[int], padding: Sequence[int]) -> ConvGeometry:
    (kd, kh, kw), (sd, sh, sw), (pd, ph, pw) = weight.shape[2:], stride, padding
    return ConvGeometry((kd, kh, kw), (sd, sh, sw), (pd, ph, pw))


def _forward(
    input: Any, weight: Any, bias: Any, norm_weight: Any, norm_bias: Any, stride: Any, padding: Any,
    num_groups: int, eps: float, activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    geometry = _geometry(weight, stride, padding)
    convolved, mean, rstd = convolve_with_statistics(input, weight, bias, geometry, num_groups, eps)
    problem = problem_of("group_norm", convolved, num_groups=num_groups, flags=_flags(activation))
    return backends.run(problem, convolved, mean, rstd, norm_weight, norm_bias, activation), convolved, mean, rstd


def _flags(activation: str | None) -> frozenset[str]:
    return frozenset() if activation is None else frozenset({activation})


def _forward_fake(
    input: Any, weight: Any, bias: Any, norm_weight: Any, norm_bias: Any, stride: Any, padding: Any,
    num_groups: int, eps: float, activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    size = _geometry(weight, stride, padding).output_size(input.shape[2:])
    shape, statistic = (*input.shape[:2], *size), (input.shape[0], num_groups)
    dtype = accumulation_dtype(input.dtype)
    return (
        empty_like_format(input, shape),
        empty_like_format(input, shape),
        input.new_empty(statistic, dtype=dtype),
        input.new_empty(statistic, dtype=dtype),
    )


def _backward_op(
    grad_output: Any, input: Any, convolved: Any, mean: Any, rstd: Any, weight: Any, norm_weight: Any, norm_bias: Any,
    stride: Any, padding: Any, activation: str | None, needs_input: bool, needs_weight: bool, needs_bias: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    problem = problem_of("group_norm_backward", convolved, num_groups=mean.shape[1], flags=_flags(activation))
    grad, grad_sum, grad_dot = backends.run(
        problem, grad_output, convolved, mean, rstd, norm_weight, norm_bias, activation
    )
    gradient = gradient_before_norm(grad, convolved, mean, rstd, norm_weight, grad_sum, grad_dot)
    data = weight_gradient = None
    if needs_input or needs_weight:
        geometry = _geometry(weight, stride, padding)
        data, weight_gradient = convolve_backward(gradient, input, weight, geometry, needs_input, needs_weight)
    grad_bias = None
    if needs_bias:
        grad_bias = bias_gradient(gradient, grad_sum, mean.shape[1]).to(norm_bias.dtype)
    missing = input.new_empty((0,))
    return (
        missing if data is None else data,
        missing if weight_gradient is None else weight_gradient,
        missing if grad_bias is None else grad_bias,
        grad_dot.sum(0).to(norm_weight.dtype),
        grad_sum.sum(0).to(norm_bias.dtype),
    )


def _backward_fake(
    grad_output: Any, input: Any, convolved: Any, mean: Any, rstd: Any, weight: Any, norm_weight: Any, norm_bias: Any,
    stride: Any, padding: Any, activation: str | None, needs_input: bool, needs_weight: bool, needs_bias: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    missing = input.new_empty((0,))
    return (
        empty_like_format(input, input.shape) if needs_input else missing,
        weight.new_empty(weight.shape) if needs_weight else input.new_empty((0,)),
        norm_bias.new_empty(norm_bias.shape) if needs_bias else input.new_empty((0,)),
        norm_weight.new_empty(norm_weight.shape),
        norm_bias.new_empty(norm_bias.shape),
    )


_op = define_op(
    "depthwise_conv3d_group_norm(Tensor input, Tensor weight, Tensor? bias, Tensor norm_weight, Tensor norm_bias, "
    "int[3] stride, int[3] padding, int num_groups, float eps, str? activation) "
    "-> (Tensor output, Tensor convolved, Tensor mean, Tensor rstd)",
    _forward,
    _forward_fake,
)
_gradient_op = define_op(
    "depthwise_conv3d_group_norm_backward(Tensor grad_output, Tensor input, Tensor convolved, Tensor mean, "
    "Tensor rstd, Tensor weight, Tensor norm_weight, Tensor norm_bias, int[3] stride, int[3] padding, "
    "str? activation, bool needs_input, bool needs_weight, bool needs_bias) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_op,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    input, weight, _, norm_weight, norm_bias, stride, padding, _, _, activation = inputs
    _, convolved, mean, rstd = output
    ctx.save_for_backward(input, convolved, mean, rstd, weight, norm_weight, norm_bias)
    ctx.mark_non_differentiable(convolved, mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.stride, ctx.padding, ctx.activation = stride, padding, activation


def _backward(ctx: Any, grad_output: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad_output is None:
        return (None,) * 10
    needs = ctx.needs_input_grad
    data, weight, bias, norm_weight, norm_bias = _gradient_op(
        grad_output, *ctx.saved_tensors, ctx.stride, ctx.padding, ctx.activation, needs[0], needs[1], needs[2]
    )
    return (
        data if needs[0] else None,
        weight if needs[1] else None,
        bias if needs[2] else None,
        norm_weight if needs[3] else None,
        norm_bias if needs[4] else None,
        *(None,) * 5,
    )


differentiate(_op, _backward, _save)
not_twice_differentiable(_gradient_op)


def depthwise_conv3d_group_norm(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    num_groups: int | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
) -> torch.Tensor:
    """Depthwise 3D convolution, GroupNorm and an optional exact GELU: ``gelu(group_norm(conv3d(input)))``.

    With one group a channel the convolution's bias cancels: it is not added and its gradient is zero. Where a group
    is a single voxel the variance is zero and the result is ``norm_bias`` (PyTorch's layer refuses that in training).
    Under autocast the input is cast to autocast's dtype. Differentiable once.

    Args:
        input: [N, C, D, H, W], float16, bfloat16, float32 or float64; contiguous or channels_last_3d (kept).
        weight: [C, 1, kd, kh, kw], odd extents; this and every other parameter is in the input's dtype or, for a
            16-bit input, float32.
        bias: [C] or None.
        norm_weight, norm_bias: [C].
        stride, padding: in voxels, an int or three (D, H, W).
        num_groups: a divisor of C; None for one group a channel (instance statistics, as MedNeXt has).
        eps: added to the variance.
        activation: None or "gelu".

    Returns:
        [N, C, D', H', W'] in the input's dtype and memory format.

    Raises:
        TypeError: a dtype or argument type that is not listed above.
        ValueError: a shape or an activation that does not fit; the message names the argument.
        RuntimeError: tensors on different devices.
    """
    check_input("input", input)
    input = autocast_to(input)
    channels = input.shape[1]
    geometry = convolution_geometry(input, weight, bias, stride, padding)
    check_parameter("norm_weight", norm_weight, (channels,), input)
    check_parameter("norm_bias", norm_bias, (channels,), input)
    groups = check_group_count(num_groups, channels)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'gelu', got {activation!r}")
    return _op(input, weight, bias, norm_weight, norm_bias, geometry.stride, geometry.padding, groups, eps, activation)[
        0
    ]
