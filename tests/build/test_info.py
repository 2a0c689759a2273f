"""The plans that `python -m mednext_ops.info --plan` prints are of problems that the operators take."""

from __future__ import annotations

import pytest

from mednext_ops import info


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--kernel", "4"], "the kernel must be odd on every axis, got [4, 4, 4]"),
        (["--kernel", "3,3,2"], "got [3, 3, 2]"),
        (["--arch", "10"], "compute capability 7.5 (--arch 75) or newer, got --arch 10"),
    ],
)
def test_what_has_no_plan_is_refused(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        info.main(["--plan", "1,4,8,8,8", *options])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err
