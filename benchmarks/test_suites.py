"""pytest-benchmark over the registry of problems of `mednext bench`: ``pytest benchmarks --benchmark-only``.

Each result is checked against float64 before it is timed, and a GPU is waited for in every round. For comparisons in
turn, CUDA graphs and cold caches there is `mednext bench`; this is for those who keep pytest-benchmark's histories.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mednext.bench import suites
from mednext.bench.task import Implementation, NotComparable, Task


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each task of the suite that it is named for, and each implementation."""
    suite = metafunc.function.__name__.removeprefix("test_")
    option = metafunc.config.getoption
    choice = suites.default_choice(suite, option("--device"), quick=not option("--full"))
    changes: dict[str, Any] = {} if option("--with-baselines") else {"baselines": ()}
    changes |= {"patch": option("--patch")} if option("--patch") else {}
    changes |= {"kernel_sizes": tuple(option("--kernel-size"))} if option("--kernel-size") else {}
    choice = dataclasses.replace(choice, **changes)
    cases = [
        pytest.param(task, implementation, id=" ".join((*_words(task), implementation.name)))
        for task in suites.tasks(choice)
        for implementation in suites.implementations(choice)
    ]
    metafunc.parametrize(("task", "implementation"), cases)


def _words(task: Task) -> tuple[str, ...]:
    return task.fields["problem"], task.fields["pass_name"], task.fields["dtype"]


def run(benchmark: Any, task: Task, implementation: Implementation, device: torch.device) -> None:
    try:
        bound = task.bind(implementation, device)
    except NotComparable:
        pytest.skip(f"{implementation.name} has no form for this")
    with implementation.in_force():
        verdict = bound.check()
        assert verdict.ok, verdict
        work = task.work()
        benchmark.group = " ".join(_words(task))
        benchmark.extra_info.update(counted_bytes=work.bytes, counted_operations=work.operations)

        def call() -> None:
            bound.call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        benchmark(call)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


def test_ops(benchmark: Any, task: Task, implementation: Implementation, device: torch.device) -> None:
    run(benchmark, task, implementation, device)


def test_blocks(benchmark: Any, task: Task, implementation: Implementation, device: torch.device) -> None:
    run(benchmark, task, implementation, device)


def test_network(benchmark: Any, task: Task, implementation: Implementation, device: torch.device) -> None:
    run(benchmark, task, implementation, device)
