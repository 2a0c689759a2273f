"""The choice of a backend: order, forcing, explaining."""

from __future__ import annotations

import logging
import logging.handlers
import re

import pytest
import torch

import mednext_ops as ops
from mednext_ops import backends, info
from mednext_ops.backends import Problem
from mednext_ops.ops.library import problem_of


@pytest.fixture
def x():
    return torch.randn(1, 3, 5, 5, 5)


def test_reference_is_always_available():
    assert "reference" in ops.available_backends()
    assert set(ops.available_backends()) <= set(backends.backend_names())


@pytest.mark.parametrize("name", backends.backend_names())
def test_every_backend_explains_itself(name):
    module = backends._module(name)
    assert name == module.NAME
    reason = module.unavailable()
    assert reason is None or len(reason) > 20
    unknown = Problem("no_such_op", "cpu", torch.float32)
    assert isinstance(module.supports(unknown), str)


def test_a_backend_can_be_forced_for_a_while(x):
    problem = problem_of("group_norm_statistics", x, num_groups=3)
    before = backends.choose(problem).NAME
    with ops.use_backend("reference"):
        assert backends.choose(problem).NAME == "reference"
        mean, _ = ops.group_norm_statistics(x)
    assert before == backends.choose(problem).NAME
    assert torch.allclose(mean, x.mean((2, 3, 4)), atol=1e-6)


def test_forcing_nests_and_survives_an_error(x):
    problem = problem_of("group_norm_statistics", x, num_groups=3)
    before = backends.choose(problem).NAME

    def fail():
        with ops.use_backend("reference"):
            with ops.use_backend(*ops.available_backends()):
                pass
            assert backends.choose(problem).NAME == "reference"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert before == backends.choose(problem).NAME


def test_the_environment_variable_forces_too(x, monkeypatch):
    monkeypatch.setenv("MEDNEXT_OPS_BACKEND", "reference")
    assert backends.choose(problem_of("group_norm_statistics", x, num_groups=3)).NAME == "reference"


@pytest.mark.parametrize("value", ["cudaa", "reference,fast"])
def test_an_unknown_name_is_named(x, monkeypatch, value):
    with pytest.raises(ValueError, match=value.split(",")[-1]), ops.use_backend(*value.split(",")):
        pass
    monkeypatch.setenv("MEDNEXT_OPS_BACKEND", value)
    with pytest.raises(ValueError, match="MEDNEXT_OPS_BACKEND"):
        ops.depthwise_conv3d(x, torch.randn(3, 1, 3, 3, 3))


def test_a_forced_backend_that_declines_raises_its_reason(x, monkeypatch):
    module = backends._module("reference")
    monkeypatch.setattr(module, "supports", lambda problem: "too large for the test")
    backends._first_taker.cache_clear()
    with pytest.raises(RuntimeError, match="reference: too large for the test"), ops.use_backend("reference"):
        ops.depthwise_conv3d(x, torch.randn(3, 1, 3, 3, 3))
    backends._first_taker.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the cuda backend can run")
def test_forcing_a_backend_that_cannot_run_says_why():
    with pytest.raises(RuntimeError, match="does not run here"), ops.use_backend("cuda"):
        pass


def test_the_choice_is_logged_once_a_problem(caplog):
    x, w = torch.randn(1, 3, 5, 6, 11), torch.randn(3, 1, 3, 3, 3)
    ops.depthwise_conv3d(x[..., 1:], w, padding=1)  # with the log off: whatever it told before is forgotten
    with caplog.at_level(logging.DEBUG, logger="mednext_ops"):
        for _ in range(3):
            ops.depthwise_conv3d(x, w, padding=1)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "depthwise_conv3d on cpu" in lines[0] and "1x3x5x6x11" in lines[0] and "backend" in lines[0]


def test_the_log_may_be_switched_on_at_any_time(caplog):
    """It tells what runs from then on, also of problems that ran before, each once."""
    x, w = torch.randn(1, 3, 5, 6, 13), torch.randn(3, 1, 3, 3, 3)
    for _ in range(2):
        ops.depthwise_conv3d(x, w, padding=1)  # off
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="mednext_ops"):
            for _ in range(3):
                ops.depthwise_conv3d(x, w, padding=1)
        assert len(caplog.records) == 1 and "1x3x5x6x13" in caplog.text


def test_a_later_listener_hears_everything(caplog):
    x, w = torch.randn(1, 3, 5, 6, 14), torch.randn(3, 1, 3, 3, 3)
    listener = logging.handlers.BufferingHandler(100)
    with caplog.at_level(logging.DEBUG, logger="mednext_ops"):
        ops.depthwise_conv3d(x, w, padding=1)
        backends.logger.addHandler(listener)
        try:
            ops.depthwise_conv3d(x, w, padding=1)
        finally:
            backends.logger.removeHandler(listener)
    assert "1x3x5x6x14" in listener.buffer[0].getMessage()


def test_the_log_under_a_compiled_graph(caplog):
    x, w = torch.randn(1, 3, 5, 6, 15), torch.randn(3, 1, 3, 3, 3)
    compiled = torch.compile(lambda x: ops.depthwise_conv3d(x, w, padding=1), fullgraph=True, backend="aot_eager")
    compiled(x)
    with caplog.at_level(logging.DEBUG, logger="mednext_ops"):
        compiled(x)
    assert "1x3x5x6x15" in caplog.text


def test_a_backend_that_declines_passes_the_problem_on(x, monkeypatch):
    """The chain goes on to the next backend, and says why in the log."""
    first = backends._module(backends.DEFAULT_ORDER["cpu"][0])
    monkeypatch.setattr(first, "supports", lambda problem: "not today")
    monkeypatch.setattr(first, "unavailable", lambda: None)
    backends._first_taker.cache_clear()
    module, declined = backends._first_taker(problem_of("group_norm_statistics", x, num_groups=3), None)
    assert module.NAME == "reference" and declined == f"{first.NAME}: not today"
    backends._first_taker.cache_clear()


def test_contexts_that_close_in_another_order_leave_nothing_forced(x):
    """As two threads may."""
    problem = problem_of("group_norm_statistics", x, num_groups=3)
    before = backends.choose(problem).NAME
    first, second = ops.use_backend("reference"), ops.use_backend(*ops.available_backends())
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert not backends._open_choices
    assert before == backends.choose(problem).NAME


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("cudaa", "every op will fail, since 'cudaa' is no backend; there are cuda, triton, cpu, reference, emulated"),
        (",", "every op will fail, since ',' is no backend"),
        ("reference,fast", "since 'fast' is no backend"),
        ("reference", "MEDNEXT_OPS_BACKEND reference\n"),
        ("auto", "MEDNEXT_OPS_BACKEND auto\n"),
    ],
)
def test_info_judges_the_environment_variable(monkeypatch, value, words):
    monkeypatch.setenv("MEDNEXT_OPS_BACKEND", value)
    said = info.describe(info.collect()) + "\n"
    assert words in re.sub(" +", " ", said)  # the column is as wide as the longest variable that is set
    assert ("to mend it: unset it" in said) == ("every op" in said)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the cuda backend can run")
def test_info_says_when_all_forced_backends_are_missing(monkeypatch):
    monkeypatch.setenv("MEDNEXT_OPS_BACKEND", "cuda")
    assert info.collect()["forced"] == {"value": "cuda", "problem": "cuda does not run here (see backends)"}
    monkeypatch.setenv("MEDNEXT_OPS_BACKEND", "cuda,reference")
    assert info.collect()["forced"] == {"value": "cuda,reference", "problem": None}
