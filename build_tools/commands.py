"""The setuptools commands: where the native build enters a wheel or an editable install."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from setuptools import Command, Distribution
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import SetupError

from build_tools import native
from build_tools.artefacts import CPU_LIBRARY, CUDA_LIBRARY, INFORMATION_MODULE
from build_tools.settings import BuildError, Settings

__all__ = ["NativeDistribution", "bdist_wheel_by_content", "build_native", "build_with_native"]

PACKAGE = "mednext_ops"
_NATIVE_FILES = (CPU_LIBRARY, CUDA_LIBRARY, f"{INFORMATION_MODULE}.*", native.INFORMATION_FILE)


class NativeDistribution(Distribution):
    """A distribution that is pure Python until the native build has made something."""

    native_information: dict[str, Any] | None = None

    def built(self, *parts: str) -> bool:
        records = (self.native_information or {"parts": {}})["parts"]
        return any(records.get(part, {}).get("built", False) for part in parts)

    def has_ext_modules(self) -> bool:
        return self.built(*native.PARTS)


class build_native(Command):
    """Builds the native parts into the package: in the wheel's tree, or in the source tree where it is editable."""

    description = "build the CPU and CUDA libraries and the build-information module"
    user_options: list[tuple[str, str | None, str]] = []
    distribution: NativeDistribution

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        root = Path.cwd()
        work = Path("build", "native")
        try:
            settings = Settings.from_environment()
            information = native.build_native(root, work, settings, native.find_tools())
        except BuildError as error:
            raise SetupError(f"mednext-ops: {error}") from None
        self.distribution.native_information = information
        print(native.report(information), flush=True)

        target = self._package_directory()
        for pattern in _NATIVE_FILES:  # of an earlier build, perhaps with other settings
            for stale in target.glob(pattern):
                stale.unlink()
        native.write_information(information, target / native.INFORMATION_FILE)
        for record in information["parts"].values():
            if record["built"]:
                _replace(work / record["file"], target / record["file"])

    def _package_directory(self) -> Path:
        return Path(PACKAGE) if self.editable_mode else Path(str(self.build_lib), PACKAGE)

    def get_source_files(self) -> list[str]:
        return sorted(str(p) for p in Path("csrc").rglob("*") if p.is_file())

    def get_outputs(self) -> list[str]:
        if self.distribution.native_information is None:
            return []
        records = self.distribution.native_information["parts"].values()
        files = [native.INFORMATION_FILE, *(r["file"] for r in records if r["built"])]
        return [str(Path(str(self.build_lib), PACKAGE, file)) for file in files]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def _replace(source: Path, target: Path) -> None:
    """Copy by way of a new file: a library that some process has loaded keeps its old content."""
    fresh = target.with_name(target.name + ".new")
    shutil.copyfile(source, fresh)
    fresh.replace(target)


class build_with_native(build):
    """``build`` with the native parts as its last step."""

    sub_commands = [*build.sub_commands, ("build_native", None)]


class bdist_wheel_by_content(bdist_wheel):
    """A wheel whose tag follows from what is inside.

    Without native parts ``py3-none-any``; with the libraries only, which know no Python, ``py3-none-<platform>``; with
    the pybind11 module this Python's own tag.
    """

    distribution: NativeDistribution

    def run(self) -> None:
        self.run_command("build_native")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        interpreter, abi, platform = super().get_tag()
        if self.root_is_pure or self.distribution.built("information"):
            return interpreter, abi, platform
        return "py3", "none", platform
