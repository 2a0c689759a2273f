"""Loads the weights of a MedNeXt from whatever trained it: the official repository, nnU-Net, MONAI, Lightning, us."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import torch
from torch import nn

from mednext.arguments import must_be_module
from mednext.checkpoint_files import find_state_dict, read_file
from mednext.checkpoint_keys import KeyMap, is_deep_head, is_head
from mednext.meta import must_hold_values

__all__ = ["CheckpointReport", "load_checkpoint"]

_LISTED = 12  # faults that an error spells out


@dataclass(frozen=True)
class CheckpointReport:
    """What :func:`load_checkpoint` did; ``print`` it for a summary.

    Attributes:
        source: the file, or "state dict".
        container: what the weights came in, such as "nnU-Net v2 checkpoint".
        naming: whose names they had, "official" or "MONAI".
        prefix: what stood in front of each name, such as "module.".
        loaded: key in the checkpoint -> key in the model, for every tensor that was loaded.
        missing: keys of the model that kept their values.
        unexpected: keys of the checkpoint that were not used.
    """

    source: str
    container: str
    naming: str
    prefix: str
    loaded: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        prefix = f", prefix {self.prefix!r}" if self.prefix else ""
        lines = [f"{self.source}: {self.container}, {self.naming} names{prefix}; loaded {len(self.loaded)} tensors"]
        lines += [f"  kept in the model: {_some(self.missing)}"] if self.missing else []
        lines += [f"  not used from the checkpoint: {_some(self.unexpected)}"] if self.unexpected else []
        return "\n".join(lines)


@torch.no_grad()
def load_checkpoint(
    model: nn.Module, checkpoint: str | PathLike[str] | Mapping[str, Any], *, heads: bool = True
) -> CheckpointReport:
    """Load trained weights into ``model`` in place.

    The names of the tensors tell what the checkpoint is: official or our MedNeXt or MONAI's, behind any prefix
    ("module.", "_orig_mod.", "model."), bare or in an nnU-Net v1, nnU-Net v2 or Lightning checkpoint or any other dict.
    Files are ``torch.save`` ones, read with ``weights_only=True``, or safetensors.

    Args:
        model: a MedNeXt, ours or with the official or MONAI's names, wrapped or not.
        checkpoint: a file, or a dict as it would hold.
        heads: ``False`` keeps the segmentation heads of the model, for a network of other classes.

    Returns:
        The report of what was loaded, kept and not used.

    Raises:
        ValueError: no MedNeXt weights in it, or weights that do not fit, which the message names, or a model on the
            meta device. The deep-supervision heads may be absent unless the model has deep supervision on. The model
            is unchanged then.
        FileNotFoundError: there is no such file.

    Example:
        >>> net = create_mednext("S", in_channels=1, num_classes=3)
        >>> print(load_checkpoint(net, "fold_0/checkpoint_final.pth"))
    """
    must_be_module("model", model)
    if isinstance(checkpoint, Mapping):
        source, content = "state dict", checkpoint
    elif isinstance(checkpoint, (str, PathLike)):
        source, content = fspath(checkpoint), read_file(checkpoint)
    else:
        raise TypeError(f"checkpoint must be a path or a dict, got {type(checkpoint).__name__}")
    container, weights = find_state_dict(source, content)
    own = model.state_dict()
    theirs, ours = KeyMap.of(source, weights), KeyMap.of(f"model ({type(model).__name__})", own)

    wanted = {name: key for name, key in ours.keys.items() if name in theirs.keys and (heads or not is_head(name))}
    report = CheckpointReport(
        source=source,
        container=container,
        naming=theirs.naming,
        prefix=theirs.prefix,
        loaded={theirs.keys[name]: key for name, key in wanted.items()},
        missing=tuple(key for name, key in ours.keys.items() if name not in wanted),
        unexpected=tuple(key for name, key in theirs.keys.items() if name not in wanted) + theirs.others,
    )
    faults = [
        f"{theirs.keys[name]}: {_described(weights[theirs.keys[name]])}, the model has {_described(own[key])}"
        for name, key in wanted.items()
        if _described(weights[theirs.keys[name]]) != _described(own[key])
    ]
    deep = _uses_deep_supervision(model, ours.prefix)
    faults += [
        f"{key}: only in the model"
        for name, key in ours.keys.items()
        if name not in theirs.keys and not _optional(name, heads, deep)
    ]
    faults += [
        f"{key}: only in the checkpoint"
        for name, key in theirs.keys.items()
        if name not in ours.keys and not _optional(name, heads, deep=False)
    ]
    if faults:
        raise ValueError(_explained(report, faults))
    must_hold_values(f"model ({type(model).__name__})", own)
    must_hold_values(source, {key: weights[key] for key in report.loaded})
    loaded = {key: weights[their_key] for their_key, key in report.loaded.items()}
    model.load_state_dict({**own, **loaded})
    return report


def _optional(name: str, heads: bool, deep: bool) -> bool:
    """Whether either side may lack this tensor."""
    return name == "dummy_tensor" or (is_head(name) and not heads) or (is_deep_head(name) and not deep)


def _uses_deep_supervision(model: nn.Module, prefix: str) -> bool:
    return bool(getattr(model.get_submodule(prefix.removesuffix(".")), "do_ds", False))


def _described(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)}" if tensor.is_floating_point() else f"{list(tensor.shape)} of {tensor.dtype}"


def _explained(report: CheckpointReport, faults: list[str]) -> str:
    lines = [f"{report.source} ({report.container}, {report.naming} names) does not fit the model; nothing was loaded:"]
    lines += [f"  {fault}" for fault in faults[:_LISTED]]
    lines += [f"  ... and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else []
    if all("out_" in fault for fault in faults):
        lines.append("Only segmentation heads differ: pass heads=False to keep those of the model.")
    elif report.naming == "MONAI" and any(".conv2." in fault and "down_" in fault for fault in faults):
        lines.append(
            "MONAI's down_blocks.i take the expansion ratio of level i, the official down_i that of level i + 1, so "
            "only S has the same shapes in both. Load this into MONAI's network and pass that to mednext.accelerate."
        )
    return "\n".join(lines)


def _some(keys: tuple[str, ...], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
