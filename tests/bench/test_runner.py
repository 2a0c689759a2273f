"""Rows of the harness: only right results get a time, and whatever goes wrong is a row and no end of the run."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch._dynamo import config as dynamo

import mednext_ops
from mednext.bench import networks, runner
from mednext.bench.accuracy import GATE_SLACK, judge
from mednext.bench.block_task import BlockTask
from mednext.bench.blocks import BlockProblem
from mednext.bench.clocks import summarize
from mednext.bench.network_task import INFERENCE, TRAINING, NetworkTask
from mednext.bench.networks import NetworkProblem
from mednext.bench.op_task import OpTask
from mednext.bench.operators import OPERATORS, OpProblem
from mednext.bench.peak import peak_bytes
from mednext.bench.rows import key
from mednext.bench.suites import BASELINES
from mednext.bench.task import Implementation
from mednext.variants import Variant


def test_a_row_says_what_was_measured(task, measure):
    ours, eager = measure(task)
    assert (ours.implementation, eager.implementation) == ("mednext", "eager")
    for row in (ours, eager):
        assert row.status == "ok" and row.note == ""
        assert 0 < row.seconds_p20 <= row.seconds <= row.seconds_p80 and row.samples >= 5
        assert row.clock == "wall clock"
        assert row.error <= row.allowed_error
        assert row.counted_bytes == 2 * 8 * 12**3 * 4
        assert row.gigabytes_per_second == pytest.approx(row.counted_bytes / row.seconds / 1e9)
        assert row.percent_of_floor == pytest.approx(100 * row.floor_seconds / row.seconds)
    assert ours.backends in mednext_ops.available_backends() and eager.backends == ""
    assert key(ours) != key(eager)


def test_a_planted_wrong_result_gets_no_time(task, measure, plant):
    plant(lambda y: y * (1 + 1e-3))
    eager, ours = sorted(measure(task), key=lambda row: row.implementation)
    assert (ours.status, ours.seconds) == ("wrong", None)
    assert ours.error == pytest.approx(1e-3, rel=0.01) and "output: error" in ours.note
    assert eager.status == "ok" and eager.seconds


def test_the_gate_knows_rounding_from_a_wrong_result():
    """The errors are those of PyTorch's own gradient of ``stem.bias`` on AVX2: contiguous, and in channels_last_3d."""
    exact = torch.ones(32, dtype=torch.float64)

    def verdict(error, slack):
        own, other = ({"stem.bias": (exact * (1 + e)).double()} for e in (3.3e-6, error))
        return judge(other, own, {"stem.bias": exact}, slack=slack).ok

    assert not verdict(2.2e-5, 0.0), "the rule of the tests, that its kernels have to keep"
    assert verdict(2.2e-5, GATE_SLACK)
    assert not verdict(2.0**-11 / 3, GATE_SLACK), "TF32"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_wrong(task, measure, plant, value):
    plant(lambda y: y.index_fill(1, torch.tensor([3]), value))
    assert {row.implementation: row.status for row in measure(task)} == {"mednext": "wrong", "eager": "ok"}


def test_a_result_of_another_shape_is_an_error(task, measure, plant):
    plant(lambda y: y[:, :, 1:])
    (row,) = (row for row in measure(task) if row.implementation == "mednext")
    assert row.status == "error" and "shape" in row.note and row.seconds is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["GPU", "Python", "CPU"],
)
def test_out_of_memory_is_a_row_and_the_run_goes_on(task, measure, plant, error):
    def fail(y):
        raise error

    plant(fail)
    other = OpTask(OpProblem("group_norm_statistics", (1, 8, 12, 12, 12)), "forward")
    rows = measure(task, other)
    assert [(row.problem.split()[0], row.implementation, row.status) for row in rows] == [
        ("depthwise_conv3d", "mednext", "out of memory"),
        ("depthwise_conv3d", "eager", "ok"),
        ("group_norm_statistics", "mednext", "ok"),
        ("group_norm_statistics", "eager", "ok"),
    ]


