"""What our networks keep for backward under bf16 autocast with deep supervision, in bytes a voxel."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mednext import create_mednext
from mednext.bench.peak import peak_bytes
from mednext.eager import EagerMedNeXt
from mednext.memory import saved_bytes, saved_bytes_per_voxel

BASE = [2, 3, 4, 4, 4, 4, 4, 3, 2]
LARGE = [3, 4, 8, 8, 8, 8, 8, 4, 3]
RESIDUALS = {"do_res": True, "do_res_up_down": True, "deep_supervision": True}


@pytest.mark.parametrize(
    ("variant", "recompute", "limit"), [("B", None, 1100), ("L", None, 1600), ("B", "conv", 600), ("L", "conv", 900)]
)
def test_saved_bytes_from_32_to_64_cubed(variant, recompute, limit):
    with FakeTensorMode():  # sizes and autograd are real, only the numbers are not computed
        network = create_mednext(variant, 1, 3, deep_supervision=True, recompute=recompute)
        assert saved_bytes_per_voxel(network, extents=(32, 64)) <= limit


@pytest.mark.parametrize(("recompute", "limit"), [(None, 1100), ("conv", 600)])
def test_saved_bytes_of_a_real_run(recompute, limit):
    network = create_mednext("B", 1, 3, deep_supervision=True, recompute=recompute)
    assert saved_bytes_per_voxel(network, extents=(16, 32)) <= limit


def peak_bytes_per_voxel(network, extents):
    """What forward and backward of one scan take at their peak, above weights and gradients that are there before."""
    device = next(network.parameters()).device

    def measure(extent):
        x = torch.randn(1, 1, extent, extent, extent, device=device)

        def step():
            with torch.autocast(device.type, torch.bfloat16):
                outputs = network(x)
            torch.stack([y.float().square().mean() for y in outputs]).sum().backward()

        step()  # makes the gradients, which the next one adds to
        return peak_bytes(step, device)

    small, large = extents
    return (measure(large) - measure(small)) / (large**3 - small**3)


# Measured on an H200 at 128^3, cross entropy and labels included: B 1210 to 1240, L 1650. With "conv" half of what is
# saved is not there, and the output of one convolution is there again.
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("variant", "recompute", "saved", "peak"),
    [("B", None, 1100, 1400), ("L", None, 1600, 1850), ("B", "conv", 600, 1000), ("L", "conv", 900, 1150)],
)
def test_a_step_on_a_gpu_takes_little_more_than_what_is_saved(variant, recompute, saved, peak):
    network = create_mednext(variant, 1, 3, deep_supervision=True, recompute=recompute).cuda()
    assert saved_bytes_per_voxel(network, extents=(32, 64)) <= saved
    assert peak_bytes_per_voxel(network, (64, 128)) <= peak


@pytest.mark.parametrize(
    ("arguments", "official"),
    [({"exp_r": BASE}, 3911), ({"exp_r": LARGE, "block_counts": LARGE}, 8147)],
    ids=["B", "L"],
)
def test_the_eager_baseline_saves_what_the_official_code_does(arguments, official):
    with FakeTensorMode():
        network = EagerMedNeXt(1, 32, 3, kernel_size=3, **RESIDUALS, **arguments)
        assert saved_bytes_per_voxel(network, extents=(32, 64)) == pytest.approx(official, abs=1)


def test_weights_do_not_count_and_shared_storage_counts_once():
    linear = torch.nn.Linear(4, 4)
    x = torch.zeros(8, 4, requires_grad=True)
    assert saved_bytes(linear, lambda: linear(x) + linear(x.view(8, 4))) == 8 * 4 * 4
