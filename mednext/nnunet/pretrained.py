"""Lets nnU-Net's own `-pretrained_weights` give a network the weights of one with smaller kernels (UpKern).

nnU-Net reads the checkpoint, compares each of its tensors with what the network's `state_dict` lists, fills that dict
and gives it to the network's `load_state_dict`. It knows no kernel that grows. So from the network's construction until
its training starts, `state_dict` lists nothing to compare, and `load_state_dict` compares, widens and says what it did.
"""

from __future__ import annotations

from collections.abc import Callable, KeysView, Mapping
from typing import Any

import torch

from mednext.checkpoint_keys import is_head
from mednext.network import MedNeXt
from mednext.upkern import grows, resampled

__all__ = ["PretrainedWeights"]

_LISTED = 10  # faults that an error spells out


class PretrainedWeights:
    """From construction to :meth:`close`, ``network`` takes pretrained weights of equal or smaller kernels."""

    def __init__(self, network: MedNeXt, report: Callable[[str], None]) -> None:
        self._network = network
        self._report = report
        self._own = network.state_dict()
        network.state_dict = lambda: _Unfilled(self._own)  # type: ignore[method-assign, assignment]
        network.load_state_dict = self._receive  # type: ignore[method-assign, assignment]

    def close(self) -> None:
        """Gives the network its own methods back."""
        for name in ("state_dict", "load_state_dict"):
            self._network.__dict__.pop(name, None)

    def _receive(self, given: Mapping[str, torch.Tensor]) -> Any:
        weights, report = widened(given, self._own)
        self.close()
        result = self._network.load_state_dict(weights)
        self._report(report)
        return result


class _Unfilled(dict[str, torch.Tensor]):
    """Names all tensors of the network and holds none, until it is filled with those of a checkpoint."""

    def __init__(self, own: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._own = own

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        return self._own.keys()


@torch.no_grad()
def widened(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """A whole state dict for a network that has ``own``, from the ``given`` one; and a report of what became of it.

    Kernels are widened as :func:`mednext.upkern` does. Heads for another number of classes keep the network's values.

    Raises:
        ValueError: another difference between the two networks, named in the message.
    """
    given = dict(given.items())  # the entries that are there, whatever keys() names
    kept = [
        key for key, tensor in own.items() if is_head(key) and (key not in given or given[key].shape != tensor.shape)
    ]
    wanted = {key: tensor for key, tensor in own.items() if key not in kept}
    faults = [f"{key}: not in the checkpoint" for key in wanted if key not in given]
    faults += [
        f"{key}: {list(given[key].shape)} in the checkpoint, {list(tensor.shape)} in the network"
        for key, tensor in wanted.items()
        if key in given and not grows(key, given[key], tensor)
    ]
    if faults:
        listed = "\n  ".join(faults[:_LISTED] + [f"... and {len(faults) - _LISTED} more"] * (len(faults) > _LISTED))
        raise ValueError(
            "the pretrained weights must be those of the same MedNeXt with kernels that are equal or smaller; nothing "
            f"was loaded:\n  {listed}"
        )
    weights = {key: resampled(given[key], tensor.shape) for key, tensor in wanted.items()}
    grown = [key for key in wanted if given[key].shape != wanted[key].shape]
    return weights | {key: own[key] for key in kept}, _described(given, weights, grown, kept)


def _described(
    given: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], grown: list[str], kept: list[str]
) -> str:
    counts: dict[str, int] = {}
    for key in grown:
        before, after = ("x".join(map(str, tensors[key].shape[2:])) for tensors in (given, weights))
        counts[f"{before} to {after}"] = counts.get(f"{before} to {after}", 0) + 1
    lines = [f"MedNeXt: took {len(weights)} pretrained tensors"]
    lines += [f"UpKern widened {count} kernels from {change}" for change, count in counts.items()]
    lines += [] if grown else ["no kernel had to be widened"]
    lines += [f"{len(kept)} tensors of heads with other classes stay as initialised: {', '.join(kept)}"] if kept else []
    return "; ".join(lines)
