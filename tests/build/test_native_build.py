"""The build decides by what it finds, leaves out what it must, and fails only where it was asked to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from build_tools.native import PARTS, Tools, build_native, find_tools, report
from build_tools.settings import BuildError, Settings
from build_tools.toolchain import Compiler, Missing, Nvcc, Torch

NO_NVCC = Missing("no nvcc anywhere", "install a toolkit")
NO_COMPILER = Missing("no C++ compiler", "install g++")


@pytest.fixture(scope="module")
def found() -> Tools:
    """The tools of this machine; tests that compile need them."""
    tools = find_tools()
    for name in ("compiler", "ninja", "torch", "pybind"):
        lacking = getattr(tools, name)
        if isinstance(lacking, Missing):
            pytest.skip(f"this machine cannot build: {lacking}")
    return tools


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One build folder for tests about decisions: what an earlier one compiled is not compiled again."""
    return tmp_path_factory.mktemp("build")


def reasons(information: dict[str, Any]) -> dict[str, str | None]:
    return {part: record.get("reason") for part, record in information["parts"].items()}


def test_no_nvcc_leaves_out_the_cuda_library_only(root: Path, build: Path, found: Tools) -> None:
    tools = dataclasses.replace(found, nvcc=NO_NVCC)
    information = build_native(root, build, Settings(max_jobs=2), tools)
    assert reasons(information) == {"cpu": None, "cuda": "no nvcc anywhere", "information": None}
    assert (build / information["parts"]["cpu"]["file"]).is_file()
    assert "left out: no nvcc anywhere" in report(information)
    assert "to mend it: install a toolkit" in report(information)


def test_no_compiler_leaves_out_everything_and_succeeds(root: Path, build: Path, found: Tools) -> None:
    information = build_native(root, build, Settings(), dataclasses.replace(found, compiler=NO_COMPILER))
    assert tuple(information["parts"]) == PARTS
    assert set(reasons(information).values()) == {"no C++ compiler"}


def test_no_torch_leaves_out_the_libraries_and_what_tells_of_them(root: Path, tmp_path: Path, found: Tools) -> None:
    tools = dataclasses.replace(found, torch=Missing("torch is not installed", "pip install torch"))
    information = build_native(root, tmp_path, Settings(max_jobs=2), tools)
    why = "torch is not installed"
    assert reasons(information) == {"cpu": why, "cuda": why, "information": "neither library was built"}
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.parametrize(
    ("mode", "lack", "sentence"),
    [
        ("cuda", {"nvcc": NO_NVCC}, "asks for the cuda library, which cannot be built here: no nvcc anywhere"),
        (
            "cuda",
            {"compiler": NO_COMPILER},
            "asks for the cpu library, which cannot be built here: no C",
        ),
        ("cpu", {"compiler": NO_COMPILER}, "asks for the cpu library, which cannot be built here: no C"),
    ],
)
def test_what_was_asked_for_and_cannot_be_built_fails_with_a_sentence(
    mode: str, lack: dict[str, Any], sentence: str, root: Path, build: Path, found: Tools
) -> None:
    with pytest.raises(BuildError, match=f"MEDNEXT_OPS_BUILD={mode} {sentence}"):
        build_native(root, build, Settings(mode=mode), dataclasses.replace(found, **lack))


def test_none_builds_nothing(root: Path, tmp_path: Path, found: Tools) -> None:
    information = build_native(root, tmp_path, Settings(mode="none"), found)
    assert set(reasons(information).values()) == {"MEDNEXT_OPS_BUILD=none asked for a build without it"}
    assert not list(tmp_path.glob("*.so"))


def test_cpu_mode_does_not_look_at_nvcc(root: Path, build: Path, found: Tools) -> None:
    information = build_native(root, build, Settings(mode="cpu", max_jobs=2), found)
    assert information["parts"]["cpu"]["built"]
    assert information["cuda"] is None
    assert "asked for a build without it" in str(reasons(information)["cuda"])


def with_cuda(tools: Tools, has_cuda: bool = True) -> Tools:
    """The tools beside a torch that has CUDA, or none."""
    assert isinstance(tools.torch, Torch)
    return dataclasses.replace(tools, torch=dataclasses.replace(tools.torch, has_cuda=has_cuda))


