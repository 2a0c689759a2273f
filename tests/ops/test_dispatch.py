"""When calls go by way of PyTorch's dispatcher, and that nothing depends on it."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mednext_ops as ops
from mednext_ops.ops.library import Operator

from .eager import Block

implementation = importlib.import_module("mednext_ops.ops.mednext_block")


@pytest.fixture
def dispatched(monkeypatch) -> list[str]:
    """The names of the block's ops, forward and backward, that went by way of the dispatcher."""
    found: list[str] = []

    def watch(operator: Operator) -> None:
        overload = operator.overload

        class Watched:
            def __getattr__(self, name):
                return getattr(overload, name)

            def __call__(self, *args):
                found.append(overload._schema.name)
                return overload(*args)

        monkeypatch.setattr(operator, "overload", Watched())

    for operator in (implementation._op, implementation._gradient_op):
        watch(operator)
    return found


BOTH = ["mednext_ops::mednext_block", "mednext_ops::mednext_block_backward"]


def draw(form="regular", **options):
    return Block.random(form, (3, 3, 3), (4, 5, 6), 1, 4, 8, **options)


def gradients(block, form="regular", stride=(1, 1, 1)):
    output = block.ours(form, stride, 4)
    return [output, *torch.autograd.grad(output.sum(), list(block.tensors().values()))]


@pytest.mark.parametrize(("form", "stride"), [("regular", (1, 1, 1)), ("down", (2, 2, 2)), ("up", (2, 2, 2))])
def test_a_plain_call_goes_around_it_and_has_the_same_bits(monkeypatch, dispatched, form, stride):
    block = draw(form)
    ours = gradients(block, form, stride)
    assert dispatched == []
    library = importlib.import_module("mednext_ops.ops.library")
    monkeypatch.setattr(library, "_is_plain_call", lambda args: False)
    theirs = gradients(block, form, stride)
    assert dispatched == BOTH
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_profiler_sees_the_ops(dispatched):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        gradients(draw())
    assert dispatched == BOTH
    assert {"mednext_ops::mednext_block", "mednext_ops::mednext_block_backward"} <= {
        e.key for e in profile.key_averages()
    }


def test_a_dispatch_mode_sees_the_ops(dispatched):
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function._schema.name)
            return function(*args, **(kwargs or {}))

    with Mode():
        gradients(draw())
    assert dispatched == BOTH and set(BOTH) <= set(seen)


def test_a_function_mode_sees_the_ops(dispatched):
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    block = draw()
    with Mode():
        block.ours("regular", (1, 1, 1), 4)
    assert dispatched == BOTH[:1] and "mednext_ops.mednext_block.default" in seen


def test_a_tracer_before_dispatch_records_the_op_and_no_backends():
    from torch.fx.experimental.proxy_tensor import make_fx

    x, weight = torch.randn(1, 2, 4, 4, 4), torch.randn(2, 1, 3, 3, 3)
    for pre_dispatch in (False, True):
        graph = make_fx(lambda x, w: ops.depthwise_conv3d(x, w, padding=1), pre_dispatch=pre_dispatch)(x, weight).graph
        called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
        assert called == {"mednext_ops.depthwise_conv3d.default"}


@pytest.mark.parametrize(("form", "stride"), [("regular", (1, 1, 1)), ("down", (2, 2, 2)), ("up", (2, 2, 2))])
def test_on_the_meta_device_there_are_shapes(form, stride):
    block = draw(form)
    real = gradients(block, form, stride)
    meta = replace(block, **{n: t.detach().to("meta").requires_grad_() for n, t in block.tensors().items()})
    assert [t.shape for t in gradients(meta, form, stride)] == [t.shape for t in real]
    with torch.no_grad():
        assert meta.ours(form, stride, 4).shape == real[0].shape


def test_a_subclass_of_tensor_goes_by_way_of_it(dispatched):
    class Named(torch.Tensor):
        pass

    block = draw()
    block = replace(block, input=block.input.detach().as_subclass(Named))
    block.ours("regular", (1, 1, 1), 4)
    assert dispatched == BOTH[:1]


def test_a_transform_of_functions_goes_by_way_of_it(dispatched):
    block = draw()
    input, *parameters = [t.detach() for t in block.tensors().values()]
    names = [name for name in block.tensors() if name != "input"]

    def loss(x):
        values = dict(zip(names, parameters, strict=True))
        return replace(block, input=x, **values).ours("regular", (1, 1, 1), 4).sum()

    with pytest.raises(RuntimeError, match="functorch transforms"):  # as PyTorch says of every custom op's gradient
        torch.func.grad(loss)(input)
    assert dispatched == BOTH[:1]


def test_autocast_is_what_it_was_after_an_error(monkeypatch):
    def fail(*args):
        raise RuntimeError("no memory")

    monkeypatch.setattr(implementation._op, "implementation", fail)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="no memory"):
            draw().ours("regular", (1, 1, 1), 4)
        assert torch.is_autocast_enabled("cpu")


def test_what_was_found_right_once_is_not_taken_for_something_else():
    block = draw("down")
    t = {name: tensor.detach() for name, tensor in block.tensors().items()}
    rest = [
        t[name] for name in ("conv_weight", "conv_bias", "norm_weight", "norm_bias", "expand_weight", "expand_bias")
    ]
    rest += [t["compress_weight"], t["compress_bias"]]
    residual = {"residual_weight": t["residual_weight"], "residual_bias": t["residual_bias"]}

    def call(input=t["input"], stride=2, groups=4, weights=rest):
        return ops.mednext_block(input, *weights, form="down", stride=stride, num_groups=groups, **residual)

    right = call()
    assert torch.equal(call(), right) and torch.equal(call(stride=(2, 2, 2)), right)
    assert torch.equal(call(stride=[2, 2, 2]), right)
    with pytest.raises(ValueError, match="stride must be an int"):
        call(stride=2.0)
    with pytest.raises(ValueError, match="stride must be an int"):
        call(stride=(2.0, 2, 2))
    with pytest.raises(ValueError, match="num_groups must be"):
        call(groups=4.0)
    with pytest.raises(ValueError, match="num_groups must be"):
        call(groups=3)
    for _ in range(2):  # an error is no finding
        with pytest.raises(ValueError, match="norm_weight must have shape"):
            call(weights=[*rest[:2], torch.ones(5), *rest[3:]])
        with pytest.raises(TypeError, match="must be the same"):
            call(weights=[*rest[:2], rest[2].half(), *rest[3:]])
    with pytest.raises(ValueError, match="5 dimensions"):
        call(input=t["input"][0])
    assert torch.equal(call(input=t["input"][:, :, :3]), call(input=t["input"][:, :, :3].clone(), stride=[2, 2, 2]))
