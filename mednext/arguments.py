"""Arguments of the blocks, the network and what is done with one, in one form; every error names the argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from mednext_ops.ops.arguments import is_int

__all__ = [
    "RECOMPUTE",
    "PerAxis",
    "kernel_per_axis",
    "must_be_module",
    "one_of",
    "positive_int",
    "spatial_axes",
    "stride_per_axis",
]

PerAxis = int | Sequence[int]  # one number for all axes, or one an axis: (D, H, W), in 2D (H, W)

RECOMPUTE = (None, "conv")
DIMS = {"2d": 2, "3d": 3}

T = TypeVar("T")


def one_of(name: str, value: T, choices: Sequence[T]) -> T:
    """``value``, which must be among ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def spatial_axes(dim: str) -> int:
    """2 or 3, for the official argument ``dim``."""
    return DIMS[one_of("dim", dim, tuple(DIMS))]


def positive_int(name: str, value: int) -> int:
    """``value``, which must be an int above zero."""
    if not is_int(value) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return int(value)


def kernel_per_axis(name: str, value: PerAxis, axes: int) -> tuple[int, ...]:
    """An odd extent for each axis: even kernels do not keep the grid, which the residual needs."""
    extents = _per_axis(name, value, axes)
    if any(extent < 1 or extent % 2 == 0 for extent in extents):
        raise ValueError(f"{name} must be odd and positive on every axis, got {value!r}")
    return extents


def stride_per_axis(name: str, value: PerAxis, axes: int) -> tuple[int, ...]:
    """1 or 2 for each axis."""
    strides = _per_axis(name, value, axes)
    if any(stride not in (1, 2) for stride in strides):
        raise ValueError(f"{name} must be 1 or 2 on every axis, got {value!r}")
    return strides


def must_be_module(name: str, value: Any) -> None:
    """A network and not, say, the path of its weights."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")


def _per_axis(name: str, value: PerAxis, axes: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes or not all(map(is_int, values)):
        raise ValueError(f"{name} must be an int or {axes} ints, one an axis, got {value!r}")
    return tuple(map(int, values))
