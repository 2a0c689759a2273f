"""1x1x1 convolutions with few channels on one side, on the emulation: against float64, and to the bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mednext_ops as ops
from mednext_ops.backends.problem import Problem

from ..ops.eager import assert_within_twice

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Input and output channels: stems, heads, more rows than a block holds weights of, numbers between the instances.
CHANNELS = [(1, 32), (4, 48), (32, 3), (64, 2), (8, 70), (130, 5), (3, 3), (7, 1)]
# One warp's run, more than a block's, many blocks' of the sum, and less than a run.
SIZES = [(2, 4, 8), (4, 10, 16), (12, 20, 40), (1, 1, 8)]


def draw(channels, size, batch, dtype, parameters=None):
    inputs, outputs = channels
    parameters = parameters or dtype
    x = torch.randn(batch, inputs, *size).to(dtype)
    weight = (torch.randn(outputs, inputs) * inputs**-0.5).to(parameters)
    return x, weight, torch.randn(outputs).to(parameters), torch.randn(batch, outputs, *size).to(dtype)


def eager(x, weight, bias, grad_output):
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    output = F.conv3d(leaves[0], leaves[1][..., None, None, None], leaves[2])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def ours(x, weight, bias, grad_output):
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    with ops.use_backend("emulated"):
        output = ops.pointwise_conv3d(*leaves)
        return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients_are_within_twice_of_eager(emulated, dtype, channels, size):
    tensors = draw(channels, size, 2, dtype)
    exact = eager(*(t.double() for t in tensors))
    theirs = eager(*tensors)
    for name, our, their, right in zip(
        ("output", "input", "weight", "bias"), ours(*tensors), theirs, exact, strict=True
    ):
        assert our.dtype == their.dtype
        assert_within_twice(our, their, right, name)


@pytest.mark.parametrize("channels", [(1, 32), (32, 3)])
def test_float32_parameters_are_not_rounded(emulated, channels):
    x, weight, bias, grad = draw(channels, (2, 4, 8), 3, torch.bfloat16, torch.float32)
    exact = eager(x.double(), weight.double(), bias.double(), grad.double())
    found = ours(x, weight, bias, grad)
    assert torch.equal(found[0], exact[0].bfloat16())
    assert found[2].dtype == found[3].dtype == torch.float32
    for our, right in zip(found[2:], exact[2:], strict=True):
        torch.testing.assert_close(our.double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [(1, 32), (32, 3), (130, 5)])
def test_the_same_bits_in_every_order_and_wherever_the_tensors_begin(emulated, channels):
    x, weight, bias, grad = draw(channels, (4, 10, 16), 2, torch.bfloat16)
    first = ours(x, weight, bias, grad)
    with emulated.thread_order("shuffled", seed=2):
        assert all(map(torch.equal, ours(x, weight, bias, grad), first))
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    assert all(map(torch.equal, ours(shifted, weight, bias, grad), first))


def test_only_what_is_asked_for_is_made(emulated):
    x, weight, _, grad = draw((32, 3), (2, 4, 8), 1, torch.bfloat16)
    everything = emulated.pointwise_conv3d_backward(grad, x, weight, True, True)
    data, nothing, none = emulated.pointwise_conv3d_backward(grad, x, weight, True, False)
    assert torch.equal(data, everything[0]) and nothing.numel() == none.numel() == 0
    empty, *parameters = emulated.pointwise_conv3d_backward(grad, x, weight, False, True)
    assert empty.numel() == 0 and all(map(torch.equal, parameters, everything[1:]))


def test_what_has_no_kernel_is_declined_and_computed_by_pytorch(emulated):
    def problem(shape, outputs, **details):
        return Problem("pointwise_conv3d", "cpu", torch.bfloat16, shape, out_channels=outputs, **details)

    assert emulated.supports(problem((1, 32, 2, 4, 8), 8)) is None
    for declined in (
        problem((1, 32, 2, 4, 8), 9),
        problem((1, 32, 3, 5, 7), 3),
        problem((1, 32, 2, 4, 8), 3, channels_last=True),
    ):
        assert "at most 8 channels" in emulated.supports(declined)
    tensors = draw((12, 20), (3, 5, 7), 2, torch.float32)
    for our, their in zip(ours(*tensors), eager(*tensors), strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": torch.ones(3, 31)}, r"weight must be \[outputs, 32\], got \[3, 31\]"),
        ({"weight": torch.ones(9, 32)}, "at most 8 channels on one side"),
        ({"input": torch.ones(1, 32, 1, 1, 7)}, "multiples of 8"),
        ({"bias": torch.ones(4)}, r"bias must be \[3\], got \[4\]"),
        ({"bias": torch.ones(3).double()}, "bias must be float32"),
        ({"input": torch.ones(1, 32, 1, 1, 8).double()}, "float32, float16 or bfloat16"),
    ],
)
def test_bad_input_gives_a_sentence(emulated, change, sentence):
    arguments = {"input": torch.ones(1, 32, 1, 1, 8), "weight": torch.ones(3, 32), "bias": torch.ones(3)} | change
    with pytest.raises(RuntimeError, match=f"pointwise_conv3d: .*{sentence}"):
        emulated.pointwise_conv3d(**arguments)


def test_a_gradient_of_another_shape_gives_a_sentence(emulated):
    with pytest.raises(RuntimeError, match=r"grad_output must be \[1, 3, 1, 1, 8\], got \[1, 3, 1, 1, 16\]"):
        emulated.pointwise_conv3d_backward(
            torch.ones(1, 3, 1, 1, 16), torch.ones(1, 32, 1, 1, 8), torch.ones(3, 32), True, True
        )
