"""The plans that `python -m mednext_ops.info --plan` prints are of problems that the operators take."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mednext_ops import info


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--kernel", "4"], "the kernel must be odd on every axis, got [4, 4, 4]"),
        (["--kernel", "3,3,2"], "got [3, 3, 2]"),
        (["--arch", "10"], "compute capability 7.5 (--arch 75) or newer, got --arch 10"),
        (["--grn"], "give its --hidden channels too"),
        (["--hidden", "0"], "0 hidden and 4 output channels"),
        (["--hidden", "8", "--outputs", "-1"], "8 hidden and -1 output channels"),
        (["--stride", "0"], "--stride must be at least 1 on every axis, got (0, 0, 0)"),
        (["--transposed", "--stride", "0"], "--stride must be at least 1"),
        (["--stride", "2147483648"], "--stride must be at most 2^31 - 1"),
        (["--kernel", "-1"], "--kernel must be at least 1"),
        (["--dilation", "0"], "--dilation must be at least 1"),
        (["--padding", "-1"], "--padding must be at least 0"),
        (["--padding", "2147483647"], "a tensor has at most 2^63 - 1 bytes"),
        (["--plan", "a,b"], "numbers with commas between them are expected, got 'a,b'"),
        (["--arch", "nine"], "a compute capability is 90 or 9.0, got 'nine'"),
    ],
)
def test_what_has_no_plan_is_refused(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        info.main(["--plan", "1,4,8,8,8", *options])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--hidden", "64"], ["--kernel", "5"], ["--grn"], ["--channels-last"]])
def test_what_belongs_to_a_plan_is_not_ignored(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        info.main(options)
    assert stopped.value.code == 2
    assert f"{options[0]} belongs to --plan" in capsys.readouterr().err


def test_a_compute_capability_may_have_a_point(capsys: pytest.CaptureFixture[str]) -> None:
    info.main(["--plan", "1,4,8,8,8", "--arch", "9.0"])
    with_point = capsys.readouterr().out
    info.main(["--plan", "1,4,8,8,8", "--arch", "90"])
    assert capsys.readouterr().out == with_point


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m mednext_ops.info --plan 1,4,8,8,8 | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("0\n", "")


def _bottleneck(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict[str, object]]:
    info.main(["--json", "--plan", *options])
    plans = json.loads(capsys.readouterr().out)
    assert list(plans) == ["forward", "backward_data", "backward_weight", "bottleneck_forward", "bottleneck_backward"]
    return plans


def test_the_plan_of_a_bottleneck(capsys: pytest.CaptureFixture[str]) -> None:
    plans = _bottleneck(capsys, "2,32,16,16,16", "--hidden", "64")
    forward, backward = plans["bottleneck_forward"], plans["bottleneck_backward"]
    assert (forward["core"], forward["voxels_a_tile"], forward["tiles"]) == ("fused", 32, 128)
    assert (backward["core"], backward["voxels_a_tile"], backward["tiles"]) == ("fused", 64, 64)
    assert backward["threads"] == 128 and backward["blocks"] == 128
    assert 0 < forward["shared_bytes_at_most"] < backward["shared_bytes_at_most"] < 99 * 1024


def test_the_plan_of_a_bottleneck_is_of_what_the_convolution_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    plans = _bottleneck(capsys, "1,32,16,16,16", "--stride", "2", "--hidden", "128", "--outputs", "64")
    assert plans["bottleneck_forward"]["tiles"] == 8**3 // 32
    assert plans["bottleneck_forward"]["instance_outputs"] == 64


@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        (["1,32,8,8,8", "--dtype", "fp32"], "products", "products"),
        (["1,32,8,8,8", "--dtype", "fp32", "--channels-last"], "products", "products"),
        (["1,32,8,8,8", "--arch", "75"], "products", "products"),
        (["1,128,8,8,8"], "products", "products"),
        (["1,128,8,8,8", "--channels-last"], "fused", "products"),
        (["1,128,8,8,8", "--grn"], "products", "products"),
        (["1,256,8,8,8"], "products", "products"),
        (["1,256,8,8,8", "--channels-last"], "products", "products"),
    ],
)
def test_a_bottleneck_that_no_kernel_makes_alone(
    options: list[str], forward: str, backward: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = _bottleneck(capsys, *options, "--hidden", "64")
    assert (plans["bottleneck_forward"]["core"], plans["bottleneck_backward"]["core"]) == (forward, backward)
