"""Results and gradients of an operator or a block, by name: from ours, from PyTorch's own code, or in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from operators_tried import BlockCall, operator_of

from mednext.bench.operators import OpProblem, Tensors

__all__ = ["of_eager", "of_ours"]


def of_ours(problem: OpProblem, tensors: Tensors) -> Tensors:
    """By ``mednext_ops``, on the backends that are in force."""
    return _results(operator_of(problem).ours, problem, tensors)


def of_eager(problem: OpProblem, tensors: Tensors, dtype: torch.dtype | None = None) -> Tensors:
    """By PyTorch's own functions, in the tensors' dtype or another."""
    converted = {name: t.to(dtype or t.dtype) for name, t in tensors.items()}
    return _results(operator_of(problem).eager, problem, converted)


def _results(function: Callable[[OpProblem, Tensors], Any], problem: OpProblem, tensors: Tensors) -> Tensors:
    operator = operator_of(problem)
    wanted = {name for names in operator.passes.values() for name in names}
    leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in tensors.items()}
    returned = function(problem, leaves)
    outputs = returned if isinstance(returned, tuple) else (returned,)
    results = {name: t.detach() for name, t in zip(operator.results, outputs, strict=False)}
    names = [name for name in leaves if name in wanted]
    if names:
        given = [_gradient(output, problem) for output in outputs]
        gradients = torch.autograd.grad(outputs, [leaves[name] for name in names], given)
        results |= {f"gradient of {name}": g for name, g in zip(names, gradients, strict=True)}
    return results


def _gradient(output: torch.Tensor, problem: OpProblem) -> torch.Tensor:
    """The same values for every dtype, exact in all of them: eighths from -0.5 to 1.5, without a period along an axis.

    Their mean is not zero, or a bias' gradient, their sum, would be all cancellation. In fp16 such a sum over many
    voxels would pass the largest number, in PyTorch's own code too: there the gradient is a power of two smaller.
    """
    count = torch.arange(output.numel(), device=output.device).view(output.shape)
    largest_sum = 4 * output.numel() // output.shape[1]  # a parameter's gradient is up to about one a voxel
    scale = 1.0 if problem.dtype != "fp16" else 2.0 ** -max(0, (largest_sum // 2**15).bit_length())
    values = ((((count * 40503) >> 5) % 17 - 4) * (scale / 8)).to(output.dtype)
    permuted = isinstance(problem, BlockCall) and problem.permuted_gradient
    last = problem.channels_last != permuted
    return values.contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
