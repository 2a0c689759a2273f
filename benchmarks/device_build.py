"""Builds the package into a folder without pip and without a network, for benchmarks/device_check.sh.

Where ninja is missing, benchmarks/ninja_stand_in.py takes its place; a part that cannot be built is left out, and said.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from build_tools import native  # noqa: E402
from build_tools.settings import BuildError, Settings  # noqa: E402


def put_stand_in_on_path(folder: Path) -> None:
    """A command `ninja` that is ours."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "ninja"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "benchmarks" / "ninja_stand_in.py"}" "$@"\n')
    script.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, required=True, help="takes the packages; to be put on PYTHONPATH")
    parser.add_argument("--build", type=Path, required=True, help="takes object files, for the next build")
    options = parser.parse_args()
    if not isinstance(native.find_tools().ninja, str):
        put_stand_in_on_path(options.build / "tools")
    try:
        built = native.build_native(ROOT, options.build, Settings.from_environment(), native.find_tools())
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    built["git"] = built["git"] or os.environ.get("MEDNEXT_OPS_GIT") or None
    shutil.rmtree(options.site, ignore_errors=True)
    for package in ("mednext", "mednext_ops"):
        leave = shutil.ignore_patterns("__pycache__", "*.so", native.INFORMATION_FILE)
        shutil.copytree(ROOT / package, options.site / package, ignore=leave)
    native.write_information(built, options.site / "mednext_ops" / native.INFORMATION_FILE)
    for record in built["parts"].values():
        if record["built"]:
            shutil.copy2(options.build / record["file"], options.site / "mednext_ops")
    print(native.report(built))
    return 0 if built["parts"]["cuda"]["built"] else 1


if __name__ == "__main__":
    sys.exit(main())
