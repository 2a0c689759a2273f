"""The CPU library (csrc/cpu) as a backend."""

from __future__ import annotations

import torch

from mednext_ops import native
from mednext_ops.backends.problem import Problem

__all__ = ["NAME", "group_norm_statistics", "supports", "unavailable"]

NAME = "cpu"

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def unavailable() -> str | None:
    """Why this backend cannot run here, and how to mend it; None if it can."""
    return native.libraries()["cpu"].problem


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


def group_norm_statistics(input: torch.Tensor, num_groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / sqrt(biased variance + eps) of each group: input [N, C, D, H, W] -> two float32 [N, G]."""
    return torch.ops.mednext_ops_native.group_norm_statistics(input, num_groups, eps)
