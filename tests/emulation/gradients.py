"""What tests of convolutions share: gradients not written out, PyTorch's weight gradient, tensors anywhere."""

from __future__ import annotations

import torch

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient

__all__ = ["affine_gradient", "halved", "pytorchs_weight_gradient", "shifted", "written_out"]


def affine_gradient(grad: torch.Tensor) -> GroupNormGradient:
    """A random affine map of ``grad`` and another tensor of its shape and format."""
    return GroupNormGradient(grad, torch.randn_like(grad), *(torch.randn(grad.shape[:2]) for _ in range(3)))


def written_out(gradient: GroupNormGradient, dtype: torch.dtype) -> torch.Tensor:
    """The affine map of a gradient that GroupNorm left, computed in `dtype` or, for 16 bits, in float32."""
    grad, output, *maps = gradient
    wide = torch.promote_types(dtype, torch.float32)
    scale, slope, offset = (m.to(wide)[..., None, None, None] for m in maps)
    return (scale * grad.to(wide) + slope * output.to(wide) + offset).to(dtype)


def pytorchs_weight_gradient(grad: torch.Tensor, input: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    """PyTorch's own, in the type of the tensors. A transposed convolution multiplies the same values."""
    small, large = (t.contiguous() for t in ((input, grad) if geometry.transposed else (grad, input)))
    shape = (input.shape[1], 1, *geometry.kernel_size)
    return torch.nn.grad.conv3d_weight(large, shape, small, geometry.stride, geometry.padding, groups=input.shape[1])


def halved(size: tuple[int, ...]) -> tuple[int, ...]:
    """The extents that a stride of 2 leaves."""
    return tuple((extent + 1) // 2 for extent in size)


def shifted(tensor: torch.Tensor, by: int = 1) -> torch.Tensor:
    """The same values, so many elements further on than a vector begins."""
    return torch.empty(tensor.numel() + by, dtype=tensor.dtype)[by:].view(tensor.shape).copy_(tensor)
