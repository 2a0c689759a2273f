"""Measures one thing after another in a process beside this one, which is replaced when it hangs or dies.

So nothing that happens to one row reaches the next: neither what hangs inside of a compiler, nor an error after which
the GPU answers that process no more.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from mednext.bench.task import NotComparable

__all__ = ["Job", "RowProcess"]

START_SECONDS = 90  # to import PyTorch and to reach the GPU


@dataclass(frozen=True)
class Job:
    """What one row takes.

    Attributes:
        part: of the report, that the row belongs to.
        names: the fields that say what is measured.
        measure: called with the device and ``arguments`` in the other process; returns the other fields.
    """

    part: str
    names: dict[str, Any]
    measure: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


class RowProcess:
    """A process that measures on ``device``; started when it is needed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    def row(self, job: Job, seconds: float) -> dict[str, Any]:
        """The job's row, with an ``error`` in place of the measured fields where there are none."""
        try:
            connection = self._connection or self._start()
            connection.send(job)
            if not connection.poll(seconds):
                self.close()
                return job.names | {"error": f"out of time: stopped after {seconds:.0f} s"}
            found, usable = connection.recv()
        except (EOFError, OSError):
            return job.names | {"error": f"its process ended with status {self.close()}"}
        if not usable:
            self.close()
        return job.names | found

    def close(self) -> int | None:
        """Ends the process, if need be by force; returns its exit status."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is None or connection is None:
            return None
        connection.close()
        process.join(1)
        if process.is_alive():
            process.kill()
            process.join()
        return process.exitcode

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._device))
        self._process.start()
        other.close()
        if self._connection.poll(START_SECONDS):
            self._connection.recv()
        return self._connection


def _serve(connection: Connection, device: torch.device) -> None:
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
        torch.cuda.synchronize(device)
    gc.freeze()  # what is there now stays: collections need not walk through it
    connection.send("ready")
    # No CUDA graph is captured on the default stream.
    stream = torch.cuda.stream(torch.cuda.Stream()) if gpu else contextlib.nullcontext()
    with stream, contextlib.suppress(EOFError, BrokenPipeError):  # when nobody asks any more
        while True:
            connection.send(_attempt(connection.recv(), device))


def _attempt(job: Job, device: torch.device) -> tuple[dict[str, Any], bool]:
    """The measured fields, or the error; and whether this process can go on."""
    try:
        return job.measure(device, *job.arguments), True
    except NotComparable as error:
        found = {"error": f"not comparable: {error}"}
    except Exception as error:  # whatever a baseline raises: its row says so
        found = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    try:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
    except RuntimeError:
        return found, False
    return found, True
