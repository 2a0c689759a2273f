"""Where the build looks for its tools, in which order, and what it says when it finds none."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from build_tools import backend, toolchain
from build_tools.settings import BuildError, Settings
from build_tools.toolchain import (
    Compiler,
    CudaHeaders,
    Missing,
    Nvcc,
    Torch,
    find_compiler,
    find_cuda_headers,
    find_nvcc,
    find_torch,
)

Fake = Callable[[str, str], Path]

NOWHERE = "/nowhere/cuda"


def make_nvcc(fake_tool: Fake, tmp_path: Path, root: str, release: str = "13.0") -> Path:
    """A toolkit with an nvcc that answers what the discovery asks."""
    home = tmp_path / root
    for folder, file in (("include", "cuda_runtime_api.h"), ("lib64", "libcudart_static.a")):
        (home / folder).mkdir(parents=True)
        (home / folder / file).touch()
    fake_tool(
        f"{root}/bin/nvcc",
        f'case "$1" in\n'
        f'  --version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;\n'
        f'  --list-gpu-arch) printf "compute_75\\ncompute_90\\n" ;;\n'
        f'  --dryrun) echo "#$ TOP={home}" >&2 ;;\n'
        f"esac",
    )
    return home


def test_nvcc_is_taken_from_cuda_home_then_path_then_the_usual_place_then_pypi(fake_tool: Fake, tmp_path: Path) -> None:
    home, on_path, usual = (make_nvcc(fake_tool, tmp_path, name) for name in ("home", "path", "usual"))
    packages = tmp_path / "site-packages"
    make_nvcc(fake_tool, tmp_path, "site-packages/nvidia/cu13")
    everything = {"CUDA_HOME": str(home), "PATH": str(on_path / "bin")}
    expected = [
        (everything, str(usual), "CUDA_HOME"),
        ({**everything, "CUDA_HOME": ""}, str(usual), "PATH"),
        ({"CUDA_PATH": str(home), "PATH": str(on_path / "bin")}, str(usual), "CUDA_PATH"),
        ({"PATH": ""}, str(usual), str(usual)),
        ({"PATH": ""}, NOWHERE, "PyPI"),
    ]
    for environ, usual_place, origin in expected:
        found = find_nvcc([packages], environ, usual_place)
        assert isinstance(found, Nvcc), found
        assert found.origin == origin
        assert found.version == (13, 0)
        assert found.architectures == {75, 90}
        assert found.include.name == "include"
        assert found.cudart_static.name == "libcudart_static.a"


def test_a_script_named_nvcc_leads_to_its_toolkit(fake_tool: Fake, tmp_path: Path) -> None:
    home = make_nvcc(fake_tool, tmp_path, "toolkit")
    wrapper = fake_tool("bin/nvcc", f'exec {home}/bin/nvcc "$@"')
    found = find_nvcc([], {"PATH": f"{wrapper.parent}{os.pathsep}/bin"}, NOWHERE)
    assert isinstance(found, Nvcc)
    assert found.include == home / "include"


def test_no_nvcc_says_where_it_looked_and_which_packages_mend_it() -> None:
    missing = find_nvcc([], {"PATH": "", "CUDA_HOME": "/opt/cuda-gone"}, NOWHERE)
    assert isinstance(missing, Missing)
    assert "CUDA_HOME is /opt/cuda-gone, which has no bin/nvcc" in missing.reason
    for package in ("nvidia-cuda-nvcc==13.0.*", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime", "cccl"):
        assert package in missing.mend


def test_an_nvcc_that_is_too_old_or_broken_is_passed_over(fake_tool: Fake, tmp_path: Path) -> None:
    old = make_nvcc(fake_tool, tmp_path, "old", release="11.8")
    new = make_nvcc(fake_tool, tmp_path, "new")
    found = find_nvcc([], {"CUDA_HOME": str(old), "PATH": str(new / "bin")}, NOWHERE)
    assert isinstance(found, Nvcc)
    assert found.origin == "PATH"
    missing = find_nvcc([], {"CUDA_HOME": str(old), "PATH": ""}, NOWHERE)
    assert isinstance(missing, Missing)
    assert "is CUDA 11.8, older than 12.0" in missing.reason
    (new / "lib64" / "libcudart_static.a").unlink()
    missing = find_nvcc([], {"PATH": str(new / "bin")}, NOWHERE)
    assert isinstance(missing, Missing)
    assert "libcudart_static.a" in missing.reason


def make_torch(packages: Path, version: str) -> None:
    headers = packages / "torch" / "include" / "torch" / "csrc" / "stable"
    headers.mkdir(parents=True)
    (headers / "library.h").touch()
    (packages / "torch" / "version.py").write_text(f"__version__ = '{version}'\ncuda = None\n")


def test_torch_is_found_by_its_headers_and_not_imported(tmp_path: Path) -> None:
    make_torch(tmp_path / "old", "2.9.1+cu128")
    make_torch(tmp_path / "new", "2.10.0")
    found = find_torch([tmp_path / "empty", tmp_path / "old", tmp_path / "new"])
    assert found == Torch(tmp_path / "new" / "torch", "2.10.0", has_cuda=False)
    missing = find_torch([tmp_path / "old"])
    assert isinstance(missing, Missing)
    assert "torch 2.9.1+cu128 is older than 2.10" in missing.reason
    missing = find_torch([tmp_path / "empty"])
    assert isinstance(missing, Missing)
    assert "not installed" in missing.reason


def test_packages_of_the_target_environment_are_seen_under_build_isolation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = sysconfig.get_paths()["purelib"]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != packages])  # as pip's isolation leaves it
    assert Path(packages) in toolchain.package_directories({})
    target = tmp_path / "lib" / "python3.12" / "site-packages"  # as `build` and uv leave it
    target.mkdir(parents=True)
    assert target in toolchain.package_directories({"VIRTUAL_ENV": str(tmp_path)})


def test_no_compiler_says_what_to_install() -> None:
    missing = find_compiler({"PATH": ""})
    assert isinstance(missing, Missing)
    assert "no C++ compiler" in missing.reason
    assert "apt install g++" in missing.mend


def test_a_chosen_compiler_that_is_not_there_is_not_replaced_by_another(fake_tool: Fake, tmp_path: Path) -> None:
    fake_tool("bin/g++", "echo 'g++ 14.1'")
    missing = find_compiler({"PATH": str(tmp_path / "bin"), "CXX": "clangg++"})
    assert isinstance(missing, Missing)
    assert "CXX is 'clangg++', which is no program" in missing.reason


def test_a_compiler_that_does_not_compile_is_passed_over(fake_tool: Fake, tmp_path: Path) -> None:
    fake_tool("bin/g++", "echo 'g++: error: unrecognized option -std=c++20' >&2; exit 1")
    missing = find_compiler({"PATH": str(tmp_path / "bin")})
    assert isinstance(missing, Missing)
    assert "unrecognized option -std=c++20" in missing.reason
    fake_tool("bin/c++", "echo 'c++ 14.1'")
    found = find_compiler({"PATH": str(tmp_path / "bin")})
    assert found == Compiler(str(tmp_path / "bin" / "c++"), "c++ 14.1")


class TestMachineRequirements:
    """Nothing large is downloaded unasked."""

    @pytest.fixture
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
        def requirements(*, torch: bool, nvcc: bool, driver: tuple[int, int] | None, build: str = "") -> list[str]:
            absent = Missing("not here", "install it")
            found_torch = Torch(Path("torch"), "2.10.0", has_cuda=False) if torch else absent
            found_nvcc = Nvcc("nvcc", (13, 0), Path(), Path(), frozenset(), "PATH") if nvcc else absent
            monkeypatch.setattr(backend, "find_torch", lambda directories: found_torch)
            monkeypatch.setattr(backend, "find_nvcc", lambda directories, environ: found_nvcc)
            monkeypatch.setattr(backend, "find_compiler", lambda environ: Compiler("g++", "g++ 12"))
            monkeypatch.setattr(backend, "driver_present", lambda environ: driver is not None)
            monkeypatch.setattr(backend, "driver_cuda_version", lambda: driver)
            return backend.machine_requirements({"MEDNEXT_OPS_BUILD": build})

        return requirements

    def test_nothing_where_everything_is_there(self, machine: Callable[..., list[str]]) -> None:
        assert machine(torch=True, nvcc=True, driver=(13, 0)) == []

    def test_nothing_without_a_driver(self, machine: Callable[..., list[str]]) -> None:
        assert machine(torch=True, nvcc=False, driver=None) == []

    def test_nvcc_where_a_driver_is_and_no_toolkit(self, machine: Callable[..., list[str]]) -> None:
        assert machine(torch=True, nvcc=False, driver=(13, 0)) == list(toolchain.PYPI_NVCC)

    def test_no_nvcc_that_the_driver_could_not_serve(self, machine: Callable[..., list[str]]) -> None:
        assert machine(torch=True, nvcc=False, driver=(12, 8)) == []

    def test_torch_only_where_a_library_was_asked_for(self, machine: Callable[..., list[str]]) -> None:
        assert machine(torch=False, nvcc=False, driver=(13, 0)) == []
        assert machine(torch=False, nvcc=False, driver=None, build="cpu") == ["torch>=2.10"]

    def test_cuda_asks_for_what_it_needs(self, machine: Callable[..., list[str]]) -> None:
        assert machine(torch=True, nvcc=False, driver=None, build="cuda") == list(toolchain.PYPI_NVCC)

    def test_none_asks_for_nothing(self, machine: Callable[..., list[str]]) -> None:
        assert machine(torch=False, nvcc=False, driver=(13, 0), build="none") == []


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("MEDNEXT_OPS_BUILD", "gpu", "MEDNEXT_OPS_BUILD is 'gpu'; it can be auto, cuda, cpu, none"),
        ("MAX_JOBS", "many", "MAX_JOBS is 'many'; it must be a whole number"),
        ("MAX_JOBS", "0", "MAX_JOBS is '0'; it must be a whole number"),
    ],
)
def test_a_wrong_setting_is_named(variable: str, value: str, sentence: str) -> None:
    with pytest.raises(BuildError, match=sentence.replace("(", r"\(")):
        Settings.from_environment({variable: value})


def test_a_wrong_setting_ends_the_build_hook_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDNEXT_OPS_BUILD", "gpu")
    monkeypatch.setattr(backend.build_meta, "get_requires_for_build_wheel", lambda config_settings: [])
    with pytest.raises(SystemExit, match="mednext-ops: MEDNEXT_OPS_BUILD is 'gpu'"):
        backend.get_requires_for_build_wheel()


def test_cuda_headers_come_from_the_toolkit_or_from_python_packages(tmp_path: Path) -> None:
    include = tmp_path / "nvidia" / "cu13" / "include"
    lacking = find_cuda_headers([tmp_path], Missing("no nvcc", "install one"))
    assert isinstance(lacking, Missing)
    assert "no CUDA headers (cuda.h" in lacking.reason
    assert "'nvidia-cuda-runtime==13.0.*'" in lacking.mend
    for name in ("cuda.h", "cuda_runtime_api.h", "crt/host_defines.h", "cuda_fp16.h", "cuda_bf16.h", "nv/target"):
        (include / name).parent.mkdir(parents=True, exist_ok=True)
        (include / name).touch()
    assert find_cuda_headers([tmp_path], Missing("no nvcc", "install one")) == CudaHeaders(include)
