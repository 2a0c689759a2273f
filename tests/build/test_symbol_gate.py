"""The ABI gate passes what is built and catches what it is there to catch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from build_tools.check_symbols import foreign_symbols, main
from mednext_ops import native

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="binutils is not installed")


def _library(tmp_path: Path, source: str) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    (tmp_path / "planted.cpp").write_text(source)
    library = tmp_path / "libplanted.so"
    subprocess.run([compiler, "-shared", "-fPIC", "planted.cpp", "-o", str(library)], cwd=tmp_path, check=True)
    return library


@pytest.mark.parametrize(
    "source",
    [
        "namespace at { struct Tensor; void f(Tensor&); } void g(at::Tensor& t) { at::f(t); }",
        "namespace torch { int version(); } int g() { return torch::version(); }",
        "namespace c10 { struct Error { virtual ~Error(); }; } void g() { throw c10::Error(); }",
        "namespace at { struct T; } template <class T> void take(T*); void g() { take<at::T>(nullptr); }",
    ],
    ids=["function", "torch", "vtable", "template argument"],
)
def test_a_planted_violation_fails(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = _library(tmp_path, source)
    assert foreign_symbols(library)
    assert main([str(library)]) == 1
    assert "outside the stable ABI" in capsys.readouterr().out


def test_plain_c_symbols_and_other_namespaces_pass(tmp_path: Path) -> None:
    library = _library(
        tmp_path,
        'extern "C" int aoti_torch_get_dim(void*, long*); namespace format::at { void f(); }'
        "int g(void* t, long* d) { format::at::f(); return aoti_torch_get_dim(t, d); }",
    )
    assert main([str(library)]) == 0


def test_a_gate_that_checks_nothing_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 1
    assert main([str(tmp_path / "absent.so")]) == 1


@pytest.mark.parametrize("part", ["cpu", "cuda", "information"])
def test_what_is_installed_keeps_to_the_stable_abi(part: str) -> None:
    missing = native.missing_part(part)
    if missing is not None:
        pytest.skip(f"{part}: {missing.problem}")
    file = Path(native.__file__).parent / native.build_information()["parts"][part]["file"]
    assert foreign_symbols(file) == []
