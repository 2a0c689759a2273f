"""Random problems on the emulation, judged and counted: ``python benchmarks/emulated_sweep.py --help``.

Run in a clone, with the package installed: it is that package which is tried, and the clone's kernels.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # the tests; the package is found before
    from tests.emulation.sweep import main

    sys.exit(main())
