"""What the tests of the harness share: one small task, and a runner that keeps its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

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
