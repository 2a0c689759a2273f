"""Which of a kernel's few ways to be cut is fastest on this GPU: timed once a kind of problem, then kept on disk.

A kind is the kernel, types, format, channels and the number of voxels to the next power of two. The first way of each
list is the one that needs no timing: it is taken in the interpreter and with MEDNEXT_OPS_TRITON_TUNE=0, and for a kind
that is met for the first time while a CUDA graph is captured, when nothing may be timed. What was found is kept in a
file for a device, a version of Triton and one of this package, in MEDNEXT_OPS_TRITON_CACHE (default:
``mednext_ops/triton`` of the user's cache folder), so that the same way, and with it the same order of sums, is taken
in every later run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from mednext_ops.backends.triton.launch import INTERPRETS, Blocks, recorded

__all__ = ["cache_file", "choose", "kind", "taking"]

logger = logging.getLogger("mednext_ops")

#: Runs of each way: one that compiles, and those whose median counts.
RUNS = 5

_forced: int | None = None


@contextlib.contextmanager
def taking(index: int) -> Iterator[None]:
    """Take the way of that index of every list inside (the last one of shorter lists): for tests and reports."""
    global _forced
    before, _forced = _forced, index
    try:
        yield
    finally:
        _forced = before


def kind(tensor: torch.Tensor, *details: Any) -> tuple[Any, ...]:
    """The kind of problem that a tensor [N, C, D, H, W] and further numbers make."""
    voxels = tensor.shape[0] * tensor.shape[2:].numel()
    return str(tensor.dtype).removeprefix("torch."), tensor.shape[1], max(voxels - 1, 0).bit_length(), *details


def choose(
    kernel: str,
    kind: tuple[Any, ...],
    ways: Sequence[Blocks],
    over: torch.Tensor,
    run: Callable[[Blocks], Any],
    most: int | None = None,
) -> Blocks:
    """The fastest of ``ways`` to cut the voxels of a tensor; ``run`` launches the kernel, cut as it is told.

    The interpreter gets tiles of all voxels, or of ``most``: where a product adds voxel by voxel, longer tiles than a
    GPU's would have errors that a GPU's have not.
    """
    if _forced is not None:
        return ways[min(_forced, len(ways) - 1)]
    if INTERPRETS:
        voxels = over.shape[2:].numel()
        return ways[0].enlarged(voxels if most is None else min(voxels, most))
    if len(ways) == 1 or recorded() or not _tunes():
        return ways[0]
    name = f"{kernel} {' '.join(map(str, kind))}"
    times = _Times.of(over.device)
    found = times.fastest(name, ways)
    if found is None and not _may_time():
        logger.warning("%s was not timed before the CUDA graph was captured; run the step once outside of it", name)
        return ways[0]
    if found is None:
        measured = {way: _milliseconds(run, way) for way in ways}
        found = min(ways, key=measured.__getitem__)
        logger.debug("%s: %s", name, ", ".join(f"{way} {ms:.3f} ms" for way, ms in measured.items()))
        times.keep(name, found)
    return found


def _tunes() -> bool:
    return os.environ.get("MEDNEXT_OPS_TRITON_TUNE", "1") != "0"


def _may_time() -> bool:
    return not torch.cuda.is_current_stream_capturing()


def _milliseconds(run: Callable[[Blocks], Any], way: Blocks) -> float:
    """The median time of a run; infinite where the GPU has not the shared memory or the registers for it."""
    try:
        run(way)
    except triton.runtime.errors.OutOfResources:
        return float("inf")
    times = []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run(way)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def cache_file(device_name: str) -> Path:
    """Where the times of a device are kept."""
    folder = os.environ.get("MEDNEXT_OPS_TRITON_CACHE")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        ours = importlib.metadata.version("mednext-ops")
    except importlib.metadata.PackageNotFoundError:
        ours = "uninstalled"
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{device_name} triton {triton.__version__} mednext-ops {ours}")
    return (Path(folder) if folder else user / "mednext_ops" / "triton") / f"{name}.json"


def _plain(way: Blocks) -> Any:
    """As it is read back from a file."""
    return json.loads(json.dumps(dataclasses.asdict(way)))


class _Times:
    """What was found fastest on a device, in memory and in its file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found = self._read()

    @staticmethod
    @functools.cache
    def of(device: torch.device) -> _Times:
        return _Times(cache_file(torch.cuda.get_device_name(device)))

    def _read(self) -> dict[str, Any]:
        """A file that is missing, cut off or not ours holds nothing."""
        try:
            found = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def fastest(self, name: str, ways: Sequence[Blocks]) -> Blocks | None:
        """What was kept under that name, if it still is one of the ways."""
        kept = self._found.get(name)
        return next((way for way in ways if _plain(way) == kept), None)

    def keep(self, name: str, way: Blocks) -> None:
        """Add to the file, with what other processes added meanwhile; one that cannot be written is done without."""
        self._found = self._read() | self._found | {name: _plain(way)}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._file.parent, suffix=".tmp", delete=False) as part:
                json.dump(self._found, part, indent=1)
            os.replace(part.name, self._file)
        except OSError as error:
            logger.debug("times are not kept: %s", error)
