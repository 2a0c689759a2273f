"""What PyTorch asks of a custom operator: opcheck, compile, export, autocast, checkpointing, GradScaler."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.library import opcheck

import mednext_ops as ops

from .eager import Block, relative_error

C, R = 4, 8
ONES, HALF = [1, 1, 1], [0, 0, 0]


def tensors(dtype, memory_format=torch.contiguous_format, parameter_dtype=None):
    block = Block.random(with_grn=True, channels=C, hidden=R, size=(4, 5, 6), memory_format=memory_format)
    parameters = block.to(parameter_dtype or dtype).leaves()
    parameters.input = block.input.detach().to(dtype).requires_grad_()
    matrices = {
        "expand_weight": parameters.expand_weight.detach().reshape(R, C).requires_grad_(),
        "compress_weight": parameters.compress_weight.detach().reshape(C, R).requires_grad_(),
        "gamma": parameters.gamma.detach().reshape(R).requires_grad_(),
        "beta": parameters.beta.detach().reshape(R).requires_grad_(),
    }
    return parameters.tensors() | matrices


def calls(dtype, memory_format, parameter_dtype):
    """Every differentiable op of the namespace, with arguments."""
    t = tensors(dtype, memory_format, parameter_dtype)
    conv = (t["conv_weight"], t["conv_bias"])
    norm = (t["norm_weight"], t["norm_bias"])
    mlp = (t["expand_weight"], t["expand_bias"], t["compress_weight"], t["compress_bias"])
    grn = (t["gamma"], t["beta"])
    x = t["input"]
    grad = torch.randn_like(x).requires_grad_()
    skip = torch.randn(x.shape[0], C, *(2 * n for n in x.shape[2:])).to(dtype).contiguous(memory_format=memory_format)
    skip.requires_grad_()
    geometry = (ONES, ONES, ONES, HALF)
    mean, rstd = (s.detach().requires_grad_() for s in ops.group_norm_statistics(x))
    space = torch.ops.mednext_ops
    return {
        "depthwise_conv3d": (space.depthwise_conv3d, (x, *conv, *geometry)),
        "depthwise_conv3d_backward_data": (space.depthwise_conv3d_backward_data, (grad, conv[0], [4, 5, 6], *geometry)),
        "depthwise_conv3d_backward_weight": (space.depthwise_conv3d_backward_weight, (grad, x, [3, 3, 3], *geometry)),
        "depthwise_conv_transpose3d": (space.depthwise_conv_transpose3d, (x, *conv, [2, 2, 2], ONES, ONES, ONES)),
        "group_norm_statistics": (space.group_norm_statistics, (x, 2, 1e-5)),
        "depthwise_conv3d_group_norm": (
            space.depthwise_conv3d_group_norm,
            (x, *conv, *norm, ONES, ONES, 2, 1e-5, "gelu"),
        ),
        "inverted_bottleneck": (space.inverted_bottleneck, (x, mean, rstd, *norm, *mlp, *grn, grad)),
        "pointwise_conv3d": (space.pointwise_conv3d, (x, t["expand_weight"], t["expand_bias"])),
        "mednext_block": (
            space.mednext_block,
            (x, *conv, *norm, *mlp, None, None, *grn, "regular", ONES, True, C, 1e-5, False, None),
        ),
        "mednext_block, recomputing": (
            space.mednext_block,
            (x, *conv, *norm, *mlp, None, None, None, None, "regular", ONES, True, 2, 1e-5, True, None),
        ),
        "mednext_block, with a skip": (
            space.mednext_block,
            (x, *conv, *norm, *mlp, None, None, *grn, "up", [2, 2, 2], False, C, 1e-5, False, skip),
        ),
    }


# Listed, not called for: an op that crashes must not take every other test along when tests are collected.
NAMES = [
    "depthwise_conv3d",
    "depthwise_conv3d_backward_data",
    "depthwise_conv3d_backward_weight",
    "depthwise_conv_transpose3d",
    "group_norm_statistics",
    "depthwise_conv3d_group_norm",
    "inverted_bottleneck",
    "pointwise_conv3d",
    "mednext_block",
    "mednext_block, recomputing",
    "mednext_block, with a skip",
]
FORMATS = [torch.contiguous_format, torch.channels_last_3d]


def test_every_call_is_tried():
    assert list(calls(torch.float32, torch.contiguous_format, None)) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last_3d"])
@pytest.mark.parametrize(
    ("dtype", "parameter_dtype"), [(torch.float64, None), (torch.float32, None), (torch.bfloat16, torch.float32)]
)
def test_opcheck(name, memory_format, dtype, parameter_dtype):
    op, arguments = calls(dtype, memory_format, parameter_dtype)[name]
    # A gradient may arrive in the other memory format there, which changes the order of a sum.
    opcheck(op.default, arguments, rtol=1e-4, atol=1e-4)


class Net(torch.nn.Module):
    """Layers of ours with a plain PyTorch one between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ops.nn.DepthwiseConvNormAct3d(C, 3)
        self.mix = torch.nn.Conv3d(C, C, 1)
        self.down = ops.nn.DepthwiseConv3d(C, 3, stride=2, padding=1)
        self.up = ops.nn.DepthwiseConvTranspose3d(C, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(self.mix(self.first(x))))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break_and_with_the_same_results(dynamic):
    net = Net()
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, dynamic=dynamic)
    for size in ((6, 6, 6), (8, 4, 6)):
        x = torch.randn(1, C, *size)
        expected, actual = net(x), compiled(x)
        assert relative_error(actual, expected) <= 1e-5
        expected.square().sum().backward()
        actual.square().sum().backward()
    for name, parameter in net.named_parameters():
        if name != "first.conv.bias":
            assert relative_error(dict(compiled._orig_mod.named_parameters())[name].grad, parameter.grad) <= 1e-4, name


