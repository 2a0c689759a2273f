"""One measured number and everything that is needed to judge it; files of such rows as JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mednext.atomic_file import replacing
from mednext.errors import InputError, first_line

__all__ = ["CSV_NAME", "JSON_NAME", "OK", "OUT_OF_MEMORY", "TASK_FIELDS", "Row", "key", "of_task", "read", "write"]

JSON_NAME, CSV_NAME = "results.json", "results.csv"

OK, WRONG, OUT_OF_MEMORY, ERROR = "ok", "wrong", "out of memory", "error"


@dataclasses.dataclass
class Row:
    """A pass of a problem by one implementation. What was not measured is None.

    Attributes:
        suite: "ops", "blocks", "network", "scaling" or "memory".
        problem: what was run, in words.
        pass_name: "forward", "backward data", "inference", "training step" ...
        implementation: whose code ran.
        dtype: "fp32", "fp16" or "bf16".
        device: "cpu" or "cuda".
        status: "ok", "wrong" (the result; not timed), "out of memory" or "error".
        note: the reason where the status is not "ok", or a remark.
        variant, kernel_size: of a network; the kernel size of an operator or block too.
        seconds, seconds_p20, seconds_p80: median and percentiles of ``samples`` calls.
        clock: "CUDA graph", "CUDA events" or "wall clock".
        counted_bytes, counted_operations: that the problem takes (mednext/bench/counting.py), whoever runs it.
        floor_seconds: the least time for both at the measured ceilings.
        weights_bytes: of the weights.
        peak_bytes: the most memory during the pass, above what was there before it (weights, optimizer, input).
        saved_bytes: kept between forward and backward.
        error, eager_error, allowed_error: of the tensor that used most of what was allowed, against float64.
        checked: what the result was compared with.
        backends: those that ran our operators.
    """

    suite: str
    problem: str
    pass_name: str
    implementation: str
    dtype: str
    device: str
    status: str = OK
    note: str = ""
    variant: str | None = None
    kernel_size: int | None = None
    seconds: float | None = None
    seconds_p20: float | None = None
    seconds_p80: float | None = None
    samples: int = 0
    clock: str | None = None
    counted_bytes: int | None = None
    counted_operations: int | None = None
    gigabytes_per_second: float | None = None
    teraflops_per_second: float | None = None
    floor_seconds: float | None = None
    percent_of_floor: float | None = None
    weights_bytes: int | None = None
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    error: float | None = None
    eager_error: float | None = None
    allowed_error: float | None = None
    checked: str = ""
    backends: str = ""
    machine: str = ""
    versions: str = ""
    git: str = ""
    command: str = ""


#: What rows of one task share.
TASK_FIELDS = ("suite", "problem", "pass_name", "dtype")


def of_task(row: Row, fields: dict[str, Any]) -> bool:
    """Whether a row is of the task with these fields."""
    return all(getattr(row, name) == fields[name] for name in TASK_FIELDS)


def key(row: Row) -> tuple[str, ...]:
    """What two runs must share for their rows to be compared."""
    return row.suite, row.problem, row.pass_name, row.dtype, row.device, row.implementation


def write(folder: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Both files, each whole or not at all: what is there after a kill is what was measured before it."""
    records = [_plain(dataclasses.asdict(row)) for row in rows]
    with replacing(folder / JSON_NAME) as part:
        part.write_text(json.dumps({**_plain(facts), "rows": records}, indent=1, allow_nan=False) + "\n")
    with replacing(folder / CSV_NAME) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(records)


def read(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a results.json, or of the folder that holds one, and the facts beside them.

    Raises:
        InputError: there is none, or it is not a file of rows.
    """
    file = path / JSON_NAME if path.is_dir() else path
    try:
        content = json.loads(file.read_text())
        names = {field.name for field in dataclasses.fields(Row)}
        rows = [Row(**{name: value for name, value in r.items() if name in names}) for r in content.pop("rows")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} holds no results of mednext bench: {first_line(error)}.") from error
    return rows, content


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
