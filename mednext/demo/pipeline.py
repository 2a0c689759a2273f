"""The demo from start to end: train, widen, train on, segment, score, compare, report."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from mednext import upkern
from mednext.backends_used import BackendsUsed
from mednext.demo import brain as data
from mednext.demo import figures, networks, report
from mednext.demo.brain import Brain
from mednext.demo.comparison import Comparison, compare
from mednext.demo.evaluation import HeldOutPatches, dice_by_class
from mednext.demo.folder import Folder, network_names
from mednext.demo.patches import Patches
from mednext.demo.settings import CLASSES, Settings
from mednext.demo.training import Trainer
from mednext.grid import normalise
from mednext.model_file import ModelCard, save_model
from mednext.scan import Scan, write_scan
from mednext.segment import predict


def run(folder: Folder, settings: Settings, console: Console, resume: bool = False) -> dict[str, Any]:
    """Runs the demo in `folder`, with `resume` what is not done yet of it; returns what report.json holds."""
    start = time.perf_counter()
    brain = data.load(settings.resolution)
    console.print(f"T1 scan {'x'.join(map(str, brain.scan.shape))} at {settings.resolution} mm, from nilearn's package")
    with BackendsUsed() as backends, _progress(console) as progress:
        demo = Demo(folder, settings, brain, progress)
        if resume:
            folder.tidy()
        else:
            folder.begin(settings)
        trained = demo.train()
        results, segmentation = demo.segment(trained)
        comparisons = demo.compare(trained)
    trained_on = f"trained on the left hemisphere behind y = {data.FRONT:.0f} mm; the right one is held out"
    best = network_names(settings)[1]
    figures.draw_slices(folder.slices, brain, segmentation, f"{best} MedNeXt, {trained_on}")
    curves = {name: trainer.curves for name, trainer in trained.items()}
    figures.draw_curves(folder.curves, curves, settings.steps, f"MedNeXt {trained_on}")
    write_scan(folder.segmentation, segmentation, brain.image)
    seconds = time.perf_counter() - start + sum(trainer.seconds_before for trainer in trained.values())
    content = {
        "networks": results,
        "comparison": {name: comparison.as_dict() for name, comparison in comparisons.items()},
        "backends_used": backends.names(),
        "curves": {name: vars(run) for name, run in curves.items()},
        "seconds": seconds,
        "settings": asdict(settings),
        "machine": report.machine(settings),
        "notes": report.NOTES,
    }
    report.write(folder.report, content)
    report.show(console, results, comparisons, backends.names())
    return content


class Demo:
    """The stages, and what they share: the data, the settings, the folder and the progress bars."""

    def __init__(self, folder: Folder, settings: Settings, brain: Brain, progress: Progress) -> None:
        self.folder, self.settings, self.brain, self.progress = folder, settings, brain, progress
        self.volume, _ = normalise(torch.from_numpy(brain.scan)[None])
        self.patches = Patches(self.volume, brain, settings.patch, settings.batch, settings.seed)
        self.held_out = HeldOutPatches(self.volume, brain, settings.patch)
        small, upkerned, scratch = network_names(settings)
        self.kernels = {small: settings.kernel_size}
        self.kernels |= dict.fromkeys((upkerned, scratch), settings.large_kernel_size)

    def card(self, name: str) -> ModelCard:
        return ModelCard(
            network=self.settings.network(self.kernels[name]),
            labels=list(CLASSES),
            spacing=[float(self.settings.resolution)] * 3,
            patch_size=[self.settings.window] * 3,
            description=f"{name}: skull-stripped T1, trained by `mednext demo` on one hemisphere of MNI152",
        )

    def train(self) -> dict[str, Trainer]:
        """All three networks, trained; finished epochs are taken from the folder."""
        trained: dict[str, Trainer] = {}
        small, upkerned, _ = self.kernels
        for name, kernel_size in self.kernels.items():
            network = networks.build(self.settings.network(kernel_size), self.settings.seed)
            if name == upkerned:
                upkern(trained[small].network, network)
            epochs = self.settings.epochs if name == small else self.settings.large_epochs
            trainer = Trainer(name, network, self.settings, epochs, self.folder.state(name))
            trainer.resume()
            self._train(name, trainer)
            save_model(self.folder.model(name), self.card(name), network)
            self.progress.console.print(f"{name} trained: {_standing(trainer)}", soft_wrap=True)
            trained[name] = trainer
        return trained

    def _train(self, name: str, trainer: Trainer) -> None:
        steps = self.settings.steps
        done = trainer.epochs_done * steps
        task = self.progress.add_task(f"train {name}", total=trainer.epochs * steps, completed=done, note="")

        def advance() -> None:
            note = f"loss {trainer.curves.loss[-1]:.2f}"
            if trainer.curves.held_out_dice:
                note += " Dice " + " ".join(f"{dice:.2f}" for dice in trainer.curves.held_out_dice[-1])
            self.progress.update(task, advance=1, note=note)

        def epoch_ended() -> None:
            console = self.progress.console
            if not console.is_terminal:  # a log, where no bar moves
                done = f"epoch {trainer.epochs_done} of {trainer.epochs}"
                seconds = trainer.curves.epoch_seconds[-1]
                console.print(f"{name} {done}, {seconds:.1f} s: {_standing(trainer)}", soft_wrap=True)

        trainer.train(self.patches, self.held_out.score, advance, epoch_ended)

    def segment(self, trained: dict[str, Trainer]) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
        """Each network's Dice over the whole volume's sliding window, and the UpKern network's labels."""
        scan = Scan(self.brain.scan[None], self.brain.affine, self.brain.image)
        regions = {"held_out": self.brain.held_out, "held_out_front": self.brain.held_out_front}
        results, segmentations = {}, {}
        names = network_names(self.settings)
        for name, trainer in trained.items():
            task = self.progress.add_task(f"segment {name}", total=None, note="")

            def advance(done: int, windows: int, task: TaskID = task) -> None:
                self.progress.update(task, completed=done, total=windows)

            trainer.network.eval()
            start = time.perf_counter()
            probabilities = predict(trainer.network, self.card(name), scan, self.settings.overlap, advance=advance)
            labels = probabilities.argmax(0).astype(np.uint8)
            segmentations[name] = labels
            results[name] = {
                "kernel_size": self.kernels[name],
                "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
                "steps": len(trainer.curves.loss),
                "steps_before_upkern": len(trained[names[0]].curves.loss) if name == names[1] else 0,
                "dice": {region: dice_by_class(labels, self.brain.truth, mask) for region, mask in regions.items()},
                "train_step_seconds": float(np.median(trainer.curves.seconds)),
                "segment_seconds": time.perf_counter() - start,
            }
        return results, segmentations[names[1]]

    def compare(self, trained: dict[str, Trainer]) -> dict[str, Comparison]:
        """Ours against plain PyTorch, at both kernel sizes."""
        comparisons = {}
        for name in network_names(self.settings)[:2]:
            kernel_size = self.kernels[name]
            task = self.progress.add_task(f"compare k{kernel_size}", total=self.settings.timed_steps + 3, note="")

            def advance(task: TaskID = task) -> None:
                self.progress.advance(task)

            comparisons[f"k{kernel_size}"] = compare(
                trained[name].network, kernel_size, self.settings, self.patches, advance
            )
        return comparisons


def _standing(trainer: Trainer) -> str:
    scores = zip(CLASSES[1:], trainer.curves.held_out_dice[-1], strict=True)
    dice = ", ".join(f"{label} {value:.3f}" for label, value in scores)
    return f"loss {trainer.curves.loss[-1]:.3f}; Dice on held-out patches: {dice}"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
