"""The rows of a run as one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from mednext.atomic_file import replacing
from mednext.bench.rows import OK, Row
from mednext.bench.table import COLUMNS, TEXT_COLUMNS, cells, speed_ups

__all__ = ["NOTES", "write_report"]

NOTES = (
    "Before a row was timed its result was compared with float64: at most twice the error of PyTorch's own code at "
    "that dtype. A row without a time says why.",
    "Times are medians; all implementations of a problem were called in turn, on cold caches. Speed-ups are over "
    "eager PyTorch in contiguous tensors, in the same run.",
    "GB/s and TFLOP/s are of bytes and operations counted from the problem, whoever runs it; the floor is the time "
    "that they take at this device's own measured ceilings. Above 100 % the data stayed in a cache.",
    "Peak is the most memory during the pass, above weights, optimizer and input; saved is what autograd keeps "
    "between forward and backward.",
)
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse; font-size: 12px } th, td { padding: 2px 8px; border-bottom: 1px solid #ddd }
th { text-align: left; position: sticky; top: 0; background: #fff } .n { text-align: right; white-space: nowrap }
tr.new td { border-top: 2px solid #999 } tr.failed { color: #b00020 } img { max-width: 100% } code { font-size: 12px }
"""


def write_report(path: Path, rows: Sequence[Row], facts: dict[str, Any], plots: Sequence[Path]) -> None:
    """Facts, plots and the table."""
    first = rows[0]
    told = {
        "machine": first.machine,
        "versions": first.versions,
        "sources": first.git,
        "command": first.command,
        "finished": "yes" if facts.get("finished") else "no: it was stopped",
    }
    for dtype, ceiling in facts.get("ceilings", {}).items():
        told[f"ceilings, {dtype}"] = (
            f"copy {ceiling['bytes_per_second'] / 1e9:.3g} GB/s, "
            f"matrix product {ceiling['operations_per_second'] / 1e12:.3g} TFLOP/s"
        )
    parts = [f"<h1>mednext bench {escape(first.suite)}</h1><dl>"]
    parts += [f"<dt><b>{escape(name)}</b></dt><dd>{escape(value)}</dd>" for name, value in told.items()]
    parts.append("</dl>")
    parts += [f"<p>{escape(note)}</p>" for note in NOTES]
    for plot in plots:
        image = base64.b64encode(plot.read_bytes()).decode()
        parts.append(f'<p><img alt="{escape(plot.stem)}" src="data:image/png;base64,{image}"></p>')
    parts += ["<table><tr>", *(f"<th>{escape(name)}</th>" for name in COLUMNS), "</tr>", *_table(rows), "</table>"]
    text = "\n".join(parts)
    page = f'<!doctype html><meta charset="utf-8"><title>mednext bench</title><style>{STYLE}</style>{text}\n'
    with replacing(path) as part:
        part.write_text(page)


def _table(rows: Sequence[Row]) -> list[str]:
    ups = speed_ups(rows)
    lines, previous = [], None
    for row in rows:
        task = (row.problem, row.pass_name, row.dtype)
        classes = " ".join(c for c, on in (("new", task != previous), ("failed", row.status != OK)) if on)
        previous = task
        texts = zip(COLUMNS, cells(row, ups.get(id(row))), strict=True)
        columns = (_cell(name, text) for name, text in texts)
        lines.append(f'<tr class="{classes}">{"".join(columns)}</tr>')
    return lines


def _cell(name: str, text: str) -> str:
    return f"<td{'' if name in TEXT_COLUMNS else ' class=n'}>{escape(text)}</td>"
