"""The blocks alone: the fused operator, the plain composition, and the choice between them."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from mednext import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock, OutBlock
from mednext.fusable import why_not_fusable

BLOCKS = [MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock]


def randomised(block, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in block.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return block


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(block, x, forward):
    x = x.clone().requires_grad_()
    output = forward(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    (output * weights).sum().backward()
    result = {"output": output.detach(), "input": x.grad} | {n: p.grad.clone() for n, p in block.named_parameters()}
    block.zero_grad()
    return result


def assert_fused_is_composed(block, x):
    assert why_not_fusable(block, block.form) is None
    fused, composed = gradients(block, x, block), gradients(block, x, block._composed)
    for name, expected in composed.items():
        torch.testing.assert_close(fused[name], expected, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("recompute", [None, "conv"])
@pytest.mark.parametrize("grn", [False, True])
@pytest.mark.parametrize("dim", ["3d", "2d"])
@pytest.mark.parametrize("block_type", BLOCKS)
def test_a_block_is_its_submodules_composed(block_type, dim, grn, recompute):
    block = randomised(block_type(3, 3, 2, 5, True, dim=dim, grn=grn, recompute=recompute))
    assert_fused_is_composed(block, image(2, 3, *[6] * int(dim[0])))


@pytest.mark.parametrize("norm_type", ["group", "layer"])
@pytest.mark.parametrize("dim", ["3d", "2d"])
def test_an_up_block_adds_a_skip(dim, norm_type):
    block = randomised(MedNeXtUpBlock(3, 2, 2, 3, True, norm_type, dim))
    x, skip = image(2, 3, *[4] * int(dim[0])), image(2, 2, *[8] * int(dim[0])).requires_grad_()
    assert (why_not_fusable(block, "up") is None) == (norm_type == "group")
    output = block(x, skip=skip)
    torch.testing.assert_close(output, skip + block(x), rtol=1e-9, atol=1e-9)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    assert torch.equal(torch.autograd.grad((output * weights).sum(), skip)[0], weights)


@pytest.mark.parametrize("norm_type", ["group", "layer"])
@pytest.mark.parametrize("dim", ["3d", "2d"])
def test_a_down_block_keeps_its_input_for_a_skip(dim, norm_type):
    block, x = randomised(MedNeXtDownBlock(3, 6, 2, 3, True, norm_type, dim)), image(2, 3, *[6] * int(dim[0]))
    x.requires_grad_()
    output, kept = block(x, keep_input=True)
    assert torch.equal(output, block(x)) and torch.equal(kept, x)
    found, expected = (
        torch.autograd.grad(y.sum() + k.square().sum(), x)[0] for y, k in ((output, kept), (block(x), x))
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    block_type=st.sampled_from(BLOCKS),
    kernel=st.tuples(*[st.sampled_from([1, 3, 5])] * 3),
    stride=st.tuples(*[st.sampled_from([1, 2])] * 3),
    extent=st.tuples(*[st.integers(1, 6)] * 3),
    residual=st.booleans(),
)
def test_any_kernel_stride_and_extent_an_axis(block_type, kernel, stride, extent, residual):
    if block_type is MedNeXtBlock:
        block, expected = block_type(2, 2, 2, kernel, residual), extent
    else:
        block = block_type(2, 4, 2, kernel, residual, stride=stride)
        up = block_type is MedNeXtUpBlock
        expected = tuple(n * s if up else -(-n // s) for n, s in zip(extent, stride, strict=True))
    x = image(1, 2, *extent)
    if any(k > 1 for k in kernel) or min(extent) > 1:  # else the norm sees one voxel and rounding decides
        assert_fused_is_composed(randomised(block), x)
    assert block.double()(x).shape[2:] == expected


@pytest.mark.parametrize("dim", ["3d", "2d"])
@pytest.mark.parametrize("block_type", BLOCKS)
def test_layer_norm_is_over_the_channels_of_each_voxel(block_type, dim):
    block = randomised(block_type(4, 4, 2, 3, True, "layer", dim=dim))
    x = image(2, 4, *[6] * int(dim[0]))
    y = block.norm(x)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    shape = (1, 4, *[1] * int(dim[0]))
    expected = (x - mean) / (variance + 1e-5).sqrt() * block.norm.weight.reshape(shape) + block.norm.bias.reshape(shape)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    assert y.is_contiguous()
    block(x).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_n_groups_makes_a_grouped_convolution():
    block = MedNeXtBlock(8, 8, 2, 3, n_groups=2)
    assert block.conv1.weight.shape == (8, 4, 3, 3, 3)
    assert block(torch.randn(1, 8, 4, 4, 4)).shape == (1, 8, 4, 4, 4)


@pytest.mark.parametrize("block_type", BLOCKS)
def test_the_official_second_argument_is_accepted(block_type):
    block = block_type(2, 2, 2, 3, True)
    x = torch.randn(1, 2, 4, 4, 4)
    assert torch.equal(block(x, torch.ones(1)), block(x))


def test_an_out_block_is_a_1x1_convolution():
    head = OutBlock(4, 3, "3d")
    x = torch.randn(2, 4, 3, 3, 3)
    expected = torch.einsum("ncdhw,ck->nkdhw", x, head.conv_out.weight[:, :, 0, 0, 0]) + head.conv_out.bias.reshape(
        1, 3, 1, 1, 1
    )
    torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block_type", BLOCKS)
def test_the_memory_format_is_kept(block_type):
    block = block_type(4, 4, 2, 3, True)
    x = torch.randn(1, 4, 6, 6, 6).contiguous(memory_format=torch.channels_last_3d)
    assert block(x).is_contiguous(memory_format=torch.channels_last_3d)
    assert block(x.contiguous()).is_contiguous()


def test_module_walking_initialisation_finds_the_layers():
    block = MedNeXtUpBlock(2, 2, 2, 3, True)

    def initialise(module):
        if isinstance(module, (nn.Conv3d, nn.Conv2d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.constant_(module.weight, 0.5)
            nn.init.zeros_(module.bias)

    block.apply(initialise)
    for name in ("conv1", "conv2", "conv3", "res_conv"):
        assert (getattr(block, name).weight == 0.5).all()


class Doubled(nn.GELU):
    def forward(self, x):
        return 2 * super().forward(x)


def swap_act(block):
    block.act = Doubled()


def function_for_act(block):
    del block.act
    block.act = nn.functional.gelu


def swap_norm(block):
    block.norm = nn.InstanceNorm3d(2, affine=True).double()


def tanh_gelu(block):
    block.act = nn.GELU(approximate="tanh")


def dilate(block):
    block.conv1 = nn.Conv3d(2, 2, 3, padding=2, dilation=2, groups=2).double()


def hook_output(block):
    block.conv2.register_forward_hook(lambda module, inputs, output: output * 2)


def hook_input(block):
    block.conv3.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def replace_forward(block):
    block.conv2.forward = lambda x: nn.Conv3d.forward(block.conv2, x) * 3


def normalise_weight(block):
    parametrizations.weight_norm(block.conv2)


def prune_weight(block):
    prune.random_unstructured(block.conv3, "weight", amount=0.5)


@pytest.mark.parametrize(
    "change",
    [
        swap_act,
        function_for_act,
        swap_norm,
        tanh_gelu,
        dilate,
        hook_output,
        hook_input,
        replace_forward,
        normalise_weight,
        prune_weight,
    ],
)
def test_a_changed_submodule_takes_effect(change):
    block = randomised(MedNeXtBlock(2, 2, 2, 3))
    x = image(1, 2, 5, 5, 5)
    change(block)
    assert why_not_fusable(block, "regular")
    expected = x + block.conv3(block.act(block.conv2(block.norm(block.conv1(x)))))
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("part", ["conv1", "norm", "conv2", "act", "conv3"])
def test_a_block_without_a_part_is_not_fusable(part):
    block = MedNeXtBlock(2, 2, 2, 3)
    setattr(block, part, None)
    assert why_not_fusable(block, "regular") == f"{part} is a NoneType"


def test_the_log_says_why_a_block_runs_layer_by_layer(caplog):
    block = MedNeXtBlock(2, 2, 2, 3)
    x = torch.randn(1, 2, 4, 4, 4)
    hook_output(block)
    block(x)  # with the log off
    with caplog.at_level(logging.INFO, logger="mednext_ops"):
        block(x)
        block(x)
        swap_act(block)
        block(x)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "conv2 has a hook or a forward of its own"
    ]
    assert "MedNeXtBlock runs layer by layer" in caplog.text


def test_a_removed_hook_brings_the_operator_back():
    block = MedNeXtBlock(2, 2, 2, 3)
    seen = []
    handle = block.norm.register_forward_hook(lambda *_: seen.append(1))
    block(torch.randn(1, 2, 4, 4, 4))
    handle.remove()
    block(torch.randn(1, 2, 4, 4, 4))
    assert seen == [1] and why_not_fusable(block, "regular") is None


def test_frozen_parameters_get_no_gradient_and_change_no_other():
    block = randomised(MedNeXtBlock(2, 2, 2, 3))
    x = image(1, 2, 5, 5, 5)
    everything = gradients(block, x, block)
    frozen = copy.deepcopy(block)
    for name in ("conv1", "conv3"):
        getattr(frozen, name).requires_grad_(False)
    frozen(x).mul(torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)).sum().backward()
    assert frozen.conv1.weight.grad is None and frozen.conv3.bias.grad is None
    torch.testing.assert_close(frozen.conv2.weight.grad, everything["conv2.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd and positive on every axis, got 4"),
        ({"kernel_size": (3, 3)}, r"kernel_size must be an int or 3 ints, one an axis, got \(3, 3\)"),
        ({"kernel_size": 3.0}, "kernel_size must be an int"),
        ({"in_channels": 0}, "in_channels must be a positive int, got 0"),
        ({"exp_r": 1.5}, "exp_r must be a positive int, got 1.5"),
        ({"out_channels": 5}, "out_channels must be in_channels=2 where do_res adds the input, got 5"),
        ({"norm_type": "batch"}, "norm_type must be one of 'group', 'layer', got 'batch'"),
        ({"dim": "4d"}, "dim must be one of '2d', '3d', got '4d'"),
        ({"n_groups": 3}, "n_groups must divide in_channels=2, got 3"),
        ({"recompute": "all"}, "recompute must be one of None, 'conv', got 'all'"),
        ({"stride": 2}, "stride must be 1 where do_res adds the input, got 2"),
        ({"stride": 3, "do_res": False}, "stride must be 1 or 2 on every axis, got 3"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MedNeXtBlock(**({"in_channels": 2, "out_channels": 2, "exp_r": 2, "kernel_size": 3} | arguments))


@pytest.mark.parametrize(("dim", "layout"), [("3d", r"\[N, C, D, H, W\]"), ("2d", r"\[N, C, H, W\]")])
def test_an_input_of_another_rank_is_named(dim, layout):
    with pytest.raises(ValueError, match=rf"input of a {dim[0]}D MedNeXtBlock must be {layout}, got shape \[2, 4, 4\]"):
        MedNeXtBlock(2, 2, 2, 3, dim=dim)(torch.zeros(2, 4, 4))
