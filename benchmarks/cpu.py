"""Measures the CPU backend against eager PyTorch, contiguous and channels_last_3d, and writes every number down.

Correctness comes first: nothing is timed whose result differs. The variants take turns, so that whatever else the
machine does meets them all; a row holds medians. The floor is the multiplications at the rate of this machine's sgemm.

    python benchmarks/cpu.py --output benchmarks/results/cpu-epyc-2-cores.json --figure docs/images/cpu-kernel-size.png

``--quick`` measures the single ops alone; ``--profile`` says which operators a training step spends its time in;
``--pool`` compares processes with and without the pool of results' memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import mednext_ops as ops
from mednext import create_mednext
from mednext.bench.machine import provenance
from mednext.bench.peak import peak_bytes
from mednext.eager import EagerMedNeXt
from mednext.variants import VARIANTS
from mednext_ops import native
from mednext_ops.backends import ConvGeometry, cpu

KERNEL_SIZES = (3, 5, 7)
SHAPE = (1, 32, 64, 64, 64)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}

Variants = dict[str, Callable[[], Any]]


def take_turns(variants: Variants, rounds: int) -> dict[str, float]:
    """The median time of each variant in seconds, the variants run in turn after one run of each to warm up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def sgemm_rate() -> float:
    """Floating point operations a second of torch's own product of two 2048 x 2048 matrices."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    out = torch.empty(2048, 2048)
    return 2 * 2048**3 / take_turns({"sgemm": lambda: torch.mm(left, right, out=out)}, 9)["sgemm"]


def require_close(what: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    error = ((ours - theirs).norm() / theirs.norm()).item()
    if not error <= tolerance:
        raise SystemExit(f"{what}: differs from eager PyTorch by {error:.1e}; nothing was measured")


def single_ops(kernel_size: int, rounds: int) -> list[dict[str, Any]]:
    """Forward, backward data and backward weight of one depthwise convolution of the first stage."""
    geometry = ConvGeometry((kernel_size,) * 3, padding=(kernel_size // 2,) * 3)
    weight = torch.randn(SHAPE[1], 1, *geometry.kernel_size)
    stages: dict[str, Variants] = {"forward": {}, "backward data": {}, "backward weight": {}}
    results: dict[str, dict[str, torch.Tensor]] = {stage: {} for stage in stages}
    torch.manual_seed(0)
    values, gradient = torch.randn(SHAPE), torch.randn(SHAPE)
    for name, memory_format in FORMATS.items():
        x, g = (t.contiguous(memory_format=memory_format) for t in (values, gradient))

        def backward(data: bool, x: torch.Tensor = x, g: torch.Tensor = g) -> torch.Tensor:
            found = torch.ops.aten.convolution_backward(
                g, x, weight, None, [1] * 3, list(geometry.padding), [1] * 3, False, [0] * 3, SHAPE[1],
                [data, not data, False],
            )  # fmt: skip
            return found[0 if data else 1]

        def ours(data: bool, x: torch.Tensor = x, g: torch.Tensor = g) -> torch.Tensor:
            found = cpu.depthwise_conv3d_backward(g, x, weight, geometry, None, data, not data)
            return found[0 if data else 1]

        stages["forward"] |= {
            f"ours {name}": lambda x=x: cpu.depthwise_conv3d(x, weight, None, geometry),
            f"eager {name}": lambda x=x: F.conv3d(x, weight, None, 1, geometry.padding, 1, SHAPE[1]),
        }
        for stage, data in (("backward data", True), ("backward weight", False)):
            stages[stage] |= {
                f"ours {name}": lambda data=data, run=ours: run(data),
                f"eager {name}": lambda data=data, run=backward: run(data),
            }
    rows = []
    with torch.no_grad():
        for stage, variants in stages.items():
            results[stage] = {name: run() for name, run in variants.items()}
            expected = results[stage].pop("eager contiguous")
            for name, found in results[stage].items():
                require_close(f"{stage} k{kernel_size}, {name}", found, expected, 1e-4)
            seconds = take_turns(variants, rounds)
            operations = 2 * kernel_size**3 * values.numel()
            rows.append({"what": stage, "kernel_size": kernel_size, "seconds": seconds, "operations": operations})
    return rows


def networks(kernel_size: int) -> dict[str, torch.nn.Module]:
    """MedNeXt-S, ours and eager, with the same parameters, in both memory formats."""
    chosen = VARIANTS["S"]
    torch.manual_seed(0)
    found: dict[str, torch.nn.Module] = {}
    for name, memory_format in FORMATS.items():
        eager = EagerMedNeXt(
            *(1, chosen.n_channels, 3, chosen.exp_r, kernel_size),
            deep_supervision=True, do_res=True, do_res_up_down=True, block_counts=chosen.block_counts, grn=chosen.grn,
        )  # fmt: skip
        net = create_mednext("S", 1, 3, kernel_size, deep_supervision=True)
        parameters = (found["eager contiguous"] if found else eager).state_dict()
        for network in (net, eager):
            network.load_state_dict(parameters)
        found[f"ours {name}"] = net.to(memory_format=memory_format)
        found[f"eager {name}"] = eager.to(memory_format=memory_format)
    return found


def step(network: torch.nn.Module, x: torch.Tensor) -> None:
    network.zero_grad()
    sum(output.square().mean() for output in network(x)).backward()


def infer(network: torch.nn.Module, x: torch.Tensor) -> Any:
    with torch.no_grad():
        return network(x)


def whole_networks(kernel_size: int, edge: int, rounds: int) -> list[dict[str, Any]]:
    """Inference and a training step (forward, backward) of MedNeXt-S with deep supervision."""
    x = torch.randn(1, 1, edge, edge, edge)
    inputs = {name: x.contiguous(memory_format=memory_format) for name, memory_format in FORMATS.items()}
    found = networks(kernel_size)
    runs = {name: (network, inputs[name.split()[1]]) for name, network in found.items()}
    expected = infer(*runs["eager contiguous"])[0]
    for name, (network, value) in runs.items():
        require_close(f"MedNeXt-S k{kernel_size}, {name}", infer(network, value)[0], expected, 1e-4)
    rows = []
    for what, run, times in (("inference", infer, 2 * rounds), ("training step", step, rounds)):
        variants: Variants = {name: lambda pair=pair, run=run: run(*pair) for name, pair in runs.items()}
        rows.append({"what": what, "kernel_size": kernel_size, "edge": edge, "seconds": take_turns(variants, times)})
    return rows


def _peak(name: str, kernel_size: int, edge: int, sender: Any) -> None:
    network = networks(kernel_size)[name]
    x = torch.randn(1, 1, edge, edge, edge).contiguous(memory_format=FORMATS[name.split()[1]])
    sender.send(peak_bytes(lambda: step(network, x), x.device))


def peak_memory(kernel_size: int, edge: int) -> dict[str, Any]:
    """What a training step adds to the process's memory at its peak, in bytes, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for name in ("ours contiguous", "eager contiguous", "eager channels_last_3d"):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_peak, args=(name, kernel_size, edge, sender))
        process.start()
        found[name] = receiver.recv()
        process.join()
    return {"what": "peak memory of a training step", "kernel_size": kernel_size, "edge": edge, "bytes": found}


