"""UpKern: the official interpolation, in 3D and 2D, in one step or several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mednext import MedNeXt, upkern


def test_upkern_from_3_to_5_is_the_official_one(golden_k3, filled, data):
    small = filled(MedNeXt(**golden_k3.arguments), golden_k3.seed)
    large = filled(MedNeXt(**golden_k3.arguments | {"kernel_size": 5}), 1)
    assert upkern(small, large) is large
    ours = large.state_dict()
    with np.load(data / "official_v1_upkern_k3_to_k5.npz") as official:
        for key in official.files:
            np.testing.assert_array_equal(ours[key].float().numpy(), official[key], err_msg=key)
    for key, weight in small.state_dict().items():
        assert key.endswith("conv1.weight") or torch.equal(ours[key], weight), key


def test_several_steps_and_planes(tiny):
    sizes = [MedNeXt(**tiny | {"kernel_size": size, "dim": "2d"}) for size in (3, 5, 7)]
    expected = sizes[0].down_1.conv1.weight
    for size in (5, 7):
        expected = F.interpolate(expected, (size, size), mode="bilinear")
    upkern(upkern(sizes[0], sizes[1]), sizes[2])
    assert torch.equal(sizes[2].down_1.conv1.weight, expected)


def test_an_axis_may_stay(tiny):
    small, large = (MedNeXt(**tiny | {"kernel_size": kernel}) for kernel in ((1, 3, 3), (1, 5, 7)))
    weight = small.up_0.conv1.weight
    assert torch.equal(upkern(small, large).up_0.conv1.weight, F.interpolate(weight, (1, 5, 7), mode="trilinear"))


def test_a_half_precision_network_keeps_its_dtype(tiny):
    large = MedNeXt(**tiny | {"kernel_size": 5}).bfloat16()
    upkern(MedNeXt(**tiny), large)
    assert large.stem.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("small", "large", "message"),
    [
        (
            {"kernel_size": 5},
            {"kernel_size": 3},
            r"conv1\.weight: \[2, 1, 5, 5, 5\] in small, \[2, 1, 3, 3, 3\] in large",
        ),
        ({}, {"n_classes": 4}, r"out_0\.conv_out\.weight: \[2, 3, 1, 1, 1\] in small, \[2, 4, 1, 1, 1\] in large"),
        ({}, {"grn": True}, r"grn_beta: only in large"),
        ({"block_counts": [3] * 9}, {}, r"and \d+ more"),
        ({"dim": "2d"}, {}, r"stem\.weight: \[2, 1, 1, 1\] in small"),
    ],
)
def test_networks_that_differ_otherwise_are_named_and_left_alone(tiny, small, large, message):
    target = MedNeXt(**tiny | large)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        upkern(MedNeXt(**tiny | small), target)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_a_path_in_the_place_of_a_network_is_named(tiny):
    with pytest.raises(TypeError, match=r"small must be a torch\.nn\.Module, got str"):
        upkern("model.pth", MedNeXt(**tiny))
    with pytest.raises(TypeError, match=r"large must be a torch\.nn\.Module, got NoneType"):
        upkern(MedNeXt(**tiny), None)


@pytest.mark.parametrize("which", ["small", "large"])
def test_a_network_without_values_is_refused(tiny, which):
    networks = {"small": MedNeXt(**tiny), "large": MedNeXt(**tiny | {"kernel_size": 5})}
    networks[which].to("meta")
    before = networks["large"].stem.weight.clone()
    with pytest.raises(ValueError, match=f"{which} has .* on the meta device"):
        upkern(networks["small"], networks["large"])
    assert which == "large" or torch.equal(before, networks["large"].stem.weight)
