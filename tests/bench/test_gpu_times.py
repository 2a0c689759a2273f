"""The times on a GPU: what goes wrong with one row is told in that row, and what is wanted most comes first."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PLANTED = """
import os, time
import torch
from mednext.bench.task import NotComparable


def fine(device, number):
    return {"ms": number, "process": os.getpid()}


def not_here(device):
    raise NotComparable("MONAI is not installed")


def too_large(device):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 300 GiB")


def endless(device):
    time.sleep(600)


def dies(device):
    os._exit(11)
"""


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """gpu_times.py and its process, which are run from their folder; and planted measurements."""
    (tmp_path / "planted_rows.py").write_text(PLANTED)
    for folder in (tmp_path, BENCHMARKS):
        monkeypatch.syspath_prepend(folder)
    names = ("gpu_times", "row_process", "planted_rows")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def run(folder, *options):
    command = [sys.executable, BENCHMARKS / "gpu_times.py", "--output", folder / "times.json", *options]
    return subprocess.run(
        [str(c) for c in command],
        cwd=folder,
        # MONAI is not there, as on a machine that has nothing but PyTorch.
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_row_that_fails_hangs_or_dies_says_so_and_the_next_is_measured(scripts):
    planted = scripts["planted_rows"]
    process = scripts["row_process"].RowProcess(torch.device("cpu"))

    def row(function, *arguments, seconds=60.0):
        return process.row(scripts["row_process"].Job("networks", {"source": "a"}, function, arguments), seconds)

    try:
        first = row(planted.fine, 1)
        assert first == {"source": "a", "ms": 1, "process": first["process"]}
        assert row(planted.not_here)["error"] == "not comparable: MONAI is not installed"
        assert row(planted.too_large)["error"].startswith("OutOfMemoryError: CUDA out of memory")
        assert row(planted.fine, 2)["process"] == first["process"], "neither costs a new process"
        assert row(planted.endless, seconds=0.5) == {"source": "a", "error": "out of time: stopped after 0 s"}
        assert row(planted.dies)["error"] == "its process ended with status 11"
        assert row(planted.fine, 3)["ms"] == 3
    finally:
        process.close()


def test_the_networks_that_are_asked_for_most_come_first(scripts):
    jobs = scripts["gpu_times"].networks("SBML", (3, 5, 7), 128, ["eager", "compile"])
    order = [
        (job.names["network"].removesuffix(" 1x128^3").removeprefix("MedNeXt-"), job.names["source"]) for job in jobs
    ]
    assert len(set(order)) == len(order) == 12 * 3
    assert order[:3] == [("B k3", "mednext"), ("L k5", "mednext"), ("S k3", "mednext")]
    assert {source for _, source in order[:12]} == {"mednext"}
    wanted = [("B k3", "eager"), ("L k5", "eager"), ("B k3", "torch.compile"), ("L k5", "torch.compile")]
    assert order[12:16] == wanted


def test_networks_on_a_cpu_and_one_that_is_not_installed(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['monai'] = None\n")
    options = ("--device", "cpu", "--only", "networks", "--variant", "S", "--kernel-size", "1", "--patch", "32")
    done = run(tmp_path, *options, "--baselines", "monai", "eager-checkpoint")
    assert done.returncode == 0, done.stderr
    rows = {row["source"]: row for row in json.loads((tmp_path / "times.json").read_text())["networks"]}
    assert list(rows) == ["mednext", "MONAI", "eager checkpointed"]
    assert rows["MONAI"]["error"] == "not comparable: MONAI is not installed"
    assert rows["mednext"]["ms"] > 0 and rows["eager checkpointed"]["ms"] > 0


def test_after_the_time_for_all_no_row_is_started(tmp_path):
    done = run(tmp_path, "--device", "cpu", "--only", "networks", "--seconds", "0", "--baselines", "eager")
    report = json.loads((tmp_path / "times.json").read_text())
    assert done.returncode == 0 and report["networks"] == []
    assert len(report["not_measured"]) == 2 * 3 * 2 and "for 12 there was no time" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 3 and "there is no GPU here" in done.stdout
