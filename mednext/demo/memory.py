"""Peak memory of training steps, measured in a process of its own: `python -m mednext.demo.memory '<request as JSON>'`.

A process's peak cannot be told apart from what it did before, so each network gets a fresh one. On a CPU the peak is
that of the resident set, on a GPU that of torch's allocator. What autograd keeps for backward is counted as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mednext.demo import networks
from mednext.memory import saved_bytes

STEPS = 2  # the second one runs with the optimizer's moments in place


@dataclass(frozen=True)
class Request:
    """What to measure."""

    network: dict[str, Any]
    plain: bool  # plain PyTorch instead of ours
    batch: int
    patch: int
    device: str
    threads: int


@dataclass(frozen=True)
class Memory:
    """What was measured."""

    peak_bytes: int  # the process's resident set, or the GPU allocator's
    increase_bytes: int  # of it, what the steps added to the process with the network in place
    saved_for_backward_bytes: int  # what autograd keeps between forward and backward


def measure(request: Request) -> Memory:
    """Runs the steps in a fresh process.

    Raises:
        RuntimeError: the process failed; the message is the end of what it wrote.
    """
    command = [sys.executable, "-m", "mednext.demo.memory", json.dumps(asdict(request))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the memory measurement failed: {lines[-1]}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def run_steps(request: Request) -> Memory:
    """The steps themselves; to be called once a process."""
    torch.set_num_threads(request.threads)
    torch.manual_seed(0)
    device = torch.device(request.device)
    network = (networks.build_plain if request.plain else networks.build)(request.network).to(device)
    optimizer = torch.optim.AdamW(network.parameters())
    scan = torch.randn(request.batch, 1, *[request.patch] * 3, device=device)
    truth = torch.randint(request.network["n_classes"], scan[:, 0].shape, device=device)
    before = _reset_peak(device)

    def forward() -> list[torch.Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return network(scan)

    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        outputs = forward()
        loss = F.cross_entropy(outputs[0].float(), truth)
        for output in outputs[1:]:
            loss = loss + output.float().square().mean()
        loss.backward()
        optimizer.step()
        del outputs, loss
    peak = _peak(device)
    return Memory(peak, peak - before, saved_bytes(network, forward))


def _reset_peak(device: torch.device) -> int:
    """Forgets the peak so far; returns what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (proc(5))
    return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    print(json.dumps(asdict(run_steps(Request(**json.loads(sys.argv[1]))))))
