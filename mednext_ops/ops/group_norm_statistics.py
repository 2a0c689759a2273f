"""``group_norm_statistics``: mean and reciprocal standard deviation of each group of channels."""

from __future__ import annotations

import math
from typing import Any

import torch

from mednext_ops import backends
from mednext_ops.formulas import accumulation_dtype, per_channel
from mednext_ops.ops.arguments import check_group_count, check_input
from mednext_ops.ops.library import define_op, differentiate, problem_of

__all__ = ["group_norm_statistics", "statistics"]


def statistics(input: torch.Tensor, num_groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The statistics on the backend chosen for them."""
    problem = problem_of("group_norm_statistics", input, num_groups=num_groups)
    return backends.run(problem, input, num_groups, eps)


def _fake(input: torch.Tensor, num_groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    shape, dtype = (input.shape[0], num_groups), accumulation_dtype(input.dtype)
    return input.new_empty(shape, dtype=dtype), input.new_empty(shape, dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(inputs[0], *output)
    ctx.set_materialize_grads(True)


def _backward(ctx: Any, grad_mean: torch.Tensor, grad_rstd: torch.Tensor) -> tuple[Any, ...]:
    input, mean, rstd = ctx.saved_tensors
    channels = input.shape[1]
    count = math.prod(input.shape[2:]) * (channels // mean.shape[1])
    # d rstd / d input = -rstd^3 (input - mean) / count, d mean / d input = 1 / count: affine in the input.
    slope = -grad_rstd * rstd**3 / count
    offset = grad_mean / count - mean * slope
    slope, offset = (per_channel(t, channels)[:, :, None, None, None] for t in (slope, offset))
    return (offset + slope * input.to(slope.dtype)).to(input.dtype), None, None


_op = define_op(
    "group_norm_statistics(Tensor input, int num_groups, float eps) -> (Tensor mean, Tensor rstd)", statistics, _fake
)
differentiate(_op, _backward, _save)


def group_norm_statistics(
    input: torch.Tensor, num_groups: int | None = None, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and ``1 / sqrt(variance + eps)`` of each group of channels, as ``torch.nn.GroupNorm`` uses them.

    The variance is the biased one. Differentiable once.

    Args:
        input: [N, C, D, H, W], float16, bfloat16, float32 or float64; contiguous or channels_last_3d.
        num_groups: a divisor of C; None for one group a channel.
        eps: added to the variance.

    Returns:
        mean and rstd, [N, num_groups] each, float32 (float64 for a float64 input).

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: not five dimensions, or num_groups does not divide C.
    """
    check_input("input", input)
    return _op(input, check_group_count(num_groups, input.shape[1]), eps)
