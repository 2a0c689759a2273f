"""Everything about the project is in pyproject.toml; everything about the native build is in build_tools/."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_tools.commands import (
    NativeDistribution,
    bdist_wheel_by_content,
    build_native,
    build_with_native,
)

setup(
    distclass=NativeDistribution,
    cmdclass={"bdist_wheel": bdist_wheel_by_content, "build": build_with_native, "build_native": build_native},
)
