"""Trains a MedNeXt in one process, in many, and on many machines, to the same weights.

    python examples/distributed.py --output one.pt
    torchrun --nproc-per-node 2 examples/distributed.py --strategy ddp --output two.pt
    torchrun --nproc-per-node 2 examples/distributed.py --strategy fsdp --accumulate 2 --recompute --output sharded.pt

The scans are random numbers, the same whoever computes them: what is shown is how the batch, the gradients and the
weights are shared. MedNeXt's norm looks at one sample at a time, so nothing has to be synchronised in it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import mednext


def main() -> None:
    options = parse()
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if processes > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if options.batch % (processes * options.accumulate):
        raise SystemExit(f"--batch {options.batch} must be a multiple of {processes} processes x {options.accumulate}")

    torch.manual_seed(0)  # the same start in every process
    network = mednext.MedNeXt(
        *(1, options.channels, 3),
        exp_r=2,
        kernel_size=options.kernel_size,
        do_res=True,
        do_res_up_down=True,
        block_counts=[1] * 9,
        deep_supervision=True,
        recompute="conv" if options.recompute else None,
    ).to(device, getattr(torch, options.dtype), memory_format=getattr(torch, options.memory_format))
    model = share(network, options.strategy) if processes > 1 else network
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4, weight_decay=3e-5)  # after sharding

    micro = options.batch // (processes * options.accumulate)
    for step in range(options.steps):
        optimizer.zero_grad()
        for part in range(options.accumulate):
            first = step * options.batch + (part * processes + rank) * micro
            scans, truth = samples(range(first, first + micro), options)
            last = part == options.accumulate - 1
            with synchronised(model, last):
                outputs = model(scans.to(device))
                loss = sum(F.cross_entropy(output, pooled(truth.to(device), output)) for output in outputs)
                (loss / options.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 12)
        optimizer.step()

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(weights, options.output)
        print(f"{processes} process(es), {options.strategy}: {options.output} written")
    if processes > 1:
        dist.destroy_process_group()


def share(network: mednext.MedNeXt, strategy: str) -> torch.nn.Module:
    """DDP: every process has all weights. FSDP2: each block's weights lie in parts on all, gathered while it runs."""
    if strategy == "ddp":
        return DistributedDataParallel(network)
    mesh = dist.device_mesh.init_device_mesh(network.stem.weight.device.type, (dist.get_world_size(),))
    for block in [module for module in network.modules() if isinstance(module, mednext.MedNeXtBlock)]:
        fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def synchronised(model: torch.nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Gradients travel with the last part of a batch only."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)
    return contextlib.nullcontext()


def samples(numbers: range, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Scans [N, 1, D, H, W] and their truth [N, D, H, W], the same for the same numbers."""
    scans, truths = [], []
    for number in numbers:
        random = torch.Generator().manual_seed(number)
        scan = torch.randn(1, *[options.patch] * 3, generator=random, dtype=torch.float64)
        scans.append(scan)
        truths.append((scan[0] > 0).long() + (scan[0] > 1).long())
    scan = torch.stack(scans).to(getattr(torch, options.dtype))
    return scan.to(memory_format=getattr(torch, options.memory_format)), torch.stack(truths)


def pooled(truth: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The truth on the grid of an output of deep supervision."""
    step = truth.shape[-1] // output.shape[-1]
    return truth[:, ::step, ::step, ::step]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the weights, a state dict")
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch that a process computes in turn")
    parser.add_argument("--recompute", action="store_true", help="keep half as much for backward")
    parser.add_argument(
        "--memory-format", choices=("contiguous_format", "channels_last_3d"), default="contiguous_format"
    )
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--batch", type=int, default=4, help="samples a step, over all processes")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--kernel-size", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
