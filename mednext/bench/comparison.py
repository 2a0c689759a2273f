"""Two runs of the harness: which rows moved beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mednext.bench.rows import OK, Row, key

__all__ = ["Change", "compare", "describe"]

SLOWER, FASTER, SAME = "slower", "faster", "same"
BROKEN, MENDED, MORE_MEMORY, LESS_MEMORY = "broken", "mended", "more memory", "less memory"
REGRESSIONS = (SLOWER, BROKEN, MORE_MEMORY)


@dataclass(frozen=True)
class Change:
    """What became of one row: of ``before`` (None where there was none) and ``after``."""

    kind: str
    before: Row
    after: Row
    ratio: float | None = None

    @property
    def is_regression(self) -> bool:
        return self.kind in REGRESSIONS

    def __str__(self) -> str:
        row = self.after
        name = f"{row.problem} {row.dtype}, {row.pass_name}, {row.implementation}"
        if self.kind in (BROKEN, MENDED):
            return f"{self.kind}: {name}: {self.before.status} -> {row.status} {row.note}".rstrip()
        if self.kind in (MORE_MEMORY, LESS_MEMORY):
            return f"{self.kind}: {name}: peak x {self.ratio:.2f}"
        times = f"{1e3 * (self.before.seconds or 0):.4g} -> {1e3 * (row.seconds or 0):.4g} ms"
        return f"{self.kind}: {name}: {times}, x {self.ratio:.2f}"


def compare(before: Sequence[Row], after: Sequence[Row], threshold: float) -> list[Change]:
    """What became of each row that both runs have.

    A time moved if the 20-80 % ranges lie apart and the medians differ by more than ``threshold`` (0.05: 5 %); a peak
    of memory if it differs by more than that and by more than a MiB.
    """
    earlier = {key(row): row for row in before}
    changes = []
    for row in after:
        old = earlier.get(key(row))
        if old is not None:
            changes += _changes(old, row, threshold)
    return changes


def _changes(old: Row, new: Row, threshold: float) -> list[Change]:
    if old.status != OK or new.status != OK:
        if old.status == new.status:
            return [Change(SAME, old, new)]
        return [Change(MENDED if new.status == OK else BROKEN, old, new)]
    found = []
    if old.seconds and new.seconds:
        ratio = new.seconds / old.seconds
        apart_above = (new.seconds_p20 or new.seconds) > (old.seconds_p80 or old.seconds)
        apart_below = (new.seconds_p80 or new.seconds) < (old.seconds_p20 or old.seconds)
        if apart_above and ratio > 1 + threshold:
            found.append(Change(SLOWER, old, new, ratio))
        elif apart_below and ratio < 1 / (1 + threshold):
            found.append(Change(FASTER, old, new, ratio))
    if old.peak_bytes and new.peak_bytes and abs(new.peak_bytes - old.peak_bytes) > 2**20:
        ratio = new.peak_bytes / old.peak_bytes
        # The process' own memory wobbles on a CPU; a GPU's allocator does not.
        allowed = threshold if new.device == "cuda" else max(threshold, 0.25)
        if ratio > 1 + allowed:
            found.append(Change(MORE_MEMORY, old, new, ratio))
        elif ratio < 1 / (1 + allowed):
            found.append(Change(LESS_MEMORY, old, new, ratio))
    return found or [Change(SAME, old, new)]


def describe(changes: Sequence[Change], before: Sequence[Row], after: Sequence[Row]) -> str:
    """What a person reads: every change, then the counts."""
    lines = [str(change) for change in changes if change.kind != SAME]
    machines = sorted({row.machine for row in before} ^ {row.machine for row in after})
    if machines:
        lines.append(f"beware: the machines differ: {'; '.join(machines)}")
    alone = len({key(r) for r in before} ^ {key(r) for r in after})
    counts = {kind: sum(c.kind == kind for c in changes) for kind in dict.fromkeys(c.kind for c in changes)}
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "no row is in both"
    lines.append(f"{told}{f'; {alone} rows are in one run only' if alone else ''}")
    return "\n".join(lines)
