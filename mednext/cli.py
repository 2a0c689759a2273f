"""The `mednext` command. Says which packages it lacks before it needs them."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings

NEEDED = {
    "demo": ("typer", "rich", "monai", "nibabel", "nilearn", "matplotlib", "psutil"),
    "segment": ("typer", "rich", "monai", "nibabel"),
    "nnunet": ("typer", "rich", "nnunetv2"),
}
EXTRA = {"nnunet": "nnunet"}  # what brings the packages; "demo" where it is not here


def main() -> None:
    """Runs the command line."""
    if sys.argv[1:2] == ["bench"]:  # runs with neither typer nor rich
        wait_passively()
        from mednext.bench.command import main as bench

        sys.exit(bench(sys.argv[2:]))
    command = next((word for word in sys.argv[1:] if word in NEEDED), None)
    needed = NEEDED[command] if command else ("typer", "rich")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        extra = EXTRA.get(command or "", "demo")
        print(
            f"mednext: {' '.join(missing)} not installed; `pip install 'mednext-ops[{extra}]'` mends it.",
            file=sys.stderr,
        )
        sys.exit(2)
    # MONAI and timm import torchvision where it is; that it cannot read pictures on this machine concerns nobody here.
    warnings.filterwarnings("ignore", message="Failed to load image Python extension")
    if command:
        wait_passively()
    try:
        from mednext.commands import app
        from mednext.nnunet.commands import app as nnunet
    except KeyboardInterrupt:  # torch takes seconds to import
        print("mednext: stopped before it began.", file=sys.stderr)
        sys.exit(130)

    app.add_typer(nnunet, name="nnunet")
    app()


def wait_passively() -> None:
    """Starts the same command again, in this process, with OpenMP threads that sleep while they wait.

    OpenMP reads OMP_WAIT_POLICY once, when torch is loaded, and importing this package loads torch. Threads that spin
    cost little on an idle machine but fight every other program for the cores. Who has set OMP_WAIT_POLICY keeps it.
    """
    if os.name == "posix" and "OMP_WAIT_POLICY" not in os.environ:
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


if __name__ == "__main__":
    main()
