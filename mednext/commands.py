"""The commands `mednext demo` and `mednext segment`: options in, one call, errors as one sentence and exit code 2."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mednext.errors import InputError, first_line

app = typer.Typer(name="mednext", no_args_is_help=True, pretty_exceptions_enable=False)
errors = Console(stderr=True)

Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda or cuda:1")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there")]


def show_version(wanted: bool) -> None:
    if wanted:
        try:
            version = importlib.metadata.version("mednext-ops")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        typer.echo(f"mednext-ops {version}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def mednext(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """MedNeXt on fused operators."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="folder for all that is written")] = Path("demo-output"),
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="go on after the last finished epoch")] = False,
    overwrite: Overwrite = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="same seed and threads, same numbers [0]")
    ] = None,
    kernel_size: Annotated[int | None, typer.Option(help="of the first network [3]")] = None,
    large_kernel_size: Annotated[int | None, typer.Option(help="that UpKern widens it to [5]")] = None,
    epochs: Annotated[int | None, typer.Option(help="of the first network")] = None,
    large_epochs: Annotated[int | None, typer.Option(help="of each large-kernel network")] = None,
    steps: Annotated[int | None, typer.Option(help="training steps an epoch")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of AdamW at the first step")] = None,
    channels: Annotated[int | None, typer.Option(help="of the finest level")] = None,
    blocks: Annotated[int | None, typer.Option(help="in each of the nine stages")] = None,
    patch: Annotated[int | None, typer.Option(help="edge of a training patch, voxels")] = None,
    batch: Annotated[int | None, typer.Option(help="patches a step")] = None,
    window: Annotated[int | None, typer.Option(help="edge of the sliding window, voxels")] = None,
    resolution: Annotated[int | None, typer.Option(help="of the scan, mm [1]")] = None,
    timed_steps: Annotated[int | None, typer.Option(help="steps to time against plain PyTorch")] = None,
) -> None:
    """Train small MedNeXts on a real brain scan, without a download, and report what was measured.

    Trains a k3 network on one hemisphere, widens it to k5 with UpKern and trains on beside a k5 from scratch, segments
    the whole scan, and compares with plain PyTorch. Defaults suit the device: minutes on two CPU cores, more on a GPU.
    """
    options: dict[str, Any] = dict(locals())
    for name in ("output", "device", "resume", "overwrite"):
        del options[name]
    chosen = {name: value for name, value in options.items() if value is not None}
    with user_errors("demo"):
        from mednext.demo.folder import plan
        from mednext.demo.pipeline import run
        from mednext.segment import choose_device

        chosen_device = str(choose_device(device))
        if device != "auto":
            chosen["device"] = chosen_device
        folder, settings = plan(output, chosen_device, chosen, resume, overwrite)
        choose_device(settings.device)
        console = Console()
        try:
            run(folder, settings, console, resume)
        except KeyboardInterrupt:
            errors.print(f"mednext demo: stopped; `mednext demo --resume --output {output}` goes on.", soft_wrap=True)
            raise typer.Exit(130) from None
        names = ", ".join(file.name for file in (folder.slices, folder.curves, folder.segmentation, folder.report))
        console.print(f"in {output}: {names}, and the trained networks (*.pt) for `mednext segment`", soft_wrap=True)


@app.command()
def segment(
    model: Annotated[Path, typer.Argument(help="a network that `mednext demo` trained (k5-upkern.pt)")],
    scan: Annotated[Path, typer.Argument(help="a NIfTI file: any size, spacing and orientation")],
    output: Annotated[Path, typer.Argument(help="labels on the scan's grid: .nii or .nii.gz")],
    probabilities: Annotated[Path | None, typer.Option(help="also write each class's probability here (4D)")] = None,
    device: Device = "auto",
    overlap: Annotated[float, typer.Option(help="of neighbouring windows, a fraction")] = 0.5,
    patch: Annotated[int | None, typer.Option(help="edge of the window; the model's by default")] = None,
    volume: Annotated[int | None, typer.Option(help="which volume of a 4D scan, from 0")] = None,
    nan_to_zero: Annotated[bool, typer.Option("--nan-to-zero", help="read NaN and infinite voxels as 0")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Segment a scan with a trained network."""
    with user_errors("segment"):
        from mednext.segment import Request
        from mednext.segment import segment as run

        window = None if patch is None else (patch, patch, patch)
        request = Request(model, scan, output, probabilities, device, overlap, window, volume, nan_to_zero, overwrite)
        console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("segment", total=None, visible=False)

            def advance(done: int, windows: int) -> None:
                progress.update(task, completed=done, total=windows, visible=True)

            counts = run(request, advance)
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        console.print(f"{output} written; voxels: {found}", soft_wrap=True)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Measure operators, blocks and networks beside other implementations; compare two runs (bench --help)."""
    from mednext.bench.command import main

    raise typer.Exit(main(context.args))


@contextmanager
def user_errors(command: str) -> Iterator[None]:
    """What the user can mend is one sentence on stderr and exit code 2; so is a full disk, or one that fails."""
    try:
        yield
    except (InputError, OSError) as error:
        sentence = str(error) if isinstance(error, InputError) else f"{first_line(error)}."
        errors.print(f"mednext {command}: {sentence}", style="red", soft_wrap=True, markup=False, highlight=False)
        raise typer.Exit(2) from error
