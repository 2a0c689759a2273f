"""The official network on a backend's kernels: the errors of ours and of PyTorch's layers, by kind of tensor.

For tests of the kernels: in float32 and 16 bits, which they take, while the other tests of the official results run in
float64.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import mednext
import mednext_ops as ops
from mednext.backends_used import BackendsUsed
from mednext.eager import EagerMedNeXt

from ..ops.eager import rms_error
from .conftest import Golden, fill

__all__ = ["assert_no_worse", "autocast_errors", "golden_autocast_errors", "golden_errors"]

Tensors = dict[str, torch.Tensor]
Errors = dict[str, list[tuple[float, float]]]  # ours and PyTorch's, by kind


def results(
    kind: Any,
    golden: Golden,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
) -> Tensors:
    """Outputs, the input's gradient and the parameters', by name, on the CPU."""
    network = fill(kind(**golden.arguments), golden.seed).to(device, dtype)
    x = golden.input.to(device, dtype, copy=True).requires_grad_()
    with torch.autocast(device, autocast) if autocast is not None else contextlib.nullcontext():
        outputs = network(x)
    golden.loss([y.cpu().double() for y in outputs]).backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    found = {f"output_{i}": y.detach() for i, y in enumerate(outputs)} | {"input": x.grad} | gradients
    return {name: tensor.cpu() for name, tensor in found.items()}


def both(
    golden: Golden, backend: str, device: str = "cpu", autocast: torch.dtype | None = None
) -> tuple[Tensors, Tensors]:
    """Our network's, every operator on that backend, and those of PyTorch's layers on the same device."""
    # Nobody's convolutions in the 10 bits of TF32: that is not the float32 that is compared.
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        with ops.use_backend(backend), BackendsUsed() as used:
            ours = results(mednext.MedNeXt, golden, device, autocast=autocast)
        assert used.names() == [backend]
        return ours, results(EagerMedNeXt, golden, device, autocast=autocast)


def official_results(golden: Golden) -> Tensors:
    return {f"output_{i}": y for i, y in enumerate(golden.outputs)} | {"input": golden.grad_input} | golden.gradients


def kind_of(name: str) -> str:
    """The tensors that a name's error is judged with: one tensor's error is a draw, that of all of a kind is a rule."""
    if "block" in name or "bottleneck" in name or name.startswith(("down", "up")):
        return ".".join(name.split(".")[-2:])
    return name.split(".")[0].rstrip("_0123456789")


def assert_no_worse(errors: Errors) -> None:
    assert {"output", "conv1.weight", "norm.weight", "conv2.weight", "conv3.bias", "stem"} <= errors.keys()
    for kind, pairs in errors.items():
        our, their = (math.sqrt(sum(pair[i] ** 2 for pair in pairs) / len(pairs)) for i in (0, 1))
        assert our <= 2 * their + 1e-6, f"{kind}: {our:.1e}, PyTorch {their:.1e}"


def add_errors(errors: Errors, ours: Tensors, theirs: Tensors, exact: Tensors) -> None:
    for name, value in exact.items():
        if not name.endswith("conv1.bias"):  # zero: the norm cancels it
            pair = rms_error(ours[name], value), rms_error(theirs[name], value)
            errors.setdefault(kind_of(name), []).append(pair)


def together(*several: Errors) -> Errors:
    return {kind: [pair for errors in several for pair in errors[kind]] for kind in several[0]}


def golden_errors(name: str, backend: str, device: str = "cpu", autocast: torch.dtype | None = None) -> Errors:
    """Of the network "k3" or "k5" that the official code ran, against its results."""
    golden = Golden.load(name)
    errors: Errors = {}
    add_errors(errors, *both(golden, backend, device, autocast), official_results(golden))
    return errors


def autocast_errors(kernel_size: int, backend: str, device: str = "cpu") -> Errors:
    """Under bfloat16 autocast, on three draws of weights and input.

    The deepest level has 8 voxels: statistics of two are too ill-conditioned for 16 bits.
    """
    golden = Golden.load("k3")
    errors: Errors = {}
    for seed in (301, 302, 303):
        drawn = torch.from_numpy(np.random.RandomState(seed + 1).standard_normal(golden.input.shape))
        arguments = golden.arguments | {"kernel_size": kernel_size}
        other = replace(golden, arguments=arguments, seed=seed, input=drawn)
        exact = results(EagerMedNeXt, other, dtype=torch.float64)
        add_errors(errors, *both(other, backend, device, torch.bfloat16), exact)
    return errors


def golden_autocast_errors(backend: str, device: str = "cpu") -> Errors:
    """Those of kernel size 3, and with them that of the official network's own weights against its results."""
    golden = golden_errors("k3", backend, device, torch.bfloat16)
    return together(golden, autocast_errors(3, backend, device))
