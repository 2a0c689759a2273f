"""Tests of the Triton backend: its kernels run in Triton's interpreter where no GPU is, compiled where one is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from mednext_ops import backends


class _Backend:
    """The module, for checks written for any backend; those choose a GPU to plan for, which means nothing here."""

    def __getattr__(self, name: str) -> Any:
        return getattr(backends._module("triton"), name)

    @contextlib.contextmanager
    def architecture(self, _: int) -> Iterator[None]:
        yield


@pytest.fixture(scope="session")
def triton_backend() -> Any:
    """The backend. It must run where these tests do: tests/conftest.py asks for the interpreter where no GPU is."""
    pytest.importorskip("triton", reason="triton has no wheels for this system; on Linux the test extra brings it")
    assert backends._module("triton").unavailable() is None
    return _Backend()
