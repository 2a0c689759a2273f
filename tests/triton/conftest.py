"""Tests of the Triton backend: its kernels run in Triton's interpreter where no GPU is, compiled where one is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mednext_ops import backends


def moved(value: Any, device: str) -> Any:
    """Tensors, also those in tuples, on another device; everything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        parts = [moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


class _Backend:
    """The module, for checks of any backend on CPU tensors: where it is compiled these go to the GPU and back."""

    def __getattr__(self, name: str) -> Any:
        module = backends._module("triton")
        found = getattr(module, name)
        if name not in module._MODULES or module.interpreted():
            return found
        return lambda *arguments: moved(found(*moved(arguments, "cuda")), "cpu")


@pytest.fixture(scope="session")
def triton_backend() -> Any:
    """The backend. It must run where these tests do: tests/conftest.py asks for the interpreter where no GPU is."""
    pytest.importorskip("triton", reason="triton has no wheels for this system; on Linux the test extra brings it")
    assert backends._module("triton").unavailable() is None
    return _Backend()
