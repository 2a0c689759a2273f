"""The `mednext` command. Says which packages it lacks before it needs them."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = {
    "demo": ("typer", "rich", "monai", "nibabel", "nilearn", "matplotlib", "psutil"),
    "segment": ("typer", "rich", "monai", "nibabel"),
}


def main() -> None:
    """Runs the command line."""
    command = next((word for word in sys.argv[1:] if word in NEEDED), None)
    needed = NEEDED[command] if command else ("typer", "rich")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"mednext: {' '.join(missing)} not installed; `pip install 'mednext-ops[demo]'` mends it.", file=sys.stderr
        )
        sys.exit(2)
    from mednext.commands import app

    app()


if __name__ == "__main__":
    main()
