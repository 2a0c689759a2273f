"""Writes a file whole or not at all: who reads it sees the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PREFIX", "replacing"]

PREFIX = ".mednext-"  # of files that are being written; a kill leaves them


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to write in the place of `path`, with its suffixes, which takes its name when the context ends.

    After an error the new file is gone and `path` is what it was; after a power cut `path` is the old file or the new.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=PREFIX, suffix=f"-{path.name}")
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
