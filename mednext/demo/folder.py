"""The run's folder: what is in it, whether a run may begin there, and the settings that a resumed run takes up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mednext.atomic_file import PREFIX
from mednext.demo import settings as choices
from mednext.demo.settings import Settings
from mednext.errors import InputError

NETWORK = re.compile(r"k\d+(-upkern|-scratch)?(\.state)?\.pt")  # a network's files, whatever the kernel sizes


class Folder:
    """Names of everything that the demo writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.slices = path / "slices.png"
        self.curves = path / "curves.png"
        self.segmentation = path / "segmentation.nii.gz"
        self.report = path / "report.json"

    def state(self, name: str) -> Path:
        """The last finished epoch of a network's training."""
        return self.path / f"{name}.state.pt"

    def model(self, name: str) -> Path:
        """A trained network, for `mednext segment`."""
        return self.path / f"{name}.pt"

    def run(self) -> list[Path]:
        """What is there of a run, whatever its settings, which come last."""
        present = sorted(file for file in self.path.glob("*") if self._is_of_a_run(file.name))
        return sorted(present, key=lambda file: file == self.settings)

    def _is_of_a_run(self, name: str) -> bool:
        files = (self.settings, self.slices, self.curves, self.segmentation, self.report)
        return NETWORK.fullmatch(name) is not None or name in [file.name for file in files]

    def begin(self, settings: Settings) -> None:
        """Removes what is there of another run, and keeps the settings of this one.

        Raises:
            InputError: the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in self.run():
                file.unlink()
            self.tidy()
            choices.write(settings, self.settings)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written to ({error.strerror}).") from error

    def tidy(self) -> None:
        """Removes the parts of files that a killed run was about to write."""
        for part in self.path.glob(f"{PREFIX}*"):
            if self._is_of_a_run(part.name.removeprefix(PREFIX).partition("-")[2]):
                part.unlink(missing_ok=True)


def network_names(settings: Settings) -> list[str]:
    """The three networks, in the order of their training: `k3`, `k5-upkern`, `k5-scratch`."""
    large = settings.large_kernel_size
    return [f"k{settings.kernel_size}", f"k{large}-upkern", f"k{large}-scratch"]


def plan(path: Path, device: str, chosen: dict[str, Any], resume: bool, overwrite: bool) -> tuple[Folder, Settings]:
    """The folder, and the run's settings: new ones, or with `resume` those that the run began with. Writes nothing.

    Raises:
        InputError: the folder holds a run and neither `resume` nor `overwrite` is given, both are, there is no run to
            resume, or a resumed one is asked to change its settings.
    """
    if resume and overwrite:
        raise InputError("--resume goes on with a run and --overwrite throws it away; pass one of them.")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; a folder was expected for --output.")
    folder = Folder(path)
    if resume:
        return folder, _resumed(folder, chosen)
    settings = choices.choose(device, chosen)
    present = folder.run()
    # Settings of ours alone are a run without a finished epoch; of somebody else's, they are not ours to replace.
    if present and not overwrite and (present != [folder.settings] or not choices.are_ours(folder.settings)):
        raise InputError(
            f"{path} holds a run ({present[0].name}); pass --resume to go on with it or --overwrite to replace it."
        )
    return folder, settings


def _resumed(folder: Folder, chosen: dict[str, Any]) -> Settings:
    if not folder.settings.exists():
        if folder.run():
            raise InputError(
                f"{folder.path} holds a run without {folder.settings.name}, so it cannot go on; start anew with "
                "--overwrite."
            )
        raise InputError(f"there is no run in {folder.path} to go on with; start one without --resume.")
    kept = choices.read(folder.settings)
    changed = [name for name, value in chosen.items() if getattr(kept, name) != value]
    if changed:
        name = changed[0]
        raise InputError(
            f"this run began with --{name.replace('_', '-')} {getattr(kept, name)}, not {chosen[name]}; "
            "resume without it, or start anew with --overwrite."
        )
    return kept
