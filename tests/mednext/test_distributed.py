"""A training step of two processes is that of one process on the joined batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mednext import MedNeXt


def step(network, model, x):
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    outputs = model(x)
    sum(y.square().mean() for y in (outputs if isinstance(outputs, list) else [outputs])).backward()
    optimizer.step()
    return {name: value.clone() for name, value in network.state_dict().items()}


def worker(rank, arguments, state, batch, rendezvous, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    network = MedNeXt(**arguments).double()
    network.load_state_dict(state)
    model = torch.nn.parallel.DistributedDataParallel(network)
    after = step(network, model, batch[rank : rank + 1])
    torch.save(after, results.format(rank=rank))
    dist.destroy_process_group()


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_two_processes_step_as_one(tiny, tmp_path, deep_supervision):
    arguments = tiny | {"deep_supervision": deep_supervision}
    network = MedNeXt(**arguments).double()
    batch = torch.randn(2, 1, 16, 16, 32, dtype=torch.float64)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    results = str(tmp_path / "after_{rank}.pt")
    mp.spawn(worker, (arguments, state, batch, f"file://{tmp_path}/rendezvous", results), nprocs=2)
    expected = step(network, network, batch)
    for rank in range(2):
        after = torch.load(results.format(rank=rank))
        for name, value in expected.items():
            torch.testing.assert_close(after[name], value, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    assert any(not torch.equal(expected[name], state[name]) for name in state)