def test_a_torch_without_cuda_gets_no_cuda_library_unless_it_is_asked_for(
    root: Path, build: Path, found: Tools, fake_tool: Callable[[str, str], Path]
) -> None:
    tools = with_cuda(dataclasses.replace(found, nvcc=failing_nvcc(fake_tool)), has_cuda=False)
    information = build_native(root, build, Settings(max_jobs=2), tools)
    assert information["parts"]["cpu"]["built"]
    assert reasons(information)["cuda"] == "this torch is without CUDA"
    assert "MEDNEXT_OPS_BUILD=cuda" in report(information)
    with pytest.raises(BuildError, match="unsupported GNU version"):
        build_native(root, build, Settings(mode="cuda", max_jobs=2), tools)


def failing_nvcc(fake_tool: Callable[[str, str], Path]) -> Nvcc:
    script = "echo 'host_config.h(1): error: -- unsupported GNU version!' >&2; exit 1"
    command = fake_tool("bin/nvcc", script)
    return Nvcc(str(command), (13, 0), command.parent, command, frozenset({75, 90}), "PATH")


def test_an_nvcc_that_fails_is_told_and_survived(
    root: Path, build: Path, found: Tools, fake_tool: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tools = with_cuda(dataclasses.replace(found, nvcc=failing_nvcc(fake_tool)))
    information = build_native(root, build, Settings(max_jobs=2), tools)
    assert information["parts"]["cpu"]["built"]
    assert "unsupported GNU version" in str(reasons(information)["cuda"])
    out = capsys.readouterr().out
    assert "unsupported GNU version" in out
    assert "CUDA 13.0 does not know the architectures 80, 86, 89, 100, 120+PTX: left out" in out
    with pytest.raises(BuildError, match=r"asks for the cuda library.*unsupported GNU version"):
        build_native(root, build, Settings(mode="cuda", max_jobs=2), tools)


def test_an_nvcc_that_knows_none_of_the_architectures_is_told(
    root: Path, build: Path, found: Tools, fake_tool: Callable[[str, str], Path]
) -> None:
    tools = with_cuda(dataclasses.replace(found, nvcc=failing_nvcc(fake_tool)))
    information = build_native(root, build, Settings(architectures="80;86", max_jobs=2), tools)
    assert reasons(information)["cuda"] == "CUDA 13.0 knows none of the architectures 80;86"


def test_a_second_build_compiles_nothing(
    root: Path, tmp_path: Path, found: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(mode="cpu", max_jobs=2)
    first = build_native(root, tmp_path, settings, found)
    capsys.readouterr()
    assert build_native(root, tmp_path, settings, found) == first
    assert "compile" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_record_and_the_binaries_hold_no_date_and_no_folder_of_this_machine(
    root: Path, tmp_path: Path, found: Tools
) -> None:
    one, other = tmp_path / "one", tmp_path / "another place"
    records = [build_native(root, folder, Settings(mode="cpu", max_jobs=2), found) for folder in (one, other)]
    assert records[0] == records[1]
    assert isinstance(found.compiler, Compiler)
    assert str(root) not in json.dumps(records[0])
    for part in ("cpu", "information"):
        file = records[0]["parts"][part]["file"]
        content = (one / file).read_bytes()
        assert content == (other / file).read_bytes()
        assert str(root).encode() not in content


@pytest.mark.slow
def test_the_cuda_library_builds_where_nvcc_is(source_tree: Path, tmp_path: Path, found: Tools) -> None:
    """With the kernels of one folder: all of them take many minutes, and CI builds them all."""
    if isinstance(found.nvcc, Missing):
        pytest.skip(str(found.nvcc))
    from build_tools import check_symbols, ptxas_report

    for kernel in (source_tree / "csrc" / "cuda").glob("*/*.cu"):
        if kernel.parent.name != "group_norm":
            kernel.unlink()
    settings = Settings(mode="cuda", architectures="80+PTX", max_jobs=2)
    information = build_native(source_tree, tmp_path, settings, found)
    record = information["parts"]["cuda"]
    assert list(record["architectures"]) == ["80+PTX"]
    assert check_symbols.main([str(tmp_path / record["file"])]) == 0
    assert ptxas_report.main([str(tmp_path)]) == 0
