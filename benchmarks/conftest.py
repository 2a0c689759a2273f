"""Options of the pytest-benchmark suite."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mednext benchmarks")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    group.addoption("--full", action="store_true", help="the problems of `mednext bench` without --quick")
    group.addoption("--patch", type=int, help="edge of the cube at the finest level, voxels; of networks too")
    group.addoption("--kernel-size", type=int, action="append", help="3, 5, 7; may be given more than once")
    group.addoption("--with-baselines", action="store_true", help="measure what `mednext bench` sets beside ours, too")
