"""The one place that launches a kernel, and what a launch is cut into.

Every launch of this backend goes through :func:`launch`, so that a tool can record the launches of an op instead of
running them, and compile exactly those ahead of time for a GPU that is not there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch

from mednext_ops.backends.triton.numerics import INTERPRETED

__all__ = [
    "INTERPRETS",
    "Blocks",
    "Launch",
    "amd",
    "cdiv",
    "channel_tile",
    "launch",
    "needs_64_bits",
    "recorded",
    "recording",
]

#: Whether kernels run on the CPU, by Triton's interpreter.
INTERPRETS = bool(INTERPRETED.value)


_MOST = 2**31 - 2**20


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a kernel is cut: elements of a tile by the kernel's own names, threads of a program, stages of its loop."""

    sizes: tuple[tuple[str, int], ...]
    threads: int = 128
    stages: int = 2

    @classmethod
    def of(cls, threads: int = 128, stages: int = 2, **sizes: int) -> Blocks:
        return cls(tuple(sizes.items()), threads, stages)

    def __getitem__(self, name: str) -> int:
        return dict(self.sizes)[name]

    def __contains__(self, name: str) -> bool:
        return name in dict(self.sizes)

    def enlarged(self, voxels: int) -> Blocks:
        """For the interpreter, where it is programs that cost, not voxels: as many of these a tile as there are."""
        tile = self["BV"]
        while tile < min(voxels, 32 * self["BV"]):
            tile *= 2
        return dataclasses.replace(self, sizes=tuple((dict(self.sizes) | {"BV": tile}).items()))

    def options(self, warp_size: int) -> dict[str, Any]:
        """What the compiler is told. Contraction of a * b + c is asked for: Triton's default depends on its version."""
        return {"num_warps": self.threads // warp_size, "num_stages": self.stages, "enable_fp_fusion": True}


@dataclasses.dataclass(frozen=True)
class Launch:
    """A recorded launch."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    blocks: Blocks


_record: list[Launch] | None = None
_recorded_for_amd = False


def recorded() -> bool:
    """Whether launches are recorded at the moment, and nothing is run."""
    return _record is not None


@contextlib.contextmanager
def recording(amd: bool = False) -> Iterator[list[Launch]]:
    """Record what is launched inside, in order, in place of running it: for tensors on the meta device too.

    ``amd`` says for whose GPU: a few choices differ.
    """
    global _record, _recorded_for_amd
    before = _record, _recorded_for_amd
    _record, _recorded_for_amd = [], amd
    try:
        yield _record
    finally:
        _record, _recorded_for_amd = before


def amd() -> bool:
    """Whether launches are for a GPU of AMD."""
    return _recorded_for_amd if recorded() else torch.version.hip is not None


def launch(kernel: Any, programs: int, blocks: Blocks, **arguments: Any) -> None:
    """Run ``programs`` programs of a kernel on the current stream of the device that its tensors are on."""
    if programs == 0:
        return
    arguments |= dict(blocks.sizes)
    if _record is not None:
        _record.append(Launch(kernel, programs, arguments, blocks))
        return
    device = next(a.device for a in arguments.values() if isinstance(a, torch.Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](**arguments, **blocks.options(_warp_size(device)))


@functools.cache
def _warp_size(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


def cdiv(count: int, size: int) -> int:
    return -(-count // size)


def channel_tile(channels: int, channels_last: bool, most: int = 32) -> int:
    """Channels of a tile: one where voxels are neighbours in memory, up to a sector's worth where channels are.

    The interpreter takes the same time for a small and a large tile: there it is always as many as may be.
    """
    tile = 1
    while (channels_last or INTERPRETS) and tile < min(channels, most):
        tile *= 2
    return tile


def needs_64_bits(*tensors: torch.Tensor | None) -> bool:
    """Whether an offset within a sample may pass 2^31, also in a tile that is not full. Those of samples always may."""
    return any(t is not None and t.dim() > 1 and t.numel() // max(t.shape[0], 1) > _MOST for t in tensors)
