"""``depthwise_conv3d`` and ``depthwise_conv_transpose3d`` against torch.nn.functional's convolutions."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import mednext_ops as ops

from .eager import assert_within_twice, relative_error

KERNELS = [(1, 1, 1), (3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 3, 3), (3, 5, 7)]
SIZES = [(8, 9, 7), (2, 3, 1)]  # odd extents, and extents below the kernel
FORMATS = [torch.contiguous_format, torch.channels_last_3d]


def draw(channels, size, kernel, dtype=torch.float64, device="cpu", batch=2, memory_format=torch.contiguous_format):
    x = torch.randn(batch, channels, *size, dtype=dtype, device=device).contiguous(memory_format=memory_format)
    w = torch.randn(channels, 1, *kernel, dtype=dtype, device=device)
    b = torch.randn(channels, dtype=dtype, device=device)
    return [t.requires_grad_() for t in (x, w, b)]


def assert_same_with_gradients(actual, expected, tensors, tolerance=1e-10):
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) <= tolerance
    grad = torch.randn_like(expected)
    found = torch.autograd.grad(actual, tensors, grad)
    wanted = torch.autograd.grad(expected, tensors, grad)
    for f, w in zip(found, wanted, strict=True):
        assert relative_error(f, w) <= tolerance


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2, (1, 2, 2)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_convolution_equals_conv3d_in_float64(device, kernel, stride, size, memory_format):
    x, w, b = draw(5, size, kernel, device=device, memory_format=memory_format)
    padding = [k // 2 for k in kernel]
    expected = F.conv3d(x, w, b, stride, padding, groups=5)
    actual = ops.depthwise_conv3d(x, w, b, stride, padding)
    assert actual.is_contiguous(memory_format=memory_format)
    assert_same_with_gradients(actual, expected, [x, w, b])


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2, (1, 2, 2)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_transposed_convolution_equals_conv_transpose3d_in_float64(device, kernel, stride, size, memory_format):
    x, w, b = draw(5, size, kernel, device=device, memory_format=memory_format)
    padding = [k // 2 for k in kernel]
    expected = F.conv_transpose3d(x, w, b, stride, padding, groups=5)
    actual = ops.depthwise_conv_transpose3d(x, w, b, stride, padding)
    assert actual.is_contiguous(memory_format=memory_format)
    assert_same_with_gradients(actual, expected, [x, w, b])


@pytest.mark.parametrize("dilation", [2, (1, 2, 3)])
@pytest.mark.parametrize("padding", [0, (2, 0, 1)])
def test_dilation_and_any_padding(device, dilation, padding):
    x, w, b = draw(3, (9, 9, 9), (3, 3, 3), device=device)
    expected = F.conv3d(x, w, b, 1, padding, dilation, groups=3)
    assert_same_with_gradients(ops.depthwise_conv3d(x, w, b, 1, padding, dilation), expected, [x, w, b])


def test_output_padding(device):
    x, w, b = draw(3, (4, 5, 6), (3, 3, 3), device=device)
    expected = F.conv_transpose3d(x, w, b, 2, 1, (1, 0, 1), groups=3)
    assert_same_with_gradients(ops.depthwise_conv_transpose3d(x, w, b, 2, 1, (1, 0, 1)), expected, [x, w, b])


@pytest.mark.parametrize("op", [ops.depthwise_conv3d, ops.depthwise_conv_transpose3d])
def test_first_and_second_derivatives_pass_gradcheck(op):
    x, w, b = draw(2, (3, 4, 3), (3, 3, 1), batch=1)
    assert torch.autograd.gradcheck(lambda *t: op(*t, stride=2, padding=(1, 1, 0)), (x, w, b))
    assert torch.autograd.gradgradcheck(lambda *t: op(*t, stride=2, padding=(1, 1, 0)), (x, w, b))


@pytest.mark.parametrize("channels", [1, 3, 8, 13])
def test_any_number_of_channels(device, channels):
    x, w, b = draw(channels, (5, 4, 6), (3, 3, 3), device=device)
    expected = F.conv3d(x, w, b, padding=1, groups=channels)
    assert_same_with_gradients(ops.depthwise_conv3d(x, w, b, padding=1), expected, [x, w, b])


def test_sliced_and_permuted_inputs(device):
    base = torch.randn(2, 6, 12, 10, 9, dtype=torch.float64, device=device)
    w = torch.randn(3, 1, 3, 3, 3, dtype=torch.float64, device=device)
    for view in (base[:, ::2], base[:, :3, 1:, ::2, :-1], base[:, :3].permute(0, 1, 4, 2, 3)):
        x = view.detach().requires_grad_()
        expected = F.conv3d(x, w, padding=1, groups=3)
        actual = ops.depthwise_conv3d(x, w, padding=1)
        assert_same_with_gradients(actual, expected, [x])


@pytest.mark.parametrize("op", [ops.depthwise_conv3d, ops.depthwise_conv_transpose3d])
def test_empty_batch_gives_empty_output_and_zero_weight_gradient(device, op):
    x, w, b = draw(3, (4, 5, 6), (3, 3, 3), torch.float32, device, batch=0)
    y = op(x, w, b, 2, 1)
    assert y.shape[0] == 0 and y.shape[1] == 3
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not w.grad.any() and not b.grad.any()


@pytest.mark.parametrize("frozen", list(itertools.product([True, False], repeat=3))[:-1])
def test_frozen_tensors_get_no_gradient_and_no_work(frozen):
    tensors = draw(3, (4, 5, 6), (3, 3, 3))
    for tensor, off in zip(tensors, frozen, strict=True):
        tensor.requires_grad_(not off)
    y = ops.depthwise_conv3d(*tensors, padding=1)
    if all(frozen):
        assert not y.requires_grad
        return
    with torch.profiler.profile() as profile:
        y.sum().backward()
    ran = {event.key for event in profile.key_averages()}
    assert [tensor.grad is None for tensor in tensors] == list(frozen)
    assert ("mednext_ops::depthwise_conv3d_backward_data" in ran) == (not frozen[0])
    assert ("mednext_ops::depthwise_conv3d_backward_weight" in ran) == (not frozen[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (7, 7, 7)])
def test_error_is_within_twice_that_of_pytorch(device, kernel, dtype):
    """Against float64 on the same rounded inputs; PyTorch runs the op at that dtype."""
    x, w, _ = draw(8, (12, 11, 13), kernel, dtype, device)
    padding = [k // 2 for k in kernel]
    exact = F.conv3d(x.double(), w.double(), padding=padding, groups=8)
    grad = torch.randn_like(exact).to(dtype)
    wanted = [exact, *torch.autograd.grad(exact, [x, w], grad.double())]

    def with_gradients(y):
        return [y, *torch.autograd.grad(y, [x, w], grad)]

    columns = (
        with_gradients(ops.depthwise_conv3d(x, w, padding=padding)),
        with_gradients(F.conv3d(x, w, padding=padding, groups=8)),
        wanted,
    )
    for name, our, their, want in zip(("output", "input", "weight"), *columns, strict=True):
        assert_within_twice(our, their, want, name)


def test_16_bit_inputs_take_float32_parameters_and_give_float32_gradients(device):
    x, w, b = draw(4, (6, 6, 6), (3, 3, 3), torch.float32, device)
    low = x.detach().bfloat16().requires_grad_()
    y = ops.depthwise_conv3d(low, w, b, padding=1)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert (low.grad.dtype, w.grad.dtype, b.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_same_input_gives_the_same_bits(device):
    x, w, b = draw(8, (12, 12, 12), (5, 5, 5), torch.float32, device)
    grad = torch.randn(2, 8, 12, 12, 12, device=device)

    def run():
        y = ops.depthwise_conv3d(x, w, b, padding=2)
        return [y, *torch.autograd.grad(y, [x, w, b], grad)]

    first = run()
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))
