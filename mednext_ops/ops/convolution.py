"""What ``depthwise_conv3d`` and ``depthwise_conv_transpose3d`` share: the family of three ops behind each.

``NAME`` computes, ``NAME_backward_data`` and ``NAME_backward_weight`` are its two gradients. The family is closed under
differentiation (all three are bilinear in the same operands), so second derivatives cost three lines.
"""

from __future__ import annotations

from typing import Any

import torch

from mednext_ops import backends
from mednext_ops.backends import ConvGeometry
from mednext_ops.formulas import accumulation_dtype
from mednext_ops.ops.library import define_op, differentiate, empty_like_format, given, problem_of

__all__ = ["channel_sum", "convolve", "convolve_backward", "define_convolution"]

_GEOMETRY = "int[3] stride, int[3] padding, int[3] dilation, int[3] output_padding"


def convolve(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry
) -> torch.Tensor:
    """The convolution on the backend chosen for it."""
    problem = problem_of("depthwise_conv3d", input, geometry=geometry, parameter_dtype=weight.dtype)
    return backends.run(problem, input, weight, bias, geometry)


def convolve_backward(
    grad_output: Any,
    input: torch.Tensor,
    weight: torch.Tensor,
    geometry: ConvGeometry,
    needs_data: bool,
    needs_weight: bool,
    add: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of the input (plus ``add``) and of the weight, on the backend chosen for them.

    ``grad_output`` is a tensor or a :class:`~mednext_ops.backends.GroupNormGradient`.
    """
    flags = {"affine gradient"} if not isinstance(grad_output, torch.Tensor) else set()
    flags |= {"data"} if needs_data else set()
    flags |= {"weight"} if needs_weight else set()
    problem = problem_of(
        "depthwise_conv3d_backward",
        input,
        geometry=geometry,
        parameter_dtype=weight.dtype,
        flags=frozenset(flags),
    )
    data, grad_weight = backends.run(problem, grad_output, input, weight, geometry, add, needs_data, needs_weight)
    return data, None if grad_weight is None else grad_weight.to(weight.dtype)


def channel_sum(grad: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bias's gradient: the sum over everything but the channels, accumulated in float32 (float64)."""
    return grad.sum((0, 2, 3, 4), dtype=accumulation_dtype(grad.dtype)).to(dtype)


def define_convolution(name: str, transposed: bool) -> Any:
    """Define the three ops of a family and the gradient of each; returns the first."""

    def geometry_of(weight_shape: Any, stride: Any, padding: Any, dilation: Any, output_padding: Any) -> ConvGeometry:
        return ConvGeometry(
            tuple(weight_shape)[-3:],
            tuple(stride),
            tuple(padding),
            tuple(dilation),
            tuple(output_padding),
            transposed,
        )

    def forward(input: Any, weight: Any, bias: Any, *geometry: Any) -> torch.Tensor:
        return convolve(input, weight, bias, geometry_of(weight.shape, *geometry))

    def forward_fake(input: Any, weight: Any, bias: Any, *geometry: Any) -> torch.Tensor:
        size = geometry_of(weight.shape, *geometry).output_size(input.shape[2:])
        return empty_like_format(input, (*input.shape[:2], *size))

    def backward_data(grad_output: Any, weight: Any, input_size: Any, *geometry: Any) -> torch.Tensor:
        shape = (*grad_output.shape[:2], *input_size)
        like = empty_like_format(grad_output, shape)  # its values are not read
        return given(convolve_backward(grad_output, like, weight, geometry_of(weight.shape, *geometry), True, False)[0])

    def backward_data_fake(grad_output: Any, weight: Any, input_size: Any, *geometry: Any) -> torch.Tensor:
        return empty_like_format(grad_output, (*grad_output.shape[:2], *input_size))

    def backward_weight(grad_output: Any, input: Any, kernel_size: Any, *geometry: Any) -> torch.Tensor:
        weight = input.new_empty((), dtype=accumulation_dtype(input.dtype)).expand(input.shape[1], 1, *kernel_size)
        return given(convolve_backward(grad_output, input, weight, geometry_of(kernel_size, *geometry), False, True)[1])

    def backward_weight_fake(grad_output: Any, input: Any, kernel_size: Any, *geometry: Any) -> torch.Tensor:
        return input.new_empty((input.shape[1], 1, *kernel_size), dtype=accumulation_dtype(input.dtype))

    op = define_op(f"{name}(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor", forward, forward_fake)
    data_op = define_op(
        f"{name}_backward_data(Tensor grad_output, Tensor weight, SymInt[3] input_size, {_GEOMETRY}) -> Tensor",
        backward_data,
        backward_data_fake,
    )
    weight_op = define_op(
        f"{name}_backward_weight(Tensor grad_output, Tensor input, int[3] kernel_size, {_GEOMETRY}) -> Tensor",
        backward_weight,
        backward_weight_fake,
    )

    def save_forward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        input, weight, bias, *geometry = inputs
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, weight)
        ctx.geometry, ctx.input_size = geometry, input.shape[2:]
        ctx.bias_dtype = None if bias is None else bias.dtype

    def differentiate_forward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        input, weight = ctx.saved_tensors
        data = weight_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            data = data_op(grad_output, weight, ctx.input_size, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            weight_gradient = weight_op(grad_output, input, weight.shape[-3:], *ctx.geometry).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            bias_gradient = channel_sum(grad_output, ctx.bias_dtype)
        return data, weight_gradient, bias_gradient, None, None, None, None

    def save_data(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        grad_output, weight, _, *geometry = inputs
        ctx.save_for_backward(grad_output, weight)
        ctx.geometry = geometry

    def differentiate_data(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        grad_output, weight = ctx.saved_tensors
        first = second = None
        if ctx.needs_input_grad[0]:
            first = op(grad, weight, None, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            second = weight_op(grad_output, grad, weight.shape[-3:], *ctx.geometry).to(weight.dtype)
        return first, second, None, None, None, None, None

    def save_weight(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        grad_output, input, _, *geometry = inputs
        ctx.save_for_backward(grad_output, input)
        ctx.geometry = geometry

    def differentiate_weight(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        grad_output, input = ctx.saved_tensors
        first = second = None
        if ctx.needs_input_grad[0]:
            first = op(input, grad, None, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            second = data_op(grad_output, grad, input.shape[2:], *ctx.geometry)
        return first, second, None, None, None, None, None

    differentiate(op, differentiate_forward, save_forward)
    differentiate(data_op, differentiate_data, save_data)
    differentiate(weight_op, differentiate_weight, save_weight)
    return op
