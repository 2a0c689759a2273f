"""Every op on random problems against float64: an error of at most twice PyTorch's own at that dtype."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mednext_ops.backends import InvertedBottleneckNeeds, memory_format_of, reference
from tests.ops.eager import assert_within_twice

from .problems import bottleneck, convolution, widened


def eager_convolution(x, w, b, geometry):
    g, groups = geometry, x.shape[1]
    if g.transposed:
        return F.conv_transpose3d(x, w, b, g.stride, g.padding, g.output_padding, groups, g.dilation)
    return F.conv3d(x, w, b, g.stride, g.padding, g.dilation, groups)


@pytest.mark.parametrize("seed", range(60))
def test_convolution_and_its_gradients(cpu, seed):
    p = convolution(seed)
    output = cpu.depthwise_conv3d(p.input, p.weight, p.bias, p.geometry)
    assert output.is_contiguous(memory_format=memory_format_of(p.input))
    x, w = p.input.clone().requires_grad_(), p.weight.to(p.input.dtype).requires_grad_()
    own = eager_convolution(x, w, p.bias, p.geometry)
    exact = reference.depthwise_conv3d(*map(widened, (p.input, p.weight, p.bias)), p.geometry)
    assert_within_twice(output, own, exact, "output")

    data, weight = cpu.depthwise_conv3d_backward(p.grad_output, p.input, p.weight, p.geometry, p.add, True, True)
    assert data.dtype == p.input.dtype and weight.dtype == torch.float32
    written = reference.convolution.written_out(p.grad_output)
    (own_data,) = torch.autograd.grad(own, x, written, retain_graph=True)
    # Torch 2.13 reads what is not there for the weight: transposed (and ends the process at times), and in
    # channels_last_3d with bfloat16 and few channels, which a copy in the other format avoids.
    if p.geometry.transposed:
        own_weight = reference.depthwise_conv3d_backward(
            written, x.detach(), w.detach(), p.geometry, None, False, True
        )[1]
    else:
        again = eager_convolution(p.input.contiguous(), w, p.bias, p.geometry)
        (own_weight,) = torch.autograd.grad(again, w, written.contiguous())
    exact_data, exact_weight = reference.depthwise_conv3d_backward(
        widened(p.grad_output), widened(p.input), widened(p.weight), p.geometry, widened(p.add), True, True
    )
    assert_within_twice(data, own_data if p.add is None else own_data + p.add, exact_data, "gradient of the input")
    assert_within_twice(weight, own_weight, exact_weight, "gradient of the weight")


@pytest.mark.parametrize("seed", range(40))
def test_fused_statistics_are_those_of_the_output(cpu, seed):
    p = convolution(seed)
    channels = p.input.shape[1]
    for groups in {channels, 1}:
        plain = cpu.depthwise_conv3d(p.input, p.weight, p.bias, p.geometry)
        output, mean, rstd = cpu.depthwise_conv3d_statistics(p.input, p.weight, p.bias, p.geometry, groups, 1e-5)
        assert torch.equal(output, plain)
        values = output.double().contiguous().reshape(output.shape[0], groups, -1)
        variance, exact = torch.var_mean(values, dim=2, correction=0)
        scale = values.abs().amax(2)
        assert ((mean - exact).abs() <= 2**-23 * scale).all()
        assert torch.allclose(rstd.double(), (variance + 1e-5).rsqrt(), rtol=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_inverted_bottleneck_and_its_gradients(cpu, seed):
    arguments = bottleneck(seed)
    input, grn = arguments[0], arguments[9]
    output = cpu.inverted_bottleneck(*arguments)
    assert output.is_contiguous(memory_format=memory_format_of(input))
    exact = reference.inverted_bottleneck(*map(widened, arguments))
    assert_within_twice(output, reference.inverted_bottleneck(*arguments), exact, "output")

    needs = InvertedBottleneckNeeds(True, True, True, True, grn is not None)
    # Some gradients are a few sums that nearly cancel: of one draw the error of one run is as good as that of another.
    together: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    for _ in range(4):
        backward = (torch.randn(output.shape).to(output.dtype), *arguments[:8], grn)
        found = cpu.inverted_bottleneck_backward(*backward, needs)
        own = reference.inverted_bottleneck_backward(*backward, needs)
        exact = reference.inverted_bottleneck_backward(*map(widened, backward), needs)
        for name, ours, theirs, wanted in zip(found._fields, found, own, exact, strict=True):
            assert (ours is None) == (wanted is None), name
            if ours is not None:
                assert ours.shape == wanted.shape
                together.setdefault(name, []).append((ours, theirs, wanted))
    for name, draws in together.items():
        assert_within_twice(*map(torch.stack, zip(*draws, strict=True)), name)


@pytest.mark.parametrize("needed", InvertedBottleneckNeeds._fields)
@pytest.mark.parametrize("seed", [0, 1, 5])
def test_one_gradient_alone_is_that_of_all(cpu, seed, needed):
    arguments = bottleneck(seed)
    grn = arguments[9]
    if needed == "grn" and grn is None:
        grn = tuple(torch.randn(arguments[5].shape[0]) for _ in range(2))
    grad = torch.randn(arguments[0].shape[0], arguments[7].shape[0], *arguments[0].shape[2:]).to(arguments[0].dtype)
    backward = (grad, *arguments[:8], grn)
    everything = cpu.inverted_bottleneck_backward(*backward, InvertedBottleneckNeeds(True, True, True, True, True))
    alone = InvertedBottleneckNeeds(*(field == needed for field in InvertedBottleneckNeeds._fields))
    fields = {
        "input": ("grad",),
        "norm": ("grad_sum", "grad_dot_normalized"),
        "expand": ("expand_weight", "expand_bias"),
        "compress": ("compress_weight", "compress_bias"),
        "grn": ("grn_gamma", "grn_beta"),
    }[needed]
    found = cpu.inverted_bottleneck_backward(*backward, alone)
    for field in fields:
        assert torch.equal(getattr(found, field), getattr(everything, field)), field


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("seed", range(20))
def test_group_norm_and_its_gradient(cpu, seed, activation):
    input, mean, rstd, weight, bias, *_ = bottleneck(seed)
    arguments = (input, mean, rstd, weight, bias)
    output = cpu.group_norm(*arguments, activation)
    assert output.is_contiguous(memory_format=memory_format_of(input))
    exact = reference.group_norm(*map(widened, arguments), activation)
    assert_within_twice(output, reference.group_norm(*arguments, activation), exact, "output")
    backward = (torch.randn_like(input), *arguments)
    found = cpu.group_norm_backward(*backward, activation)
    exact = reference.group_norm_backward(*map(widened, backward), activation)
    own = reference.group_norm_backward(*backward, activation)
    assert_within_twice(found[0], own[0], exact[0], "gradient")
    # Sums of terms of either sign: the error is measured against the terms.
    normalized = reference.group_norm(*map(widened, arguments[:3]), torch.ones(()).double().expand(input.shape[1]),
                                      torch.zeros(()).double().expand(input.shape[1]), None)  # fmt: skip
    magnitude = backward[0].double().abs()
    for sums, terms, bound in zip(
        found[1:], (exact[0], exact[0] * normalized), (magnitude, magnitude * normalized.abs()), strict=True
    ):
        error = (sums - terms.sum((2, 3, 4))).abs()
        assert (error <= 1e-6 * bound.sum((2, 3, 4))).all()
