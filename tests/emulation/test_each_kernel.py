"""Parity's fixed list, benchmarks/parity/each_kernel.py, on the emulation: against float64, and in another order."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from mednext_ops import use_backend

from .conftest import ROOT

PARITY = ROOT / "benchmarks" / "parity"


@pytest.fixture
def parity(monkeypatch, emulated):
    """Modules of benchmarks/parity; one thread, since for so small problems a second one costs more than it does."""
    monkeypatch.syspath_prepend(PARITY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names = ("each_kernel", "operators_tried", "repeats", "results_of")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    torch.set_num_threads(threads)
    for file in PARITY.glob("*.py"):
        sys.modules.pop(file.stem, None)


def test_every_kernel_is_within_twice_pytorchs_error(parity):
    chosen = {"backend": "emulated", "device": "cpu", "reference_device": "cpu", "tell": False, "seed": 0}
    report = parity.each_kernel.check(argparse.Namespace(**chosen, deadline=time.monotonic() + 600))
    assert report["passed"] == report["tried"] == len(parity.each_kernel.problems()) and not report["failures"]
    assert all("emulated" in backends for backends in report["ran_on"].values())


def test_no_kernel_depends_on_the_order_of_its_threads(parity, emulated):
    for problem in parity.each_kernel.problems():
        tensors = parity.operators_tried.draw(problem, "cpu")
        with use_backend("emulated", "reference"):
            first = parity.results_of.of_ours(problem, tensors)
            with emulated.thread_order("shuffled", 1):
                wrong = parity.repeats.differing(first, parity.results_of.of_ours(problem, tensors))
        assert not wrong, parity.operators_tried.told(problem)
