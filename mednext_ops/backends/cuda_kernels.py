"""What the kernels of csrc/cuda take and how they are called: for the backends that run them, on a GPU or emulated."""

from __future__ import annotations

from typing import Any

import torch

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient, Problem, memory_format_of

__all__ = ["CudaKernels"]

_OPS = frozenset(
    {"depthwise_conv3d", "depthwise_conv3d_backward", "depthwise_conv3d_statistics", "group_norm_statistics"}
)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_NOT_AFFINE = (None, None, None, None)


class CudaKernels:
    """The backend functions on the operators of one namespace, for tensors on one type of device."""

    def __init__(self, namespace: str, device_type: str) -> None:
        self._namespace = namespace
        self._device_type = device_type

    def declined(self, problem: Problem) -> str | None:
        """Why no kernel takes ``problem``; None if one does."""
        if problem.device_type != self._device_type:
            return f"it runs on {self._device_type.upper()} tensors, not on {problem.device_type}"
        if problem.op not in _OPS:
            return f"it has no kernel for {problem.op}"
        if problem.dtype not in _DTYPES:
            return f"it has no kernel for {problem.dtype}"
        if len(problem.shape) != 5:
            return f"it takes [N, C, D, H, W] only, not {len(problem.shape)} dimensions"
        return None

    @property
    def _native(self) -> Any:
        return getattr(torch.ops, self._namespace)

    def group_norm_statistics(
        self, input: torch.Tensor, num_groups: int, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and 1 / sqrt(biased variance + eps) of each group: input [N, C, D, H, W] -> two float32 [N, G]."""
        return self._native.group_norm_statistics(input, num_groups, eps)

    def depthwise_conv3d(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry
    ) -> torch.Tensor:
        """input [N, C, D, H, W], weight [C, 1, kd, kh, kw], bias [C] -> [N, C, D', H', W'], dtype and format kept."""
        return self._native.depthwise_conv3d(input, weight, bias, *_arguments(geometry))

    def depthwise_conv3d_statistics(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        geometry: ConvGeometry,
        num_groups: int,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The convolution, and mean and rstd [N, G] of its output as it is stored, in one pass over it."""
        return self._native.depthwise_conv3d_statistics(input, weight, bias, *_arguments(geometry), num_groups, eps)

    def depthwise_conv3d_backward(
        self,
        grad_output: torch.Tensor | GroupNormGradient,
        input: torch.Tensor,
        weight: torch.Tensor,
        geometry: ConvGeometry,
        add: torch.Tensor | None,
        needs_data: bool,
        needs_weight: bool,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Gradients of the input (plus ``add``) and of the weight (float32); the affine map is applied on load."""
        gradient = (grad_output, *_NOT_AFFINE) if isinstance(grad_output, torch.Tensor) else tuple(grad_output)
        arguments = _arguments(geometry)
        data = grad_weight = None
        if needs_data:
            data = self._native.depthwise_conv3d_backward_data(
                *gradient, weight, list(input.shape[2:]), *arguments, add
            )
            data = data.contiguous(memory_format=memory_format_of(input))
        if needs_weight:
            kernel_size = list(geometry.kernel_size)
            grad_weight = self._native.depthwise_conv3d_backward_weight(*gradient, input, kernel_size, *arguments)
        return data, grad_weight


def _arguments(g: ConvGeometry) -> tuple[list[int], list[int], list[int], list[int], bool]:
    return list(g.stride), list(g.padding), list(g.dilation), list(g.output_padding), g.transposed
