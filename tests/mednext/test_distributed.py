"""A training step of two processes is that of one process on the joined batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mednext import MedNeXt


def step(network, model, x):
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    outputs = model(x)
    sum(y.square().mean() for y in (outputs if isinstance(outputs, list) else [outputs])).backward()
    optimizer.step()
    return {name: value.clone() for name, value in network.state_dict().items()}


def process(rank, folder):
    """What each of the two processes runs: this file, as a program."""
    torch.set_num_threads(1)
    arguments, state, batch = torch.load(folder / "job.pt")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    network = MedNeXt(**arguments).double()
    network.load_state_dict(state)
    model = torch.nn.parallel.DistributedDataParallel(network)
    torch.save(step(network, model, batch[rank : rank + 1]), folder / f"after_{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_two_processes_step_as_one(tiny, tmp_path, deep_supervision):
    arguments = tiny | {"deep_supervision": deep_supervision}
    network = MedNeXt(**arguments).double()
    batch = torch.randn(2, 1, 16, 16, 32, dtype=torch.float64)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save((arguments, state, batch), tmp_path / "job.pt")
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    expected = step(network, network, batch)
    for rank in range(2):
        after = torch.load(tmp_path / f"after_{rank}.pt")
        for name, value in expected.items():
            torch.testing.assert_close(after[name], value, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    assert any(not torch.equal(expected[name], state[name]) for name in state)


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
