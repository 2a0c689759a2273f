"""The official network on the emulated kernels: outputs and every gradient, against the official ones in float64."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch

import mednext
import mednext_ops as ops
from mednext.eager import EagerMedNeXt

from ..mednext.conftest import Golden, fill
from ..ops.eager import rms_error


def results(network, golden, autocast):
    """Outputs, the input's gradient and the parameters' of a float32 network, by name."""
    network = fill(network, golden.seed).float()
    x = golden.input.float().requires_grad_()
    with torch.autocast("cpu", autocast) if autocast is not None else contextlib.nullcontext():
        outputs = network(x)
    golden.loss([y.double() for y in outputs]).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {f"output {i}": y.detach() for i, y in enumerate(outputs)} | {"input": x.grad} | gradients


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bfloat16 autocast"])
@pytest.mark.parametrize("name", ["k3", "k5"])
def test_outputs_and_gradients_are_the_official_ones(emulated, name, autocast):
    golden = Golden.load(name)
    exact = {f"output {i}": y for i, y in enumerate(golden.outputs)} | {"input": golden.grad_input}
    exact |= {f"gradient of {key}": value for key, value in golden.gradients.items()}
    with ops.use_backend("emulated", "reference"):
        ours = results(mednext.MedNeXt(**golden.arguments), golden, autocast)
    theirs = results(EagerMedNeXt(**golden.arguments), golden, autocast)

    # One vector's error is a draw; the errors of all tensors of a kind together are what the rule is about.
    errors: dict[str, list[tuple[float, float]]] = {}
    for key, value in exact.items():
        if key.endswith("conv1.bias"):  # zero: the norm cancels it
            continue
        parts = key.removeprefix("gradient of ").split(".")
        kind = (
            ".".join(parts[-2:]) if "block" in key or "bottleneck" in key else parts[0].split()[0].rstrip("0123456789_")
        )
        kind = "stem" if kind == "input" else kind  # at the far end of every chain, as the stem's gradients are
        errors.setdefault(kind, []).append((rms_error(ours[key], value), rms_error(theirs[key], value)))
    assert {"output", "conv1.weight", "norm.weight", "conv2.weight", "conv3.bias", "stem"} <= errors.keys()
    for kind, pairs in errors.items():
        our, their = (math.sqrt(sum(pair[i] ** 2 for pair in pairs) / len(pairs)) for i in (0, 1))
        assert our <= 2 * their + 1e-6, f"{kind}: {our:.1e}, PyTorch {their:.1e}"
