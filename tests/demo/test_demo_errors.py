"""`mednext demo` refuses in one sentence what it cannot do, and leaves a run that is there alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mednext import cli
from mednext.commands import app
from mednext.demo import settings
from mednext.demo.folder import Folder

from .scans import tiny


def refused(arguments: list[str]) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder that holds a run."""
    folder = Folder(tmp_path / "run")
    folder.path.mkdir()
    settings.write(settings.choose("cpu", {"seed": 5}), folder.settings)
    folder.state("k3").write_bytes(b"an epoch")
    return folder.path


def test_a_run_is_not_overwritten(begun: Path) -> None:
    message = refused(["demo", "--output", str(begun), "--device", "cpu"])
    assert "--resume" in message and "--overwrite" in message
    assert (begun / "k3.state.pt").read_bytes() == b"an epoch"


def test_resume_keeps_the_settings(begun: Path) -> None:
    assert "began with --seed 5, not 6" in refused(["demo", "--output", str(begun), "--resume", "--seed", "6"])


def test_resume_of_a_damaged_checkpoint(begun: Path) -> None:
    assert "k3.state.pt cannot be read" in refused(["demo", "--output", str(begun), "--resume"])


def test_resume_of_damaged_settings(begun: Path) -> None:
    (begun / "settings.json").write_text("{")
    assert "settings.json cannot be read" in refused(["demo", "--output", str(begun), "--resume"])


def test_resume_and_overwrite_exclude_each_other(begun: Path) -> None:
    assert "pass one of them" in refused(["demo", "--output", str(begun), "--resume", "--overwrite"])


def test_the_output_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert "is a file" in refused(tiny(tmp_path / "run"))


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--patch", "20", "multiple of 16"),
        ("--patch", "64", "does not fit"),
        ("--kernel-size", "4", "odd number"),
        ("--large-kernel-size", "3", "must exceed"),
        ("--epochs", "0", "1 or more"),
        ("--learning-rate", "0", "above 0"),
        ("--device", "abacus", "auto, cpu or cuda"),
        ("--device", "cuda:99", "GPUs"),
    ],
)
def test_bad_options(tmp_path: Path, option: str, value: str, expected: str) -> None:
    assert expected in refused(tiny(tmp_path / "run", option, value))


def test_missing_packages_are_named_with_their_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = cli.importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == "nilearn" else found(name))
    monkeypatch.setattr(sys, "argv", ["mednext", "demo"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "mednext: nilearn not installed; `pip install 'mednext-ops[demo]'` mends it.\n"
