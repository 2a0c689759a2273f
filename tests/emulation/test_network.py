"""The official network on the emulated kernels: outputs and every gradient, against float64."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import mednext
import mednext_ops as ops
from mednext.backends_used import BackendsUsed
from mednext.eager import EagerMedNeXt

from ..mednext.conftest import Golden, fill
from ..ops.eager import rms_error

OURS, THEIRS = mednext.MedNeXt, EagerMedNeXt


def results(kind, golden, dtype=torch.float32, autocast=None):
    """Outputs, the input's gradient and the parameters', by name."""
    network = fill(kind(**golden.arguments), golden.seed).to(dtype)
    x = golden.input.to(dtype).requires_grad_()
    with torch.autocast("cpu", autocast) if autocast is not None else contextlib.nullcontext():
        outputs = network(x)
    golden.loss([y.double() for y in outputs]).backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {f"output_{i}": y.detach() for i, y in enumerate(outputs)} | {"input": x.grad} | gradients


def official_results(golden):
    return {f"output_{i}": y for i, y in enumerate(golden.outputs)} | {"input": golden.grad_input} | golden.gradients


def kind_of(name):
    """The tensors that a name's error is judged with: one tensor's error is a draw, that of all of a kind is a rule."""
    if "block" in name or "bottleneck" in name or name.startswith(("down", "up")):
        return ".".join(name.split(".")[-2:])
    return name.split(".")[0].rstrip("_0123456789")


def assert_no_worse(pairs_by_kind):
    assert {"output", "conv1.weight", "norm.weight", "conv2.weight", "conv3.bias", "stem"} <= pairs_by_kind.keys()
    for kind, pairs in pairs_by_kind.items():
        our, their = (math.sqrt(sum(pair[i] ** 2 for pair in pairs) / len(pairs)) for i in (0, 1))
        assert our <= 2 * their + 1e-6, f"{kind}: {our:.1e}, PyTorch {their:.1e}"


def add_errors(pairs_by_kind, ours, theirs, exact):
    for name, value in exact.items():
        if not name.endswith("conv1.bias"):  # zero: the norm cancels it
            pair = rms_error(ours[name], value), rms_error(theirs[name], value)
            pairs_by_kind.setdefault(kind_of(name), []).append(pair)


@pytest.mark.parametrize("name", ["k3", "k5"])
def test_float32_gives_the_official_results(emulated, name):
    golden = Golden.load(name)
    with ops.use_backend("emulated", "reference"), BackendsUsed() as used:
        ours = results(OURS, golden)
    assert used.names() == ["emulated"]  # nothing was declined
    errors: dict[str, list[tuple[float, float]]] = {}
    add_errors(errors, ours, results(THEIRS, golden), official_results(golden))
    assert_no_worse(errors)


def autocast_errors(kernel_size: int, *backends: str) -> dict[str, list[tuple[float, float]]]:
    """Ours and PyTorch's under bfloat16 autocast, on three draws of weights and input.

    The deepest level has 8 voxels: statistics of two are too ill-conditioned for 16 bits.
    """
    golden = Golden.load("k3")
    errors: dict[str, list[tuple[float, float]]] = {}
    for seed in (301, 302, 303):
        drawn = torch.from_numpy(np.random.RandomState(seed + 1).standard_normal(golden.input.shape))
        arguments = golden.arguments | {"kernel_size": kernel_size}
        other = replace(golden, arguments=arguments, seed=seed, input=drawn)
        with ops.use_backend(*backends):
            ours = results(OURS, other, autocast=torch.bfloat16)
        theirs = results(THEIRS, other, autocast=torch.bfloat16)
        add_errors(errors, ours, theirs, results(THEIRS, other, torch.float64))
    return errors


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_bfloat16_autocast_is_no_worse_than_pytorch(emulated, kernel_size):
    with BackendsUsed() as used:
        errors = autocast_errors(kernel_size, "emulated", "reference")
    assert used.names() == ["emulated"]
    assert_no_worse(errors)
