"""``group_norm_statistics`` and ``depthwise_conv3d_group_norm`` against torch.nn.functional.group_norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mednext_ops as ops

from .eager import relative_error


def draw(*shape, dtype=torch.float64, device="cpu"):
    return torch.randn(*shape, dtype=dtype, device=device, requires_grad=True)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_statistics_equal_var_mean(device, groups):
    x = draw(2, 6, 5, 4, 7, device=device)
    mean, rstd = ops.group_norm_statistics(x, groups)
    variance, expected = torch.var_mean(x.reshape(2, groups, -1), dim=2, correction=0)
    assert relative_error(mean, expected) <= 1e-12
    assert relative_error(rstd, (variance + 1e-5).rsqrt()) <= 1e-12


def test_statistics_pass_gradcheck():
    assert torch.autograd.gradcheck(lambda x: ops.group_norm_statistics(x, 2), draw(2, 4, 2, 3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_statistics_are_accurate_where_the_mean_dwarfs_the_deviation(device, dtype, shift):
    x = (torch.randn(2, 3, 16, 16, 16, device=device) + shift).to(dtype)
    mean, rstd = ops.group_norm_statistics(x)
    assert mean.dtype == rstd.dtype == torch.float32
    variance, expected = torch.var_mean(x.double().flatten(2), dim=2, correction=0)
    # Of a mean near zero no more can be asked than of the values that it averages.
    assert ((mean - expected).abs() <= 5e-7 * (expected.abs() + variance.sqrt())).all()
    assert relative_error(rstd, (variance + 1e-5).rsqrt()) <= 1e-5


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("groups", [None, 1, 3])
@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3), (1, 3, 3), (3, 5, 7)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_convolution_norm_activation_equals_the_composition(device, kernel, stride, groups, activation, memory_format):
    channels, padding = 6, [k // 2 for k in kernel]
    x = draw(2, channels, 5, 6, 7, device=device).detach().contiguous(memory_format=memory_format).requires_grad_()
    w, b = draw(channels, 1, *kernel, device=device), draw(channels, device=device)
    gamma, beta = draw(channels, device=device), draw(channels, device=device)
    y = F.conv3d(x, w, b, stride, padding, groups=channels)
    expected = F.group_norm(y, groups or channels, gamma, beta)
    expected = F.gelu(expected) if activation else expected
    actual = ops.depthwise_conv3d_group_norm(
        x, w, b, gamma, beta, stride=stride, padding=padding, num_groups=groups, activation=activation
    )
    assert actual.is_contiguous(memory_format=memory_format)
    assert relative_error(actual, expected) <= 1e-10
    grad = torch.randn_like(expected)
    found = torch.autograd.grad(actual, [x, w, b, gamma, beta], grad)
    wanted = torch.autograd.grad(expected, [x, w, b, gamma, beta], grad)
    for name, f, e in zip(("x", "w", "b", "gamma", "beta"), found, wanted, strict=True):
        if name == "b" and groups is None:
            # It cancels: zero here, rounding noise in the composition.
            assert not f.any() and e.abs().max() <= 1e-10 * grad.abs().sum()
        elif name == "w" and groups is None and kernel == (1, 1, 1):
            # A channel's scale cancels but for eps: a small difference of large terms.
            assert (f - e).abs().max() <= 1e-12 * grad.abs().sum()
        else:
            assert relative_error(f, e) <= 1e-10


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_convolution_norm_activation_passes_gradcheck(activation):
    x, w, b = draw(2, 4, 3, 3, 4), draw(4, 1, 3, 1, 3), draw(4)
    gamma, beta = draw(4), draw(4)

    def run(*tensors):
        return ops.depthwise_conv3d_group_norm(*tensors, padding=(1, 0, 1), num_groups=2, activation=activation)

    assert torch.autograd.gradcheck(run, (x, w, b, gamma, beta))


def test_a_constant_channel_gives_the_norms_bias(device):
    x = torch.full((1, 2, 4, 4, 4), 3.0, device=device)
    w = torch.ones(2, 1, 1, 1, 1, device=device)
    gamma, beta = torch.ones(2, device=device), torch.tensor([0.5, -1.0], device=device)
    y = ops.depthwise_conv3d_group_norm(x, w, None, gamma, beta)
    # scale * 3 + (beta - 3 * scale) with scale = 1 / sqrt(eps): two roundings of 949.
    assert (y[0] - beta[:, None, None, None]).abs().max() <= 2 * 949 * torch.finfo(torch.float32).eps


def test_empty_batch(device):
    x, w = draw(0, 3, 4, 4, 4, device=device), draw(3, 1, 3, 3, 3, device=device)
    gamma, beta = draw(3, device=device), draw(3, device=device)
    y = ops.depthwise_conv3d_group_norm(x, w, None, gamma, beta, padding=1, activation="gelu")
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(not t.grad.any() for t in (w, gamma, beta))


def test_only_input_convolution_and_statistics_are_saved():
    x, w, b = draw(1, 4, 6, 6, 6), draw(4, 1, 3, 3, 3), draw(4)
    gamma, beta = draw(4), draw(4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        ops.depthwise_conv3d_group_norm(x, w, b, gamma, beta, padding=1, activation="gelu")
    assert sum(shape == x.shape for shape in saved) == 2
