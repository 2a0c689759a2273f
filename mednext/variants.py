"""The published MedNeXt variants by name."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mednext.network import KernelSize, MedNeXt

__all__ = ["VARIANTS", "Variant", "create_mednext"]


@dataclass(frozen=True)
class Variant:
    """What tells one variant from another: arguments of :class:`~mednext.MedNeXt`."""

    exp_r: int | tuple[int, ...]
    block_counts: tuple[int, ...]
    n_channels: int = 32
    grn: bool | str = False


_BASE = (2, 3, 4, 4, 4, 4, 4, 3, 2)
_LARGE = (3, 4, 8, 8, 8, 8, 8, 4, 3)

VARIANTS = MappingProxyType(
    {
        "S": Variant(2, (2,) * 9),
        "B": Variant(_BASE, (2,) * 9),
        "M": Variant(_BASE, (3, 4, 4, 4, 4, 4, 4, 4, 3)),
        "L": Variant(_LARGE, _LARGE),  # the ratios and the counts happen to be the same
        "v2-base": Variant(_LARGE, _LARGE, 32, "all"),
        "v2-wide": Variant(_LARGE, _LARGE, 64, "all"),
    }
)


def create_mednext(
    variant: str,
    in_channels: int,
    num_classes: int,
    kernel_size: KernelSize = 3,
    deep_supervision: bool = False,
    **overrides: Any,
) -> MedNeXt:
    """A published MedNeXt, with random weights.

    Args:
        variant: "S", "B", "M" or "L" (Roy et al., MICCAI 2023; official ``create_mednext_v1.py``), or "v2-base" or
            "v2-wide": MedNeXt-v2 (Roy et al., 2025), which is L with GRN in every block, of 32 or 64 channels.
        in_channels: channels of the input.
        num_classes: channels of the output.
        kernel_size: 3 or 5 as published, or any other that :class:`~mednext.MedNeXt` takes.
        deep_supervision: return the outputs of all five levels.
        overrides: other arguments of :class:`~mednext.MedNeXt`.

    The official M and L run with ``checkpoint_style="outside_block"``. Here no variant does: the blocks keep a quarter
    of what the official ones do. Pass it, or ``recompute="conv"``, to trade time for more memory.

    Raises:
        ValueError: an unknown variant, or an argument that :class:`~mednext.MedNeXt` refuses.

    Example:
        >>> net = create_mednext("B", in_channels=1, num_classes=3, kernel_size=5, deep_supervision=True)
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
    chosen = VARIANTS[variant]
    arguments: dict[str, Any] = {
        "in_channels": in_channels,
        "n_channels": chosen.n_channels,
        "n_classes": num_classes,
        "exp_r": chosen.exp_r,
        "kernel_size": kernel_size,
        "deep_supervision": deep_supervision,
        "do_res": True,
        "do_res_up_down": True,
        "block_counts": chosen.block_counts,
        "grn": chosen.grn,
    }
    return MedNeXt(**(arguments | overrides))
