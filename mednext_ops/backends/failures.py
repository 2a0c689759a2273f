"""Running out of memory inside a native library, as the exception that PyTorch raises for it."""

from __future__ import annotations

import torch

__all__ = ["as_torch_raises"]

#: Of csrc/bindings/allocation.h.
_WORDS = "could not be allocated"


def as_torch_raises(error: RuntimeError, device_type: str) -> RuntimeError:
    """``torch.OutOfMemoryError`` for a failed allocation on a GPU; any other error as it is.

    Who trains on a GPU catches that one, to try again with less. PyTorch before 2.13 does not tell a native library why
    an allocation failed; then this is what it is taken for.
    """
    text = str(error)
    if device_type != "cuda" or _WORDS not in text or isinstance(error, torch.OutOfMemoryError):
        return error
    _, _, reason = text.partition(f"{_WORDS} on the GPU")
    if reason and "out of memory" not in reason:
        return error
    return torch.OutOfMemoryError(text if reason else f"{text}: out of memory")
