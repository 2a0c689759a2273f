"""The run's folder: what is in it, whether a run may begin there, and the settings that a resumed run takes up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mednext.demo import settings as choices
from mednext.demo.settings import Settings
from mednext.errors import InputError


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

    def everything(self, names: list[str]) -> list[Path]:
        files = [self.settings, self.slices, self.curves, self.segmentation, self.report]
        return files + [file for name in names for file in (self.state(name), self.model(name))]


def network_names(settings: Settings) -> list[str]:
    """The three networks, in the order of their training: `k3`, `k5-upkern`, `k5-scratch`."""
    large = settings.large_kernel_size
    return [f"k{settings.kernel_size}", f"k{large}-upkern", f"k{large}-scratch"]


def begin(path: Path, device: str, chosen: dict[str, Any], resume: bool, overwrite: bool) -> tuple[Folder, Settings]:
    """The folder, ready for a run, and the run's settings: new ones, or with `resume` those that the run began with.

    Raises:
        InputError: the folder holds a run and neither `resume` nor `overwrite` is given, both are, it cannot be
            written to, or a resumed run is asked to change its settings.
    """
    if resume and overwrite:
        raise InputError("--resume goes on with a run and --overwrite throws it away; pass one of them.")
    folder = Folder(path)
    if resume and folder.settings.exists():
        kept = choices.read(folder.settings)
        changed = [name for name, value in chosen.items() if getattr(kept, name) != value]
        if changed:
            name = changed[0]
            raise InputError(
                f"this run began with --{name.replace('_', '-')} {getattr(kept, name)}, not {chosen[name]}; "
                "resume without it, or start anew with --overwrite."
            )
        return folder, kept
    settings = choices.choose(device, chosen)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; a folder was expected for --output.")
    present = [file for file in folder.everything(network_names(settings)) if file.exists()]
    finished = [file for file in present if file != folder.settings]  # settings alone: no epoch was finished
    if finished and not overwrite:
        raise InputError(
            f"{path} holds a run ({finished[0].name}); pass --resume to go on with it or --overwrite to replace it."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        for file in present:
            file.unlink()
        choices.write(settings, folder.settings)
    except OSError as error:
        raise InputError(f"{path} cannot be written to ({error.strerror}).") from error
    return folder, settings
