"""The CUDA kernels on CPU tensors, run by an emulation of the GPU (csrc/emulation): for tests, never chosen by default.

Thousands of times slower than a GPU and exact in what it shows: docs/emulation.md. It has no kernels of its own; what
it takes is what the CUDA backend takes.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import torch

from mednext_ops import native
from mednext_ops.backends.cuda_kernels import CudaKernels

__all__ = [
    "NAME",
    "architecture",
    "depthwise_conv3d",
    "depthwise_conv3d_backward",
    "depthwise_conv3d_statistics",
    "group_norm",
    "group_norm_backward",
    "group_norm_input_gradient",
    "group_norm_statistics",
    "inverted_bottleneck",
    "inverted_bottleneck_backward",
    "launches",
    "launches_only",
    "packed_voxels",
    "pointwise_conv3d",
    "pointwise_conv3d_backward",
    "supports",
    "thread_order",
    "unavailable",
    "up_bottleneck",
]

NAME = "emulated"

_ORDERS = ("in order", "reversed", "shuffled", "uneven")

_order, _seed = "in order", 0
_architecture = 90


def unavailable() -> str | None:
    """Why this backend cannot run here, and how to mend it; None if it can."""
    return native.emulated_library().problem


@contextlib.contextmanager
def thread_order(order: str, seed: int = 0) -> Iterator[None]:
    """The order in which the threads of a block run from one barrier to the next, and blocks one after another.

    A kernel without races gives the same bits in every order.

    Args:
        order: ``"in order"`` (the default outside of this context), ``"reversed"``, ``"shuffled"``, or ``"uneven"``, in
            which some warps run as far as they can while others stand still.
        seed: of a shuffled or uneven order.

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


def launches() -> int:
    """How many launches of kernels there were in this process, those in :func:`launches_only` too."""
    count = native.library_functions("emulated").mednext_ops_emulation_launches
    count.restype = ctypes.c_uint64
    return count()


@contextlib.contextmanager
def launches_only() -> Iterator[None]:
    """Launches are planned and checked, but no kernel runs: what a host does for a step can be timed alone.

    Results keep what fills memory at first: every byte 0xff, which is NaN.
    """
    set_running = native.library_functions("emulated").mednext_ops_emulation_set_running
    set_running(ctypes.c_int(0))
    try:
        yield
    finally:
        set_running(ctypes.c_int(1))


@contextlib.contextmanager
def architecture(compute_capability: int) -> Iterator[None]:
    """The GPU that launch plans are made for, as 10 * major + minor; 90 outside of this context.

    Raises:
        ValueError: it is below 75, for which nothing is built.
    """
    global _architecture
    if compute_capability < 75:
        raise ValueError(f"compute_capability is {compute_capability}; kernels are built for 75 (sm_75) and newer")
    previous, _architecture = _architecture, compute_capability
    try:
        yield
    finally:
        _architecture = previous


class _Emulated(CudaKernels):
    def architecture(self) -> int:
        return _architecture

    @property
    def _native(self) -> Any:
        """The operators, after the library was told the order and to use as many threads as torch does."""
        library = native.library_functions("emulated")
        library.mednext_ops_emulation_configure(
            ctypes.c_int(_ORDERS.index(_order)), ctypes.c_uint64(_seed), ctypes.c_int(torch.get_num_threads())
        )
        library.mednext_ops_emulation_set_architecture(ctypes.c_int(_architecture))
        return super()._native


_kernels = _Emulated("emulated", native.EMULATED_NAMESPACE, "cpu")
supports = _kernels.declined
group_norm = _kernels.group_norm
group_norm_backward = _kernels.group_norm_backward
group_norm_input_gradient = _kernels.group_norm_input_gradient
group_norm_statistics = _kernels.group_norm_statistics
depthwise_conv3d = _kernels.depthwise_conv3d
depthwise_conv3d_statistics = _kernels.depthwise_conv3d_statistics
depthwise_conv3d_backward = _kernels.depthwise_conv3d_backward
inverted_bottleneck = _kernels.inverted_bottleneck
inverted_bottleneck_backward = _kernels.inverted_bottleneck_backward
up_bottleneck = _kernels.inverted_bottleneck
packed_voxels = _kernels.packed_voxels
pointwise_conv3d = _kernels.pointwise_conv3d
pointwise_conv3d_backward = _kernels.pointwise_conv3d_backward
