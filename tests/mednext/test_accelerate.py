"""``accelerate`` changes the forward of somebody else's blocks and nothing else."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

import mednext
from mednext import MedNeXtBlock, accelerate
from mednext.eager import EagerBlock, EagerMedNeXt

monai_nets = pytest.importorskip("monai.networks.nets.mednext")

MONAI = {  # the published counts and ratios; the width is ours, to be quick
    "S": (2, 2, 2, (2, 2, 2, 2), 2, (2, 2, 2, 2)),
    "B": ((2, 3, 4, 4), 4, (4, 4, 3, 2), (2, 2, 2, 2), 2, (2, 2, 2, 2)),
    "M": ((2, 3, 4, 4), 4, (4, 4, 3, 2), (3, 4, 4, 4), 4, (4, 4, 4, 3)),
    "L": ((3, 4, 8, 8), 8, (8, 8, 4, 3), (3, 4, 8, 8), 8, (8, 8, 4, 3)),
}


def monai(variant="S", **options):
    names = ("encoder_expansion_ratio", "bottleneck_expansion_ratio", "decoder_expansion_ratio")
    names += ("blocks_down", "blocks_bottleneck", "blocks_up")
    arguments = {"init_filters": 4, "out_channels": 3, "kernel_size": 3, "use_residual_connection": True}
    return monai_nets.MedNeXt(**arguments | dict(zip(names, MONAI[variant], strict=True)) | options)


def results(network, x):
    outputs = network(x)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    network.zero_grad()
    sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum() for y in outputs).backward()
    grads = {name: p.grad.clone() for name, p in network.named_parameters() if name != "dummy_tensor"}
    return [y.detach() for y in outputs], grads


def assert_same(network, x, rtol=1e-10):
    outputs, grads = results(network, x)
    state, parameters = list(network.state_dict()), list(network.parameters())
    assert accelerate(network) is network
    assert list(network.state_dict()) == state
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    ours, our_grads = results(network, x)
    for y, expected in zip(ours, outputs, strict=True):
        torch.testing.assert_close(y, expected, rtol=rtol, atol=rtol)
    scale = max(grad.abs().max().item() for grad in grads.values())
    for name, expected in grads.items():
        torch.testing.assert_close(
            our_grads[name], expected, rtol=1e-7, atol=1e-9 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("variant", MONAI)
def test_monai_networks_give_the_same_results(variant, filled):
    network = filled(monai(variant, deep_supervision=True), 21)
    assert_same(network, torch.randn(1, 1, 16, 16, 32, dtype=torch.float64))
    assert sum(isinstance(module, MedNeXtBlock) for module in network.modules()) == 8 + sum(
        sum(counts) if isinstance(counts, tuple) else counts for counts in MONAI[variant][3:]
    )


@pytest.mark.parametrize("variant", MONAI)
def test_the_published_monai_networks_give_the_same_output(variant):
    network = monai_nets.create_mednext(variant).double().eval()
    x = torch.randn(1, 1, 16, 16, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(accelerate(network)(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options", [{"global_resp_norm": True}, {"spatial_dims": 2}, {"use_residual_connection": False}]
)
def test_monai_options_give_the_same_results(options, filled):
    network = filled(monai(**options), 22)
    assert_same(network, torch.randn(2, 1, *[16, 16, 32][-options.get("spatial_dims", 3) :], dtype=torch.float64))
    if "global_resp_norm" in options:
        assert "bottleneck.0.global_resp_gamma" in network.state_dict()


@pytest.mark.parametrize("options", [{"grn": True}, {"dim": "2d"}], ids=str)
def test_official_networks_give_the_same_results(tiny, filled, options):
    network = filled(EagerMedNeXt(**tiny | options, deep_supervision=True), 23)
    assert_same(network, torch.randn(2, 1, *[16, 16, 32][-int(options.get("dim", "3d")[0]) :], dtype=torch.float64))


def test_mode_hooks_frozen_parameters_and_random_numbers_stay():
    network = monai(deep_supervision=True).eval()
    network.stem.requires_grad_(False)
    seen = []
    network.bottleneck[0].register_forward_hook(lambda *_: seen.append(1))
    before = torch.get_rng_state()
    accelerate(network)
    assert torch.equal(before, torch.get_rng_state()) and not seen
    assert not network.training and not network.bottleneck[0].training
    assert not network.stem.weight.requires_grad and network.bottleneck[0].conv1.weight.requires_grad
    network(torch.randn(1, 1, 16, 16, 16))
    assert seen == [1]


def test_an_optimizer_made_before_goes_on_training():
    network = monai()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    accelerate(network)
    before = network.down_blocks[0].conv2.weight.detach().clone()
    network(torch.randn(1, 1, 16, 16, 16)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, network.down_blocks[0].conv2.weight)


def test_recompute_reaches_every_block_also_again_and_on_ours(tiny):
    network = accelerate(monai(), recompute="conv")
    blocks = [module for module in network.modules() if isinstance(module, MedNeXtBlock)]
    assert {block.recompute for block in blocks} == {"conv"}
    accelerate(network)
    assert {block.recompute for block in blocks} == {None}
    ours = accelerate(mednext.MedNeXt(**tiny), recompute="conv")
    assert ours.up_3.recompute == "conv"


def test_accelerated_networks_copy_and_save(tmp_path):
    network = accelerate(monai().double())
    x = torch.randn(1, 1, 16, 16, 16, dtype=torch.float64)
    assert torch.equal(copy.deepcopy(network)(x), network(x))
    torch.save(network, tmp_path / "network.pt")
    assert torch.equal(torch.load(tmp_path / "network.pt", weights_only=False)(x), network(x))


def test_blocks_that_the_operator_does_not_cover_stay(caplog):
    network = monai()
    network.bottleneck[1].act = nn.ReLU()
    with caplog.at_level(logging.WARNING, "mednext"):
        accelerate(network)
    assert "block bottleneck.1 stays as it is: act is a ReLU" in caplog.text
    assert isinstance(network.bottleneck[0], MedNeXtBlock) and not isinstance(network.bottleneck[1], MedNeXtBlock)


class Scaled(EagerBlock):
    """Looks like a MedNeXt block and computes something else."""

    def forward(self, x):
        return 0.5 * super().forward(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_meta_networks_are_accelerated(dtype):
    for network in (monai().to(dtype), monai().to("meta")):
        assert isinstance(accelerate(network).bottleneck[0], MedNeXtBlock)


def test_a_block_that_computes_something_else_is_refused_and_nothing_changes():
    model = nn.Sequential(EagerBlock(2, 2, 2, 3, True, 0, 3, False), Scaled(2, 2, 2, 3, True, 0, 3, False))
    before = [dict(block.__dict__) for block in model]
    with pytest.raises(ValueError, match="block 1 of the model computes something else"):
        accelerate(model)
    assert [type(block) for block in model] == [EagerBlock, Scaled]
    assert [dict(block.__dict__) for block in model] == before


def test_a_model_without_blocks_is_named():
    with pytest.raises(ValueError, match=r"model \(Linear\) has no MedNeXt block.*found no block at all"):
        accelerate(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"found enc_stages\.0\.0: norm is a LayerNorm"):
        accelerate(monai(norm_type="layer"))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        accelerate("model.pth")
    with pytest.raises(ValueError, match="recompute must be one of None, 'conv', got 'all'"):
        accelerate(monai(), recompute="all")
