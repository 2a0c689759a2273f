"""``pointwise_conv3d``: a 1x1x1 convolution, for a network's stem and heads.

Where one side has few channels it costs what its memory traffic costs; where no backend has kernels it is PyTorch's
own convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from mednext_ops import backends
from mednext_ops.backends import memory_format_of
from mednext_ops.backends.problem import FEW_CHANNELS
from mednext_ops.ops.arguments import autocast_to, check_input, check_parameter, pointwise_matrix
from mednext_ops.ops.library import define_op, differentiate, empty_like_format, not_twice_differentiable, problem_of

__all__ = ["FEW_CHANNELS", "pointwise_conv3d"]


def _problem(op: str, input: torch.Tensor, weight: torch.Tensor) -> backends.Problem:
    return problem_of(op, input, parameter_dtype=weight.dtype, out_channels=weight.shape[0])


def _forward(input: Any, weight: Any, bias: Any) -> torch.Tensor:
    output = backends.run_fused(_problem("pointwise_conv3d", input, weight), input, weight, bias)
    if output is not None:
        return output
    dense = weight.to(input.dtype)[:, :, None, None, None]
    output = F.conv3d(input, dense, None if bias is None else bias.to(input.dtype))
    return output.contiguous(memory_format=memory_format_of(input))


def _forward_fake(input: Any, weight: Any, bias: Any) -> torch.Tensor:
    return empty_like_format(input, (input.shape[0], weight.shape[0], *input.shape[2:]))


def _backward_op(
    grad_output: Any, input: Any, weight: Any, needs_input: bool, needs_parameters: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the input, the weight and the bias, the last two in the weight's dtype; empty if not asked for."""
    problem = _problem("pointwise_conv3d_backward", input, weight)
    found = backends.run_fused(problem, grad_output, input, weight, needs_input, needs_parameters)
    if found is not None:
        data, *parameters = found
    else:
        dense = weight.to(input.dtype)[:, :, None, None, None]
        wanted = [needs_input, needs_parameters, needs_parameters]
        data, *parameters = torch.ops.aten.convolution_backward(
            grad_output, input, dense, [weight.shape[0]], [1] * 3, [0] * 3, [1] * 3, False, [0] * 3, 1, wanted
        )
        if needs_input:
            data = data.contiguous(memory_format=memory_format_of(input))
    if not needs_parameters:
        return data, weight.new_empty((0,)), weight.new_empty((0,))
    grad_weight, grad_bias = (gradient.to(weight.dtype) for gradient in parameters)
    return data if needs_input else input.new_empty((0,)), grad_weight.reshape(weight.shape), grad_bias


def _backward_fake(
    grad_output: Any, input: Any, weight: Any, needs_input: bool, needs_parameters: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        empty_like_format(input, input.shape) if needs_input else input.new_empty((0,)),
        weight.new_empty(weight.shape if needs_parameters else (0,)),
        weight.new_empty((weight.shape[0] if needs_parameters else 0,)),
    )


_op = define_op("pointwise_conv3d(Tensor input, Tensor weight, Tensor? bias) -> Tensor", _forward, _forward_fake)
_gradient_op = define_op(
    "pointwise_conv3d_backward(Tensor grad_output, Tensor input, Tensor weight, bool needs_input, "
    "bool needs_parameters) -> (Tensor, Tensor, Tensor)",
    _backward_op,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    input, weight, bias = inputs
    ctx.save_for_backward(input, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad
    data, weight, bias = _gradient_op(grad_output, *ctx.saved_tensors, needs[0], needs[1] or needs[2])
    grad_bias = bias.to(ctx.bias_dtype) if needs[2] and ctx.bias_dtype is not None else None
    return data if needs[0] else None, weight if needs[1] else None, grad_bias


differentiate(_op, _backward, _save)
not_twice_differentiable(_gradient_op)


def pointwise_conv3d(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.conv3d`` with a 1x1x1 kernel: ``weight`` times every voxel, plus ``bias``.

    Fast on a GPU where the input or the output has at most 8 channels, as a segmentation network's stem and heads do.
    Differentiable once.

    Args:
        input: [N, C, D, H, W], float16, bfloat16, float32 or float64; contiguous or channels_last_3d (kept). Cast under
            autocast.
        weight: [O, C] or [O, C, 1, 1, 1], in the input's dtype or, for a 16-bit input, float32.
        bias: [O] or None, likewise.

    Returns:
        [N, O, D, H, W] in the input's dtype and memory format.

    Raises:
        TypeError: a dtype or argument type that is not listed above.
        ValueError: a shape that does not fit; the message names the argument.
        RuntimeError: tensors on different devices.
    """
    check_input("input", input)
    input = autocast_to(input)
    matrix = pointwise_matrix("weight", weight)
    check_parameter("weight", matrix, (matrix.shape[0], input.shape[1]), input)
    if bias is not None:
        check_parameter("bias", bias, (matrix.shape[0],), input)
    return _op(input, matrix, bias)
