"""Plots of rows: time and memory against the kernel size, speed-ups, and the roofline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from mednext.atomic_file import replacing
from mednext.bench.rows import OK, Row
from mednext.bench.table import EAGER, speed_ups

__all__ = ["draw_all", "draw_roofline", "draw_scaling", "draw_speed_ups"]

#: Told apart by colour-blind readers, and by their markers in print.
COLORS = ("#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#000000", "#999999")
MARKERS = "osD^vPX*"


def draw_all(folder: Path, rows: Sequence[Row], ceilings: dict[str, Any]) -> list[Path]:
    """Every plot that these rows have enough for; returns the files."""
    drawn = []
    if any(row.variant for row in rows) and len({row.kernel_size for row in rows}) > 1:
        drawn.append(draw_scaling(folder / "scaling.png", rows))
    if any(row.implementation != EAGER for row in rows if id(row) in speed_ups(rows)):
        drawn.append(draw_speed_ups(folder / "speed_ups.png", rows))
    if ceilings and any(row.seconds and row.counted_operations for row in rows):
        drawn.append(draw_roofline(folder / "roofline.png", rows, ceilings))
    return drawn


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    names = list(dict.fromkeys(row.implementation for row in rows))
    return {
        name: {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]} for i, name in enumerate(names)
    }


def draw_scaling(path: Path, rows: Sequence[Row]) -> Path:
    """A column a variant; a line of panels for the time of each pass, for peak and for saved memory."""
    rows = [row for row in rows if row.variant]
    variants = list(dict.fromkeys(str(row.variant) for row in rows))
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    lines: list[tuple[str, Callable[[Row], float | None], str]] = []
    for name in dict.fromkeys(row.pass_name for row in rows):
        lines.append((f"{name}\ntime (ms)", lambda r: r.seconds and 1e3 * r.seconds, name))
    last = list(dict.fromkeys(row.pass_name for row in rows))[-1]
    lines.append(
        (f"{last}\npeak memory above\nthe weights (GiB)", lambda r: r.peak_bytes and r.peak_bytes / 2**30, last)
    )
    lines.append((f"{last}\nsaved for backward\n(GiB)", lambda r: r.saved_bytes and r.saved_bytes / 2**30, last))
    lines = [line for line in lines if any(line[1](r) for r in rows if r.pass_name == line[2])]
    styles = _styles(rows)
    across = len(variants) > 1  # one variant alone has its panels side by side
    shape = (len(lines), len(variants)) if across else (1, len(lines))
    size = (3.4 * shape[1] + 1.2, 2.6 * shape[0] + 1.6)
    figure, grid = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    for column, variant in enumerate(variants):
        for line, (label, value, pass_name) in enumerate(lines):
            ax = grid[line, column] if across else grid[0, line]
            mine = [r for r in rows if r.variant == variant and r.pass_name == pass_name and r.dtype == dtypes[0]]
            _scaling_panel(ax, mine, value, styles)
            ax.set_ylabel(label if column == 0 else "")
            ax.set_xlabel("kernel size" if line == len(lines) - 1 or not across else "")
            ax.set_title(f"MedNeXt-{variant}" if line == 0 else "")
    handles = {name: plt.Line2D([], [], **style) for name, style in styles.items()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)))
    sizes = ", ".join(dict.fromkeys(row.problem.split()[-1] for row in rows))
    figure.suptitle(
        f"{sizes} voxels, {dtypes[0]}, {rows[0].machine}\nmedian, bars: 20th to 80th percentile", fontsize=10
    )
    return _save(figure, path)


def _scaling_panel(ax: Axes, rows: list[Row], value: Callable[[Row], float | None], styles: dict[str, Any]) -> None:
    kernels = sorted({row.kernel_size for row in rows if row.kernel_size})
    missing = []
    for name, style in styles.items():
        points = [(row, value(row)) for row in rows if row.implementation == name]
        found = [(row, v) for row, v in points if v]
        if found:
            ax.plot([row.kernel_size or 0 for row, _ in found], [v for _, v in found], **style)
        if found and value(found[0][0]) == (found[0][0].seconds or 0) * 1e3:
            for row, middle in found:
                low, high = ((p or row.seconds or 0) * 1e3 for p in (row.seconds_p20, row.seconds_p80))
                ax.errorbar(
                    row.kernel_size or 0, middle, [[middle - low], [high - middle]], color=style["color"], capsize=3
                )
        missing += [f"{row.status}: {name} k{row.kernel_size}" for row, v in points if not v and row.status != OK]
    if missing:
        ax.text(0.02, 0.98, "\n".join(missing), transform=ax.transAxes, va="top", fontsize=7)
    ax.set_xticks(kernels, [f"{k}$^3$" for k in kernels])
    if kernels:
        ax.set_xlim(kernels[0] - 0.5, kernels[-1] + 0.5)
    ax.set_ylim(0, 1.06 * ax.get_ylim()[1])
    ax.grid(alpha=0.3)


def draw_speed_ups(path: Path, rows: Sequence[Row]) -> Path:
    """A bar a task: ours over eager PyTorch; the other implementations as marks beside it."""
    ups = speed_ups(rows)
    timed = [row for row in rows if id(row) in ups and row.implementation != EAGER]
    ours = next((row.implementation for row in timed if row.implementation.startswith("mednext")), None)
    tasks = list(dict.fromkeys((row.problem, row.pass_name, row.dtype) for row in timed))
    styles = _styles(rows)
    figure, ax = plt.subplots(figsize=(10, 0.26 * len(tasks) + 1.8), layout="constrained")
    named = set()
    for row in timed:
        position = tasks.index((row.problem, row.pass_name, row.dtype))
        style = styles[row.implementation]
        label = None if row.implementation in named else row.implementation
        named.add(row.implementation)
        if row.implementation == ours:
            ax.barh(position, ups[id(row)] - 1, left=1, height=0.7, color=style["color"], alpha=0.75, label=label)
            beside = ax.get_yaxis_transform()
            ax.text(1.01, position, f"{ups[id(row)]:.2f}x", va="center", fontsize=7, transform=beside)
        else:
            ax.plot(ups[id(row)], position, linestyle="", markersize=5, label=label, **style)
    ax.axvline(1, color="0.3", linewidth=1)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    ax.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}x" if f"{x:e}"[0] in "25" else ""))
    ax.margins(x=0.12)
    ax.set_yticks(range(len(tasks)), [f"{problem}, {name}, {dtype}" for problem, name, dtype in tasks], fontsize=7)
    ax.set_ylim(len(tasks) - 0.4, -0.6)
    ax.set_xlabel("times faster than eager PyTorch in contiguous tensors (left of 1x: slower)")
    ax.grid(axis="x", which="both", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, title=rows[0].machine, title_fontsize=8)
    return _save(figure, path)


def draw_roofline(path: Path, rows: Sequence[Row], ceilings: dict[str, Any]) -> Path:
    """Counted operations a second against counted operations a byte, under the measured ceilings."""
    timed = [row for row in rows if row.seconds and row.counted_bytes and row.counted_operations]
    styles = _styles(rows)
    figure, ax = plt.subplots(figsize=(8, 5.5), layout="constrained")
    intensities = [(row.counted_operations or 0) / (row.counted_bytes or 1) for row in timed]
    low, high = min(intensities) / 2, max(intensities) * 2
    for i, (dtype, ceiling) in enumerate(ceilings.items()):
        copied, multiplied = ceiling["bytes_per_second"], ceiling["operations_per_second"]
        high = max(high, 2 * multiplied / copied)
        xs = [low, multiplied / copied, high]
        label = f"{dtype}: copy {copied / 1e9:.3g} GB/s, matrix product {multiplied / 1e12:.3g} TFLOP/s"
        ax.plot(
            xs,
            [min(x * copied, multiplied) / 1e12 for x in xs],
            color="0.3",
            linestyle=("-", "--", ":")[i % 3],
            label=label,
        )
    for name, style in styles.items():
        mine = [(x, row) for x, row in zip(intensities, timed, strict=True) if row.implementation == name]
        ys = [row.teraflops_per_second or 0.0 for _, row in mine]
        ax.plot([x for x, _ in mine], ys, linestyle="", alpha=0.7, markersize=5, label=name, **style)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("operations a byte, both counted from the problem")
    ax.set_ylabel("TFLOP/s")
    ax.grid(which="both", alpha=0.2)
    ax.legend(fontsize=8)
    ax.set_title(rows[0].machine, fontsize=10)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    with replacing(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)
    return path
