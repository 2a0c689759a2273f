"""Processes that share the windows of a scan get the result of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import mednext

ROI, WINDOWS = (16, 16, 16), 4


def infer(network, scan, windows):
    from monai.inferers import SlidingWindowInferer

    with torch.no_grad():
        return SlidingWindowInferer(ROI, sw_batch_size=windows, overlap=0.5, mode="gaussian")(scan, network)


def process(rank, folder):
    """What each of the two processes runs: this file, as a program."""
    torch.set_num_threads(1)
    arguments, state, scan = torch.load(folder / "job.pt")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    network = mednext.MedNeXt(**arguments).eval()
    network.load_state_dict(state)
    computed = []
    network.stem.register_forward_hook(lambda module, inputs, output: computed.append(len(output)))
    result = infer(mednext.ShareWindows(network), scan, WINDOWS)
    torch.save((result, sum(computed)), folder / f"after_{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_segment_as_one(tiny, tmp_path):
    network = mednext.MedNeXt(**tiny).eval()
    scan = torch.randn(1, 1, 32, 24, 40)  # 3 x 2 x 4 windows
    torch.save((tiny, network.state_dict(), scan), tmp_path / "job.pt")
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    expected = infer(network, scan, WINDOWS // 2)
    for rank in range(2):
        result, computed = torch.load(tmp_path / f"after_{rank}.pt")
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(result, torch.load(tmp_path / "after_0.pt")[0])
        assert computed == 12


def test_one_process_is_the_network_itself():
    x = torch.randn(3, 1, 4, 4, 4)
    assert torch.equal(mednext.ShareWindows(lambda windows, factor: windows * factor)(x, 2.0), x * 2)
    with pytest.raises(TypeError, match="network must be a module or a function of windows, got int"):
        mednext.ShareWindows(3)


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
