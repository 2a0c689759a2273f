"""Our networks give the official outputs and gradients."""

from __future__ import annotations

import pytest
import torch

import mednext
from mednext.eager import EagerMedNeXt

from .golden_errors import assert_no_worse, autocast_errors, golden_autocast_errors, golden_errors


def check(network, golden, device="cpu"):
    x = golden.input.to(device, copy=True).requires_grad_()
    outputs = network.to(device)(x)
    for ours, official in zip(outputs, golden.outputs, strict=True):
        assert_relative(ours, official)
    golden.loss([y.cpu() for y in outputs]).backward()
    assert_relative(x.grad, golden.grad_input)
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if name != "dummy_tensor"}
    assert gradients.keys() == golden.gradients.keys()
    for name, official in golden.gradients.items():
        if name.endswith("conv1.bias"):  # the norm cancels it: zero, and rounding in the official numbers
            assert gradients[name].abs().max() < 1e-6, name
        else:
            assert_relative(gradients[name], official, name)


def assert_relative(ours, official, name=""):
    assert ours.shape == official.shape
    error = (ours.detach().cpu() - official).abs().max() / official.abs().max()
    assert error < 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("options", [{}, {"recompute": "conv"}, {"checkpoint_style": "outside_block"}], ids=str)
def test_outputs_and_all_gradients_are_the_official_ones(golden, filled, options, device):
    check(filled(mednext.MedNeXt(**golden.arguments, **options), golden.seed), golden, device)


def test_outputs_are_the_official_ones_in_channels_last(golden_k3, filled):
    network = filled(mednext.MedNeXt(**golden_k3.arguments), golden_k3.seed)
    with torch.no_grad():
        outputs = network(golden_k3.input.contiguous(memory_format=torch.channels_last_3d))
    for ours, official in zip(outputs, golden_k3.outputs, strict=True):
        assert_relative(ours, official)


def test_the_eager_baseline_is_the_official_network(golden, filled):
    check(filled(EagerMedNeXt(**golden.arguments), golden.seed), golden)


def test_the_accelerated_official_network_gives_the_official_results(golden, filled):
    check(mednext.accelerate(filled(EagerMedNeXt(**golden.arguments), golden.seed)), golden)


# In float64, as above, no kernel of the CUDA library runs; on the emulation: tests/emulation/test_network.py.
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["k3", "k5"])
def test_the_cuda_kernels_give_the_official_results_in_float32(name):
    assert_no_worse(golden_errors(name, "cuda", "cuda"))


@pytest.mark.gpu
def test_the_cuda_kernels_are_no_worse_than_pytorch_in_bfloat16_on_the_official_results_too():
    assert_no_worse(golden_autocast_errors("cuda", "cuda"))


@pytest.mark.gpu
def test_the_cuda_kernels_are_no_worse_than_pytorch_in_bfloat16_with_kernels_of_5():
    assert_no_worse(autocast_errors(5, "cuda", "cuda"))
