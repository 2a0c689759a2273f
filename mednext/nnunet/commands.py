"""The commands `mednext nnunet path` and `mednext nnunet plan`."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from mednext.commands import user_errors
from mednext.nnunet import TRAINERS

app = typer.Typer(no_args_is_help=True, help="Train MedNeXt in nnU-Net v2.")

VARIABLE = "nnUNet_extTrainer"


@app.command()
def path() -> None:
    """Print the line that lets nnU-Net find the trainers: eval "$(mednext nnunet path)"."""
    others = [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder and folder != str(TRAINERS)]
    typer.echo(f"export {VARIABLE}={shlex.quote(os.pathsep.join([str(TRAINERS), *others]))}")


@app.command()
def plan(
    dataset: Annotated[str, typer.Argument(help="nnU-Net's number or name of the data set")],
    spacing: Annotated[float, typer.Option(help="mm a voxel, on all axes")] = 1.0,
    patch_size: Annotated[tuple[int, int, int], typer.Option(help="voxels, multiples of 16")] = (128, 128, 128),
    batch_size: Annotated[int, typer.Option(help="patches a step")] = 2,
    plans_name: Annotated[str, typer.Option(help="of the file that is written")] = "nnUNetMedNeXtPlans",
) -> None:
    """Plan a data set as MedNeXt was published: 1 mm isotropic, patches of 128^3 voxels, two a step.

    Needs the fingerprint (nnUNetv2_extract_fingerprint) and is followed by nnUNetv2_preprocess -plans_name.
    """
    with user_errors("nnunet plan"):
        from mednext.nnunet.planner import plan as run

        run(dataset, spacing, list(patch_size), batch_size, plans_name)
        typer.echo(f"next: nnUNetv2_preprocess -d {dataset} -plans_name {plans_name} -c 3d_fullres")
