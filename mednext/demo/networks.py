"""The networks under comparison: ours with weights from a seed, and its twin in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mednext import MedNeXt
from mednext.eager import EagerMedNeXt


def build(arguments: dict[str, Any], seed: int = 0) -> MedNeXt:
    """mednext.MedNeXt with weights drawn from `seed`; whoever draws random numbers next is not disturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MedNeXt(**arguments)


def build_plain(arguments: dict[str, Any], seed: int = 0) -> nn.Module:
    """The same network in plain PyTorch; takes the same state_dict."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EagerMedNeXt(**arguments)
