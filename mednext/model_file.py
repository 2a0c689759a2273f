"""A trained network as one file: constructor arguments, weights, and what `mednext segment` must know to use it.

The file is a plain `torch.save` of tensors, numbers and strings, so it loads with `weights_only=True` and runs no code
of whoever made it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mednext.atomic_file import replacing
from mednext.errors import InputError, first_line
from mednext.network import MedNeXt

FORMAT = "mednext model"
VERSION = 1
STRIDE = 16  # four halvings: the extent of a window must be a multiple


@dataclass(frozen=True)
class ModelCard:
    """What a network needs to know of its training to be used on a new scan.

    Raises:
        ValueError: an entry that no network for 3D scans has, named in the message.
    """

    network: dict[str, Any]  # the arguments of mednext.MedNeXt
    labels: list[str]  # the classes' names, background first
    spacing: list[float]  # mm a voxel, in RAS order
    patch_size: list[int]  # voxels of a sliding window
    description: str = ""

    def __post_init__(self) -> None:
        is_one = isinstance(self.network, dict) and self.network.get("dim", "3d") == "3d"
        _expect(is_one, "network", self.network, "the arguments of a 3D mednext.MedNeXt")
        names = isinstance(self.labels, list) and all(isinstance(name, str) for name in self.labels)
        classes = self.network.get("n_classes")
        _expect(names and len(self.labels) == classes, "labels", self.labels, f"the names of {classes} classes")
        _expect(_are_three(self.spacing, (int, float)), "spacing", self.spacing, "three numbers above 0, in mm")
        strides = _are_three(self.patch_size, int) and not any(n % STRIDE for n in self.patch_size)
        _expect(strides, "patch_size", self.patch_size, f"three multiples of {STRIDE}")


def _expect(is_so: bool, name: str, value: object, expected: str) -> None:
    if not is_so:
        raise ValueError(f"its {name} should be {expected}, and is {value!r:.100}")


def _are_three(values: Any, kind: Any) -> bool:
    if not isinstance(values, list) or len(values) != 3:
        return False
    return all(isinstance(value, kind) and 0 < value < math.inf for value in values)


def save_model(path: Path, card: ModelCard, network: nn.Module) -> None:
    """Writes the network whole or not at all."""
    content = {"format": FORMAT, "version": VERSION, **asdict(card), "state_dict": network.state_dict()}
    save_atomically(path, content)


def save_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """`torch.save` that a kill or a power cut cannot leave half done."""
    # Into memory first: given a path torch writes its name into the file, and of a full disk it says nothing readable.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    with replacing(path) as part, open(part, "wb") as file:
        file.write(buffer.getbuffer())


def load_content(path: Path, device: str = "cpu") -> dict[str, Any]:
    """What `save_atomically` wrote, tensors on `device`.

    Raises:
        ValueError: the file is something else, or damaged.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch's unpickler meets foreign bytes with exceptions of many kinds, IndexError too
        raise ValueError(f"{path} cannot be read by torch.load") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict")
    return content


def load_model(path: Path) -> tuple[MedNeXt, ModelCard]:
    """The network in `path`, in eval mode on the CPU, and its card.

    Raises:
        InputError: no such file, or one that `save_model` did not write.
    """
    if not path.is_file():
        raise InputError(f"there is no model file {path}.")
    try:
        content = load_content(path)
    except ValueError as error:
        raise InputError(f"{path} is not a model that `mednext demo` wrote.") from error
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a model that `mednext segment` can take: it lacks the network's constructor arguments "
            "(for bare weights, see mednext.load_checkpoint)."
        )
    if content.get("version") != VERSION:
        raise InputError(f"{path} is a model of version {content.get('version')}; this mednext reads {VERSION}.")
    try:
        card = ModelCard(**{field.name: content[field.name] for field in fields(ModelCard)})
        network = MedNeXt(**card.network)
        network.load_state_dict(content["state_dict"])
    except KeyError as error:
        raise InputError(f"{path} is a damaged model: it lacks its {error.args[0]}.") from error
    except Exception as error:  # a file may hold anything, and the constructor meets it with errors of any kind
        raise InputError(f"{path} is a damaged model: {first_line(error)}.") from error
    bad = [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]
    if bad:
        raise InputError(f"{path} is a damaged model: weights of {bad[0]} are NaN or infinite.")
    return network.eval(), card
