"""The network under torch.compile and torch.export."""

from __future__ import annotations

import pytest
import torch

from mednext import MedNeXt, MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock, accelerate
from mednext.eager import EagerMedNeXt


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def train_step(module, forward, x):
    module.zero_grad()
    outputs = forward(x)
    sum(y.square().mean() for y in (outputs if isinstance(outputs, list) else [outputs])).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(module, forward, x):
    expected, compiled = train_step(module, module, x), train_step(module, forward, x)
    assert expected.keys() == compiled.keys()
    scale = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        torch.testing.assert_close(
            compiled[name], grad, rtol=1e-8, atol=1e-10 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    "options", [{}, {"recompute": "conv", "grn": True}, {"dim": "2d"}, {"norm_type": "layer"}], ids=str
)
@pytest.mark.parametrize("block_type", [MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock])
def test_a_block_compiles_without_a_graph_break(block_type, options):
    torch._dynamo.reset()
    block = block_type(2, 2, 2, 3, True, **options).double()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_same_gradients(block, compiled, image(2, 2, *[4] * (2 if options.get("dim") == "2d" else 3)))


def test_the_whole_network_compiles_without_a_graph_break(tiny):
    torch._dynamo.reset()
    network = MedNeXt(**tiny | {"block_counts": [1] * 9}, deep_supervision=True).double()
    assert_same_gradients(network, torch.compile(network, fullgraph=True), image(1, 1, 16, 16, 32))


def test_a_compiled_network_switches_deep_supervision(tiny):
    torch._dynamo.reset()
    network = MedNeXt(**tiny, deep_supervision=True).double()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x = image(1, 1, 16, 16, 16)
    assert len(compiled(x)) == 5
    compiled.decoder.deep_supervision = False
    torch.testing.assert_close(compiled(x), network(x))
    compiled.deep_supervision = True
    assert len(compiled(x)) == 5


def test_an_accelerated_network_compiles_without_a_graph_break(tiny):
    torch._dynamo.reset()
    network = accelerate(EagerMedNeXt(**tiny)).double()
    x = image(1, 1, 16, 16, 32)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), network(x), rtol=1e-9, atol=1e-9)


def test_export_gives_the_same_output(tiny):
    network = MedNeXt(**tiny).double().eval()
    x = image(2, 1, 16, 16, 32)
    with torch.no_grad():
        program = torch.export.export(network, (x,), strict=True)
        torch.testing.assert_close(program.module()(x), network(x), rtol=1e-9, atol=1e-9)


def test_export_with_any_batch_and_any_divisible_extent(tiny):
    """Above one total stride: export tells a bottleneck of a single plane from all others."""
    network = MedNeXt(**tiny).double().eval()
    shapes = {0: torch.export.Dim("batch", min=1, max=8)}
    shapes |= {axis: 16 * torch.export.Dim(f"n{axis}", min=2, max=32) for axis in (2, 3, 4)}
    with torch.no_grad():
        program = torch.export.export(network, (image(2, 1, 32, 48, 64),), dynamic_shapes=(shapes,))
        for shape in ((1, 1, 32, 32, 48), (3, 1, 48, 32, 32)):
            x = image(*shape)
            torch.testing.assert_close(program.module()(x), network(x), rtol=1e-9, atol=1e-9)
