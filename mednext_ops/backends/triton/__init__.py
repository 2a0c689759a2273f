"""Triton kernels as a backend: for GPUs without a CUDA library, and in Triton's interpreter on the CPU, for tests.

Nothing here imports triton before a kernel is asked for: the package works without it. docs/triton.md has the design.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Any

import torch

from mednext_ops.backends.problem import InvertedBottleneckGradients, Problem

__all__ = [
    "DTYPES",
    "NAME",
    "depthwise_conv3d",
    "depthwise_conv3d_backward",
    "depthwise_conv3d_statistics",
    "group_norm",
    "group_norm_backward",
    "group_norm_statistics",
    "interpreted",
    "inverted_bottleneck",
    "inverted_bottleneck_backward",
    "supports",
    "unavailable",
]

NAME = "triton"

#: Of volumes; parameters may be float32 beside any of them.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: The module that serves an op; none has the name of one, which importing it would put in the place of the function.
_MODULES = {
    "depthwise_conv3d": "convolution",
    "depthwise_conv3d_backward": "convolution",
    "depthwise_conv3d_statistics": "convolution",
    "group_norm": "normalization",
    "group_norm_backward": "normalization",
    "group_norm_statistics": "statistics",
    "inverted_bottleneck": "bottleneck",
    "inverted_bottleneck_backward": "bottleneck",
}


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: TRITON_INTERPRET=1 when triton was first imported."""
    return _kernels("launch").INTERPRETS


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot run here, and how to mend it; None if it can. May initialise CUDA."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install 'mednext-ops[triton]' (Linux)"
    try:
        on_the_cpu = interpreted()
    except Exception as error:  # of another age than ours, or broken
        return f"triton does not start: {type(error).__name__}: {error}; pip install -U 'mednext-ops[triton]'"
    if on_the_cpu:
        return None
    if not torch.cuda.is_available():
        forgotten = " (it is set, but triton was imported before)" if os.environ.get("TRITON_INTERPRET") == "1" else ""
        return (
            "torch sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES. For tests, TRITON_INTERPRET=1 in the "
            f"environment at the start of Python runs the kernels on the CPU{forgotten}"
        )
    return None


def supports(problem: Problem) -> str | None:
    """Why no kernel takes ``problem``; None if one does."""
    if interpreted() and problem.device_type != "cpu":
        return f"TRITON_INTERPRET is set: it runs on the CPU, for tests, not on {problem.device_type}"
    if not interpreted() and problem.device_type != "cuda":
        return f"it runs on GPU tensors, not on {problem.device_type}"
    if problem.op not in _MODULES:
        return f"it has no kernel for {problem.op}"
    for dtype in (problem.dtype, problem.parameter_dtype):
        if dtype is not None and dtype not in DTYPES:
            return f"it has no kernel for {dtype}"
    if len(problem.shape) != 5:
        return f"it takes [N, C, D, H, W] only, not {len(problem.shape)} dimensions"
    if min(problem.shape[1:]) < 1:
        return f"it takes a channel and a voxel at least, not {'x'.join(map(str, problem.shape))}"
    if problem.op.startswith("inverted_bottleneck"):
        most = 64 if problem.dtype == torch.float32 else 128
        channels = problem.shape[1], problem.out_channels or 0
        if max(channels) > most:
            kind = str(problem.dtype).removeprefix("torch.")
            return (
                f"{channels[0]} channels and {channels[1]} output channels do not fit the registers in {kind} "
                f"({most} do): large products are torch's"
            )
    return None


@functools.cache
def _kernels(module: str) -> Any:
    return importlib.import_module(f"{__name__}.{module}")


def _served(op: str, *args: Any) -> Any:
    return getattr(_kernels(_MODULES[op]), op)(*args)


def depthwise_conv3d(*args: Any) -> torch.Tensor:
    """See :func:`mednext_ops.backends.triton.convolution.depthwise_conv3d`."""
    return _served("depthwise_conv3d", *args)


def depthwise_conv3d_statistics(*args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`mednext_ops.backends.triton.convolution.depthwise_conv3d_statistics`."""
    return _served("depthwise_conv3d_statistics", *args)


def depthwise_conv3d_backward(*args: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """See :func:`mednext_ops.backends.triton.convolution.depthwise_conv3d_backward`."""
    return _served("depthwise_conv3d_backward", *args)


def group_norm(*args: Any) -> torch.Tensor:
    """See :func:`mednext_ops.backends.triton.normalization.group_norm`."""
    return _served("group_norm", *args)


def group_norm_backward(*args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`mednext_ops.backends.triton.normalization.group_norm_backward`."""
    return _served("group_norm_backward", *args)


def group_norm_statistics(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`mednext_ops.backends.triton.statistics.group_norm_statistics`."""
    return _served("group_norm_statistics", *args)


def inverted_bottleneck(*args: Any) -> torch.Tensor:
    """See :func:`mednext_ops.backends.triton.bottleneck.inverted_bottleneck`."""
    return _served("inverted_bottleneck", *args)


def inverted_bottleneck_backward(*args: Any) -> InvertedBottleneckGradients:
    """See :func:`mednext_ops.backends.triton.bottleneck.inverted_bottleneck_backward`."""
    return _served("inverted_bottleneck_backward", *args)
