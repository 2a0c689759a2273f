"""The CUDA library (csrc/cuda) as a backend."""

from __future__ import annotations

import functools

import torch

from mednext_ops import native
from mednext_ops.backends.cuda_kernels import CudaKernels

__all__ = [
    "NAME",
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
    "supports",
    "unavailable",
    "up_bottleneck",
]

NAME = "cuda"


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


class _Cuda(CudaKernels):
    @functools.cache  # noqa: B019
    def architecture(self) -> int:
        capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
        return min(10 * major + minor for major, minor in capabilities)


_kernels = _Cuda("cuda", native.NAMESPACE, "cuda")
supports = _kernels.declined
group_norm = _kernels.group_norm
group_norm_backward = _kernels.group_norm_backward
group_norm_input_gradient = _kernels.group_norm_input_gradient
group_norm_statistics = _kernels.group_norm_statistics
depthwise_conv3d = _kernels.depthwise_conv3d
depthwise_conv3d_statistics = _kernels.depthwise_conv3d_statistics
depthwise_conv3d_backward = _kernels.depthwise_conv3d_backward
inverted_bottleneck = _kernels.inverted_bottleneck
inverted_bottleneck_backward = _kernels.inverted_bottleneck_backward
up_bottleneck = _kernels.inverted_bottleneck
packed_voxels = _kernels.packed_voxels
pointwise_conv3d = _kernels.pointwise_conv3d
pointwise_conv3d_backward = _kernels.pointwise_conv3d_backward
