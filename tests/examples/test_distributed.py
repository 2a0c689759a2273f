"""The example of many processes reaches the weights of one, however the work is shared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parents[2] / "examples" / "distributed.py"
SMALL = ("--dtype", "float64", "--patch", "16", "--channels", "2")
SHARED = {
    "ddp, accumulated": ("--strategy", "ddp", "--accumulate", "2"),
    "fsdp, all": ("--strategy", "fsdp", "--accumulate", "2", "--recompute", "--memory-format", "channels_last_3d"),
}


def run(output, *options, processes=1):
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    done = subprocess.run(
        [sys.executable, *launch, str(PROGRAM), "--output", str(output), *SMALL, *options],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(output)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one") / "one.pt")


@pytest.mark.parametrize("shared", SHARED)
def test_two_processes_reach_the_weights_of_one(shared, expected, tmp_path):
    weights = run(tmp_path / "two.pt", *SHARED[shared], processes=2)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_the_weights_were_trained(expected, tmp_path):
    start = run(tmp_path / "start.pt", "--steps", "0")
    moved = [name for name, value in expected.items() if not torch.equal(value, start[name])]
    assert len(moved) > len(expected) / 2