def test_running_out_of_memory_while_it_is_timed_leaves_the_others_alone(task, measure, plant):
    calls = []

    def fail_later(y):
        calls.append(y.shape)
        if len(calls) > 6:
            raise MemoryError("late")
        return y

    plant(fail_later)
    rows = {row.implementation: row for row in measure(task)}
    assert (rows["mednext"].status, rows["mednext"].note) == ("out of memory", "late")
    assert rows["mednext"].seconds is None and rows["eager"].seconds


def test_what_cannot_fit_on_a_cpu_is_not_tried(monkeypatch):
    monkeypatch.setattr(runner, "available_bytes", lambda: 2**30)
    rows = []
    task = NetworkTask("network", NetworkProblem("L", 5, 128), TRAINING)
    runner.Runner(torch.device("cpu"), None, {}, {}, rows.append).run([task], [BASELINES["eager"]])
    (row,) = rows
    assert row.status == "out of memory" and "not tried" in row.note
    assert row.saved_bytes > 20 * 2**30  # in float32; twice what bfloat16 keeps


def test_any_other_error_of_a_baseline_is_its_row(task, measure, plant):
    def fail(y):
        raise TypeError("not today")

    plant(fail)
    (row,) = (row for row in measure(task) if row.implementation == "mednext")
    assert (row.status, row.note) == ("error", "TypeError: not today")


@pytest.mark.parametrize("op", OPERATORS)
def test_every_pass_of_every_operator_is_right(op, measure):
    stride = (2, 2, 2) if op == "depthwise_conv_transpose3d" else (1, 1, 1)
    tasks = [OpTask(OpProblem(op, (2, 8, 8, 8, 8), stride=stride), name) for name in OPERATORS[op].passes]
    rows = measure(*tasks, timer=False)
    assert [row.status for row in rows] == ["ok"] * 2 * len(tasks)
    assert all(row.peak_bytes is not None for row in rows)
    assert all((row.saved_bytes is not None) == (row.pass_name != "forward") for row in rows)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("form", ["regular", "down", "up"])
def test_every_block_is_right(form, dtype, measure):
    problem = BlockProblem(form, (1, 8, 8, 8, 8), dtype=dtype, grn=True)
    rows = measure(*(BlockTask(problem, name) for name in ("inference", "forward + backward")), timer=False)
    assert [row.status for row in rows] == ["ok"] * 4, [row.note for row in rows]


def test_ours_runs_on_the_backend_that_was_asked_for(task):
    rows = []
    implementations = [Implementation("mednext reference", "mednext", "reference")]
    runner.Runner(torch.device("cpu"), None, {}, {}, rows.append).run([task], implementations)
    assert rows[0].backends == "reference"


def test_every_task_is_compiled_however_many_came_before(monkeypatch):
    """PyTorch keeps so many compilations of one function, eight by default, and runs it uncompiled from there on."""
    compiled, plain_compile = [], torch.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: plain_compile(function, backend=backend))
    narrow = {str(width): Variant(1, (1,) * 9, n_channels=width) for width in range(1, 5)}
    monkeypatch.setattr(networks, "VARIANTS", narrow)
    rows = []
    tasks = [NetworkTask("scaling", NetworkProblem(name, 1, 32), INFERENCE) for name in narrow]
    with dynamo.patch(recompile_limit=2):
        runner.Runner(torch.device("cpu"), None, {}, {}, rows.append).run(tasks, [BASELINES["compile"]])
    assert [row.status for row in rows] == ["ok"] * 4, [row.note for row in rows]
    assert len(compiled) == 4


def test_percentiles_are_those_of_numpy():
    seconds = list(np.random.default_rng(0).random(37))
    timing = summarize(seconds, "wall clock")
    assert [timing.p20, timing.median, timing.p80] == pytest.approx(np.percentile(seconds, [20, 50, 80]))
    assert timing.samples == 37


def test_the_peak_is_what_a_call_takes_beyond_what_was_there():
    kept = torch.ones(32 * 2**20)
    peak = peak_bytes(lambda: (torch.ones(16 * 2**20) * 2).sum(), torch.device("cpu"))
    assert kept.numel() and 0.9 * 128 * 2**20 <= peak <= 1.3 * 128 * 2**20


def test_a_slow_call_takes_long(task, measure, plant):
    plant(lambda y: (time.sleep(0.02), y)[1])
    rows = {row.implementation: row for row in measure(task)}
    assert rows["mednext"].seconds >= 0.02
