"""`mednext demo` refuses in one sentence what it cannot do, and leaves a run that is there alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mednext import cli
from mednext.commands import app
from mednext.demo import settings
from mednext.demo.folder import Folder, plan

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


@pytest.mark.parametrize("kernels", [("7", "9"), ("3", "7")])
def test_a_run_of_other_kernel_sizes_is_not_overwritten_either(begun: Path, kernels: tuple[str, str]) -> None:
    small, large = kernels
    arguments = ["demo", "--output", str(begun), "--kernel-size", small, "--large-kernel-size", large]
    before = (begun / "settings.json").read_bytes()
    assert "holds a run (k3.state.pt)" in refused([*arguments, "--device", "cpu"])
    assert (begun / "settings.json").read_bytes() == before


def test_overwrite_removes_all_of_the_old_run_and_nothing_else(begun: Path) -> None:
    folder = Folder(begun)
    folder.model("k9-scratch").write_bytes(b"a network")
    own = [".mednext-y-out.nii.gz", "k3.backup.pt", "keys.pt", "notes.txt"]
    for name in own:
        (begun / name).write_text("the user's own")
    (begun / ".mednext-x-k3.state.pt").write_bytes(b"half an epoch")
    chosen = {"kernel_size": 5, "large_kernel_size": 7}
    folder, chosen_settings = plan(begun, "cpu", chosen, resume=False, overwrite=True)
    assert folder.state("k3").exists()  # a plan changes nothing
    folder.begin(chosen_settings)
    assert sorted(file.name for file in begun.iterdir()) == [*own, "settings.json"]
    assert settings.read(folder.settings).kernel_size == 5


def test_settings_of_another_program_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"editor.rulers": [120]}')
    assert "(settings.json)" in refused(tiny(tmp_path))
    assert "rulers" in (tmp_path / "settings.json").read_text()


def test_a_run_that_cannot_begin_leaves_the_old_one(begun: Path) -> None:
    message = refused(tiny(begun, "--overwrite", "--patch", "64"))
    assert "does not fit" in message and (begun / "k3.state.pt").read_bytes() == b"an epoch"
    assert settings.read(begun / "settings.json").seed == 5


def test_resume_without_a_run(begun: Path, tmp_path: Path) -> None:
    assert "no run in" in refused(["demo", "--output", str(tmp_path / "none"), "--resume"])
    assert not (tmp_path / "none").exists()
    (begun / "settings.json").unlink()
    message = refused(["demo", "--output", str(begun), "--resume"])
    assert "without settings.json" in message and "--overwrite" in message
    assert (begun / "k3.state.pt").exists()


def test_a_loss_that_is_no_number_says_how_to_go_on(tmp_path: Path) -> None:
    message = refused(tiny(tmp_path / "run", "--learning-rate", "1e30"))
    assert "the loss of k3 is nan at step" in message
    assert "--overwrite and a --learning-rate below 1e+30, such as 3e+29" in message


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
        ("--window", "512", "at most 240"),
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
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize(("option", "value"), [("--learning-rate", "inf"), ("--seed", "99999999999999999999999")])
def test_numbers_that_no_training_can_have_are_refused_before_anything_is_written(
    tmp_path: Path, option: str, value: str
) -> None:
    result = CliRunner().invoke(app, tiny(tmp_path / "run", option, value))
    assert result.exit_code == 2 and option in result.stderr, result.output
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()
