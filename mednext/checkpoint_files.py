"""Reads a checkpoint file without running code from it, and finds the state dict of a MedNeXt in what it holds."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

__all__ = ["find_state_dict", "read_file"]


def read_file(path: str | PathLike[str]) -> Mapping[str, Any]:
    """What a ``torch.save`` or safetensors file holds, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another kind, or holds more than tensors, numbers, strings and NumPy values.
        ImportError: a .safetensors file without the safetensors package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals(_harmless_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"but got <class '([\w.]+)'>", str(error))
        if foreign:
            raise ValueError(
                f"{path} holds a {foreign[1]}, and loading that could run code. If you trust the file, read it with "
                "torch.load(path, weights_only=False) and pass the result"
            ) from error
        # torch's own words go on with advice to load without weights_only, which runs whatever the file holds.
        reason = re.split(r"[.:] ", (str(error) or type(error).__name__).splitlines()[0])[0]
        raise ValueError(f"{path} is damaged or not a torch.save file: {reason}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of tensors, or one that holds such")
    return content


def find_state_dict(source: str, content: Mapping[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    """The dict with the network's tensors, which is ``content`` or lies in it under some name; and what it came in.

    Raises:
        ValueError: there is none, or there are several.
    """
    if _has_a_stem(content):
        return "bare state dict", _tensors(content)
    found = [key for key, value in content.items() if isinstance(value, Mapping) and _has_a_stem(value)]
    if len(found) != 1:
        held = f"several: {', '.join(map(repr, found))}; pass one" if found else f"only {', '.join(map(repr, content))}"
        raise ValueError(f"{source} must hold one state dict of a MedNeXt (with 'stem.weight'); it holds {held[:400]}")
    return _container(found[0], content), _tensors(content[found[0]])


def _container(key: str, content: Mapping[str, Any]) -> str:
    if content.get("format") == "mednext model":
        return "mednext model"
    if key == "network_weights":
        return "nnU-Net v2 checkpoint"
    if "pytorch-lightning_version" in content:
        return "Lightning checkpoint"
    if "plot_stuff" in content:
        return "nnU-Net v1 checkpoint"
    return f"state dict under {key!r}"


def _has_a_stem(content: Mapping[Any, Any]) -> bool:
    return any(
        isinstance(key, str) and key.endswith("stem.weight") and isinstance(value, torch.Tensor)
        for key, value in content.items()
    )


def _tensors(content: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    return {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"reading {path} needs the safetensors package: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _harmless_globals() -> list[Any]:
    """What trainers keep beside the weights: NumPy numbers and arrays, under the module names of NumPy 1 and 2."""
    try:
        import numpy as np
    except ImportError:
        return []
    functions = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(0).__reduce__()[0]}
    moved = [
        (function, f"numpy.{core}.multiarray.{name}")
        for name, function in functions.items()
        for core in ("core", "_core")
    ]
    types = [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"]
    return [np.ndarray, np.dtype, *moved, *dict.fromkeys(types)]
