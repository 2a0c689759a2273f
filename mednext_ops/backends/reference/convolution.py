"""Depthwise convolution, plain and transposed, and its gradients, by PyTorch's own convolutions.

On the CPU the work is done in channels_last_3d, where oneDNN has depthwise kernels (docs/cpu.md has times of both
formats), and 16-bit types are computed in float32; results come back in the dtype and memory format of the input.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient, memory_format_of
from mednext_ops.formulas import accumulation_dtype

__all__ = ["depthwise_conv3d", "depthwise_conv3d_backward", "written_out"]


def depthwise_conv3d(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry
) -> torch.Tensor:
    """input [N, C, D, H, W], weight [C, 1, kd, kh, kw], bias [C] -> [N, C, D', H', W'], dtype and format kept."""
    x = _operand(input)
    w = weight.to(x.dtype)
    b = None if bias is None else bias.to(x.dtype)
    groups = weight.shape[0]
    if geometry.transposed:
        output = F.conv_transpose3d(
            x, w, b, geometry.stride, geometry.padding, geometry.output_padding, groups, geometry.dilation
        )
    else:
        output = F.conv3d(x, w, b, geometry.stride, geometry.padding, geometry.dilation, groups)
    return output.to(input.dtype).contiguous(memory_format=memory_format_of(input))


def depthwise_conv3d_backward(
    grad_output: torch.Tensor | GroupNormGradient,
    input: torch.Tensor,
    weight: torch.Tensor,
    geometry: ConvGeometry,
    add: torch.Tensor | None,
    needs_data: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of the input (plus ``add``, of the input's shape) and of the weight (in the accumulation dtype).

    ``input`` is read for its values only where the weight's gradient is asked for.
    """
    if input.numel() == 0:
        data = torch.zeros_like(input) if needs_data else None
        return data, weight.new_zeros(weight.shape, dtype=accumulation_dtype(input.dtype)) if needs_weight else None
    grad = written_out(grad_output)
    g = _operand(grad)
    w = weight.to(g.dtype)
    data = _backward_data(g, input, w, geometry) if needs_data else None
    if data is not None:
        data = data.to(input.dtype) if add is None else (data + add).to(input.dtype)
        data = data.contiguous(memory_format=memory_format_of(input))
    grad_weight = None
    if needs_weight:
        grad_weight = _backward_weight(grad, input, w, geometry).to(accumulation_dtype(input.dtype))
    return data, grad_weight


def written_out(grad_output: torch.Tensor | GroupNormGradient) -> torch.Tensor:
    """The gradient as a tensor: the affine map of a :class:`GroupNormGradient` applied."""
    if isinstance(grad_output, torch.Tensor):
        return grad_output
    scale, slope, offset = (c[:, :, None, None, None] for c in grad_output[2:])
    dtype = scale.dtype
    grad = torch.addcmul(offset, slope, grad_output.output.to(dtype))
    return grad.addcmul_(scale, grad_output.grad.to(dtype)).to(grad_output.output.dtype)


def _operand(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cpu":
        return tensor
    return tensor.to(accumulation_dtype(tensor.dtype)).contiguous(memory_format=torch.channels_last_3d)


def _backward_data(
    grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, geometry: ConvGeometry
) -> torch.Tensor:
    g = geometry
    mirrored = tuple(d * (k - 1) - p for d, k, p in zip(g.dilation, g.kernel_size, g.padding, strict=True))
    if grad.device.type == "cpu" and not geometry.transposed and set(geometry.stride) == {1} and min(mirrored) >= 0:
        # At stride 1 it is a convolution with the mirrored kernel, which runs at the speed of a forward pass.
        return F.conv3d(grad, weight.flip(2, 3, 4), None, 1, mirrored, geometry.dilation, weight.shape[0])
    shape_only = grad.new_empty(1).expand(input.shape)
    return _convolution_backward(grad, shape_only, weight, geometry, (True, False, False))[0]


def _backward_weight(
    grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, geometry: ConvGeometry
) -> torch.Tensor:
    if grad.device.type != "cpu":
        return _convolution_backward(grad, input, weight, geometry, (False, True, False))[1]
    # Tap by tap. PyTorch's own kernels for it are slow from k5 on (contiguous; docs/cpu.md) or add up in sequence and
    # lose digits (channels_last_3d); torch.sum adds in a cascade.
    if geometry.transposed:
        grad, input = input, grad  # a transposed convolution reads where a plain one writes
    dtype = accumulation_dtype(input.dtype)
    grad = grad.to(dtype).contiguous()
    d, h, w = geometry.padding
    padded = F.pad(input.to(dtype), (w, w, h, h, d, d)).contiguous()
    product = torch.empty_like(grad)
    result = weight.new_empty(weight.shape, dtype=dtype)
    for kd, kh, kw in itertools.product(*map(range, geometry.kernel_size)):
        window = [slice(None), slice(None)] + [
            slice(t * dilation, t * dilation + (extent - 1) * stride + 1, stride)
            for t, dilation, extent, stride in zip(
                (kd, kh, kw), geometry.dilation, grad.shape[2:], geometry.stride, strict=True
            )
        ]
        torch.mul(padded[tuple(window)], grad, out=product)
        result[:, 0, kd, kh, kw] = product.sum((0, 2, 3, 4))
    return result


def _convolution_backward(
    grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, geometry: ConvGeometry, mask: tuple[bool, bool, bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.ops.aten.convolution_backward(
        grad,
        input,
        weight,
        None,
        list(geometry.stride),
        list(geometry.padding),
        list(geometry.dilation),
        geometry.transposed,
        list(geometry.output_padding),
        weight.shape[0],
        list(mask),
    )
