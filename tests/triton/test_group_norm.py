"""GroupNorm's statistics, map and gradient on the Triton backend, and the op that is made of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mednext_ops as ops

from ..emulation.test_group_norm import draw, exact, statistics
from ..ops.eager import assert_within_twice, relative_error

EPS = 1e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Odd extents, one voxel, channels that fill no tile of 32, more than one tile of voxels.
SHAPES = [(2, 6, 5, 7, 9), (1, 33, 3, 5, 7), (3, 4, 1, 1, 1), (1, 2, 17, 32, 17)]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_are_within_twice_pytorchs_error(triton_backend, shape, activation, dtype, channels_last):
    for groups in {shape[1], 1}:
        x, grad, weight, bias = draw(shape, dtype, channels_last)
        mean, rstd = statistics(x, groups)
        wanted = exact(x, grad, mean, rstd, weight, bias, activation)
        y = triton_backend.group_norm(x, mean, rstd, weight, bias, activation)
        before, grad_sum, grad_dot = triton_backend.group_norm_backward(grad, x, mean, rstd, weight, bias, activation)
        form = torch.channels_last_3d if channels_last else torch.contiguous_format
        assert y.is_contiguous(memory_format=form) and before.is_contiguous(memory_format=form)
        normalized = F.group_norm(x, groups, weight, bias, EPS) if x[0].numel() > groups else wanted[0].to(dtype)
        assert_within_twice(y, F.gelu(normalized) if activation else normalized, wanted[0], "output")
        their_before = torch.ops.aten.gelu_backward(grad, normalized) if activation else grad
        assert_within_twice(before, their_before, wanted[1], "gradient")
        assert torch.allclose(grad_sum.double(), before.double().sum((2, 3, 4)), rtol=1e-5, atol=1e-5)
        size = before.double().abs().sum((2, 3, 4)) * 4
        assert ((grad_dot.double() - wanted[3]).abs() <= size * torch.finfo(dtype).eps + 1e-5).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_statistics_are_accurate_where_the_mean_dwarfs_the_deviation(triton_backend, shift, channels_last, dtype):
    x = (torch.randn(2, 6, 13, 14, 15) + shift).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    for groups in (6, 2):
        mean, rstd = triton_backend.group_norm_statistics(x, groups, EPS)
        variance, expected = torch.var_mean(x.double().reshape(2, groups, -1), dim=2, correction=0)
        assert mean.dtype == rstd.dtype == torch.float32
        assert ((mean - expected).abs() <= 5e-7 * (expected.abs() + variance.sqrt())).all()
        assert relative_error(rstd, (variance + EPS).rsqrt()) <= 1e-5


def test_without_an_activation_the_gradient_is_passed_on(triton_backend):
    x, grad, weight, bias = draw((2, 4, 5, 6, 7), torch.bfloat16, False)
    before, _, _ = triton_backend.group_norm_backward(grad, x, *statistics(x, 4), weight, bias, None)
    assert torch.equal(before, grad)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_same_input_gives_the_same_bits(triton_backend, channels_last):
    x, grad, weight, bias = draw((2, 3, 7, 23, 25), torch.bfloat16, channels_last)
    mean, rstd = triton_backend.group_norm_statistics(x, 3, EPS)
    arguments = (x, mean, rstd, weight, bias, "gelu")

    def run():
        return (
            *triton_backend.group_norm_statistics(x, 3, EPS),
            triton_backend.group_norm(*arguments),
            *triton_backend.group_norm_backward(grad, *arguments),
        )

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_norm_activation_is_no_worse_than_pytorch(triton_backend, device, dtype, stride):
    """The whole op on nothing but Triton kernels: value and every gradient."""
    channels = 4
    x = torch.randn(2, channels, 5, 6, 8, device=device).to(dtype).requires_grad_()
    w = (torch.randn(channels, 1, 3, 3, 3, device=device) / 5).to(dtype).requires_grad_()
    gamma, beta = (torch.randn(channels, device=device).to(dtype).requires_grad_() for _ in range(2))
    tensors = [x, w, gamma, beta]

    def composed(x, w, gamma, beta):
        return F.gelu(F.group_norm(F.conv3d(x, w, None, stride, 1, groups=channels), channels, gamma, beta, EPS))

    exact_tensors = [t.detach().double().requires_grad_() for t in tensors]
    wanted = composed(*exact_tensors)
    grad = torch.randn_like(wanted).to(dtype)
    with ops.use_backend("triton"):
        ours = ops.depthwise_conv3d_group_norm(
            x, w, None, gamma, beta, stride=stride, padding=1, eps=EPS, activation="gelu"
        )
        our_gradients = torch.autograd.grad(ours, tensors, grad)
    theirs = composed(*tensors)
    columns = [
        [ours, *our_gradients],
        [theirs, *torch.autograd.grad(theirs, tensors, grad)],
        [wanted, *torch.autograd.grad(wanted, exact_tensors, grad.double())],
    ]
    for name, our, their, want in zip(("output", "input", "weight", "gamma", "beta"), *columns, strict=True):
        assert_within_twice(our, their, want, name)


def test_an_empty_batch_gives_empty_results(triton_backend):
    x, grad, weight, bias = draw((0, 4, 3, 3, 3), torch.float32, False)
    empty = torch.empty(0, 4)
    assert triton_backend.group_norm(x, empty, empty, weight, bias, "gelu").shape == x.shape
    before, grad_sum, grad_dot = triton_backend.group_norm_backward(grad, x, empty, empty, weight, bias, "gelu")
    assert before.shape == x.shape and grad_sum.shape == grad_dot.shape == (0, 4)
    mean, rstd = triton_backend.group_norm_statistics(x, 2, EPS)
    assert mean.shape == rstd.shape == (0, 2)
