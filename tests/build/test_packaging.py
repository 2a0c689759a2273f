"""Wheels and source distributions hold what they must, and a plain wheel installs anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

NATIVE = ("libmednext_ops_cpu.so", "libmednext_ops_cuda.so", "_build_information.")


def contents(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def native_files(wheel: Path) -> set[str]:
    return {n for n in NATIVE for name in contents(wheel) if name.startswith(f"mednext_ops/{n}")}


def record(wheel: Path) -> dict[str, dict[str, Any]]:
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("mednext_ops/_build_info.json"))["parts"]


def info_of(workshop: Any, python: Path, cwd: Path) -> dict[str, Any]:
    done = workshop.run(python, "-m", "mednext_ops.info", "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def path_without(*tools: str, folder: Path) -> str:
    """A PATH with every program of this one but ``tools``."""
    folder.mkdir()
    for directory in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(directory).glob("*") if Path(directory).is_dir() else ():
            link = folder / program.name
            if program.name not in tools and os.access(program, os.X_OK) and not program.is_dir():
                link.unlink(missing_ok=True)
                link.symlink_to(program)
    return str(folder)


def test_a_build_without_native_parts_is_a_plain_wheel_that_installs_and_runs(
    workshop: Any, source_tree: Path, tmp_path: Path
) -> None:
    wheel = workshop.built_wheel(source_tree, MEDNEXT_OPS_BUILD="none")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert native_files(wheel) == set()
    assert "MEDNEXT_OPS_BUILD=none asked for a build without it" in str(record(wheel)["cpu"]["reason"])

    python = workshop.fresh_environment(tmp_path / "environment")
    workshop.install(python, wheel)
    code = (
        "import mednext_ops, mednext, torch; print(mednext_ops.__file__);"
        "x = torch.randn(1, 4, 6, 6, 6); w = torch.randn(4, 1, 3, 3, 3);"
        "y = mednext_ops.depthwise_conv3d(x, w, padding=1);"
        "print((y - torch.nn.functional.conv3d(x, w, padding=1, groups=4)).abs().max().item() < 1e-5)"
    )
    done = workshop.run(python, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    where, close = done.stdout.split()
    assert str(tmp_path / "environment") in where
    assert close == "True"
    facts = info_of(workshop, python, tmp_path)
    assert facts["backends"]["reference"] is None
    assert "it was not built: MEDNEXT_OPS_BUILD=none" in facts["backends"]["cpu"]
    assert "unset MEDNEXT_OPS_BUILD" in facts["backends"]["cpu"]


def test_without_any_compiler_the_wheel_is_plain_and_says_why(workshop: Any, source_tree: Path, tmp_path: Path) -> None:
    path = path_without("g++", "c++", "nvcc", folder=tmp_path / "bin")
    done = workshop.pip_wheel(source_tree, PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out: no C++ compiler" in done.stdout + done.stderr
    (wheel,) = (source_tree / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "no C++ compiler" in str(record(wheel)["cpu"]["reason"])


def test_asking_for_cuda_where_it_cannot_be_built_fails_with_a_sentence(
    workshop: Any, source_tree: Path, tmp_path: Path
) -> None:
    toolchain = source_tree / "build_tools" / "toolchain.py"  # a toolkit in the usual place is hidden, too
    toolchain.write_text(toolchain.read_text().replace('"/usr/local/cuda"', '"/nowhere/cuda"'))
    path = path_without("nvcc", folder=tmp_path / "bin")
    done = workshop.pip_wheel(source_tree, MEDNEXT_OPS_BUILD="cuda", PATH=path)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert "MEDNEXT_OPS_BUILD=cuda asks for the cuda library, which cannot be built here: no nvcc" in output
    assert "nvidia-cuda-nvcc==13.0.*" in output
    assert not (source_tree / "dist").exists() or not list((source_tree / "dist").glob("*.whl"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_a_cpu_build_makes_a_wheel_of_this_python_that_computes(
    workshop: Any, source_tree: Path, tmp_path: Path
) -> None:
    wheel = workshop.built_wheel(source_tree, MEDNEXT_OPS_BUILD="cpu")
    version = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert f"-{version}-{version}-linux_" in wheel.name
    assert native_files(wheel) == {NATIVE[0], NATIVE[2]}

    python = workshop.fresh_environment(tmp_path / "environment")
    workshop.install(python, wheel)
    facts = info_of(workshop, python, tmp_path)
    assert facts["backends"]["cpu"] is None
    assert facts["build"]["consistent"]
    assert facts["build"]["compiled"]["stable_abi_target"] == "2.10"
    code = (
        "import torch; from mednext_ops.backends import cpu;"
        "print(cpu.group_norm_statistics(torch.ones(1, 2, 3, 3, 3), 2, 0.25)[1].tolist())"
    )
    done = workshop.run(python, "-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "[[2.0, 2.0]]", done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_without_the_information_module_the_wheel_fits_every_python(
    workshop: Any, source_tree: Path, tmp_path: Path
) -> None:
    # A Python without headers: sysconfig is told of an empty folder.
    patch = tmp_path / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(
        "import sysconfig\n_real = sysconfig.get_paths\n"
        f"sysconfig.get_paths = lambda *a, **k: _real(*a, **k) | {{'include': {str(tmp_path / 'none')!r}}}\n"
    )
    wheel = workshop.built_wheel(source_tree, MEDNEXT_OPS_BUILD="cpu", PYTHONPATH=str(patch))
    assert "-py3-none-linux_" in wheel.name
    assert native_files(wheel) == {NATIVE[0]}
    assert "Python's headers" in str(record(wheel)["information"]["reason"])


def test_what_an_earlier_build_left_behind_does_not_get_into_a_wheel(workshop: Any, source_tree: Path) -> None:
    stale = source_tree / "build" / "lib" / "mednext_ops"
    stale.mkdir(parents=True)
    (stale / "libmednext_ops_cuda.so").write_bytes(b"of yesterday")
    (source_tree / "mednext_ops" / "libmednext_ops_cpu.so").write_bytes(b"of an editable install")
    wheel = workshop.built_wheel(source_tree, MEDNEXT_OPS_BUILD="none")
    assert native_files(wheel) == set()


def test_an_editable_install_uses_the_source_folder(workshop: Any, source_tree: Path, tmp_path: Path) -> None:
    python = workshop.fresh_environment(tmp_path / "environment")
    build = "none" if shutil.which("g++") is None else "cpu"
    workshop.install(python, "-e", source_tree, MEDNEXT_OPS_BUILD=build, MAX_JOBS="2")
    done = workshop.run(python, "-c", "import mednext_ops; print(mednext_ops.__file__)", cwd=tmp_path)
    assert done.stdout.strip() == str(source_tree / "mednext_ops" / "__init__.py"), done.stderr
    assert (source_tree / "mednext_ops" / "libmednext_ops_cpu.so").exists() == (build == "cpu")
    assert (info_of(workshop, python, tmp_path)["backends"]["cpu"] is None) == (build == "cpu")


def test_the_source_distribution_holds_everything_to_build_and_test(workshop: Any, source_tree: Path) -> None:
    done = workshop.run(sys.executable, "-m", "build", "--sdist", "--no-isolation", ".", cwd=source_tree)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = (source_tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    for needed in (
        "LICENSE",
        "pyproject.toml",
        "setup.py",
        "build_tools/backend.py",
        "csrc/bindings/cpu_group_norm_statistics.cpp",
        "csrc/cpu/group_norm/statistics.h",
        "csrc/cuda/common/moments.cuh",
        "csrc/cuda/group_norm/statistics.cu",
        "csrc/python/build_information.cpp",
        "mednext/__init__.py",
        "mednext_ops/native.py",
        "tests/build/test_packaging.py",
        "tests/conftest.py",
    ):
        assert needed in names
    assert not [n for n in names if n.endswith((".so", ".o", ".pyc", "_build_info.json"))]

    unpacked = source_tree / "unpacked"
    with tarfile.open(archive) as file:
        file.extractall(unpacked, filter="data")
    (folder,) = unpacked.iterdir()
    wheel = workshop.built_wheel(folder, MEDNEXT_OPS_BUILD="none")
    assert "mednext_ops/native.py" in contents(wheel)


def test_a_wheel_holds_the_packages_and_nothing_else(workshop: Any, source_tree: Path) -> None:
    wheel = workshop.built_wheel(source_tree, MEDNEXT_OPS_BUILD="none")
    names = contents(wheel)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mednext", "mednext_ops"}
    sources = {
        str(path.relative_to(source_tree))
        for p in ("mednext", "mednext_ops")
        for path in (source_tree / p).rglob("*.py")
    }
    assert sources <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        assert "mednext = mednext.cli:main" in archive.read(entry_points).decode()


def test_under_build_isolation_the_torch_of_the_target_is_found(source_tree: Path, tmp_path: Path) -> None:
    """What pip's isolation does: the same interpreter, its packages off the path, the build's own elsewhere."""
    code = (
        "import sys, sysconfig; packages = sysconfig.get_paths()['purelib'];"
        "sys.path = [p for p in sys.path if p != packages];"
        f"sys.path.insert(0, {str(source_tree)!r});"
        "from build_tools.toolchain import find_torch, package_directories;"
        "print(find_torch(package_directories({})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith("Torch("), done.stdout
