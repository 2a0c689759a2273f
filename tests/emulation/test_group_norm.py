"""GroupNorm with GELU and its gradient by their CUDA kernels on the emulation, and the op that is made of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mednext_ops as ops
from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient, memory_format_of

from ..ops.eager import assert_within_twice
from .repeats import assert_250_runs_give_the_same_bits

EPS = 1e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Odd extents, one voxel, channels that fill no tile of 32, more than one block a channel.
SHAPES = [(2, 6, 5, 7, 9), (1, 33, 3, 5, 7), (3, 4, 1, 1, 1), (1, 2, 33, 32, 17)]


@pytest.fixture(autouse=True)
def _on_the_emulation(emulated):
    with ops.use_backend("emulated"):
        yield


def draw(shape, dtype, channels_last, weight_dtype=None):
    x = (2 * torch.randn(shape) + 0.5).to(dtype)
    grad = torch.randn(shape).to(dtype)
    if channels_last:
        x, grad = (t.to(memory_format=torch.channels_last_3d) for t in (x, grad))
    weight, bias = (torch.randn(shape[1]).to(weight_dtype or dtype) for _ in range(2))
    return x, grad, weight, bias


def statistics(x, groups):
    variance, mean = torch.var_mean(x.double().reshape(x.shape[0], groups, -1), dim=2, correction=0)
    return mean.float(), (variance + EPS).rsqrt().float()


def exact(x, grad, mean, rstd, weight, bias, activation):
    """Output, gradient before the activation and its two sums, in float64."""
    per_group = x.shape[1] // mean.shape[1]
    mean, rstd = (t.double().repeat_interleave(per_group, 1)[..., None, None, None] for t in (mean, rstd))
    normalized = (x.double() - mean) * rstd
    value = (normalized * weight.double()[:, None, None, None] + bias.double()[:, None, None, None]).requires_grad_()
    output = F.gelu(value) if activation else value * 1
    (before,) = torch.autograd.grad(output, value, grad.double())
    voxels = (2, 3, 4)
    return output.detach(), before, before.sum(voxels), (before * normalized).sum(voxels)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_are_within_twice_pytorchs_error(emulated, shape, activation, dtype, channels_last):
    for groups in {shape[1], 1}:
        x, grad, weight, bias = draw(shape, dtype, channels_last)
        mean, rstd = statistics(x, groups)
        wanted = exact(x, grad, mean, rstd, weight, bias, activation)
        y = emulated.group_norm(x, mean, rstd, weight, bias, activation)
        before, grad_sum, grad_dot = emulated.group_norm_backward(grad, x, mean, rstd, weight, bias, activation)
        form = torch.channels_last_3d if channels_last else torch.contiguous_format
        assert y.is_contiguous(memory_format=form) and before.is_contiguous(memory_format=form)

        normalized = F.group_norm(x, groups, weight, bias, EPS) if x[0].numel() > groups else wanted[0].to(dtype)
        theirs = F.gelu(normalized) if activation else normalized
        assert_within_twice(y, theirs, wanted[0], "output")
        their_before = torch.ops.aten.gelu_backward(grad, normalized) if activation else grad
        assert_within_twice(before, their_before, wanted[1], "gradient")
        assert torch.allclose(grad_sum.double(), before.double().sum((2, 3, 4)), rtol=1e-5, atol=1e-5)
        size = before.double().abs().sum((2, 3, 4)) * 4
        assert ((grad_dot.double() - wanted[3]).abs() <= size * torch.finfo(dtype).eps + 1e-5).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_an_activation_the_gradient_is_passed_on(emulated, dtype):
    x, grad, weight, bias = draw((2, 4, 5, 6, 7), dtype, False)
    before, _, _ = emulated.group_norm_backward(grad, x, *statistics(x, 4), weight, bias, None)
    assert before is grad


def test_a_mean_far_larger_than_the_deviation_costs_no_digits(emulated):
    x, _, weight, bias = draw((1, 3, 9, 9, 9), torch.float32, False)
    shifted = x + 1e5
    mean, rstd = statistics(shifted, 3)
    mean = mean.double().round().float()  # a mean that float holds: what is left is the map's own error
    wanted = exact(shifted, x, mean, rstd, weight, bias, None)[0]
    assert_within_twice(emulated.group_norm(shifted, mean, rstd, weight, bias, None), wanted.float(), wanted, "output")


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_order_of_threads_gives_the_same_bits(emulated, channels_last, weight_dtype):
    x, grad, weight, bias = draw((2, 5, 21, 23, 25), torch.bfloat16, channels_last, weight_dtype)
    arguments = (x, *statistics(x, 5), weight, bias, "gelu")

    def run():
        return (emulated.group_norm(*arguments), *emulated.group_norm_backward(grad, *arguments))

    first = run()
    for order, seed in [("reversed", 0), *(("shuffled", seed) for seed in range(3))]:
        with emulated.thread_order(order, seed):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_value_is_lost_at_the_ends_of_gelu(emulated, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = every[every.isfinite()].view(1, 1, -1, 1, 1)
    still, one, zero = torch.zeros(1, 1), torch.ones(1), torch.zeros(1)
    y = emulated.group_norm(x, still, torch.ones(1, 1), one, zero, "gelu")
    assert y.isfinite().all()
    wanted = 0.5 * x.double() * torch.special.erfc(-x.double() / 2**0.5)  # 1 + erf cancels in the left tail
    step = torch.finfo(dtype).eps * wanted.abs() + torch.finfo(dtype).smallest_normal
    assert ((y.double() - wanted).abs() <= 0.57 * step).all()


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_norm_activation_is_no_worse_than_pytorch(dtype, stride, activation):
    """The whole op on nothing but emulated kernels: value and every gradient."""
    channels = 4
    x = torch.randn(2, channels, 7, 9, 16).to(dtype).requires_grad_()
    w = (torch.randn(channels, 1, 3, 3, 3) / 5).to(dtype).requires_grad_()
    gamma, beta = (torch.randn(channels).to(dtype).requires_grad_() for _ in range(2))
    tensors = [x, w, gamma, beta]

    def composed(x, w, gamma, beta):
        y = F.group_norm(F.conv3d(x, w, None, stride, 1, groups=channels), channels, gamma, beta, EPS)
        return F.gelu(y) if activation else y

    exact_tensors = [t.detach().double().requires_grad_() for t in tensors]
    wanted = composed(*exact_tensors)
    grad = torch.randn_like(wanted).to(dtype)
    ours = ops.depthwise_conv3d_group_norm(
        x, w, None, gamma, beta, stride=stride, padding=1, eps=EPS, activation=activation
    )
    theirs = composed(*tensors)
    columns = [
        [y, *torch.autograd.grad(y, leaves, grad.to(y.dtype))]
        for y, leaves in ((ours, tensors), (theirs, tensors), (wanted, exact_tensors))
    ]
    for name, our, their, want in zip(("output", "input", "weight", "gamma", "beta"), *columns, strict=True):
        assert_within_twice(our, their, want, name)


def test_the_binding_names_bad_input(emulated):
    x, grad, weight, bias = draw((2, 4, 3, 3, 3), torch.float32, False)
    mean, rstd = statistics(x, 4)
    cases = [
        (lambda: emulated.group_norm(x[0], mean, rstd, weight, bias, None), r"input must be \[N, C, D, H, W\]"),
        (
            lambda: emulated.group_norm(x, mean[:1], rstd, weight, bias, None),
            r"mean must be \[2, groups\], got \[1, 4\]",
        ),
        (lambda: emulated.group_norm(x, mean, rstd[:, :2], weight, bias, None), r"rstd must be \[2, 4\] as mean"),
        (lambda: emulated.group_norm(x, mean.double(), rstd, weight, bias, None), "mean must be float32, got Double"),
        (lambda: emulated.group_norm(x, mean, rstd, weight[:3], bias, None), r"weight must be \[4\], got \[3\]"),
        (lambda: emulated.group_norm(x, mean, rstd, weight, bias.half(), None), "bias must be float32 or Float"),
        (
            lambda: emulated.group_norm_backward(grad[:1], x, mean, rstd, weight, bias, None),
            r"grad_output must be \[2, 4, 3, 3, 3\]",
        ),
    ]
    for call, sentence in cases:
        with pytest.raises(RuntimeError, match=sentence):
            call()


def test_an_empty_batch_gives_empty_results(emulated):
    x, grad, weight, bias = draw((0, 4, 3, 3, 3), torch.float32, False)
    empty = torch.empty(0, 4)
    assert emulated.group_norm(x, empty, empty, weight, bias, "gelu").shape == x.shape
    before, grad_sum, grad_dot = emulated.group_norm_backward(grad, x, empty, empty, weight, bias, "gelu")
    assert before.shape == x.shape and grad_sum.shape == grad_dot.shape == (0, 4)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 16, 4, 4, 8)])
def test_the_gradient_of_the_normalised_tensor_written_out(emulated, shape, dtype, channels_last):
    x, grad, *_ = draw(shape, dtype, channels_last)
    maps = [torch.randn(shape[:2]) for _ in range(3)]
    written = emulated._kernels._native.group_norm_gradient(grad, x, *maps)
    scale, slope, offset = (m.double()[..., None, None, None] for m in maps)
    wanted = scale * grad.double() + slope * x.double() + offset
    assert written.dtype == dtype and written.is_contiguous(memory_format=memory_format_of(x))
    assert (written.double() - wanted).norm() <= torch.finfo(dtype).eps * wanted.norm()


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_transposed_convolution_whose_gradient_is_computed(emulated, kernel):
    """A large kernel's is written out first, a small one's is computed as it is read: the same within a rounding."""
    geometry = ConvGeometry((kernel,) * 3, (2, 2, 2), (kernel // 2,) * 3, transposed=True)
    x, w = torch.randn(1, 3, 4, 5, 6), torch.randn(3, 1, *[kernel] * 3)
    grad, output = (torch.randn(1, 3, *geometry.output_size(x.shape[2:])) for _ in range(2))
    maps = [torch.randn(1, 3) for _ in range(3)]
    scale, slope, offset = (m[..., None, None, None].double() for m in maps)
    gradient = GroupNormGradient(grad, output, *maps)
    data, weight = emulated.depthwise_conv3d_backward(gradient, x, w, geometry, None, True, True)
    leaves = [t.double().requires_grad_() for t in (x, w)]
    y = F.conv_transpose3d(*leaves, stride=2, padding=kernel // 2, groups=3)
    exact = torch.autograd.grad(y, leaves, scale * grad + slope * output + offset)
    for ours, wanted in zip((data, weight), exact, strict=True):
        assert (ours.double() - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_250_runs_give_the_same_bits(emulated, dtype, channels_last):
    """Every kernel of the op with GroupNorm: statistics, the norm with GELU, its gradient and what is left of it."""
    x, grad, weight, bias = draw((2, 3, 3, 5, 9), dtype, channels_last)

    def run():
        mean, rstd = emulated.group_norm_statistics(x, 3, EPS)
        arguments = (x, mean, rstd, weight, bias, "gelu")
        before, *sums = emulated.group_norm_backward(grad, *arguments)
        maps = emulated.group_norm_input_gradient(*sums, mean, rstd, weight, x[0, 0].numel())
        written = emulated._kernels._native.group_norm_gradient(before, x, *maps)
        return mean, rstd, emulated.group_norm(*arguments), before, *sums, *maps, written

    assert_250_runs_give_the_same_bits(emulated, run)
