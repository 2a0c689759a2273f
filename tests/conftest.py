"""What all tests share: where they run, and how far a result may be off."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import mednext
import mednext_ops

# Where no GPU is, Triton's kernels run in its interpreter. Settled when triton is first imported, by whichever test.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Workers that run side by side share the cores; two threads a worker would only wait for each other.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


if os.environ.get("MEDNEXT_OPS_TEST_INSTALLED") == "1":
    for _package in (mednext, mednext_ops):
        if Path(_package.__file__).resolve().is_relative_to(Path(__file__).resolve().parents[1] / _package.__name__):
            raise pytest.UsageError(
                f"the tests import {_package.__file__}, not the installed package: run pytest itself"
            )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` run where a GPU is, and are left out elsewhere."""
    if torch.cuda.is_available():
        return
    left_out = [item for item in items if "gpu" in item.keywords]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if "gpu" not in item.keywords]


DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device of this machine that the op layer serves."""
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
