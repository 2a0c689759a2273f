"""The most memory that a call takes, above what is there before it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["peak_bytes"]


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Of torch's allocator on a GPU, of the process's resident set on a CPU; None where neither can be told.

    ``call`` should have run before, so that what it makes once is there.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    reset = Path("/proc/self/clear_refs")
    if sys.platform != "linux" or not reset.exists():
        return None
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed before would take in what the call needs
    try:
        reset.write_text("5")  # forgets the peak (proc(5))
    except OSError:
        return None  # a container may forbid it
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
