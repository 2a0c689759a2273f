"""The published variants by name: the official state dicts and parameter counts."""

from __future__ import annotations

import json

import pytest
import torch

from mednext import create_mednext
from mednext.network import MedNeXt

MILLIONS = {
    "S_k3": 5.55,
    "B_k3": 10.53,
    "M_k3": 17.55,
    "L_k3": 61.78,
    "S_k5": 5.98,
    "B_k5": 10.96,
    "M_k5": 18.26,
    "L_k5": 63.00,
}


def create(variant, *arguments, **options):
    with torch.device("meta"):  # shapes without memory
        return create_mednext(variant, *arguments, **options)


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", MILLIONS)
def test_state_dict_keys_and_shapes_are_the_official_ones(name, data):
    official = json.loads((data / "official_v1_state_dict_shapes.json").read_text())[name]
    variant, kernel = name.split("_k")
    ours = create(variant, 1, 3, int(kernel), deep_supervision=True).state_dict()
    assert {key: list(tensor.shape) for key, tensor in ours.items()} == official
    assert list(ours) == list(official)


@pytest.mark.parametrize("name", MILLIONS)
def test_parameter_counts_are_the_published_ones(name):
    variant, kernel = name.split("_k")
    assert round(parameter_count(create(variant, 1, 3, int(kernel))) / 1e6, 2) == MILLIONS[name]


@pytest.mark.parametrize(("variant", "width", "millions"), [("v2-base", 32, 62), ("v2-wide", 64, 247)])
def test_v2_has_grn_in_every_block(variant, width, millions):
    network = create(variant, 1, 3)
    assert network.stem.out_channels == width
    assert round(parameter_count(network) / 1e6) == millions
    blocks = [module for module in network.modules() if hasattr(module, "conv1")]
    assert blocks and all(hasattr(block, "grn_gamma") for block in blocks)


def test_grn_in_v1_leaves_out_down_0():
    network = MedNeXt(1, 2, 2, 2, 3, grn=True)
    without = [name for name, module in network.named_modules() if hasattr(module, "conv1") and not module.grn]
    assert without == ["down_0"]


def test_kernel_7_and_overrides():
    network = create("B", 2, 4, 7, n_channels=8, norm_type="layer", dim="2d")
    assert network.enc_block_0[0].conv1.weight.shape == (8, 1, 7, 7)
    assert type(network.enc_block_0[0].norm).__name__ == "LayerNorm"


@pytest.mark.parametrize("variant", ["XL", "s", ""])
def test_an_unknown_variant_is_named(variant):
    with pytest.raises(ValueError, match=f"variant must be one of 'S', 'B'.*got '{variant}'"):
        create_mednext(variant, 1, 3)
