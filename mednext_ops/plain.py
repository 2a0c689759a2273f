"""Tells whether a layer does only what its type and parameters say, so that a fused operator may stand in for it.

A fused operator reads the parameters of layers that anyone may hook, prune, parametrize or exchange; it may take their
place just where nothing else would have happened.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

__all__ = ["note_composed", "why_not_plain"]

logger = logging.getLogger("mednext_ops")


def why_not_plain(name: str, module: Any, types: tuple[type, ...]) -> str | None:
    """``None`` if the layer is of one of these types and nothing hangs on it; otherwise the reason.

    A subclass (parametrized, quantized, ...), a hook (pruning is one) or an exchanged forward may do more than the type
    says.
    """
    if type(module) not in types:
        return f"{name} is a {type(module).__name__}"
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if hooks or "forward" in module.__dict__:
        return f"{name} has a hook or a forward of its own"
    return None


def note_composed(module: torch.nn.Module, reason: str) -> None:
    """Log that ``module`` runs its layers one by one: once a reason, and not while it is being compiled."""
    if torch.compiler.is_compiling() or not logger.isEnabledFor(logging.INFO):
        return
    if module.__dict__.get("_composed_because") != reason:
        module._composed_because = reason  # type: ignore[assignment]
        logger.info("%s runs layer by layer, which takes more time and memory: %s", type(module).__name__, reason)
