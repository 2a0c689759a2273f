"""What the kernels of csrc/cuda take and how they are called: for the backends that run them, on a GPU or emulated."""

from __future__ import annotations

import ctypes
import functools
import math
from abc import ABC, abstractmethod
from typing import Any

import torch

from mednext_ops import native
from mednext_ops.backends import cuda_products
from mednext_ops.backends.problem import (
    FEW_CHANNELS,
    ConvGeometry,
    GroupNormGradient,
    InvertedBottleneckGradients,
    InvertedBottleneckNeeds,
    Problem,
    Triple,
    memory_format_of,
)

__all__ = ["CudaKernels"]

_OPS = frozenset(
    {
        "depthwise_conv3d",
        "depthwise_conv3d_backward",
        "depthwise_conv3d_statistics",
        "group_norm",
        "group_norm_backward",
        "group_norm_input_gradient",
        "group_norm_statistics",
        "inverted_bottleneck",
        "inverted_bottleneck_backward",
        "packed_voxels",
        "pointwise_conv3d",
        "pointwise_conv3d_backward",
        "up_bottleneck",
    }
)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Grn = tuple[torch.Tensor, torch.Tensor]

_NOT_AFFINE = (None, None, None, None)


class CudaKernels(ABC):
    """The backend functions on the operators of one namespace, for tensors on one type of device.

    ``library`` is the name of the compiled library in :mod:`mednext_ops.native`.
    """

    def __init__(self, library: str, namespace: str, device_type: str) -> None:
        self._library = library
        self._namespace = namespace
        self._device_type = device_type

    @abstractmethod
    def architecture(self) -> int:
        """The GPU's compute capability as 10 * major + minor; of several GPUs that of the least."""

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
        if problem.op in ("up_bottleneck", "packed_voxels") and problem.channels_last:
            return "it completes and packs contiguous volumes"
        if problem.op.startswith("pointwise_conv3d"):
            return _declined_pointwise(problem)
        return None

    def _is_fused(
        self, dtype: torch.dtype, channels: tuple[int, int, int], channels_last: bool, grn: bool, backward: bool
    ) -> bool:
        """Whether one kernel makes it all of C input, R hidden and O output channels."""
        if dtype == torch.float32:
            return False
        return _fits(self._library, channels, channels_last, grn, backward, self.architecture())

    @property
    def _native(self) -> Any:
        return getattr(torch.ops, self._namespace)

    def group_norm_statistics(
        self, input: torch.Tensor, num_groups: int, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and 1 / sqrt(biased variance + eps) of each group: input [N, C, D, H, W] -> two float32 [N, G]."""
        return self._native.group_norm_statistics(input, num_groups, eps)

    def group_norm(
        self,
        input: torch.Tensor,
        mean: torch.Tensor,
        rstd: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        activation: str | None,
    ) -> torch.Tensor:
        """``activation(weight * (input - mean) * rstd + bias)``, computed in float32, in the input's dtype."""
        return self._native.group_norm(input, mean, rstd, weight, bias, activation == "gelu")

    def group_norm_backward(
        self,
        grad_output: torch.Tensor,
        input: torch.Tensor,
        mean: torch.Tensor,
        rstd: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        activation: str | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradient before the activation and its two sums, alone and times the normalised input, [N, C] each."""
        gelu = activation == "gelu"
        grad, *sums = self._native.group_norm_backward(grad_output, input, mean, rstd, weight, bias, gelu)
        return (grad if gelu else grad_output), sums[0], sums[1]

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
        if isinstance(grad_output, GroupNormGradient) and _is_read_often(geometry):
            grad_output = self._native.group_norm_gradient(*grad_output)
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

    def inverted_bottleneck(
        self,
        input: torch.Tensor,
        mean: torch.Tensor,
        rstd: torch.Tensor,
        norm_weight: torch.Tensor,
        norm_bias: torch.Tensor,
        expand_weight: torch.Tensor,
        expand_bias: torch.Tensor | None,
        compress_weight: torch.Tensor,
        compress_bias: torch.Tensor | None,
        grn: Grn | None,
        residual: torch.Tensor | None,
        stride: Triple = (1, 1, 1),
        front: Triple = (0, 0, 0),
        skip: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """input [N, C, D, H, W], expand_weight [R, C], compress_weight [O, R] -> [N, O, D, H, W], dtype kept.

        An up block's output (``up_bottleneck``, contiguous) has its residual on every stride-th voxel, begins with
        ``front`` planes of zeros, and ``skip`` is added to all of it.
        """
        channels = input.shape[1], expand_weight.shape[0], compress_weight.shape[0]
        if not self._is_fused(input.dtype, channels, _is_channels_last(input), grn is not None, False):
            return cuda_products.forward(
                self._native, input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight,
                compress_bias, grn, residual, stride, front, skip,
            )  # fmt: skip
        completed = max(stride) > 1 or any(front) or skip is not None  # in a pass of its own
        output = self._native.inverted_bottleneck(
            input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight, compress_bias,
            *(grn or (None, None)), None if completed else residual,
        )  # fmt: skip
        if not completed:
            return output
        return self._native.bottleneck_output(output.flatten(2), None, residual, skip, output.shape[2:], stride, front)

    def inverted_bottleneck_backward(
        self,
        grad_output: torch.Tensor,
        input: torch.Tensor,
        mean: torch.Tensor,
        rstd: torch.Tensor,
        norm_weight: torch.Tensor,
        norm_bias: torch.Tensor,
        expand_weight: torch.Tensor,
        expand_bias: torch.Tensor | None,
        compress_weight: torch.Tensor,
        grn: Grn | None,
        needs: InvertedBottleneckNeeds,
    ) -> InvertedBottleneckGradients:
        """The gradients that ``needs`` names, from the forward's inputs alone; those of parameters in float32."""
        channels = input.shape[1], expand_weight.shape[0], compress_weight.shape[0]
        channels_last = _is_channels_last(input)
        if not self._is_fused(input.dtype, channels, channels_last, grn is not None, True):
            return cuda_products.backward(
                self._native, grad_output, input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias,
                compress_weight, grn, needs,
            )  # fmt: skip
        if not (channels_last or grad_output.is_contiguous()):
            grad_output = self.packed_voxels(grad_output)
        found = self._native.inverted_bottleneck_backward(
            grad_output, input, mean, rstd, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight,
            *(grn or (None, None)), *needs,
        )  # fmt: skip
        hidden = needs.input or needs.norm or needs.expand
        compress = needs.compress or grn is not None
        wanted = (needs.input, *[hidden] * 4, *[compress] * 2, *[grn is not None] * 2)
        return InvertedBottleneckGradients(*(t if want else None for t, want in zip(found, wanted, strict=True)))

    def packed_voxels(self, input: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of a volume [N, C, D, H, W] of any strides; PyTorch's own divide for each element."""
        return self._native.packed_voxels(input, False).unflatten(2, input.shape[2:])

    def pointwise_conv3d(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """input [N, C, D, H, W], weight [O, C], bias [O] -> [N, O, D, H, W] in the input's dtype."""
        return self._native.pointwise_conv3d(input, weight, bias)

    def pointwise_conv3d_backward(
        self,
        grad_output: torch.Tensor,
        input: torch.Tensor,
        weight: torch.Tensor,
        needs_input: bool,
        needs_parameters: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of the input, the weight and the bias, the last two in float32; empty where not asked for."""
        return self._native.pointwise_conv3d_backward(grad_output, input, weight, needs_input, needs_parameters)

    def group_norm_input_gradient(
        self,
        grad_sum: torch.Tensor,
        grad_dot_normalized: torch.Tensor,
        mean: torch.Tensor,
        rstd: torch.Tensor,
        weight: torch.Tensor,
        voxels: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scale, slope and offset [N, C] of a :class:`GroupNormGradient`, from the sums [N, C] of the gradient."""
        return self._native.group_norm_input_gradient(grad_sum, grad_dot_normalized, mean, rstd, weight, voxels)


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return memory_format_of(tensor) == torch.channels_last_3d


def _declined_pointwise(problem: Problem) -> str | None:
    channels = problem.shape[1], problem.out_channels or 0
    voxels = math.prod(problem.shape[2:])
    if problem.channels_last or voxels % 8 or not 0 < min(channels) <= FEW_CHANNELS or not problem.shape[0]:
        return (
            f"its pointwise_conv3d takes at most {FEW_CHANNELS} channels on one side, contiguous, and voxels in "
            f"multiples of 8"
        )
    return None


@functools.cache
def _fits(
    library: str, channels: tuple[int, int, int], channels_last: bool, grn: bool, backward: bool, architecture: int
) -> bool:
    fits = native.library_functions(library).mednext_ops_inverted_bottleneck_fits
    return bool(fits(*map(ctypes.c_int64, channels), *map(ctypes.c_int, (channels_last, grn, backward, architecture))))


def _is_read_often(g: ConvGeometry) -> bool:
    """Whether the gradient of the output is read so often that computing it each time costs more than writing it once.

    In the weight gradient of a transposed convolution with a stride it is the large tensor, and seven warps read each
    plane of it for a 7x7x7 kernel.
    """
    return g.transposed and max(g.stride) > 1 and max(g.kernel_size) >= 5


def _arguments(g: ConvGeometry) -> tuple[list[int], list[int], list[int], list[int], bool]:
    return list(g.stride), list(g.padding), list(g.dilation), list(g.output_padding), g.transposed