def profile(kernel_size: int, edge: int) -> dict[str, Any]:
    """Seconds of a training step of MedNeXt-S by operator, the largest first, and the rate of sgemm around it."""
    network, x = networks(kernel_size)["ours contiguous"], torch.randn(1, 1, edge, edge, edge)
    step(network, x)
    rates = [sgemm_rate()]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        step(network, x)
    rates.append(sgemm_rate())
    events = sorted(recorded.key_averages(), key=lambda e: -e.self_cpu_time_total)
    seconds = {event.key: event.self_cpu_time_total * 1e-6 for event in events if event.self_cpu_time_total >= 1000}
    print(f"k{kernel_size} training step: {sum(seconds.values()):.2f} s; sgemm {min(rates) / 1e9:.0f} GFLOP/s")
    for name, value in list(seconds.items())[:12]:
        print(f"  {value * 1e3:8.1f} ms  {name}")
    return {"what": "profile", "kernel_size": kernel_size, "edge": edge, "self_seconds": seconds, "sgemm_around": rates}


def _timed(kernel_size: int, edge: int, sender: Any) -> None:
    network, x = networks(kernel_size)["ours contiguous"], torch.randn(1, 1, edge, edge, edge)
    value, weight = torch.randn(SHAPE), torch.randn(SHAPE[1], 1, *(kernel_size,) * 3)
    geometry = ConvGeometry((kernel_size,) * 3, padding=(kernel_size // 2,) * 3)
    with ops.use_backend("cpu"):
        found = take_turns({"forward": lambda: cpu.depthwise_conv3d(value, weight, None, geometry)}, 15)
        found |= take_turns({"inference": lambda: infer(network, x)}, 7)
        found |= take_turns({"training step": lambda: step(network, x)}, 7)
    sender.send(found)


def pool_against_fresh_memory(kernel_size: int, edge: int, rounds: int) -> list[dict[str, Any]]:
    """Medians over processes that take turns, half of them without the pool, of medians within each."""
    context = multiprocessing.get_context("spawn")
    variants = {"pool": "1024", "fresh memory": "0"}
    times: dict[str, dict[str, list[float]]] = {}
    before = os.environ.get("MEDNEXT_OPS_CPU_POOL")
    for _ in range(rounds):
        for variant, pool in variants.items():
            os.environ["MEDNEXT_OPS_CPU_POOL"] = pool  # read once in each process
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_timed, args=(kernel_size, edge, sender))
            process.start()
            for what, value in receiver.recv().items():
                times.setdefault(what, {}).setdefault(variant, []).append(value)
            process.join()
    if before is None:
        del os.environ["MEDNEXT_OPS_CPU_POOL"]
    else:
        os.environ["MEDNEXT_OPS_CPU_POOL"] = before
    rows = []
    for what, found in times.items():
        seconds = {variant: statistics.median(values) for variant, values in found.items()}
        rows.append({"what": what, "kernel_size": kernel_size, "edge": edge, "seconds": seconds, "processes": found})
        text = ", ".join(f"{variant} {value * 1e3:.1f} ms" for variant, value in seconds.items())
        print(f"k{kernel_size} {what}: {text}; {seconds['fresh memory'] / seconds['pool']:.2f}", flush=True)
    return rows


def source() -> dict[str, str]:
    """The machine, the versions, the commit, the command and the instructions that the kernels use."""
    capability = os.environ.get("MEDNEXT_OPS_CPU_CAPABILITY") or native.cpu_capabilities()[0]
    found = provenance(torch.device("cpu"), [])
    return found | {"command": shlex.join(["python", *sys.argv]), "capability": capability}


def show(row: dict[str, Any], rate: float) -> None:
    numbers = row.get("seconds") or row["bytes"]
    unit, scale = ("ms", 1e3) if "seconds" in row else ("MiB", 2**-20)
    ours = numbers["ours contiguous"]
    text = f"k{row['kernel_size']} {row['what']}: " + ", ".join(f"{n} {v * scale:.1f}" for n, v in numbers.items())
    ratios = (numbers[f"eager {name}"] / ours for name in FORMATS)
    text += f" {unit}; eager / ours {', '.join(f'{ratio:.1f}' for ratio in ratios)}"
    if "operations" in row:
        text += f"; {row['operations'] / ours / rate:.0%} of sgemm"
    print(text, flush=True)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Time by kernel size, a panel for each kind of row, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(row["what"] for row in rows if "seconds" in row))
    figure, panels = plt.subplots(1, len(kinds), figsize=(3.2 * len(kinds), 3.4), layout="constrained")
    styles = {"ours contiguous": "C0-o", "ours channels_last_3d": "C0--s"}
    styles |= {"eager contiguous": "C1-o", "eager channels_last_3d": "C1--s"}
    for panel, kind in zip(panels, kinds, strict=True):
        chosen = [row for row in rows if row["what"] == kind]
        for name, style in styles.items():
            panel.plot([r["kernel_size"] for r in chosen], [r["seconds"][name] for r in chosen], style, label=name)
        panel.set(title=kind, xlabel="kernel size", yscale="log", xticks=KERNEL_SIZES)
    panels[0].set_ylabel("seconds")
    panels[-1].legend(fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the rows as JSON into this file")
    parser.add_argument("--figure", type=Path, help="draw them into this PNG file")
    parser.add_argument("--edge", type=int, default=64, help="of the networks' input, a multiple of 16 from 32 on")
    parser.add_argument("--rounds", type=int, default=3, help="of the networks' training step")
    parser.add_argument("--quick", action="store_true", help="the single ops alone")
    parser.add_argument(
        "--profile", action="store_true", help="only the profile of a training step, for each kernel size"
    )
    parser.add_argument("--pool", action="store_true", help="only the pool of memory against fresh memory")
    arguments = parser.parse_args()
    if arguments.edge < 32 or arguments.edge % 16:
        parser.error(f"--edge must be a multiple of 16 from 32 on, got {arguments.edge}")
    if cpu.unavailable() is not None:
        raise SystemExit(f"the CPU backend does not run here: {cpu.unavailable()}")
    rate = sgemm_rate()
    print(f"sgemm: {rate / 1e9:.0f} GFLOP/s")
    rows = []
    with ops.use_backend("cpu"):
        for kernel_size in KERNEL_SIZES if arguments.profile else ():
            rows.append(profile(kernel_size, arguments.edge))
        for kernel_size in KERNEL_SIZES if arguments.pool else ():
            rows += pool_against_fresh_memory(kernel_size, arguments.edge, arguments.rounds)
        for kernel_size in () if arguments.profile or arguments.pool else KERNEL_SIZES:
            rows += single_ops(kernel_size, 7)
            for row in rows[-3:]:
                show(row, rate)
        for kernel_size in () if arguments.quick or arguments.profile or arguments.pool else KERNEL_SIZES:
            rows += whole_networks(kernel_size, arguments.edge, arguments.rounds)
            rows.append(peak_memory(kernel_size, arguments.edge))
            for row in rows[-3:]:
                show(row, rate)
    origin: dict[str, Any] = source() | {"sgemm_flops": rate}
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps([row | origin for row in rows], indent=1) + "\n")
    if arguments.figure is not None and not (arguments.profile or arguments.pool):
        draw(rows, arguments.figure)


if __name__ == "__main__":
    main()
