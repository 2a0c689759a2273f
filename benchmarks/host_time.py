"""What the host does for a training step: Python, the dispatcher, plans and launches, without a GPU and its kernels.

    python benchmarks/host_time.py --variant B --kernel-size 3    # the least CPU time of a step's parts, in ms
    python benchmarks/host_time.py --variant B --profile          # which Python functions it goes to

The CUDA backend's own code runs on the emulated library, whose launches are planned and checked and run nothing;
products without a gradient of their own are left out as well. The volumes are small, and the network has the depth of
its variant but few channels: all that is left takes a processor as long as for large ones. Where a step on a GPU takes
less than this, the host is what a user waits for: docs/cuda_graphs.md. Needs MEDNEXT_OPS_EMULATED_LIBRARY
(docs/emulation.md).
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

import mednext
import mednext_ops
from mednext_ops.backends import emulated

CHANNELS = 4  # so few that weights and the optimizer's sums take no time


@contextmanager
def products_left_out() -> Iterator[None]:
    """Products of which autograd wants nothing give an empty result of the right shape."""

    def left_out(real: Callable[..., torch.Tensor], shape: Callable[..., tuple[int, ...]]) -> Callable[..., Any]:
        def product(*operands: torch.Tensor, **options: Any) -> torch.Tensor:
            if torch.is_grad_enabled() and any(operand.requires_grad for operand in operands):
                return real(*operands, **options)
            dtype = options.get("out_dtype") or operands[-1].dtype
            return torch.empty(shape(*operands[-2:]), dtype=dtype)

        return product

    shapes: dict[str, Callable[..., tuple[int, ...]]] = {
        "mm": lambda a, b: (a.shape[0], b.shape[1]),
        "bmm": lambda a, b: (*a.shape[:2], b.shape[2]),
        "baddbmm": lambda a, b: (*a.shape[:2], b.shape[2]),
    }
    with ExitStack() as stack:
        for name, shape in shapes.items():
            stack.enter_context(mock.patch.object(torch, name, left_out(getattr(torch, name), shape)))
        yield


def make_step(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The parts of a step, to be called in this order."""
    torch.manual_seed(0)
    network = mednext.create_mednext(
        options.variant, 1, 4, options.kernel_size, deep_supervision=True, n_channels=CHANNELS
    )
    optimizer = torch.optim.AdamW(network.parameters(), foreach=True)
    volume = torch.randn(1, 1, *(options.extent,) * 3)
    state: dict[str, list[torch.Tensor]] = {}

    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            state["outputs"] = network(volume)

    def backward() -> None:
        outputs = state["outputs"]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return {"forward": forward, "backward": backward, "optimizer": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="B", choices=("S", "B", "M", "L"))
    parser.add_argument("--kernel-size", type=int, default=3)
    parser.add_argument("--extent", type=int, default=16, help="voxels an axis: a multiple of 16")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--profile", action="store_true", help="print where Python's time goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with mednext_ops.use_backend("emulated", "reference"), emulated.launches_only(), products_left_out():
        parts = make_step(options)
        for part in list(parts.values()) * 3:
            part()
        if options.profile:
            profile = cProfile.Profile(time.process_time)
            profile.enable()
            for part in parts.values():
                part()
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)
            return
        times: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(options.steps):
            for name, part in parts.items():
                begin = time.process_time()
                part()
                times[name].append(1e3 * (time.process_time() - begin))
    print(json.dumps({name: round(min(of_part), 2) for name, of_part in times.items()}))


if __name__ == "__main__":
    main()
