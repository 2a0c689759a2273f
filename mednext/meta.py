"""The meta device: tensors that have a shape and hold no values. PyTorch copies nothing into them, and says nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["must_hold_values"]


def must_hold_values(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises a ValueError that calls the owner ``name`` where one of its tensors is on the meta device."""
    empty = [key for key, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise ValueError(
            f"{name} has {len(empty)} of {len(tensors)} tensors on the meta device ({empty[0]}, ...), where they hold "
            "no values, so nothing was loaded; build the network on a real device, outside of torch.device('meta')"
        )
