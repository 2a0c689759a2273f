"""Two processes with the emulated kernels: their gradients are the mean of those of each sample, to the bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import mednext
import mednext_ops as ops

ARGUMENTS = {
    "in_channels": 1,
    "n_channels": 4,
    "n_classes": 3,
    "exp_r": 2,
    "kernel_size": 3,
    "do_res": True,
    "do_res_up_down": True,
    "block_counts": [1] * 9,
    "deep_supervision": True,
    "strides": [2, (1, 2, 2), 2, 1],
}


def gradients(network, model, x, dtype):
    network.zero_grad()
    with ops.use_backend("emulated"):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            outputs = model(x)
        torch.stack([y.float().square().mean() for y in outputs]).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def process(rank, folder):
    """What each of the two processes runs: this file, as a program."""
    torch.set_num_threads(1)
    state, batch, dtypes = torch.load(folder / "job.pt")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    network = mednext.MedNeXt(**ARGUMENTS)
    network.load_state_dict(state)
    model = torch.nn.parallel.DistributedDataParallel(network)
    found = [gradients(network, model, batch[rank : rank + 1], dtype) for dtype in dtypes]
    torch.save(found, folder / f"gradients_{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.usefixtures("emulated")
def test_two_processes_have_the_mean_of_their_gradients(tmp_path):
    network = mednext.MedNeXt(**ARGUMENTS)
    batch, dtypes = torch.randn(2, 1, 4, 16, 16), [torch.bfloat16, None]
    torch.save((network.state_dict(), batch, dtypes), tmp_path / "job.pt")
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    try:
        alone = [[gradients(network, network, x[None], dtype) for x in batch] for dtype in dtypes]
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for rank in range(2):
        for found, (first, second) in zip(torch.load(tmp_path / f"gradients_{rank}.pt"), alone, strict=True):
            assert found.keys() == first.keys()
            assert [n for n in found if not torch.equal(found[n], first[n] / 2 + second[n] / 2)] == []


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
