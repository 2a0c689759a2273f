"""The official network on the Triton kernels: outputs and every gradient, against float64."""

from __future__ import annotations

import pytest
import torch

import mednext_ops as ops

from ..emulation.test_network import (
    OURS,
    THEIRS,
    add_errors,
    assert_no_worse,
    autocast_errors,
    official_results,
    results,
)
from ..mednext.conftest import Golden

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="it compares networks on the CPU, where only the interpreter runs the kernels"
)


def test_float32_gives_the_official_results(triton_backend):
    golden = Golden.load("k3")
    with ops.use_backend("triton"):
        ours = results(OURS, golden)
    errors: dict[str, list[tuple[float, float]]] = {}
    add_errors(errors, ours, results(THEIRS, golden), official_results(golden))
    assert_no_worse(errors)


def test_bfloat16_autocast_is_no_worse_than_pytorch(triton_backend):
    """On the draws of the emulated kernels' test, judged together: one alone says little in 16 bits."""
    assert_no_worse(autocast_errors(3, "triton"))


def test_a_compiled_network_runs_it_without_a_graph_break(triton_backend):
    torch.manual_seed(1)
    x = torch.randn(1, 4, 4, 4, 6)
    w, norm = torch.randn(4, 1, 3, 3, 3, requires_grad=True), torch.ones(4)
    expand = torch.randn(8, 4)

    def block(x):
        return ops.mednext_block(x, w, None, norm, norm, expand, None, expand.t().contiguous(), None)

    with ops.use_backend("triton"):
        expected = block(x)
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")(x)
        assert torch.equal(compiled, expected)
        gradients = [torch.autograd.grad(y.sum(), w)[0] for y in (compiled, expected)]
    assert torch.equal(*gradients)
