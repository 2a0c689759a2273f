"""The ABI gate: a library that wants a C++ symbol of torch works with one version of torch only.

``python -m build_tools.check_symbols [FILE ...]`` looks at the undefined symbols of the built libraries and fails if
any is in torch::, at:: or c10::. Without files it takes those of mednext_ops/. The stable ABI is plain C: nothing else
is allowed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["foreign_symbols", "main"]

_FOREIGN = re.compile(r"(?<![\w:])(?:torch|at|c10|caffe2)::")


def foreign_symbols(library: Path) -> list[str]:
    """The undefined symbols of ``library`` that bind it to one version of torch, demangled.

    Raises:
        RuntimeError: binutils' nm is missing or cannot read the file.
    """
    nm = shutil.which("nm")
    if nm is None:
        raise RuntimeError("the symbol check needs nm; install binutils")
    done = subprocess.run(
        [nm, "--dynamic", "--undefined-only", "--demangle", str(library)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"nm cannot read {library}: {done.stderr.strip()}")
    symbols = (line.strip().split(maxsplit=1)[-1] for line in done.stdout.splitlines())
    return [symbol for symbol in symbols if _FOREIGN.search(symbol)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build_tools.check_symbols", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="libraries; by default all in mednext_ops/")
    files: list[Path] = parser.parse_args(arguments).files or sorted(Path("mednext_ops").glob("*.so"))
    if not files:
        print("no library to check: nothing was built in mednext_ops/", file=sys.stderr)
        return 1
    failed = False
    for file in files:
        try:
            foreign = foreign_symbols(file)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        failed = failed or bool(foreign)
        print(f"{file}: {f'{len(foreign)} symbols outside the stable ABI' if foreign else 'stable ABI only'}")
        for symbol in foreign:
            print(f"  {symbol}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
