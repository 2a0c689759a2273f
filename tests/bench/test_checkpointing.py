"""The baseline with activation checkpointing: eager PyTorch's gradients, with less in memory."""

from __future__ import annotations

import pytest
import torch

from mednext.bench import networks
from mednext.bench.block_task import BlockTask
from mednext.bench.blocks import BlockProblem
from mednext.bench.network_task import INFERENCE, TRAINING, NetworkTask
from mednext.bench.networks import NetworkProblem, build
from mednext.bench.op_task import OpTask
from mednext.bench.operators import OpProblem
from mednext.bench.runner import Runner
from mednext.bench.suites import BASELINES, default_choice
from mednext.bench.task import NotComparable
from mednext.eager import EagerBlock
from mednext.variants import Variant

CPU = torch.device("cpu")
PROBLEM = NetworkProblem("S", 3, 32)
EAGER, CHECKPOINTED = BASELINES["eager"], BASELINES["eager-checkpoint"]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    """MedNeXt-S with a quarter of its channels."""
    monkeypatch.setattr(networks, "VARIANTS", {"S": Variant(2, (2,) * 9, n_channels=8)})


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    outputs = network(torch.randn(PROBLEM.shape, generator=generator))
    sum((y * torch.randn(y.shape, generator=generator)).sum() for y in outputs).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_its_gradients_are_those_of_eager_to_the_bit():
    expected, found = (gradients(build(each, PROBLEM, deep_supervision=True)[0]) for each in (EAGER, CHECKPOINTED))
    assert len(expected) > 100 and expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_keeps_the_inputs_of_blocks_and_the_row_shows_it():
    rows = []
    Runner(CPU, None, {}, {}, rows.append).run([NetworkTask("memory", PROBLEM, TRAINING)], [EAGER, CHECKPOINTED])
    eager, checkpointed = rows
    assert (eager.status, checkpointed.status) == ("ok", "ok"), (eager.note, checkpointed.note)
    assert checkpointed.implementation == "eager checkpointed" and "gradients at 32^3" in checkpointed.checked
    assert checkpointed.peak_bytes < 0.9 * eager.peak_bytes
    assert checkpointed.saved_bytes < 0.3 * eager.saved_bytes
    network, _ = build(EAGER, PROBLEM, deep_supervision=True)
    inputs = {}

    def note(block, arguments):
        inputs[block] = arguments[0].nbytes

    for block in network.modules():
        if isinstance(block, EagerBlock):
            block.register_forward_pre_hook(note)
    network(torch.zeros(PROBLEM.shape))
    heads = sum(8 * 2**level * (32 // 2**level) ** 3 * 4 for level in range(5))
    assert checkpointed.saved_bytes <= sum(inputs.values()) + heads + 4 * 32**3


def test_where_it_would_be_another_eager_row_there_is_none():
    tasks = [
        NetworkTask("network", PROBLEM, INFERENCE),
        OpTask(OpProblem("depthwise_conv3d", (1, 8, 8, 8, 8)), "backward"),
        BlockTask(BlockProblem("regular", (1, 8, 8, 8, 8)), "inference"),
    ]
    for task in tasks:
        with pytest.raises(NotComparable):
            task.bind(CHECKPOINTED, CPU)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_memory_suite_has_it_without_being_asked(device, quick):
    assert {"eager", "eager-checkpoint"} <= set(default_choice("memory", device, quick).baselines)
    assert "eager-checkpoint" not in default_choice("network", device, quick).baselines
