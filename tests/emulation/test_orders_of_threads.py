"""The inverted bottleneck and whole blocks have the same bits in every order of threads: types and channels in turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import mednext_ops as ops

from ..ops.eager import Block
from .test_inverted_bottleneck import ALL, Case, problem

ORDERS = [("reversed", 0), ("shuffled", 1), ("shuffled", 2)]
# Type, channels, GRN and channels_last; those in float32 and of 128 channels run around products.
BOTTLENECKS = [
    (torch.float16, (32, 64, 32), False, False),
    (torch.float16, (32, 64, 32), True, True),
    (torch.float16, (64, 128, 64), True, False),
    (torch.bfloat16, (64, 192, 64), True, False),
    (torch.bfloat16, (64, 128, 64), False, True),
    (torch.bfloat16, (64, 128, 32), False, False),
    (torch.float32, (32, 64, 32), False, False),
    (torch.float32, (64, 128, 64), False, False),
    (torch.float16, (128, 256, 128), False, False),
]
GRN = frozenset({"grn"})


def assert_same_bits(emulated, run: Callable[[], list[torch.Tensor]]) -> None:
    first = run()
    assert first and all(t.isfinite().all() for t in first)
    for order, seed in ORDERS:
        with emulated.thread_order(order, seed):
            assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True)), (order, seed)


@pytest.mark.parametrize(("dtype", "shape", "with_grn", "channels_last"), BOTTLENECKS, ids=str)
def test_the_bottleneck_forward_and_backward(emulated, dtype, shape, with_grn, channels_last):
    flags = GRN if with_grn else frozenset()
    assert emulated.supports(problem(shape, dtype, flags=flags, channels_last=channels_last)) is None
    case = Case.draw(shape, (3, 3, 6), 2, dtype, torch.float32, grn=with_grn)
    case = case.channels_last() if channels_last else case
    grad_output = torch.randn(2, shape[2], 3, 3, 6).to(dtype)
    if channels_last:
        grad_output = grad_output.contiguous(memory_format=torch.channels_last_3d)
    needs = ALL._replace(grn=with_grn)

    def run() -> list[torch.Tensor]:
        gradients = case.fused_gradients(emulated, grad_output, needs)
        return [case.fused(emulated), *(t for t in gradients if t is not None)]

    assert_same_bits(emulated, run)


@pytest.mark.parametrize(
    ("dtype", "channels", "with_grn"),
    [(torch.bfloat16, 32, True), (torch.float16, 32, False), (torch.bfloat16, 64, False), (torch.float32, 32, False)],
    ids=str,
)
@pytest.mark.parametrize("form", ["regular", "down", "up"])
def test_a_whole_block(emulated, form, dtype, channels, with_grn):
    """In 16 bits by the fused kernels, in float32 around products."""
    stride = (1, 1, 1) if form == "regular" else (2, 2, 2)
    block = Block.random(form, (3, 3, 3), (3, 3, 5), 1, channels, 2 * channels, with_grn, dtype=dtype)
    with torch.no_grad(), ops.use_backend("emulated"):
        grad_output = torch.randn_like(block.ours(form, stride, channels))

    def run() -> list[torch.Tensor]:
        with ops.use_backend("emulated"):
            output = block.ours(form, stride, channels)
            return [output, *torch.autograd.grad(output, list(block.tensors().values()), grad_output)]

    assert_same_bits(emulated, run)
