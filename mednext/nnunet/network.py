"""A MedNeXt as an nnU-Net plan wants it: in 2D or 3D, with the plan's strides, and flat kernels where the plan's are.

MedNeXt has five levels, always. It takes the first four strides of the plan; where the plan has fewer, the deepest
levels keep their grid; where it has more, MedNeXt stops at its fifth level, as published for patches of 128^3 voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from mednext.network import LEVELS, MedNeXt
from mednext.variants import create_mednext

__all__ = ["kernels_of", "network_of_plan", "scales_of", "strides_of"]

Plan = dict[str, Any]  # the architecture's arguments in a configuration of nnU-Net's plans


def network_of_plan(
    variant: str,
    kernel_size: int,
    plan: Plan,
    in_channels: int,
    num_classes: int,
    deep_supervision: bool,
    recompute: str | None = None,
) -> MedNeXt:
    """A published variant for this plan.

    Args:
        variant: "S", "B", "M" or "L".
        kernel_size: on the axes on which the plan's kernels are wider than 1.
        plan: ``architecture.arch_kwargs`` of a configuration: the strides and kernel sizes of its stages are used.
        in_channels: channels of the input.
        num_classes: channels of the output.
        deep_supervision: return the outputs of all five levels.
        recompute: see :class:`~mednext.MedNeXt`.

    Raises:
        ValueError: the plan's strides or kernel sizes are not those of a 2D or 3D network with strides of 1 and 2.
    """
    strides = strides_of(plan)
    return create_mednext(
        variant,
        in_channels,
        num_classes,
        kernels_of(plan, kernel_size),
        deep_supervision,
        dim=f"{len(strides[0])}d",
        strides=strides,
        recompute=recompute,
    )


def strides_of(plan: Plan) -> list[tuple[int, ...]]:
    """Strides of the four resampling steps, each one an axis."""
    first, *steps = _stages(plan, "strides")
    if max(first) > 1 or any(stride not in (1, 2) for step in steps for stride in step):
        raise ValueError(
            "strides of the plan must be 1 in the first stage and 1 or 2 in the others, got "
            f"{plan['strides']}: MedNeXt starts on the input's grid and halves it"
        )
    return (steps + [(1,) * len(first)] * LEVELS)[:LEVELS]


def kernels_of(plan: Plan, kernel_size: int) -> list[tuple[int, ...]]:
    """Kernel of each of the five levels: ``kernel_size`` on the axes on which the plan's kernel is wider than 1."""
    stages = _stages(plan, "kernel_sizes")
    levels = (stages + [stages[-1]] * LEVELS)[: LEVELS + 1]
    return [tuple(kernel_size if extent > 1 else 1 for extent in kernel) for kernel in levels]


def scales_of(strides: Sequence[Sequence[int]]) -> list[list[float]]:
    """Extent of each of the five outputs against the input's, one an axis, finest first."""
    return [[1 / prod(axis[:level]) for axis in zip(*strides, strict=True)] for level in range(LEVELS + 1)]


def _stages(plan: Plan, name: str) -> list[tuple[int, ...]]:
    stages = [tuple(stage) if isinstance(stage, Sequence) else () for stage in plan.get(name) or ()]
    axes = {len(stage) for stage in stages}
    if len(axes) != 1 or not axes <= {2, 3} or not all(isinstance(n, int) for stage in stages for n in stage):
        raise ValueError(f"{name} of the plan must be 2 or 3 ints for each stage, got {plan.get(name)!r}")
    return stages
