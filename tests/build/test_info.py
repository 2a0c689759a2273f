"""The plans that `python -m mednext_ops.info --plan` prints are of problems that the operators take."""

from __future__ import annotations

import json

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
    ],
)
def test_what_has_no_plan_is_refused(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        info.main(["--plan", "1,4,8,8,8", *options])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


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
