"""The register and spill report reads what ptxas writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_tools.ptxas_report import Kernel, main, read_report

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5cleanPf' for 'sm_90a'
ptxas info    : Function properties for _Z5cleanPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 53 registers, used 1 barriers, 96 bytes smem
ptxas info    : Compiling entry function '_Z8spillingPf' for 'sm_75'
ptxas info    : Function properties for _Z8spillingPf
    8 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Function properties for __internal_helper
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 80 registers, 384 bytes cmem[0]
"""


def test_kernels_are_read_in_order() -> None:
    assert read_report(REPORT) == [
        Kernel("_Z5cleanPf", "sm_90a", 53, 0, 0, 0),
        Kernel("_Z8spillingPf", "sm_75", 80, 16, 20, 8),
    ]


def test_a_spill_fails_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kernel.o.ptxas").write_text(REPORT)
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "spilling" in out
    assert "2 kernels, 1 with spills, at most 80 registers" in out


def test_no_spill_passes(tmp_path: Path) -> None:
    (tmp_path / "kernel.o.ptxas").write_text(REPORT[: REPORT.index("ptxas info    : Compiling entry function '_Z8")])
    assert main([str(tmp_path)]) == 0


def test_no_report_fails(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 1
