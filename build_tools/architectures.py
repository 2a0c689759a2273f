"""GPU architectures: from ``75;90a;120+PTX`` to nvcc's flags."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from build_tools.settings import BuildError

__all__ = ["Architecture", "parse_architectures", "split_known"]


@dataclass(frozen=True)
class Architecture:
    """One GPU architecture: machine code for it and, with ``ptx``, PTX that newer ones can compile."""

    number: int
    suffix: str = ""  # "a" or "f": instructions of this architecture (family) only
    ptx: bool = False

    def __str__(self) -> str:
        return f"{self.number}{self.suffix}{'+PTX' if self.ptx else ''}"

    @property
    def flags(self) -> list[str]:
        name = f"{self.number}{self.suffix}"
        flags = [f"-gencode=arch=compute_{name},code=sm_{name}"]
        if self.ptx:
            flags.append(f"-gencode=arch=compute_{name},code=compute_{name}")
        return flags


def parse_architectures(text: str) -> list[Architecture]:
    """Read MEDNEXT_OPS_CUDA_ARCHS; ``8.6`` is understood as ``86``."""
    found: list[Architecture] = []
    for word in re.split(r"[;,\s]+", text.strip()):
        match = re.fullmatch(r"(\d{1,2})\.?(\d)([af]?)(\+PTX)?", word, re.IGNORECASE)
        if match is None:
            raise BuildError(
                f"MEDNEXT_OPS_CUDA_ARCHS has {word!r}; expected architectures such as 86, 90a or 120+PTX, "
                f"separated by semicolons"
            )
        major, minor, suffix, ptx = match.groups()
        architecture = Architecture(int(major + minor), suffix.lower(), ptx is not None)
        if architecture not in found:
            found.append(architecture)
    return found


def split_known(
    wanted: list[Architecture], known_to_nvcc: Collection[int]
) -> tuple[list[Architecture], list[Architecture]]:
    """Those that this nvcc compiles for, and those that it does not know."""
    known = [a for a in wanted if a.number in known_to_nvcc]
    return known, [a for a in wanted if a not in known]
