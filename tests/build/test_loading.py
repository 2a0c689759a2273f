"""Libraries that are missing, refused or broken are explained; importing never fails and never wakes a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mednext_ops import info, native
from mednext_ops.backends import cpu, cuda
from mednext_ops.backends.problem import Problem

BUILT = {"built": True, "file": "libmednext_ops_cpu.so", "compiler": "g++ 12", "flags": []}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package of which only the native part is looked at."""
    native.build_information.cache_clear()
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    monkeypatch.setattr(native, "_INFORMATION_FILE", tmp_path / "_build_info.json")
    yield tmp_path
    native.build_information.cache_clear()


def record(folder: Path, **parts: dict[str, object]) -> None:
    (folder / "_build_info.json").write_text(json.dumps({"torch": "2.13.0", "parts": parts}))


def test_a_source_folder_that_was_never_installed_says_so(folder: Path) -> None:
    state = native._load("cpu", native._torch_lacks)
    assert not state.loaded
    assert state.problem == (
        f"it was not built: this copy of mednext_ops, {folder}, was not installed, so nothing was built; "
        "pip install -e ."
    )


def test_a_source_folder_in_front_of_the_installed_copy_names_that(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path_factory.mktemp("packages") / folder.name
    installed.mkdir()
    record(installed)
    monkeypatch.setattr(sys, "path", [str(folder.parent), str(installed.parent)])
    problem = native._load("cpu", native._torch_lacks).problem
    assert problem is not None
    assert f"before the installed one, {installed}; leave this folder, or use python -P" in problem


@pytest.mark.parametrize("text", ["{", "[]", '{"parts": 3}', ""])
def test_a_damaged_record_is_told_and_survived(text: str, folder: Path) -> None:
    (folder / "_build_info.json").write_text(text)
    state = native._load("cpu", native._torch_lacks)
    assert not state.loaded
    assert "_build_info.json" in str(state.reason)


def test_the_reason_of_the_build_is_passed_on(folder: Path) -> None:
    record(folder, cpu={"built": False, "reason": "no C++ compiler", "mend": "install g++"})
    assert native._load("cpu", native._torch_lacks).problem == "it was not built: no C++ compiler; install g++"


def test_a_file_that_is_gone_is_told(folder: Path) -> None:
    record(folder, cpu=BUILT)
    state = native._load("cpu", native._torch_lacks)
    assert "it was built, but libmednext_ops_cpu.so is gone" in str(state.reason)


def test_a_library_that_does_not_load_is_told_with_the_loaders_words(folder: Path) -> None:
    record(folder, cpu=BUILT)
    (folder / "libmednext_ops_cpu.so").write_bytes(b"not a library")
    state = native._load("cpu", native._torch_lacks)
    assert "built against torch 2.13.0 and does not load" in str(state.reason)
    assert "libmednext_ops_cpu.so" in str(state.reason)
    assert state.mend == native.REINSTALL


def test_a_torch_without_cuda_is_told_before_anything_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(folder, cuda=BUILT | {"file": "libmednext_ops_cuda.so"})
    (folder / "libmednext_ops_cuda.so").write_bytes(b"not a library")
    monkeypatch.setattr(torch.version, "cuda", None)
    state = native._load("cuda", native._torch_lacks_cuda)
    assert "without CUDA" in str(state.reason)
    assert "need not be built again" in str(state.mend)


def test_a_torch_that_is_too_old_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(folder, cpu=BUILT)
    (folder / "libmednext_ops_cpu.so").touch()
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    state = native._load("cpu", native._torch_lacks)
    assert state.reason == "it needs torch 2.10, this is torch 2.9.1+cpu"


def test_importing_does_not_initialise_cuda() -> None:
    code = "import mednext_ops, mednext_ops.native, torch; print(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_info_names_every_backend_and_why_one_is_missing() -> None:
    facts = json.loads(json.dumps(info.collect()))
    text = info.describe(facts)
    assert {"cpu", "cuda", "reference"} <= set(facts["backends"])
    assert facts["backends"]["reference"] is None
    for name, why in facts["backends"].items():
        assert name in text
        assert why is None or why in text
    if not torch.cuda.is_available():
        assert facts["backends"]["cuda"]


def test_info_shows_reason_and_mend_of_what_was_left_out(folder: Path) -> None:
    record(folder, cpu={"built": False, "reason": "no C++ compiler", "mend": "install g++"}, cuda=BUILT)
    text = info.describe(info.collect())
    assert "left out: no C++ compiler" in text
    assert "to mend it: install g++" in text


def test_info_runs_as_a_command_in_both_forms() -> None:
    command = [sys.executable, "-m", "mednext_ops.info"]
    assert "backends" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shown = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown)["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("backend", [cpu, cuda])
def test_a_backend_declines_with_a_reason(backend: object) -> None:
    name: str = backend.NAME  # type: ignore[attr-defined]
    shape = (2, 4, 5, 5, 5)
    supports = backend.supports  # type: ignore[attr-defined]
    assert supports(Problem("group_norm_statistics", name, torch.float32, shape)) is None
    assert "not on xpu" in supports(Problem("group_norm_statistics", "xpu", torch.float32, shape))
    assert "no kernel for torch.float64" in supports(Problem("group_norm_statistics", name, torch.float64, shape))
    assert "no kernel for an_op_to_come" in supports(Problem("an_op_to_come", name, torch.float32, shape))
    assert "not 4 dimensions" in supports(Problem("group_norm_statistics", name, torch.float32, shape[1:]))