def test_exports_with_dynamic_extents():
    net = Net().eval()
    dim = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        net, (torch.randn(2, C, 6, 8, 6),), dynamic_shapes=({0: dim, 2: dim, 3: dim, 4: dim},)
    )
    x = torch.randn(1, C, 10, 6, 8)
    assert relative_error(program.module()(x), net(x)) <= 1e-6
    targets = {str(node.target) for node in program.graph.nodes}
    assert "mednext_ops.depthwise_conv3d_group_norm.default" in targets


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_activations_and_keeps_float32_gradients_of_parameters(device, dtype):
    net = Net().to(device)
    x = torch.randn(2, C, 6, 6, 6, device=device)
    with torch.autocast(device, dtype):
        y = net(x)
        block = Block.random(dtype=torch.float32, device=device)
        assert block.ours("regular", ONES, 4).dtype == dtype
        assert ops.depthwise_conv3d(x, net.down.weight).dtype == dtype
    assert y.dtype == dtype
    assert relative_error(y, net(x)) <= 0.1
    y.float().sum().backward()
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}


def test_autocast_leaves_float64_alone():
    block = Block.random()
    with torch.autocast("cpu", torch.bfloat16):
        assert block.ours("regular", ONES, 4).dtype == torch.float64


def test_autocast_computes_the_same_as_casting_by_hand():
    block = Block.random(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = block.ours("regular", ONES, 4)
    block.input = block.input.detach().bfloat16()
    assert torch.equal(automatic, block.ours("regular", ONES, 4))


def test_activation_checkpointing_gives_the_same_gradients():
    block = Block.random()
    names = list(block.tensors())
    plain = torch.autograd.grad(block.ours("regular", ONES, 4).sum(), list(block.tensors().values()))

    def run(*values):
        for name, value in zip(names, values, strict=True):
            setattr(block, name, value)
        return block.ours("regular", ONES, 4)

    leaves = list(block.tensors().values())
    again = torch.utils.checkpoint.checkpoint(run, *leaves, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(again.sum(), leaves), plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "layer", [ops.nn.DepthwiseConv3d, ops.nn.DepthwiseConvTranspose3d, ops.nn.DepthwiseConvNormAct3d]
)
def test_tracing_is_refused_with_the_way_out(layer):
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot record .* use torch\.export\.export"):
        torch.jit.trace(layer(C, 3), torch.randn(1, C, 6, 6, 6))


def test_functional_gradients_raise_and_functional_calls_work():
    """What the documentation says of torch.func."""
    net, x = Net(), torch.randn(1, C, 6, 6, 6)
    parameters = dict(net.named_parameters())
    assert torch.equal(torch.func.functional_call(net, parameters, x), net(x))
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda p: torch.func.functional_call(net, p, x).sum())(parameters)


def test_importing_does_not_initialise_cuda():
    import subprocess
    import sys

    code = "import mednext_ops, torch; assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)
