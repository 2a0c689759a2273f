"""Fused operators for large-kernel 3D ConvNeXts: depthwise convolution, GroupNorm, GELU, inverted bottleneck.

Importing this does not initialise CUDA. ``python -m mednext_ops.info`` says what runs on this machine and why.

The operators work under autocast, ``torch.compile(fullgraph=True)``, ``torch.export``, DistributedDataParallel and
activation checkpointing. They do not work under ``torch.jit.trace`` and ``torch.jit.script`` (use ``torch.export``),
the gradient transforms of ``torch.func``, which raise, and forward-mode differentiation (``torch.func.jvp``,
``torch.autograd.forward_ad``), which PyTorch drops without a word for operators that Python defines.
"""

from mednext_ops import nn
from mednext_ops.backends import available_backends, use_backend
from mednext_ops.ops.depthwise_conv3d import depthwise_conv3d
from mednext_ops.ops.depthwise_conv3d_group_norm import depthwise_conv3d_group_norm
from mednext_ops.ops.depthwise_conv_transpose3d import depthwise_conv_transpose3d
from mednext_ops.ops.group_norm_statistics import group_norm_statistics
from mednext_ops.ops.inverted_bottleneck import inverted_bottleneck
from mednext_ops.ops.mednext_block import mednext_block
from mednext_ops.ops.pointwise_conv3d import pointwise_conv3d

__all__ = [
    "available_backends",
    "depthwise_conv3d",
    "depthwise_conv3d_group_norm",
    "depthwise_conv_transpose3d",
    "group_norm_statistics",
    "inverted_bottleneck",
    "mednext_block",
    "nn",
    "pointwise_conv3d",
    "use_backend",
]
