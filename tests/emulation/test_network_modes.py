"""A network on the emulated kernels compiled, exported, checkpointed, and under a gradient scaler: as it is plain.

With the same bits, since the arithmetic is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import mednext
import mednext.pointwise
import mednext_ops as ops
from mednext.backends_used import BackendsUsed

ARGUMENTS: dict[str, Any] = {
    "in_channels": 1,
    "n_channels": 4,
    "n_classes": 3,
    "exp_r": [2, 3, 4, 4, 4, 4, 4, 3, 2],
    "kernel_size": 3,
    "do_res": True,
    "do_res_up_down": True,
    "block_counts": [1] * 9,
    "strides": [2, (1, 2, 2), 2, 1],  # so that few voxels are enough
}


@pytest.fixture(autouse=True)
def _on_the_emulation(emulated) -> Iterator[None]:
    with ops.use_backend("emulated"):
        yield


def build(grn: bool | str, **options: Any) -> mednext.MedNeXt:
    network = mednext.MedNeXt(**ARGUMENTS, deep_supervision=True, grn=grn, **options)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "grn" in name:  # zero at first, which is no GRN
                parameter.normal_(std=0.3)
    return network


def image(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, 4, 16, 16)


def loss_of(model: Any, x: torch.Tensor, dtype: torch.dtype | None) -> tuple[list[torch.Tensor], torch.Tensor]:
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        outputs = model(x)
    return outputs, torch.stack([y.float().square().mean() for y in outputs]).sum()


def step(
    network: torch.nn.Module, x: torch.Tensor, dtype: torch.dtype | None, model: Any = None
) -> dict[str, torch.Tensor]:
    """Outputs and gradients by name; ``model`` is what runs, if it is not the network itself."""
    network.zero_grad()
    with BackendsUsed() as used:
        outputs, loss = loss_of(network if model is None else model, x, dtype)
        loss.backward()
    assert used.names() == ["emulated"]
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    return {f"output {i}": y.detach() for i, y in enumerate(outputs)} | gradients


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


def test_it_compiles_without_a_graph_break():
    torch._dynamo.reset()
    network, x = build("all"), image()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert_same_bits(step(network, x, torch.bfloat16, compiled), step(network, x, torch.bfloat16))


def test_it_is_exported(monkeypatch):
    network, x = build(False).eval(), image(2)
    network.deep_supervision = False
    with torch.no_grad():
        program = torch.export.export(network, (x,), strict=True)
        with BackendsUsed() as used:
            found = program.module()(x)
        assert used.names() == ["emulated"]
        # A program keeps stem and heads as convolutions; run, they are products, which round otherwise.
        torch.testing.assert_close(found, network(x), rtol=1e-5, atol=1e-5)
        monkeypatch.setattr(mednext.pointwise, "_product", lambda module, x: None)
        assert torch.equal(found, network(x))


@pytest.mark.parametrize("options", [{"recompute": "conv"}, {"checkpoint_style": "outside_block"}], ids=str)
@pytest.mark.parametrize(("dtype", "grn"), [(torch.bfloat16, "all"), (None, False)], ids=str)
def test_what_is_computed_twice_has_the_same_bits(dtype, grn, options):
    plain, x = build(grn), image()
    other = build(grn, **options)
    other.load_state_dict(plain.state_dict())
    assert_same_bits(step(other, x, dtype), step(plain, x, dtype))


def test_a_float16_step_with_a_gradient_scaler():
    """By a scale that is a power of two: the step is that of the gradients themselves."""
    network, x, scale = build("all"), image(), 2.0**12
    plain = copy.deepcopy(network)
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1) for n in (network, plain)]
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    _, loss = loss_of(network, x, torch.float16)
    scaler.scale(loss).backward()
    scaler.step(optimizers[0])
    scaler.update()
    assert scaler.get_scale() == scale  # nothing overflowed

    _, loss = loss_of(plain, x, torch.float16)
    (loss * scale).backward()
    for parameter in plain.parameters():
        parameter.grad /= scale
    optimizers[1].step()
    assert_same_bits(network.state_dict(), plain.state_dict())


def test_a_step_whose_gradients_overflow_is_skipped():
    network, x, scale = build("all"), image(), 2.0**40
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    _, loss = loss_of(network, x, torch.float16)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == scale / 2
    assert_same_bits(network.state_dict(), before)
    for block in (m for m in network.modules() if isinstance(m, mednext.MedNeXtBlock)):  # no kernel swallowed it
        assert not block.conv3.weight.grad.isfinite().all()
