"""``python -m benchmarks``: the same as ``mednext bench``, by the installed package where there is one."""

import importlib.metadata
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prefer_installed() -> None:
    """``python -m`` puts this folder's packages first, which lack the compiled libraries."""
    try:
        importlib.metadata.version("mednext-ops")
    except importlib.metadata.PackageNotFoundError:
        return
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != ROOT]


if __name__ == "__main__":
    prefer_installed()
    from mednext.cli import wait_passively

    wait_passively()
    from mednext.bench.command import main

    sys.exit(main())
