"""The two pictures: slices of scan, truth and prediction, and the training curves."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mednext.atomic_file import replacing
from mednext.demo.brain import FRONT, Brain
from mednext.demo.settings import CLASSES
from mednext.demo.training import Curves
from mednext.grid import bounding_box

TISSUE = ("#e69f00", "#0072b2")  # grey, white matter: told apart by colour-blind readers too
WRONG = "#d55e00"
RUNS = ("#000000", "#0072b2", "#e69f00")
PLANES = ((2, "axial", 8.0), (1, "coronal", -20.0), (0, "sagittal", 30.0))  # axis, name, mm: the sagittal one held out
COLUMNS = ("T1 scan", "truth", "prediction", "wrong voxels")


def draw_slices(path: Path, brain: Brain, prediction: np.ndarray, title: str) -> None:
    """Three planes by four columns; the planes cross the held-out hemisphere."""
    rows = [_plane(brain, prediction, axis, where) for axis, _, where in PLANES]
    heights = [row[0].shape[0] / row[0].shape[1] for row in rows]
    size = (13, 3.1 * sum(heights) + 1.6)
    figure, axes = plt.subplots(3, 4, figsize=size, height_ratios=heights, layout="constrained")
    for row, (axis, name, where) in enumerate(PLANES):
        scan, truth, labels, extent = rows[row]
        for column, ax in enumerate(axes[row]):
            ax.imshow(scan, cmap="gray", extent=extent, origin="lower", vmin=0, vmax=1)
            if column in (1, 2):
                _overlay(ax, truth if column == 1 else labels, TISSUE, extent)
            if column == 3:
                _overlay(ax, (truth != labels).astype(int), (WRONG,), extent)
            _annotate(ax, axis, extent)
            if row == 0:
                ax.set_title(COLUMNS[column], fontsize=12)
        axes[row, 0].set_ylabel(f"{name}, {'xyz'[axis]} = {where:+.0f} mm\n{'zzy'[axis]} (mm)", fontsize=10)
        for ax in axes[row]:
            ax.set_xlabel(f"{'yxx'[axis]} (mm)", fontsize=9)
    handles: list[Artist] = [Patch(color=color, label=name) for name, color in zip(CLASSES[1:], TISSUE, strict=True)]
    handles.append(Patch(color=WRONG, label="prediction differs from truth"))
    handles.append(Line2D([], [], color="w", linestyle="--", label="midline"))
    handles.append(Line2D([], [], color="c", linestyle=":", label=f"training stays behind y = {FRONT:.0f} mm"))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=10, facecolor="0.35")
    plt.setp(legend.get_texts(), color="w")
    figure.suptitle(title, fontsize=13)
    _save(figure, path)


def _plane(brain: Brain, prediction: np.ndarray, axis: int, where: float) -> tuple[np.ndarray, ...]:
    index = int(np.abs(brain.millimetres(axis) - where).argmin())
    first, second = (brain.millimetres(other) for other in range(3) if other != axis)
    inside = bounding_box(torch.from_numpy(brain.scan > 0))
    margin = [slice(max(0, box.start - 4), box.stop + 10) for box in inside]
    columns, rows = (box for other, box in enumerate(margin) if other != axis)
    first, second = first[columns], second[rows]
    extent = np.array([first[0], first[-1], second[0], second[-1]])
    scan, truth, labels = (np.take(a, index, axis).T[rows, columns] for a in (brain.scan, brain.truth, prediction))
    return scan, truth, labels, extent


def _overlay(ax: Axes, labels: np.ndarray, colors: tuple[str, ...], extent: np.ndarray) -> None:
    shown = np.ma.masked_equal(labels, 0)
    ax.imshow(
        shown,
        ListedColormap(colors),
        extent=tuple(extent),
        origin="lower",
        vmin=1,
        vmax=len(colors) or 1,
        alpha=0.75,
        interpolation="nearest",
    )


def _annotate(ax: Axes, axis: int, extent: np.ndarray) -> None:
    """Which side was trained on, and where the plane lies that training stays behind."""
    ax.tick_params(labelsize=8)
    top = extent[3]
    if axis == 0:
        ax.axvline(FRONT, color="c", linestyle=":", linewidth=1)
        ax.text(extent[0] + 4, top - 4, "right: held out", color="w", fontsize=8, va="top")
        return
    ax.axvline(0, color="w", linestyle="--", linewidth=1)
    ax.text(extent[0] + 4, top - 4, "left: trained on", color="w", fontsize=8, va="top")
    ax.text(extent[1] - 4, top - 4, "right: held out", color="w", fontsize=8, va="top", ha="right")
    if axis == 2 and extent[2] < FRONT < extent[3]:
        ax.axhline(FRONT, color="c", linestyle=":", linewidth=1)


def draw_curves(path: Path, curves: dict[str, Curves], steps_an_epoch: int, title: str) -> None:
    """Loss and Dice against the step, of the three networks. Dice dots: the held-out patches, after each epoch."""
    figure, (top, *bottom) = plt.subplots(3, 1, figsize=(9, 10), sharex=True, layout="constrained")
    for color, (name, run) in zip(RUNS, curves.items(), strict=True):
        step = np.arange(1, len(run.loss) + 1)
        top.plot(step, run.loss, color=color, alpha=0.2, linewidth=0.8)
        top.plot(step, _smooth(run.loss), color=color, linewidth=1.8, label=name)
        epoch = np.arange(1, len(run.held_out_dice) + 1) * steps_an_epoch
        for label, ax in enumerate(bottom):
            ax.plot(step, _smooth([dice[label] for dice in run.dice]), color=color, alpha=0.35, linewidth=1.2)
            ax.plot(epoch, [dice[label] for dice in run.held_out_dice], "o-", color=color, markersize=4, label=name)
    top.set_ylabel("loss (Dice + cross-entropy,\nall resolutions)")
    top.set_title("training loss: each step (faint) and running mean")
    for name, ax in zip(CLASSES[1:], bottom, strict=True):
        ax.set_ylabel(f"Dice, {name}")
        ax.set_ylim(0, 1)
        ax.set_title(f"{name}: held-out patches after each epoch (dots), training patches (faint)")
    bottom[-1].set_xlabel("training step of that network")
    for ax in (top, *bottom):
        ax.grid(alpha=0.3)
        ax.legend(loc="best")
    figure.suptitle(title, fontsize=13)
    _save(figure, path)


def _smooth(values: list[float], window: int = 15) -> np.ndarray:
    """The mean of up to `window` values back; NaN (a class that a patch lacks) does not count."""
    array = np.asarray(values, dtype=float)
    means = []
    for end in range(1, len(array) + 1):
        recent = array[max(0, end - window) : end]
        recent = recent[~np.isnan(recent)]
        means.append(recent.mean() if recent.size else np.nan)
    return np.array(means)


def _save(figure: plt.Figure, path: Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)
