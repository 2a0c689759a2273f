"""What this backend asks of its arguments, before anything is allocated or launched, and the errors that it raises.

The public functions have checked what users pass; these checks are for whoever calls the backend directly, and for
mistakes of ours: a kernel gets pointers and believes them. A dtype is a TypeError, a shape a ValueError, a device a
RuntimeError, as in :mod:`mednext_ops.ops.arguments`. Strides are never wrong: what lies otherwise in memory is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient
from mednext_ops.backends.triton import DTYPES
from mednext_ops.backends.triton.launch import INTERPRETS, recorded

__all__ = [
    "check_activation",
    "check_convolution",
    "check_gradient",
    "check_groups",
    "check_input",
    "check_like",
    "check_parameter",
    "check_statistics",
]


def check_input(op: str, input: torch.Tensor) -> None:
    """[N, C, D, H, W] in a dtype and on a device that kernels run on; only the batch may be empty."""
    if input.layout is not torch.strided:
        raise TypeError(f"{op}: input must be a dense (strided) tensor, got layout {input.layout}")
    if input.dim() != 5:
        raise ValueError(f"{op}: input must be [N, C, D, H, W], got {input.dim()} dimensions: {list(input.shape)}")
    if input.dtype not in DTYPES:
        raise TypeError(f"{op}: input must be float32, float16 or bfloat16, got {input.dtype}")
    if min(input.shape[1:]) < 1:
        raise ValueError(f"{op}: input must have a channel and a voxel at least, got shape {list(input.shape)}")
    wanted = "cpu" if INTERPRETS else "cuda"
    if input.device.type != wanted and not recorded():
        why = ", since TRITON_INTERPRET is set" if INTERPRETS else ""
        raise RuntimeError(f"{op}: input must be on {wanted}{why}, got a tensor on {input.device}")


def _check_shape(op: str, name: str, tensor: torch.Tensor, shape: Sequence[int]) -> None:
    if list(tensor.shape) != list(shape):
        raise ValueError(f"{op}: {name} must have shape {list(shape)}, got {list(tensor.shape)}")


def _check_device(op: str, name: str, tensor: torch.Tensor, input: torch.Tensor) -> None:
    if tensor.device != input.device:
        raise RuntimeError(f"{op}: {name} is on {tensor.device} but input is on {input.device}; move one of them")


def check_like(op: str, name: str, tensor: torch.Tensor | None, shape: Sequence[int], input: torch.Tensor) -> None:
    """A volume of that shape, if it is given, in the dtype and on the device of the input."""
    if tensor is None:
        return
    _check_shape(op, name, tensor, shape)
    if tensor.dtype != input.dtype:
        raise TypeError(f"{op}: {name} must be {input.dtype} as the input, got {tensor.dtype}")
    _check_device(op, name, tensor, input)


def check_parameter(op: str, name: str, tensor: torch.Tensor | None, shape: Sequence[int], input: torch.Tensor) -> None:
    """A parameter of that shape, if it is given, on the input's device, in the input's dtype or float32."""
    if tensor is None:
        return
    _check_shape(op, name, tensor, shape)
    if tensor.dtype not in (input.dtype, torch.float32):
        raise TypeError(f"{op}: {name} must be float32 or {input.dtype} as the input, got {tensor.dtype}")
    _check_device(op, name, tensor, input)


def check_groups(op: str, num_groups: int, channels: int) -> None:
    """A divisor of the channels."""
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"{op}: num_groups must be a positive divisor of the {channels} channels, got {num_groups}")


def _check_float32(op: str, name: str, tensor: torch.Tensor, shape: Sequence[int], input: torch.Tensor) -> None:
    _check_shape(op, name, tensor, shape)
    if tensor.dtype != torch.float32:
        raise TypeError(f"{op}: {name} must be float32, got {tensor.dtype}")
    _check_device(op, name, tensor, input)


def check_statistics(op: str, mean: torch.Tensor, rstd: torch.Tensor, input: torch.Tensor) -> None:
    """Two float32 [N, G] with a number of groups that divides the channels."""
    if mean.dim() != 2:
        raise ValueError(f"{op}: mean must have shape [{input.shape[0]}, groups], got {list(mean.shape)}")
    check_groups(op, mean.shape[1], input.shape[1])
    for name, statistic in (("mean", mean), ("rstd", rstd)):
        _check_float32(op, name, statistic, (input.shape[0], mean.shape[1]), input)


def check_activation(op: str, activation: str | None) -> None:
    """None or GELU."""
    if activation not in (None, "gelu"):
        raise ValueError(f"{op}: activation must be None or 'gelu', got {activation!r}")


def check_convolution(op: str, input: torch.Tensor, weight: torch.Tensor, geometry: ConvGeometry) -> None:
    """An input, a weight [C, 1, kd, kh, kw] of the geometry's extents, and an output of at least one voxel."""
    check_input(op, input)
    check_parameter(op, "weight", weight, (input.shape[1], 1, *geometry.kernel_size), input)
    size = geometry.output_size(input.shape[2:])
    if min(size) < 1:
        raise ValueError(
            f"{op}: an input of {list(input.shape[2:])} is too small for a kernel of {list(geometry.kernel_size)}: "
            f"the output would be {list(size)}"
        )


def check_gradient(
    op: str, gradient: torch.Tensor | GroupNormGradient, input: torch.Tensor, geometry: ConvGeometry
) -> None:
    """Of the convolution's output: a tensor, or what GroupNorm left unwritten with its float32 [N, C] maps."""
    shape = (*input.shape[:2], *geometry.output_size(input.shape[2:]))
    if isinstance(gradient, torch.Tensor):
        check_like(op, "grad_output", gradient, shape, input)
        return
    check_like(op, "grad_output", gradient.grad, shape, input)
    check_like(op, "output", gradient.output, shape, input)
    for name in ("scale", "slope", "offset"):
        _check_float32(op, name, getattr(gradient, name), input.shape[:2], input)
