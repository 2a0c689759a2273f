"""The fused inverted bottleneck on the Triton backend: against float64, equal bits, and the whole block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mednext_ops.backends.problem import InvertedBottleneckNeeds, Problem

from ..emulation.test_inverted_bottleneck import Case, check_backward, check_forward, extremes

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Channels, hidden and output channels: a first stage, a down block, and shapes that are filled up.
SHAPES = [(32, 64, 32), (32, 96, 64), (20, 45, 9), (5, 10, 5)]


@pytest.mark.parametrize("with_grn", [False, True], ids=["", "grn"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_every_gradient_of_every_shape(triton_backend, shape, dtype, with_grn):
    case = Case.draw(shape, (3, 5, 7), 2, dtype, grn=with_grn)
    check_forward(triton_backend, case)
    check_backward(triton_backend, case)


@pytest.mark.parametrize("shape", [(64, 128, 64), (128, 96, 128), (100, 32, 72)])
def test_large_shapes(triton_backend, shape):
    case = Case.draw(shape, (3, 5, 9), 1, torch.bfloat16)
    check_forward(triton_backend, case)
    check_backward(triton_backend, case)


@pytest.mark.parametrize("size", [(1, 1, 2), (1, 1, 63), (1, 8, 16), (3, 11, 4)])
def test_any_extent(triton_backend, size):
    case = Case.draw((16, 32, 16), size, 1, torch.bfloat16)
    check_forward(triton_backend, case)
    check_backward(triton_backend, case)


@pytest.mark.parametrize("with_grn", [False, True], ids=["", "grn"])
def test_channels_last_gives_the_same(triton_backend, with_grn):
    case = Case.draw((20, 45, 9), (3, 5, 7), 2, torch.float16, grn=with_grn)
    form = torch.channels_last_3d
    last = replace(case, **{n: getattr(case, n).contiguous(memory_format=form) for n in ("input", "residual")})
    output = last.fused(triton_backend)
    assert output.is_contiguous(memory_format=form) and torch.equal(output, case.fused(triton_backend))
    grad_output = torch.randn(2, 9, 3, 5, 7).half()
    mine = last.fused_gradients(triton_backend, grad_output.contiguous(memory_format=form))
    assert mine.grad.is_contiguous(memory_format=form)
    for a, b in zip(mine, case.fused_gradients(triton_backend, grad_output), strict=True):
        assert a is b is None or torch.equal(a, b)


def test_float32_parameters_and_no_biases(triton_backend):
    case = Case.draw((32, 96, 32), (3, 4, 8), 2, torch.float16, torch.float32, residual=False)
    check_forward(triton_backend, case)
    check_backward(triton_backend, case)
    case = replace(case, expand_bias=None, compress_bias=None)
    check_forward(triton_backend, case)
    check_backward(triton_backend, case)


@pytest.mark.parametrize("extreme", extremes())
def test_extremes_of_the_norm(triton_backend, extreme):
    case = extremes()[extreme]
    check_forward(triton_backend, case)
    check_backward(triton_backend, case)


@pytest.mark.parametrize("with_grn", [False, True], ids=["", "grn"])
def test_what_nobody_needs_is_left_out_and_changes_no_bit(triton_backend, with_grn):
    case = Case.draw((8, 16, 8), (2, 3, 4), 2, torch.bfloat16, grn=with_grn)
    grad_output = torch.randn(2, 8, 2, 3, 4).bfloat16()
    complete = case.fused_gradients(triton_backend, grad_output)
    for bits in (0, 1, 2, 4, 8, 16, 9, 22, 30):
        needs = InvertedBottleneckNeeds(*(bool(bits >> i & 1) for i in range(5)))
        found = case.fused_gradients(triton_backend, grad_output, needs)
        hidden = needs.input or needs.norm or needs.expand
        assert (found.grad is None) == (not needs.input)
        assert (found.grad_sum is None) == (found.expand_weight is None) == (not hidden)
        assert (found.compress_weight is None) == (not needs.compress and not with_grn)
        for name, part, whole in zip(found._fields, found, complete, strict=True):
            assert part is None or torch.equal(part, whole), (needs, name)


def test_the_same_input_gives_the_same_bits(triton_backend):
    case = Case.draw((16, 32, 16), (3, 9, 8), 2, torch.bfloat16, grn=True)
    grad_output = torch.randn(2, 16, 3, 9, 8).bfloat16()

    def run():
        return [case.fused(triton_backend), *case.fused_gradients(triton_backend, grad_output)]

    first = run()
    for _ in range(3):
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_nothing_beyond_a_slice_is_read_and_every_output_is_written(triton_backend, monkeypatch):
    """Neighbours are NaN, and so is all memory that nobody wrote to."""
    case = Case.draw((12, 20, 12), (3, 5, 5), 1, torch.bfloat16, grn=True)
    grad_output = torch.randn(1, 12, 3, 5, 5).bfloat16()
    expected = [case.fused(triton_backend), *case.fused_gradients(triton_backend, grad_output)]
    wide = torch.full((3, 16, 3, 5, 5), float("nan"), dtype=torch.bfloat16)
    wide[1:2, 2:14] = case.input
    sliced = replace(case, input=wide[1:2, 2:14])
    sliced.statistics = case.statistics
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **o: new_empty(*a, **o).fill_(float("nan")))
    found = [sliced.fused(triton_backend), *sliced.fused_gradients(triton_backend, grad_output)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_empty_batch_has_no_gradient(triton_backend):
    case = Case.draw((32, 64, 32), (2, 2, 8), 0, torch.bfloat16, grn=True)
    case.statistics = lambda: (torch.zeros(0, 32), torch.ones(0, 32))
    assert case.fused(triton_backend).shape == (0, 32, 2, 2, 8)
    found = case.fused_gradients(triton_backend, torch.zeros(0, 32, 2, 2, 8).bfloat16())
    assert found.grad.shape == (0, 32, 2, 2, 8)
    assert not any(t.any() for t in (found.expand_weight, found.expand_bias, found.compress_weight))


def test_large_products_are_declined_with_a_reason(triton_backend):
    def reason(channels, hidden, outputs, dtype=torch.bfloat16):
        here = "cpu" if triton_backend.interpreted() else "cuda"
        shape = (1, channels, 8, 8, 8)
        return triton_backend.supports(
            Problem("inverted_bottleneck", here, dtype, shape, hidden_channels=hidden, out_channels=outputs)
        )

    assert reason(128, 512, 128) is None
    assert "not fit the registers" in reason(129, 512, 64)
    assert "not fit the registers" in reason(64, 512, 256)
    assert reason(64, 128, 64, torch.float32) is None
    assert "not fit the registers" in reason(128, 256, 64, torch.float32)
