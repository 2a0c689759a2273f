"""The environment variables that steer a build: the one place that reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DEFAULT_ARCHITECTURES", "MODES", "BuildError", "Settings", "usable_cpus"]

MODES = ("auto", "cuda", "cpu", "none")

#: Turing to Blackwell; the newest as PTX too, for what comes after it. 90a: Hopper with its own instructions.
DEFAULT_ARCHITECTURES = "75;80;86;89;90a;100;120+PTX"


class BuildError(Exception):
    """The build cannot be what was asked for; the text is a sentence to the person who asked."""


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        mode: MEDNEXT_OPS_BUILD. "auto": whatever the machine can build and its torch can load; "cuda", "cpu": that
            library (and, for "cuda", the CPU's too) or an error; "none": no native part.
        architectures: MEDNEXT_OPS_CUDA_ARCHS, separated by semicolons, commas or spaces; "+PTX" after one adds PTX.
        max_jobs: MAX_JOBS, how many compilers run at once.
    """

    mode: str = "auto"
    architectures: str = DEFAULT_ARCHITECTURES
    max_jobs: int = 1

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        mode = environ.get("MEDNEXT_OPS_BUILD", "").strip().lower() or "auto"
        if mode not in MODES:
            raise BuildError(f"MEDNEXT_OPS_BUILD is {mode!r}; it can be {', '.join(MODES)}")
        jobs = environ.get("MAX_JOBS", "").strip() or str(usable_cpus())
        if not jobs.isdecimal() or int(jobs) < 1:
            raise BuildError(f"MAX_JOBS is {jobs!r}; it must be a whole number of compilers to run at once, 1 or more")
        architectures = environ.get("MEDNEXT_OPS_CUDA_ARCHS", "").strip() or DEFAULT_ARCHITECTURES
        return cls(mode, architectures, int(jobs))

    @property
    def wants_native(self) -> bool:
        return self.mode != "none"

    @property
    def wants_cuda(self) -> bool:
        return self.mode in ("auto", "cuda")

    def requires(self, artefact: str) -> bool:
        """Whether it is an error not to build ``artefact`` ("cpu" or "cuda"; the information module never is one)."""
        return artefact == self.mode or (artefact == "cpu" and self.mode == "cuda")


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
