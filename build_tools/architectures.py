"""GPU architectures: from ``75;90a;120+PTX`` to nvcc's flags."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from build_tools.settings import BuildError

__all__ = ["Architecture", "gencode_flags", "is_specific", "parse_architectures", "split_known"]


@dataclass(frozen=True)
class Architecture:
    """One GPU architecture: machine code for it and, with ``ptx``, PTX that newer ones can compile."""

    number: int
    suffix: str = ""  # "a" or "f": instructions of this architecture (family) only
    ptx: bool = False

    def __str__(self) -> str:
        return f"{self.number}{self.suffix}{'+PTX' if self.ptx else ''}"

    @property
    def name(self) -> str:
        return f"{self.number}{self.suffix}"

    def shares(self, other: Architecture, specific: bool) -> bool:
        """Whether what is compiled for ``other`` can be translated to this one, and loses nothing by it."""
        if other.suffix or other.number > self.number or (specific and self.suffix):
            return self == other
        return self.number // 10 == other.number // 10 or (not specific and other.number >= 80)


def gencode_flags(architectures: list[Architecture], specific: bool = True) -> list[str]:
    """nvcc's flags for machine code of each architecture, and PTX where one asks for it.

    Architectures of one generation (80, 86, 89) have the same instructions: the C++ is compiled once for the least of
    them, which takes most of nvcc's time, and what it gives is translated to the machine code of each. Code that is not
    ``specific`` to any beyond 80 (:func:`is_specific`) is compiled once for all from 80 on.
    """
    flags = []
    for a in architectures:
        least = min((other for other in architectures if a.shares(other, specific)), key=lambda other: other.number)
        flags.append(f"-gencode=arch=compute_{least.name},code=sm_{a.name}")
        if a.ptx:
            flags.append(f"-gencode=arch=compute_{least.name},code=compute_{least.name}")
    return flags


_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
#: What is no more than the question whether this is device code for 80 or newer,
_KNOWN = re.compile(r"defined\(__CUDA_ARCH__\)|__CUDA_ARCH__ (?:<|>=) 800\b")
#: and what may be more.
_ASKS = re.compile(r"__CUDA_ARCH|NV_IF_TARGET|NV_IF_ELSE_TARGET|NV_DISPATCH_TARGET|NV_PROVIDES")
#: What a source says that asks for nothing, but loses by being compiled once.
_FOR_EACH = "// Compiled for each architecture"


def is_specific(source: Path, seen: set[Path] | None = None) -> bool:
    """Whether a CUDA source, or what it includes, asks for more of the architecture than whether it is below 80.

    Or says so in a comment that begins with :data:`_FOR_EACH`.
    """
    seen = set() if seen is None else seen
    path = source.resolve()
    if path in seen or not path.is_file():
        return False
    seen.add(path)
    text = path.read_text()
    return (
        bool(_ASKS.search(_KNOWN.sub("", text)))
        or _FOR_EACH in text
        or any(is_specific(path.parent / name, seen) for name in _INCLUDE.findall(text))
    )


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
