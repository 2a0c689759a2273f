"""The CUDA library (csrc/cuda) as a backend."""

from __future__ import annotations

import functools

import torch

from mednext_ops import native
from mednext_ops.backends.problem import Problem

__all__ = ["NAME", "group_norm_statistics", "supports", "unavailable"]

NAME = "cuda"

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot run here, and how to mend it; None if it can. May initialise CUDA."""
    problem = native.libraries()["cuda"].problem or native.cuda_runtime_problem()
    if problem is not None:
        return problem
    if not torch.cuda.is_available():
        return "torch sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    architectures = native.build_information()["parts"]["cuda"]["architectures"]
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not native.covers(architectures, capability):
            return (
                f"it was built for the architectures {', '.join(architectures)}, and cuda:{index} "
                f"({torch.cuda.get_device_name(index)}) is {capability[0]}{capability[1]}; add that to "
                f"MEDNEXT_OPS_CUDA_ARCHS and {native.REINSTALL}, or hide the device with CUDA_VISIBLE_DEVICES"
            )
    return None


def supports(problem: Problem) -> str | None:
    """Why this backend declines ``problem``; None if it takes it."""
    if problem.device_type != "cuda":
        return f"it runs on CUDA tensors, not on {problem.device_type}"
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
