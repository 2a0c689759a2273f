"""The ``mednext_ops`` namespace of torch.library: how an op of ours is defined. Holds no arithmetic.

Every op is functional: a schema, an implementation that asks :mod:`mednext_ops.backends` who runs it, a shape function
for tracing, and (where it has one) a gradient formula. Implementations run below autocast and autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from mednext_ops.backends import Problem, memory_format_of
from mednext_ops.backends.problem import ConvGeometry

__all__ = ["define_op", "differentiate", "empty_like_format", "given", "not_twice_differentiable", "problem_of"]

_library = torch.library.Library("mednext_ops", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def define_op(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define ``mednext_ops::<name of the schema>`` on every device and return it."""
    name = schema[: schema.index("(")]
    _library.define(schema, tags=_TAGS)

    @functools.wraps(implementation)
    def below_autocast(*args: Any) -> Any:
        # Subclasses that only carry metadata (MONAI's MetaTensor) are plain tensors to a kernel.
        args = tuple(map(_plain, args))
        device = next(arg.device.type for arg in args if isinstance(arg, torch.Tensor))
        if not torch.is_autocast_enabled(device):
            return implementation(*args)
        with torch.autocast(device, enabled=False):
            return implementation(*args)

    _library.impl(name, below_autocast, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mednext_ops::{name}", fake, lib=_library)
    return getattr(torch.ops.mednext_ops, name).default


def _plain(argument: Any) -> Any:
    if type(argument) is torch.Tensor or not isinstance(argument, torch.Tensor):
        return argument
    return argument.as_subclass(torch.Tensor)


def differentiate(op: Any, backward: Callable[..., Any], setup_context: Callable[..., None] | None = None) -> None:
    """Give an op its gradient formula, of the form that ``torch.library.register_autograd`` takes.

    That function's own kernel reads the schema, argument by argument, in each forward pass, to fill in defaults. Ours
    have none.
    """
    schema = op._schema
    if any(isinstance(returned.type, torch.ListType) for returned in schema.returns):
        torch.library.register_autograd(op._name, backward, setup_context=setup_context, lib=_library)
        return
    assert not any(argument.has_default_value() or argument.kwarg_only for argument in schema.arguments)

    def below(keyset: Any, args: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    class Differentiated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            inputs, keyset = args[:-1], args[-1]
            output = below(keyset, inputs)
            if setup_context is not None:
                setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            needs = ctx.needs_input_grad
            ctx.needs_input_grad = needs[:-1]  # the keyset is no input
            try:
                found = backward(ctx, *grads)
            finally:
                ctx.needs_input_grad = needs
            return (*found, None) if isinstance(found, tuple) else (found, None)

    def kernel(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Differentiated.apply(*args, keyset)
        return below(keyset, args)

    _library.impl(op._name, kernel, "Autograd", with_keyset=True)


def not_twice_differentiable(op: Any) -> None:
    """Mark a backward op as the end of differentiation: an error that says so, not a wrong gradient."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{op._name} has no gradient: mednext_ops gives second derivatives of depthwise_conv3d and "
            f"depthwise_conv_transpose3d only; compose the block from those and PyTorch's own layers"
        )

    differentiate(op, backward)


def problem_of(op: str, input: torch.Tensor, **details: Any) -> Problem:
    """The :class:`Problem` of calling ``op`` on ``input``."""
    geometry: ConvGeometry | None = details.get("geometry")
    return Problem(
        op,
        input.device.type,
        input.dtype,
        tuple(input.shape),
        channels_last=memory_format_of(input) == torch.channels_last_3d,
        **(details | {"geometry": geometry}),
    )


def given(tensor: torch.Tensor | None) -> torch.Tensor:
    """A tensor that must be there: what was asked for was computed, and what was checked was passed."""
    assert tensor is not None
    return tensor


def empty_like_format(input: torch.Tensor, shape: tuple[Any, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialised tensor of ``shape`` on the input's device, in its memory format: for shape functions."""
    return torch.empty(shape, dtype=dtype or input.dtype, device=input.device, memory_format=memory_format_of(input))
