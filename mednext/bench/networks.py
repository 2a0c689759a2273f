"""The networks under measurement, built alike: ours, plain PyTorch, MONAI's, the user's."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mednext.bench.blocks import fill
from mednext.bench.task import Implementation, NotComparable
from mednext.eager import EagerMedNeXt
from mednext.errors import InputError, first_line
from mednext.variants import VARIANTS, create_mednext

__all__ = ["CLASSES", "NetworkProblem", "build", "eager_network"]

IN_CHANNELS, CLASSES = 1, 3


@dataclass(frozen=True)
class NetworkProblem:
    """One network on one batch of cubes.

    Attributes:
        variant: "S", "B", "M" or "L", or another of ``mednext.variants``.
        kernel_size: of the depthwise convolutions.
        patch: edge of the cube, voxels; a multiple of 16.
        batch: cubes.
        dtype: "fp32", or "fp16" or "bf16" for autocast.
    """

    variant: str
    kernel_size: int
    patch: int
    batch: int = 1
    dtype: str = "fp32"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, IN_CHANNELS, *(self.patch,) * 3)

    def __str__(self) -> str:
        return f"MedNeXt-{self.variant} k{self.kernel_size} {self.batch}x{self.patch}^3"


def eager_network(problem: NetworkProblem, deep_supervision: bool, checkpoint: bool = False) -> EagerMedNeXt:
    """Plain PyTorch layers with random weights that depend on the problem's variant and kernel size alone."""
    chosen = VARIANTS[problem.variant]
    network = EagerMedNeXt(
        *(IN_CHANNELS, chosen.n_channels, CLASSES, chosen.exp_r, problem.kernel_size),
        deep_supervision=deep_supervision,
        do_res=True,
        do_res_up_down=True,
        checkpoint_style="outside_block" if checkpoint else None,
        block_counts=chosen.block_counts,
        grn=chosen.grn,
    )
    fill(network, seed=0)
    return network


def build(
    implementation: Implementation, problem: NetworkProblem, deep_supervision: bool
) -> tuple[nn.Module, EagerMedNeXt | None]:
    """A network, and plain PyTorch's with the same weights to judge it by; None where the weights cannot be shared.

    Raises:
        NotComparable: MONAI is not here, or has no such network.
        InputError: the user's factory cannot be found or does not make a module.
    """
    twin = eager_network(problem, deep_supervision)
    if implementation.source == "eager":
        return eager_network(problem, deep_supervision, implementation.checkpoint), twin
    if implementation.source == "mednext":
        ours = create_mednext(problem.variant, IN_CHANNELS, CLASSES, problem.kernel_size, deep_supervision)
        ours.load_state_dict(twin.state_dict(), strict=deep_supervision)
        return ours, twin
    if implementation.source == "monai":
        return _monai(problem, deep_supervision), None
    network = _users(str(implementation.factory), problem, deep_supervision)
    shapes = {name: t.shape for name, t in twin.state_dict().items()}
    if shapes.items() <= {name: t.shape for name, t in network.state_dict().items()}.items():
        network.load_state_dict(twin.state_dict(), strict=False)
        return network, twin
    return network, None


def _monai(problem: NetworkProblem, deep_supervision: bool) -> nn.Module:
    """MONAI's own variant: from B on its down blocks have other ratios than the official ones."""
    try:
        from monai.networks.nets.mednext import MedNeXtB, MedNeXtL, MedNeXtM, MedNeXtS
    except ImportError:
        raise NotComparable("MONAI is not installed") from None
    classes = {"S": MedNeXtS, "B": MedNeXtB, "M": MedNeXtM, "L": MedNeXtL}
    if problem.variant not in classes:
        raise NotComparable(f"MONAI has no MedNeXt-{problem.variant}")
    arguments: dict[str, Any] = {"kernel_size": problem.kernel_size, "deep_supervision": deep_supervision}
    network = classes[problem.variant](spatial_dims=3, in_channels=IN_CHANNELS, out_channels=CLASSES, **arguments)
    return fill(network, seed=0)


def _users(factory: str, problem: NetworkProblem, deep_supervision: bool) -> nn.Module:
    module_name, _, name = factory.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--baseline {factory!r} cannot be found: {first_line(error)}.") from error
    network = make(
        variant=problem.variant,
        in_channels=IN_CHANNELS,
        num_classes=CLASSES,
        kernel_size=problem.kernel_size,
        deep_supervision=deep_supervision,
    )
    if not isinstance(network, nn.Module):
        raise InputError(f"--baseline {factory!r} made a {type(network).__name__}, not a torch.nn.Module.")
    return network


def outputs_of(result: Any) -> list[torch.Tensor]:
    """The outputs, finest first, of whatever a network returns."""
    return list(result) if isinstance(result, (list, tuple)) else [result]
