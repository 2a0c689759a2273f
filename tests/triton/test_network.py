"""The official network on the Triton kernels: outputs and every gradient, against float64."""

from __future__ import annotations

import pytest
import torch

import mednext_ops as ops

from ..mednext.golden_errors import assert_no_worse, autocast_errors, golden_errors

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="it compares networks on the CPU, where only the interpreter runs the kernels"
)


@pytest.mark.usefixtures("triton_backend")
def test_float32_gives_the_official_results():
    assert_no_worse(golden_errors("k3", "triton"))


@pytest.mark.usefixtures("triton_backend")
def test_bfloat16_autocast_is_no_worse_than_pytorch():
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
