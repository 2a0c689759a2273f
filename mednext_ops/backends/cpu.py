"""The CPU library (csrc/cpu) as a backend."""

from __future__ import annotations

import torch

from mednext_ops import native
from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient, Problem, memory_format_of

__all__ = [
    "NAME",
    "depthwise_conv3d",
    "depthwise_conv3d_backward",
    "depthwise_conv3d_statistics",
    "group_norm_statistics",
    "supports",
    "unavailable",
]

NAME = "cpu"

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OPS = frozenset(
    {
        "depthwise_conv3d",
        "depthwise_conv3d_backward",
        "depthwise_conv3d_statistics",
        "group_norm_statistics",
    }
)
_native = torch.ops.mednext_ops_native


def unavailable() -> str | None:
    """Why this backend cannot run here, and how to mend it; None if it can."""
    return native.libraries()["cpu"].problem


def supports(problem: Problem) -> str | None:
    """Why this backend declines ``problem``; None if it takes it."""
    if problem.device_type != "cpu":
        return f"it runs on CPU tensors, not on {problem.device_type}"
    if problem.op not in _OPS:
        return f"it has no kernel for {problem.op}"
    for dtype in (problem.dtype, problem.parameter_dtype):
        if dtype is not None and dtype not in _DTYPES:
            return f"it has no kernel for {dtype}"
    if len(problem.shape) != 5:
        return f"it takes [N, C, D, H, W] only, not {len(problem.shape)} dimensions"
    return None


def group_norm_statistics(input: torch.Tensor, num_groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / sqrt(biased variance + eps) of each group: input [N, C, D, H, W] -> two float32 [N, G]."""
    return _native.group_norm_statistics(input, num_groups, eps)


def depthwise_conv3d(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry
) -> torch.Tensor:
    """input [N, C, D, H, W], weight [C, 1, kd, kh, kw], bias [C] -> [N, C, D', H', W'], dtype and format kept."""
    return _native.depthwise_conv3d(input, weight, bias, *_flat(geometry))


def depthwise_conv3d_statistics(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: ConvGeometry,
    num_groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The convolution and the statistics of what it wrote, in one pass: output, mean [N, G], rstd [N, G]."""
    return _native.depthwise_conv3d_statistics(input, weight, bias, *_flat(geometry), num_groups, eps)


def depthwise_conv3d_backward(
    grad_output: torch.Tensor | GroupNormGradient,
    input: torch.Tensor,
    weight: torch.Tensor,
    geometry: ConvGeometry,
    add: torch.Tensor | None,
    needs_data: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of the input (plus ``add``, of the input's shape) and of the weight (in float32)."""
    affine = (grad_output, None, None, None, None) if isinstance(grad_output, torch.Tensor) else grad_output
    data = grad_weight = None
    if needs_data:
        data = _native.depthwise_conv3d_backward_data(*affine, weight, input.shape[2:], *_flat(geometry), add)
        data = data.contiguous(memory_format=memory_format_of(input))
    if needs_weight:
        kernel_size = geometry.kernel_size
        grad_weight = _native.depthwise_conv3d_backward_weight(*affine, input, kernel_size, *_flat(geometry))
    return data, grad_weight


def _flat(geometry: ConvGeometry) -> tuple[object, ...]:
    g = geometry
    return g.stride, g.padding, g.dilation, g.output_padding, g.transposed
