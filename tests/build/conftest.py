"""Tests of the native build: a source tree, a place to fake tools in, and fresh environments to install into.

``build_tools`` comes from the source tree, put last on the path: an installed mednext_ops is tested as installed.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

_SOURCES = ("build_tools", "csrc", "mednext", "mednext_ops", "tests", "benchmarks", "docs")
_FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """A copy of the sources as a clone has them: nothing built, no git."""
    if not (ROOT / "mednext_ops").is_dir() or not (ROOT / "setup.py").is_file():
        pytest.skip("the source tree is not here: these tests build from it")
    tree = tmp_path / "source"
    tree.mkdir()
    leave = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "_build_info.json", "*.npz")
    for name in _SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=leave)
    for name in _FILES:
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, tree / name)
    return tree


@pytest.fixture
def fake_tool(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes an executable shell script to a path below ``tmp_path``."""

    def write(path: str, script: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        return file

    return write


class Workshop:
    """Builds wheels with the tools of this environment and installs them into fresh ones."""

    def run(self, *command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command with this process's environment, less what steers a build, plus ``environment``."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MEDNEXT_OPS_", "CUDA_", "PYTEST_"))}
        return subprocess.run(
            [str(c) for c in command], cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False
        )

    def pip_wheel(self, tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Build a wheel of ``tree`` into ``tree/dist``."""
        options = ("--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir", "--wheel-dir", "dist", "-v")
        command = (sys.executable, "-m", "pip", "wheel", ".", *options)
        return self.run(*command, cwd=tree, **{"MAX_JOBS": "2"} | environment)

    def built_wheel(self, tree: Path, **environment: str) -> Path:
        """Build a wheel of ``tree``, which must succeed; returns its file."""
        done = self.pip_wheel(tree, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = (tree / "dist").glob("*.whl")
        return wheel

    def fresh_environment(self, folder: Path) -> Path:
        """A new virtual environment that sees this one's packages, but for ours; returns its python."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        python = folder / "bin" / "python"
        ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        packages = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
        # Links: a path file that named the folder would let an installed copy of ours come before an editable one.
        for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
            if "mednext" not in entry.name and entry.suffix != ".pth" and not Path(packages, entry.name).exists():
                Path(packages, entry.name).symlink_to(entry)
        return python

    def install(self, python: Path, *what: str | Path, **environment: str) -> None:
        """Install into the environment of ``python``, offline, without dependencies."""
        options = ("--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall")
        command = (sys.executable, "-m", "pip", "--python", python, "install", *options, *what)
        done = self.run(*command, cwd=python.parent, **environment)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def workshop() -> Workshop:
    return Workshop()
