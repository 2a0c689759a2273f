"""Measures what a training step keeps in memory between forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["saved_bytes", "saved_bytes_per_voxel"]


def saved_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that autograd saves for backward while ``forward`` runs, without the model's own parameters and buffers.

    Tensors that share their storage count once, with the whole storage.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}  # by storage; holding the tensors keeps its address from being used again

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            saved.setdefault(storage, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = forward()
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del output
    return total


def saved_bytes_per_voxel(
    model: nn.Module,
    in_channels: int = 1,
    extents: tuple[int, int] = (32, 64),
    dtype: torch.dtype = torch.bfloat16,
) -> float:
    """Bytes saved for backward a voxel under autocast: the slope between two cubes, in which fixed costs cancel.

    Args:
        model: a 3D network for [1, in_channels, D, H, W]; as it is, in its training mode and on its device.
        in_channels: channels of the input.
        extents: edge lengths of the smaller and the larger cube.
        dtype: autocast to this.
    """
    device = next(model.parameters()).device

    def measure(extent: int) -> int:
        x = torch.zeros(1, in_channels, extent, extent, extent, device=device)
        with torch.autocast(device.type, dtype):
            return saved_bytes(model, lambda: model(x))

    small, large = extents
    return (measure(large) - measure(small)) / (large**3 - small**3)
