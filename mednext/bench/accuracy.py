"""Whether a result may be timed: its error against float64, beside that of PyTorch's own code at the same dtype."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["FACTOR", "GATE_SLACK", "Verdict", "judge", "pytorch_error", "rms_error"]

FACTOR = 2.0  # the house rule: at most twice PyTorch's own error, and one rounding of the dtype
#: The error of a tensor this small is a draw: it may be above PyTorch's by luck alone.
SMALL, SMALL_FACTOR, SMALL_ROUNDINGS = 1000, 4.0, 4.0

#: Before timing, beyond the rule: in float32 PyTorch's own code has up to seven times the error in another layout (a
#: network's gradient of ``stem.bias``, whose addends nearly cancel, in channels_last_3d on AVX2: 2.2e-5 for 3.3e-6). A
#: wrong result is off by far more, and TF32 rounds by up to 2^-11.
GATE_SLACK = 2.0**-16


@dataclass(frozen=True)
class Verdict:
    """The tensor that used most of what it was allowed.

    Attributes:
        tensor: its name.
        error: root mean square of its error over that of the exact values.
        eager_error: the same of PyTorch's own code.
        allowed: the largest error that passes.
    """

    tensor: str
    error: float
    eager_error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed  # a NaN does not pass

    def __str__(self) -> str:
        return (
            f"{self.tensor}: error {self.error:.2e} against float64, allowed are {self.allowed:.2e} "
            f"(PyTorch's own: {self.eager_error:.2e})"
        )


def rms_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of the difference over that of the exact values, in float64."""
    actual, exact = actual.detach().double(), exact.detach().double()
    return ((actual - exact).norm() / exact.norm().clamp_min(1e-300)).item()


def pytorch_error(eager: torch.Tensor, exact: torch.Tensor) -> float:
    """:func:`rms_error` of PyTorch's own result; a few roundings where PyTorch gives NaN for finite numbers."""
    error = rms_error(eager, exact)
    return error if math.isfinite(error) else 4 * torch.finfo(eager.dtype).eps


def judge(
    results: Mapping[str, torch.Tensor],
    eager: Mapping[str, torch.Tensor],
    exact: Mapping[str, torch.Tensor],
    names: Iterable[str] | None = None,
    slack: float = 0.0,
) -> Verdict:
    """The worst of some tensors by the rule: at most twice PyTorch's own error, and one rounding of the dtype.

    ``slack`` is allowed on top, four times of it for a small tensor: PyTorch's own code breaks the rule in float32, in
    another layout.

    Raises:
        ValueError: a result has another shape than the exact one.
    """
    verdicts = []
    for name in exact if names is None else names:
        result, wanted = results[name], exact[name]
        if result.shape != wanted.shape:
            raise ValueError(f"{name} has the shape {list(result.shape)}, expected {list(wanted.shape)}")
        eager_error = pytorch_error(eager[name], wanted)
        small = wanted.numel() < SMALL
        factor, roundings = (SMALL_FACTOR, SMALL_ROUNDINGS) if small else (FACTOR, 1.0)
        allowed = factor * eager_error + roundings * (torch.finfo(result.dtype).eps + slack)
        verdicts.append(Verdict(name, rms_error(result, wanted), eager_error, allowed))
    return max(verdicts, key=lambda v: math.inf if math.isnan(v.error) else v.error / v.allowed)
