"""Tests of what only the CPU library has: its variants, its threads, its memory."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

FORMATS = [torch.contiguous_format, torch.channels_last_3d]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def poison_pool(module: Any, bytes_: int) -> None:
    """Fills blocks of the pool (csrc/bindings/memory_pool.h) with NaN: the next results of that size lie in them."""
    x = torch.zeros(1, 1, 1, 1, bytes_ // 4)
    one = torch.ones(1)
    blocks = [module.group_norm(x, one[None], one[None], one, one, None) for _ in range(4)]
    for block in blocks:
        block.fill_(float("nan"))


class Poisoned:
    """The CPU backend; while it runs, fresh memory is full of NaN, so that what it leaves unwritten shows."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def call(*arguments: Any) -> Any:
            for size in {
                a.numel() * a.element_size() for a in arguments if isinstance(a, torch.Tensor) and a.dim() == 5
            }:
                poison_pool(self._module, size)
            torch.use_deterministic_algorithms(True)  # it fills what torch.empty returns
            try:
                assert torch.empty(3).isnan().all()
                return function(*arguments)
            finally:
                torch.use_deterministic_algorithms(False)

        return call


@pytest.fixture
def cpu() -> Any:
    """The CPU backend, on poisoned memory; the test is skipped where its library was not built."""
    module = importlib.import_module("mednext_ops.backends.cpu")
    if module.unavailable() is not None:
        pytest.skip(module.unavailable())
    return Poisoned(module)
