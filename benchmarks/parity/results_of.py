"""Output and gradients of an operator or a block, by name: from ours, from PyTorch's own code, or in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mednext.bench.operators import OPERATORS, OpProblem, Tensors

__all__ = ["of_eager", "of_ours"]


def of_ours(problem: OpProblem, tensors: Tensors) -> Tensors:
    """By ``mednext_ops``, on the backends that are in force."""
    return _results(OPERATORS[problem.op].ours, problem, tensors)


def of_eager(problem: OpProblem, tensors: Tensors, dtype: torch.dtype | None = None) -> Tensors:
    """By PyTorch's own functions, in the tensors' dtype or another."""
    return _results(OPERATORS[problem.op].eager, problem, {name: t.to(dtype or t.dtype) for name, t in tensors.items()})


def _results(function: Callable[[OpProblem, Tensors], Any], problem: OpProblem, tensors: Tensors) -> Tensors:
    wanted = {name for names in OPERATORS[problem.op].passes.values() for name in names}
    leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in tensors.items()}
    output = function(problem, leaves)
    if isinstance(output, tuple):
        return dict(zip(("mean", "rstd"), (t.detach() for t in output), strict=True))
    results = {"output": output.detach()}
    if wanted:
        names = [name for name in leaves if name in wanted]
        gradients = torch.autograd.grad(output, [leaves[name] for name in names], _gradient(output, problem.dtype))
        results |= {f"gradient of {name}": g for name, g in zip(names, gradients, strict=True)}
    return results


def _gradient(output: torch.Tensor, dtype: str) -> torch.Tensor:
    """The same values for every dtype, exact in all of them: eighths from -0.5 to 1.5, without a period along an axis.

    Their mean is not zero, or a bias' gradient, their sum, would be all cancellation. In fp16 such a sum over many
    voxels would pass the largest number, in PyTorch's own code too: there the gradient is a power of two smaller.
    """
    count = torch.arange(output.numel(), device=output.device).view(output.shape)
    largest_sum = 4 * output.numel() // output.shape[1]  # a parameter's gradient is up to about one a voxel
    scale = 1.0 if dtype != "fp16" else 2.0 ** -max(0, (largest_sum // 2**15).bit_length())
    return ((((count * 40503) >> 5) % 17 - 4) * (scale / 8)).to(output.dtype)
