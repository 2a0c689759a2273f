"""The ``mednext_ops`` namespace of torch.library: how an op of ours is defined. Holds no arithmetic.

Every op is functional: a schema, an implementation that asks :mod:`mednext_ops.backends` who runs it, a shape function
for tracing, and (where it has one) a gradient formula. Implementations run below autocast and autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from mednext_ops.backends import Problem, memory_format_of

__all__ = [
    "Operator",
    "define_op",
    "differentiate",
    "empty_like_format",
    "given",
    "not_twice_differentiable",
    "problem_of",
]

_library = torch.library.Library("mednext_ops", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

#: Types of arguments that mean nothing but themselves. A parameter is one; other subclasses of tensors are not.
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, torch.Size, type(None), bool, int, float, str, tuple, list))


class Operator:
    """An op of ours. Calling it goes by way of the dispatcher only where somebody there may want to see it.

    That way costs the host several times what the op's own Python does. Where all arguments are plain and nothing
    traces, transforms or profiles, the implementation is called at once, with the op's own gradient formula around it.
    """

    def __init__(self, overload: Any, implementation: Callable[..., Any]) -> None:
        self.overload = overload
        self.implementation = implementation
        self.function: Any = None  # with the gradient formula; its last argument computes the output of the others

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or not _is_plain_call(args):
            return self.overload(*args)
        _refuse_forward_mode(self.overload, args)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return self._below_autograd(*args)
        return self.overload(*args) if self.function is None else self.function.apply(*args, self._below_autograd)

    def _below_autograd(self, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return _without_autocast(self.implementation, args)


def _is_plain_call(args: tuple[Any, ...]) -> bool:
    return (
        _PLAIN.issuperset(map(type, args))
        and not args[0].is_meta
        and not torch._C._len_torch_dispatch_stack()
        and not torch._ops._len_torch_dispatch_stack_pre_dispatch()
        and not torch._C._len_torch_function_stack()
        and not torch._C._are_functorch_transforms_active()
        and not torch.autograd._profiler_enabled()
    )


def _refuse_forward_mode(overload: Any, args: tuple[Any, ...]) -> None:
    """Without an error the tangents of an op's outputs would be missing, which is to say zero."""
    if forward_ad._current_level < 0:
        return
    for argument in args:
        if isinstance(argument, torch.Tensor) and forward_ad.unpack_dual(argument).tangent is not None:
            raise NotImplementedError(
                f"{overload._name} has no forward-mode derivative; use reverse mode, or PyTorch's own layers"
            )


def _without_autocast(implementation: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    device = args[0].device.type
    if not torch.is_autocast_enabled(device):
        return implementation(*args)
    torch.set_autocast_enabled(device, False)
    try:
        return implementation(*args)
    finally:
        torch.set_autocast_enabled(device, True)


def define_op(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Operator:
    """Define ``mednext_ops::<name of the schema>`` on every device and return it. Its first argument is a tensor."""
    name = schema[: schema.index("(")]
    _library.define(schema, tags=_TAGS)

    @functools.wraps(implementation)
    def below_autocast(*args: Any) -> Any:
        # Subclasses that only carry metadata (MONAI's MetaTensor) are plain tensors to a kernel.
        return _without_autocast(
            implementation, args if _PLAIN.issuperset(map(type, args)) else tuple(map(_plain, args))
        )

    _library.impl(name, below_autocast, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mednext_ops::{name}", fake, lib=_library)
    return Operator(getattr(torch.ops.mednext_ops, name).default, implementation)


def _plain(argument: Any) -> Any:
    return argument.as_subclass(torch.Tensor) if isinstance(argument, torch.Tensor) else argument


def differentiate(
    operator: Operator, backward: Callable[..., Any], setup_context: Callable[..., None] | None = None
) -> None:
    """Give an op its gradient formula, of the form that ``torch.library.register_autograd`` takes.

    In a formula ``ctx.needs_input_grad`` has one entry more than the op has arguments: what computes is passed last.
    That function's own kernel reads the schema, argument by argument, in each forward pass, to fill in defaults. Ours
    have none.
    """
    op = operator.overload
    schema = op._schema
    if any(isinstance(returned.type, torch.ListType) for returned in schema.returns):
        torch.library.register_autograd(op._name, backward, setup_context=setup_context, lib=_library)
        return
    assert not any(argument.has_default_value() or argument.kwarg_only for argument in schema.arguments)

    class Differentiated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *inputs, compute = args
            output = compute(*inputs)
            if setup_context is not None:
                setup_context(ctx, tuple(inputs), output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            found = backward(ctx, *grads)
            return (*found, None) if isinstance(found, tuple) else (found, None)

    Differentiated.__name__ = op._name.replace("::", "_")
    operator.function = Differentiated

    def kernel(keyset: Any, *args: Any) -> Any:
        _refuse_forward_mode(op, args)

        def below(*args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Differentiated.apply(*args, below)
        return below(*args)

    _library.impl(op._name, kernel, "Autograd", with_keyset=True)


def not_twice_differentiable(operator: Operator) -> None:
    """Mark a backward op as the end of differentiation: an error that says so, not a wrong gradient."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{operator.overload._name} has no gradient: mednext_ops gives second derivatives of depthwise_conv3d and "
            f"depthwise_conv_transpose3d only; compose the block from those and PyTorch's own layers"
        )

    differentiate(operator, backward)


def problem_of(op: str, input: torch.Tensor, **details: Any) -> Problem:
    """The :class:`Problem` of calling ``op`` on ``input``."""
    channels_last = memory_format_of(input) == torch.channels_last_3d
    return Problem(op, input.device.type, input.dtype, tuple(input.shape), channels_last=channels_last, **details)


def given(tensor: torch.Tensor | None) -> torch.Tensor:
    """A tensor that must be there: what was asked for was computed, and what was checked was passed."""
    assert tensor is not None
    return tensor


def empty_like_format(input: torch.Tensor, shape: tuple[Any, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialised tensor of ``shape`` on the input's device, in its memory format: for shape functions."""
    return torch.empty(shape, dtype=dtype or input.dtype, device=input.device, memory_format=memory_format_of(input))
