"""Rows as a table: for the terminal (with rich where it is installed) and for the report."""

from __future__ import annotations

from collections.abc import Sequence

from mednext.bench.rows import OK, Row

__all__ = ["COLUMNS", "EAGER", "cells", "print_table", "speed_ups"]

EAGER = "eager"  # what speed-ups are over
COLUMNS = (
    "problem", "pass", "implementation", "time", "20-80 %", "speed-up", "GB/s", "TFLOP/s", "of floor", "peak",
    "saved", "remark",
)  # fmt: skip
TEXT_COLUMNS = ("problem", "pass", "implementation", "remark")


def speed_ups(rows: Sequence[Row]) -> dict[int, float]:
    """By ``id`` of a row with a time: how many times faster than eager PyTorch on the same task."""
    eager = {_task(row): row.seconds for row in rows if row.implementation == EAGER and row.seconds}
    found = {}
    for row in rows:
        base = eager.get(_task(row))
        if row.seconds and base:
            found[id(row)] = base / row.seconds
    return found


def _task(row: Row) -> tuple[str, ...]:
    return row.suite, row.problem, row.pass_name, row.dtype


def cells(row: Row, speed_up: float | None) -> tuple[str, ...]:
    """The row's text, a cell for each of :data:`COLUMNS`."""
    remark = row.note if row.status == OK else f"{row.status}: {row.note}" if row.note else row.status
    spread = ""
    if row.seconds_p20 is not None and row.seconds_p80 is not None:
        spread = f"{_seconds(row.seconds_p20)} - {_seconds(row.seconds_p80)}"
    return (
        f"{row.problem} {row.dtype}",
        row.pass_name,
        row.implementation,
        _seconds(row.seconds),
        spread,
        "" if speed_up is None else f"{speed_up:.2f}x",
        "" if row.gigabytes_per_second is None else f"{row.gigabytes_per_second:.3g}",
        "" if row.teraflops_per_second is None else f"{row.teraflops_per_second:.3g}",
        "" if row.percent_of_floor is None else f"{row.percent_of_floor:.0f} %",
        _mebibytes(row.peak_bytes),
        _mebibytes(row.saved_bytes),
        remark,
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 1 or unit == "us":
            return f"{value * factor:.3g} {unit}"
    return ""


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.2f} MiB" if count < 2**24 else f"{count / 2**20:.0f} MiB"


def print_table(rows: Sequence[Row], title: str) -> None:
    """To the terminal; columns that are empty throughout are left out."""
    ups = speed_ups(rows)
    texts = [cells(row, ups.get(id(row))) for row in rows]
    used = [i for i, name in enumerate(COLUMNS) if name in TEXT_COLUMNS[:3] or any(text[i] for text in texts)]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _print_plain([[COLUMNS[i] for i in used], *([text[i] for i in used] for text in texts)], title)
        return
    table = Table(title=title)
    for i in used:
        table.add_column(COLUMNS[i], justify="left" if COLUMNS[i] in TEXT_COLUMNS else "right", overflow="fold")
    previous = None
    for row, text in zip(rows, texts, strict=True):
        if previous not in (None, _task(row)):
            table.add_section()
        again = previous == _task(row)
        previous = _task(row)
        shown = ["" if again and COLUMNS[i] in ("problem", "pass") else text[i] for i in used]
        table.add_row(*shown, style=None if row.status == OK else "red")
    console = Console()
    # A file or a pipe has no width of its own.
    (console if console.is_terminal else Console(width=220)).print(table)


def _print_plain(lines: list[list[str]], title: str) -> None:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    print(title)
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
