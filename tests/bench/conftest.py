"""What the tests of the harness share: one small task, a runner that keeps its rows, and the modules of parity."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mednext.bench.clocks import Timer
from mednext.bench.machine import Ceilings
from mednext.bench.op_task import OpTask
from mednext.bench.operators import OPERATORS, OpProblem
from mednext.bench.rows import Row
from mednext.bench.runner import Runner
from mednext.bench.suites import BASELINES
from mednext.bench.task import Implementation

OURS = Implementation("mednext", "mednext")
CPU = torch.device("cpu")


@pytest.fixture
def task() -> OpTask:
    return OpTask(OpProblem("depthwise_conv3d", (1, 8, 12, 12, 12)), "forward")


@pytest.fixture
def plant(monkeypatch) -> Callable[[Callable], None]:
    """Puts something between our depthwise convolution and who measures it."""

    def put(change: Callable) -> None:
        operator = OPERATORS["depthwise_conv3d"]
        changed = dataclasses.replace(operator, ours=lambda p, t: change(operator.ours(p, t)))
        monkeypatch.setitem(OPERATORS, "depthwise_conv3d", changed)

    return put


@pytest.fixture
def measure() -> Callable[..., list[Row]]:
    """Runs tasks by ours and by eager PyTorch; returns the rows."""

    def run(*tasks: OpTask, timer: bool = True) -> list[Row]:
        rows: list[Row] = []
        clock = Timer(CPU, seconds=0.05, samples=5) if timer else None
        runner = Runner(CPU, clock, {"fp32": Ceilings(1e10, 1e11)}, {"machine": "a test"}, rows.append)
        runner.run(tasks, [OURS, BASELINES["eager"]])
        return rows

    return run


PARITY = Path(__file__).resolve().parents[2] / "benchmarks" / "parity"


@pytest.fixture
def parity(monkeypatch) -> Iterator[dict[str, ModuleType]]:
    """The modules of benchmarks/parity, which is run as a folder, by their names."""
    monkeypatch.syspath_prepend(PARITY)
    names = [file.stem for file in PARITY.glob("*.py") if not file.stem.startswith("__")]
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def options() -> Callable[..., argparse.Namespace]:
    """What parity's command line would give, for a short run of the CPU backend."""

    def make(**changes: object) -> argparse.Namespace:
        chosen = {"backend": "cpu", "device": "cpu", "problems": 1, "runs": 3, "size": "tiny", "seed": 0}
        chosen |= {"reference_device": "cpu", "tell": False}
        return argparse.Namespace(**chosen | changes, deadline=time.monotonic() + 60)

    return make
