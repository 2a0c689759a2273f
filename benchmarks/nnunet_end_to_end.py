"""Trains MedNeXt with nnU-Net's own programs on a real scan, from the raw files to the Dice of a test set.

    python benchmarks/nnunet_end_to_end.py --folder /tmp/nnunet --output benchmarks/results/nnunet-end-to-end.json

The scan is the MNI152 template that nilearn carries, cut into a small data set: blocks of the left hemisphere to train
on, blocks of the right one to be judged on. The k3 network is killed after its first epochs and continued with `--c`;
the k5 network starts from its weights (UpKern). Nothing is downloaded, and nnU-Net is not patched. Every program's
output is kept in `logs` of the folder; the result names the programs with their seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mednext.demo.blocks import cut
from mednext.demo.settings import CLASSES
from mednext.nnunet.planner import PLANS

IN_PROCESS = {"nnUNet_n_proc_DA": "0"}  # augmentation in the training's own process, for small machines
KILLED = "checkpoint_killed.pth"
NUMBER, NAME = 901, "Dataset901_MNI152"
TRAINER = "nnUNetTrainer_MedNeXt_{variant}_kernel{kernel}"


@dataclass
class Run:
    """One data set, trained and judged; ``seconds`` of each program as it went."""

    folder: Path
    arguments: argparse.Namespace
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.logs = self.folder / "logs"
        self.raw, self.preprocessed, self.results = (self.folder / name for name in ("raw", "preprocessed", "results"))
        for path in (self.logs, self.raw, self.preprocessed, self.results):
            path.mkdir(parents=True)
        chosen = self.arguments
        self.environment = os.environ | {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "MEDNEXT_NNUNET_EPOCHS": str(chosen.epochs),
            "MEDNEXT_NNUNET_ITERATIONS": str(chosen.iterations),
            "MEDNEXT_NNUNET_VALIDATION_ITERATIONS": str(chosen.validation_iterations),
            "MEDNEXT_NNUNET_SAVE_EVERY": "1",
            "OMP_WAIT_POLICY": "passive",
        }

    def start(self, step: str, *command: Any, **options: str) -> subprocess.Popen[bytes]:
        """A program of this environment, its output in a log named for the step."""
        path = Path(sys.executable).with_name(str(command[0]))
        with open(self.logs / f"{step}.txt", "wb") as log:
            return subprocess.Popen(
                [str(path), *map(str, command[1:])],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment | options,
                cwd=self.folder,
            )

    def run(self, step: str, *command: Any, **options: str) -> str:
        """Runs a program to its end; its output, which is shown where it failed."""
        began = time.perf_counter()
        code = self.start(step, *command, **options).wait()
        self.seconds[step] = round(time.perf_counter() - began, 1)
        output = (self.logs / f"{step}.txt").read_text(errors="replace")
        print(f"{self.seconds[step]:7.1f} s  {step}", flush=True)
        if code != 0:
            sys.exit(f"{step}: {command[0]} ended with {code}:\n{output[-4000:]}")
        return output

    def trainer(self, kernel: int) -> str:
        return TRAINER.format(variant=self.arguments.variant, kernel=kernel)

    def fold(self, kernel: int) -> Path:
        return self.results / NAME / f"{self.trainer(kernel)}__{PLANS}__3d_fullres" / "fold_0"

    def train_command(self, kernel: int, *more: str) -> list[str]:
        where = [str(NUMBER), "3d_fullres", "0"]
        return ["nnUNetv2_train", *where, "-tr", self.trainer(kernel), "-p", PLANS, "-device", "cpu", *more]


def train_with_a_kill(run: Run) -> dict[str, int]:
    """Trains k3, kills the program after its first saved epoch, and continues to the end."""
    began = time.perf_counter()
    process = run.start("train k3, killed", *run.train_command(3), **IN_PROCESS)
    latest = run.fold(3) / "checkpoint_latest.pth"
    try:
        while not saved(latest):
            if process.poll() is not None:
                log = (run.logs / "train k3, killed.txt").read_text(errors="replace")
                sys.exit(f"nnUNetv2_train ended with {process.returncode} before it could be killed:\n{log[-4000:]}")
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    run.seconds["train k3, killed"] = round(time.perf_counter() - began, 1)
    print(f"{run.seconds['train k3, killed']:7.1f} s  train k3, killed", flush=True)
    shutil.copy(latest, latest.with_name(KILLED))
    done = torch.load(latest, weights_only=False, map_location="cpu")["current_epoch"]
    output = run.run("train k3, continued", *run.train_command(3, "--c"), **IN_PROCESS)
    first = next(int(line.split()[-1]) for line in output.splitlines() if "Epoch " in line and "time" not in line)
    return {"epochs before the kill": done, "first epoch after it": first}


def saved(path: Path) -> bool:
    """Whether a whole checkpoint is there: its size no longer changes."""
    if not path.is_file():
        return False
    size = path.stat().st_size
    time.sleep(0.5)
    return size > 0 and path.stat().st_size == size


def judge(run: Run, name: str, kernel: int, checkpoint: str = "checkpoint_final.pth") -> dict[str, float]:
    """Predicts the test blocks and returns each class's Dice, as nnU-Net's programs do."""
    raw, predicted = run.raw / NAME, run.folder / f"predicted, {name}"
    where = ["-d", NUMBER, "-c", "3d_fullres", "-f", 0, "-tr", run.trainer(kernel), "-p", PLANS, "-device", "cpu"]
    few = ["-npp", 1, "-nps", 1, "--disable_tta", "-chk", checkpoint]
    run.run(f"predict, {name}", "nnUNetv2_predict", "-i", raw / "imagesTs", "-o", predicted, *where, *few)
    files = ["-djfile", raw / "dataset.json", "-pfile", predicted / "plans.json", "-o", predicted / "summary.json"]
    run.run(f"evaluate, {name}", "nnUNetv2_evaluate_folder", raw / "labelsTs", predicted, *files, "-np", 1)
    summary = json.loads((predicted / "summary.json").read_text())
    return {CLASSES[int(label)]: values["Dice"] for label, values in summary["mean"].items()}


def history(run: Run, kernel: int) -> dict[str, list[float]]:
    """The curves that nnU-Net kept in the final checkpoint."""
    checkpoint = torch.load(run.fold(kernel) / "checkpoint_final.pth", weights_only=False, map_location="cpu")
    curves = checkpoint["logging"]
    return {
        "training loss": [round(float(value), 4) for value in curves["train_losses"]],
        "mean pseudo Dice": [round(float(value), 4) for value in curves["mean_fg_dice"]],
        "learning rate": [float(value) for value in curves["lrs"]],
    }


def main() -> None:
    arguments = parse()
    run = Run(arguments.folder.resolve(), arguments)
    blocks = (arguments.block, arguments.cases, arguments.test_cases, arguments.resolution, arguments.step)
    frequency = cut(run.raw / NAME, *blocks)
    line = run.run("trainers' path", "mednext", "nnunet", "path").strip()
    name, value = line.removeprefix("export ").split("=", 1)
    run.environment[name] = value
    d = ["-d", NUMBER]
    few = ["-np", 1, "-c", "3d_fullres"]
    check = ["-npfp", 1, "--no_pp" if arguments.short else "--verify_dataset_integrity"]
    run.run("plan and preprocess", "nnUNetv2_plan_and_preprocess", *d, *check, *few)
    patch = ["--patch-size", *[arguments.patch] * 3]
    run.run("plan as published", "mednext", "nnunet", "plan", NUMBER, "--spacing", arguments.resolution, *patch)
    run.run("preprocess again", "nnUNetv2_preprocess", *d, "-plans_name", PLANS, *few)
    resumed = train_with_a_kill(run)
    pretrained = ["-pretrained_weights", str(run.fold(3) / "checkpoint_final.pth")]
    output = run.run("train k5 from k3", *run.train_command(5, *pretrained), **IN_PROCESS)
    report = next(line.split("MedNeXt: ")[1].strip() for line in output.splitlines() if "UpKern widened" in line)
    tissue = [frequency[name] for name in CLASSES[1:]]
    networks: dict[str, tuple[Any, ...]] = {"k5": (5,)}
    if not arguments.short:
        networks = {"k3 when it was killed": (3, KILLED), "k3": (3,)} | networks
    result = {
        "what": "MedNeXt trained with nnU-Net's programs on blocks of the MNI152 scan",
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": os.cpu_count()},
        "versions": versions(),
        "options": {key: str(value) for key, value in vars(arguments).items() if key not in ("folder", "output")},
        "resumed": resumed,
        "UpKern": report,
        "k3": history(run, 3),
        "k5": history(run, 5),
        "test Dice": {name: judge(run, name, *network) for name, network in networks.items()},
        "mean Dice of the best constant segmentation": max(2 * share / (1 + share) for share in tissue) / len(tissue),
        "seconds": run.seconds,
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("resumed", "UpKern", "test Dice")}, indent=2))


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("mednext-ops", "nnunetv2", "torch", "numpy")}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for all that nnU-Net writes")
    parser.add_argument("--output", type=Path, required=True, help="the result, JSON")
    parser.add_argument("--short", action="store_true", help="the least that shows that everything works")
    parser.add_argument("--variant", choices="SBML", default="S")
    parser.add_argument("--epochs", type=int, default=6, help="of each of the two networks")
    parser.add_argument("--iterations", type=int, default=15, help="an epoch")
    parser.add_argument("--validation-iterations", type=int, default=2, help="an epoch")
    parser.add_argument("--resolution", type=int, default=2, help="mm a voxel")
    parser.add_argument("--block", type=int, default=40, help="voxels an axis of a case")
    parser.add_argument("--step", type=int, default=20, help="voxels from one block to the next")
    parser.add_argument("--patch", type=int, default=32, help="voxels an axis of a training patch")
    parser.add_argument("--cases", type=int, default=6, help="training blocks")
    parser.add_argument("--test-cases", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.short:
        vars(arguments).update(epochs=2, iterations=6, validation_iterations=1, cases=5, test_cases=1)
        vars(arguments).update(resolution=1, block=32, step=32, patch=32)
    if arguments.folder.exists() and any(arguments.folder.iterdir()):
        parser.error(f"--folder {arguments.folder} is not empty")
    if arguments.epochs < 2:
        parser.error("--epochs must be 2 or more: the first training is killed and continued")
    if arguments.cases < 5:
        parser.error("--cases must be 5 or more: nnU-Net splits them into 5 folds")
    return arguments


if __name__ == "__main__":
    main()
