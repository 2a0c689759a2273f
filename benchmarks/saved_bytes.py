"""Prints what each MedNeXt keeps in memory between forward and backward: bytes a voxel, and GiB for one 128^3 patch.

Under autocast to bfloat16 with deep supervision; the slope between two cubes, so that weights cancel. Sizes come from
autograd itself, on tensors without data, so a laptop measures the largest network in seconds:

    python benchmarks/saved_bytes.py --kernel-size 5 --output saved-bytes.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from mednext import create_mednext
from mednext.eager import EagerMedNeXt
from mednext.memory import saved_bytes_per_voxel
from mednext.variants import VARIANTS
from mednext_ops import info

OURS: dict[str, dict[str, Any]] = {
    "mednext": {},
    'recompute="conv"': {"recompute": "conv"},
    '"outside_block"': {"checkpoint_style": "outside_block"},
}
PATCH_GIB = 128**3 / 2**30


def eager(variant: str, kernel_size: int) -> EagerMedNeXt:
    """The plain PyTorch network of a variant."""
    chosen = VARIANTS[variant]
    return EagerMedNeXt(
        *(1, chosen.n_channels, 3, chosen.exp_r, kernel_size),
        deep_supervision=True,
        do_res=True,
        do_res_up_down=True,
        block_counts=chosen.block_counts,
        grn=chosen.grn,
    )


def rows(kernel_size: int, extents: tuple[int, int]) -> list[tuple[str, str, float]]:
    """(variant, implementation, bytes a voxel) of every variant and implementation."""
    measured = []
    with FakeTensorMode():
        for variant in VARIANTS:
            networks: dict[str, Any] = {"eager PyTorch": eager(variant, kernel_size)}
            for name, options in OURS.items():
                networks[name] = create_mednext(variant, 1, 3, kernel_size, deep_supervision=True, **options)
            for name, network in networks.items():
                measured.append((variant, name, saved_bytes_per_voxel(network, extents=extents)))
    return measured


def provenance() -> dict[str, Any]:
    """What a row was measured with: command, versions, commit of the source."""
    revision = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    described = subprocess.run(revision, capture_output=True, text=True, check=False)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "git": described.stdout.strip() or None,
        "versions": info.collect()["versions"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel-size", type=int, default=3, choices=(3, 5, 7), help="of the depthwise convolutions")
    parser.add_argument(
        "--extents", type=int, nargs=2, default=(32, 64), metavar=("SMALL", "LARGE"), help="edges in voxels"
    )
    parser.add_argument("--output", type=Path, help="write the rows as JSON into this file as well")
    arguments = parser.parse_args()
    if any(extent % 16 for extent in arguments.extents) or not 0 < arguments.extents[0] < arguments.extents[1]:
        parser.error(f"--extents must be two increasing multiples of 16, got {arguments.extents}")
    print(f"{'variant':<9} {'implementation':<18} {'bytes/voxel':>11} {'GiB at 128^3':>13}")
    measured = rows(arguments.kernel_size, tuple(arguments.extents))
    for variant, name, value in measured:
        print(f"{variant:<9} {name:<18} {value:>11.0f} {value * PATCH_GIB:>13.2f}")
    if arguments.output is not None:
        keys = ("variant", "implementation", "bytes_per_voxel")
        content = {
            **provenance(),
            "kernel_size": arguments.kernel_size,
            "extents": arguments.extents,
            "rows": [dict(zip(keys, row, strict=True)) for row in measured],
        }
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
