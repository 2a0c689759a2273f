"""Puts our blocks into a MedNeXt that somebody else's code built: the official one, MONAI's, or one like them.

Blocks are known by their submodules, so neither package is imported. A block keeps its object, submodules, parameters,
hooks and state dict keys; what changes is its class, and with that its ``forward``.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from mednext.arguments import RECOMPUTE, must_be_module, one_of
from mednext.blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock
from mednext.fusable import why_not_fusable

__all__ = ["accelerate"]

logger = logging.getLogger(__name__)

_PARTS = ("conv1", "norm", "conv2", "act", "conv3")
_GRN_NAMES = (("grn_gamma", "grn_beta"), ("global_resp_gamma", "global_resp_beta"))  # official, MONAI


def accelerate(model: nn.Module, recompute: str | None = None) -> nn.Module:
    """Let the MedNeXt blocks in ``model`` run on the fused operator, in place.

    Parameters are the same objects under the same state dict keys, outputs are the same, and optimizers, hooks and the
    training mode stay as they are. Each block is run before and after on a few voxels to make sure of its output.
    Blocks that the operator does not cover (LayerNorm, inner hooks, exchanged layers) stay what they are, and the log
    names them.

    Args:
        model: an official or MONAI MedNeXt, or any module that contains such blocks, wrapped or not. Not yet compiled.
        recompute: "conv" keeps only each block's input for backward, see :class:`~mednext.MedNeXtBlock`.

    Returns:
        ``model``.

    Raises:
        ValueError: no block was found that the operator covers, or one gave another output; nothing is changed then.

    Example:
        >>> net = mednext.accelerate(monai.networks.nets.MedNeXtB(in_channels=1, out_channels=3))
    """
    must_be_module("model", model)
    one_of("recompute", recompute, RECOMPUTE)
    candidates = {name: module for name, module in model.named_modules() if _looks_like_a_block(module)}
    refusals = {name: reason for name, block in candidates.items() if (reason := why_not_fusable(block, _form(block)))}
    for name, reason in refusals.items():
        logger.warning("block %s stays as it is: %s", name or "(model)", reason)
    accepted = {name: block for name, block in candidates.items() if name not in refusals}
    if not accepted:
        found = "; ".join(f"{name}: {reason}" for name, reason in list(refusals.items())[:3]) or "no block at all"
        raise ValueError(
            f"model ({type(model).__name__}) has no MedNeXt block that can be accelerated: expected modules with "
            f"{', '.join(_PARTS)}, with a depthwise conv1 and a GroupNorm, but found {found}"
        )
    originals = {name: (type(block), dict(block.__dict__)) for name, block in accepted.items()}
    try:
        for name, block in accepted.items():
            _convert(name, block, recompute)
    except BaseException:
        for name, (cls, attributes) in originals.items():
            accepted[name].__class__ = cls
            accepted[name].__dict__.clear()
            accepted[name].__dict__.update(attributes)
        raise
    logger.info("accelerated %d of %d MedNeXt blocks", len(accepted), len(candidates))
    return model


def _looks_like_a_block(module: nn.Module) -> bool:
    return hasattr(module, "do_res") and all(isinstance(getattr(module, part, None), nn.Module) for part in _PARTS)


def _form(block: Any) -> str:
    if isinstance(block.conv1, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return "up"
    return "down" if max(getattr(block.conv1, "stride", (1,))) > 1 else "regular"


def _convert(name: str, block: Any, recompute: str | None) -> None:
    if isinstance(block, MedNeXtBlock):
        block.recompute = recompute
        return
    before = _probe(block)
    grn_names = next((names for names in _GRN_NAMES if all(hasattr(block, name) for name in names)), None)
    form = _form(block)
    if form != "regular" and not hasattr(block, "resample_do_res"):
        block.resample_do_res = hasattr(block, "res_conv")
    block.__class__ = {"regular": MedNeXtBlock, "down": MedNeXtDownBlock, "up": MedNeXtUpBlock}[form]
    block.grn = grn_names is not None
    block.grn_names = grn_names or MedNeXtBlock.grn_names
    block.recompute = recompute
    if not _agree(before, _probe(block)):
        raise ValueError(
            f"block {name or '(model)'} of the model computes something else than a MedNeXt block with its parameters; "
            "nothing was changed"
        )


def _agree(before: torch.Tensor, after: torch.Tensor) -> bool:
    if before.shape != after.shape or before.is_meta:
        return before.shape == after.shape
    tolerance = 0.1 if before.dtype.itemsize < 4 else 1e-4
    scale = before.nan_to_num().abs().max().item()
    return torch.allclose(after, before, rtol=0.0, atol=tolerance * scale, equal_nan=True)


@torch.no_grad()
def _probe(block: Any) -> torch.Tensor:
    """The block's output on a fixed input of a few voxels, past the hooks on the block and without random numbers."""
    conv1 = block.conv1
    axes = len(conv1.kernel_size)
    shape = (1, conv1.in_channels, *(4,) * axes)
    count = conv1.in_channels * 4**axes
    x = torch.arange(count, device=conv1.weight.device, dtype=torch.float32).mul_(12.9898).sin_().reshape(shape)
    return type(block).forward(block, x.to(conv1.weight.dtype))
