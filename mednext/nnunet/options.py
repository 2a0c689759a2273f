"""What can be chosen for a training: nnU-Net's command line has no room for it, so the environment holds it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mednext.errors import InputError

__all__ = ["PREFIX", "Options"]

PREFIX = "MEDNEXT_NNUNET_"
CHOICES = {"dtype": ("float16", "bfloat16"), "recompute": ("none", "conv")}


@dataclass(frozen=True)
class Options:
    """Each field is set by the environment variable of its name in capitals behind PREFIX, as nnU-Net starts.

    The defaults are the published training. Those who trained 5x5x5 kernels there tried 1e-3, 5e-4, 2.5e-4 and 1e-4.
    """

    learning_rate: float = 1e-3  # of AdamW in the first epoch
    epochs: int = 1000
    iterations: int = 250  # an epoch
    validation_iterations: int = 50  # an epoch
    save_every: int = 50  # epochs between two states that `--c` can go on from
    dtype: str = "float16"  # of autocast on a GPU; with bfloat16 gradients are not scaled
    recompute: str = "none"  # "conv" keeps half as much for backward and runs each convolution twice

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Options:
        """The options as they are set.

        Raises:
            InputError: a value that the option cannot have, or a variable with the prefix that names no option.
        """
        types = {field.name: type(field.default) for field in fields(cls)}
        given = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
        known = {PREFIX + name.upper(): name for name in types}
        for variable in given:
            if variable not in known:
                raise InputError(f"{variable} is no option; there are {', '.join(known)}.")
        values: dict[str, Any] = {
            known[name]: _read(known[name], types[known[name]], value) for name, value in given.items()
        }
        return cls(**values)

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(self).items())


def _read(name: str, kind: type, text: str) -> float | int | str:
    variable = PREFIX + name.upper()
    if name in CHOICES:
        if text not in CHOICES[name]:
            raise InputError(f"{variable} is {text!r}; {' or '.join(CHOICES[name])} was expected.")
        return text
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise InputError(f"{variable} is {text!r}; {'a whole' if kind is int else 'a'} number above 0 was expected.")
    return value
