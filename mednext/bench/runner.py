"""Measures tasks: first the result, then memory, then time, all implementations in turn; each outcome is a row."""

from __future__ import annotations

import contextlib
import gc
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from mednext.backends_used import BackendsUsed
from mednext.bench.clocks import Sample, Timer, Timing
from mednext.bench.machine import Ceilings, available_bytes
from mednext.bench.peak import peak_bytes
from mednext.bench.rows import ERROR, OUT_OF_MEMORY, WRONG, Row
from mednext.bench.task import Implementation, NotComparable, Task
from mednext.errors import InputError
from mednext.memory import saved_bytes

__all__ = ["Runner"]

#: What a process needs beside the tensors that autograd keeps, over those: the widest hidden tensors, gradients.
MARGIN = 1.2


class Runner:
    """Measures on one device.

    Args:
        device: where everything runs.
        timer: None to measure memory only.
        ceilings: of the device, by dtype.
        provenance: fields of every row that say where it comes from.
        record: called with each row as soon as it is final.
    """

    def __init__(
        self,
        device: torch.device,
        timer: Timer | None,
        ceilings: dict[str, Ceilings],
        provenance: dict[str, str],
        record: Callable[[Row], None],
    ) -> None:
        self._device, self._timer, self._ceilings = device, timer, ceilings
        self._provenance, self._record = provenance, record
        #: How many tasks an implementation got no row of, and the reason: what it has no form of.
        self.left_out: Counter[tuple[str, str]] = Counter()

    def run(self, tasks: Iterable[Task], implementations: Sequence[Implementation]) -> None:
        """Measures every task by every implementation."""
        gc.freeze()  # what is there now stays: collections between the rows need not walk through it
        try:
            for task in tasks:
                with self._stream():
                    self._run_one(task, implementations)
                if any(implementation.compile for implementation in implementations):
                    torch.compiler.reset()  # of one function only so many compilations are kept
                self._tidy()
        finally:
            gc.unfreeze()  # else the interpreter ends with them, and nanobind, in Triton, lists each of its own

    def _run_one(self, task: Task, implementations: Sequence[Implementation]) -> None:
        rows: dict[str, Row] = {}
        samplers: dict[str, tuple[Sample, str]] = {}
        for implementation in implementations:
            row = self._row(task, implementation)
            try:
                ready = self._attempt(row, lambda: self._ready(task, implementation, row))  # noqa: B023
            except NotComparable as reason:
                self.left_out[implementation.name, str(reason)] += 1
                continue
            rows[implementation.name] = row
            if ready is None or self._timer is None:
                self._record(row)
                self._tidy()
            else:
                samplers[implementation.name] = ready
        self._time(rows, samplers)

    def _time(self, rows: dict[str, Row], samplers: dict[str, tuple[Sample, str]]) -> None:
        """All in turn; one that fails beside the others is left out, and its row says why."""
        failed: list[str] = []

        def guarded(name: str, sample: Sample) -> Sample:
            def take() -> float:
                if name in failed:
                    return math.nan
                seconds = self._attempt(rows[name], sample)
                if seconds is None:
                    failed.append(name)
                    self._tidy()
                    return math.nan
                return seconds

            return take

        guards = {name: (guarded(name, sample), clock) for name, (sample, clock) in samplers.items()}
        timings = self._timer.time_in_turn(guards) if self._timer is not None and guards else {}
        for name in samplers:
            if name not in failed:
                _fill_in(rows[name], timings[name])
            self._record(rows[name])

    def _row(self, task: Task, implementation: Implementation) -> Row:
        fields: dict[str, Any] = task.fields | self._provenance
        row = Row(implementation=implementation.name, device=self._device.type, **fields)
        work = task.work()
        row.counted_bytes, row.counted_operations = work.bytes, work.operations
        ceilings = self._ceilings.get(row.dtype)
        if ceilings is not None:
            row.floor_seconds = work.floor_seconds(ceilings.bytes_per_second, ceilings.operations_per_second)
        return row

    def _ready(self, task: Task, implementation: Implementation, row: Row) -> tuple[Sample, str] | None:
        """Bound, run, its result checked, its memory measured: what samples it; None where there is nothing to time."""
        self._refuse_what_cannot_fit(task, implementation, row)
        bound = task.bind(implementation, self._device)
        row.checked, row.note, row.weights_bytes = bound.checked, bound.note, bound.weights_bytes()
        with implementation.in_force():
            with BackendsUsed() as used:
                verdict = bound.check()
            row.backends = ", ".join(used.names())
            row.error, row.eager_error, row.allowed_error = verdict.error, verdict.eager_error, verdict.allowed
            if not verdict.ok:
                row.status, row.note = WRONG, str(verdict)
                return None
            bound.call()
            row.peak_bytes = peak_bytes(bound.call, self._device)
            if bound.forward is not None and implementation.compile is None:
                row.saved_bytes = saved_bytes(bound.module, bound.forward)
            if self._timer is None:
                return None
            sample, clock = self._timer.prepare(bound.call, task.graph or implementation.graph)

        def take() -> float:
            with implementation.in_force():
                return sample()

        return take, clock

    def _refuse_what_cannot_fit(self, task: Task, implementation: Implementation, row: Row) -> None:
        """On a CPU the system kills a process that takes too much: what cannot fit is not tried."""
        free = available_bytes() if self._device.type == "cpu" else None
        needed = None if free is None else task.needed_bytes(implementation)
        if free is None or needed is None:
            return
        row.saved_bytes = needed
        if needed * MARGIN > free:
            raise MemoryError(
                f"not tried: it keeps {needed / 2**30:.1f} GiB for the backward pass alone, {free / 2**30:.1f} are free"
            )

    def _attempt(self, row: Row, action: Callable[[], Any]) -> Any:
        """The action's result; what goes wrong becomes the row's status, and None comes back."""
        try:
            return action()
        except (InputError, NotComparable):
            raise
        except Exception as error:  # whatever a baseline raises: its row says so, and the run goes on
            text = str(error).strip() or type(error).__name__
            row.status = OUT_OF_MEMORY if _is_out_of_memory(error) else ERROR
            first = text.splitlines()[0][:300]
            row.note = first if row.status == OUT_OF_MEMORY else f"{type(error).__name__}: {first}"
            return None

    def _stream(self) -> Any:
        """A stream of its own on a GPU: no CUDA graph is captured on the default one."""
        return torch.cuda.stream(torch.cuda.Stream()) if self._device.type == "cuda" else contextlib.nullcontext()

    def _tidy(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = str(error)
    told = ("can't allocate memory", "out of memory", "could not be allocated")  # PyTorch's allocators; our libraries
    return isinstance(error, RuntimeError) and any(text in words for text in told)


def _fill_in(row: Row, timing: Timing) -> None:
    row.seconds, row.seconds_p20, row.seconds_p80 = timing.median, timing.p20, timing.p80
    row.samples, row.clock = timing.samples, timing.clock
    if row.counted_bytes:
        row.gigabytes_per_second = row.counted_bytes / timing.median / 1e9
    if row.counted_operations:
        row.teraflops_per_second = row.counted_operations / timing.median / 1e12
    if row.floor_seconds:
        row.percent_of_floor = 100 * row.floor_seconds / timing.median
