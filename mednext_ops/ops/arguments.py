"""What every public function checks before any work, and the errors that it raises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch

__all__ = [
    "autocast_to",
    "check_group_count",
    "check_input",
    "check_output_size",
    "check_parameter",
    "is_int",
    "pointwise_matrix",
    "triple",
]

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Asked once: torch 2.10 cannot compile the question.
_AUTOCAST_DEVICES = frozenset(d for d in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(d))


_INTS = frozenset((int,))

#: The most voxels that a stride, a padding or a kernel counts along an axis: products of two fit 64 bits.
_MOST = 2**31 - 1
#: The most bytes of a tensor.
_MOST_BYTES = 2**63 - 1


def is_int(value: object) -> bool:
    """Whether ``value`` is an integer, numpy's too; a bool is none."""
    return type(value) is int or (isinstance(value, int | Integral) and not isinstance(value, bool))


def triple(name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int, int]:
    """``value`` for each of D, H, W: an int stands for all three."""
    if (
        type(value) is tuple
        and len(value) == 3
        and _INTS.issuperset(map(type, value))
        and minimum <= min(value)
        and max(value) <= _MOST
    ):
        return value  # the usual case, without a question an element
    values = tuple(value) if isinstance(value, Sequence) else (value,) * 3
    if len(values) != 3 or not all(map(is_int, values)):
        raise ValueError(f"{name} must be an int or three ints (D, H, W), got {value!r}")
    if min(values) < minimum:
        raise ValueError(f"{name} must be at least {minimum} on every axis, got {value!r}")
    if max(values) > _MOST:
        raise ValueError(f"{name} must be at most 2^31 - 1 = {_MOST} on every axis, got {value!r}")
    return int(values[0]), int(values[1]), int(values[2])


def check_input(name: str, tensor: torch.Tensor) -> None:
    """A floating-point [N, C, D, H, W] tensor, outside of torch.jit.trace, where every size would be a tensor."""
    if torch.jit.is_tracing():
        raise RuntimeError(
            "torch.jit.trace cannot record the operators of mednext_ops; use torch.export.export or torch.compile"
        )
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dim() != 5:
        raise ValueError(f"{name} must have 5 dimensions [N, C, D, H, W], got shape {list(tensor.shape)}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {tensor.layout}")


def check_parameter(name: str, tensor: torch.Tensor, shape: Sequence[int], input: torch.Tensor) -> None:
    """A parameter of that shape on the input's device, in the input's dtype or, for a 16-bit input, float32."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != input.device:
        raise RuntimeError(f"{name} is on {tensor.device} but input is on {input.device}; move one of them")
    mixed = tensor.dtype == torch.float32 and input.dtype in (torch.float16, torch.bfloat16)
    if tensor.dtype != input.dtype and not mixed:
        raise TypeError(
            f"{name} is {tensor.dtype} but input is {input.dtype}; it must be the same, or float32 for a 16-bit input"
        )


def check_output_size(size: Sequence[int], input: torch.Tensor, kernel_size: Sequence[int]) -> None:
    """An output with at least one voxel on every axis, and not more than a tensor can have."""
    if min(size) < 1:
        raise ValueError(
            f"the output would have extent {list(size)}: input extent {list(input.shape[2:])} is too small for "
            f"kernel_size {list(kernel_size)} at this padding"
        )
    # Not asked while a graph is recorded: it would become a condition on sizes that the graph leaves open.
    if not torch.compiler.is_compiling() and max(size) > _MOST:
        shape = [*input.shape[:2], *size]
        if math.prod(max(extent, 1) for extent in shape) * input.element_size() > _MOST_BYTES:
            raise ValueError(f"the output would have shape {shape}: a tensor has at most 2^63 - 1 bytes")


def check_group_count(num_groups: int | None, channels: int) -> int:
    """The number of groups, one a channel by default, which must divide the channels."""
    groups = channels if num_groups is None else num_groups
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(f"num_groups must be a positive divisor of the {channels} channels, got {num_groups!r}")
    return groups


def pointwise_matrix(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A 1x1x1 convolution's weight [O, C] or [O, C, 1, 1, 1] as [O, C]."""
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(weight).__name__}")
    if weight.dim() not in (2, 5) or any(extent != 1 for extent in weight.shape[2:]):
        raise ValueError(f"{name} must have shape [out, in] or [out, in, 1, 1, 1], got {list(weight.shape)}")
    return weight if weight.dim() == 2 else weight.flatten(1)


def autocast_to(input: torch.Tensor) -> torch.Tensor:
    """``input`` in autocast's dtype where autocast is on. Parameters stay as they are: the kernels convert on load."""
    device = input.device.type
    if device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device) and input.dtype != torch.float64:
        return input.to(torch.get_autocast_dtype(device))
    return input
