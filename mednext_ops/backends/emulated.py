"""The CUDA kernels on CPU tensors, run by an emulation of the GPU (csrc/emulation): for tests, never chosen by default.

Thousands of times slower than a GPU and exact in what it shows: docs/emulation.md. It has no kernels of its own; what
it takes is what the CUDA backend takes.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch

from mednext_ops import native
from mednext_ops.backends.problem import Problem

__all__ = ["NAME", "group_norm_statistics", "supports", "thread_order", "unavailable"]

NAME = "emulated"

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_ORDERS = ("in order", "reversed", "shuffled")

_order, _seed = "in order", 0


def unavailable() -> str | None:
    """Why this backend cannot run here, and how to mend it; None if it can."""
    return native.emulated_library().problem


def supports(problem: Problem) -> str | None:
    """Why this backend declines ``problem``; None if it takes it."""
    if problem.device_type != "cpu":
        return f"it runs on CPU tensors, not on {problem.device_type}"
    if problem.op != "group_norm_statistics":
        return f"it has no kernel for {problem.op}"
    if problem.dtype not in _DTYPES:
        return f"it has no kernel for {problem.dtype}"
    if len(problem.shape) != 5:
        return f"it takes [N, C, D, H, W] only, not {len(problem.shape)} dimensions"
    return None


@contextlib.contextmanager
def thread_order(order: str, seed: int = 0) -> Iterator[None]:
    """The order in which the threads of a block run from one barrier to the next, and blocks one after another.

    A kernel without races gives the same bits in every order.

    Args:
        order: ``"in order"`` (the default outside of this context), ``"reversed"`` or ``"shuffled"``.
        seed: of a shuffled order.

    Raises:
        ValueError: the order is none of these.
    """
    global _order, _seed
    if order not in _ORDERS:
        raise ValueError(f"order is {order!r}; it can be {', '.join(map(repr, _ORDERS))}")
    previous = _order, _seed
    _order, _seed = order, seed
    try:
        yield
    finally:
        _order, _seed = previous


def _configure() -> None:
    """Tell the library the order, and to use as many threads as torch does."""
    library = ctypes.CDLL(native.emulated_library().file)
    library.mednext_ops_emulation_configure(
        ctypes.c_int(_ORDERS.index(_order)), ctypes.c_uint64(_seed), ctypes.c_int(torch.get_num_threads())
    )


def group_norm_statistics(input: torch.Tensor, num_groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / sqrt(biased variance + eps) of each group: input [N, C, D, H, W] -> two float32 [N, G]."""
    _configure()
    return torch.ops.mednext_ops_emulated.group_norm_statistics(input, num_groups, eps)
