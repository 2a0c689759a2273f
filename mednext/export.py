"""Takes a trained network out of Python: torch.export, AOTInductor, ONNX, safetensors.

The first two keep each block as one fused operator, so whoever runs them needs `mednext_ops` (`import mednext_ops`
before loading). ONNX and :func:`plain_copy` have PyTorch's own layers only and run anywhere.
"""

from __future__ import annotations

import copy
from os import PathLike, fspath
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

import mednext_ops as ops
from mednext.arguments import must_be_module
from mednext.atomic_file import replacing
from mednext.blocks import MedNeXtBlock
from mednext.network import MedNeXt
from mednext.pointwise import PointwiseConv3d, PointwiseConvTranspose3d

__all__ = ["export_aot_inductor", "export_onnx", "export_program", "export_safetensors", "plain_copy"]

Shape = tuple[int, ...]


def plain_copy(network: nn.Module) -> nn.Module:
    """A copy of ``network``, in eval mode, that computes the same with PyTorch's own layers alone.

    Its state dict has the same keys. It needs the memory and time of the published network.
    """
    must_be_module("network", network)
    plain = copy.deepcopy(network).eval()
    for module in plain.modules():
        if isinstance(module, MedNeXtBlock):
            module.forward = MethodType(type(module)._composed, module)  # type: ignore[method-assign]
        elif type(module) in (ops.nn.DepthwiseConv3d, PointwiseConv3d):
            module.__class__ = nn.Conv3d
        elif type(module) in (ops.nn.DepthwiseConvTranspose3d, PointwiseConvTranspose3d):
            module.__class__ = nn.ConvTranspose3d
    return plain


def export_program(
    network: MedNeXt, path: str | PathLike[str], example: torch.Tensor, *, dynamic: bool = True
) -> torch.export.ExportedProgram:
    """Write a `torch.export` program, which `torch.export.load` reads.

    Args:
        network: with deep supervision off.
        path: the file, .pt2.
        example: an input [N, C, ...].
        dynamic: for any batch and any extents of two or more total strides; otherwise for the example's shape alone.

    Raises:
        ValueError: deep supervision is on, or a dynamic example has an extent of a single total stride.
        TypeError: ``network`` is no :class:`~mednext.MedNeXt`.
    """
    program = _program(network, network, example, dynamic)
    with replacing(Path(fspath(path))) as part:
        torch.export.save(program, part)
    return program


def export_aot_inductor(
    network: MedNeXt, path: str | PathLike[str], example: torch.Tensor, *, dynamic: bool = True
) -> None:
    """Compile the network into an AOTInductor package, which `torch._inductor.aoti_load_package` reads.

    Arguments and errors as :func:`export_program`; the path must end in .pt2. Needs a C++ compiler.
    """
    from torch._inductor import aoti_compile_and_package

    path = Path(fspath(path))
    if path.suffix != ".pt2":
        raise ValueError(f"path must end in .pt2, got {path}")
    program = _program(network, network, example, dynamic)
    with replacing(path) as part:
        aoti_compile_and_package(program, package_path=str(part))


def export_onnx(network: MedNeXt, path: str | PathLike[str], example: torch.Tensor, *, dynamic: bool = True) -> None:
    """Write an ONNX model with one input "scan" and one output "logits", in ONNX's own operators.

    Arguments and errors as :func:`export_program`. Needs the packages of `mednext-ops[export]`.
    """
    program = _program(network, plain_copy(network), example, dynamic)
    onnx = torch.onnx.export(program, input_names=["scan"], output_names=["logits"], dynamo=True, verbose=False)
    assert onnx is not None
    with replacing(Path(fspath(path))) as part:
        onnx.save(part, external_data=False)


def export_safetensors(network: nn.Module, path: str | PathLike[str]) -> None:
    """Write the weights alone, under their names; :func:`mednext.load_checkpoint` reads them.

    Needs the packages of `mednext-ops[export]`.
    """
    from safetensors.torch import save_file

    must_be_module("network", network)
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    with replacing(Path(fspath(path))) as part:
        save_file(weights, part)


def _program(network: MedNeXt, runs: nn.Module, example: torch.Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    """``runs``, which computes what ``network`` does, as a program."""
    if not isinstance(network, MedNeXt):
        raise TypeError(f"network must be a mednext.MedNeXt, got {type(network).__name__}")
    if network.deep_supervision:
        raise ValueError("network must have deep supervision off for inference: set network.deep_supervision = False")
    network._check(example)
    shapes: Any = None
    if dynamic:
        single = [n for n, stride in zip(example.shape[2:], network.total_stride, strict=True) if n == stride > 1]
        if single:
            raise ValueError(
                f"example must have extents of two or more total strides {list(network.total_stride)} to stand for "
                f"others, got {list(example.shape[2:])}; pass dynamic=False to export this shape alone"
            )
        shapes = {0: torch.export.Dim.DYNAMIC}
        shapes |= {axis + 2: _extent(axis, stride) for axis, stride in enumerate(network.total_stride)}
        example = example.expand(max(2, len(example)), *example.shape[1:]).contiguous()  # 1 would be fixed
    training = network.training
    try:
        with torch.no_grad():
            return torch.export.export(runs.eval(), (example,), dynamic_shapes=(shapes,) if dynamic else None)
    finally:
        network.train(training)


def _extent(axis: int, stride: int) -> Any:
    return (
        stride * torch.export.Dim(f"extent_{axis}", min=2) if stride > 1 else torch.export.Dim(f"extent_{axis}", min=2)
    )
