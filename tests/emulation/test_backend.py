"""The emulated library is optional: without it there is a reason and a mend, and nothing else changes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import mednext_ops as ops
from mednext_ops import native
from mednext_ops.backends import emulated
from mednext_ops.backends.problem import ConvGeometry, Problem

from .conftest import ROOT


@pytest.fixture
def fresh(monkeypatch):
    native.emulated_library.cache_clear()
    yield monkeypatch
    native.emulated_library.cache_clear()


def test_without_a_library_it_says_how_to_build_one(fresh):
    fresh.delenv(native.EMULATED_LIBRARY_VARIABLE, raising=False)
    assert "MEDNEXT_OPS_EMULATED_LIBRARY is not set; it is for tests: build it" in str(emulated.unavailable())
    native.emulated_library.cache_clear()
    fresh.setenv(native.EMULATED_LIBRARY_VARIABLE, "/nowhere/lib.so")
    assert "MEDNEXT_OPS_EMULATED_LIBRARY is '/nowhere/lib.so', which is no file" in str(emulated.unavailable())


def test_a_file_that_is_no_library_is_told_with_the_loaders_words(tmp_path: Path):
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    code = "from mednext_ops.backends import emulated; print(emulated.unavailable())"
    environment = {native.EMULATED_LIBRARY_VARIABLE: str(broken)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert "it does not load" in done.stdout
    assert "broken.so" in done.stdout


def test_it_declines_with_a_reason():
    shape = (2, 4, 5, 5, 5)
    assert emulated.supports(Problem("group_norm_statistics", "cpu", torch.float32, shape)) is None
    assert "not on cuda" in str(emulated.supports(Problem("group_norm_statistics", "cuda", torch.float32, shape)))
    assert "no kernel for torch.float64" in str(
        emulated.supports(Problem("group_norm_statistics", "cpu", torch.float64, shape))
    )
    assert "no kernel for an_op_to_come" in str(
        emulated.supports(Problem("an_op_to_come", "cpu", torch.float32, shape))
    )
    assert "not 4 dimensions" in str(
        emulated.supports(Problem("group_norm_statistics", "cpu", torch.float32, shape[1:]))
    )


@pytest.mark.usefixtures("emulated")
def test_an_output_for_which_there_is_no_memory_is_named():
    """By the bindings of the CUDA kernels, which are the same."""
    padding = 2**15  # 2^50 bytes: more than a process can address
    with ops.use_backend("emulated"), pytest.raises(RuntimeError) as raised:
        ops.depthwise_conv3d(torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 3, 3, 3), padding=padding)
    extent = 2 * padding
    assert f"a tensor of [1, 1, {extent}, {extent}, {extent}] could not be allocated" in str(raised.value)


def test_the_library_wants_no_cpp_symbol_of_torch(folder: Path):
    from build_tools import check_symbols

    assert check_symbols.foreign_symbols(folder / "libmednext_ops_emulated.so") == []


def test_the_build_is_for_a_clone_and_says_what_the_machine_lacks(tmp_path, monkeypatch, capsys):
    from build_tools import emulated as command
    from build_tools.native import find_tools
    from build_tools.toolchain import Missing

    monkeypatch.chdir(tmp_path)
    assert command.main([]) == 1
    assert "run this in a clone of mednext-ops" in capsys.readouterr().err
    tools = dataclasses.replace(find_tools(), compiler=Missing("no C++ compiler", "install g++"))
    assert command.build_emulated(tmp_path, tmp_path / "build", tools) == Missing("no C++ compiler", "install g++")


def test_launches_alone_compute_nothing_and_are_checked_all_the_same(emulated):
    input, weight = torch.randn(1, 2, 5, 5, 5), torch.randn(2, 1, 3, 3, 3)
    geometry = ConvGeometry((3, 3, 3), padding=(1, 1, 1))
    expected = emulated.depthwise_conv3d(input, weight, None, geometry)
    with emulated.launches_only():
        assert emulated.depthwise_conv3d(input, weight, None, geometry).isnan().all()
    with pytest.raises(RuntimeError, match="weight"), emulated.launches_only():
        emulated.depthwise_conv3d(input, weight[:1], None, geometry)
    assert torch.equal(emulated.depthwise_conv3d(input, weight, None, geometry), expected)


def test_the_hosts_part_of_a_step_is_timed(emulated):
    command = [sys.executable, str(ROOT / "benchmarks" / "host_time.py"), "--variant", "S", "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tempfile.gettempdir())
    times = json.loads(done.stdout)
    assert set(times) == {"forward", "backward", "optimizer"} and all(ms > 0 for ms in times.values())
    done = subprocess.run(
        [*command, "--profile"], capture_output=True, text=True, check=True, cwd=tempfile.gettempdir()
    )
    assert "mednext_block.py" in done.stdout
